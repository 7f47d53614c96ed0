//! Which policies concern which workloads.
//!
//! A policy reaches a workload by its namespace, by labels, or through a Service, a ServiceEntry or a waypoint that
//! the workload stands behind. The first kind is left to the data plane, which knows the namespace of every
//! workload; the others are resolved here, and the workload then names the policy.

use std::ops::Bound;
use std::sync::Arc;

use super::super::catalog::{Catalog, Labels, MeshSettings, Meta, ObjectName, Objects};
use super::super::cluster::{Pod, Service};
use super::super::istio::{Attached, PolicyTarget, ServiceEntry, TargetRef, WorkloadEntry};
use super::{peer_authentication, request_authentication};

/// Reach of a policy, as `istio.security.Scope` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    Global,
    Namespace,
    /// Concerns the workloads that name it.
    WorkloadSelector,
}

/// A service that a workload stands behind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceRef {
    Service(ObjectName),
    ServiceEntry(ObjectName),
}

/// A workload as policies see it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub namespace: &'a str,
    pub labels: &'a Labels,
    pub services: &'a [ServiceRef],
}

/// A waypoint and what a request through it is meant for.
#[derive(Debug, Clone)]
pub struct Waypoint<'a> {
    pub gateway: &'a ObjectName,
    pub class: &'a str,
    pub destination: &'a ServiceRef,
}

pub fn scope(policy: &impl Attached, mesh: &MeshSettings) -> Scope {
    match policy.target() {
        PolicyTarget::Namespace if policy.meta().namespace == mesh.root_namespace => Scope::Global,
        PolicyTarget::Namespace => Scope::Namespace,
        PolicyTarget::Selector(_) | PolicyTarget::References(_) => Scope::WorkloadSelector,
    }
}

/// Keys of all that a workload names: the policies and token rules that select it, and what its PeerAuthentication
/// amounts to. Sorted.
pub fn workload_policies(catalog: &Catalog, mesh: &MeshSettings, subject: Subject<'_>) -> Vec<Arc<str>> {
    let mut keys: Vec<Arc<str>> = catalog
        .authorization_policies
        .values()
        .filter(|policy| !matches!(policy.target, PolicyTarget::Namespace))
        .filter(|policy| attaches_to_workload(&***policy, subject, catalog, mesh))
        .map(|policy| Arc::from(policy.meta.object_name().to_string()))
        .collect();
    keys.extend(request_authentication::selecting(catalog, mesh, subject));
    keys.extend(peer_authentication::policy_key(catalog, mesh, subject.namespace, subject.labels));
    keys.sort();
    keys
}

/// Whether a policy is enforced at a workload's own proxy.
pub fn attaches_to_workload(
    policy: &impl Attached,
    subject: Subject<'_>,
    catalog: &Catalog,
    mesh: &MeshSettings,
) -> bool {
    let is_global = policy.meta().namespace == mesh.root_namespace;
    let is_near = is_global || *policy.meta().namespace == *subject.namespace;
    match policy.target() {
        PolicyTarget::Namespace => is_near,
        PolicyTarget::Selector(selector) => is_near && matches_labels(selector, subject.labels),
        PolicyTarget::References(targets) => targets.iter().any(|target| {
            subject.services.iter().any(|service| reaches_service(policy, target, service, catalog, mesh))
        }),
    }
}

/// Whether a policy is enforced at a proxy that knows no targetRefs, as a connection-level proxy of Istio does not.
pub fn attaches_by_selector(
    policy: &impl Attached,
    namespace: &str,
    labels: &Labels,
    mesh: &MeshSettings,
) -> bool {
    let is_near = policy.meta().namespace == mesh.root_namespace || *policy.meta().namespace == *namespace;
    match policy.target() {
        PolicyTarget::Namespace => is_near,
        PolicyTarget::Selector(selector) => is_near && matches_labels(selector, labels),
        PolicyTarget::References(_) => false,
    }
}

