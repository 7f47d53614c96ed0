//! The client of the delta discovery protocol as a pure state machine: no socket, no clock, no thread.
//!
//! Events go in ([`Client::opened`], [`Client::response`], [`Client::closed`], [`Client::demand`]); requests to send
//! come out, and [`Client::connect_at`] tells when to dial. What a resource means is not known here: a [`Sink`] takes
//! or refuses each one.
//!
//! Invariants:
//! - Every response is answered by exactly one request: an ACK, or a NACK that names each refused resource.
//! - The versions held are those of what the sink holds, across streams: a refused update leaves the version of
//!   the resource that stays in force, and a resource that was never accepted has none.
//! - Within a response updates are applied before removals, so that something that moves is never missing.
//! - A removal reaches the sink only for a name that it holds.

mod backoff;
#[cfg(test)]
mod followed_tests;
#[cfg(test)]
mod tests;
mod version;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use backoff::Backoff;
pub use backoff::{BACKOFF_FIRST, BACKOFF_MAX, End};
use prost_types::Any;
use version::Version;

use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use crate::proto::rpc::Status;

/// Keys asked for on demand and remembered; a demand beyond is refused.
pub const DEMANDS_MAX: usize = 65_536;

/// Bytes of reasons in one NACK; the rest is counted.
const REASONS_BYTES_MAX: usize = 8 * 1024;

/// `INVALID_ARGUMENT` of gRPC: what a NACK carries.
const INVALID_ARGUMENT: i32 = 3;

/// Takes what the control plane sends.
pub trait Sink {
    /// Puts a resource in force, or refuses it with the reason; then what was in force under this name stays.
    fn upsert(&mut self, type_url: &str, name: &str, body: &Any) -> Result<(), String>;

    /// Takes a resource out of force. Only called for names whose upsert was accepted.
    fn remove(&mut self, type_url: &str, name: &str);

    /// The names of a [`Mode::Followed`] type that are wanted, as what is held of other types says; `None` for all
    /// other types.
    fn followed(&self, _type_url: &str) -> Option<BTreeSet<&str>> {
        None
    }

    /// What was asked for on demand by this key is in force, or does not exist.
    fn answered(&mut self, _type_url: &str, _key: &str) {}

    /// The sink's own copy of the name of something that it holds, to be shared instead of copied.
    fn shared_name(&self, _type_url: &str, _name: &str) -> Option<Arc<str>> {
        None
    }
}

/// One type of resource to be held.
#[derive(Debug, Clone)]
pub struct Subscription {
    pub type_url: Arc<str>,
    pub mode: Mode,
}

impl Subscription {
    pub fn wildcard(type_url: &str) -> Self {
        Self { type_url: type_url.into(), mode: Mode::Wildcard }
    }

    pub fn on_demand(type_url: &str) -> Self {
        Self { type_url: type_url.into(), mode: Mode::OnDemand }
    }

    pub fn followed(type_url: &str) -> Self {
        Self { type_url: type_url.into(), mode: Mode::Followed }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything there is.
    Wildcard,
    /// Only what [`Client::demand`] asks for, and what the server thinks fit to add.
    OnDemand,
    /// By name, those that the sink wants, as what it holds of other types says ([`Sink::followed`]).
    Followed,
}

/// What came of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Accepted {
        upserts: usize,
        removals: usize,
    },
    /// The text of the NACK.
    Rejected {
        reason: String,
    },
    /// Of a type that was not subscribed.
    Ignored,
}

/// What came of a demand.
#[derive(Debug, Clone, PartialEq)]
pub enum Demand {
    /// Send this now.
    Request(Box<DeltaDiscoveryRequest>),
    /// Asked already, or will be as soon as a stream is open: the answer comes by itself.
    Pending,
    /// Asked before, and the server said that there is nothing.
    Absent,
    /// Too many keys are asked for; see [`DEMANDS_MAX`].
    Full,
    /// The type is a wildcard or not subscribed: what is not here does not exist.
    NotOnDemand,
}

/// The state machine.
pub struct Client {
    node: Node,
    types: Vec<TypeState>,
    link: Link,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down { connect_at: Instant },
    Connecting,
    Open { answered: bool },
}

struct TypeState {
    type_url: Arc<str>,
    mode: Mode,
    /// Name to version of everything that the sink holds.
    held: HashMap<Arc<str>, Version, foldhash::fast::RandomState>,
    demands: BTreeMap<Box<str>, DemandState>,
    /// Names subscribed to, where the type is followed.
    followed: BTreeSet<Box<str>>,
    accepted_once: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DemandState {
    Asked,
    Absent,
}

// === impl Client ===

impl Client {
    /// A client that wants to connect at once.
    pub fn new(node: Node, subscriptions: Vec<Subscription>, now: Instant) -> Self {
        let types = subscriptions
            .into_iter()
            .map(|subscription| TypeState {
                type_url: subscription.type_url,
                mode: subscription.mode,
                held: HashMap::default(),
                demands: BTreeMap::new(),
                followed: BTreeSet::new(),
                accepted_once: false,
            })
            .collect();
        Self { node, types, link: Link::Down { connect_at: now }, backoff: Backoff::new() }
    }

