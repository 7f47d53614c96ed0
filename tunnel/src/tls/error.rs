//! Why a TLS connection did not come about, or ended: errors for the caller, labels for logs and metrics.

use model::identity::{Identity, IdentityError};

/// The closed set of labels under which connections are counted and logged.
///
/// The texts are an interface: dashboards and alerts compare them. New ones may be added, none may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CloseCause {
    /// The peer ended the connection in order.
    Clean,
    /// We ended it: drained, idle, told to, or its key was used up.
    LocalClose,
    /// The transport ended without the closing alert of RFC 8446 section 6.1.
    Truncated,
    TlsCertificateExpired,
    TlsCertificateNotYetValid,
    TlsCertificateUntrusted,
    TlsCertificateUsage,
    TlsCertificateRevoked,
    TlsCertificateMalformed,
    TlsCertificateMissing,
    TlsSanMissing,
    TlsSanMultiple,
    TlsSanMalformed,
    TlsTrustDomain,
    TlsIdentityUnexpected,
    /// The peer refused us: its alert is in the error.
    TlsAlertReceived,
    /// No common version, suite, group or protocol.
    TlsNegotiation,
    /// A record failed authentication.
    TlsBadRecord,
    /// The peer broke the TLS protocol.
    TlsProtocol,
    TlsHandshakeTimeout,
    /// The peer broke HTTP/2.
    Http2Protocol,
    /// The peer drove one of our bounds (RFC 9113 section 10.5).
    Http2Abuse,
    /// The peer did not end in time what it had begun: its preface and SETTINGS, a frame, a header block.
    Http2Timeout,
    /// No answer to a liveness PING.
    PingTimeout,
    /// The fault is ours, and is in the log.
    Internal,
}

impl CloseCause {
    pub const ALL: [Self; 25] = [
        Self::Clean,
        Self::LocalClose,
        Self::Truncated,
        Self::TlsCertificateExpired,
        Self::TlsCertificateNotYetValid,
        Self::TlsCertificateUntrusted,
        Self::TlsCertificateUsage,
        Self::TlsCertificateRevoked,
        Self::TlsCertificateMalformed,
        Self::TlsCertificateMissing,
        Self::TlsSanMissing,
        Self::TlsSanMultiple,
        Self::TlsSanMalformed,
        Self::TlsTrustDomain,
        Self::TlsIdentityUnexpected,
        Self::TlsAlertReceived,
        Self::TlsNegotiation,
        Self::TlsBadRecord,
        Self::TlsProtocol,
        Self::TlsHandshakeTimeout,
        Self::Http2Protocol,
        Self::Http2Abuse,
        Self::Http2Timeout,
        Self::PingTimeout,
        Self::Internal,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::LocalClose => "local_close",
            Self::Truncated => "truncated",
            Self::TlsCertificateExpired => "tls_certificate_expired",
            Self::TlsCertificateNotYetValid => "tls_certificate_not_yet_valid",
            Self::TlsCertificateUntrusted => "tls_certificate_untrusted",
            Self::TlsCertificateUsage => "tls_certificate_usage",
            Self::TlsCertificateRevoked => "tls_certificate_revoked",
            Self::TlsCertificateMalformed => "tls_certificate_malformed",
            Self::TlsCertificateMissing => "tls_certificate_missing",
            Self::TlsSanMissing => "tls_san_missing",
            Self::TlsSanMultiple => "tls_san_multiple",
            Self::TlsSanMalformed => "tls_san_malformed",
            Self::TlsTrustDomain => "tls_trust_domain",
            Self::TlsIdentityUnexpected => "tls_identity_unexpected",
            Self::TlsAlertReceived => "tls_alert_received",
            Self::TlsNegotiation => "tls_negotiation",
            Self::TlsBadRecord => "tls_bad_record",
            Self::TlsProtocol => "tls_protocol",
            Self::TlsHandshakeTimeout => "tls_handshake_timeout",
            Self::Http2Protocol => "http2_protocol",
            Self::Http2Abuse => "http2_abuse",
            Self::Http2Timeout => "http2_timeout",
            Self::PingTimeout => "ping_timeout",
            Self::Internal => "internal",
        }
    }
}

