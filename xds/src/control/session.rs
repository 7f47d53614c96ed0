//! The server's half of one delta xDS stream, as a pure state machine.
//!
//! Requests go in by [`Session::on_request`]; [`Session::responses`] compares what the client should hold with what
//! it was sent and yields the difference. No socket, no clock: the shell calls the latter after requests and after
//! every change of the desired state. Whatever happened in between is told as one difference, so a slow client costs
//! memory for one set of versions and never for a queue.
//!
//! Order within one push keeps the client safe at every step: a policy arrives before the workloads that name it and
//! goes after them; one that comes to reach fewer does so after the workloads that it still reaches name it; a
//! service arrives before the routes to it and goes after them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use prost_types::value::Kind;

use super::desired::{DesiredResource, DesiredState, ResourceKind, View};
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};

/// Most names that a client may subscribe to one by one, for each type.
pub const SUBSCRIBED_NAMES_MAX: usize = 65_536;
/// Longest name of a resource.
pub const NAME_BYTES_MAX: usize = 1024;
/// Types we do not know, each answered once with nothing.
pub const UNKNOWN_TYPES_MAX: usize = 16;
/// Resource bytes after which a response is closed and another one begun.
pub const RESPONSE_BYTES_MAX: usize = 16 << 20;

/// Subscribes to everything of a type.
const WILDCARD: &str = "*";

const UPSERT_ORDER: [ResourceKind; 10] = [
    ResourceKind::MeshWide,
    ResourceKind::Authorization,
    ResourceKind::AuthorizationPolicy,
    ResourceKind::RequestAuthentication,
    ResourceKind::WaypointPolicies,
    ResourceKind::WorkloadLabels,
    ResourceKind::Telemetry,
    ResourceKind::Address,
    ResourceKind::TrafficPolicy,
    ResourceKind::HttpRoute,
];
const REMOVAL_ORDER: [ResourceKind; 10] = [
    ResourceKind::HttpRoute,
    ResourceKind::TrafficPolicy,
    ResourceKind::Address,
    ResourceKind::Telemetry,
    ResourceKind::WorkloadLabels,
    ResourceKind::WaypointPolicies,
    ResourceKind::RequestAuthentication,
    ResourceKind::AuthorizationPolicy,
    ResourceKind::Authorization,
    ResourceKind::MeshWide,
];

/// Why a stream must end. Each names the rule that the client broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("the first request of a stream must carry `node` with an id")]
    NodeMissing,
    #[error("node metadata NODE_NAME is {claimed:?}, but the token was issued to node {granted:?}")]
    NodeMismatch { claimed: String, granted: Arc<str> },
    #[error("more than {SUBSCRIBED_NAMES_MAX} names are subscribed for {0}")]
    TooManyNames(&'static str),
    #[error("a resource name is longer than {NAME_BYTES_MAX} bytes")]
    NameTooLong,
    #[error("more than {UNKNOWN_TYPES_MAX} unknown types are asked for, the last one {0:?}")]
    TooManyUnknownTypes(String),
}

/// A response that the client refused. It keeps what it had; nothing is sent again until the next change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub type_url: String,
    pub nonce: String,
    /// The client's reason.
    pub message: String,
}

/// One client's stream.
#[derive(Debug)]
pub struct Session {
    /// Tells the nonces of one stream from those of another.
    stream: u64,
    node: Arc<str>,
    node_seen: bool,
    /// The pod of a waypoint, `namespace/name`; `None` for a node proxy.
    waypoint_pod: Option<Arc<str>>,
    nonces: u64,
    subscriptions: BTreeMap<ResourceKind, Subscription>,
    unknown: BTreeSet<String>,
    /// Unknown types whose first request still waits for its answer.
    unknown_owed: Vec<String>,
}

/// What the client wants of one type and what it holds.
#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What the client will hold once it has read all we sent.
    sent: HashMap<Arc<str>, Held>,
    /// Subscribed names of which the client knows that they do not exist.
    reported_missing: BTreeSet<Arc<str>>,
    /// Names just subscribed: answered even if the client holds them.
    newly_subscribed: BTreeSet<Arc<str>>,
    /// The first request of a type is answered even with nothing, because readiness may hang on it.
    answer_owed: bool,
}

