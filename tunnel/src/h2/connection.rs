//! One HTTP/2 connection: its public calls.

use super::config::Config;
use super::error::{ConnectionError, ErrorCode, OpenError, SendError};
use super::frame::{FrameSink, StreamId};
use super::headers::Headers;
use std::time::Instant;

/// Who ended a stream before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetBy {
    /// The peer, with RST_STREAM, or with a GOAWAY that leaves the stream out (code REFUSED_STREAM: safe to retry).
    Peer,
    /// This end, because the peer broke a rule on that stream or left it stalled. RST_STREAM has been written.
    Engine,
}

/// What happened on the connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A request (server role) or a response (client role; several if informational ones come first).
    Headers { stream: StreamId, headers: Headers, end_stream: bool },
    /// The header block that ends a message after its DATA. Ends the stream's receiving side.
    Trailers { stream: StreamId, headers: Headers },
    /// Payload as it arrives, not one event per frame. Every byte must be given back with [`Connection::release`].
    Data { stream: StreamId, bytes: &'a [u8], end_stream: bool },
    /// The stream is gone in both directions. Not sent for [`Connection::reset`].
    Reset { stream: StreamId, code: ErrorCode, by: ResetBy },
    /// A stream whose `send_data` took less than offered may send again. Act on it before the next `next_event`.
    Writable { stream: StreamId },
    /// The peer will not take new streams. Streams above `last` have had their `Reset` events.
    GoAway { last: StreamId, code: ErrorCode },
    /// Answer to [`Connection::ping`].
    Pong { payload: [u8; 8] },
    /// The peer's SETTINGS arrived: limits on opening streams may have changed.
    SettingsChanged,
}

/// One HTTP/2 connection.
#[derive(Debug)]
pub struct Connection {
    config: Config,
}

impl Connection {
    /// Starts a connection: writes the preface (client role), SETTINGS and the connection's WINDOW_UPDATE.
    pub fn new(config: Config, now: Instant, out: &mut impl FrameSink) -> Self {
        let _ = (now, out);
        Self { config }
    }

    /// Takes bytes from the front of `input` up to the next event. `Ok(None)`: all input is used up.
    pub fn next_event<'a>(
        &mut self,
        input: &mut &'a [u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Result<Option<Event<'a>>, ConnectionError> {
        let _ = (now, out);
        *input = &[];
        Ok(None)
    }

    /// Opens a stream with a request (client role).
    pub fn open(
        &mut self,
        headers: &Headers,
        end_stream: bool,
        out: &mut impl FrameSink,
    ) -> Result<StreamId, OpenError> {
        let _ = (headers, end_stream, out);
        Err(OpenError::GoingAway)
    }

    /// Sends a response (server role): informational ones (1xx) first if wanted, then the final one.
    pub fn respond(
        &mut self,
        stream: StreamId,
        headers: &Headers,
        end_stream: bool,
        out: &mut impl FrameSink,
    ) -> Result<(), SendError> {
        let _ = (stream, headers, end_stream, out);
        Err(SendError::NoSuchStream)
    }

    /// Ends the message with trailers.
    pub fn send_trailers(
        &mut self,
        stream: StreamId,
        headers: &Headers,
        out: &mut impl FrameSink,
    ) -> Result<(), SendError> {
        let _ = (stream, headers, out);
        Err(SendError::NoSuchStream)
    }

    /// Sends as much as both windows allow and says how much that was. END_STREAM goes out with the last byte, so only
    /// if all was accepted. When less was accepted, [`Event::Writable`] follows once there is window again.
    pub fn send_data(
        &mut self,
        stream: StreamId,
        bytes: &[u8],
        end_stream: bool,
        out: &mut impl FrameSink,
    ) -> Result<usize, SendError> {
        let _ = (stream, bytes, end_stream, out);
        Err(SendError::NoSuchStream)
    }

    /// What `send_data` would accept now.
    pub fn send_capacity(&self, stream: StreamId) -> usize {
        let _ = stream;
        0
    }

    /// Gives received payload back to the windows. WINDOW_UPDATE is written in steps of half a window.
    pub fn release(&mut self, stream: StreamId, bytes: usize, out: &mut impl FrameSink) {
        let _ = (stream, bytes, out);
    }

    /// Ends a stream in both directions. Does nothing if it is gone already.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode, out: &mut impl FrameSink) {
        let _ = (stream, code, out);
    }

    /// Announces the end. With NO_ERROR a server first says that it will close, and names the last stream it took only
    /// after a round trip, so that no request is lost (RFC 9113 section 6.8). Running streams go on.
    pub fn go_away(&mut self, code: ErrorCode, now: Instant, out: &mut impl FrameSink) {
        let _ = (code, now, out);
    }

    /// Sends a PING; [`Event::Pong`] follows.
    pub fn ping(&mut self, payload: [u8; 8], out: &mut impl FrameSink) {
        let _ = (payload, out);
    }

    /// When [`Connection::on_timer`] must be called at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// Does what is due: keepalive, the second step of a graceful end, stalled streams.
    pub fn on_timer(&mut self, now: Instant, out: &mut impl FrameSink) -> Result<(), ConnectionError> {
        let _ = (now, out);
        Ok(())
    }

    /// Streams that are open now.
    pub fn stream_count(&self) -> usize {
        0
    }

    /// How many more streams `open` would grant now.
    pub fn open_capacity(&self) -> usize {
        0
    }

    /// Whether GOAWAY was sent or received and the last stream has ended: time to flush and close.
    pub fn is_drained(&self) -> bool {
        false
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
