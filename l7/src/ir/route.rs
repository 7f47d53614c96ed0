//! Routes: which requests go where.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use model::{NamespacedHostname, SourceRef};

use super::{Fault, Filters, Retry, SessionPersistence};

/// One HTTPRoute, seen from one parent Service (a route with several parents yields several).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HttpRoute {
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

    /// The limit on a request that is tried once, which is all that is done.
    pub fn limit(&self) -> Option<Duration> {
        let limits = self.request_ms.into_iter().chain(self.backend_request_ms);
        limits.min().map(|limit| Duration::from_millis(limit.get().into()))
    }
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
