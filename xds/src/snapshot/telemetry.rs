//! What is told of whose traffic.

use std::sync::Arc;

use l7::telemetry::Telemetry;
use model::{NamespacedHostname, Workload};

use super::{Map, Snapshot};
use crate::decode::TelemetrySubject;

/// What is told of traffic, by whose it is. Empty where nobody says anything, and then everything is told.
#[derive(Debug, Clone, Default)]
pub struct TelemetryTable {
    mesh: Option<Telemetry>,
    namespaces: Map<Arc<str>, Telemetry>,
    /// By uid.
    workloads: Map<Arc<str>, Telemetry>,
    /// Of the waypoint that it is made for.
    destinations: Map<Option<NamespacedHostname>, Telemetry>,
}

impl Snapshot {
    /// The same, by address, as long as none of it changes.
    pub fn telemetry(&self) -> &Arc<TelemetryTable> {
        &self.telemetry
    }
}

impl TelemetryTable {
    /// What is told of the traffic of a workload: what is said of itself, of its namespace, or of all.
    pub fn of_workload(&self, workload: &Workload) -> Option<&Telemetry> {
        if self.workloads.is_empty() && self.namespaces.is_empty() {
            return self.mesh.as_ref();
        }
        let own = self.workloads.get(&workload.uid).or_else(|| self.namespaces.get(&workload.namespace));
        own.or(self.mesh.as_ref())
    }

    /// Everything that is said, by the names of its resources, in their order.
    pub(crate) fn named(&self) -> Vec<(String, &Telemetry)> {
        let mesh = self.mesh.iter().map(|it| (TelemetrySubject::Mesh, it));
        let namespaces =
            self.namespaces.iter().map(|(name, it)| (TelemetrySubject::Namespace(name.clone()), it));
        let workloads = self.workloads.iter().map(|(uid, it)| (TelemetrySubject::Workload(uid.clone()), it));
        let destinations =
            self.destinations.iter().map(|(key, it)| (TelemetrySubject::Destination(key.clone()), it));
        let all = mesh.chain(namespaces).chain(workloads).chain(destinations);
        let mut all: Vec<_> = all.map(|(subject, it)| (subject.to_string(), it)).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// Whether anything is said of metrics. Looks at everything that is said.
    pub fn is_about_metrics(&self) -> bool {
        let said = self.mesh.iter().chain(self.namespaces.values()).chain(self.workloads.values());
        said.chain(self.destinations.values())
            .any(|it| !it.client.rules().metrics.is_empty() || !it.server.rules().metrics.is_empty())
    }

    /// What is told of traffic through the waypoint to a service, or to whatever is addressed by its own address.
    pub fn of_destination(&self, destination: Option<&NamespacedHostname>) -> Option<&Telemetry> {
        if self.destinations.is_empty() {
            return None;
        }
        self.destinations.get(&destination.cloned())
    }

    pub(crate) fn has_destinations(&self, destinations: &Map<Option<NamespacedHostname>, Telemetry>) -> bool {
        self.destinations == *destinations
    }

    pub(crate) fn set_destinations(&mut self, destinations: Map<Option<NamespacedHostname>, Telemetry>) {
        self.destinations = destinations;
    }

    pub(crate) fn get(&self, subject: &TelemetrySubject) -> Option<&Telemetry> {
        match subject {
            TelemetrySubject::Mesh => self.mesh.as_ref(),
            TelemetrySubject::Namespace(name) => self.namespaces.get(name),
            TelemetrySubject::Workload(uid) => self.workloads.get(uid),
            TelemetrySubject::Destination(destination) => self.destinations.get(destination),
        }
    }

    pub(crate) fn insert(&mut self, subject: TelemetrySubject, telemetry: Telemetry) {
        match subject {
            TelemetrySubject::Mesh => self.mesh = Some(telemetry),
            TelemetrySubject::Namespace(name) => drop(self.namespaces.insert(name, telemetry)),
            TelemetrySubject::Workload(uid) => drop(self.workloads.insert(uid, telemetry)),
            TelemetrySubject::Destination(destination) => {
                drop(self.destinations.insert(destination, telemetry));
            }
        }
    }

    pub(crate) fn remove(&mut self, subject: &TelemetrySubject) {
        match subject {
            TelemetrySubject::Mesh => self.mesh = None,
            TelemetrySubject::Namespace(name) => drop(self.namespaces.remove(name)),
            TelemetrySubject::Workload(uid) => drop(self.workloads.remove(uid)),
            TelemetrySubject::Destination(destination) => drop(self.destinations.remove(destination)),
        }
    }
}
