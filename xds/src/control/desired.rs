//! What node proxies shall hold: every resource of every type, encoded, with a version made from its content.
//!
//! Two states built from the same objects are equal byte for byte, versions included, in this process or another:
//! messages encode deterministically and a version is a hash of the encoding. A client that comes back after either
//! side's restart therefore receives only what really changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use prost::Message;
use prost::bytes::Bytes;
use prost_types::Any;
use sha2::{Digest, Sha256};

use crate::proto::{
    ADDRESS_TYPE, AUTHORIZATION_POLICY_TYPE, AUTHORIZATION_TYPE, HTTP_ROUTE_TYPE, MESH_WIDE_TYPE,
    REQUEST_AUTHENTICATION_TYPE, TELEMETRY_TYPE, TRAFFIC_POLICY_TYPE, WAYPOINT_POLICIES_TYPE,
    WORKLOAD_LABELS_TYPE, l7, security, workload,
};

/// Bytes of the digest that make a version.
const VERSION_BYTES: usize = 8;

/// The types that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    /// Workloads and services.
    Address,
    /// Policies that know connections only.
    Authorization,
    HttpRoute,
    /// Policies that know requests.
    AuthorizationPolicy,
    /// Rules for the tokens of requests.
    RequestAuthentication,
    /// What a waypoint enforces, for each of its destinations.
    WaypointPolicies,
    /// How the traffic to a service is spread and bounded.
    TrafficPolicy,
    WorkloadLabels,
    /// What holds for the mesh as a whole.
    MeshWide,
    /// What is told of traffic.
    Telemetry,
}

impl ResourceKind {
    pub const ALL: [Self; 10] = [
        Self::Address,
        Self::Authorization,
        Self::HttpRoute,
        Self::AuthorizationPolicy,
        Self::RequestAuthentication,
        Self::WaypointPolicies,
        Self::TrafficPolicy,
        Self::WorkloadLabels,
        Self::MeshWide,
        Self::Telemetry,
    ];

    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
            Self::HttpRoute => HTTP_ROUTE_TYPE,
            Self::AuthorizationPolicy => AUTHORIZATION_POLICY_TYPE,
            Self::RequestAuthentication => REQUEST_AUTHENTICATION_TYPE,
            Self::WaypointPolicies => WAYPOINT_POLICIES_TYPE,
            Self::TrafficPolicy => TRAFFIC_POLICY_TYPE,
            Self::WorkloadLabels => WORKLOAD_LABELS_TYPE,
            Self::MeshWide => MESH_WIDE_TYPE,
            Self::Telemetry => TELEMETRY_TYPE,
        }
    }

    /// Node proxies and waypoints hold the same.
    fn is_for_all(self) -> bool {
        matches!(self, Self::Address | Self::TrafficPolicy | Self::WorkloadLabels | Self::MeshWide)
    }

    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// One resource, ready to send.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredResource {
    pub name: Arc<str>,
    /// 16 hexadecimal digits.
    pub version: Arc<str>,
    /// The encoded message.
    pub body: Bytes,
    /// How few a policy reaches: 0 all, 1 its namespace, 2 the workloads that name it. 0 for other types.
    pub narrowness: u8,
    /// Keys `NETWORK/IP` by which a client may also ask for it.
    pub aliases: Vec<Arc<str>>,
}

impl DesiredResource {
    fn new(name: impl Into<Arc<str>>, message: &impl Message, aliases: Vec<Arc<str>>) -> Self {
        let body = Bytes::from(message.encode_to_vec());
        let digest = Sha256::digest(&body);
        let version = hex(digest.get(..VERSION_BYTES).unwrap_or_default());
        Self { name: name.into(), version: version.into(), body, narrowness: 0, aliases }
    }

    fn with_scope(mut self, scope: security::Scope) -> Self {
        self.narrowness = match scope {
            security::Scope::Global => 0,
            security::Scope::Namespace => 1,
            security::Scope::WorkloadSelector => 2,
        };
        self
    }

    /// The resource as the body of a response.
    pub fn to_any(&self, kind: ResourceKind) -> Any {
        Any { type_url: kind.type_url().to_owned(), value: self.body.to_vec() }
    }
}

