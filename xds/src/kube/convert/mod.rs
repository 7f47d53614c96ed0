//! From a catalog to the intermediate form. Pure functions: the same catalog gives the same result.
//!
//! [`policies`] and [`routes`] give everything a control plane serves; [`workload_policies`] says for one workload
//! which policies select it. The functions below them serve one object each.

pub mod attachment;
pub(super) mod attribute;
pub mod authorization;
pub mod authorizer;
pub mod backend_policy;
pub mod hosts;
pub mod peer_authentication;
pub mod request_authentication;
pub mod route;
pub mod telemetry;
pub mod traffic;
pub mod trust_domain;
pub mod virtual_service;

use std::sync::Arc;

use l7::ir;

use super::catalog::{Catalog, MeshSettings};

pub use attachment::{Scope, ServiceRef, Subject, workload_policies};
pub use authorization::ConvertError;
pub use request_authentication::request_authentications;
pub use traffic::traffic_policies;

/// All routes of a catalog, of whatever kind, in the order of their names.
pub fn routes(catalog: &Catalog, mesh: &MeshSettings) -> Vec<ir::HttpRoute> {
    let mut routes = route::routes(catalog, mesh);
    routes.extend(virtual_service::routes(catalog, mesh));
    routes
}

/// Which resource carries a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// `istio.security.Authorization`: decided when the connection opens.
    Connection,
    /// The intermediate form itself: it holds a condition that `Authorization` has no field for.
    Request,
}

/// A policy as it is served.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshPolicy {
    /// `NAMESPACE/NAME`, the name by which workloads refer to it.
    pub key: Arc<str>,
    pub scope: Scope,
    pub carrier: Carrier,
    pub policy: ir::AuthorizationPolicy,
}

/// Every policy of the mesh: those written as AuthorizationPolicy and those that PeerAuthentications amount to.
/// Objects that cannot be expressed are returned aside; their readers refuse them, so that is a defect of a caller
/// that made up its own objects.
pub fn policies(catalog: &Catalog, mesh: &MeshSettings) -> (Vec<MeshPolicy>, Vec<ConvertError>) {
    let mut policies = Vec::new();
    let mut errors = Vec::new();
    for policy in catalog.authorization_policies.values() {
        match authorization::convert(policy, mesh) {
            Ok(mut converted) => {
                let named = policy.provider.as_ref();
                converted.authorizer =
                    named.and_then(|name| authorizer::authorizer(name, catalog, mesh).ok());
                policies.push(MeshPolicy {
                    key: key(&converted),
                    scope: attachment::scope(&**policy, mesh),
                    carrier: authorization::carrier(&converted),
                    policy: converted,
                });
            }
            Err(error) => errors.push(error),
        }
    }
    policies.extend(peer_authentication::convert_all(catalog, mesh).into_iter().map(|policy| MeshPolicy {
        key: key(&policy),
        scope: Scope::WorkloadSelector,
        carrier: Carrier::Connection,
        policy,
    }));
    (policies, errors)
}

fn key(policy: &ir::AuthorizationPolicy) -> Arc<str> {
    Arc::from(format!("{}/{}", policy.namespace, policy.name))
}
