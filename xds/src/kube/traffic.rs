//! Istio's objects of traffic: VirtualService and DestinationRule.

use std::sync::Arc;

use l7::ir::{
    Cors, DirectResponse, Fault, Filters, Fraction, HttpMatch, Labels, Retry, Timeouts, TrafficSettings,
};

use super::catalog::{Meta, Position};

#[derive(Debug, Clone, PartialEq)]
pub struct VirtualService {
    pub meta: Meta,
    /// As written: short names, full ones, `*.suffix` or `*`.
    pub hosts: Vec<Arc<str>>,
    /// It governs traffic between workloads, and not only that of gateways.
    pub is_for_mesh: bool,
    pub export_to: ExportTo,
    /// The first that takes a request counts.
    pub http: Vec<VirtualRoute>,
}

/// Whose traffic an object governs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ExportTo {
    #[default]
    Everybody,
    /// Clients of these namespaces; `.` is resolved.
    Namespaces(Vec<Arc<str>>),
}

/// `http[]` of a VirtualService.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VirtualRoute {
    pub name: Option<Arc<str>>,
    /// ORed; never empty.
    pub matches: Vec<VirtualMatch>,
    /// Header edits, redirect or a rewrite of the authority.
    pub filters: Filters,
    /// `rewrite.uri`: what stands in for a path depends on how it was matched.
    pub rewrite_uri: Option<Arc<str>>,
    pub destinations: Vec<Destination>,
    pub mirrors: Vec<(Destination, Fraction)>,
    pub timeouts: Timeouts,
    pub retry: Option<Arc<Retry>>,
    pub fault: Option<Arc<Fault>>,
    pub direct: Option<Arc<DirectResponse>>,
    pub cors: Option<Arc<Cors>>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct VirtualMatch {
    pub entry: HttpMatch,
    /// Of the service that the client dialled.
    pub port: Option<u16>,
    /// It is limited to gateways other than the mesh, so no request here is taken.
    pub is_elsewhere: bool,
}

/// `route[]` of a VirtualService, or whom a mirror is sent to.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    pub host: Arc<str>,
    pub subset: Option<Arc<str>>,
    /// The only port of the service, or the one that the client dialled, where none is written.
    pub port: Option<u16>,
    pub weight: u32,
    pub filters: Option<Arc<Filters>>,
    /// Path within its object.
    pub field: Arc<str>,
    pub at: Position,
}

#[derive(Debug, Clone, PartialEq)]
pub struct DestinationRule {
    pub meta: Meta,
    /// As written, as those of a [`VirtualService`].
    pub host: Arc<str>,
    pub export_to: ExportTo,
    pub policy: WrittenPolicy,
    pub subsets: Vec<WrittenSubset>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct WrittenSubset {
    pub name: Arc<str>,
    pub labels: Labels,
    pub policy: WrittenPolicy,
}

/// `trafficPolicy`, part by part, for a subset's parts take the place of the rule's.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WrittenPolicy {
    pub parts: WrittenSettings,
    /// `portLevelSettings`: for these ports nothing else counts.
    pub ports: Vec<(u16, WrittenSettings)>,
}

/// What is `None` is not written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WrittenSettings {
    pub balancing: Option<l7::ir::Balancing>,
    pub outliers: Option<l7::ir::OutlierDetection>,
    pub limits: Option<l7::ir::ConnectionLimits>,
}

impl WrittenSettings {
    /// With the parts that `over` has in the place of these.
    #[must_use]
    pub fn overridden(&self, over: &Self) -> Self {
        Self {
            balancing: over.balancing.clone().or_else(|| self.balancing.clone()),
            outliers: over.outliers.or(self.outliers),
            limits: over.limits.or(self.limits),
        }
    }

    pub fn settled(&self) -> TrafficSettings {
        TrafficSettings {
            balancing: self.balancing.clone().unwrap_or_default(),
            outliers: self.outliers,
            limits: self.limits.unwrap_or_default(),
        }
    }
}
