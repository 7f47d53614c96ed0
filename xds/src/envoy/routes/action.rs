//! What a route does with a request: give it to a backend, send its client elsewhere, or answer it.

use std::num::NonZeroU32;
use std::sync::Arc;

use l7::ir::{
    Backend, BackendTarget, DirectResponse, Filters, HttpRule, Mirror, PathRewrite, Redirect, Scheme,
    Timeouts, UrlAction, UrlRewrite,
};

use super::{filters, hash, resilience};
use crate::envoy::Refusal;
use crate::envoy::names::ClusterName;
use crate::envoy::refusal::Within;
use crate::envoy::text;
use crate::proto::waypoint::data_source::Specifier as Source;
use crate::proto::waypoint::redirect_action::{PathSpecifier as RedirectPath, ResponseCode, SchemeSpecifier};
use crate::proto::waypoint::route_action::ClusterNotFound;
use crate::proto::waypoint::route_match::PathSpecifier;
use crate::proto::waypoint::weighted_clusters::ClusterWeight;
use crate::proto::waypoint::{
    DirectResponseAction, RedirectAction, RegexSubstitution, RequestMirrorPolicy, RouteAction, RouteMatch,
};

/// istiod's name for a backend that does not exist or may not be referred to.
const UNKNOWN_SERVICE: &str = "UnknownService";
/// Envoy's limit on a request where the route has none (`RouteAction.timeout`).
const TIMEOUT_DEFAULT_MS: NonZeroU32 = NonZeroU32::new(15_000).unwrap();

pub(super) fn forward(
    action: &RouteAction,
    wire: &RouteMatch,
    rule: &mut HttpRule,
    filters: &mut Filters,
) -> Result<(), Refusal> {
    if !matches!(
        ClusterNotFound::try_from(action.cluster_not_found_response_code),
        Ok(ClusterNotFound::ServiceUnavailable | ClusterNotFound::InternalServerError)
    ) {
        let reason = format!("{} is not supported", action.cluster_not_found_response_code);
        return Err(Refusal::at("cluster_not_found_response_code", reason));
    }
    for (index, policy) in action.hash_policy.iter().enumerate() {
        rule.hash.push(hash::on(policy).within_item("hash_policy", index)?);
    }
    if !action.upgrade_configs.is_empty() {
        return Err(Refusal::at("upgrade_configs", "is not supported"));
    }
    rule.backends = backends(action)?;
    let path = path_rewrite(action, wire)?;
    let hostname = hostname(&action.host_rewrite_literal);
    if path.is_some() || hostname.is_some() {
        filters.url = Some(UrlAction::Rewrite(UrlRewrite { hostname, path }));
    }
    for (index, policy) in action.request_mirror_policies.iter().enumerate() {
        filters.mirrors.push(mirror(policy).within_item("request_mirror_policies", index)?);
    }
    let request_ms = match &action.timeout {
        Some(timeout) => text::milliseconds(timeout).within("timeout")?,
        None => Some(TIMEOUT_DEFAULT_MS),
    };
    rule.timeouts = Timeouts { request_ms, backend_request_ms: None };
    if let Some(policy) = &action.retry_policy {
        rule.timeouts.backend_request_ms = match &policy.per_try_timeout {
            Some(timeout) => text::milliseconds(timeout).within("retry_policy.per_try_timeout")?,
            None => None,
        };
        rule.retry = resilience::retry(policy).within("retry_policy")?.map(Arc::new);
    }
    Ok(())
}

fn backends(action: &RouteAction) -> Result<Vec<Backend>, Refusal> {
    match (&*action.cluster, &action.weighted_clusters) {
        ("", Some(weighted)) => {
            let clusters = weighted.clusters.iter().enumerate();
            let backend = |(index, cluster)| {
                weighted_backend(cluster).within_item("clusters", index).within("weighted_clusters")
            };
            clusters.map(backend).collect()
        }
        (cluster, None) if !cluster.is_empty() => {
            let (target, subset) = target(cluster).within("cluster")?;
            Ok(vec![Backend {
                target,
                subset,
                weight: 1,
                tls: None,
                filters: None,
                retry_budget: None,
                session: None,
            }])
        }
        _ => Err(Refusal::new("either a cluster or weighted clusters must be given")),
    }
}

fn weighted_backend(cluster: &ClusterWeight) -> Result<Backend, Refusal> {
    let (target, subset) = target(&cluster.name).within("name")?;
    let mut filters = filters::of_cluster(cluster)?;
    if let Some(hostname) = hostname(&cluster.host_rewrite_literal) {
        filters.url = Some(UrlAction::Rewrite(UrlRewrite { hostname: Some(hostname), path: None }));
    }
    let filters = Some(filters).filter(|it| *it != Filters::default()).map(Arc::new);
    let weight = cluster.weight.unwrap_or(0);
    Ok(Backend { target, subset, weight, tls: None, filters, retry_budget: None, session: None })
}

/// The port of a service, or of a subset of it, that a cluster stands for.
pub(in crate::envoy) fn target(cluster: &str) -> Result<(BackendTarget, Option<Arc<str>>), Refusal> {
    if cluster == UNKNOWN_SERVICE {
        let reason = "the backend does not exist or may not be referred to".into();
        return Ok((BackendTarget::Invalid(reason), None));
    }
    let name = ClusterName::parse(cluster)
        .ok_or_else(|| Refusal::new(format!("{cluster:?} names no port of a service")))?;
    let subset = Some(Arc::clone(&name.subset)).filter(|subset| !subset.is_empty());
    Ok((BackendTarget::Service { service: name.service(), port: name.port }, subset))
}

