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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost_types::value::Kind;

use self::difference::Difference;
use self::subscription::{Held, Subscription};
use super::desired::{DesiredState, ResourceKind, View};
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

mod difference;
mod subscription;
#[cfg(test)]
mod tests;

/// Most names that a client may subscribe to one by one, for each type.
pub const SUBSCRIBED_NAMES_MAX: usize = 65_536;
/// Longest name of a resource.
pub const NAME_BYTES_MAX: usize = 1024;
/// Types we do not know, each answered once with nothing.
pub const UNKNOWN_TYPES_MAX: usize = 16;
/// Resource bytes after which a response is closed and another one begun.
pub const RESPONSE_BYTES_MAX: usize = 16 << 20;

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
