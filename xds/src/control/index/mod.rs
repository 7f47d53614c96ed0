//! From a catalog of objects to everything that node proxies shall hold, and to the view of the cluster.
//!
//! Names, fields and defaults of workloads, services and L4 policies are those of istiod, so that a node proxy cannot
//! tell the two apart; what istiod never sends to node proxies (routes, policies with L7 conditions) is added in types
//! of our own. Pure but for the addresses it assigns, which stay with their owners from one build to the next.

mod addresses;
mod app_protocol;
mod authorization;
mod entries;
mod fronted;
mod pods;
mod policies;
mod services;
mod slices;
mod telemetry;
mod waypoint_pods;
mod waypoints;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::addresses::{Addresses, Assigned};
use self::policies::Policies;
use self::services::ServiceTable;
use self::slices::Memberships;
use self::waypoints::Waypoints;
use super::config::{ControlConfig, GatewayClassNames, WaypointPods};
use super::desired::DesiredState;
use super::view::{ClusterView, NamespaceView};
use crate::kube::convert;
use crate::kube::{Catalog, Labels, MeshSettings, Problem};

/// Label of namespaces and pods: `ambient` takes a pod into the mesh, `none` keeps it out.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Annotation by which a node agent records that it redirects a pod's traffic.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Annotation that gives a pod without status its address.
pub const POD_ADDRESS: &str = "corelane.io/ip";

/// What a build needs besides the catalog.
#[derive(Debug, Clone)]
pub struct IndexSettings {
    pub cluster_id: Arc<str>,
    pub mesh: MeshSettings,
    /// Node of the pods that name none.
    pub default_node: Arc<str>,
    pub gateway_class: GatewayClassNames,
    pub waypoint_pods: WaypointPods,
}

/// Builds desired states; keeps only the assigned addresses in between.
#[derive(Debug)]
pub struct Indexer {
    settings: IndexSettings,
    addresses: Addresses,
}

/// What a catalog comes to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Indexed {
    pub desired: DesiredState,
    pub view: ClusterView,
    /// Findings that only show once all objects are seen together.
    pub problems: Vec<Problem>,
}

/// Read-only tables that the conversions of one build share.
struct Context<'a> {
    catalog: &'a Catalog,
    settings: &'a IndexSettings,
    assigned: &'a Assigned,
    waypoints: Waypoints<'a>,
    services: ServiceTable<'a>,
    memberships: Memberships<'a>,
    policies: Policies<'a>,
    /// Of the labels that proxies are told.
    label_keys: BTreeSet<Arc<str>>,
}

// === impl Indexer ===

impl Indexer {
    pub fn new(config: &ControlConfig) -> Self {
        Self {
            settings: IndexSettings {
                cluster_id: config.cluster_id.clone(),
                mesh: config.mesh.clone(),
                default_node: config.default_node.clone(),
                gateway_class: config.gateway_class.clone(),
                waypoint_pods: config.waypoints,
            },
            addresses: Addresses::new(config),
        }
    }

    /// The desired state of a catalog. `generation` numbers the view.
    pub fn build(&mut self, catalog: &Catalog, generation: u64) -> Indexed {
        let mut problems = Vec::new();
        let completed = waypoint_pods::complete(catalog, &self.settings);
        let catalog = &*completed;
        let settings = IndexSettings { mesh: self.settings.mesh.with(catalog), ..self.settings.clone() };
        let settings = &settings;
        let assigned = self.addresses.assign(catalog, &mut problems);
        let waypoints = Waypoints::new(catalog, settings);
        let services = ServiceTable::new(catalog, settings, &waypoints, &mut problems);
        let policies = Policies::new(catalog, settings, &mut problems);
        let memberships = Memberships::new(catalog, settings, &services);
        let context = Context {
            catalog,
            settings,
            assigned: &assigned,
            waypoints,
            services,
            memberships,
            policies,
            label_keys: convert::traffic::label_keys(catalog),
        };
        let mut desired = DesiredState::default();
        let mut view = ClusterView {
            generation,
            namespaces: namespaces(catalog),
            nodes: Vec::new(),
            ..Default::default()
        };
        services::publish(&context, &mut desired, &mut view);
        pods::publish(&context, &mut desired, &mut view, &mut problems);
        entries::publish(&context, &mut desired);
        slices::publish(&context, &mut desired);
        context.policies.publish(&mut desired, &mut problems);
        policies::publish_tokens(&context, &mut desired, &mut problems);
        policies::publish_routes(&context, &mut desired, &mut problems);
        policies::publish_traffic(&context, &mut desired, &mut problems);
        telemetry::publish(&context, &mut desired, &mut problems);
        fronted::publish(&context, &mut desired, &mut problems);
        view.nodes = nodes(&context, &view);
        Indexed { desired, view, problems }
    }
}

/// The namespaces that are declared, and those that objects merely live in.
fn namespaces(catalog: &Catalog) -> BTreeMap<Arc<str>, NamespaceView> {
    let declared = catalog.namespaces.values().map(|namespace| {
        let ambient = namespace.meta.label(DATAPLANE_MODE) == Some("ambient");
        let name = namespace.meta.name.clone();
        (name.clone(), NamespaceView { name, labels: namespace.meta.labels.clone(), ambient })
    });
    let mut namespaces: BTreeMap<Arc<str>, NamespaceView> = declared.collect();
    let used = catalog.pods.keys().chain(catalog.services.keys()).map(|name| &name.namespace);
    for name in used {
        namespaces.entry(name.clone()).or_insert_with(|| NamespaceView {
            name: name.clone(),
            labels: Labels::new(),
            ambient: false,
        });
    }
    namespaces
}

fn nodes(context: &Context<'_>, view: &ClusterView) -> Vec<Arc<str>> {
    let mut nodes: Vec<Arc<str>> = context.catalog.nodes.keys().map(|node| node.name.clone()).collect();
    nodes.extend(view.pods.values().map(|pod| pod.node.clone()));
    nodes.push(context.settings.default_node.clone());
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// True if `labels` carries every pair of a selector. An empty selector selects nothing here: no object that reaches
/// this point means "everything" by it.
fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The trust domain as resources carry it: empty for the default one.
fn wire_trust_domain(settings: &IndexSettings) -> String {
    match &*settings.mesh.trust_domain {
        "cluster.local" => String::new(),
        other => other.to_owned(),
    }
}