/// All resources by type and name, with the look-ups that on-demand clients need.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DesiredState {
    addresses: BTreeMap<Arc<str>, Arc<DesiredResource>>,
    authorizations: BTreeMap<Arc<str>, Arc<DesiredResource>>,
    http_routes: BTreeMap<Arc<str>, Arc<DesiredResource>>,
    authorization_policies: BTreeMap<Arc<str>, Arc<DesiredResource>>,
    request_authentications: BTreeMap<Arc<str>, Arc<DesiredResource>>,
    traffic_policies: Resources,
    workload_labels: Resources,
    mesh_wide: Resources,
    telemetry: Resources,
    /// `NETWORK/IP` to the names of its workloads and services.
    by_ip: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Service name to its workloads.
    members: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    by_node: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// By the Gateway's `namespace/name`.
    waypoints: BTreeMap<Arc<str>, WaypointState>,
    /// The pods of waypoints, by `namespace/name`.
    waypoint_pods: HashMap<Arc<str>, WaypointPod>,
}

/// What one waypoint holds beside the addresses that all hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WaypointState {
    http_routes: Resources,
    authorization_policies: Resources,
    request_authentications: Resources,
    policies: Resources,
    telemetry: Resources,
}

#[derive(Debug, Clone, PartialEq)]
struct WaypointPod {
    gateway: Arc<str>,
    node: Arc<str>,
}

/// By name.
type Resources = BTreeMap<Arc<str>, Arc<DesiredResource>>;

/// Whose view of the state it is.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    state: &'a DesiredState,
    node: &'a str,
    audience: Audience<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Audience<'a> {
    NodeProxy,
    /// `None`: no waypoint that is known, or not one of this node.
    Waypoint(Option<&'a WaypointState>),
}

static NOTHING: Resources = BTreeMap::new();

impl<'a> View<'a> {
    pub fn of_node_proxy(state: &'a DesiredState, node: &'a str) -> Self {
        Self { state, node, audience: Audience::NodeProxy }
    }

    /// Of a waypoint's pod, by `namespace/name`: it holds the state of its waypoint only if it runs on the node that
    /// asks for it.
    pub fn of_waypoint(state: &'a DesiredState, node: &'a str, pod: &str) -> Self {
        let pod = state.waypoint_pods.get(pod).filter(|pod| *pod.node == *node);
        let waypoint = pod.and_then(|pod| state.waypoints.get(&pod.gateway));
        Self { state, node, audience: Audience::Waypoint(waypoint) }
    }

    /// All resources of a type, in the order of their names.
    pub fn resources(&self, kind: ResourceKind) -> &'a Resources {
        match (self.audience, kind) {
            (Audience::NodeProxy, _) => self.state.resources(kind),
            (_, kind) if kind.is_for_all() => self.state.resources(kind),
            (Audience::Waypoint(Some(waypoint)), _) => waypoint.resources(kind),
            (Audience::Waypoint(None), _) => &NOTHING,
        }
    }

    /// As [`DesiredState::lookup`].
    pub fn lookup(&self, kind: ResourceKind, key: &str) -> Vec<&'a Arc<DesiredResource>> {
        match kind {
            ResourceKind::Address => self.state.lookup(kind, key),
            _ => self.resources(kind).get(key).into_iter().collect(),
        }
    }

    /// The workloads of the node; none for a waypoint, which has no node of its own.
    pub fn node_local(&self) -> impl Iterator<Item = &'a Arc<DesiredResource>> + use<'a> {
        let node = match self.audience {
            Audience::NodeProxy => self.node,
            Audience::Waypoint(_) => "",
        };
        self.state.node_local(node)
    }
}

impl WaypointState {
    fn resources(&self, kind: ResourceKind) -> &Resources {
        match kind {
            ResourceKind::HttpRoute => &self.http_routes,
            ResourceKind::AuthorizationPolicy => &self.authorization_policies,
            ResourceKind::RequestAuthentication => &self.request_authentications,
            ResourceKind::WaypointPolicies => &self.policies,
            ResourceKind::Telemetry => &self.telemetry,
            // What connections show is in the policies of the other type; the others are not a waypoint's own.
            ResourceKind::Address
            | ResourceKind::Authorization
            | ResourceKind::TrafficPolicy
            | ResourceKind::WorkloadLabels
            | ResourceKind::MeshWide => &NOTHING,
        }
    }

    // === Building ===

    pub fn insert_http_route(&mut self, name: &str, route: &l7::HttpRoute) {
        insert(&mut self.http_routes, name, route);
    }

    pub fn insert_authorization_policy(&mut self, name: &str, policy: &l7::AuthorizationPolicy) {
        insert(&mut self.authorization_policies, name, policy);
    }

    pub fn insert_request_authentication(&mut self, name: &str, tokens: &l7::RequestAuthentication) {
        insert(&mut self.request_authentications, name, tokens);
    }

