//! Traffic policies, labels of workloads and what holds for the whole mesh, in the store.

use std::sync::Arc;

use l7::ir::{Labels, MeshWide, TrafficPolicy};
use model::NamespacedHostname;

use super::Store;

impl Store {
    pub(super) fn upsert_traffic_policy(&mut self, policy: Arc<TrafficPolicy>) {
        let key = policy.service.clone();
        let mut policies = self.state.traffic.get(&key).cloned().unwrap_or_default();
        if policies.contains(&policy) {
            return;
        }
        policies.retain(|other| other.consumer_namespace != policy.consumer_namespace);
        policies.push(policy);
        self.state.traffic.insert(key, policies);
        self.changed = true;
    }

    /// Service and consumer are the name of the resource.
    pub(super) fn remove_traffic_policy(&mut self, name: &str) {
        let Some((service, consumer)) = name.rsplit_once('/') else { return };
        let Some((namespace, hostname)) = service.split_once('/') else { return };
        let key = NamespacedHostname::new(namespace, hostname);
        let Some(mut policies) = self.state.traffic.get(&key).cloned() else { return };
        policies.retain(|other| other.consumer_namespace.as_deref().unwrap_or_default() != consumer);
        if policies.is_empty() {
            self.state.traffic.remove(&key);
        } else {
            self.state.traffic.insert(key, policies);
        }
        self.changed = true;
    }

    pub(super) fn upsert_labels(&mut self, uid: &str, labels: Arc<Labels>) {
        if self.state.labels.get(uid) != Some(&labels) {
            self.state.labels.insert(self.interner.text(uid), labels);
            self.changed = true;
        }
    }

    pub(super) fn remove_labels(&mut self, uid: &str) {
        self.changed |= self.state.labels.remove(uid).is_some();
    }

    pub(super) fn set_mesh_wide(&mut self, mesh: MeshWide) {
        self.changed |= std::mem::replace(&mut self.state.mesh, mesh) != mesh;
    }
}
