//! What each waypoint routes and enforces: the routes of the services that it stands before, and the policies and token
//! rules that name such a service, the waypoint, or its class (`targetRefs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Context;
use super::policies::problem;
use super::services::service_key;
use super::telemetry::publish_of_destination;
use super::waypoints::is_our_class;
use crate::control::desired::{DesiredState, WaypointState};
use crate::decode::route_name;
use crate::kube::cluster::ServiceType;
use crate::kube::convert::request_authentication::{self, MeshTokens};
use crate::kube::convert::telemetry::Waypoint;
use crate::kube::convert::{self, MeshPolicy, ServiceRef};
use crate::kube::istio::{Attached, PolicyTarget};
use crate::kube::{MeshSettings, ObjectName, Problem, Severity};
use crate::proto::{l7, security};

/// The destination of what is addressed by its own address.
const WORKLOADS: &str = "/";

/// Adds a state for each Gateway that can be a waypoint, and says which pods are its instances.
pub(super) fn publish(context: &Context<'_>, desired: &mut DesiredState, problems: &mut Vec<Problem>) {
    let mut fronted: BTreeMap<&ObjectName, Fronted<'_>> = context
        .waypoints
        .gateways()
        .map(|(name, class)| (name, Fronted { class, destinations: vec![(WORKLOADS.into(), None)] }))
        .collect();
    for service in context.catalog.services.values() {
        if service.service_type == ServiceType::ExternalName {
            continue;
        }
        if let Some((gateway, _)) = context.waypoints.gateway_of_service(&service.meta)
            && let Some(fronted) = fronted.get_mut(gateway)
        {
            let target = ServiceRef::Service(service.meta.object_name());
            fronted.destinations.push((service_key(context.settings, service), Some(target)));
        }
    }
    for entry in context.catalog.service_entries.values() {
        if let Some((gateway, _)) = context.waypoints.gateway_of_service(&entry.meta)
            && let Some(fronted) = fronted.get_mut(gateway)
        {
            for host in entry.hosts.iter().filter(|host| context.services.serves(entry, host)) {
                let key = format!("{}/{host}", entry.meta.namespace).into();
                let target = ServiceRef::ServiceEntry(entry.meta.object_name());
                fronted.destinations.push((key, Some(target)));
            }
        }
    }
    let attached = AttachedByTarget::new(context);
    for (gateway, fronted) in fronted {
        let mut state = WaypointState::default();
        fronted.publish(context, gateway, &attached, &mut state, problems);
        desired.insert_waypoint(&gateway.to_string(), state);
    }
    for pod in context.catalog.pods.values() {
        if let Some(gateway) = context.waypoints.gateway_of_pod(&pod.meta) {
            let named = Some(&pod.node_name).filter(|name| !name.is_empty());
            let node = named.unwrap_or(&context.settings.default_node).clone();
            desired.insert_waypoint_pod(&pod.meta.object_name().to_string(), &gateway.to_string(), node);
        }
    }
}

/// What stands behind one waypoint.
struct Fronted<'a> {
    class: &'a str,
    /// Names of destinations, with what policies target.
    destinations: Vec<(Arc<str>, Option<ServiceRef>)>,
}

impl Fronted<'_> {
    fn publish(
        &self,
        context: &Context<'_>,
        gateway: &ObjectName,
        attached: &AttachedByTarget,
        state: &mut WaypointState,
        problems: &mut Vec<Problem>,
    ) {
        let mut used = BTreeSet::new();
        for (destination, target) in &self.destinations {
            let names = attached.to(gateway, self.class, target.as_ref(), &context.settings.mesh);
            let policies = l7::WaypointPolicies { names: names.iter().map(ToString::to_string).collect() };
            state.insert_policies(destination, &policies);
            let waypoint = Waypoint { gateway, class: self.class, destination: target.as_ref() };
            publish_of_destination(context, destination, &waypoint, state, problems);
            used.extend(names);
        }
        publish_policies(context, &used, state, problems);
        if is_our_class(context.catalog, context.settings, self.class) {
            self.publish_routes(context, state, problems);
        }
    }

    fn publish_routes(&self, context: &Context<'_>, state: &mut WaypointState, problems: &mut Vec<Problem>) {
        let served: BTreeSet<&str> = self.destinations.iter().map(|(key, _)| &**key).collect();
        for route in convert::routes(context.catalog, &context.settings.mesh) {
            if !served.contains(&*route.parent.to_string()) {
                continue;
            }
            let name = route_name(&route);
            match serde_json::to_vec(&route) {
                Ok(ir) => state.insert_http_route(&name, &l7::HttpRoute { ir: ir.into() }),
                Err(error) => problems.push(problem(Severity::Error, format!("route {name}: {error}"))),
            }
        }
    }
}

