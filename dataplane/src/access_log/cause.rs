//! Why a connection or request ended: the closed set behind `close_cause` in logs and `response_flags` in metrics.

use std::fmt;

use super::record::Direction;

/// Each value is one thing an operator can act upon. `label` is stable: dashboards and alerts name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CloseCause {
    /// Both directions ended in order.
    #[default]
    Finished,
    /// An authorization policy denied it.
    PolicyDenied,
    /// A request carries a token that is not valid.
    TokenRefused,
    /// It was allowed once; a changed policy denies it now.
    PolicyChanged,
    /// The pod whose connection was captured is not known to the control plane (yet).
    UnknownWorkload,
    /// The control plane did not say in time whose the destination is (on-demand discovery).
    UnknownDestination,
    /// The service has no endpoint that may be used.
    NoHealthyEndpoint,
    /// The endpoint is known by host name only, and no name server has an address for it.
    NameUnresolved,
    /// The destination is one of the proxy's own ports.
    ReservedPort,
    /// The TCP connection to the next hop or to the application failed.
    ConnectFailed,
    ConnectTimedOut,
    /// The TLS handshake with the peer failed.
    TlsFailed,
    /// The peer proved an identity that the destination does not have.
    IdentityMismatch,
    /// This pod's own certificate has not been issued yet, or has expired.
    CertificateMissing,
    CertificateRevoked,
    /// The HTTP/2 session of the tunnel failed.
    TunnelFailed,
    /// The peer's proxy answered the CONNECT with another status than 200.
    TunnelRefused,
    /// The CONNECT names an address that is not the dialled pod's.
    WrongDestination,
    /// The application or the client sent something that is not valid HTTP.
    InvalidHttp,
    /// No rule of any route of the service matches the request.
    NoRoute,
    /// The route made a fault on purpose.
    FaultInjected,
    ClientReset,
    ServerReset,
    IdleTimeout,
    RequestTimeout,
    /// A bound of this proxy was reached; `corelane_limit_hits_total` names which.
    LimitReached,
    /// A bound of the service's own traffic policy was reached.
    UpstreamOverflow,
    /// The proxy, or the pod, is going away.
    Drained,
}

/// Istio's `response_flags` values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ResponseFlag {
    #[default]
    None,
    Deny,
    Connect,
    TlsFailure,
    Http2HandshakeFailure,
    NetworkPolicy,
    IdentityError,
    CertificateRevoked,
}

/// Envoy's response flags, which Istio's metrics and logs of requests carry.
/// <https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage>, `%RESPONSE_FLAGS%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RequestFlag {
    /// `-`: nothing that the proxy did; a denial by policy has none either.
    #[default]
    None,
    NoHealthyUpstream,
    NoRouteFound,
    FaultInjected,
    NoClusterFound,
    DnsResolutionFailed,
    UpstreamConnectionFailure,
    UpstreamConnectionTermination,
    UpstreamRequestTimeout,
    UpstreamProtocolError,
    DownstreamConnectionTermination,
    DownstreamProtocolError,
    StreamIdleTimeout,
    LocalReset,
    OverloadManager,
    UpstreamOverflow,
}

// === impl CloseCause ===

impl CloseCause {
    pub const ALL: [Self; 28] = [
        Self::Finished,
        Self::PolicyDenied,
        Self::TokenRefused,
        Self::PolicyChanged,
        Self::UnknownWorkload,
        Self::UnknownDestination,
        Self::NoHealthyEndpoint,
        Self::NameUnresolved,
        Self::ReservedPort,
        Self::ConnectFailed,
        Self::ConnectTimedOut,
        Self::TlsFailed,
        Self::IdentityMismatch,
        Self::CertificateMissing,
        Self::CertificateRevoked,
        Self::TunnelFailed,
        Self::TunnelRefused,
        Self::WrongDestination,
        Self::InvalidHttp,
        Self::NoRoute,
        Self::FaultInjected,
        Self::ClientReset,
        Self::ServerReset,
        Self::IdleTimeout,
        Self::RequestTimeout,
        Self::LimitReached,
        Self::UpstreamOverflow,
        Self::Drained,
    ];