    pub fn insert_policies(&mut self, destination: &str, policies: &l7::WaypointPolicies) {
        insert(&mut self.policies, destination, policies);
    }

    pub fn insert_telemetry(&mut self, name: &str, telemetry: &l7::Telemetry) {
        insert(&mut self.telemetry, name, telemetry);
    }
}

fn insert(resources: &mut Resources, name: &str, message: &impl Message) {
    let resource = DesiredResource::new(name, message, Vec::new());
    resources.insert(name.into(), Arc::new(resource));
}

impl DesiredState {
    /// All resources of a type, in the order of their names.
    pub fn resources(&self, kind: ResourceKind) -> &BTreeMap<Arc<str>, Arc<DesiredResource>> {
        match kind {
            ResourceKind::Address => &self.addresses,
            ResourceKind::Authorization => &self.authorizations,
            ResourceKind::HttpRoute => &self.http_routes,
            ResourceKind::AuthorizationPolicy => &self.authorization_policies,
            ResourceKind::RequestAuthentication => &self.request_authentications,
            // Each waypoint has its own.
            ResourceKind::WaypointPolicies => &NOTHING,
            ResourceKind::TrafficPolicy => &self.traffic_policies,
            ResourceKind::WorkloadLabels => &self.workload_labels,
            ResourceKind::MeshWide => &self.mesh_wide,
            ResourceKind::Telemetry => &self.telemetry,
        }
    }

    /// The resources a subscription to `key` stands for. For an address that is a workload, or a service together
    /// with all its workloads; nothing if the key is unknown.
    pub fn lookup(&self, kind: ResourceKind, key: &str) -> Vec<&Arc<DesiredResource>> {
        let resources = self.resources(kind);
        let named: Vec<&Arc<str>> = match resources.get_key_value(key) {
            Some((name, _)) => vec![name],
            None if kind == ResourceKind::Address => self.by_ip.get(key).into_iter().flatten().collect(),
            None => Vec::new(),
        };
        let members = named.iter().filter_map(|name| self.members.get(*name)).flatten();
        named.iter().copied().chain(members).filter_map(|name| resources.get(name)).collect()
    }

    /// The workloads of a node.
    pub fn node_local(&self, node: &str) -> impl Iterator<Item = &Arc<DesiredResource>> {
        self.by_node.get(node).into_iter().flatten().filter_map(|name| self.addresses.get(name))
    }

    // === Building ===