#[derive(Debug)]
struct Held {
    version: Arc<str>,
    /// [`DesiredResource::narrowness`] of that version; `None` if an earlier stream sent it.
    narrowness: Option<u8>,
}

/// The difference between what a client holds and what it should hold.
#[derive(Debug, Default)]
struct Difference<'a> {
    upserts: Vec<&'a Arc<DesiredResource>>,
    /// Policies that reach fewer than the version that the client holds.
    narrowed: Vec<&'a Arc<DesiredResource>>,
    removed: Vec<Arc<str>>,
    with_aliases: bool,
    answer_owed: bool,
}

// === impl Session ===

impl Session {
    /// A stream of the node that its token was issued to.
    pub fn new(stream: u64, node: impl Into<Arc<str>>) -> Self {
        Self {
            stream,
            node: node.into(),
            node_seen: false,
            waypoint_pod: None,
            nonces: 0,
            subscriptions: BTreeMap::new(),
            unknown: BTreeSet::new(),
            unknown_owed: Vec::new(),
        }
    }

    /// Takes one request in. A rejection is for the log; an error ends the stream.
    pub fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<Option<Rejection>, SessionError> {
        self.check_node(request.node.as_ref())?;
        let rejection = request.error_detail.map(|status| Rejection {
            type_url: request.type_url.clone(),
            nonce: request.response_nonce.clone(),
            message: status.message,
        });
        let Some(kind) = ResourceKind::from_type_url(&request.type_url) else {
            return self.on_unknown_type(request.type_url).map(|()| rejection);
        };
        let first = !self.subscriptions.contains_key(&kind);
        let subscription = self.subscriptions.entry(kind).or_default();
        if first {
            subscription.answer_owed = true;
            subscription.wildcard = request.resource_names_subscribe.is_empty();
            subscription.sent = request
                .initial_resource_versions
                .into_iter()
                .map(|(name, version)| {
                    (Arc::from(name), Held { version: Arc::from(version), narrowness: None })
                })
                .collect();
        }
        subscription.subscribe(kind, request.resource_names_subscribe)?;
        subscription.unsubscribe(&request.resource_names_unsubscribe);
        Ok(rejection)
    }

    /// What to send now, in this order. The caller must send all of it: it counts as sent.
    pub fn responses(&mut self, state: &DesiredState, generation: u64) -> Vec<DeltaDiscoveryResponse> {
        let mut responses = Vec::new();
        for type_url in std::mem::take(&mut self.unknown_owed) {
            responses.push(DeltaDiscoveryResponse { type_url, ..Default::default() });
        }
        let view = match &self.waypoint_pod {
            None => View::of_node_proxy(state, &self.node),
            Some(pod) => View::of_waypoint(state, &self.node, pod),
        };
        let mut differences: BTreeMap<ResourceKind, Difference<'_>> = BTreeMap::new();
        for (kind, subscription) in &mut self.subscriptions {
            differences.insert(*kind, subscription.difference(*kind, view));
        }
        for kind in UPSERT_ORDER {
            if let Some(difference) = differences.get_mut(&kind) {
                let upserts = std::mem::take(&mut difference.upserts);
                difference.emit_upserts(kind, upserts, &mut responses);
            }
        }
        for kind in UPSERT_ORDER {
            if let Some(difference) = differences.get_mut(&kind) {
                let narrowed = std::mem::take(&mut difference.narrowed);
                difference.emit_upserts(kind, narrowed, &mut responses);
            }
        }
        for kind in REMOVAL_ORDER {
            if let Some(difference) = differences.get_mut(&kind) {
                difference.emit_removals(kind, &mut responses);
            }
        }
        for response in &mut responses {
            self.nonces += 1;
            response.nonce = format!("{}-{}", self.stream, self.nonces);
            response.system_version_info = generation.to_string();
        }
        responses
    }