    /// The stable label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::PolicyDenied => "policy_denied",
            Self::TokenRefused => "token_refused",
            Self::PolicyChanged => "policy_changed",
            Self::UnknownWorkload => "unknown_workload",
            Self::UnknownDestination => "unknown_destination",
            Self::NoHealthyEndpoint => "no_healthy_endpoint",
            Self::NameUnresolved => "name_unresolved",
            Self::ReservedPort => "reserved_port",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimedOut => "connect_timed_out",
            Self::TlsFailed => "tls_failed",
            Self::IdentityMismatch => "identity_mismatch",
            Self::CertificateMissing => "certificate_missing",
            Self::CertificateRevoked => "certificate_revoked",
            Self::TunnelFailed => "tunnel_failed",
            Self::TunnelRefused => "tunnel_refused",
            Self::WrongDestination => "wrong_destination",
            Self::InvalidHttp => "invalid_http",
            Self::NoRoute => "no_route",
            Self::FaultInjected => "fault_injected",
            Self::ClientReset => "client_reset",
            Self::ServerReset => "server_reset",
            Self::IdleTimeout => "idle_timeout",
            Self::RequestTimeout => "request_timeout",
            Self::LimitReached => "limit_reached",
            Self::UpstreamOverflow => "upstream_overflow",
            Self::Drained => "drained",
        }
    }

    /// The `error` text of a log line; `None` for an orderly end.
    pub const fn error(self) -> Option<&'static str> {
        Some(match self {
            Self::Finished => return None,
            Self::PolicyDenied => "connection closed by policy: denied",
            Self::TokenRefused => "the request's token is not valid",
            Self::PolicyChanged => "connection closed due to policy change",
            Self::UnknownWorkload => "the workload is not known to the control plane",
            Self::UnknownDestination => "the control plane did not say whose the destination is",
            Self::NoHealthyEndpoint => "no healthy upstream",
            Self::NameUnresolved => "the host name of the upstream has no address",
            Self::ReservedPort => "the destination is a port of the proxy itself",
            Self::ConnectFailed => "connection to the next hop failed",
            Self::ConnectTimedOut => "connection to the next hop timed out",
            Self::TlsFailed => "TLS handshake failed",
            Self::IdentityMismatch => "the peer proved another identity than the destination's",
            Self::CertificateMissing => "no valid certificate for the workload",
            Self::CertificateRevoked => "the peer's certificate is revoked",
            Self::TunnelFailed => "the HTTP/2 session of the tunnel failed",
            Self::TunnelRefused => "the peer's proxy refused the tunnel",
            Self::WrongDestination => "the tunnel names another pod's address",
            Self::InvalidHttp => "invalid HTTP message",
            Self::NoRoute => "no route matches the request",
            Self::FaultInjected => "the route aborts the request on purpose",
            Self::ClientReset => "connection reset by the client",
            Self::ServerReset => "connection reset by the server",
            Self::IdleTimeout => "idle timeout",
            Self::RequestTimeout => "request timeout",
            Self::LimitReached => "a limit of the proxy was reached",
            Self::UpstreamOverflow => "a limit of the service's traffic policy was reached",
            Self::Drained => "the proxy is draining",
        })
    }

    /// Whether it ends connections before their destination is known or, for those from outside, their client.
    pub const fn is_early(self, direction: Direction) -> bool {
        match self {
            Self::UnknownWorkload
            | Self::NoHealthyEndpoint
            | Self::ReservedPort
            | Self::CertificateMissing
            | Self::WrongDestination => true,
            Self::TlsFailed | Self::IdentityMismatch | Self::CertificateRevoked => {
                matches!(direction, Direction::Inbound)
            }
            _ => false,
        }
    }

    /// Istio's coarser `response_flags` value.
    pub const fn flag(self) -> ResponseFlag {
        match self {
            Self::PolicyDenied | Self::TokenRefused | Self::PolicyChanged => ResponseFlag::Deny,
            Self::ConnectFailed
            | Self::ConnectTimedOut
            | Self::NoHealthyEndpoint
            | Self::NameUnresolved
            | Self::UnknownWorkload
            | Self::UnknownDestination
            | Self::TunnelRefused
            | Self::WrongDestination
            | Self::ReservedPort => ResponseFlag::Connect,
            Self::TlsFailed => ResponseFlag::TlsFailure,
            Self::TunnelFailed => ResponseFlag::Http2HandshakeFailure,
            Self::IdentityMismatch | Self::CertificateMissing => ResponseFlag::IdentityError,
            Self::CertificateRevoked => ResponseFlag::CertificateRevoked,
            Self::Finished
            | Self::InvalidHttp
            | Self::NoRoute
            | Self::FaultInjected
            | Self::ClientReset
            | Self::ServerReset
            | Self::IdleTimeout
            | Self::RequestTimeout
            | Self::LimitReached
            | Self::UpstreamOverflow
            | Self::Drained => ResponseFlag::None,
        }
    }
}

