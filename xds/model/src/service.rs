//! A service: virtual addresses, ports, balancing (`istio.workload.Service`).

use std::net::IpAddr;
use std::sync::Arc;

use crate::address::{GatewayAddress, NamespacedHostname};
use crate::identity::Identity;

/// A service as the data plane sees it. Immutable; endpoints are kept beside it in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Short name.
    pub name: Arc<str>,
    /// Namespace and fully qualified host name: the key.
    pub key: NamespacedHostname,
    /// Virtual addresses; empty for a headless service.
    pub vips: Vec<ServiceVip>,
    pub ports: Vec<ServicePort>,
    /// Identities accepted from its endpoints beside each endpoint's own.
    pub subject_alt_names: Vec<Identity>,
    pub waypoint: Option<GatewayAddress>,
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// `None`: random choice among the healthy endpoints.
    pub load_balancing: Option<LoadBalancing>,
    pub ip_families: IpFamilies,
    /// Wins ties between services that share a host name or an address.
    pub canonical: bool,
    pub visibility: Visibility,
}

impl Service {
    /// The port entry of a service port number.
    pub fn port(&self, service_port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.service_port == service_port)
    }
}

/// A virtual address or, with `prefix_len` shorter than full, a block of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceVip {
    pub network: Arc<str>,
    pub ip: IpAddr,
    /// Prefix length in bits, 32 or 128 for a single address.
    pub prefix_len: u8,
}

impl ServiceVip {
    /// A single address of a network.
    pub fn single(network: impl Into<Arc<str>>, ip: IpAddr) -> Self {
        Self { network: network.into(), ip, prefix_len: if ip.is_ipv4() { 32 } else { 128 } }
    }

    pub fn is_single(&self) -> bool {
        self.prefix_len == if self.ip.is_ipv4() { 32 } else { 128 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServicePort {
    pub service_port: u16,
    /// 0: each endpoint carries its own (a named target port).
    pub target_port: u16,
    pub app_protocol: AppProtocol,
}

/// What the port speaks (`istio.workload.AppProtocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AppProtocol {
    /// Not declared: detected from the first bytes where it matters.
    #[default]
    Unknown,
    Http11,
    Http2,
    Grpc,
    Tcp,
    Tls,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedWaypoint {
    pub destination: GatewayAddress,
    pub weight: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancing {
    pub routing_preference: Vec<RoutingScope>,
    pub mode: LoadBalancingMode,
    pub health_policy: HealthPolicy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RoutingScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LoadBalancingMode {
    #[default]
    Unspecified,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum IpFamilies {
    #[default]
    Automatic,
    Ipv4Only,
    Ipv6Only,
    Dual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Visibility {
    #[default]
    Public,
    /// Only clients of the same namespace resolve it.
    Namespace,
}
