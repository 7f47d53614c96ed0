//! Strict HTTP/1.1 framing (RFC 9112), without I/O: heads, bodies, what may be forwarded, when a connection may be
//! used again.
//!
//! Invariants:
//! - A message has exactly one framing. Whatever could be read in two ways by two parsers (both Content-Length and
//!   Transfer-Encoding, a bare LF, a folded line, a sign in a chunk size) is refused, never repaired.
//! - Heads are written anew for the next hop from what was parsed; body bytes are passed on verbatim once their
//!   framing has been validated.
//! - Every size is bounded by a constant of this module.

mod authority;
mod body;
mod chunked;
mod error;
mod forward;
mod head;

pub(crate) use authority::is_authority;
pub use body::{Body, BodyFraming, Piece};
pub(crate) use chunked::is_field_value;
pub use chunked::{TrailerLine, is_token, may_trail};
pub use error::Http1Error;
pub use forward::{
    Rewritten, end_to_end, local_reply, local_reply_with, reason, redirect_reply, write_request,
    write_response, write_rewritten_request, write_rewritten_response,
};
pub(crate) use forward::{accepts_trailers, is_hop_by_hop};
pub use head::{
    HeadScanner, HeaderStorage, Request, Response, Version, empty_headers, parse_request, parse_response,
};
pub(crate) use head::{content_length, expectation};

/// Longest head, request line and field lines together; beyond it 431.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most field lines in a head or a trailer section; beyond it 431.
pub const HEADERS_MAX: usize = 100;
/// Longest request target; beyond it 414.
pub const TARGET_BYTES_MAX: usize = 32 * 1024;
/// Longest method token; the longest registered one has 17 bytes.
pub const METHOD_BYTES_MAX: usize = 32;
/// Longest chunk extension; nothing in use comes near it, and each byte of it is work without payload.
pub const CHUNK_EXTENSION_BYTES_MAX: usize = 256;
/// Extensions of one body together.
pub const CHUNK_EXTENSIONS_TOTAL_MAX: usize = 16 * 1024;
/// Longest trailer section of one body.
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;

const _: () = assert!(TARGET_BYTES_MAX + METHOD_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(CHUNK_EXTENSION_BYTES_MAX < CHUNK_EXTENSIONS_TOTAL_MAX);
