//! The messages and services of the wire, generated from `proto/*.proto`.
//!
//! Packages and field numbers are those of the public APIs, so that any control plane can be the other side;
//! the files themselves are our own and carry only what a node proxy needs. The generated code refers across
//! packages by their nesting, hence the tree; use the short names [`discovery`], [`rpc`], [`workload`],
//! [`zds`], [`security`], [`ca`], [`l7`], [`waypoint`], [`ext_authz`].

// Generated code follows prost's style, not ours.
#![allow(clippy::all, clippy::pedantic, missing_debug_implementations, unused_qualifications)]

pub mod envoy {
    pub mod service {
        pub mod auth {
            pub mod v3 {
                tonic::include_proto!("envoy.service.auth.v3");
            }
        }

        pub mod discovery {
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
    }
}

pub mod google {
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

pub mod istio {
    pub mod workload {
        tonic::include_proto!("istio.workload");

        pub mod zds {
            tonic::include_proto!("istio.workload.zds");
        }
    }

    pub mod security {
        tonic::include_proto!("istio.security");
    }

    pub mod v1 {
        pub mod auth {
            tonic::include_proto!("istio.v1.auth");
        }
    }
}

pub mod corelane {
    pub mod l7 {
        pub mod v1 {
            tonic::include_proto!("corelane.l7.v1");
        }
    }

    pub mod envoy {
        pub mod v1 {
            tonic::include_proto!("corelane.envoy.v1");
        }
    }
}

pub use corelane::envoy::v1 as waypoint;
pub use corelane::l7::v1 as l7;
pub use envoy::service::auth::v3 as ext_authz;
pub use envoy::service::discovery::v3 as discovery;
pub use google::rpc;
pub use istio::v1::auth as ca;
pub use istio::workload::zds;
pub use istio::{security, workload};

/// Type of [`workload::Address`] on the discovery stream.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type of [`workload::Workload`] where it travels without its address: the streams of waypoints.
pub const WORKLOAD_TYPE: &str = "type.googleapis.com/istio.workload.Workload";
/// Type of [`security::Authorization`] on the discovery stream.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Type of [`l7::HttpRoute`] on the discovery stream.
pub const HTTP_ROUTE_TYPE: &str = "type.googleapis.com/corelane.l7.v1.HttpRoute";
/// Type of [`l7::RequestAuthentication`] on the discovery stream.
pub const REQUEST_AUTHENTICATION_TYPE: &str = "type.googleapis.com/corelane.l7.v1.RequestAuthentication";
/// Type of [`l7::WaypointPolicies`] on the discovery stream.
pub const WAYPOINT_POLICIES_TYPE: &str = "type.googleapis.com/corelane.l7.v1.WaypointPolicies";
/// Type of [`l7::AuthorizationPolicy`] on the discovery stream.
pub const AUTHORIZATION_POLICY_TYPE: &str = "type.googleapis.com/corelane.l7.v1.AuthorizationPolicy";
/// Type of [`l7::TrafficPolicy`] on the discovery stream.
pub const TRAFFIC_POLICY_TYPE: &str = "type.googleapis.com/corelane.l7.v1.TrafficPolicy";
/// Type of [`l7::WorkloadLabels`] on the discovery stream.
pub const WORKLOAD_LABELS_TYPE: &str = "type.googleapis.com/corelane.l7.v1.WorkloadLabels";
/// Type of [`l7::MeshWide`] on the discovery stream.
pub const MESH_WIDE_TYPE: &str = "type.googleapis.com/corelane.l7.v1.MeshWide";
/// Type of [`waypoint::Cluster`] on the discovery stream.
pub const CLUSTER_TYPE: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Type of [`waypoint::LoadAssignment`] on the discovery stream.
pub const LOAD_ASSIGNMENT_TYPE: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Type of [`waypoint::Listener`] on the discovery stream.
pub const LISTENER_TYPE: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Type of [`l7::Telemetry`] on the discovery stream.
pub const TELEMETRY_TYPE: &str = "type.googleapis.com/corelane.l7.v1.Telemetry";
