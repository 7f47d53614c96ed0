//! The label sets of Istio's metrics: as references on the worker, as text on the control thread.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use model::{Identity, Service, Workload};

use super::request::{RequestLabels, RequestOutcome};
use crate::access_log::cause::ResponseFlag;

/// What a missing value reads as.
pub(super) const UNKNOWN: &str = "unknown";

/// Whose proxy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    Source,
    Destination,
    /// A waypoint, which stands for the destination.
    Waypoint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ConnectionSecurity {
    #[default]
    Unknown,
    /// It came in the clear, which whoever takes it knows.
    None,
    MutualTls,
}

/// One end of a connection. Two are equal if they name the same workload by uid and the same identity.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    pub workload: Option<Arc<Workload>>,
    /// Proved by TLS, or the local pod's own.
    pub identity: Option<Identity>,
}

/// Everything that distinguishes one series from another.
#[derive(Debug, Clone)]
pub struct Labels {
    pub reporter: Reporter,
    pub source: Subject,
    pub destination: Subject,
    pub service: Option<Arc<Service>>,
    pub flag: ResponseFlag,
    pub security: ConnectionSecurity,
}

/// How a query reached the DNS proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DnsProtocol {
    Udp,
    Tcp,
}

/// What distinguishes the series of DNS queries.
#[derive(Debug, Clone)]
pub struct DnsLabels {
    pub source: Option<Arc<Workload>>,
    /// The code of the record type (RFC 1035 section 3.2.2).
    pub query_type: u16,
    pub protocol: DnsProtocol,
}

/// What distinguishes the series of connections whose next hop was resolved by name.
#[derive(Debug, Clone)]
pub struct OnDemandLabels {
    pub source: Subject,
    pub hostname: Arc<str>,
}

/// The names of the values of [`DnsLabels::values`].
pub(super) const DNS_LABEL_NAMES: [&str; 4] =
    ["request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"];

/// The names of the values of [`OnDemandLabels::values`].
pub(super) const ON_DEMAND_LABEL_NAMES: [&str; 9] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "hostname",
];

/// The names of the values of [`Labels::values`], in Istio's order.
pub(super) const LABEL_NAMES: [&str; 29] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
    // Only for HTTP, the latter only for gRPC; empty, and left out, elsewhere.
    "response_code",
    "grpc_response_status",
];

/// The values, so that equal label sets of several pods of one deployment become one series.
pub(super) type LabelValues = Box<[Box<str>]>;

// === impl Reporter ===

impl Reporter {
    pub(super) const ALL: [Self; 3] = [Self::Source, Self::Destination, Self::Waypoint];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Waypoint => "waypoint",
        }
    }
}

// === impl ConnectionSecurity ===

impl ConnectionSecurity {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unknown => UNKNOWN,
            Self::None => "none",
            Self::MutualTls => "mutual_tls",
        }
    }
}

// === impl Subject ===

impl Subject {
    fn uid(&self) -> Option<&str> {
        self.workload.as_ref().map(|w| &*w.uid)
    }

    fn value<'a>(&'a self, pick: impl Fn(&'a Workload) -> &'a str) -> &'a str {
        self.workload.as_deref().map_or(UNKNOWN, |w| or_unknown(pick(w)))
    }

    fn principal(&self) -> &str {
        self.identity.as_ref().map_or(UNKNOWN, Identity::uri)
    }
}

impl PartialEq for Subject {
    fn eq(&self, other: &Self) -> bool {
        self.uid() == other.uid() && self.identity == other.identity
    }
}

impl Eq for Subject {}

impl Hash for Subject {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.uid().hash(state);
        self.identity.hash(state);
    }
}

// === impl Labels ===

impl Labels {
    /// The labels of what no series of its own could be made for.
    pub(super) fn overflow(reporter: Reporter) -> Self {
        Self {
            reporter,
            source: Subject::default(),
            destination: Subject::default(),
            service: None,
            flag: ResponseFlag::None,
            security: ConnectionSecurity::Unknown,
        }
    }

    /// The values in the order of [`LABEL_NAMES`]; `request` is set for series of requests.
    pub(super) fn values(&self, request: Option<&RequestOutcome>) -> LabelValues {
        let (source, destination) = (&self.source, &self.destination);
        let status = request.map(|it| it.status.to_string()).unwrap_or_default();
        let grpc_status = request.and_then(|it| it.grpc_status).map(|it| it.code().to_string());
        let (host, namespace, name) = self.service.as_deref().map_or((UNKNOWN, UNKNOWN, UNKNOWN), |s| {
            (or_unknown(&s.key.hostname), or_unknown(&s.key.namespace), or_unknown(&s.name))
        });
        let values: [&str; LABEL_NAMES.len()] = [
            self.reporter.label(),
            source.value(|w| &w.workload_name),
            source.value(|w| &w.canonical_name),
            source.value(|w| &w.canonical_revision),
            source.value(|w| &w.namespace),
            source.principal(),
            source.value(|w| &w.canonical_name),
            source.value(|w| &w.canonical_revision),
            source.value(|w| &w.cluster_id),
            host,
            namespace,
            name,
            destination.value(|w| &w.workload_name),
            destination.value(|w| &w.canonical_name),
            destination.value(|w| &w.canonical_revision),
            destination.value(|w| &w.namespace),
            destination.principal(),
            destination.value(|w| &w.canonical_name),
            destination.value(|w| &w.canonical_revision),
            destination.value(|w| &w.cluster_id),
            request.map_or("tcp", |it| it.protocol.label()),
            request.map_or(self.flag.label(), |it| it.flag.label()),
            self.security.label(),
            source.value(|w| &w.locality.region),
            source.value(|w| &w.locality.zone),
            destination.value(|w| &w.locality.region),
            destination.value(|w| &w.locality.zone),
            &status,
            grpc_status.as_deref().unwrap_or_default(),
        ];
        values.into_iter().map(Into::into).collect()
    }
}

