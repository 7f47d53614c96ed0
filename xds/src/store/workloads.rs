//! Workloads in the store, and the tables that find them.

use std::sync::Arc;

use model::{NetworkMode, TunnelProtocol, Workload};

use super::Store;
use crate::snapshot::{AddressKey, Endpoint, Few, Map, NameKey, PolicySetKey};

impl Store {
    pub(super) fn upsert_workload(&mut self, workload: Workload) {
        let old = self.state.workloads.get(&workload.uid).cloned();
        if old.as_deref() == Some(&workload) {
            return;
        }
        self.changed = true;
        let workload = Arc::new(workload);
        if let Some(old) = &old {
            self.unlink(old);
            for service in old.services.keys().filter(|service| !workload.services.contains_key(*service)) {
                self.remove_endpoint(service, &old.uid);
            }
        }
        self.link(&workload);
        for (service, ports) in &workload.services {
            let replaces = old.as_ref().is_some_and(|old| old.services.contains_key(service));
            let ports = self.interner.ports(ports);
            self.put_endpoint(service, Endpoint { workload: Arc::clone(&workload), ports }, replaces);
        }
        self.state.workloads.insert(Arc::clone(&workload.uid), workload);
    }

    /// False if there is none of this uid.
    pub(super) fn remove_workload(&mut self, uid: &str) -> bool {
        let Some(workload) = self.state.workloads.remove(uid) else { return false };
        self.changed = true;
        self.unlink(&workload);
        for service in workload.services.keys() {
            self.remove_endpoint(service, uid);
        }
        true
    }

    fn link(&mut self, workload: &Arc<Workload>) {
        for key in address_keys(workload) {
            let owners = self.state.workloads_by_address.entry(key).or_default();
            let rank = preference(workload);
            let at = owners.partition_point(|other| preference(other) < rank);
            owners.insert(at, Arc::clone(workload));
        }
        let by_name = self.state.workloads_by_name.entry(name_key(workload)).or_default();
        let at = by_name.partition_point(|other| other.uid < workload.uid);
        by_name.insert(at, Arc::clone(workload));
        self.use_policy_set(policy_set_key(workload));
    }

    fn unlink(&mut self, workload: &Arc<Workload>) {
        for key in address_keys(workload) {
            remove_from(&mut self.state.workloads_by_address, &key, workload);
        }
        remove_from(&mut self.state.workloads_by_name, &name_key(workload), workload);
        self.release_policy_set(&policy_set_key(workload));
    }
}

/// A workload in the host's network shares its address with others, so it is never found by it.
fn address_keys(workload: &Workload) -> impl Iterator<Item = AddressKey> + '_ {
    let found_by_address = workload.network_mode == NetworkMode::Standard;
    workload
        .addresses
        .iter()
        .filter(move |_| found_by_address)
        .map(|ip| AddressKey { network: Arc::clone(&workload.network), ip: ip.to_canonical() })
}

fn name_key(workload: &Workload) -> NameKey {
    NameKey { namespace: Arc::clone(&workload.namespace), name: Arc::clone(&workload.name) }
}

fn policy_set_key(workload: &Workload) -> PolicySetKey {
    PolicySetKey {
        namespace: Arc::clone(&workload.namespace),
        names: workload.authorization_policies.iter().cloned().collect(),
    }
}

/// Order among workloads of one address: pods, then those that take HBONE, then by uid so that every proxy agrees.
fn preference(workload: &Workload) -> (bool, bool, &str) {
    let is_pod = workload.uid.contains("//Pod/");
    let takes_hbone = workload.tunnel_protocol == TunnelProtocol::Hbone;
    (!is_pod, !takes_hbone, &workload.uid)
}

fn remove_from<K>(table: &mut Map<K, Few<Arc<Workload>>>, key: &K, workload: &Workload)
where
    K: std::hash::Hash + Eq + Clone,
{
    let Some(entries) = table.get_mut(key) else { return };
    entries.retain(|entry| entry.uid != workload.uid);
    if entries.is_empty() {
        table.remove(key);
    }
}
