//! Filters: what is done to requests and responses on the way.

use std::sync::Arc;

use super::{BackendTarget, BackendTls, Fraction};

/// What is done to the requests that a rule or a backend takes, and to their responses. Executed by
/// [`crate::filter`]; each kind occurs at most once, so the order in which they were written does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filters {
    #[serde(default, skip_serializing_if = "HeaderEdits::is_empty")]
    pub request_headers: HeaderEdits,
    #[serde(default, skip_serializing_if = "HeaderEdits::is_empty")]
    pub response_headers: HeaderEdits,
    #[serde(default, skip_serializing_if = "QueryEdits::is_empty")]
    pub query: QueryEdits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<UrlAction>,
    /// Each gets a copy of the request, and its answer is thrown away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirror>,
    /// Of a rule it is asked before a backend is chosen; then, if the request goes on, that of the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Arc<Cors>>,
}

/// Removed first, then set, then added.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderEdits {
    pub remove: Vec<Arc<str>>,
    /// In place of every value that the header had.
    pub set: Vec<HeaderValue>,
    /// After the values that the header had.
    pub add: Vec<HeaderValue>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderValue {
    pub name: Arc<str>,
    pub value: Arc<str>,
}

/// What is done to the parameters of a query, which are compared as they are written: removed first, then set.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryEdits {
    pub remove: Vec<Arc<str>>,
    /// Name and value, in place of every parameter of the name.
    pub set: Vec<(Arc<str>, Arc<str>)>,
}

/// A request is either forwarded to another place or sent there by its client.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum UrlAction {
    Rewrite(UrlRewrite),
    Redirect(Redirect),
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UrlRewrite {
    /// Becomes the authority, without a port.
    pub hostname: Option<Arc<str>>,
    pub path: Option<PathRewrite>,
}

impl QueryEdits {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty()
    }
}

/// The query is kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum PathRewrite {
    Full(Arc<str>),
    /// In place of the prefix that matched; only for rules whose matches all are prefixes. Empty or starts with a
    /// slash.
    Prefix(Arc<str>),
    /// In place of the letters that matched; only for rules whose matches all are prefixes of either kind.
    TextPrefix(Arc<str>),
}

/// What is `None` stays as it is in the request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    pub scheme: Option<Scheme>,
    pub hostname: Option<Arc<str>>,
    /// `None`: the well-known port of `scheme`, or without one the port that the client dialled.
    pub port: Option<u16>,
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Scheme {
    Http,
    Https,
}

impl HeaderEdits {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

// === Mirrors ===

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    pub target: BackendTarget,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<Arc<str>>,
    pub share: Fraction,
    /// As [`super::Backend::tls`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Arc<BackendTls>>,
}

// === CORS ===

/// Cross-origin resource sharing (Fetch standard; `HTTPCORSFilter`, `CorsPolicy`). Preflight requests are answered, or
/// forwarded where `forward_unmatched_preflights` says so.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cors {
    pub origins: Vec<OriginMatch>,
    /// `*` allows all.
    pub methods: Vec<Arc<str>>,
    /// `*` allows all.
    pub headers: Vec<Arc<str>>,
    pub expose_headers: Vec<Arc<str>>,
    pub credentials: bool,
    pub max_age_s: Option<u32>,
    /// A preflight of an origin that is not allowed goes to the backend; else it is answered without CORS headers.
    #[serde(default)]
    pub forward_unmatched_preflights: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum OriginMatch {
    Any,
    Exact(Arc<str>),
    Prefix(Arc<str>),
    /// `*` anywhere (`https://*.example.com`).
    Glob(Arc<str>),
    /// Anchored at both ends.
    Regex(Arc<str>),
}
