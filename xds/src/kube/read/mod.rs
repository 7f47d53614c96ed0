//! One object of each kind, from its nodes to its type.
//!
//! Values are checked where they are read, so that a finding stands exactly at the value; what concerns several
//! objects is checked in [`super::references`].

mod backend_policy;
mod cluster;
mod cors;
mod destination_rule;
mod duration;
mod filter;
mod gateway;
mod grpc_route;
mod mesh_config;
mod names;
mod peer_authentication;
mod policy;
mod policy_values;
mod provider;
mod registry;
mod request_authentication;
mod retry;
mod route;
mod slice;
mod telemetry;
mod timeouts;
mod tracing;
mod virtual_match;
mod virtual_service;
mod virtual_traffic;

use std::sync::Arc;

use model::SourceRef;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::backend_policy::{BackendTlsPolicy, BackendTrafficPolicy};
use super::catalog::{Kind, Labels, Meta};
use super::cluster::{EndpointSlice, Namespace, Node, Pod, Service, ServiceAccount};
use super::gateway::{Gateway, GatewayClass, HttpRoute, ReferenceGrant};
use super::istio::{
    AuthorizationPolicy, PeerAuthentication, RequestAuthentication, ServiceEntry, WorkloadEntry,
};
use super::mesh::ConfigMap;
use super::problem::Severity;
use super::reader::{Fields, Findings, Item};
use super::telemetry::Telemetry;
use super::traffic::{DestinationRule, VirtualService};
use super::yaml::shortened;

/// An object of any kind that is read.
#[derive(Debug)]
pub(super) enum Object {
    Namespace(Namespace),
    Node(Node),
    Pod(Pod),
    Service(Service),
    EndpointSlice(EndpointSlice),
    ServiceAccount(ServiceAccount),
    ServiceEntry(ServiceEntry),
    WorkloadEntry(WorkloadEntry),
    Gateway(Gateway),
    GatewayClass(GatewayClass),
    HttpRoute(HttpRoute),
    GrpcRoute(HttpRoute),
    BackendTlsPolicy(BackendTlsPolicy),
    BackendTrafficPolicy(BackendTrafficPolicy),
    ReferenceGrant(ReferenceGrant),
    AuthorizationPolicy(AuthorizationPolicy),
    PeerAuthentication(PeerAuthentication),
    RequestAuthentication(RequestAuthentication),
    ConfigMap(ConfigMap),
    VirtualService(VirtualService),
    DestinationRule(DestinationRule),
    Telemetry(Telemetry),
}

/// Reads `metadata`; `None` where the object has no usable name. Begins the object in `findings`.
pub(super) fn meta(kind: Kind, root: &Item<'_>, findings: &mut Findings) -> Option<Meta> {
    let shown = std::mem::take(&mut findings.object);
    findings.begin(shown, is_strict(kind));
    let mut fields = root.fields(findings)?;
    let metadata = fields.required(findings, "metadata")?;
    let mut fields = metadata.fields(findings)?;
    let name = fields.required(findings, "name").and_then(|item| names::object(kind, &item, findings));
    let namespace = if kind.is_namespaced() {
        namespace(&mut fields, findings)
    } else {
        if let Some(item) = fields.optional("namespace") {
            item.error(findings, format!("a {kind} belongs to no namespace"), "remove namespace");
        }
        Some(Arc::from(""))
    };
    let labels = fields.optional("labels").map_or_else(Labels::new, |item| item.labels(findings));
    let annotations = fields.optional("annotations").map_or_else(Labels::new, |item| item.labels(findings));
    let created = fields.optional("creationTimestamp").map_or(0, |item| timestamp(&item, findings));
    let uid = fields.optional("uid").and_then(|item| item.shared(findings)).unwrap_or_default();
    fields.ignore(&[
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
    ]);
    fields.finish(findings);
    let source = SourceRef { file: findings.file.clone(), line: root.node.at.line };
    Some(Meta { name: name?, namespace: namespace?, labels, annotations, created, uid, source })
}

