//! A workload: one pod, VM or external endpoint (`istio.workload.Workload`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::address::{GatewayAddress, NamespacedHostname};
use crate::identity::Identity;

/// A workload as the data plane sees it. Immutable: an update replaces the whole value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Key, such as `Kubernetes//Pod/NAMESPACE/NAME`.
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    /// The identity it must prove; built from trust domain, namespace and service account.
    pub identity: Identity,
    pub addresses: Vec<IpAddr>,
    /// Host name to resolve where `addresses` is empty; empty if none.
    pub hostname: Arc<str>,
    pub network: Arc<str>,
    pub tunnel_protocol: TunnelProtocol,
    /// The workload speaks the tunnel itself.
    pub native_tunnel: bool,
    pub network_mode: NetworkMode,
    pub waypoint: Option<GatewayAddress>,
    pub network_gateway: Option<GatewayAddress>,
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Keys `namespace/name` of the policies that select this workload. A key without its policy fails closed.
    pub authorization_policies: Vec<Arc<str>>,
    /// Memberships, with the ports of this endpoint for each service.
    pub services: Services,
    pub health: Health,
    pub locality: Locality,
    pub node: Arc<str>,
    pub cluster_id: Arc<str>,
    /// Weight in endpoint choice; 1 where the control plane leaves it unset.
    pub capacity: u32,
    // Telemetry only.
    pub workload_name: Arc<str>,
    pub workload_type: WorkloadType,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
}

/// The services that a workload belongs to, each with the ports of this endpoint, sorted by service.
///
/// Cloning is one reference count: the pods of one deployment share one list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Services(Arc<[Membership]>);

/// One service, and its ports as this endpoint serves them.
pub type Membership = (NamespacedHostname, Arc<[EndpointPort]>);

impl Services {
    pub fn get(&self, service: &NamespacedHostname) -> Option<&[EndpointPort]> {
        let index = self.0.binary_search_by(|(key, _)| key.cmp(service)).ok()?;
        self.0.get(index).map(|(_, ports)| &**ports)
    }

    pub fn contains_key(&self, service: &NamespacedHostname) -> bool {
        self.get(service).is_some()
    }

    pub fn keys(&self) -> impl Iterator<Item = &NamespacedHostname> {
        self.0.iter().map(|(key, _)| key)
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Membership> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds a membership, or replaces that of the same service. Copies the list.
    pub fn insert(&mut self, service: NamespacedHostname, ports: impl Into<Arc<[EndpointPort]>>) {
        *self = self.iter().cloned().chain([(service, ports.into())]).collect();
    }

    /// Whether this is not the only copy, so that whoever keeps it does not keep it alone.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl<P: Into<Arc<[EndpointPort]>>> FromIterator<(NamespacedHostname, P)> for Services {
    /// Of two entries of one service the later one counts.
    fn from_iter<I: IntoIterator<Item = (NamespacedHostname, P)>>(entries: I) -> Self {
        let sorted: BTreeMap<_, Arc<[EndpointPort]>> =
            entries.into_iter().map(|(key, ports)| (key, ports.into())).collect();
        Self(sorted.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a Services {
    type Item = &'a Membership;
    type IntoIter = std::slice::Iter<'a, Membership>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Port of a service as one endpoint serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndpointPort {
    pub service_port: u16,
    pub target_port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    pub protocol: ApplicationTunnelProtocol,
    /// 0: the resolved port.
    pub port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApplicationTunnelProtocol {
    None,
    /// PROXY protocol version 2.
    Proxy,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TunnelProtocol {
    #[default]
    None,
    Hbone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetworkMode {
    #[default]
    Standard,
    /// Shares the node's address, so it is never found by IP.
    HostNetwork,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Health {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WorkloadType {
    #[default]
    Deployment,
    CronJob,
    Pod,
    Job,
}