    fn check_node(&mut self, node: Option<&Node>) -> Result<(), SessionError> {
        let Some(node) = node.filter(|node| !node.id.is_empty()) else {
            return if self.node_seen { Ok(()) } else { Err(SessionError::NodeMissing) };
        };
        let claimed =
            node.metadata.as_ref().and_then(|metadata| metadata.fields.get("NODE_NAME")).and_then(|value| {
                match &value.kind {
                    Some(Kind::StringValue(text)) => Some(text),
                    _ => None,
                }
            });
        if let Some(claimed) = claimed.filter(|claimed| !claimed.is_empty() && **claimed != *self.node) {
            return Err(SessionError::NodeMismatch { claimed: claimed.clone(), granted: self.node.clone() });
        }
        self.node_seen = true;
        self.waypoint_pod = waypoint_pod(&node.id);
        Ok(())
    }

    fn on_unknown_type(&mut self, type_url: String) -> Result<(), SessionError> {
        if self.unknown.contains(&type_url) {
            return Ok(());
        }
        if self.unknown.len() == UNKNOWN_TYPES_MAX || type_url.len() > NAME_BYTES_MAX {
            return Err(SessionError::TooManyUnknownTypes(type_url));
        }
        self.unknown.insert(type_url.clone());
        self.unknown_owed.push(type_url);
        Ok(())
    }
}

/// The pod `namespace/name` of a node id `waypoint~IP~NAME.NAMESPACE~DOMAIN`; a namespace has no dots.
fn waypoint_pod(id: &str) -> Option<Arc<str>> {
    let mut parts = id.split('~');
    let is_waypoint = parts.next() == Some("waypoint");
    let (name, namespace) = parts.nth(1)?.rsplit_once('.')?;
    is_waypoint.then(|| format!("{namespace}/{name}").into())
}

// === impl Subscription ===

impl Subscription {
    fn subscribe(&mut self, kind: ResourceKind, names: Vec<String>) -> Result<(), SessionError> {
        for name in names {
            if name == WILDCARD {
                self.wildcard = true;
                continue;
            }
            if name.len() > NAME_BYTES_MAX {
                return Err(SessionError::NameTooLong);
            }
            let name: Arc<str> = name.into();
            self.reported_missing.remove(&name);
            self.newly_subscribed.insert(name.clone());
            self.names.insert(name);
            if self.names.len() > SUBSCRIBED_NAMES_MAX {
                return Err(SessionError::TooManyNames(kind.type_url()));
            }
        }
        Ok(())
    }

    /// What a client no longer wants is told to it as removed by the next difference, so that both sides agree.
    fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.wildcard = false;
            }
            self.names.remove(name.as_str());
            self.newly_subscribed.remove(name.as_str());
            self.reported_missing.remove(name.as_str());
        }
    }

    /// Brings `sent` up to the desired state and returns what that takes.
    fn difference<'a>(&mut self, kind: ResourceKind, view: View<'a>) -> Difference<'a> {
        let mut visible: BTreeMap<&str, &Arc<DesiredResource>> = BTreeMap::new();
        let mut asked_again: BTreeSet<&str> = BTreeSet::new();
        let mut missing = Vec::new();
        for name in &self.names {
            let found = view.lookup(kind, name);
            if found.is_empty() {
                missing.push(name.clone());
            } else if self.newly_subscribed.contains(name) {
                asked_again.extend(found.iter().map(|resource| &*resource.name));
            }
            visible.extend(found.into_iter().map(|resource| (&*resource.name, resource)));
        }
        if self.wildcard {
            visible.extend(view.resources(kind).values().map(|resource| (&*resource.name, resource)));
        } else if kind == ResourceKind::Address {
            visible.extend(view.node_local().map(|resource| (&*resource.name, resource)));
        }
        let upserts: Vec<&Arc<DesiredResource>> = visible
            .values()
            .filter(|resource| {
                asked_again.contains(&*resource.name)
                    || self.sent.get(&resource.name).is_none_or(|held| held.version != resource.version)
            })
            .copied()
            .collect();
        let (narrowed, upserts): (Vec<_>, Vec<_>) = upserts.into_iter().partition(|resource| {
            let held = self.sent.get(&resource.name).and_then(|held| held.narrowness);
            held.is_some_and(|held| held < resource.narrowness)
        });
        let mut removed: Vec<Arc<str>> =
            self.sent.keys().filter(|name| !visible.contains_key(&***name)).cloned().collect();
        removed.extend(
            missing
                .iter()
                .filter(|name| !self.reported_missing.contains(*name) && !self.sent.contains_key(*name))
                .cloned(),
        );
        removed.sort_unstable();
        for name in &removed {
            self.sent.remove(name);
        }
        for resource in upserts.iter().chain(&narrowed) {
            let held = Held { version: resource.version.clone(), narrowness: Some(resource.narrowness) };
            self.sent.insert(resource.name.clone(), held);
        }
        self.reported_missing = missing.into_iter().collect();
        self.newly_subscribed.clear();
        let answer_owed = std::mem::take(&mut self.answer_owed);
        Difference { upserts, narrowed, removed, with_aliases: !self.wildcard, answer_owed }
    }
}