/// Whether a policy is enforced at a waypoint, which knows nothing but targetRefs.
pub fn attaches_to_waypoint(policy: &impl Attached, waypoint: &Waypoint<'_>, mesh: &MeshSettings) -> bool {
    attaches_to_gateway(policy, waypoint.gateway, waypoint.class, "Gateway", mesh)
        || attaches_to_gateway(policy, waypoint.gateway, waypoint.class, "GatewayClass", mesh)
        || targets_service(policy, waypoint.destination)
}

/// Whether a policy names a waypoint itself, or its class, as `kind` says.
pub fn attaches_to_gateway(
    policy: &impl Attached,
    gateway: &ObjectName,
    class: &str,
    kind: &str,
    mesh: &MeshSettings,
) -> bool {
    let namespace = &policy.meta().namespace;
    own_targets(policy).filter(|target| *target.kind == *kind).any(|target| match kind {
        "Gateway" => *namespace == gateway.namespace && target.name == gateway.name,
        "GatewayClass" => *namespace == mesh.root_namespace && *target.name == *class,
        _ => false,
    })
}

/// Whether a policy names a service.
pub fn targets_service(policy: &impl Attached, service: &ServiceRef) -> bool {
    own_targets(policy).any(|target| names_service(policy, target, service))
}

fn own_targets(policy: &impl Attached) -> impl Iterator<Item = &TargetRef> {
    let targets = match policy.target() {
        PolicyTarget::References(targets) => targets.as_slice(),
        PolicyTarget::Namespace | PolicyTarget::Selector(_) => &[],
    };
    targets.iter().filter(move |target| is_of_own_namespace(policy, target))
}

fn is_of_own_namespace(policy: &impl Attached, target: &TargetRef) -> bool {
    target.namespace.as_ref().is_none_or(|namespace| *namespace == policy.meta().namespace)
}

fn names_service(policy: &impl Attached, target: &TargetRef, service: &ServiceRef) -> bool {
    let (kind, name) = match service {
        ServiceRef::Service(name) => ("Service", name),
        ServiceRef::ServiceEntry(name) => ("ServiceEntry", name),
    };
    *target.kind == *kind && policy.meta().namespace == name.namespace && target.name == name.name
}

/// A target on the way to a service: the service itself, or the waypoint in front of it.
fn reaches_service(
    policy: &impl Attached,
    target: &TargetRef,
    service: &ServiceRef,
    catalog: &Catalog,
    mesh: &MeshSettings,
) -> bool {
    if !is_of_own_namespace(policy, target) {
        return false;
    }
    if names_service(policy, target, service) {
        return true;
    }
    let Some(gateway) = waypoint_of_service(catalog, service) else {
        return false;
    };
    match target.kind.as_ref() {
        "Gateway" => gateway.namespace == policy.meta().namespace && gateway.name == target.name,
        "GatewayClass" => {
            policy.meta().namespace == mesh.root_namespace
                && catalog.gateways.get(&gateway).is_some_and(|gateway| gateway.class == target.name)
        }
        _ => false,
    }
}

// === Waypoints ===

/// What an object says about its waypoint.
enum Wish {
    Unsaid,
    /// `istio.io/use-waypoint: none`
    Without,
    Gateway(ObjectName),
}

/// The label goes before the annotation.
fn wish_of(meta: &Meta, namespace: &Arc<str>) -> Wish {
    match wish(&meta.labels, namespace) {
        Wish::Unsaid => wish(&meta.annotations, namespace),
        said => said,
    }
}

fn wish(labels: &Labels, namespace: &Arc<str>) -> Wish {
    let written = |key: &str| labels.get(key).filter(|value| !value.is_empty());
    match written("istio.io/use-waypoint") {
        None => Wish::Unsaid,
        Some(name) if name.as_ref() == "none" => Wish::Without,
        Some(name) => Wish::Gateway(ObjectName {
            namespace: written("istio.io/use-waypoint-namespace").unwrap_or(namespace).clone(),
            name: name.clone(),
        }),
    }
}

