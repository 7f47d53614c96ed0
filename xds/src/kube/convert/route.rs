//! HTTPRoute and GRPCRoute to the intermediate form: one route per parent Service, with its backends resolved.

use std::sync::Arc;

use l7::ir::{self, BackendTarget, HttpRule, RouteKind};
use model::NamespacedHostname;

use super::super::catalog::{Catalog, MeshSettings, ObjectName};
use super::super::cluster::{Service, ServicePort, ServiceType, TransportProtocol};
use super::super::gateway::{BackendRef, HttpRoute, HttpRouteRule, MirrorRef, ParentRef};
use super::attachment::in_namespace;
use super::backend_policy::{backend_tls, retry_budget, session};

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
const ISTIO_GROUP: &str = "networking.istio.io";

/// Why a parent of a route carries no traffic of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParentError {
    #[error("there is no {kind} {name}")]
    Missing { kind: &'static str, name: ObjectName },
    #[error("{kind} {name} has no port {port}")]
    NoPort { kind: &'static str, name: ObjectName, port: String },
    #[error("a parent of kind {kind} is not served by the mesh")]
    OtherKind { kind: String },
}

/// A parent that exists: its host names and the port the route is limited to.
struct Parent {
    hosts: Vec<NamespacedHostname>,
    port: Option<u16>,
}

/// All routes of a catalog, by kind in the order of their names.
pub fn routes(catalog: &Catalog, mesh: &MeshSettings) -> Vec<ir::HttpRoute> {
    let routes = catalog.http_routes.values().chain(catalog.grpc_routes.values());
    routes.flat_map(|route| convert(route, catalog, mesh)).collect()
}

/// One route for each of its parents that exists. A parent that does not carries no traffic, so nothing is lost.
pub fn convert(route: &HttpRoute, catalog: &Catalog, mesh: &MeshSettings) -> Vec<ir::HttpRoute> {
    let rules: Vec<HttpRule> =
        route.rules.iter().map(|rule| convert_rule(rule, route, catalog, mesh)).collect();
    let mut routes: Vec<ir::HttpRoute> = Vec::new();
    for parent in route.parents.iter().filter_map(|parent| resolve_parent(parent, catalog, mesh).ok()) {
        for host in parent.hosts {
            // A port and its section name may both be written: they are one parent.
            if routes.iter().any(|other| other.parent == host && other.parent_port == parent.port) {
                continue;
            }
            let is_consumer = host.namespace != route.meta.namespace;
            routes.push(ir::HttpRoute {
                kind: route.kind,
                namespace: route.meta.namespace.clone(),
                name: route.meta.name.clone(),
                consumer_namespace: is_consumer.then(|| route.meta.namespace.clone()),
                parent: host,
                parent_port: parent.port,
                order: ir::RouteOrder::Ranked,
                created: route.meta.created,
                hostnames: route.hostnames.clone(),
                rules: rules.clone(),
                source: Some(route.meta.source.clone()),
            });
        }
    }
    routes
}

/// Why a parent carries no traffic, if it does not.
pub fn parent_error(parent: &ParentRef, catalog: &Catalog, mesh: &MeshSettings) -> Option<ParentError> {
    resolve_parent(parent, catalog, mesh).err()
}

fn resolve_parent(parent: &ParentRef, catalog: &Catalog, mesh: &MeshSettings) -> Result<Parent, ParentError> {
    let name = ObjectName { namespace: parent.namespace.clone(), name: parent.name.clone() };
    match (parent.group.as_ref(), parent.kind.as_ref()) {
        ("", "Service") => {
            let kind = "Service";
            let Some(service) = catalog.services.get(&name) else {
                return Err(ParentError::Missing { kind, name });
            };
            let ports = service.ports.iter().map(|port| (&port.name, port.port));
            let port = resolve_port(parent, ports, kind, &name)?;
            let host = mesh.service_hostname(&name.namespace, &name.name);
            Ok(Parent { hosts: vec![NamespacedHostname::new(name.namespace, host)], port })
        }
        (ISTIO_GROUP, "ServiceEntry") => {
            let kind = "ServiceEntry";
            let Some(entry) = catalog.service_entries.get(&name) else {
                return Err(ParentError::Missing { kind, name });
            };
            let ports = entry.ports.iter().map(|port| (&port.name, port.number));
            let port = resolve_port(parent, ports, kind, &name)?;
            let host = |host: &Arc<str>| NamespacedHostname::new(name.namespace.clone(), host.clone());
            Ok(Parent { hosts: entry.hosts.iter().map(host).collect(), port })
        }
        (_, kind) => Err(ParentError::OtherKind { kind: kind.to_owned() }),
    }
}

/// The port that `port` and `sectionName` agree on.
fn resolve_port<'a>(
    parent: &ParentRef,
    ports: impl Iterator<Item = (&'a Arc<str>, u16)>,
    kind: &'static str,
    name: &ObjectName,
) -> Result<Option<u16>, ParentError> {
    if parent.port.is_none() && parent.section_name.is_none() {
        return Ok(None);
    }
    let is_meant = |(section, port): &(&Arc<str>, u16)| {
        parent.port.is_none_or(|wanted| wanted == *port)
            && parent.section_name.as_ref().is_none_or(|wanted| wanted == *section)
    };
    let mut ports = ports;
    if let Some((_, port)) = ports.find(is_meant) {
        return Ok(Some(port));
    }
    let number = parent.port.map(|port| port.to_string());
    let wanted = [number.as_deref(), parent.section_name.as_deref()];
    let port = wanted.into_iter().flatten().collect::<Vec<_>>().join(" named ");
    Err(ParentError::NoPort { kind, name: name.clone(), port })
}

fn convert_rule(rule: &HttpRouteRule, route: &HttpRoute, catalog: &Catalog, mesh: &MeshSettings) -> HttpRule {
    let backends = rule.backends.iter().map(|backend| convert_backend(backend, route, catalog, mesh));
    HttpRule {
        name: rule.name.clone(),
        matches: rule.matches.clone(),
        filters: with_mirrors(rule.filters.as_ref(), &rule.mirrors, route, catalog, mesh),
        backends: backends.collect(),
        timeouts: rule.timeouts,
        retry: rule.retry.clone(),
        session: rule.session.clone(),
        ..HttpRule::default()
    }
}

/// A backend with the policies of its Service. One whose policy cannot be followed is not valid: its traffic must not
/// go out in the clear.
fn convert_backend(
    backend: &BackendRef,
    route: &HttpRoute,
    catalog: &Catalog,
    mesh: &MeshSettings,
) -> ir::Backend {
    let mut converted = ir::Backend {
        target: resolve_backend(backend, route, catalog, mesh),
        subset: None,
        weight: backend.weight,
        filters: with_mirrors(backend.filters.as_ref(), &backend.mirrors, route, catalog, mesh),
        tls: None,
        retry_budget: None,
        session: None,
    };
    let name = ObjectName { namespace: backend.namespace.clone(), name: backend.name.clone() };
    if let (BackendTarget::Service { port, .. }, Some(service)) =
        (&converted.target, catalog.services.get(&name))
        && let Some(port) = service.ports.iter().find(|it| it.port == *port && is_tcp(it))
    {
        converted.retry_budget = retry_budget(catalog, service, port);
        converted.session = session(catalog, service, port);
        match backend_tls(catalog, service, port) {
            Ok(tls) => converted.tls = tls.map(Arc::new),
            Err(reason) => converted.target = BackendTarget::Invalid(Arc::from(reason)),
        }
    }
    converted
}

fn with_mirrors(
    filters: Option<&Arc<ir::Filters>>,
    mirrors: &[MirrorRef],
    route: &HttpRoute,
    catalog: &Catalog,
    mesh: &MeshSettings,
) -> Option<Arc<ir::Filters>> {
    if mirrors.is_empty() {
        return filters.cloned();
    }
    let mut filters = filters.map_or_else(ir::Filters::default, |filters| (**filters).clone());
    filters.mirrors = mirrors
        .iter()
        .map(|mirror| {
            let backend = convert_backend(&mirror.backend, route, catalog, mesh);
            ir::Mirror { target: backend.target, subset: None, share: mirror.share, tls: backend.tls }
        })
        .collect();
    Some(Arc::new(filters))
}

/// The Service port that a backend names, or why there is none.
pub fn resolve_backend(
    backend: &BackendRef,
    route: &HttpRoute,
    catalog: &Catalog,
    mesh: &MeshSettings,
) -> BackendTarget {
    let name = ObjectName { namespace: backend.namespace.clone(), name: backend.name.clone() };
    let invalid = |reason: String| BackendTarget::Invalid(Arc::from(reason));
    if !(backend.group.is_empty() && backend.kind.as_ref() == "Service") {
        let group = &backend.group;
        return invalid(format!("a backend of kind {} (group {group:?}) is not known", backend.kind));
    }
    let is_foreign = name.namespace != route.meta.namespace;
    if is_foreign && !is_only_parent(&name, route) && !is_granted(backend, route, catalog) {
        let (from, to) = (&route.meta.namespace, &name.namespace);
        return invalid(format!(
            "no ReferenceGrant in {to} lets {}s of {from} refer to Service {name}",
            kind_name(route.kind)
        ));
    }
    let Some(service) = catalog.services.get(&name) else {
        return invalid(format!("there is no Service {name}"));
    };
    if service.service_type == ServiceType::ExternalName {
        return invalid(format!("Service {name} is an ExternalName, which is no backend"));
    }
    let Some(port) = backend.port.filter(|port| has_port(service, *port)) else {
        let shown = backend.port.map_or_else(|| String::from("?"), |port| port.to_string());
        return invalid(format!("Service {name} has no TCP port {shown}"));
    };
    let host = mesh.service_hostname(&name.namespace, &name.name);
    BackendTarget::Service { service: NamespacedHostname::new(name.namespace, host), port }
}

fn has_port(service: &Service, number: u16) -> bool {
    service.ports.iter().any(|port| port.port == number && is_tcp(port))
}

fn is_tcp(port: &ServicePort) -> bool {
    port.protocol == TransportProtocol::Tcp
}

fn kind_name(kind: RouteKind) -> &'static str {
    match kind {
        RouteKind::Http => "HTTPRoute",
        RouteKind::Grpc => "GRPCRoute",
        RouteKind::Virtual => "VirtualService",
    }
}

/// Whether all that the route governs is traffic to this Service: sending it there gives the route's author nothing
/// that a grant would have to give. So a consumer route can refine the requests to a Service of others.
fn is_only_parent(name: &ObjectName, route: &HttpRoute) -> bool {
    let is_it = |parent: &ParentRef| {
        (parent.group.as_ref(), parent.kind.as_ref()) == ("", "Service")
            && (&parent.namespace, &parent.name) == (&name.namespace, &name.name)
    };
    !route.parents.is_empty() && route.parents.iter().all(is_it)
}

/// Whether a ReferenceGrant in the backend's namespace lets the route refer to it.
fn is_granted(backend: &BackendRef, route: &HttpRoute, catalog: &Catalog) -> bool {
    in_namespace(&catalog.reference_grants, &backend.namespace).any(|grant| {
        let is_from = grant.from.iter().any(|from| {
            from.group.as_ref() == GATEWAY_GROUP
                && from.kind.as_ref() == kind_name(route.kind)
                && from.namespace == route.meta.namespace
        });
        let is_to = grant.to.iter().any(|to| {
            to.group == backend.group
                && to.kind == backend.kind
                && to.name.as_ref().is_none_or(|name| *name == backend.name)
        });
        is_from && is_to
    })
}
