//! What a worker notes about a connection or request: shared references and numbers, no formatted text.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayString;
use l7::telemetry::Side;
use model::{Identity, Service, Workload};
use tunnel::tls::CipherSuite;

use super::asked::Asked;
use super::cause::CloseCause;
use crate::metrics::{GrpcStatus, RequestProtocol};
use crate::trace::{SpanFacts, TraceContext};

/// Longest request path kept in a record; the rest is cut and the line says so.
pub const PATH_BYTES_MAX: usize = 256;
/// Longest method kept in a record. RFC 9110 section 9 methods have at most 7 letters.
pub const METHOD_BYTES_MAX: usize = 24;
/// Longest authority kept: a host name has 253 at most, but those of a mesh are far shorter.
pub const AUTHORITY_BYTES_MAX: usize = 128;
pub const USER_AGENT_BYTES_MAX: usize = 128;
/// Longest request id kept; a UUID has 36.
pub const REQUEST_ID_BYTES_MAX: usize = 64;
/// Longest value kept of a header that telemetry asks for.
pub const HEADER_BYTES_MAX: usize = 256;

/// From the captured pod's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

/// One end of a connection as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Party {
    pub address: Option<SocketAddr>,
    pub workload: Option<Arc<Workload>>,
    /// Proved by TLS. `None` for plain text.
    pub identity: Option<Identity>,
}

/// What the tunnel's CONNECT named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    Address(SocketAddr),
    Hostname(Arc<str>, u16),
}

/// The TLS session that carried it. The suite tells the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsFacts {
    pub cipher_suite: CipherSuite,
}

/// A request method, cut to [`METHOD_BYTES_MAX`].
pub type Method = ArrayString<METHOD_BYTES_MAX>;

/// A text of a request, cut to so many bytes.
pub type Kept<const N: usize> = ArrayString<N>;

/// A request path with its query, cut to [`PATH_BYTES_MAX`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Path {
    text: ArrayString<PATH_BYTES_MAX>,
    cut: bool,
}

/// What is known of a request where the proxy understood HTTP.
#[derive(Debug, Clone, Default)]
pub struct HttpFacts {
    pub method: Method,
    pub path: Path,
    /// As the client was answered; 0 if it was not.
    pub status: u16,
    /// `namespace/name` of the route, and the number of its rule.
    pub route: Option<(Arc<str>, u16)>,
    /// `namespace/name` of the policy that decided.
    pub policy: Option<Arc<str>>,
    /// What policies say that decide nothing; `None` where there is nothing to tell.
    pub observed: Option<Box<Observed>>,
    /// `Host` or `:authority` as sent.
    pub authority: Kept<AUTHORITY_BYTES_MAX>,
    pub user_agent: Kept<USER_AGENT_BYTES_MAX>,
    /// `x-request-id`: the client's, else one that was made here.
    pub request_id: Kept<REQUEST_ID_BYTES_MAX>,
    /// The span that the client spoke of.
    pub caller: Option<TraceContext>,
    /// That of this proxy, where the request is sampled.
    pub span: Option<SpanFacts>,
    pub protocol: RequestProtocol,
    /// Only of gRPC, where the call came to its end.
    pub grpc_status: Option<GrpcStatus>,
    /// gRPC messages of the client and of the server.
    pub messages: [u64; 2],
    /// Those headers of the request that its telemetry asks for, by their names in lower case.
    pub headers: Vec<(Arc<str>, Box<str>)>,
}

/// What AUDIT policies and those on trial say of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    pub dry_run: Option<DryRun>,
    /// `namespace/name` of the first AUDIT policy that holds.
    pub audit: Option<Arc<str>>,
}

/// What would have become of a request if the dry-run policies alone were in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    pub allowed: bool,
    /// `namespace/name` of the policy that would have decided; none where no ALLOW policy holds, or none is there.
    pub policy: Option<Arc<str>>,
}

/// Which moment a record tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// The connection is established. Only told of where the log filter asks for it.
    Opened,
    #[default]
    Ended,
}

