//! Workloads in the store: with them come and go their endpoints and the use of their policies.

use std::sync::Arc;

use model::Workload;

use super::Store;
use crate::snapshot::{Endpoint, PolicySetKey};

impl Store {
    pub(super) fn upsert_workload(&mut self, mut workload: Workload) {
        let old = self.state.workloads.by_uid(&workload.uid).cloned();
        if old.as_deref() == Some(&workload) {
            return;
        }
        self.changed = true;
        if let Some(old) = &old {
            // The discovery client holds this copy of the name.
            workload.uid = Arc::clone(&old.uid);
        }
        let workload = Arc::new(workload);
        self.soil_envoy(&workload.addresses);
        if let Some(old) = &old {
            self.soil_envoy(&old.addresses);
            self.state.workloads.remove(&old.uid);
            self.state.local_workloads.remove(&old.uid);
            self.release_policy_set(&policy_set_key(old));
            for service in old.services.keys().filter(|service| !workload.services.contains_key(service)) {
                self.remove_endpoint(service, &old.uid);
            }
        }
        self.use_policy_set(policy_set_key(&workload));
        for (service, ports) in &workload.services {
            let replaces = old.as_ref().is_some_and(|old| old.services.contains_key(service));
            let endpoint = Endpoint { workload: Arc::clone(&workload), ports: Arc::clone(ports) };
            self.put_endpoint(service, endpoint, replaces);
        }
        if !self.node.is_empty() && workload.node == self.node {
            self.state.local_workloads.insert(Arc::clone(&workload.uid), Arc::clone(&workload));
        }
        self.state.workloads.insert(workload);
    }

    /// False if there is none of this uid.
    pub(super) fn remove_workload(&mut self, uid: &str) -> bool {
        let Some(workload) = self.state.workloads.remove(uid) else { return false };
        self.changed = true;
        self.soil_envoy(&workload.addresses);
        self.state.removals += 1;
        self.state.local_workloads.remove(uid);
        self.release_policy_set(&policy_set_key(&workload));
        for service in workload.services.keys() {
            self.remove_endpoint(service, uid);
        }
        true
    }
}

fn policy_set_key(workload: &Workload) -> PolicySetKey {
    PolicySetKey {
        namespace: Arc::clone(&workload.namespace),
        names: workload.authorization_policies.iter().cloned().collect(),
    }
}
