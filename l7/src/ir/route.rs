//! Routes: which requests go where.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use model::{NamespacedHostname, SourceRef};

use super::{BackendTls, Fault, Filters, HashOn, Labels, Retry, RetryBudget, SessionPersistence};

/// One HTTPRoute, GRPCRoute or VirtualService, seen from one parent Service (a route with several parents yields
/// several).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HttpRoute {
    #[serde(default, skip_serializing_if = "RouteKind::is_http")]
    pub kind: RouteKind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// The Service whose traffic the route governs.
    pub parent: NamespacedHostname,
    /// `parentRef.port`; `None` governs every port of the Service.
    pub parent_port: Option<u16>,
    /// Set when the route lives in another namespace than its parent: it then governs only clients of this
    /// namespace (a consumer route).
    pub consumer_namespace: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "RouteOrder::is_ranked")]
    pub order: RouteOrder,
    /// Seconds since the epoch; older routes win ties. 0 where unknown.
    pub created: u64,
    pub hostnames: Vec<Arc<str>>,
    pub rules: Vec<HttpRule>,
    pub source: Option<SourceRef>,
}

/// What a route was written as. Both kinds match requests alike; two routes of different kinds may bear one name.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
pub enum RouteKind {
    #[default]
    Http,
    Grpc,
    /// A VirtualService's.
    Virtual,
}

impl RouteKind {
    pub fn is_http(&self) -> bool {
        *self == Self::Http
    }
}

/// Which of several matches that hold counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum RouteOrder {
    /// The most specific one (Gateway API).
    #[default]
    Ranked,
    /// The first one as written (VirtualService). Looked at before all routes of the other kind.
    Listed,
}

impl RouteOrder {
    pub fn is_ranked(&self) -> bool {
        *self == Self::Ranked
    }
}

#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpRule {
    pub name: Option<Arc<str>>,
    /// ORed, each ranked alone. A rule written without matches carries one match of prefix `/`.
    pub matches: Vec<HttpMatch>,
    /// Applied before those of the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Arc<Filters>>,
    pub backends: Vec<Backend>,
    #[serde(default, skip_serializing_if = "Timeouts::is_off")]
    pub timeouts: Timeouts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Arc<Retry>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Arc<SessionPersistence>>,
    /// What requests are hashed by towards backends that are chosen by hash and do not say it themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hash: Vec<HashOn>,
    /// Made on purpose, to see what clients do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Arc<Fault>>,
    /// Answers in the place of a backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<Arc<DirectResponse>>,
}

/// An answer that is written in the route (`HTTPDirectResponse`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectResponse {
    pub status: u16,
    pub body: Arc<str>,
}

/// How long a request may take, in milliseconds; `None` for as long as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// From the request's head to the end of the response.
    pub request_ms: Option<NonZeroU32>,
    /// The same for each try at a backend.
    pub backend_request_ms: Option<NonZeroU32>,
}

impl Timeouts {
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// The limit on a request that is tried once.
    pub fn limit(&self) -> Option<Duration> {
        self.whole().into_iter().chain(self.per_try()).min()
    }

    /// The limit on a request with all its tries.
    pub fn whole(&self) -> Option<Duration> {
        self.request_ms.map(duration)
    }

    /// The limit on each try.
    pub fn per_try(&self) -> Option<Duration> {
        self.backend_request_ms.map(duration)
    }
}

fn duration(milliseconds: NonZeroU32) -> Duration {
    Duration::from_millis(milliseconds.get().into())
}

/// All conditions must hold.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub struct HttpMatch {
    pub path: PathMatch,
    pub method: Option<Arc<str>>,
    pub headers: Vec<ValueMatch>,
    pub query: Vec<ValueMatch>,
    /// None of these may hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without_headers: Vec<ValueMatch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceMatch>,
}

/// Whose requests a match takes.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceMatch {
    pub namespace: Option<Arc<str>>,
    /// All of them the client must have.
    pub labels: Labels,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum PathMatch {
    Exact(Arc<str>),
    /// Compares path elements: `/v1` takes `/v1` and `/v1/x`, not `/v10`.
    Prefix(Arc<str>),
    /// Compares letters: `/v1` takes `/v10`, too.
    TextPrefix(Arc<str>),
    /// Anchored at both ends.
    Regex(Arc<str>),
    /// Two elements, the second of which is this: a gRPC method of whatever service.
    GrpcMethod(Arc<str>),
}

impl Default for PathMatch {
    fn default() -> Self {
        Self::Prefix(Arc::from("/"))
    }
}

/// A condition on a header or a query parameter. Header names are lower case; `:authority`, `:method` and `:scheme` are
/// what HTTP/2 calls so.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ValueMatch {
    pub name: Arc<str>,
    pub value: ValueTest,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ValueTest {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Any value.
    Present,
    /// Anchored at both ends.
    Regex(Arc<str>),
}

/// A weighted backend. An invalid one keeps its share of the traffic and answers 500 to it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    pub target: BackendTarget,
    /// Of the target's endpoints only those of this subset, as the target's traffic policy names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<Arc<str>>,
    pub weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Arc<Filters>>,
    /// Connections to it are TLS within whatever the mesh carries them in; `None`: as the client sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Arc<BackendTls>>,
    /// Bounds the further tries of all requests to the target together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
    /// Of requests whose rule has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Arc<SessionPersistence>>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum BackendTarget {
    Service {
        service: NamespacedHostname,
        port: u16,
    },
    /// Does not exist, may not be referred to, or is of an unknown kind: the text says which.
    Invalid(Arc<str>),
}