/// Adds what is used, whole, and for nobody but the destinations that name it.
fn publish_policies(
    context: &Context<'_>,
    used: &BTreeSet<Arc<str>>,
    state: &mut WaypointState,
    problems: &mut Vec<Problem>,
) {
    let scope = security::Scope::WorkloadSelector.into();
    for MeshPolicy { key, policy, .. } in &context.policies.converted {
        if !used.contains(key) {
            continue;
        }
        match serde_json::to_vec(policy) {
            Ok(ir) => {
                state.insert_authorization_policy(key, &l7::AuthorizationPolicy { scope, ir: ir.into() });
            }
            // The destinations name it all the same, and a name without its policy denies.
            Err(error) => problems.push(problem(Severity::Error, format!("policy {key}: {error}"))),
        }
    }
    let tokens = convert::request_authentications(context.catalog, &context.settings.mesh);
    for MeshTokens { key, tokens, .. } in tokens.iter().filter(|it| used.contains(&it.key)) {
        match serde_json::to_vec(tokens) {
            Ok(ir) => {
                state.insert_request_authentication(key, &l7::RequestAuthentication { scope, ir: ir.into() });
            }
            Err(error) => problems.push(problem(Severity::Error, format!("tokens of {key}: {error}"))),
        }
    }
}

/// Kind, namespace and name of what a policy targets.
type Target = (Arc<str>, Arc<str>, Arc<str>);

/// Keys of policies and token rules by what they target.
struct AttachedByTarget(BTreeMap<Target, BTreeSet<Arc<str>>>);

impl AttachedByTarget {
    fn new(context: &Context<'_>) -> Self {
        let mut attached = Self(BTreeMap::new());
        for policy in context.catalog.authorization_policies.values() {
            attached.note(&**policy, &policy.meta.object_name().to_string().into());
        }
        for tokens in context.catalog.request_authentications.values().filter(|it| !it.rules.is_empty()) {
            attached.note(&**tokens, &request_authentication::key(&tokens.meta.object_name()));
        }
        attached
    }

    /// References lead to objects of the policy's own namespace only.
    fn note(&mut self, policy: &impl Attached, key: &Arc<str>) {
        let PolicyTarget::References(targets) = policy.target() else { return };
        let own = &policy.meta().namespace;
        for target in
            targets.iter().filter(|it| it.namespace.as_ref().is_none_or(|namespace| namespace == own))
        {
            let name = (Arc::clone(&target.kind), Arc::clone(own), Arc::clone(&target.name));
            self.0.entry(name).or_default().insert(Arc::clone(key));
        }
    }

    /// Keys of all that is enforced at a waypoint for a destination.
    fn to(
        &self,
        gateway: &ObjectName,
        class: &str,
        destination: Option<&ServiceRef>,
        mesh: &MeshSettings,
    ) -> BTreeSet<Arc<str>> {
        let of = |kind: &str, namespace: &Arc<str>, name: &str| {
            self.0.get(&(Arc::from(kind), Arc::clone(namespace), Arc::from(name)))
        };
        let service = destination.and_then(|destination| match destination {
            ServiceRef::Service(name) => of("Service", &name.namespace, &name.name),
            ServiceRef::ServiceEntry(name) => of("ServiceEntry", &name.namespace, &name.name),
        });
        let gateway = of("Gateway", &gateway.namespace, &gateway.name);
        let class = of("GatewayClass", &mesh.root_namespace, class);
        [service, gateway, class].into_iter().flatten().flatten().cloned().collect()
    }
}
