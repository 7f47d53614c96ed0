//! Sending: opening streams, header blocks, DATA within the peer's windows, and giving credit back.
//!
//! Nothing is queued: what the windows do not allow stays with the caller, who is told by
//! [`Event::Writable`](super::Event) when to come back. Streams that compete for the connection window take turns.

use super::config::Role;
use super::connection::{Closing, Connection, Event, SCRATCH_KEPT, signed};
use super::error::{ErrorCode, OpenError, SendError};
use super::frame::{
    FrameHeader, FrameSink, StreamId, flag, kind, put_header_block, put_reset, put_window_update,
};
use super::headers::Headers;
use super::streams::{Stream, UNCHECKED, state};

/// Credit for DATA sent: the peer may answer each frame, and every so many bytes, with WINDOW_UPDATE and PING.
const CREDIT_PER_FRAME: u32 = 2;
/// See `CREDIT_PER_FRAME`.
const BYTES_PER_CREDIT: usize = 2_048;
/// Stale identifiers in a queue beyond the number of streams before it is swept.
const STALE_QUEUED_MAX: usize = 64;

impl Connection {
    /// Opens a stream with a request (client role).
    pub fn open(
        &mut self,
        headers: &Headers,
        end_stream: bool,
        out: &mut impl FrameSink,
    ) -> Result<StreamId, OpenError> {
        let Some(method) = headers.method().filter(|_| self.config.role == Role::Client) else {
            return Err(OpenError::NotARequest);
        };
        if self.go_away_received || self.closing != Closing::No || self.failed.is_some() {
            return Err(OpenError::GoingAway);
        }
        if self.next_stream > StreamId::MAX {
            return Err(OpenError::Exhausted);
        }
        if self.open_capacity() == 0 {
            return Err(OpenError::TooManyStreams);
        }
        if headers.list_size() > self.peer.max_header_list_size as usize {
            return Err(OpenError::HeadersTooLarge);
        }
        let id = self.next_stream;
        self.next_stream += 2;
        let mut bits = state::HEADERS_SENT;
        if end_stream {
            bits |= state::LOCAL_ENDED;
        }
        // The payload of a tunnel is not content (RFC 9110 section 9.3.6), and HEAD has none.
        if method == b"HEAD" || method == b"CONNECT" {
            bits |= state::NO_CONTENT_CHECK;
        }
        self.insert_stream(id, bits, UNCHECKED);
        self.put_headers(id, headers, end_stream, out);
        Ok(StreamId(id))
    }

    /// How many more streams `open` would grant now.
    pub fn open_capacity(&self) -> usize {
        let closing = self.go_away_received || self.closing != Closing::No || self.failed.is_some();
        if closing || self.config.role == Role::Server || self.next_stream > StreamId::MAX {
            return 0;
        }
        let limit = self.peer.max_concurrent_streams.min(self.config.max_concurrent_streams);
        (limit as usize).saturating_sub(self.streams.len())
    }

    /// Sends a response (server role): informational ones (1xx) first if wanted, then the final one.
    pub fn respond(
        &mut self,
        stream: StreamId,
        headers: &Headers,
        end_stream: bool,
        out: &mut impl FrameSink,
    ) -> Result<(), SendError> {
        let found = self.streams.get_mut(stream.0).ok_or(SendError::NoSuchStream)?;
        if found.is(state::LOCAL_ENDED) {
            return Err(SendError::AlreadyEnded);
        }
        let Some(status) = headers.status().filter(|_| self.config.role == Role::Server) else {
            return Err(SendError::OutOfOrder);
        };
        let is_final = status >= 200;
        if found.is(state::HEADERS_SENT) || (end_stream && !is_final) {
            return Err(SendError::OutOfOrder);
        }
        if headers.list_size() > self.peer.max_header_list_size as usize {
            return Err(SendError::HeadersTooLarge);
        }
        if is_final {
            found.state |= state::HEADERS_SENT;
        }
        self.put_headers(stream.0, headers, end_stream, out);
        if end_stream {
            self.end_local(stream.0);
        }
        Ok(())
    }

