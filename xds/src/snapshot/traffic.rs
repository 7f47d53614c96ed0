//! Traffic policies of services, and the labels by which their subsets are told apart.

use std::sync::Arc;

use l7::ir::{Labels, MeshWide, TrafficPolicy};
use model::{NamespacedHostname, Workload};

use super::endpoint::Within;
use super::{Chooser, Snapshot};

impl Snapshot {
    /// What holds for the traffic of a namespace's clients to a service.
    pub fn traffic_policy(
        &self,
        service: &NamespacedHostname,
        client_namespace: &str,
    ) -> Option<&Arc<TrafficPolicy>> {
        let policies = self.traffic.get(service)?;
        let of = |wanted: Option<&str>| {
            policies.iter().find(move |policy| policy.consumer_namespace.as_deref() == wanted)
        };
        of(Some(client_namespace)).or_else(|| of(None))
    }

    /// Those labels of a workload that some subset or route asks for.
    pub fn labels_of(&self, workload: &Workload) -> Option<&Arc<Labels>> {
        self.labels.get(&workload.uid)
    }

    /// What every proxy does alike.
    pub fn mesh_wide(&self) -> MeshWide {
        self.mesh
    }

    /// The chooser for a subset of a service; none is chosen of one that nobody has described.
    #[must_use]
    pub fn within<'a>(
        &'a self,
        chooser: Chooser<'a>,
        service: &NamespacedHostname,
        client_namespace: &str,
        subset: &str,
    ) -> Chooser<'a> {
        let policy = self.traffic_policy(service, client_namespace);
        let described = policy.and_then(|policy| policy.subset(subset));
        chooser.within(Within { wanted: described.map(|subset| &subset.labels), labels: &self.labels })
    }
}