fn namespace(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    if let Some(item) = fields.optional("namespace") {
        return names::namespace(&item, findings);
    }
    let field = format!("{}.namespace", fields.path);
    let fix = "write namespace: NAME (kubectl would take its own default)";
    findings.add(Severity::Error, fields.at, &field, "the object does not say its namespace", fix);
    None
}

/// Seconds since the epoch; times before it count as 0.
fn timestamp(item: &Item<'_>, findings: &mut Findings) -> u64 {
    let Some(text) = item.text(findings) else {
        return 0;
    };
    let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) else {
        let message = format!("{:?} is no time", shortened(text));
        item.error(findings, message, "write it like 2026-01-31T12:00:00Z");
        return 0;
    };
    u64::try_from(time.unix_timestamp()).unwrap_or(0)
}

/// Kinds whose every field decides what the mesh does. Core objects have hundreds that do not concern it.
fn is_strict(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::Namespace
            | Kind::Node
            | Kind::Pod
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::ServiceAccount
            | Kind::ConfigMap
    )
}

/// Reads the rest of an object. What it returns counts only if `findings` holds no error of it.
pub(super) fn object(kind: Kind, root: &Item<'_>, meta: Meta, findings: &mut Findings) -> Option<Object> {
    let mut fields = root.fields_again(findings)?;
    fields.ignore(&["apiVersion", "kind", "metadata"]);
    let object = match kind {
        Kind::Namespace => Some(Object::Namespace(Namespace { meta })),
        Kind::Node => Some(Object::Node(Node { meta })),
        Kind::ServiceAccount => Some(Object::ServiceAccount(ServiceAccount { meta })),
        Kind::Pod => cluster::pod(root, &mut fields, meta, findings).map(Object::Pod),
        Kind::Service => cluster::service(&mut fields, meta, findings).map(Object::Service),
        Kind::EndpointSlice => slice::endpoint_slice(&mut fields, meta, findings).map(Object::EndpointSlice),
        Kind::ServiceEntry => registry::service_entry(&mut fields, meta, findings).map(Object::ServiceEntry),
        Kind::WorkloadEntry => {
            registry::workload_entry(&mut fields, meta, findings).map(Object::WorkloadEntry)
        }
        Kind::Gateway => gateway::gateway(&mut fields, meta, findings).map(Object::Gateway),
        Kind::GatewayClass => gateway::gateway_class(&mut fields, meta, findings).map(Object::GatewayClass),
        Kind::ReferenceGrant => {
            gateway::reference_grant(&mut fields, meta, findings).map(Object::ReferenceGrant)
        }
        Kind::HttpRoute => route::http_route(&mut fields, meta, findings).map(Object::HttpRoute),
        Kind::GrpcRoute => grpc_route::grpc_route(&mut fields, meta, findings).map(Object::GrpcRoute),
        Kind::BackendTlsPolicy => {
            backend_policy::backend_tls_policy(&mut fields, meta, findings).map(Object::BackendTlsPolicy)
        }
        Kind::BackendTrafficPolicy => backend_policy::backend_traffic_policy(&mut fields, meta, findings)
            .map(Object::BackendTrafficPolicy),
        Kind::AuthorizationPolicy => {
            policy::authorization_policy(&mut fields, meta, findings).map(Object::AuthorizationPolicy)
        }
        Kind::PeerAuthentication => peer_authentication::peer_authentication(&mut fields, meta, findings)
            .map(Object::PeerAuthentication),
        Kind::RequestAuthentication => {
            request_authentication::request_authentication(&mut fields, meta, findings)
                .map(Object::RequestAuthentication)
        }
        Kind::ConfigMap => mesh_config::config_map(&mut fields, meta, findings).map(Object::ConfigMap),
        Kind::VirtualService => {
            virtual_service::virtual_service(&mut fields, meta, findings).map(Object::VirtualService)
        }
        Kind::DestinationRule => {
            destination_rule::destination_rule(&mut fields, meta, findings).map(Object::DestinationRule)
        }
        Kind::Telemetry => telemetry::telemetry(&mut fields, meta, findings).map(Object::Telemetry),
    };
    fields.ignore(&["spec", "status"]);
    fields.finish(findings);
    object
}