    /// Ends the message with trailers.
    pub fn send_trailers(
        &mut self,
        stream: StreamId,
        headers: &Headers,
        out: &mut impl FrameSink,
    ) -> Result<(), SendError> {
        let found = self.streams.get(stream.0).ok_or(SendError::NoSuchStream)?;
        check_order(found)?;
        if headers.has_any_pseudo() {
            return Err(SendError::OutOfOrder);
        }
        if headers.list_size() > self.peer.max_header_list_size as usize {
            return Err(SendError::HeadersTooLarge);
        }
        self.put_headers(stream.0, headers, true, out);
        self.end_local(stream.0);
        Ok(())
    }

    /// Sends as much as both windows allow and says how much that was. END_STREAM goes out with the last byte, so only
    /// if all was accepted. When less was accepted, [`Event::Writable`] follows once there is window again.
    #[inline]
    pub fn send_data(
        &mut self,
        stream: StreamId,
        bytes: &[u8],
        end_stream: bool,
        out: &mut impl FrameSink,
    ) -> Result<usize, SendError> {
        let found = self.streams.get_mut(stream.0).ok_or(SendError::NoSuchStream)?;
        check_order(found)?;
        let window = usize::try_from(found.send_window.min(self.send_window)).unwrap_or(0);
        let accepted = bytes.len().min(window);
        let is_complete = accepted == bytes.len();
        let ends = end_stream && is_complete;
        if accepted > 0 || ends {
            // At most `window`, so it fits.
            let taken = i32::try_from(accepted).unwrap_or(0);
            found.send_window -= taken;
            self.send_window -= taken;
            // Whoever comes back before being told is not waiting any more.
            found.state &= !(state::GRANTED | state::STALLED | state::BLOCKED);
            put_data(out, stream.0, bytes, accepted, ends, self.peer.max_frame_size as usize);
            let credit = u32::try_from(accepted / BYTES_PER_CREDIT).unwrap_or(0);
            self.overhead.earn(CREDIT_PER_FRAME + credit);
        }
        if !is_complete {
            self.block(stream.0);
        } else if ends {
            self.end_local(stream.0);
        }
        Ok(accepted)
    }

    /// What `send_data` would accept now.
    pub fn send_capacity(&self, stream: StreamId) -> usize {
        let window = self
            .streams
            .get(stream.0)
            .filter(|found| check_order(found).is_ok())
            .map_or(0, |found| found.send_window.min(self.send_window));
        usize::try_from(window).unwrap_or(0)
    }

