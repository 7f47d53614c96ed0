//! The keys of `when` and the spellings of values, as attributes and tests.

use std::sync::Arc;

use ipnet::IpNet;
use l7::ir::{Attribute, Test};

use super::super::yaml::shortened;

/// Why a key of `when` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::kube) enum AttributeError {
    #[error("the attribute {0:?} is not known")]
    Unknown(String),
    #[error("the attribute {0:?} needs a name in brackets")]
    Brackets(String),
    #[error("the attribute {0:?} is expressed by {1}")]
    Replaced(String, &'static str),
}

pub(in crate::kube) fn parse_key(key: &str) -> Result<Attribute, AttributeError> {
    let shown = || shortened(key);
    if let Some(rest) = key.strip_prefix("request.headers") {
        let name = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let name = name.filter(|name| !name.is_empty() && !name.contains(['[', ']']));
        let name = name.ok_or_else(|| AttributeError::Brackets(shown()))?;
        return Ok(Attribute::RequestHeader(Arc::from(name.to_ascii_lowercase())));
    }
    if let Some(rest) = key.strip_prefix("request.auth.claims") {
        return claim_path(rest)
            .map(Attribute::RequestClaim)
            .ok_or_else(|| AttributeError::Brackets(shown()));
    }
    Ok(match key {
        "source.ip" => Attribute::SourceIp,
        "source.namespace" => Attribute::SourceNamespace,
        "source.principal" => Attribute::SourcePrincipal,
        "source.serviceAccount" => Attribute::SourceServiceAccount,
        "source.trustDomain" => Attribute::SourceTrustDomain,
        "remote.ip" => Attribute::RemoteIp,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::DestinationPort,
        "connection.sni" => Attribute::ConnectionSni,
        "request.auth.principal" => Attribute::RequestPrincipal,
        "request.auth.audiences" => Attribute::RequestAudiences,
        "request.auth.presenter" => Attribute::RequestPresenter,
        _ if key.starts_with("destination.labels") => {
            return Err(AttributeError::Replaced(shown(), "the selector of the policy"));
        }
        "destination.name" | "destination.namespace" | "destination.user" => {
            return Err(AttributeError::Replaced(shown(), "the selector and the namespace of the policy"));
        }
        _ if key.starts_with("experimental.envoy.filters.") => Attribute::FilterMetadata(Arc::from(key)),
        _ => return Err(AttributeError::Unknown(shown())),
    })
}

/// `[a][b]` to its parts.
fn claim_path(text: &str) -> Option<Vec<Arc<str>>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let parts: Vec<Arc<str>> = inner.split("][").map(Arc::from).collect();
    let is_good = |part: &Arc<str>| !part.is_empty() && !part.contains(['[', ']']);
    parts.iter().all(is_good).then_some(parts)
}

/// Exact, `prefix*`, `*suffix`, or `*` for presence. A star elsewhere stands for itself; of two, the leading one
/// counts.
pub(super) fn text_test(text: &str) -> Test {
    if text == "*" {
        Test::Present
    } else if let Some(suffix) = text.strip_prefix('*') {
        Test::Suffix(Arc::from(suffix))
    } else if let Some(prefix) = text.strip_suffix('*') {
        Test::Prefix(Arc::from(prefix))
    } else {
        Test::Exact(Arc::from(text))
    }
}

/// Namespaces take a star anywhere. A single one at an end stays in the form that every data plane knows, and text
/// of nothing but stars means that there is a namespace at all.
pub(super) fn namespace_test(text: &str) -> Test {
    match text.matches('*').count() {
        stars if stars == text.len() => Test::Present,
        0 => Test::Exact(Arc::from(text)),
        1 if text.starts_with('*') || text.ends_with('*') => text_test(text),
        _ => Test::Glob(Arc::from(text)),
    }
}

pub(super) fn path_test(text: &str) -> Test {
    if l7::template::Template::is_template(text) { Test::Template(Arc::from(text)) } else { text_test(text) }
}

/// Short names belong to the namespace of the policy.
pub(super) fn service_account_test(text: &str, namespace: &str) -> Test {
    if text.contains('/') {
        Test::Exact(Arc::from(text))
    } else {
        Test::Exact(Arc::from(format!("{namespace}/{text}")))
    }
}

pub(super) fn network_test(text: &str) -> Option<Test> {
    parse_network(text).map(Test::Ip)
}

/// An address, or a block whose host bits are cleared: `10.0.0.1/8` is `10.0.0.0/8`.
pub(in crate::kube) fn parse_network(text: &str) -> Option<IpNet> {
    if text.contains('/') {
        return text.parse::<IpNet>().ok().map(|network| network.trunc());
    }
    text.parse::<std::net::IpAddr>().ok().map(IpNet::from)
}

pub(super) fn port_test(text: &str) -> Option<Test> {
    text.parse().ok().map(Test::Port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_attributes() {
        let claim = |parts: &[&str]| Attribute::RequestClaim(parts.iter().copied().map(Arc::from).collect());
        for (key, attribute) in [
            ("request.headers[X-Name]", Attribute::RequestHeader(Arc::from("x-name"))),
            ("request.auth.claims[a]", claim(&["a"])),
            ("request.auth.claims[a][b.c]", claim(&["a", "b.c"])),
            ("destination.port", Attribute::DestinationPort),
        ] {
            assert_eq!(parse_key(key), Ok(attribute), "{key}");
        }
        for key in [
            "request.headers",
            "request.headers[]",
            "request.headers[a][b]",
            "request.headersx[a]",
            "request.auth.claims",
            "request.auth.claims[a]b]",
            "request.auth.claims[a]x[b]",
            "request.auth.claims[][b]",
        ] {
            assert!(matches!(parse_key(key), Err(AttributeError::Brackets(_))), "{key}");
        }
    }

    #[test]
    fn stars_mean_what_their_place_says() {
        let text = |text: &str| Arc::<str>::from(text);
        assert_eq!(text_test("*"), Test::Present);
        assert_eq!(text_test("a*"), Test::Prefix(text("a")));
        assert_eq!(text_test("*a"), Test::Suffix(text("a")));
        assert_eq!(text_test("*a*"), Test::Suffix(text("a*")));
        assert_eq!(text_test("a*b"), Test::Exact(text("a*b")));
        assert_eq!(namespace_test("a*b"), Test::Glob(text("a*b")));
        assert_eq!(namespace_test("*a*"), Test::Glob(text("*a*")));
        assert_eq!(namespace_test("a*"), Test::Prefix(text("a")));
        assert_eq!(namespace_test("**"), Test::Present);
        assert_eq!(path_test("/a/{*}"), Test::Template(text("/a/{*}")));
        assert_eq!(service_account_test("a", "ns"), Test::Exact(text("ns/a")));
    }
}