// === impl Difference ===

impl Difference<'_> {
    fn emit_upserts(
        &mut self,
        kind: ResourceKind,
        upserts: Vec<&Arc<DesiredResource>>,
        responses: &mut Vec<DeltaDiscoveryResponse>,
    ) {
        let mut response = DeltaDiscoveryResponse::default();
        let mut bytes = 0;
        for resource in upserts {
            if bytes > 0 && bytes + resource.body.len() > RESPONSE_BYTES_MAX {
                responses.push(std::mem::take(&mut response));
                bytes = 0;
            }
            bytes += resource.body.len();
            kind.type_url().clone_into(&mut response.type_url);
            response.resources.push(Resource {
                name: resource.name.to_string(),
                version: resource.version.to_string(),
                resource: Some(resource.to_any(kind)),
                aliases: if self.with_aliases {
                    resource.aliases.iter().map(ToString::to_string).collect()
                } else {
                    Vec::new()
                },
                ..Default::default()
            });
        }
        if !response.resources.is_empty() {
            self.answer_owed = false;
            responses.push(response);
        }
    }

    fn emit_removals(&mut self, kind: ResourceKind, responses: &mut Vec<DeltaDiscoveryResponse>) {
        if self.removed.is_empty() && !self.answer_owed {
            return;
        }
        let removed_resources = self.removed.drain(..).map(|name| name.to_string()).collect();
        // Upserts of the same type that nothing stands between travel together with the removals.
        if let Some(last) = responses.last_mut().filter(|last| last.type_url == kind.type_url()) {
            last.removed_resources = removed_resources;
        } else {
            responses.push(DeltaDiscoveryResponse {
                type_url: kind.type_url().to_owned(),
                removed_resources,
                ..Default::default()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use prost_types::{Struct, Value};

    use super::*;
    use crate::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, HTTP_ROUTE_TYPE, l7, rpc, security, workload};

    fn node(name: &str) -> Node {
        let value = Value { kind: Some(Kind::StringValue(name.to_owned())) };
        let fields = [(String::from("NODE_NAME"), value)].into();
        Node {
            id: String::from("ztunnel~10.0.0.1~p.ns~ns.svc.cluster.local"),
            metadata: Some(Struct { fields }),
            ..Default::default()
        }
    }

    fn request(type_url: &str) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(node("node1")),
            type_url: type_url.to_owned(),
            ..Default::default()
        }
    }

    fn on_demand(names: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..request(ADDRESS_TYPE)
        }
    }

    fn workload(uid: &str, ip: [u8; 4], node: &str, policies: &[&str]) -> workload::Workload {
        workload::Workload {
            uid: uid.to_owned(),
            addresses: vec![ip.to_vec()],
            node: node.to_owned(),
            authorization_policies: policies.iter().map(ToString::to_string).collect(),
            services: [(String::from("app/svc"), workload::PortList::default())].into(),
            ..Default::default()
        }
    }

    fn service() -> workload::Service {
        workload::Service {
            namespace: String::from("app"),
            hostname: String::from("svc"),
            addresses: vec![workload::NetworkAddress { address: vec![10, 96, 0, 1], ..Default::default() }],
            ..Default::default()
        }
    }

    fn policy(name: &str) -> security::Authorization {
        security::Authorization {
            namespace: String::from("app"),
            name: name.to_owned(),
            ..Default::default()
        }
    }

    fn state() -> DesiredState {
        let mut state = DesiredState::default();
        state.insert_service(service());
        state.insert_workload(workload("w1", [10, 0, 0, 1], "node1", &[]));
        state.insert_workload(workload("w2", [10, 0, 0, 2], "node2", &[]));
        state
    }

    /// `upserts -removals` of each response.
    fn summary(responses: &[DeltaDiscoveryResponse]) -> Vec<String> {
        responses
            .iter()
            .map(|response| {
                let short = response.type_url.rsplit('.').next().unwrap_or_default();
                let upserts = response.resources.iter().map(|resource| format!(" {}", resource.name));
                let removals = response.removed_resources.iter().map(|name| format!(" -{name}"));
                format!("{short}:{}", upserts.chain(removals).collect::<String>())
            })
            .collect()
    }

    fn connected(state: &DesiredState, types: &[&str]) -> Session {
        let mut session = Session::new(1, "node1");
        for type_url in types {
            session.on_request(request(type_url)).unwrap();
        }
        session.responses(state, 1);
        session
    }

    #[test]
    fn wildcard_gets_everything_once_then_only_changes() {
        let mut state = state();
        let mut session = Session::new(7, "node1");
        session.on_request(request(ADDRESS_TYPE)).unwrap();
        let first = session.responses(&state, 1);
        assert_eq!(summary(&first), ["Address: app/svc w1 w2"]);
        assert_eq!((&*first[0].nonce, &*first[0].system_version_info), ("7-1", "1"));
        assert!(first[0].resources.iter().all(|resource| resource.aliases.is_empty()));
        assert!(session.responses(&state, 1).is_empty());

        state.insert_workload(workload("w2", [10, 0, 0, 3], "node2", &[]));
        assert_eq!(summary(&session.responses(&state, 2)), ["Address: w2"]);

        let mut without = DesiredState::default();
        without.insert_service(service());
        assert_eq!(summary(&session.responses(&without, 3)), ["Address: -w1 -w2"]);
    }

    #[test]
    fn first_request_of_a_type_is_answered_even_with_nothing() {
        let mut session = Session::new(1, "node1");
        session.on_request(request(AUTHORIZATION_TYPE)).unwrap();
        session.on_request(request("type.googleapis.com/some.Other")).unwrap();
        let responses = session.responses(&DesiredState::default(), 1);
        assert_eq!(summary(&responses), ["Other:", "Authorization:"]);
        session.on_request(request("type.googleapis.com/some.Other")).unwrap();
        assert!(session.responses(&DesiredState::default(), 1).is_empty());
    }

    #[test]
    fn policy_comes_before_the_workload_that_names_it_and_goes_after_it() {
        let mut bare = state();
        let mut session = connected(&bare, &[ADDRESS_TYPE, HTTP_ROUTE_TYPE, AUTHORIZATION_TYPE]);

        let mut guarded = state();
        guarded.insert_authorization(&policy("p"));
        guarded.insert_workload(workload("w1", [10, 0, 0, 1], "node1", &["app/p"]));
        guarded.insert_workload(workload("w3", [10, 0, 0, 3], "node1", &["app/p"]));
        guarded.insert_http_route("app/r/app/svc/0", &l7::HttpRoute::default());
        assert_eq!(
            summary(&session.responses(&guarded, 2)),
            ["Authorization: app/p", "Address: w1 w3", "HttpRoute: app/r/app/svc/0"]
        );

        bare.insert_workload(workload("w4", [10, 0, 0, 4], "node1", &[]));
        assert_eq!(
            summary(&session.responses(&bare, 3)),
            ["Address: w1 w4", "HttpRoute: -app/r/app/svc/0", "Address: -w3", "Authorization: -app/p"]
        );
    }

    #[test]
    fn policy_reaches_fewer_only_once_those_it_still_reaches_name_it() {
        let scoped = |scope: security::Scope, names: &[&str]| {
            let mut state = state();
            state.insert_authorization(&security::Authorization { scope: scope.into(), ..policy("p") });
            state.insert_workload(workload("w1", [10, 0, 0, 1], "node1", names));
            state
        };
        let wide = scoped(security::Scope::Namespace, &[]);
        let narrow = scoped(security::Scope::WorkloadSelector, &["app/p"]);
        let mut session = connected(&wide, &[ADDRESS_TYPE, AUTHORIZATION_TYPE]);
        assert_eq!(summary(&session.responses(&narrow, 2)), ["Address: w1", "Authorization: app/p"]);
        assert_eq!(summary(&session.responses(&wide, 3)), ["Authorization: app/p", "Address: w1"]);
    }

    #[test]
    fn held_versions_are_skipped_and_vanished_names_removed() {
        let state = state();
        let version = |name: &str| state.resources(ResourceKind::Address)[name].version.to_string();
        let mut session = Session::new(1, "node1");
        session
            .on_request(DeltaDiscoveryRequest {
                initial_resource_versions: [
                    (String::from("w1"), version("w1")),
                    (String::from("w2"), String::from("stale")),
                    (String::from("gone"), String::from("0123456789abcdef")),
                ]
                .into(),
                ..request(ADDRESS_TYPE)
            })
            .unwrap();
        assert_eq!(summary(&session.responses(&state, 1)), ["Address: app/svc w2 -gone"]);
    }

    #[test]
    fn acknowledgements_are_not_answered_and_rejections_are_reported() {
        let state = state();
        let mut session = connected(&state, &[ADDRESS_TYPE]);
        let ack = DeltaDiscoveryRequest { response_nonce: String::from("1-1"), ..request(ADDRESS_TYPE) };
        assert_eq!(session.on_request(ack.clone()).unwrap(), None);
        let status = rpc::Status { message: String::from("w1: bad"), ..Default::default() };
        let nack = DeltaDiscoveryRequest { error_detail: Some(status), ..ack };
        let rejection = session.on_request(nack).unwrap().expect("a rejection");
        assert_eq!((&*rejection.nonce, &*rejection.message), ("1-1", "w1: bad"));
        assert!(session.responses(&state, 1).is_empty(), "nothing is sent again until it changes");
    }

    #[test]
    fn on_demand_gets_its_node_first_and_then_what_it_asks_for() {
        let mut state = state();
        state.insert_workload(workload("w3", [10, 0, 0, 3], "node2", &[]));
        let mut session = Session::new(1, "node1");
        session
            .on_request(DeltaDiscoveryRequest {
                resource_names_unsubscribe: vec![String::from("*")],
                ..on_demand(&["*"])
            })
            .unwrap();
        assert_eq!(summary(&session.responses(&state, 1)), ["Address: w1"]);

        session.on_request(on_demand(&["/10.96.0.1"])).unwrap();
        let found = session.responses(&state, 1);
        assert_eq!(summary(&found), ["Address: app/svc w1 w2 w3"]);
        assert_eq!(found[0].resources[0].aliases, ["/10.96.0.1"]);

        session.on_request(on_demand(&["/10.9.9.9", "nowhere"])).unwrap();
        assert_eq!(summary(&session.responses(&state, 1)), ["Address: -/10.9.9.9 -nowhere"]);
        assert!(session.responses(&state, 1).is_empty(), "a missing name is told once");

        state.insert_workload(workload("w4", [10, 9, 9, 9], "node2", &[]));
        assert_eq!(summary(&session.responses(&state, 2)), ["Address: w4"]);
    }

    #[test]
    fn stream_without_node_or_of_another_node_ends() {
        let mut session = Session::new(1, "node1");
        let anonymous = DeltaDiscoveryRequest { node: None, ..request(ADDRESS_TYPE) };
        assert_eq!(session.on_request(anonymous.clone()), Err(SessionError::NodeMissing));
        let foreign = DeltaDiscoveryRequest { node: Some(node("node2")), ..anonymous.clone() };
        assert!(matches!(session.on_request(foreign), Err(SessionError::NodeMismatch { .. })));
        session.on_request(request(ADDRESS_TYPE)).unwrap();
        session.on_request(anonymous).unwrap();
    }

    #[test]
    fn client_cannot_make_the_server_remember_without_bound() {
        let mut session = Session::new(1, "node1");
        let names: Vec<String> = (0..=SUBSCRIBED_NAMES_MAX).map(|n| n.to_string()).collect();
        let flood = DeltaDiscoveryRequest { resource_names_subscribe: names, ..request(ADDRESS_TYPE) };
        assert!(matches!(session.on_request(flood), Err(SessionError::TooManyNames(_))));
        let long = "n".repeat(NAME_BYTES_MAX + 1);
        assert_eq!(session.on_request(on_demand(&[&long])), Err(SessionError::NameTooLong));
        let mut last = Ok(None);
        for n in 0..=UNKNOWN_TYPES_MAX {
            last = session.on_request(request(&format!("type.googleapis.com/t{n}")));
        }
        assert!(matches!(last, Err(SessionError::TooManyUnknownTypes(_))));
    }

    #[test]
    fn large_state_is_cut_into_bounded_responses() {
        let mut state = DesiredState::default();
        let ir = vec![b'x'; RESPONSE_BYTES_MAX / 2];
        for name in ["a", "b", "c"] {
            state.insert_http_route(name, &l7::HttpRoute { ir: ir.clone().into() });
        }
        let mut session = Session::new(1, "node1");
        session.on_request(request(HTTP_ROUTE_TYPE)).unwrap();
        let responses = session.responses(&state, 1);
        assert_eq!(summary(&responses), ["HttpRoute: a", "HttpRoute: b", "HttpRoute: c"]);
        let nonces: BTreeSet<&str> = responses.iter().map(|response| &*response.nonce).collect();
        assert_eq!(nonces.len(), 3);
    }

    /// A client that applies what it is sent always ends with exactly the desired state, whatever the history.
    #[test]
    fn fuzz_client_converges_to_the_desired_state() {
        bolero::check!().with_type::<Vec<(u8, u8)>>().for_each(|steps| {
            let mut session = connected(&DesiredState::default(), &[ADDRESS_TYPE, AUTHORIZATION_TYPE]);
            let mut held: BTreeMap<(String, String), String> = BTreeMap::new();
            for (generation, (workloads, policies)) in steps.iter().enumerate() {
                let mut state = DesiredState::default();
                for bit in 0..8_u8 {
                    if workloads >> bit & 1 == 1 {
                        state.insert_workload(workload(
                            &format!("w{bit}"),
                            [10, 0, *policies, bit],
                            "n",
                            &[],
                        ));
                    }
                    if policies >> bit & 1 == 1 {
                        state.insert_authorization(&policy(&format!("p{bit}")));
                    }
                }
                for response in session.responses(&state, generation as u64) {
                    for resource in response.resources {
                        held.insert((response.type_url.clone(), resource.name), resource.version);
                    }
                    for name in response.removed_resources {
                        assert!(held.remove(&(response.type_url.clone(), name)).is_some());
                    }
                }
                let want: BTreeMap<(String, String), String> = ResourceKind::ALL
                    .into_iter()
                    .flat_map(|kind| {
                        let entry = move |resource: &Arc<DesiredResource>| {
                            (
                                (kind.type_url().to_owned(), resource.name.to_string()),
                                resource.version.to_string(),
                            )
                        };
                        state.resources(kind).values().map(entry).collect::<Vec<_>>()
                    })
                    .collect();
                assert_eq!(held, want);
            }
        });
    }
}
