//! HTTP/2 (RFC 9113) without I/O, for both roles.
//!
//! One [`Connection`] is one HTTP/2 connection. It owns no socket, clock or thread: bytes from the peer go in as
//! slices, bytes for the peer come out through a [`FrameSink`], time is an argument.
//!
//! How it is driven:
//! 1. [`Connection::new`] writes the preface and SETTINGS.
//! 2. Whenever bytes arrive: call [`Connection::next_event`] until it returns `Ok(None)`, acting on each event before
//!    the next call (an [`Event::Writable`] grants the connection window to streams in turn; collecting events first is
//!    allowed but coarsens the turns).
//! 3. [`Connection::next_deadline`] says when to call [`Connection::on_timer`]; afterwards call `next_event` with empty
//!    input, since a timer may have ended streams.
//! 4. Received DATA is credited back with [`Connection::release`] as the consumer takes it, for every byte handed out,
//!    even if its stream has ended in the meantime. That is what makes back-pressure end to end.
//! 5. On `Err` a GOAWAY has been written: flush, shut the write side down, drain what is still arriving, close.
//!
//! Invariants: memory is bounded by [`Config`] and [`Limits`] (the caller bounds its output by not calling
//! `next_event` while too much is unsent: every answer the engine writes was provoked by input); no payload is copied or
//! buffered; no allocation per DATA frame; no input panics.
//!
//! What it does not do: server push (refused, RFC 9113 section 8.4), priorities (parsed and ignored, section 5.3.2).

mod blocks;
mod budget;
mod config;
mod connection;
mod control;
mod error;
mod frame;
mod headers;
mod hpack_decode;
mod hpack_encode;
mod hpack_table;
mod hpack_tables;
mod message;
#[cfg(test)]
mod pair;
mod receive;
mod send;
mod streams;

pub use config::{Config, KeepAlive, Limits, Role};
pub use connection::{Connection, Event, ResetBy};
pub use error::{ConnectionError, ErrorCode, OpenError, SendError};
pub use frame::{FrameSink, StreamId};
pub use headers::{Field, Fields, HeaderError, Headers};