/// Why a peer's certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("the peer's certificate has expired; it must renew it, or its clock and ours differ")]
    Expired,
    #[error("the peer's certificate is not valid yet; its clock and ours differ")]
    NotYetValid,
    #[error("the peer's certificate does not chain to a root we trust; compare the roots of both sides")]
    Untrusted,
    #[error("the peer's certificate is not meant for this role (extended key usage, or a CA as leaf)")]
    Usage,
    #[error("the peer's certificate is revoked")]
    Revoked,
    #[error("the peer's certificate cannot be read")]
    Malformed,
    #[error("the peer's certificate holds no URI SAN, so it names no workload")]
    SanMissing,
    #[error("the peer's certificate holds {0} URI SANs; a SPIFFE certificate holds exactly one")]
    SanMultiple(usize),
    #[error("the URI SAN of the peer's certificate is no workload identity: {0}")]
    SanMalformed(#[from] IdentityError),
    #[error("the peer {peer} is of another trust domain than ours, {own}")]
    TrustDomain { peer: Identity, own: String },
    #[error("the peer is {0}, which is none of the identities expected at this address")]
    IdentityUnexpected(Identity),
}

impl VerifyError {
    pub const fn close_cause(&self) -> CloseCause {
        match self {
            Self::Expired => CloseCause::TlsCertificateExpired,
            Self::NotYetValid => CloseCause::TlsCertificateNotYetValid,
            Self::Untrusted => CloseCause::TlsCertificateUntrusted,
            Self::Usage => CloseCause::TlsCertificateUsage,
            Self::Revoked => CloseCause::TlsCertificateRevoked,
            Self::Malformed => CloseCause::TlsCertificateMalformed,
            Self::SanMissing => CloseCause::TlsSanMissing,
            Self::SanMultiple(_) => CloseCause::TlsSanMultiple,
            Self::SanMalformed(_) => CloseCause::TlsSanMalformed,
            Self::TrustDomain { .. } => CloseCause::TlsTrustDomain,
            Self::IdentityUnexpected(_) => CloseCause::TlsIdentityUnexpected,
        }
    }
}

/// An AlertDescription of RFC 8446 section 6, as the byte on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlertCode(pub u8);

impl AlertCode {
    pub const CLOSE_NOTIFY: Self = Self(0);
    pub const UNEXPECTED_MESSAGE: Self = Self(10);
    pub const BAD_RECORD_MAC: Self = Self(20);
    pub const RECORD_OVERFLOW: Self = Self(22);
    pub const ILLEGAL_PARAMETER: Self = Self(47);
    pub const DECODE_ERROR: Self = Self(50);
    pub const INTERNAL_ERROR: Self = Self(80);
    pub const USER_CANCELED: Self = Self(90);
}

/// Why a TLS connection failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error("the peer presented no certificate")]
    CertificateMissing,
    #[error("the peer sent the fatal alert {description} ({code}): it refused us or met an error")]
    AlertReceived { code: u8, description: String },
    #[error("no common ground in the handshake: {0}")]
    Negotiation(String),
    #[error("a record failed authentication: it was damaged or forged on the way")]
    BadRecord,
    #[error("the peer broke the TLS protocol: {reason}")]
    Protocol { reason: String, alert: AlertCode },
    #[error(
        "the key of a TLS 1.2 connection has sealed as many records as it may; such a key cannot be replaced"
    )]
    KeyExhausted,
    #[error("the handshake took longer than {0} s")]
    HandshakeTimeout(u64),
    #[error("a fault in our own TLS state: {0}")]
    Internal(String),
}

impl TlsError {
    pub const fn close_cause(&self) -> CloseCause {
        match self {
            Self::Verify(error) => error.close_cause(),
            Self::CertificateMissing => CloseCause::TlsCertificateMissing,
            Self::AlertReceived { .. } => CloseCause::TlsAlertReceived,
            Self::Negotiation(_) => CloseCause::TlsNegotiation,
            Self::BadRecord => CloseCause::TlsBadRecord,
            Self::Protocol { .. } => CloseCause::TlsProtocol,
            Self::KeyExhausted => CloseCause::LocalClose,
            Self::HandshakeTimeout(_) => CloseCause::TlsHandshakeTimeout,
            Self::Internal(_) => CloseCause::Internal,
        }
    }

    pub(crate) fn protocol(reason: impl Into<String>, alert: AlertCode) -> Self {
        Self::Protocol { reason: reason.into(), alert }
    }

    /// The alert that tells the peer, for errors found after the handshake (rustls writes its own before).
    pub(crate) const fn alert(&self) -> Option<AlertCode> {
        match self {
            Self::BadRecord => Some(AlertCode::BAD_RECORD_MAC),
            Self::Protocol { alert, .. } => Some(*alert),
            Self::KeyExhausted => Some(AlertCode::CLOSE_NOTIFY),
            Self::Internal(_) => Some(AlertCode::INTERNAL_ERROR),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_cause_labels_are_distinct_and_plain() {
        let mut labels: Vec<_> = CloseCause::ALL.iter().map(|cause| cause.label()).collect();
        assert!(labels.iter().all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'2')));
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), CloseCause::ALL.len());
    }
}
