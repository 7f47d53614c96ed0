//! Traffic policies of services, and the labels by which their subsets are told apart.

use std::sync::Arc;

use l7::ir::{Labels, MeshWide, TrafficPolicy, TrafficSettings};
use model::{NamespacedHostname, Workload};

use super::Snapshot;
use super::chooser::{Chooser, Within};

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
    pub(super) fn within<'a>(
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

    /// How the traffic of a namespace's clients to a port of a service, or of one of its subsets, is spread and bounded;
    /// `None` where nothing is said.
    pub fn traffic_to(
        &self,
        service: &NamespacedHostname,
        port: u16,
        subset: Option<&str>,
        client_namespace: &str,
    ) -> Option<Governed<'_>> {
        let governed = match &self.waypoint {
            Some(config) => {
                Governed { settings: config.settings(&service.hostname, port, subset)?, consumer: None }
            }
            None if self.traffic.is_empty() => return None,
            None => {
                let policy = self.traffic_policy(service, client_namespace)?;
                Governed {
                    settings: policy.settings(subset, port),
                    consumer: policy.consumer_namespace.as_ref(),
                }
            }
        };
        (!governed.settings.is_unset()).then_some(governed)
    }

    /// The workloads that such traffic may go to, whatever their health.
    pub fn members(
        &self,
        service: &NamespacedHostname,
        port: u16,
        subset: Option<&str>,
        client_namespace: &str,
    ) -> Vec<&Arc<Workload>> {
        if let Some(config) = &self.waypoint {
            let levels = config.levels(&service.hostname, port, subset).iter();
            return levels.flat_map(|level| &level.endpoints).map(|it| &it.workload).collect();
        }
        let entry = self.services.get(service).into_iter();
        let all = entry.flat_map(|entry| &entry.endpoints).map(|endpoint| &endpoint.workload);
        let Some(subset) = subset else { return all.collect() };
        let described =
            self.traffic_policy(service, client_namespace).and_then(|policy| policy.subset(subset));
        let within = Within { wanted: described.map(|subset| &subset.labels), labels: &self.labels };
        all.filter(|workload| within.has(workload)).collect()
    }
}

/// What governs the traffic to a service.
#[derive(Debug, Clone, Copy)]
pub struct Governed<'a> {
    pub settings: &'a TrafficSettings,
    /// It is for clients of this namespace only.
    pub consumer: Option<&'a Arc<str>>,
}
