//! Routes: which requests go where.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use model::{NamespacedHostname, SourceRef};

use super::{BackendTls, Fault, Filters, Retry, RetryBudget, SessionPersistence};

/// One HTTPRoute or GRPCRoute, seen from one parent Service (a route with several parents yields several).
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
}

impl RouteKind {
    pub fn is_http(&self) -> bool {
        *self == Self::Http
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
    /// Made on purpose, to see what clients do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Arc<Fault>>,
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
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HttpMatch {
    pub path: PathMatch,
    pub method: Option<Arc<str>>,
    pub headers: Vec<ValueMatch>,
    pub query: Vec<ValueMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum PathMatch {
    Exact(Arc<str>),
    /// Compares path elements: `/v1` takes `/v1` and `/v1/x`, not `/v10`.
    Prefix(Arc<str>),
    /// Anchored at both ends.
    Regex(Arc<str>),
    /// Two elements, the second of which is this: a gRPC method of whatever service.
    GrpcMethod(Arc<str>),
}

/// A condition on a header or a query parameter. Header names are lower case.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ValueMatch {
    pub name: Arc<str>,
    pub value: ValueTest,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ValueTest {
    Exact(Arc<str>),
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
