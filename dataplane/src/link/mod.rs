//! The I/O shell around one tunnel connection ([`tunnel::session::Session`]): sockets, waiting, time.
//!
//! - [`Link`] is one TLS and HTTP/2 connection, in either role. One task reads it; every write only appends to the
//!   session's output, which the worker's flusher seals and sends once per batch.
//! - [`TunnelStream`] is one stream of it: read, write, end; or [`TunnelStream::relay`], which ties it to an application's
//!   socket and is how almost all bytes travel.
//! - Server role: [`serve`] takes an accepted socket; each request arrives at a [`Handler`].
//! - Client role: [`Pool::open`] gives a stream to a next hop over a shared link, dialling one where needed;
//!   [`Link::dial`] makes a link of its own; [`Link::within`] makes one within a stream of another, for another network.
//! - Without TLS: [`Link::clear_server`] and [`Link::clear_client`], for HTTP/2 with applications. Their streams are messages:
//!   heads, payload and trailers.
//!
//! Invariants:
//! - Payload for an application's socket is written inside the read turn of the link, without waking a task. Only what
//!   the kernel does not take at once is copied, and no more than the stream's window of it; its credit goes
//!   back to the peer only when the application has taken it.
//! - An idle stream holds no buffer; an idle link holds none but an unfinished record.
//! - The end of one direction is passed on as such; a cut stream is never passed on as an ended one.
//! - The session is borrowed only within one call, and no foreign code runs meanwhile: handlers are called after it.

mod carrier;
mod clear;
mod client;
mod connection;
mod deliver;
mod events;
mod join;
mod message;
mod pool;
mod relay;
mod server;
mod stream;
mod turn;

pub use carrier::Bytes;
pub use clear::{ClearRequest, Transport};
pub use client::{DialError, DialOptions, InnerLink, RequestError};
pub use connection::{Link, Peer};
pub use join::JoinEnd;
pub use message::{Payload, Taken};
pub use pool::{Pool, PoolError};
pub use relay::{Flow, StreamRelayEnd};
pub use server::{Handler, IncomingRequest, ServeError, ServerOptions, serve};
pub use stream::{StreamCutter, StreamEnd, StreamError, TunnelStream};

use std::fmt;

pub use tunnel::tls::CloseCause;

/// Why a link is over: a label of the closed set for metrics, and the details for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkEnd {
    pub cause: CloseCause,
    pub detail: String,
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            f.write_str(self.cause.label())
        } else {
            write!(f, "{}: {}", self.cause.label(), self.detail)
        }
    }
}

#[cfg(test)]
mod tests;
