//! Gateway API objects: Gateway, GatewayClass, HTTPRoute, GRPCRoute, ReferenceGrant.

use std::sync::Arc;

use l7::ir::{Filters, Fraction, HttpMatch, Retry, RouteKind, SessionPersistence, Timeouts};

use super::catalog::{Meta, Position};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayClass {
    pub meta: Meta,
    pub controller_name: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    pub meta: Meta,
    pub class: Arc<str>,
    pub listeners: Vec<Listener>,
    /// `spec.addresses`: what the author asks for.
    pub requested_addresses: Vec<GatewayAddress>,
    /// `status.addresses`: what a controller assigned.
    pub assigned_addresses: Vec<GatewayAddress>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub name: Arc<str>,
    pub port: u16,
    /// `HBONE`, `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP` or a name of another implementation.
    pub protocol: Arc<str>,
    pub hostname: Option<Arc<str>>,
    pub allowed: AllowedNamespaces,
}

/// `allowedRoutes.namespaces`: whose routes and Services may use the listener.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AllowedNamespaces {
    #[default]
    Same,
    All,
    /// Namespaces with these labels.
    Selector(super::catalog::Labels),
    None,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayAddress {
    pub kind: GatewayAddressKind,
    pub value: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatewayAddressKind {
    IpAddress,
    Hostname,
    /// A type of another implementation.
    Other,
}

/// An HTTPRoute, or the HTTPRoute that a GRPCRoute amounts to.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpRoute {
    pub kind: RouteKind,
    pub meta: Meta,
    pub parents: Vec<ParentRef>,
    pub hostnames: Vec<Arc<str>>,
    pub rules: Vec<HttpRouteRule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentRef {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    /// The route's own namespace where none is written.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub section_name: Option<Arc<str>>,
    pub port: Option<u16>,
    pub at: Position,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpRouteRule {
    pub name: Option<Arc<str>>,
    /// Never empty: a rule written without matches carries prefix `/`.
    pub matches: Vec<HttpMatch>,
    /// Without the mirrors.
    pub filters: Option<Arc<Filters>>,
    pub mirrors: Vec<MirrorRef>,
    pub backends: Vec<BackendRef>,
    pub timeouts: Timeouts,
    pub retry: Option<Arc<Retry>>,
    pub session: Option<Arc<SessionPersistence>>,
}

/// A RequestMirror filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorRef {
    /// Its weight and filters mean nothing.
    pub backend: BackendRef,
    pub share: Fraction,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendRef {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    /// The route's own namespace where none is written.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub port: Option<u16>,
    pub weight: u32,
    /// Without the mirrors.
    pub filters: Option<Arc<Filters>>,
    pub mirrors: Vec<MirrorRef>,
    /// Path of the reference within its object.
    pub field: Arc<str>,
    pub at: Position,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceGrant {
    pub meta: Meta,
    pub from: Vec<GrantFrom>,
    pub to: Vec<GrantTo>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantFrom {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    pub namespace: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantTo {
    pub group: Arc<str>,
    pub kind: Arc<str>,
    /// `None` grants every object of the kind.
    pub name: Option<Arc<str>>,
}
