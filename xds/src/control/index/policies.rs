//! Policies, token rules and routes as resources, and which policies a workload names.
//!
//! A policy that can be said in `istio.security.Authorization` travels there and only there; any other travels whole
//! in a type of our own. A service behind a waypoint that has an address is the waypoint's to govern: neither its
//! routes nor the policies that target it reach node proxies.

use std::sync::Arc;

use ::l7::ir::MeshWide;

use super::authorization::{authorization, wire_scope};
use super::{Context, IndexSettings};
use crate::control::desired::DesiredState;
use crate::decode::{route_name, traffic_policy_name};
use crate::kube::convert::request_authentication::MeshTokens;
use crate::kube::convert::traffic::told_labels;
use crate::kube::convert::{self, Carrier, MeshPolicy, ServiceRef, Subject};
use crate::kube::{Catalog, Labels, Problem, Severity};
use crate::proto::l7;

/// Every policy of the mesh, converted.
pub(super) struct Policies<'a> {
    catalog: &'a Catalog,
    settings: &'a IndexSettings,
    pub(super) converted: Vec<MeshPolicy>,
}

impl<'a> Policies<'a> {
    pub(super) fn new(
        catalog: &'a Catalog,
        settings: &'a IndexSettings,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let (policies, errors) = convert::policies(catalog, &settings.mesh);
        problems.extend(errors.into_iter().map(|error| problem(Severity::Error, error.to_string())));
        Self { catalog, settings, converted: policies }
    }

    /// Keys of the policies that a workload names, sorted.
    pub(super) fn of_workload(
        &self,
        namespace: &str,
        labels: &Labels,
        services: &[ServiceRef],
    ) -> Vec<String> {
        let subject = Subject { namespace, labels, services };
        let keys = convert::workload_policies(self.catalog, &self.settings.mesh, subject);
        keys.iter().map(ToString::to_string).collect()
    }

    pub(super) fn publish(&self, desired: &mut DesiredState, problems: &mut Vec<Problem>) {
        for MeshPolicy { key, scope, carrier, policy } in &self.converted {
            let authorization = match carrier {
                Carrier::Connection => authorization(policy, *scope),
                Carrier::Request => None,
            };
            if let Some(authorization) = authorization {
                desired.insert_authorization(&authorization);
                continue;
            }
            match serde_json::to_vec(policy) {
                Ok(ir) => desired.insert_authorization_policy(
                    key,
                    &l7::AuthorizationPolicy { scope: wire_scope(*scope).into(), ir: ir.into() },
                ),
                // Workloads name it all the same, and a name without its policy denies.
                Err(error) => problems.push(problem(Severity::Error, format!("policy {key}: {error}"))),
            }
        }
    }
}

/// Adds the rules for tokens.
pub(super) fn publish_tokens(context: &Context<'_>, desired: &mut DesiredState, problems: &mut Vec<Problem>) {
    for MeshTokens { key, scope, tokens } in
        convert::request_authentications(context.catalog, &context.settings.mesh)
    {
        let scope = wire_scope(scope).into();
        match serde_json::to_vec(&tokens) {
            Ok(ir) => desired
                .insert_request_authentication(&key, &l7::RequestAuthentication { scope, ir: ir.into() }),
            Err(error) => problems.push(problem(Severity::Error, format!("tokens of {key}: {error}"))),
        }
    }
}

/// Adds what spreads and bounds traffic, and what holds for all proxies.
pub(super) fn publish_traffic(
    context: &Context<'_>,
    desired: &mut DesiredState,
    problems: &mut Vec<Problem>,
) {
    for policy in convert::traffic_policies(context.catalog, &context.settings.mesh) {
        let name = traffic_policy_name(&policy);
        match serde_json::to_vec(&policy) {
            Ok(ir) => desired.insert_traffic_policy(&name, &l7::TrafficPolicy { ir: ir.into() }),
            Err(error) => problems.push(problem(Severity::Error, format!("traffic to {name}: {error}"))),
        }
    }
    let config = context.catalog.mesh_config(&context.settings.mesh);
    let normalization = config.and_then(|(_, mesh)| mesh.normalization).unwrap_or_default();
    match serde_json::to_vec(&MeshWide { normalization }) {
        Ok(ir) => desired.insert_mesh_wide(&l7::MeshWide { ir: ir.into() }),
        Err(error) => problems.push(problem(Severity::Error, format!("MeshConfig: {error}"))),
    }
}

/// Tells those labels of a workload that somebody asks for.
pub(super) fn publish_labels(context: &Context<'_>, uid: &str, labels: &Labels, desired: &mut DesiredState) {
    let told = told_labels(labels, &context.label_keys);
    if !told.is_empty() {
        let labels = told.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        desired.insert_workload_labels(uid, &l7::WorkloadLabels { labels });
    }
}

/// Adds the routes of all Services that no waypoint governs.
pub(super) fn publish_routes(context: &Context<'_>, desired: &mut DesiredState, problems: &mut Vec<Problem>) {
    let routes = convert::routes(context.catalog, &context.settings.mesh);
    for route in &routes {
        if context.services.has_waypoint(&route.parent.to_string()) {
            continue;
        }
        let name = route_name(route);
        match serde_json::to_vec(route) {
            Ok(ir) => desired.insert_http_route(&name, &l7::HttpRoute { ir: ir.into() }),
            Err(error) => problems.push(problem(Severity::Error, format!("route {name}: {error}"))),
        }
    }
}

/// A finding that belongs to no line.
pub(super) fn problem(severity: Severity, message: String) -> Problem {
    Problem {
        file: Arc::default(),
        line: 0,
        column: 0,
        object: String::new(),
        field: String::new(),
        message,
        fix: String::new(),
        severity,
    }
}
