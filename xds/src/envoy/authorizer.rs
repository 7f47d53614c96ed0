//! The filter that asks an external authorizer (`extensionProviders` of MeshConfig, as istiod writes them for Envoy).

use std::num::NonZeroU32;
use std::sync::Arc;

use l7::ir::{Authorizer, CheckBody, CheckProtocol, HeaderValue, HttpCheck, NameTest};

use super::Refusal;
use super::names::ClusterName;
use super::rbac::ASKED_PREFIX;
use super::refusal::Within;
use super::text::{self, lower};
use crate::proto::waypoint::string_matcher::Pattern;
use crate::proto::waypoint::value_matcher::Pattern as ValuePattern;
use crate::proto::waypoint::{
    AuthzBuffer, AuthzHttpService, ExtAuthz, GrpcService, ListStringMatcher, MetadataMatcher, StringMatcher,
};

/// Rules that an authorizer waits for have names that begin so, and go on with the name of the authorizer.
const RULE_PREFIX: &str = "istio-ext-authz";
const RBAC: &str = "envoy.filters.http.rbac";
/// Envoy's own limit where none is given (`ext_authz.v3.ExtAuthz.grpc_service`).
const TIMEOUT_DEFAULT_MS: NonZeroU32 = NonZeroU32::new(200).unwrap();
const STATUS_DEFAULT: u16 = 403;

pub(super) fn authorizer(filter: &ExtAuthz) -> Result<Authorizer, Refusal> {
    let Some(condition) = &filter.filter_enabled_metadata else {
        return Err(Refusal::at("filter_enabled_metadata", "there is none"));
    };
    let name = name(condition).within("filter_enabled_metadata")?;
    let status = match &filter.status_on_error {
        Some(status) => u16::try_from(status.code).ok().filter(|code| (200..600).contains(code)),
        None => Some(STATUS_DEFAULT),
    };
    let status_on_error = status.ok_or_else(|| Refusal::at("status_on_error.code", "is out of range"))?;
    let (cluster, timeout_ms, protocol) = match (&filter.grpc_service, &filter.http_service) {
        (Some(service), None) if filter.allowed_headers.is_none() => grpc(service).within("grpc_service")?,
        (Some(_), None) => return Err(Refusal::at("allowed_headers", "is not supported over gRPC")),
        (None, Some(service)) => http(service, filter.allowed_headers.as_ref()).within("http_service")?,
        _ => return Err(Refusal::new("either a gRPC or an HTTP service must be given")),
    };
    Ok(Authorizer {
        name,
        service: cluster.service(),
        port: cluster.port,
        timeout_ms,
        fail_open: filter.failure_mode_allow,
        status_on_error,
        body: filter.with_request_body.map(body).transpose().within("with_request_body")?,
        protocol,
    })
}

/// The name of the authorizer, from the condition under which it is asked: that one of its rules holds.
fn name(condition: &MetadataMatcher) -> Result<Arc<str>, Refusal> {
    let pattern = condition.value.as_ref().and_then(|value| value.pattern.as_ref());
    let Some(ValuePattern::StringMatch(StringMatcher { pattern: Some(Pattern::Prefix(prefix)), .. })) =
        pattern
    else {
        return Err(Refusal::at("value", "only a prefix is supported"));
    };
    let key = match &condition.path[..] {
        [segment] => segment.key.as_str(),
        _ => return Err(Refusal::at("path", "only one key is supported")),
    };
    let name = prefix.strip_prefix(RULE_PREFIX).filter(|_| {
        condition.filter == RBAC
            && key.starts_with(ASKED_PREFIX)
            && key.ends_with("shadow_effective_policy_id")
    });
    let name = name.filter(|_| !condition.invert).ok_or_else(|| {
        Refusal::new("only that a rule of an external authorizer holds is supported as a condition")
    })?;
    Ok(name.trim_matches('-').into())
}

fn cluster(name: &str) -> Result<ClusterName, Refusal> {
    let cluster = ClusterName::parse(name).filter(|cluster| cluster.subset.is_empty());
    cluster.ok_or_else(|| Refusal::new(format!("{name:?} names no port of a service")))
}

type Asked = (ClusterName, NonZeroU32, CheckProtocol);

fn grpc(service: &GrpcService) -> Result<Asked, Refusal> {
    let Some(target) = &service.envoy_grpc else { return Err(Refusal::at("envoy_grpc", "there is none")) };
    let timeout = service.timeout.as_ref().map_or(Ok(None), text::milliseconds).within("timeout")?;
    let cluster = cluster(&target.cluster_name).within("envoy_grpc.cluster_name")?;
    Ok((cluster, timeout.unwrap_or(TIMEOUT_DEFAULT_MS), CheckProtocol::Grpc))
}

fn http(service: &AuthzHttpService, allowed: Option<&ListStringMatcher>) -> Result<Asked, Refusal> {
    let Some(uri) = &service.server_uri else { return Err(Refusal::at("server_uri", "there is none")) };
    let timeout = uri.timeout.as_ref().map_or(Ok(None), text::milliseconds).within("server_uri.timeout")?;
    let cluster = cluster(&uri.cluster).within("server_uri.cluster")?;
    let mut check = HttpCheck { path_prefix: service.path_prefix.as_str().into(), ..HttpCheck::default() };
    check.request_headers = names(allowed).within("allowed_headers")?;
    if let Some(request) = &service.authorization_request {
        let shown = names(request.allowed_headers.as_ref());
        check.request_headers.extend(shown.within("authorization_request.allowed_headers")?);
        let added = request.headers_to_add.iter();
        check.additional_headers = added
            .map(|header| HeaderValue { name: lower(&header.key), value: header.value.as_str().into() })
            .collect();
    }
    if let Some(response) = &service.authorization_response {
        let names = |list: &Option<ListStringMatcher>, field: &str| {
            names(list.as_ref()).within(field).within("authorization_response")
        };
        check.to_upstream_on_allow = names(&response.allowed_upstream_headers, "allowed_upstream_headers")?;
        check.to_downstream_on_deny = names(&response.allowed_client_headers, "allowed_client_headers")?;
        check.to_downstream_on_allow =
            names(&response.allowed_client_headers_on_success, "allowed_client_headers_on_success")?;
    }
    Ok((cluster, timeout.unwrap_or(TIMEOUT_DEFAULT_MS), CheckProtocol::Http(check)))
}

fn names(list: Option<&ListStringMatcher>) -> Result<Vec<NameTest>, Refusal> {
    let patterns = list.map_or(&[][..], |list| &list.patterns).iter().enumerate();
    let test = |(index, matcher): (usize, &StringMatcher)| match &matcher.pattern {
        // Names have no case.
        Some(Pattern::Exact(name)) => Ok(NameTest::Exact(lower(name))),
        Some(Pattern::Prefix(name)) => Ok(NameTest::Prefix(lower(name))),
        Some(Pattern::Suffix(name)) => Ok(NameTest::Suffix(lower(name))),
        _ => Err(Refusal::new("this kind of match is not supported").within_item("patterns", index)),
    };
    patterns.map(test).collect()
}

fn body(buffer: AuthzBuffer) -> Result<CheckBody, Refusal> {
    let bytes_max = NonZeroU32::new(buffer.max_request_bytes);
    Ok(CheckBody {
        bytes_max: bytes_max.ok_or_else(|| Refusal::at("max_request_bytes", "must not be zero"))?,
        allow_partial: buffer.allow_partial_message,
        as_bytes: buffer.pack_as_bytes,
    })
}
