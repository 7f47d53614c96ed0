//! What Istio tells of a request beside its two ends: protocol, status, flags. A closed set each.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use model::{Identity, Service, Workload};

use super::labels::{ConnectionSecurity, Labels, Reporter, Subject};
use crate::access_log::cause::{RequestFlag, ResponseFlag};

/// Greatest status of gRPC (`UNAUTHENTICATED`); what is beyond it reads as [`GRPC_UNKNOWN`], as gRPC clients read it.
const GRPC_STATUS_MAX: u8 = 16;
const GRPC_UNKNOWN: u8 = 2;

/// The value of `request_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RequestProtocol {
    #[default]
    Http,
    Grpc,
}

/// The status that ends a gRPC call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GrpcStatus(u8);

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RequestOutcome {
    pub protocol: RequestProtocol,
    /// As the client was answered; 0 if it was not.
    pub status: u16,
    /// Only of gRPC, and only where the call came to its end.
    pub grpc_status: Option<GrpcStatus>,
    pub flag: RequestFlag,
}

/// What one request adds to its series.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestCounts {
    pub duration: std::time::Duration,
    /// Heads and bodies as they crossed the downstream's connection.
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Only of gRPC.
    pub request_messages: u64,
    pub response_messages: u64,
}

/// Everything that distinguishes one series of requests from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestLabels {
    /// Its flag is not used: requests have Envoy's, not ztunnel's.
    pub ends: Labels,
    pub outcome: RequestOutcome,
}

/// The same, borrowed from whoever counts.
#[derive(Debug, Clone, Copy)]
pub struct RequestKey<'a> {
    pub reporter: Reporter,
    pub source: SubjectRef<'a>,
    pub destination: SubjectRef<'a>,
    pub service: Option<&'a Arc<Service>>,
    pub security: ConnectionSecurity,
    pub outcome: RequestOutcome,
}

/// One end of a connection, borrowed.
#[derive(Debug, Clone, Copy, Default)]
pub struct SubjectRef<'a> {
    pub workload: Option<&'a Arc<Workload>>,
    pub identity: Option<&'a Identity>,
}

// === impl RequestProtocol, GrpcStatus ===

impl RequestProtocol {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }

    /// By the content type of the request: `application/grpc`, alone or before `+` or `;`.
    pub fn of_content_type(value: &[u8]) -> Self {
        const GRPC: &[u8] = b"application/grpc";
        let is_grpc = value.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
            && matches!(value.get(GRPC.len()), None | Some(b'+' | b';'));
        if is_grpc { Self::Grpc } else { Self::Http }
    }
}

impl GrpcStatus {
    /// The value of a field `grpc-status`.
    pub fn of_field(value: &[u8]) -> Self {
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        Self(number.filter(|status| *status <= GRPC_STATUS_MAX).unwrap_or(GRPC_UNKNOWN))
    }

    pub const fn code(self) -> u8 {
        self.0
    }
}

// === impl RequestLabels, RequestKey ===

impl RequestLabels {
    /// The labels of what no series of its own could be made for.
    pub(super) fn overflow(reporter: Reporter) -> Self {
        Self { ends: Labels::overflow(reporter), outcome: RequestOutcome::default() }
    }
}

impl RequestKey<'_> {
    pub(super) fn to_labels(self) -> RequestLabels {
        let subject =
            |it: SubjectRef<'_>| Subject { workload: it.workload.cloned(), identity: it.identity.cloned() };
        let ends = Labels {
            reporter: self.reporter,
            source: subject(self.source),
            destination: subject(self.destination),
            service: self.service.cloned(),
            flag: ResponseFlag::None,
            security: self.security,
        };
        RequestLabels { ends, outcome: self.outcome }
    }

    /// Whether the labels are of the very objects of this key. Objects that are equal and not the same say no.
    pub(super) fn is_of(&self, labels: &RequestLabels) -> bool {
        let ends = &labels.ends;
        self.outcome == labels.outcome
            && self.reporter == ends.reporter
            && self.security == ends.security
            && same(self.service, ends.service.as_ref())
            && self.source.is_of(&ends.source)
            && self.destination.is_of(&ends.destination)
    }

    /// Of the objects' places, without looking into them.
    pub(super) fn hash_places(&self, state: &mut impl Hasher) {
        place(self.source.workload).hash(state);
        place(self.destination.workload).hash(state);
        place(self.service).hash(state);
        self.outcome.hash(state);
    }
}

impl SubjectRef<'_> {
    fn is_of(&self, subject: &Subject) -> bool {
        same(self.workload, subject.workload.as_ref()) && self.identity == subject.identity.as_ref()
    }
}

fn same<T>(left: Option<&Arc<T>>, right: Option<&Arc<T>>) -> bool {
    place(left) == place(right)
}

fn place<T>(object: Option<&Arc<T>>) -> usize {
    object.map_or(0, |object| Arc::as_ptr(object).addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_by_its_content_type() {
        let grpc: [&[u8]; 4] = [
            b"application/grpc",
            b"application/grpc+proto",
            b"Application/gRPC;v=1",
            b"application/grpc+json",
        ];
        assert!(grpc.iter().all(|it| RequestProtocol::of_content_type(it) == RequestProtocol::Grpc));
        let http: [&[u8]; 4] = [b"", b"application/grpc-web", b"application/grp", b"text/plain"];
        assert!(http.iter().all(|it| RequestProtocol::of_content_type(it) == RequestProtocol::Http));
    }

    #[test]
    fn a_grpc_status_is_one_of_seventeen() {
        let codes = [("0", 0), ("16", 16), ("17", 2), ("x", 2), ("", 2), ("-1", 2), ("300", 2)];
        assert!(codes.iter().all(|(text, code)| GrpcStatus::of_field(text.as_bytes()).code() == *code));
    }
}