impl PartialEq for Labels {
    fn eq(&self, other: &Self) -> bool {
        self.reporter == other.reporter
            && self.flag == other.flag
            && self.security == other.security
            && self.source == other.source
            && self.destination == other.destination
            && self.service.as_ref().map(|s| &s.key) == other.service.as_ref().map(|s| &s.key)
    }
}

impl Eq for Labels {}

impl Hash for Labels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.reporter.hash(state);
        self.flag.hash(state);
        self.security.hash(state);
        self.source.hash(state);
        self.destination.hash(state);
        self.service.as_ref().map(|s| &s.key).hash(state);
    }
}

// === impl DnsLabels ===

impl DnsLabels {
    /// The labels of what no series of its own could be made for.
    pub(super) fn overflow() -> Self {
        Self { source: None, query_type: 0, protocol: DnsProtocol::Udp }
    }

    /// The values in the order of [`DNS_LABEL_NAMES`].
    pub(super) fn values(&self) -> LabelValues {
        let source =
            |pick: fn(&Workload) -> &str| self.source.as_deref().map_or(UNKNOWN, |w| or_unknown(pick(w)));
        let protocol = match self.protocol {
            DnsProtocol::Udp => "udp",
            DnsProtocol::Tcp => "tcp",
        };
        let values = [
            query_type(self.query_type),
            protocol,
            source(|w| &w.canonical_name),
            source(|w| &w.canonical_revision),
        ];
        values.into_iter().map(Into::into).collect()
    }

    fn key(&self) -> (Option<&str>, u16, DnsProtocol) {
        (self.source.as_ref().map(|w| &*w.uid), self.query_type, self.protocol)
    }
}

impl PartialEq for DnsLabels {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for DnsLabels {}

impl Hash for DnsLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// The record types that pods ask for (IANA's registry); all others are one value, for a pod chooses the number.
fn query_type(code: u16) -> &'static str {
    match code {
        1 => "a",
        2 => "ns",
        5 => "cname",
        6 => "soa",
        12 => "ptr",
        15 => "mx",
        16 => "txt",
        28 => "aaaa",
        33 => "srv",
        35 => "naptr",
        64 => "svcb",
        65 => "https",
        255 => "any",
        257 => "caa",
        _ => UNKNOWN,
    }
}

// === impl OnDemandLabels ===

impl OnDemandLabels {
    pub(super) fn overflow() -> Self {
        Self { source: Subject::default(), hostname: UNKNOWN.into() }
    }

    /// The values in the order of [`ON_DEMAND_LABEL_NAMES`].
    pub(super) fn values(&self) -> LabelValues {
        let source = &self.source;
        let values: [&str; ON_DEMAND_LABEL_NAMES.len()] = [
            source.value(|w| &w.workload_name),
            source.value(|w| &w.canonical_name),
            source.value(|w| &w.canonical_revision),
            source.value(|w| &w.namespace),
            source.principal(),
            source.value(|w| &w.canonical_name),
            source.value(|w| &w.canonical_revision),
            source.value(|w| &w.cluster_id),
            &self.hostname,
        ];
        values.into_iter().map(Into::into).collect()
    }
}

impl PartialEq for OnDemandLabels {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.hostname == other.hostname
    }
}

impl Eq for OnDemandLabels {}

impl Hash for OnDemandLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.hash(state);
        self.hostname.hash(state);
    }
}

// === what a series names ===

/// A label set that may name workloads.
pub(super) trait Named {
    /// Whether every workload named satisfies `known`.
    fn all_known(&self, known: &dyn Fn(&Workload) -> bool) -> bool;
}

impl Named for Labels {
    fn all_known(&self, known: &dyn Fn(&Workload) -> bool) -> bool {
        [&self.source, &self.destination].into_iter().filter_map(|s| s.workload.as_deref()).all(known)
    }
}

impl Named for RequestLabels {
    fn all_known(&self, known: &dyn Fn(&Workload) -> bool) -> bool {
        self.ends.all_known(known)
    }
}

impl Named for DnsLabels {
    fn all_known(&self, known: &dyn Fn(&Workload) -> bool) -> bool {
        self.source.as_deref().is_none_or(known)
    }
}

impl Named for OnDemandLabels {
    fn all_known(&self, known: &dyn Fn(&Workload) -> bool) -> bool {
        self.source.workload.as_deref().is_none_or(known)
    }
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { UNKNOWN } else { text }
}
