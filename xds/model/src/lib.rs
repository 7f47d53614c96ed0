//! The nouns of the mesh, shared by every crate: identity, address, workload, service.
//!
//! Plain immutable data without I/O. [`identity`] holds the only SPIFFE parser of the project.
//! Strings are `Arc<str>`: snapshots share them, workers clone them without copying bytes.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod address;
pub mod identity;
pub mod service;
pub mod source;
pub mod workload;

pub use address::{GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress};
pub use identity::{Identity, IdentityError};
pub use service::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, RoutingScope, Service,
    ServicePort, ServiceVip, Visibility, WeightedWaypoint,
};
pub use source::SourceRef;
pub use workload::{
    ApplicationTunnel, ApplicationTunnelProtocol, EndpointPort, Health, Locality, Membership, NetworkMode,
    Services, TunnelProtocol, Workload, WorkloadType,
};