    pub fn insert_workload(&mut self, workload: workload::Workload) {
        let name: Arc<str> = workload.uid.as_str().into();
        let aliases: Vec<Arc<str>> = workload
            .addresses
            .iter()
            .filter_map(|bytes| ip_from_bytes(bytes))
            .map(|ip| address_key(&workload.network, ip))
            .collect();
        // Addresses of the host's network belong to the node, not to the pod: never found by IP.
        if workload.network_mode() == workload::NetworkMode::Standard {
            for key in &aliases {
                self.by_ip.entry(key.clone()).or_default().insert(name.clone());
            }
        }
        for service in workload.services.keys() {
            self.members.entry(service.as_str().into()).or_default().insert(name.clone());
        }
        if !workload.node.is_empty() {
            self.by_node.entry(workload.node.as_str().into()).or_default().insert(name.clone());
        }
        let address = workload::Address { r#type: Some(workload::address::Type::Workload(workload)) };
        self.addresses.insert(name.clone(), Arc::new(DesiredResource::new(name, &address, aliases)));
    }

    pub fn insert_service(&mut self, service: workload::Service) {
        let name: Arc<str> = format!("{}/{}", service.namespace, service.hostname).into();
        let aliases: Vec<Arc<str>> = service
            .addresses
            .iter()
            .filter(|address| address.length.is_none())
            .filter_map(|address| Some(address_key(&address.network, ip_from_bytes(&address.address)?)))
            .collect();
        for key in &aliases {
            self.by_ip.entry(key.clone()).or_default().insert(name.clone());
        }
        let address = workload::Address { r#type: Some(workload::address::Type::Service(service)) };
        self.addresses.insert(name.clone(), Arc::new(DesiredResource::new(name, &address, aliases)));
    }

    /// Of the Gateway `namespace/name`.
    pub fn insert_waypoint(&mut self, gateway: &str, waypoint: WaypointState) {
        self.waypoints.insert(gateway.into(), waypoint);
    }

    /// A pod `namespace/name` of the Gateway, which runs on `node`.
    pub fn insert_waypoint_pod(&mut self, pod: &str, gateway: &str, node: Arc<str>) {
        self.waypoint_pods.insert(pod.into(), WaypointPod { gateway: gateway.into(), node });
    }

    pub fn insert_authorization(&mut self, authorization: &security::Authorization) {
        let name: Arc<str> = format!("{}/{}", authorization.namespace, authorization.name).into();
        let resource = DesiredResource::new(name.clone(), authorization, Vec::new());
        let resource = resource.with_scope(authorization.scope());
        self.authorizations.insert(name, Arc::new(resource));
    }

    pub fn insert_http_route(&mut self, name: &str, route: &l7::HttpRoute) {
        let resource = DesiredResource::new(name, route, Vec::new());
        self.http_routes.insert(name.into(), Arc::new(resource));
    }

    pub fn insert_authorization_policy(&mut self, name: &str, policy: &l7::AuthorizationPolicy) {
        let resource = DesiredResource::new(name, policy, Vec::new()).with_scope(policy.scope());
        self.authorization_policies.insert(name.into(), Arc::new(resource));
    }

    pub fn insert_traffic_policy(&mut self, name: &str, policy: &l7::TrafficPolicy) {
        insert(&mut self.traffic_policies, name, policy);
    }

    pub fn insert_workload_labels(&mut self, uid: &str, labels: &l7::WorkloadLabels) {
        insert(&mut self.workload_labels, uid, labels);
    }

    pub fn insert_mesh_wide(&mut self, mesh: &l7::MeshWide) {
        insert(&mut self.mesh_wide, "mesh", mesh);
    }

    pub fn insert_telemetry(&mut self, name: &str, telemetry: &l7::Telemetry) {
        insert(&mut self.telemetry, name, telemetry);
    }

    pub fn insert_request_authentication(&mut self, name: &str, tokens: &l7::RequestAuthentication) {
        let resource = DesiredResource::new(name, tokens, Vec::new()).with_scope(tokens.scope());
        self.request_authentications.insert(name.into(), Arc::new(resource));
    }
}

/// The key by which an address is asked for.
fn address_key(network: &str, ip: IpAddr) -> Arc<str> {
    format!("{network}/{ip}").into()
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 });
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// An address as the wire carries it.
pub(super) fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip_from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(uid: &str, ip: [u8; 4], services: &[&str]) -> workload::Workload {
        workload::Workload {
            uid: uid.to_owned(),
            addresses: vec![ip.to_vec()],
            node: String::from("node1"),
            services: services
                .iter()
                .map(|service| ((*service).to_owned(), workload::PortList::default()))
                .collect(),
            ..Default::default()
        }
    }

    fn service(name: &str, ip: [u8; 4]) -> workload::Service {
        workload::Service {
            namespace: String::from("app"),
            hostname: name.to_owned(),
            addresses: vec![workload::NetworkAddress { address: ip.to_vec(), ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn version_follows_content_and_nothing_else() {
        let build = |order: &[&str]| {
            let mut state = DesiredState::default();
            state.insert_workload(workload("w", [10, 0, 0, 1], order));
            state
        };
        let first = build(&["app/a", "app/b", "app/c"]);
        assert_eq!(first, build(&["app/c", "app/b", "app/a"]));
        assert_ne!(
            first.resources(ResourceKind::Address)["w"].version,
            build(&["app/a", "app/b"]).resources(ResourceKind::Address)["w"].version
        );
        assert_eq!(first.resources(ResourceKind::Address)["w"].version.len(), 16);
    }

    #[test]
    fn virtual_address_stands_for_the_service_and_all_its_workloads() {
        let mut state = DesiredState::default();
        state.insert_service(service("a", [10, 96, 0, 1]));
        state.insert_workload(workload("w1", [10, 0, 0, 1], &["app/a"]));
        state.insert_workload(workload("w2", [10, 0, 0, 2], &["app/a"]));
        state.insert_workload(workload("w3", [10, 0, 0, 3], &[]));
        let names = |key: &str| -> Vec<String> {
            state.lookup(ResourceKind::Address, key).iter().map(|found| found.name.to_string()).collect()
        };
        assert_eq!(names("/10.96.0.1"), ["app/a", "w1", "w2"]);
        assert_eq!(names("app/a"), ["app/a", "w1", "w2"]);
        assert_eq!(names("/10.0.0.3"), ["w3"]);
        assert_eq!(names("w1"), ["w1"]);
        assert!(names("/10.0.0.9").is_empty());
    }
}
