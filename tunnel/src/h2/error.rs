//! Error codes of the protocol and the errors of the engine's calls.

use std::time::Duration;

use thiserror::Error;

/// Error code of RST_STREAM and GOAWAY (RFC 9113 section 7). Unknown codes are kept as they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Graceful end.
    pub const NO_ERROR: Self = Self(0x0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(0x1);
    /// Our own fault.
    pub const INTERNAL_ERROR: Self = Self(0x2);
    /// The peer overran a window.
    pub const FLOW_CONTROL_ERROR: Self = Self(0x3);
    /// SETTINGS were not acknowledged in time.
    pub const SETTINGS_TIMEOUT: Self = Self(0x4);
    /// A frame for a stream whose sender had ended it.
    pub const STREAM_CLOSED: Self = Self(0x5);
    /// A frame of the wrong size.
    pub const FRAME_SIZE_ERROR: Self = Self(0x6);
    /// The stream was not processed; it may be tried again elsewhere.
    pub const REFUSED_STREAM: Self = Self(0x7);
    /// The stream is no longer wanted.
    pub const CANCEL: Self = Self(0x8);
    /// The header compression state is lost.
    pub const COMPRESSION_ERROR: Self = Self(0x9);
    /// The connection behind a CONNECT failed.
    pub const CONNECT_ERROR: Self = Self(0xa);
    /// The peer behaves as an attacker would.
    pub const ENHANCE_YOUR_CALM: Self = Self(0xb);
    /// The transport is not safe enough.
    pub const INADEQUATE_SECURITY: Self = Self(0xc);
    /// HTTP/1.1 is wanted instead.
    pub const HTTP_1_1_REQUIRED: Self = Self(0xd);
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => formatter.write_str(name),
            None => write!(formatter, "error code {:#x}", self.0),
        }
    }
}

/// The connection is over. A GOAWAY with the code has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConnectionError {
    /// The peer broke the protocol or a limit.
    #[error("HTTP/2 connection closed with {code}: {detail}")]
    Violation {
        /// What the GOAWAY says.
        code: ErrorCode,
        /// Which rule was broken.
        detail: &'static str,
    },
    /// A keepalive PING was not answered in time.
    #[error("HTTP/2 connection closed: the peer did not answer a PING in time")]
    KeepAliveTimeout,
    /// The peer did not end in time what it had begun (see [`super::Limits::completion_timeout`]).
    #[error("HTTP/2 connection closed with {code}: the peer took longer than {} s for {what}", .timeout.as_secs())]
    Late {
        /// What the GOAWAY says.
        code: ErrorCode,
        /// What was due.
        what: &'static str,
        /// How long that may take.
        timeout: Duration,
    },
}

impl ConnectionError {
    /// The code that the GOAWAY carried.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Violation { code, .. } | Self::Late { code, .. } => *code,
            Self::KeepAliveTimeout => ErrorCode::NO_ERROR,
        }
    }
}

/// Why no stream could be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The peer's (or our own) limit of concurrent streams is reached; an ended stream makes room.
    #[error("no HTTP/2 stream opened: the limit of concurrent streams is reached")]
    TooManyStreams,
    /// GOAWAY was sent or received, or the connection failed; use another connection.
    #[error("no HTTP/2 stream opened: the connection is closing")]
    GoingAway,
    /// All stream ids are used up; use another connection.
    #[error("no HTTP/2 stream opened: stream identifiers are exhausted")]
    Exhausted,
    /// The peer said that it does not take header lists of this size.
    #[error("no HTTP/2 stream opened: the request's headers exceed the peer's SETTINGS_MAX_HEADER_LIST_SIZE")]
    HeadersTooLarge,
    /// Only clients open streams, and only with request headers.
    #[error("no HTTP/2 stream opened: not a client, or not request headers")]
    NotARequest,
}

/// Why nothing was sent on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// The stream has ended, was reset, or never was.
    #[error("nothing sent: the HTTP/2 stream does not exist any more")]
    NoSuchStream,
    /// Our side has sent END_STREAM already.
    #[error("nothing sent: END_STREAM was sent before")]
    AlreadyEnded,
    /// DATA or trailers before headers, a second response, response headers from a client.
    #[error("nothing sent: the message is out of order for this HTTP/2 stream")]
    OutOfOrder,
    /// The peer said that it does not take header lists of this size.
    #[error("nothing sent: the headers exceed the peer's SETTINGS_MAX_HEADER_LIST_SIZE")]
    HeadersTooLarge,
}
