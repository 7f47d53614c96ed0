//! What happens beside the straight way of a request: another try, the same endpoint again, a fault made on purpose.

use std::num::NonZeroU32;
use std::sync::Arc;

/// When a request is tried again, and how often (`HTTPRouteRetry`, `HTTPRetry`). The limit on each try is
/// [`super::Timeouts::backend_request_ms`].
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Further tries after the first.
    pub attempts: u32,
    pub on: RetryOn,
    /// Before the second try; doubled for each further one up to `backoff_max_ms`, and drawn at random below that.
    /// `None`: 25 ms.
    pub backoff_ms: Option<NonZeroU32>,
    /// `None`: ten times `backoff_ms`.
    pub backoff_max_ms: Option<NonZeroU32>,
}

/// What calls for another try. Where nothing of a request has reached a backend, it is tried again in any case that is named here.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryOn {
    /// No connection was to be had.
    pub connect_failure: bool,
    /// The backend refused the stream (HTTP/2 REFUSED_STREAM).
    pub refused_stream: bool,
    /// The backend ended the stream or the connection before its response began, or took longer than the limit on a try.
    pub reset: bool,
    /// As `reset`, but only if nothing of the request was sent.
    pub reset_before_request: bool,
    /// The limit on a try has passed.
    pub timeout: bool,
    /// Any status from 500 to 599, and `reset`.
    pub server_error: bool,
    /// 502, 503 or 504.
    pub gateway_error: bool,
    /// 409.
    pub retriable_4xx: bool,
    pub statuses: Vec<u16>,
    /// Codes of gRPC responses that consist of trailers only.
    pub grpc_codes: Vec<u16>,
}

/// At most this share of the requests to a backend may be further tries (`retryConstraint`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryBudget {
    pub percent: u32,
    /// The interval over which requests are counted.
    pub interval_ms: NonZeroU32,
    /// So many further tries are allowed in `min_interval_ms` even where the share is lower.
    pub min_retries: u32,
    pub min_interval_ms: NonZeroU32,
}

/// Requests of one session go to one endpoint (`SessionPersistence`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionPersistence {
    /// Of the cookie or the header (lower case).
    pub name: Arc<str>,
    pub carrier: SessionCarrier,
    /// After that long the session may go elsewhere.
    pub absolute_timeout_s: Option<NonZeroU32>,
    pub idle_timeout_s: Option<NonZeroU32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SessionCarrier {
    /// Until the client forgets it.
    SessionCookie,
    /// With `absolute_timeout_s` as its Max-Age.
    PermanentCookie,
    Header,
}

/// The delay comes before the abort (`HTTPFaultInjection`).
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub delay: Option<FaultDelay>,
    pub abort: Option<FaultAbort>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultDelay {
    pub delay_ms: NonZeroU32,
    pub share: Fraction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultAbort {
    pub with: AbortWith,
    pub share: Fraction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum AbortWith {
    /// An HTTP status.
    Http(u16),
    /// A gRPC code in a response of trailers only.
    Grpc(u16),
}

/// A share of requests, each drawn alone. Never above one; the denominator is not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fraction {
    pub numerator: u32,
    pub denominator: NonZeroU32,
}

impl Fraction {
    pub const ALL: Self = Self { numerator: 1, denominator: NonZeroU32::MIN };

    pub fn percent(percent: u32) -> Self {
        Self { numerator: percent.min(100), denominator: NonZeroU32::MIN.saturating_add(99) }
    }

    /// Whether a request belongs to the share, by a number drawn evenly from all.
    pub fn takes(self, random: u64) -> bool {
        // The high half of the product is even over 0..denominator.
        let drawn = (u128::from(random) * u128::from(self.denominator.get())) >> 64;
        drawn < u128::from(self.numerator)
    }
}
