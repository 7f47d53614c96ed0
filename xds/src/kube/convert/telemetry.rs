//! Telemetry to the intermediate form: what is said of the mesh, of a namespace, of a workload and of a destination behind
//! a waypoint, merged from the widest to the most special, section by section.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use l7::ir;

use super::super::catalog::{Catalog, MeshSettings, ObjectName};
use super::super::istio::{Attached, PolicyTarget};
use super::super::telemetry::{Side, Telemetry};
use super::attachment::{self, ServiceRef, Subject, attaches_to_workload, in_namespace};

/// A waypoint and what traffic through it is meant for: a service, or whatever is addressed by its own address.
#[derive(Debug, Clone, Copy)]
pub struct Waypoint<'a> {
    pub gateway: &'a ObjectName,
    pub class: &'a str,
    pub destination: Option<&'a ServiceRef>,
}

/// What is said of every workload of the mesh, where anything is.
pub fn of_mesh(catalog: &Catalog, mesh: &MeshSettings) -> Option<ir::Telemetry> {
    of_namespace(catalog, &mesh.root_namespace).map(|telemetry| merged(&[telemetry]))
}

/// What is said of every workload of a namespace, for each namespace that says anything of its own.
pub fn of_namespaces(catalog: &Catalog, mesh: &MeshSettings) -> Vec<(Arc<str>, ir::Telemetry)> {
    let names: BTreeSet<&Arc<str>> = catalog.telemetries.keys().map(|name| &name.namespace).collect();
    let own = names.into_iter().filter(|name| **name != mesh.root_namespace);
    let said = own.filter(|name| of_namespace(catalog, name).is_some());
    said.map(|name| (name.clone(), merged(&wide(catalog, mesh, name)))).collect()
}

/// What is said of a workload that some object selects.
pub fn of_workload(catalog: &Catalog, mesh: &MeshSettings, subject: Subject<'_>) -> Option<ir::Telemetry> {
    let near = in_namespace(&catalog.telemetries, &mesh.root_namespace);
    let own = (*mesh.root_namespace != *subject.namespace)
        .then(|| in_namespace(&catalog.telemetries, subject.namespace));
    let selects = |it: &&Telemetry| {
        it.target != PolicyTarget::Namespace && attaches_to_workload(*it, subject, catalog, mesh)
    };
    let selecting = in_age(near.chain(own.into_iter().flatten()).map(|it| &**it).filter(selects));
    if selecting.is_empty() {
        return None;
    }
    let mut chain = wide(catalog, mesh, subject.namespace);
    chain.extend(selecting);
    Some(merged(&chain))
}

/// What is said of traffic through a waypoint: by the mesh, by the waypoint's namespace, of its class, of itself, and of the
/// service.
pub fn of_destination(
    catalog: &Catalog,
    mesh: &MeshSettings,
    waypoint: &Waypoint<'_>,
) -> Option<ir::Telemetry> {
    let mut chain = wide(catalog, mesh, &waypoint.gateway.namespace);
    for kind in ["GatewayClass", "Gateway"] {
        let targets = |it: &&Telemetry| {
            attachment::attaches_to_gateway(*it, waypoint.gateway, waypoint.class, kind, mesh)
        };
        chain.extend(in_age(catalog.telemetries.values().map(|it| &**it).filter(targets)));
    }
    if let Some(service) = waypoint.destination {
        let targets = |it: &&Telemetry| attachment::targets_service(*it, service);
        chain.extend(in_age(catalog.telemetries.values().map(|it| &**it).filter(targets)));
    }
    (!chain.is_empty()).then(|| merged(&chain))
}

/// The object for a whole namespace: the oldest, if there are several.
pub fn of_namespace<'c>(catalog: &'c Catalog, namespace: &str) -> Option<&'c Telemetry> {
    let all = in_namespace(&catalog.telemetries, namespace).map(|it| &**it);
    in_age(all.filter(|it| it.target == PolicyTarget::Namespace)).first().copied()
}

/// What is said of the mesh, and then of a namespace.
fn wide<'c>(catalog: &'c Catalog, mesh: &MeshSettings, namespace: &str) -> Vec<&'c Telemetry> {
    let own = (*mesh.root_namespace != *namespace).then(|| of_namespace(catalog, namespace)).flatten();
    of_namespace(catalog, &mesh.root_namespace).into_iter().chain(own).collect()
}

fn in_age<'c>(all: impl Iterator<Item = &'c Telemetry>) -> Vec<&'c Telemetry> {
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|it| (it.meta().created, it.meta().object_name()));
    all
}

/// Later objects go before earlier ones.
fn merged(chain: &[&Telemetry]) -> ir::Telemetry {
    ir::Telemetry { client: side(chain, Side::Client), server: side(chain, Side::Server) }
}

fn side(chain: &[&Telemetry], side: Side) -> ir::TelemetrySide {
    let logging = chain.iter().flat_map(|it| &it.logging).rfind(|entry| entry.mode.covers(side));
    let log = logging.map(|entry| ir::LogRule { disabled: entry.disabled, filter: entry.filter.clone() });
    ir::TelemetrySide {
        log: log.unwrap_or_default(),
        metrics: metrics(chain, side),
        tracing: tracing(chain, side),
    }
}

/// What all overrides together say, the later ones before the earlier ones, field by field and label by label.
fn metrics(chain: &[&Telemetry], side: Side) -> BTreeMap<ir::Metric, ir::MetricRule> {
    let mut rules = BTreeMap::<ir::Metric, ir::MetricRule>::new();
    for written in chain.iter().flat_map(|it| &it.metrics).filter(|it| it.mode.covers(side)) {
        for metric in &written.metrics {
            let rule = rules.entry(*metric).or_default();
            rule.disabled = written.disabled.unwrap_or(rule.disabled);
            rule.tags.extend(written.tags.clone());
        }
    }
    rules.retain(|_, rule| *rule != ir::MetricRule::default());
    rules
}

/// What all entries together say, field by field; tags are replaced as a whole.
fn tracing(chain: &[&Telemetry], side: Side) -> ir::TracingRule {
    let mut rule = ir::TracingRule::default();
    for written in chain.iter().flat_map(|it| &it.tracing).filter(|it| it.mode.covers(side)) {
        rule.disabled = written.disabled.unwrap_or(rule.disabled);
        rule.sampling = written.sampling.or(rule.sampling);
        rule.without_istio_tags = written.istio_tags.map_or(rule.without_istio_tags, |wanted| !wanted);
        if let Some(tags) = &written.tags {
            rule.tags.clone_from(tags);
        }
    }
    rule
}