/// The waypoint of an object: its own word, else that of its namespace.
pub fn waypoint_of(catalog: &Catalog, meta: &Meta) -> Option<ObjectName> {
    let namespace = &meta.namespace;
    let of_namespace = || {
        let object = catalog.namespaces.get(&ObjectName::new("", namespace.clone()));
        object.map_or(Wish::Unsaid, |object| wish_of(&object.meta, namespace))
    };
    let wish = match wish_of(meta, namespace) {
        Wish::Unsaid => of_namespace(),
        said => said,
    };
    match wish {
        Wish::Gateway(gateway) => Some(gateway),
        Wish::Unsaid | Wish::Without => None,
    }
}

fn waypoint_of_service(catalog: &Catalog, service: &ServiceRef) -> Option<ObjectName> {
    let meta = match service {
        ServiceRef::Service(name) => &catalog.services.get(name)?.meta,
        ServiceRef::ServiceEntry(name) => &catalog.service_entries.get(name)?.meta,
    };
    waypoint_of(catalog, meta)
}

// === Services ===

/// Services whose selector takes a pod, Services whose EndpointSlices name it, and ServiceEntries that select it.
pub fn services_of_pod(catalog: &Catalog, pod: &Pod) -> Vec<ServiceRef> {
    let name = pod.meta.object_name();
    let mut services = selecting(catalog, &pod.meta.namespace, &pod.meta.labels);
    for slice in in_namespace(&catalog.endpoint_slices, &pod.meta.namespace) {
        let Some(service) = &slice.service else { continue };
        let is_named = slice.endpoints.iter().any(|endpoint| endpoint.target_pod.as_ref() == Some(&name));
        // A Service with a selector speaks for itself: its slices may lag behind it.
        let has_no_selector =
            catalog.services.get(service).is_some_and(|service| service.selector.is_empty());
        if is_named && has_no_selector {
            services.push(ServiceRef::Service(service.clone()));
        }
    }
    services.sort();
    services.dedup();
    services
}

/// Services and ServiceEntries that select a WorkloadEntry.
pub fn services_of_workload_entry(catalog: &Catalog, entry: &WorkloadEntry) -> Vec<ServiceRef> {
    let mut services = selecting(catalog, &entry.meta.namespace, &entry.spec.labels);
    services.extend(selecting_entries(catalog, &entry.meta.namespace, &entry.meta.labels));
    services.sort();
    services.dedup();
    services
}

fn selecting(catalog: &Catalog, namespace: &str, labels: &Labels) -> Vec<ServiceRef> {
    let is_meant =
        |service: &&Arc<Service>| !service.selector.is_empty() && matches_labels(&service.selector, labels);
    let services = in_namespace(&catalog.services, namespace).filter(is_meant);
    let mut found: Vec<ServiceRef> =
        services.map(|service| ServiceRef::Service(service.meta.object_name())).collect();
    found.extend(selecting_entries(catalog, namespace, labels));
    found
}

fn selecting_entries<'c>(
    catalog: &'c Catalog,
    namespace: &str,
    labels: &'c Labels,
) -> impl Iterator<Item = ServiceRef> + use<'c> {
    let is_meant = |entry: &&Arc<ServiceEntry>| {
        let selector = entry.workload_selector.as_ref();
        selector.is_some_and(|selector| !selector.is_empty() && matches_labels(selector, labels))
    };
    let entries = in_namespace(&catalog.service_entries, namespace).filter(is_meant);
    entries.map(|entry| ServiceRef::ServiceEntry(entry.meta.object_name()))
}

/// Whether every pair of a selector stands among the labels.
pub fn matches_labels(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The objects of one namespace.
pub fn in_namespace<'c, T>(
    objects: &'c Objects<T>,
    namespace: &str,
) -> impl Iterator<Item = &'c Arc<T>> + use<'c, T> {
    let namespace: Arc<str> = Arc::from(namespace);
    let first = ObjectName { namespace: namespace.clone(), name: Arc::default() };
    objects
        .range((Bound::Included(first), Bound::Unbounded))
        .take_while(move |(name, _)| name.namespace == namespace)
        .map(|(_, object)| object)
}
