//! VirtualService to the intermediate form: one route per service and port that its hosts name, in the order of its list.

use std::sync::Arc;

use l7::ir::{
    self, Backend, BackendTarget, Filters, HttpMatch, HttpRule, Mirror, PathMatch, PathRewrite, RouteKind,
    RouteOrder, UrlAction, UrlRewrite,
};

use super::super::catalog::{Catalog, MeshSettings};
use super::super::traffic::{Destination, VirtualMatch, VirtualRoute, VirtualService};
use super::hosts::{HostService, consumers, full_name, services_of_host};

/// All routes of a catalog, in the order of their names.
pub fn routes(catalog: &Catalog, mesh: &MeshSettings) -> Vec<ir::HttpRoute> {
    catalog.virtual_services.values().flat_map(|object| convert(object, catalog, mesh)).collect()
}

pub fn convert(object: &VirtualService, catalog: &Catalog, mesh: &MeshSettings) -> Vec<ir::HttpRoute> {
    let mut routes: Vec<ir::HttpRoute> = Vec::new();
    if !object.is_for_mesh || object.http.is_empty() {
        return routes;
    }
    let namespace = &object.meta.namespace;
    let mut seen = Vec::new();
    for host in &object.hosts {
        for service in services_of_host(host, namespace, catalog, mesh) {
            if seen.contains(&service.key) {
                continue;
            }
            seen.push(service.key.clone());
            for port in &service.ports {
                let rules = rules(object, *port, catalog, mesh);
                for consumer in consumers(&object.export_to, namespace, &service.key.namespace) {
                    routes.push(route(object, &service, *port, consumer, rules.clone()));
                }
            }
        }
    }
    routes
}

fn route(
    object: &VirtualService,
    service: &HostService,
    port: u16,
    consumer_namespace: Option<Arc<str>>,
    rules: Vec<HttpRule>,
) -> ir::HttpRoute {
    ir::HttpRoute {
        kind: RouteKind::Virtual,
        namespace: object.meta.namespace.clone(),
        name: object.meta.name.clone(),
        parent: service.key.clone(),
        parent_port: Some(port),
        consumer_namespace,
        order: RouteOrder::Listed,
        created: object.meta.created,
        hostnames: Vec::new(),
        rules,
        source: Some(object.meta.source.clone()),
    }
}

/// The rules for requests to one port.
fn rules(object: &VirtualService, port: u16, catalog: &Catalog, mesh: &MeshSettings) -> Vec<HttpRule> {
    let mut rules = Vec::new();
    for written in &object.http {
        let holds = |entry: &&VirtualMatch| !entry.is_elsewhere && entry.port.is_none_or(|own| own == port);
        let matches: Vec<HttpMatch> =
            written.matches.iter().filter(holds).map(|entry| entry.entry.clone()).collect();
        if matches.is_empty() {
            continue;
        }
        let rule = rule(object, written, port, catalog, mesh);
        match &written.rewrite_uri {
            None => rules.push(HttpRule { matches, ..rule }),
            // What stands in for a path depends on what of it was matched.
            Some(uri) => rules.extend(matches.into_iter().map(|entry| {
                let filters = Some(Arc::new(rewriting(&written.filters, uri, &entry.path, &rule)));
                HttpRule { matches: vec![entry], filters, ..rule.clone() }
            })),
        }
    }
    rules
}

fn rewriting(filters: &Filters, uri: &Arc<str>, path: &PathMatch, rule: &HttpRule) -> Filters {
    let path = match path {
        PathMatch::Prefix(_) => PathRewrite::Prefix(uri.clone()),
        PathMatch::TextPrefix(_) => PathRewrite::TextPrefix(uri.clone()),
        _ => PathRewrite::Full(uri.clone()),
    };
    let hostname = match &filters.url {
        Some(UrlAction::Rewrite(rewrite)) => rewrite.hostname.clone(),
        _ => None,
    };
    let mut filters = rule.filters.as_deref().cloned().unwrap_or_default();
    filters.url = Some(UrlAction::Rewrite(UrlRewrite { hostname, path: Some(path) }));
    filters
}

/// All of a rule but its matches and what depends on them.
fn rule(
    object: &VirtualService,
    written: &VirtualRoute,
    port: u16,
    catalog: &Catalog,
    mesh: &MeshSettings,
) -> HttpRule {
    let target = |destination: &Destination| target(object, destination, port, catalog, mesh);
    let mirrors = written.mirrors.iter().map(|(destination, share)| Mirror {
        target: target(destination),
        subset: destination.subset.clone(),
        share: *share,
        tls: None,
    });
    let filters =
        Filters { mirrors: mirrors.collect(), cors: written.cors.clone(), ..written.filters.clone() };
    let backends = written.destinations.iter().map(|destination| Backend {
        target: target(destination),
        subset: destination.subset.clone(),
        weight: destination.weight,
        filters: destination.filters.clone(),
        tls: None,
        retry_budget: None,
        session: None,
    });
    HttpRule {
        name: written.name.clone(),
        filters: (filters != Filters::default()).then(|| Arc::new(filters)),
        backends: backends.collect(),
        timeouts: written.timeouts,
        retry: written.retry.clone().filter(|_| !written.destinations.is_empty()),
        fault: written.fault.clone(),
        direct: written.direct.clone(),
        ..HttpRule::default()
    }
}

/// The port of the service that a destination names; of services with one name the one beside the object.
pub fn target(
    object: &VirtualService,
    destination: &Destination,
    port: u16,
    catalog: &Catalog,
    mesh: &MeshSettings,
) -> BackendTarget {
    let namespace = &object.meta.namespace;
    let mut found = services_of_host(&destination.host, namespace, catalog, mesh);
    found.sort_by_key(|service| service.key.namespace != *namespace);
    let Some(service) = found.into_iter().next() else {
        let host = full_name(&destination.host, namespace, mesh);
        return BackendTarget::Invalid(Arc::from(format!("there is no service {host}")));
    };
    let wanted = match (destination.port, service.ports.as_slice()) {
        (Some(port), _) => port,
        (None, [only]) => *only,
        (None, _) => port,
    };
    if !service.ports.contains(&wanted) {
        let reason = format!("service {} has no TCP port {wanted}", service.key.hostname);
        return BackendTarget::Invalid(Arc::from(reason));
    }
    BackendTarget::Service { service: service.key, port: wanted }
}
