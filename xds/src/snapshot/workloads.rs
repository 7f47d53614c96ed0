//! The workloads of a snapshot, found by uid, by address and by name.

use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::Arc;

use model::{NetworkMode, TunnelProtocol, Workload};

use super::table::Table;

/// Three tables of the same values. Each knows of a value only the hash of its key and compares with the value itself,
/// so that no key is held twice.
#[derive(Debug, Clone, Default)]
pub(crate) struct Workloads {
    hasher: foldhash::fast::RandomState,
    by_uid: Table<Arc<Workload>>,
    /// Once for each address. Workloads in the host's network are not in it: they share the node's.
    by_address: Table<Arc<Workload>>,
    by_name: Table<Arc<Workload>>,
}

impl Workloads {
    pub(crate) fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// In no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_uid.iter()
    }

    pub(crate) fn by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.by_uid.get(self.hash(uid)).find(|workload| &*workload.uid == uid)
    }

    /// Of several owners the preferred one.
    pub(crate) fn by_address(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        let owns = |it: &&Arc<Workload>| {
            &*it.network == network && it.addresses.iter().any(|own| own.to_canonical() == ip)
        };
        let mut owners = self.by_address.get(self.hash(&(network, ip))).filter(owns);
        let first = owners.next()?;
        Some(owners.fold(first, |best, it| if preference(it) < preference(best) { it } else { best }))
    }

    /// Of several with this name the one of the least uid, so that every proxy agrees.
    pub(crate) fn by_name(
        &self,
        namespace: &str,
        name: &str,
        service_account: Option<&str>,
    ) -> Option<&Arc<Workload>> {
        let is_meant = |it: &&Arc<Workload>| {
            &*it.name == name
                && &*it.namespace == namespace
                && service_account.is_none_or(|account| it.identity.service_account() == account)
        };
        self.by_name
            .get(self.hash(&(namespace, name)))
            .filter(is_meant)
            .min_by(|one, other| one.uid.cmp(&other.uid))
    }

    /// Adds a workload whose uid is not in use.
    pub(crate) fn insert(&mut self, workload: Arc<Workload>) {
        for hash in self.address_hashes(&workload) {
            self.by_address.insert(hash, Arc::clone(&workload));
        }
        let name = self.hash(&(&*workload.namespace, &*workload.name));
        self.by_name.insert(name, Arc::clone(&workload));
        self.by_uid.insert(self.hash(&*workload.uid), workload);
    }

    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let workload = self.by_uid.remove(self.hash(uid), &|it| &*it.uid == uid)?;
        let is_it = |it: &Arc<Workload>| Arc::ptr_eq(it, &workload);
        for hash in self.address_hashes(&workload) {
            self.by_address.remove(hash, &is_it);
        }
        self.by_name.remove(self.hash(&(&*workload.namespace, &*workload.name)), &is_it);
        Some(workload)
    }

    fn address_hashes(&self, workload: &Workload) -> Vec<u32> {
        if workload.network_mode == NetworkMode::HostNetwork {
            return Vec::new();
        }
        let network = &*workload.network;
        workload.addresses.iter().map(|ip| self.hash(&(network, ip.to_canonical()))).collect()
    }

    fn hash<Q: Hash + ?Sized>(&self, query: &Q) -> u32 {
        let hash = self.hasher.hash_one(query);
        // Both halves of it: neither alone is promised to be well mixed.
        #[allow(clippy::cast_possible_truncation)]
        {
            (hash ^ (hash >> 32)) as u32
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_uid.len() + self.by_address.len() + self.by_name.len() == 0
    }
}

/// Order among workloads of one address: pods, then those that take HBONE, then by uid so that every proxy agrees.
fn preference(workload: &Workload) -> (bool, bool, &str) {
    let is_pod = workload.uid.contains("//Pod/");
    let takes_hbone = workload.tunnel_protocol == TunnelProtocol::Hbone;
    (!is_pod, !takes_hbone, &workload.uid)
}