impl CloseCause {
    /// Envoy's flag for a request that ended so with this status.
    pub const fn request_flag(self, status: u16) -> RequestFlag {
        match self {
            Self::Finished
            | Self::PolicyDenied
            | Self::TokenRefused
            | Self::UnknownWorkload
            | Self::ReservedPort
            | Self::WrongDestination => RequestFlag::None,
            Self::NoHealthyEndpoint => RequestFlag::NoHealthyUpstream,
            Self::NoRoute => RequestFlag::NoRouteFound,
            Self::FaultInjected => RequestFlag::FaultInjected,
            Self::UnknownDestination => RequestFlag::NoClusterFound,
            Self::NameUnresolved => RequestFlag::DnsResolutionFailed,
            Self::ConnectFailed
            | Self::ConnectTimedOut
            | Self::TlsFailed
            | Self::IdentityMismatch
            | Self::CertificateMissing
            | Self::CertificateRevoked
            | Self::TunnelFailed
            | Self::TunnelRefused => RequestFlag::UpstreamConnectionFailure,
            Self::ServerReset => RequestFlag::UpstreamConnectionTermination,
            Self::ClientReset => RequestFlag::DownstreamConnectionTermination,
            // The proxy says 502 of a bad response, and what it says of a bad request is the client's fault.
            Self::InvalidHttp if status >= 500 => RequestFlag::UpstreamProtocolError,
            Self::InvalidHttp => RequestFlag::DownstreamProtocolError,
            // A head that does not come has no flag.
            Self::RequestTimeout if status == 408 => RequestFlag::None,
            Self::RequestTimeout => RequestFlag::UpstreamRequestTimeout,
            Self::IdleTimeout => RequestFlag::StreamIdleTimeout,
            Self::LimitReached => RequestFlag::OverloadManager,
            Self::UpstreamOverflow => RequestFlag::UpstreamOverflow,
            Self::PolicyChanged | Self::Drained => RequestFlag::LocalReset,
        }
    }
}

impl fmt::Display for CloseCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

// === impl ResponseFlag ===

impl ResponseFlag {
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::Http2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertificateRevoked => "CERT_REVOKED",
        }
    }
}

// === impl RequestFlag ===

impl RequestFlag {
    /// Envoy's short form.
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoHealthyUpstream => "UH",
            Self::NoRouteFound => "NR",
            Self::FaultInjected => "FI",
            Self::NoClusterFound => "NC",
            Self::DnsResolutionFailed => "DF",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamProtocolError => "UPE",
            Self::DownstreamConnectionTermination => "DC",
            Self::DownstreamProtocolError => "DPE",
            Self::StreamIdleTimeout => "SI",
            Self::LocalReset => "LR",
            Self::OverloadManager => "OM",
            Self::UpstreamOverflow => "UO",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn labels_are_distinct_and_fit_for_a_metric() {
        let labels: BTreeSet<_> = CloseCause::ALL.iter().map(|c| c.label()).collect();
        assert_eq!(labels.len(), CloseCause::ALL.len());
        assert!(labels.iter().all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }

    #[test]
    fn only_an_orderly_end_is_no_error() {
        for cause in CloseCause::ALL {
            assert_eq!(cause.error().is_none(), cause == CloseCause::Finished, "{cause}");
        }
    }
}
