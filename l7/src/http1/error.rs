//! What can be wrong with an HTTP/1.1 message, and the answer that each fault gets.

/// A message that is not forwarded. After any of these the connection is closed: its framing is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Http1Error {
    #[error("the head is malformed")]
    Malformed,
    #[error("a line ends in a bare CR or LF")]
    BareLineEnd,
    #[error("a field line is folded (RFC 9112 section 5.2)")]
    FoldedLine,
    #[error("the head or trailer section exceeds the limit")]
    HeadTooLarge,
    #[error("the request target exceeds the limit")]
    TargetTooLong,
    #[error("the request target is not a path or an absolute URI")]
    Target,
    #[error("the version is neither HTTP/1.1 nor HTTP/1.0")]
    Version,
    #[error("Host is missing, repeated or not a host")]
    Host,
    #[error("Content-Length is not one decimal number")]
    ContentLength,
    #[error("Transfer-Encoding is not exactly `chunked`, or stands in an HTTP/1.0 message")]
    TransferEncoding,
    #[error("both Content-Length and Transfer-Encoding are present")]
    AmbiguousFraming,
    #[error("the chunk framing is malformed")]
    Chunk,
    #[error("the trailer section carries a field that may not be there")]
    Trailer,
    #[error("CONNECT is not served on an HTTP port")]
    Connect,
    #[error("the expectation is not 100-continue")]
    Expectation,
    #[error("the message ended before its announced length")]
    Truncated,
}

impl Http1Error {
    /// Status of the answer to a downstream peer. A faulty upstream is answered with 502 instead.
    pub fn status(self) -> u16 {
        match self {
            Self::HeadTooLarge => 431,
            Self::TargetTooLong => 414,
            Self::Version => 505,
            Self::Connect => 405,
            Self::Expectation => 417,
            _ => 400,
        }
    }

    /// Stable label for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "http1_malformed",
            Self::BareLineEnd => "http1_bare_line_end",
            Self::FoldedLine => "http1_folded_line",
            Self::HeadTooLarge => "http1_head_too_large",
            Self::TargetTooLong => "http1_target_too_long",
            Self::Target => "http1_target",
            Self::Version => "http1_version",
            Self::Host => "http1_host",
            Self::ContentLength => "http1_content_length",
            Self::TransferEncoding => "http1_transfer_encoding",
            Self::AmbiguousFraming => "http1_ambiguous_framing",
            Self::Chunk => "http1_chunk",
            Self::Trailer => "http1_trailer",
            Self::Connect => "http1_connect",
            Self::Expectation => "http1_expectation",
            Self::Truncated => "http1_truncated",
        }
    }
}