    /// When to dial; `None` while a stream is open or being opened.
    pub fn connect_at(&self) -> Option<Instant> {
        match self.link {
            Link::Down { connect_at } => Some(connect_at),
            Link::Connecting | Link::Open { .. } => None,
        }
    }

    /// Dialling has begun.
    pub fn connecting(&mut self) {
        self.link = Link::Connecting;
    }

    /// The stream is open: these requests begin it, in this order.
    pub fn opened(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.link = Link::Open { answered: false };
        let mut requests: Vec<_> = self.types.iter().filter_map(|it| it.first_request(&self.node)).collect();
        requests.extend(self.types.iter().filter_map(TypeState::renewed_demands));
        requests
    }

    /// The connection failed or the stream ended.
    pub fn closed(&mut self, now: Instant, end: &End) {
        let answered = matches!(self.link, Link::Open { answered: true });
        let wait = self.backoff.after(end, answered);
        self.link = Link::Down { connect_at: now + wait };
    }

    /// Applies a response; returns the acknowledgement to send.
    pub fn response(
        &mut self,
        response: &DeltaDiscoveryResponse,
        sink: &mut dyn Sink,
    ) -> (DeltaDiscoveryRequest, Outcome) {
        if let Link::Open { answered } = &mut self.link {
            *answered = true;
        }
        self.backoff.succeeded();
        let mut reply = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        let Some(state) = self.types.iter_mut().find(|it| *it.type_url == *response.type_url) else {
            return (reply, Outcome::Ignored);
        };
        let (outcome, error_detail) = state.apply(response, sink);
        reply.error_detail = error_detail;
        (reply, outcome)
    }

    /// Brings what is followed in line with what the sink wants now: to be called after each response, and the requests to
    /// be sent. What is no longer wanted leaves the sink.
    pub fn follow(&mut self, sink: &mut dyn Sink) -> Vec<DeltaDiscoveryRequest> {
        let followed = self.types.iter_mut().filter(|it| it.mode == Mode::Followed);
        let requests = followed.filter_map(|it| it.follow(sink)).collect();
        if matches!(self.link, Link::Open { .. }) { requests } else { Vec::new() }
    }

    /// Asks for one resource by a key (`network/IP`, `namespace/hostname`, or a uid).
    ///
    /// The caller must have looked at what is held first: the server does not answer a demand for what it has
    /// already sent under another key.
    pub fn demand(&mut self, type_url: &str, key: &str) -> Demand {
        let open = matches!(self.link, Link::Open { .. });
        let state = self.types.iter_mut().find(|it| &*it.type_url == type_url && it.mode == Mode::OnDemand);
        let Some(state) = state else { return Demand::NotOnDemand };
        match state.demands.get(key) {
            Some(DemandState::Asked) => return Demand::Pending,
            Some(DemandState::Absent) => return Demand::Absent,
            None => {}
        }
        if state.demands.len() >= DEMANDS_MAX {
            return Demand::Full;
        }
        state.demands.insert(key.into(), DemandState::Asked);
        if !open {
            return Demand::Pending;
        }
        Demand::Request(Box::new(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec![key.to_owned()],
            ..DeltaDiscoveryRequest::default()
        }))
    }

    pub fn subscribes(&self, type_url: &str) -> bool {
        self.types.iter().any(|it| &*it.type_url == type_url)
    }

    /// Notes something that the sink holds from an earlier life: the server is told of it, and may say that it is gone.
    pub fn hold(&mut self, type_url: &str, name: Arc<str>, version: &str) {
        let Some(state) = self.types.iter_mut().find(|it| &*it.type_url == type_url) else { return };
        // Nobody has asked for it in this life yet, and it must not grow old unnoticed.
        if state.mode == Mode::OnDemand && state.demands.len() < DEMANDS_MAX {
            state.demands.insert((*name).into(), DemandState::Asked);
        }
        state.held.insert(name, Version::from(version));
    }

    /// True once each wildcard type got one accepted response, and ever after.
    pub fn ready(&self) -> bool {
        self.types.iter().all(|it| match it.mode {
            Mode::Wildcard => it.accepted_once,
            Mode::OnDemand => true,
            Mode::Followed => it.accepted_once || it.followed.is_empty(),
        })
    }

    /// True while a stream is open and something came on it.
    pub fn is_live(&self) -> bool {
        matches!(self.link, Link::Open { answered: true })
    }

    /// Names and versions held of a type, in order of the names.
    pub fn held(&self, type_url: &str) -> BTreeMap<&str, String> {
        let types = self.types.iter().filter(|it| &*it.type_url == type_url);
        types.flat_map(|it| it.held.iter().map(|(name, version)| (&**name, version.to_string()))).collect()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("link", &self.link)
            .field("ready", &self.ready())
            .finish_non_exhaustive()
    }
}

// === impl TypeState ===

