//! External authorizers: services that are asked about requests (`extensionProviders` of MeshConfig).

use std::num::NonZeroU32;
use std::sync::Arc;

use model::NamespacedHostname;

use super::HeaderValue;

/// A service that decides about requests, and how it is asked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorizer {
    /// By which policies name it.
    pub name: Arc<str>,
    pub service: NamespacedHostname,
    pub port: u16,
    pub timeout_ms: NonZeroU32,
    /// A request passes although nobody could be asked.
    pub fail_open: bool,
    /// The answer where nobody could be asked and `fail_open` is off.
    pub status_on_error: u16,
    /// The question contains the request's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<CheckBody>,
    pub protocol: CheckProtocol,
}

/// How much of a body goes into the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckBody {
    pub bytes_max: NonZeroU32,
    /// Of a longer body the beginning is shown; else the request is answered with 413, `fail_open` or not.
    pub allow_partial: bool,
    /// Over gRPC: as bytes, and not as text.
    pub as_bytes: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum CheckProtocol {
    Http(HttpCheck),
    /// `envoy.service.auth.v3.Authorization`.
    Grpc,
}

/// What goes to and fro where the question is an HTTP request.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpCheck {
    /// Before the path of the request. Empty, or begins with a slash.
    pub path_prefix: Arc<str>,
    /// Headers of the request that are shown beside those that always are.
    pub request_headers: Vec<NameTest>,
    /// In the place of headers of the same name.
    pub additional_headers: Vec<HeaderValue>,
    /// Headers of a 200 that the backend gets, in the place of the request's own.
    pub to_upstream_on_allow: Vec<NameTest>,
    /// Headers of a denial that the client gets; empty: all.
    pub to_downstream_on_deny: Vec<NameTest>,
    /// Headers of a 200 that the client gets with the response.
    pub to_downstream_on_allow: Vec<NameTest>,
}

/// A test on the name of a header, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum NameTest {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
}

impl NameTest {
    /// `name` in any case.
    pub fn holds(&self, name: &str) -> bool {
        let same = |part: Option<&str>, own: &str| part.is_some_and(|part| part.eq_ignore_ascii_case(own));
        match self {
            Self::Exact(own) => name.eq_ignore_ascii_case(own),
            Self::Prefix(own) => same(name.get(..own.len()), own),
            Self::Suffix(own) => {
                same(name.len().checked_sub(own.len()).and_then(|start| name.get(start..)), own)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_case() {
        let prefix = NameTest::Prefix("x-a".into());
        assert!(prefix.holds("X-Auth") && prefix.holds("x-a") && !prefix.holds("x-"));
        let suffix = NameTest::Suffix("-id".into());
        assert!(suffix.holds("User-ID") && !suffix.holds("id") && !suffix.holds("\u{e9}d"));
        assert!(NameTest::Exact("cookie".into()).holds("Cookie"));
    }
}
