//! Routes: `corelane.l7.v1.HttpRoute`.

use std::borrow::Cow;
use std::sync::Arc;

use l7::ir::{HttpRoute, RouteKind};
use l7::router::Router;

use super::{DecodeError, message, same_name};
use crate::proto::l7 as wire;

/// How to mend an intermediate form that cannot be read.
pub(super) const SAME_VERSION: &str = "run the control plane and the proxies in the same version";

/// Reads a `corelane.l7.v1.HttpRoute`.
pub fn http_route(name: &str, bytes: &[u8]) -> Result<Arc<HttpRoute>, DecodeError> {
    let message: wire::HttpRoute = message(bytes)?;
    let route: HttpRoute = serde_json::from_slice(&message.ir)
        .map_err(|error| DecodeError::new("ir", error.to_string(), SAME_VERSION))?;
    same_name(name, "ir", &route_name(&route))?;
    let route = Arc::new(route);
    Router::compile([Arc::clone(&route)]).map_err(|error| {
        DecodeError::new("ir.rules", error.to_string(), "write the rule in a supported form")
    })?;
    Ok(route)
}

/// The name of a route's resource: `namespace/name/parent-namespace/parent-host/port`, the port 0 for all. A GRPCRoute
/// has `grpc_route` before its name, which is no name of an object and so never that of an HTTPRoute; a VirtualService has
/// `virtual_service` there and the namespace whose clients it governs, empty for all.
pub fn route_name(route: &HttpRoute) -> String {
    let port = route.parent_port.unwrap_or(0);
    let kind = match route.kind {
        RouteKind::Http => Cow::Borrowed(""),
        RouteKind::Grpc => Cow::Borrowed("grpc_route/"),
        RouteKind::Virtual => {
            let consumer = route.consumer_namespace.as_deref().unwrap_or_default();
            Cow::Owned(format!("virtual_service/{consumer}/"))
        }
    };
    format!("{}/{kind}{}/{}/{port}", route.namespace, route.name, route.parent)
}