impl TypeState {
    /// `None` where nothing is wanted yet.
    fn first_request(&self, node: &Node) -> Option<DeltaDiscoveryRequest> {
        // No names at all mean everything; the star taken and given back in one request means nothing yet.
        let (subscribe, unsubscribe) = match self.mode {
            Mode::Wildcard => (Vec::new(), Vec::new()),
            Mode::OnDemand => (vec!["*".to_owned()], vec!["*".to_owned()]),
            Mode::Followed if self.followed.is_empty() => return None,
            Mode::Followed => (self.followed.iter().map(ToString::to_string).collect(), Vec::new()),
        };
        Some(DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: self.type_url.to_string(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: self
                .held
                .iter()
                .map(|(name, version)| (name.to_string(), version.to_string()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        })
    }

    fn follow(&mut self, sink: &mut dyn Sink) -> Option<DeltaDiscoveryRequest> {
        let wanted: BTreeSet<Box<str>> = sink.followed(&self.type_url)?.into_iter().map(Into::into).collect();
        let names = |names: std::collections::btree_set::Difference<'_, Box<str>>| -> Vec<String> {
            names.map(ToString::to_string).collect()
        };
        let subscribe = names(wanted.difference(&self.followed));
        let unsubscribe = names(self.followed.difference(&wanted));
        self.followed = wanted;
        // The server says nothing of what is no longer asked for.
        for name in &unsubscribe {
            if self.held.remove(name.as_str()).is_some() {
                sink.remove(&self.type_url, name);
            }
        }
        let is_request = !subscribe.is_empty() || !unsubscribe.is_empty();
        is_request.then(|| DeltaDiscoveryRequest {
            type_url: self.type_url.to_string(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Everything demanded before, once more: a new stream knows nothing of it.
    fn renewed_demands(&self) -> Option<DeltaDiscoveryRequest> {
        (!self.demands.is_empty()).then(|| DeltaDiscoveryRequest {
            type_url: self.type_url.to_string(),
            resource_names_subscribe: self.demands.keys().map(ToString::to_string).collect(),
            ..DeltaDiscoveryRequest::default()
        })
    }

    fn apply(&mut self, response: &DeltaDiscoveryResponse, sink: &mut dyn Sink) -> (Outcome, Option<Status>) {
        let mut reasons = Reasons::default();
        let mut upserts = 0;
        for resource in &response.resources {
            match self.upsert(resource, sink) {
                Ok(()) => {
                    upserts += 1;
                    self.found(resource, sink);
                }
                Err(reason) => reasons.add(&resource.name, &reason),
            }
        }
        let mut removals = 0;
        for name in &response.removed_resources {
            // Servers also name what they never sent.
            if self.held.remove(name.as_str()).is_some() {
                sink.remove(&self.type_url, name);
                removals += 1;
            }
            if let Some(demand) = self.demands.get_mut(name.as_str()) {
                *demand = DemandState::Absent;
                sink.answered(&self.type_url, name);
            }
        }
        if reasons.count > 0 {
            let reason = reasons.finish();
            let status = Status { code: INVALID_ARGUMENT, message: reason.clone(), details: Vec::new() };
            return (Outcome::Rejected { reason }, Some(status));
        }
        self.accepted_once = true;
        (Outcome::Accepted { upserts, removals }, None)
    }

    /// What was absent has come to be: a demand for it is no longer answered with "absent". Only for what was accepted:
    /// a resource that was refused is no answer.
    fn found(&mut self, resource: &Resource, sink: &mut dyn Sink) {
        for key in std::iter::once(&resource.name).chain(&resource.aliases) {
            if let Some(demand) = self.demands.get_mut(key.as_str()) {
                *demand = DemandState::Asked;
                sink.answered(&self.type_url, key);
            }
        }
    }

    fn upsert(&mut self, resource: &Resource, sink: &mut dyn Sink) -> Result<(), String> {
        let body = resource.resource.as_ref().ok_or("the resource has no body")?;
        if body.type_url != *self.type_url {
            return Err(format!(
                "the body is of type {:?} in a response for {}",
                body.type_url, self.type_url
            ));
        }
        sink.upsert(&self.type_url, &resource.name, body)?;
        let version = Version::from(resource.version.as_str());
        if let Some(held) = self.held.get_mut(resource.name.as_str()) {
            *held = version;
            return Ok(());
        }
        let name = sink.shared_name(&self.type_url, &resource.name);
        self.held.insert(name.unwrap_or_else(|| resource.name.as_str().into()), version);
        Ok(())
    }
}

/// The text of a NACK: `name: reason; name: reason`.
#[derive(Default)]
struct Reasons {
    text: String,
    count: usize,
    left_out: usize,
}

impl Reasons {
    fn add(&mut self, name: &str, reason: &str) {
        self.count += 1;
        if self.text.len() + name.len() + reason.len() > REASONS_BYTES_MAX {
            self.left_out += 1;
            return;
        }
        let separator = if self.text.is_empty() { "" } else { "; " };
        self.text = format!("{}{separator}{name}: {reason}", std::mem::take(&mut self.text));
    }

    fn finish(mut self) -> String {
        if self.left_out > 0 {
            self.text = format!("{}; and {} more", self.text, self.left_out);
        }
        self.text
    }
}