fn hostname(literal: &str) -> Option<Arc<str>> {
    (!literal.is_empty()).then(|| literal.into())
}

fn mirror(policy: &RequestMirrorPolicy) -> Result<Mirror, Refusal> {
    let (target, subset) = target(&policy.cluster).within("cluster")?;
    let share = match &policy.runtime_fraction {
        Some(fraction) => {
            text::share(fraction.default_value.as_ref()).within("runtime_fraction.default_value")?
        }
        None => l7::ir::Fraction::ALL,
    };
    Ok(Mirror { target, subset, share, tls: None })
}

fn path_rewrite(action: &RouteAction, wire: &RouteMatch) -> Result<Option<PathRewrite>, Refusal> {
    match (&*action.prefix_rewrite, &action.regex_rewrite) {
        ("", None) => Ok(None),
        (prefix, None) => Ok(Some(in_place_of_match(prefix, wire))),
        ("", Some(regex)) => substitution(regex, wire).map(Some).within("regex_rewrite"),
        _ => Err(Refusal::at("regex_rewrite", "is not supported beside prefix_rewrite")),
    }
}

/// What matched is replaced: a prefix, or the whole of an exact path.
fn in_place_of_match(replacement: &str, wire: &RouteMatch) -> PathRewrite {
    match &wire.path_specifier {
        Some(PathSpecifier::PathSeparatedPrefix(_)) => PathRewrite::Prefix(replacement.into()),
        Some(PathSpecifier::Path(_)) => PathRewrite::Full(replacement.into()),
        _ => PathRewrite::TextPrefix(replacement.into()),
    }
}

/// istiod writes two kinds of expressions: one for the whole path, and one that takes a prefix away.
fn substitution(regex: &RegexSubstitution, wire: &RouteMatch) -> Result<PathRewrite, Refusal> {
    let pattern = regex.pattern.as_ref().map_or("", |pattern| &pattern.regex);
    let own_prefix = match &wire.path_specifier {
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => Some(prefix),
        _ => None,
    };
    if pattern == "/.*" && !regex.substitution.contains('\\') {
        return Ok(PathRewrite::Full(regex.substitution.as_str().into()));
    }
    let without_prefix = pattern.strip_prefix('^').and_then(|rest| rest.strip_suffix("(/?)(.*)"));
    let is_own = |prefix: &str| own_prefix.is_some_and(|own| prefix.replace('\\', "") == *own);
    if without_prefix.is_some_and(is_own) && regex.substitution == r"/\2" {
        return Ok(PathRewrite::Prefix("/".into()));
    }
    Err(Refusal::at("pattern", format!("regular expression {pattern:?} is not supported here")))
}

pub(super) fn redirect(action: &RedirectAction, wire: &RouteMatch, port: u16) -> Result<UrlAction, Refusal> {
    let scheme = match &action.scheme_specifier {
        None | Some(SchemeSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeSpecifier::HttpsRedirect(true)) => Some(Scheme::Https),
        Some(SchemeSpecifier::SchemeRedirect(scheme)) => match scheme.as_str() {
            "" => None,
            "http" => Some(Scheme::Http),
            "https" => Some(Scheme::Https),
            other => return Err(Refusal::at("scheme_redirect", format!("{other:?} is not supported"))),
        },
    };
    let status = match ResponseCode::try_from(action.response_code) {
        Ok(ResponseCode::MovedPermanently) => 301,
        Ok(ResponseCode::Found) => 302,
        Ok(ResponseCode::SeeOther) => 303,
        Ok(ResponseCode::TemporaryRedirect) => 307,
        Ok(ResponseCode::PermanentRedirect) => 308,
        Err(_) => {
            return Err(Refusal::at("response_code", format!("{} is not supported", action.response_code)));
        }
    };
    let path = match &action.path_specifier {
        None => None,
        Some(RedirectPath::PathRedirect(path)) if path.is_empty() => None,
        Some(RedirectPath::PathRedirect(path)) => Some(PathRewrite::Full(path.as_str().into())),
        Some(RedirectPath::PrefixRewrite(prefix)) => Some(in_place_of_match(prefix, wire)),
    };
    let hostname = hostname(&action.host_redirect);
    let written = u16::try_from(action.port_redirect);
    let written = written.map_err(|_| Refusal::at("port_redirect", format!("{}", action.port_redirect)))?;
    let port = match written {
        // Envoy leaves the port out of a new host; the IR without port and scheme means the one that was dialled.
        0 if scheme.is_none() && hostname.is_some() && port != 80 => Some(80),
        0 => None,
        port => Some(port),
    };
    Ok(UrlAction::Redirect(Redirect { scheme, hostname, port, path, status }))
}

pub(super) fn direct(action: &DirectResponseAction) -> Result<DirectResponse, Refusal> {
    let status = u16::try_from(action.status).ok().filter(|status| (200..600).contains(status));
    let status =
        status.ok_or_else(|| Refusal::at("status", format!("{} is not supported", action.status)))?;
    let body = match action.body.as_ref().and_then(|body| body.specifier.as_ref()) {
        None => "".into(),
        Some(Source::InlineString(text)) => text.as_str().into(),
        Some(Source::InlineBytes(bytes)) => {
            let text = std::str::from_utf8(bytes);
            text.map_err(|error| Refusal::at("body.inline_bytes", error.to_string()))?.into()
        }
    };
    Ok(DirectResponse { status, body })
}