/// How much a line matters, in the words of the log filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// A finished connection, or a finished request of one; or the opening of one.
#[derive(Debug, Clone)]
pub struct Record {
    pub stage: Stage,
    pub direction: Direction,
    pub source: Party,
    /// Its address is the next hop, tunnel port included.
    pub destination: Party,
    pub hbone_authority: Option<Authority>,
    /// The service that was addressed, if one was.
    pub service: Option<Arc<Service>>,
    pub tls: Option<TlsFacts>,
    pub worker: u16,
    /// Sent by the local pod.
    pub bytes_sent: u64,
    /// Received by the local pod.
    pub bytes_received: u64,
    pub duration: Duration,
    pub cause: CloseCause,
    /// Boxed: most connections are not understood as HTTP and need not carry its size.
    pub http: Option<Box<HttpFacts>>,
    /// What is to be told of it; `None`: everything.
    pub telemetry: Option<Arc<Side>>,
}

// === impl Direction ===

impl Direction {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

// === impl Level ===

impl Level {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

// === impl Record ===

impl Record {
    /// Whether it was turned away before it was known where it should go, or to whom: there are no bytes and no
    /// duration to speak of.
    pub fn is_early_denial(&self) -> bool {
        self.stage == Stage::Ended && self.http.is_none() && self.cause.is_early(self.direction)
    }

    /// Whether a collector wants it as a span.
    pub fn is_sampled(&self) -> bool {
        self.http.as_ref().is_some_and(|http| http.span.is_some())
    }

    /// Whether the telemetry of its workload lets it stand in the log. Not for workers: expressions may take their time.
    pub fn is_told(&self) -> bool {
        self.telemetry.as_ref().is_none_or(|telemetry| telemetry.logs(&Asked(self)))
    }

    /// Whether no log wants it, whatever else it says.
    pub(super) fn is_silenced(&self) -> bool {
        self.telemetry.as_ref().is_some_and(|telemetry| telemetry.is_silent())
    }

    /// What came from the client, whichever side this is.
    pub fn request_bytes(&self) -> u64 {
        match self.direction {
            Direction::Outbound => self.bytes_sent,
            Direction::Inbound => self.bytes_received,
        }
    }

    /// What went to the client.
    pub fn response_bytes(&self) -> u64 {
        match self.direction {
            Direction::Outbound => self.bytes_received,
            Direction::Inbound => self.bytes_sent,
        }
    }

    /// Istio's `response_flags`: Envoy's for a request, ztunnel's for a connection.
    pub fn flags(&self) -> &'static str {
        match &self.http {
            Some(http) => self.cause.request_flag(http.status).label(),
            None => self.cause.flag().label(),
        }
    }

    pub fn level(&self) -> Level {
        match self.stage {
            Stage::Opened => Level::Debug,
            Stage::Ended if self.is_early_denial() => Level::Warn,
            Stage::Ended if self.cause.error().is_some() => Level::Error,
            Stage::Ended => Level::Info,
        }
    }
}

// === impl TlsFacts ===

impl TlsFacts {
    pub const fn version_name(self) -> &'static str {
        self.cipher_suite.version().name()
    }

    /// The IANA name.
    pub const fn cipher_suite_name(self) -> &'static str {
        self.cipher_suite.name()
    }
}

impl From<CipherSuite> for TlsFacts {
    fn from(cipher_suite: CipherSuite) -> Self {
        Self { cipher_suite }
    }
}

// === impl Path ===

impl Path {
    /// Keeps the first [`PATH_BYTES_MAX`] bytes, cut at a character boundary.
    pub fn new(path: &str) -> Self {
        let kept = prefix(path, PATH_BYTES_MAX);
        Self { text: ArrayString::from(kept).unwrap_or_default(), cut: kept.len() < path.len() }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_cut(&self) -> bool {
        self.cut
    }
}

/// A method for a record, cut to its bound.
pub fn method(text: &str) -> Method {
    kept(text)
}

/// A text for a record, cut to its bound at a character.
pub fn kept<const N: usize>(text: &str) -> Kept<N> {
    ArrayString::from(prefix(text, N)).unwrap_or_default()
}

pub(super) fn prefix(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_are_cut_at_a_character() {
        let path = format!("/{}", "é".repeat(PATH_BYTES_MAX));
        let kept = Path::new(&path);
        assert!(kept.is_cut());
        assert_eq!(kept.as_str().len(), PATH_BYTES_MAX - 1);
        assert!(path.starts_with(kept.as_str()));
        assert!(!Path::new("/v1").is_cut());
        assert_eq!(method(&"M".repeat(100)).len(), METHOD_BYTES_MAX);
    }
}
