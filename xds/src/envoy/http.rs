//! The HTTP connection manager at the end of a filter chain, and its filters.

use std::sync::Arc;

use l7::ir::AuthorizationPolicy;
use l7::path::Normalization;

use super::chain::{Carries, Target, is_telemetry};
use super::refusal::{Within, type_of, unpack};
use super::telemetry::Told;
use super::tokens::Tokens;
use super::{Refusal, authorizer, rbac, routes, telemetry, tokens};
use crate::proto::waypoint::http_connection_manager::EscapedSlashes;
use crate::proto::waypoint::{HttpConnectionManager, HttpFault, HttpFilter, HttpRbac, JwtAuthentication};

const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const TOKENS: &str = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
const AUTHORIZER: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// Filters that tell others about the request, or that only let routes say what is to be done.
const TELEMETRY: [&str; 5] = [
    "envoy.extensions.filters.http.cors.v3.Cors",
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    "envoy.extensions.filters.http.set_filter_state.v3.Config",
    "io.istio.http.peer_metadata.Config",
    "stats.PluginConfig",
];

/// What is done with the requests of a chain.
pub(super) struct Requests {
    pub(super) policies: Vec<AuthorizationPolicy>,
    pub(super) carries: Carries,
    pub(super) told: Told,
}

pub(super) fn requests(
    manager: &HttpConnectionManager,
    chain: &str,
    target: &Target,
) -> Result<Requests, Refusal> {
    if manager.use_remote_address == Some(true) {
        return Err(Refusal::at("use_remote_address", "true is not supported"));
    }
    for (index, upgrade) in manager.upgrade_configs.iter().enumerate() {
        if !upgrade.upgrade_type.eq_ignore_ascii_case("websocket") {
            let reason = format!("{:?} is not supported", upgrade.upgrade_type);
            return Err(Refusal::at("upgrade_type", reason).within_item("upgrade_configs", index));
        }
    }
    let filters = filters(&manager.http_filters, chain)?;
    let normalization = normalization(manager)?;
    let Some(config) = &manager.route_config else {
        return Err(Refusal::at("route_config", "there is none"));
    };
    let route = routes::route(config, chain, target).within("route_config")?;
    let carries = Carries::Http { tokens: filters.tokens, route: route.map(Arc::new), normalization };
    Ok(Requests { policies: filters.policies, carries, told: telemetry::told(manager) })
}

#[derive(Default)]
struct Filters {
    /// Those by which external authorizers are asked.
    custom: Vec<AuthorizationPolicy>,
    /// Those of them whose authorizer is yet to come.
    asked: Option<Vec<AuthorizationPolicy>>,
    policies: Vec<AuthorizationPolicy>,
    tokens: Option<Tokens>,
}

/// The filters in their order. Ours is fixed and istiod's is the same: external authorizers, tokens, rules.
fn filters(filters: &[HttpFilter], chain: &str) -> Result<Filters, Refusal> {
    let mut found = Filters::default();
    let (last, others) = filters.split_last().ok_or_else(|| Refusal::at("http_filters", "there are none"))?;
    for (index, filter) in others.iter().enumerate() {
        self::filter(filter, chain, &mut found)
            .map_err(|refusal| refusal.within(&format!("http_filters[{index}] ({})", filter.name)))?;
    }
    if last.typed_config.as_ref().is_none_or(|config| type_of(config) != ROUTER) {
        let place = format!("http_filters[{}] ({})", others.len(), last.name);
        return Err(Refusal::at(&place, "only the router can be the last one"));
    }
    if found.asked.is_some() {
        return Err(Refusal::at("http_filters", "rules for an external authorizer are there and it is not"));
    }
    found.policies.append(&mut found.custom);
    Ok(found)
}

fn filter(filter: &HttpFilter, chain: &str, found: &mut Filters) -> Result<(), Refusal> {
    let Some(config) = &filter.typed_config else { return Err(Refusal::at("typed_config", "there is none")) };
    match type_of(config) {
        RBAC => {
            let rbac: HttpRbac = unpack(config, RBAC)?;
            let rules = rbac::Rules::from(&rbac);
            match rules.asked()? {
                Some(_) if found.asked.is_some() => {
                    Err(Refusal::new("the one before waits for an authorizer"))
                }
                Some(policies) => {
                    found.asked = Some(policies);
                    Ok(())
                }
                None => {
                    found.policies.extend(rules.policies()?);
                    Ok(())
                }
            }
        }
        AUTHORIZER if found.tokens.is_some() || !found.policies.is_empty() => {
            Err(Refusal::new("an external authorizer after tokens or rules is not supported"))
        }
        AUTHORIZER => {
            let asked =
                found.asked.take().ok_or_else(|| Refusal::new("no rules say what it is asked about"))?;
            let authorizer = Arc::new(authorizer::authorizer(&unpack(config, AUTHORIZER)?)?);
            let with = |policy| AuthorizationPolicy { authorizer: Some(Arc::clone(&authorizer)), ..policy };
            found.custom.extend(asked.into_iter().map(with));
            Ok(())
        }
        TOKENS if found.tokens.is_some() => Err(Refusal::new("a second filter for tokens is not supported")),
        TOKENS if !found.policies.is_empty() => {
            Err(Refusal::new("a filter for tokens after authorization is not supported"))
        }
        TOKENS => {
            let tokens: JwtAuthentication = unpack(config, TOKENS)?;
            found.tokens = Some(tokens::tokens(&tokens, chain)?);
            Ok(())
        }
        FAULT if unpack::<HttpFault>(config, FAULT)? == HttpFault::default() => Ok(()),
        _ if is_telemetry(config, &TELEMETRY)? => Ok(()),
        other => Err(Refusal::new(format!("{other} is not supported here"))),
    }
}

/// How paths are made comparable (`meshConfig.pathNormalization`, which istiod spells out in three fields).
fn normalization(manager: &HttpConnectionManager) -> Result<Normalization, Refusal> {
    let slashes = EscapedSlashes::try_from(manager.path_with_escaped_slashes_action);
    let kept =
        matches!(slashes, Ok(EscapedSlashes::ImplementationSpecificDefault | EscapedSlashes::KeepUnchanged));
    match (manager.normalize_path.unwrap_or(false), manager.merge_slashes) {
        (false, false) if kept => Ok(Normalization::None),
        (true, false) if kept => Ok(Normalization::Base),
        (true, true) if kept => Ok(Normalization::MergeSlashes),
        (true, true) if slashes == Ok(EscapedSlashes::UnescapeAndForward) => {
            Ok(Normalization::DecodeAndMergeSlashes)
        }
        _ => {
            let action = manager.path_with_escaped_slashes_action;
            Err(Refusal::at(
                "path_with_escaped_slashes_action",
                format!("{action} is not supported with these fields"),
            ))
        }
    }
}