    /// Gives received payload back to the windows, also of a stream that has ended. WINDOW_UPDATE is written in steps
    /// of half a stream's window, and of half of what streams do not hold of the connection's.
    #[inline]
    pub fn release(&mut self, stream: StreamId, bytes: usize, out: &mut impl FrameSink) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.unreleased);
        self.unreleased -= bytes;
        self.release_connection(bytes, out);
        let step = (self.stream_window / 2).max(1);
        if let Some(found) = self.streams.get_mut(stream.0)
            && !found.is(state::REMOTE_ENDED)
        {
            found.release_pending += bytes;
            if found.release_pending >= step {
                put_window_update(out, found.id, found.release_pending);
                found.receive_window = found.receive_window.saturating_add(signed(found.release_pending));
                found.release_pending = 0;
            }
        }
    }

    /// Gives back to the connection's window only: padding, and payload that nobody will see.
    #[inline]
    pub(super) fn release_connection(&mut self, bytes: u32, out: &mut impl FrameSink) {
        self.release_pending += bytes;
        self.announce_release(out);
    }

    /// Announces what was released to the connection's window as soon as it is at least what the peer has left: where
    /// streams hold payload that nobody takes, half of the whole window may never come together.
    #[inline]
    pub(super) fn announce_release(&mut self, out: &mut impl FrameSink) {
        if self.release_pending > 0 && self.release_pending >= self.receive_window {
            put_window_update(out, 0, self.release_pending);
            self.receive_window += self.release_pending;
            self.release_pending = 0;
        }
        debug_assert!(self.receive_window + self.release_pending <= self.config.connection_window);
    }

    pub(super) fn insert_stream(&mut self, id: u32, bits: u16, content_remaining: u64) {
        self.streams.insert(Stream {
            id,
            send_window: signed(self.peer.initial_window),
            receive_window: signed(self.stream_window),
            release_pending: 0,
            content_remaining,
            head_bytes: 0,
            state: bits,
        });
    }

    /// Ends a stream because the peer broke a rule on it; the caller checks the budget.
    pub(super) fn refuse(&mut self, stream: u32, code: ErrorCode, out: &mut impl FrameSink) {
        self.streams.remove(stream);
        self.remember_reset(stream);
        put_reset(out, stream, code);
    }

    /// The next stream whose turn it is to send, while there is connection window.
    #[inline]
    pub(super) fn next_writable(&mut self) -> Option<Event<'static>> {
        if self.send_window <= 0 || (self.waiting.is_empty() && self.passed_over.is_empty()) {
            return None;
        }
        self.pop_writable()
    }

    fn pop_writable(&mut self) -> Option<Event<'static>> {
        while let Some(id) = self.passed_over.pop_front().or_else(|| self.waiting.pop_front()) {
            let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.is(state::QUEUED)) else {
                // The stream has ended since.
                continue;
            };
            stream.state &= !state::QUEUED;
            if stream.send_window > 0 && stream.is(state::BLOCKED) {
                stream.state &= !(state::BLOCKED | state::STALLED);
                stream.state |= state::GRANTED;
                return Some(Event::Writable { stream: StreamId(id) });
            }
        }
        None
    }

    /// Notes that `Writable` is owed, in line for the connection window if the stream's own is open.
    #[cold]
    fn block(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        stream.state |= state::BLOCKED;
        if stream.send_window > 0 {
            self.queue_blocked(id);
        }
    }

    /// Puts a blocked stream whose own window is open in line.
    pub(super) fn queue_blocked(&mut self, id: u32) {
        let live = self.streams.len();
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.is(state::QUEUED) || !stream.is(state::BLOCKED) {
            return;
        }
        stream.state |= state::QUEUED;
        let queue = if stream.is(state::GRANTED) { &mut self.passed_over } else { &mut self.waiting };
        if queue.len() > live + STALE_QUEUED_MAX {
            let streams = &self.streams;
            queue.retain(|&queued| {
                queued != id && streams.get(queued).is_some_and(|found| found.is(state::QUEUED))
            });
        }
        queue.push_back(id);
    }

    fn put_headers(&mut self, id: u32, headers: &Headers, end_stream: bool, out: &mut impl FrameSink) {
        self.scratch.clear();
        self.encoder.encode(headers, &mut self.scratch);
        put_header_block(out, id, &self.scratch, end_stream, self.peer.max_frame_size as usize);
        if self.scratch.capacity() > SCRATCH_KEPT {
            self.scratch = Vec::new();
        }
    }

    fn end_local(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.state |= state::LOCAL_ENDED;
            stream.state &= !state::BLOCKED;
            if stream.is(state::REMOTE_ENDED) {
                self.streams.remove(id);
            }
        }
    }
}

/// DATA and trailers follow headers and precede END_STREAM.
#[inline]
fn check_order(stream: &Stream) -> Result<(), SendError> {
    match stream.state & (state::HEADERS_SENT | state::LOCAL_ENDED) {
        state::HEADERS_SENT => Ok(()),
        0 => Err(SendError::OutOfOrder),
        _ => Err(SendError::AlreadyEnded),
    }
}

/// Writes the first `accepted` bytes as DATA frames, the last one with END_STREAM if asked.
#[inline]
fn put_data(
    out: &mut impl FrameSink,
    stream: u32,
    bytes: &[u8],
    accepted: usize,
    ends: bool,
    frame_size_max: usize,
) {
    let mut rest = bytes.get(..accepted).unwrap_or_default();
    loop {
        let (part, tail) = rest.split_at(rest.len().min(frame_size_max));
        let flags = if ends && tail.is_empty() { flag::END_STREAM } else { 0 };
        // A part is at most 2^24 - 1 octets.
        let len = u32::try_from(part.len()).unwrap_or(0);
        out.put_data(&FrameHeader { len, kind: kind::DATA, flags, stream }.to_bytes(), part);
        if tail.is_empty() {
            return;
        }
        rest = tail;
    }
}
