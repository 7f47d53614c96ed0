//! The routes of a filter chain: Envoy takes the first that matches, in the order written.

mod action;
mod filters;
mod hash;
mod matches;
mod resilience;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use l7::ir::{Filters, HttpRoute, HttpRule, RouteKind, RouteOrder};
use l7::router::Router;

pub(super) use self::action::target;
use super::Refusal;
use super::chain::{ENCAP, Target};
use super::refusal::Within;
use crate::proto::waypoint::route::Action;
use crate::proto::waypoint::route_match::PathSpecifier;
use crate::proto::waypoint::{Route, RouteConfiguration, VirtualHost};

/// The routes of a chain. `None` for workloads: their requests go where they were sent.
pub(super) fn route(
    config: &RouteConfiguration,
    chain: &str,
    target: &Target,
) -> Result<Option<HttpRoute>, Refusal> {
    let host = virtual_host(config)?;
    let Target::Service(service) = target else {
        return to_workload(host).within("virtual_hosts").map(|()| None);
    };
    let rules = rules(host, service.port).within("virtual_hosts")?;
    let parent = service.service();
    let route = HttpRoute {
        kind: RouteKind::Http,
        order: RouteOrder::Listed,
        namespace: Arc::clone(&parent.namespace),
        name: chain.into(),
        parent,
        parent_port: Some(service.port),
        consumer_namespace: None,
        created: 0,
        hostnames: Vec::new(),
        rules,
        source: None,
    };
    // For trial: what does not compile is refused where it was written.
    Router::compile([Arc::new(route.clone())])
        .map_err(|error| Refusal::at("virtual_hosts", error.to_string()))?;
    Ok(Some(route))
}

/// istiod binds routes by the address of the service, so there is one host for all names.
fn virtual_host(config: &RouteConfiguration) -> Result<&VirtualHost, Refusal> {
    let [host] = &config.virtual_hosts[..] else {
        let reason = format!("{} hosts are not supported, only one is", config.virtual_hosts.len());
        return Err(Refusal::at("virtual_hosts", reason));
    };
    if host.domains != ["*"] {
        return Err(Refusal::at("virtual_hosts.domains", format!("{:?} is not supported", host.domains)));
    }
    Ok(host)
}

fn rules(host: &VirtualHost, port: u16) -> Result<Vec<HttpRule>, Refusal> {
    let routes = host.routes.iter().enumerate();
    let rule = |(index, route): (usize, &Route)| {
        rule(route, port).map_err(|refusal| refusal.within(&format!("routes[{index}] ({})", route.name)))
    };
    routes.map(rule).collect()
}

fn rule(route: &Route, port: u16) -> Result<HttpRule, Refusal> {
    let Some(wire) = &route.r#match else { return Err(Refusal::at("match", "there is none")) };
    let entry = matches::http_match(wire).within("match")?;
    let mut filters = filters::of_route(route)?;
    let mut rule = HttpRule { name: named(&route.name), matches: vec![entry], ..HttpRule::default() };
    match &route.action {
        Some(Action::Route(action)) => {
            action::forward(action, wire, &mut rule, &mut filters).within("route")?;
        }
        Some(Action::Redirect(redirect)) => {
            filters.url = Some(action::redirect(redirect, wire, port).within("redirect")?);
        }
        Some(Action::DirectResponse(response)) => {
            rule.direct = Some(Arc::new(action::direct(response).within("direct_response")?));
        }
        None => return Err(Refusal::new("the route has no action")),
    }
    for (name, config) in &route.typed_per_filter_config {
        resilience::per_filter(name, config, &mut rule, &mut filters)
            .map_err(|refusal| refusal.within(&format!("typed_per_filter_config[{name:?}]")))?;
    }
    rule.filters = Some(filters).filter(|it| *it != Filters::default()).map(Arc::new);
    Ok(rule)
}

fn named(name: &str) -> Option<Arc<str>> {
    (!name.is_empty()).then(|| name.into())
}

/// Requests to workloads are changed by nothing.
fn to_workload(host: &VirtualHost) -> Result<(), Refusal> {
    let plain = |route: &Route| {
        let all = route.r#match.as_ref().is_some_and(|it| {
            let any_path = matches!(&it.path_specifier, Some(PathSpecifier::Prefix(prefix)) if prefix == "/");
            any_path && it.headers.is_empty() && it.query_parameters.is_empty()
        });
        let Some(Action::Route(action)) = &route.action else { return false };
        let changes = action.weighted_clusters.is_some()
            || !action.prefix_rewrite.is_empty()
            || action.regex_rewrite.is_some()
            || !action.host_rewrite_literal.is_empty()
            || !action.request_mirror_policies.is_empty();
        all && action.cluster == ENCAP
            && !changes
            && route.typed_per_filter_config.is_empty()
            && filters::of_route(route).is_ok_and(|filters| filters == Filters::default())
    };
    match &host.routes[..] {
        [only] if plain(only) => Ok(()),
        _ => Err(Refusal::at("routes", "for workloads only one plain route to the tunnel is supported")),
    }
}
