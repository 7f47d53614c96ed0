//! Receiving: the pull parser over frames, and DATA. Header blocks are in [`super::blocks`], the other frames in
//! [`super::control`].
//!
//! DATA is handed out from the caller's buffer as it arrives. Any other frame that has not arrived whole is collected
//! here; its size is checked before the first octet is kept, so the collected bytes never exceed
//! `Limits::header_block_bytes_max` (twice, for a block under continuation).

use super::blocks::OpenBlock;
use super::config::Role;
use super::connection::{Closing, Connection, Event, ResetBy};
use super::error::{ConnectionError, ErrorCode};
use super::frame::{FrameHeader, FrameSink, HEADER_LEN, PREFACE, StreamId, flag, kind};
use super::message::is_request_stream;
use super::streams::{UNCHECKED, state};
use std::time::Instant;

/// Most octets of SETTINGS: a hundred settings, of which a handful exist.
const SETTINGS_BYTES_MAX: u32 = 600;
/// Octets of GOAWAY that matter; debug data after them is skipped.
const GO_AWAY_LEN: u32 = 8;
/// So many octets of a header block in vain count as one reset more.
const HEAD_BYTES_PER_RESET: usize = 8 * 1024;
/// Collected bytes kept between frames.
const BUFFER_KEPT: usize = 512;

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// The client's preface, so many octets of which have been seen.
    Preface(u8),
    /// A frame header.
    Header,
    /// The pad length of a DATA frame.
    PadLength,
    /// Payload of a DATA frame, then its padding.
    Data,
    /// Octets that nobody needs.
    Skip,
    /// The payload of a frame that is handled whole.
    Collect,
}

/// The parser's state.
#[derive(Debug)]
pub(super) struct Receiver {
    position: Position,
    pub(super) settings_received: bool,
    partial_len: u8,
    partial: [u8; HEADER_LEN],
    frame: FrameHeader,
    /// Octets of `Data`, `Skip` or `Collect` still to come.
    remaining: u32,
    /// Octets of padding after `Data`.
    padding: u32,
    buffer: Vec<u8>,
    pub(super) block: Vec<u8>,
    pub(super) open_block: Option<OpenBlock>,
    pub(super) text_hint: usize,
}

pub(super) type Outcome<'a> = Result<Option<Event<'a>>, ConnectionError>;

/// The error of a broken rule.
#[cold]
pub(super) fn violation(code: ErrorCode, detail: &'static str) -> ConnectionError {
    ConnectionError::Violation { code, detail }
}

impl Receiver {
    pub(super) fn new(role: Role) -> Self {
        let position = match role {
            Role::Client => Position::Header,
            Role::Server => Position::Preface(0),
        };
        Self {
            position,
            settings_received: false,
            partial_len: 0,
            partial: [0; HEADER_LEN],
            frame: FrameHeader { len: 0, kind: 0, flags: 0, stream: 0 },
            remaining: 0,
            padding: 0,
            buffer: Vec::new(),
            block: Vec::new(),
            open_block: None,
            text_hint: 0,
        }
    }

    /// The next frame header, put together from pieces if it did not arrive whole.
    #[inline]
    fn take_header(&mut self, input: &mut &[u8]) -> Option<FrameHeader> {
        if self.partial_len == 0
            && let Some((header, rest)) = input.split_first_chunk::<HEADER_LEN>()
        {
            *input = rest;
            return Some(FrameHeader::parse(*header));
        }
        self.take_header_in_pieces(input)
    }

    #[cold]
    fn take_header_in_pieces(&mut self, input: &mut &[u8]) -> Option<FrameHeader> {
        let free = self.partial.get_mut(usize::from(self.partial_len)..)?;
        let count = free.len().min(input.len());
        let (piece, rest) = input.split_at(count);
        free.get_mut(..count)?.copy_from_slice(piece);
        *input = rest;
        self.partial_len += u8::try_from(count).ok()?;
        if usize::from(self.partial_len) < HEADER_LEN {
            return None;
        }
        self.partial_len = 0;
        Some(FrameHeader::parse(self.partial))
    }

    /// Octets collected of frames and header blocks.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.buffer.len() + self.block.len()
    }

    /// Leaves the rest of the current frame unread.
    fn skip(&mut self, octets: u32) {
        self.remaining = octets;
        self.position = if octets == 0 { Position::Header } else { Position::Skip };
    }
}

impl Connection {
    /// Takes bytes from the front of `input` up to the next event. `Ok(None)`: all input is used up.
    #[inline]
    pub fn next_event<'a>(
        &mut self,
        input: &mut &'a [u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'a> {
        if let Some(error) = self.failed {
            *input = &[];
            return Err(error);
        }
        self.advance(input, now, out).map_err(|error| self.fail(error, out))
    }

    fn advance<'a>(&mut self, input: &mut &'a [u8], now: Instant, out: &mut impl FrameSink) -> Outcome<'a> {
        loop {
            if let Some(event) = self.queued_event() {
                return Ok(Some(event));
            }
            let event = match self.receiver.position {
                Position::Header => {
                    let Some(header) = self.receiver.take_header(input) else { return Ok(None) };
                    if header.kind == kind::DATA {
                        self.begin_data(header, input, now, out)?
                    } else {
                        self.begin_frame(header, input, now, out)?
                    }
                }
                _ if input.is_empty() => return Ok(None),
                Position::Data => self.continue_data(input, out),
                Position::PadLength => self.pad_length(input, now, out)?,
                Position::Skip => {
                    let count = input.len().min(self.receiver.remaining as usize);
                    *input = input.get(count..).unwrap_or_default();
                    let rest = self.receiver.remaining - u32::try_from(count).unwrap_or(0);
                    self.receiver.skip(rest);
                    None
                }
                Position::Collect => self.collect(input, now, out)?,
                Position::Preface(seen) => self.preface(seen, input)?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Events that do not come from input at hand.
    #[inline]
    fn queued_event(&mut self) -> Option<Event<'static>> {
        if !self.resets_to_tell.is_empty() || self.go_away_to_tell.is_some() {
            if let Some((id, code, by)) = self.resets_to_tell.pop_front() {
                return Some(Event::Reset { stream: StreamId(id), code, by });
            }
            let (last, code) = self.go_away_to_tell.take()?;
            return Some(Event::GoAway { last: StreamId(last), code });
        }
        self.next_writable()
    }

    /// The client's preface (RFC 9113 section 3.4).
    #[cold]
    fn preface<'a>(&mut self, seen: u8, input: &mut &'a [u8]) -> Outcome<'a> {
        let due = PREFACE.get(usize::from(seen)..).unwrap_or_default();
        let (piece, rest) = input.split_at(due.len().min(input.len()));
        if !due.starts_with(piece) {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "the client's preface is not that of HTTP/2"));
        }
        *input = rest;
        self.receiver.position = if piece.len() == due.len() {
            Position::Header
        } else {
            Position::Preface(seen + u8::try_from(piece.len()).unwrap_or(0))
        };
        Ok(None)
    }

    /// Rules that hold for frames of every type (RFC 9113 sections 3.4, 4.2, 6.10).
    #[inline]
    fn check_frame(&self, header: FrameHeader) -> Result<(), ConnectionError> {
        if header.len > self.config.max_frame_size {
            return Err(violation(ErrorCode::FRAME_SIZE_ERROR, "frame larger than SETTINGS_MAX_FRAME_SIZE"));
        }
        if !self.receiver.settings_received && (header.kind != kind::SETTINGS || header.has(flag::ACK)) {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "the first frame is not SETTINGS"));
        }
        if let Some(open) = self.receiver.open_block
            && (header.kind != kind::CONTINUATION || header.stream != open.stream)
        {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "header block interrupted by another frame"));
        }
        Ok(())
    }

    // === DATA ===

    /// DATA (RFC 9113 section 6.1): accounts for the whole frame, hands out what has arrived of it.
    #[inline]
    fn begin_data<'a>(
        &mut self,
        header: FrameHeader,
        input: &mut &'a [u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'a> {
        self.check_frame(header)?;
        let Some(window) = self.receive_window.checked_sub(header.len) else {
            return Err(violation(ErrorCode::FLOW_CONTROL_ERROR, "DATA beyond the connection window"));
        };
        self.receive_window = window;
        self.announce_release(out);
        let Some(stream) = self.streams.get_mut(header.stream) else {
            return self.data_without_stream(header, now, out);
        };
        let len = i32::try_from(header.len).unwrap_or(i32::MAX);
        if stream.state & (state::HEADERS_RECEIVED | state::REMOTE_ENDED) != state::HEADERS_RECEIVED
            || len > stream.receive_window
        {
            return self.refuse_data(header, now, out);
        }
        stream.receive_window -= len;
        if header.has(flag::PADDED) {
            self.receiver.frame = header;
            self.receiver.position = Position::PadLength;
            return if header.len == 0 {
                Err(violation(ErrorCode::FRAME_SIZE_ERROR, "padded DATA without a pad length"))
            } else {
                Ok(None)
            };
        }
        let ends = header.has(flag::END_STREAM);
        if stream.content_remaining != UNCHECKED {
            match stream.content_remaining.checked_sub(u64::from(header.len)) {
                Some(rest) if rest == 0 || !ends => stream.content_remaining = rest,
                _ => return self.wrong_content_length(header.stream, header.len, now, out),
            }
        }
        if header.len == 0 && !ends {
            return self.spend_overhead(2, now, "too many empty DATA frames").map(|()| None);
        }
        self.overhead.earn(1);
        self.receiver.frame = header;
        self.receiver.remaining = header.len;
        self.receiver.padding = 0;
        if input.is_empty() && header.len > 0 {
            self.receiver.position = Position::Data;
            return Ok(None);
        }
        Ok(Some(self.hand_out(input)))
    }

    /// Hands out payload of the current DATA frame; its stream is known to live.
    #[inline]
    fn hand_out<'a>(&mut self, input: &mut &'a [u8]) -> Event<'a> {
        let count = input.len().min(self.receiver.remaining as usize);
        let (bytes, rest) = input.split_at(count);
        *input = rest;
        // At most `remaining`, so it fits.
        let count = u32::try_from(count).unwrap_or(0);
        self.unreleased += count;
        self.receiver.remaining -= count;
        let FrameHeader { stream, .. } = self.receiver.frame;
        let is_whole = self.receiver.remaining == 0;
        let end_stream = is_whole && self.receiver.frame.has(flag::END_STREAM);
        if is_whole {
            let padding = self.receiver.padding;
            self.receiver.skip(padding);
        } else {
            self.receiver.position = Position::Data;
        }
        if end_stream {
            self.end_remote(stream);
        }
        Event::Data { stream: StreamId(stream), bytes, end_stream }
    }

    /// More of a DATA frame, unless its stream was reset in the meantime.
    fn continue_data<'a>(&mut self, input: &mut &'a [u8], out: &mut impl FrameSink) -> Option<Event<'a>> {
        if self.streams.get(self.receiver.frame.stream).is_some() {
            return Some(self.hand_out(input));
        }
        let rest = self.receiver.remaining;
        let padding = self.receiver.padding;
        self.release_connection(rest, out);
        self.receiver.skip(rest + padding);
        None
    }

    /// The pad length came; now the payload's length is known (RFC 9113 section 6.1).
    #[cold]
    fn pad_length<'a>(
        &mut self,
        input: &mut &'a [u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'a> {
        let Some((&pad, rest)) = input.split_first() else { return Ok(None) };
        *input = rest;
        let header = self.receiver.frame;
        let padding = u32::from(pad);
        let Some(len) = header.len.checked_sub(1 + padding) else {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "padding longer than the frame"));
        };
        self.release_unseen(header.stream, 1 + padding, out);
        let Some(stream) = self.streams.get_mut(header.stream) else {
            self.release_connection(len, out);
            self.receiver.skip(len + padding);
            return Ok(None);
        };
        let ends = header.has(flag::END_STREAM);
        if stream.content_remaining != UNCHECKED {
            match stream.content_remaining.checked_sub(u64::from(len)) {
                Some(rest) if rest == 0 || !ends => stream.content_remaining = rest,
                _ => {
                    let event = self.wrong_content_length(header.stream, len, now, out);
                    self.receiver.skip(len + padding);
                    return event;
                }
            }
        }
        self.receiver.remaining = len;
        self.receiver.padding = padding;
        if len == 0 && !ends {
            self.receiver.skip(padding);
            return self.spend_overhead(2, now, "too many empty DATA frames").map(|()| None);
        }
        self.receiver.position = Position::Data;
        Ok((len == 0 || !input.is_empty()).then(|| self.hand_out(input)))
    }

    /// Credits what the consumer will never see to both windows.
    fn release_unseen(&mut self, stream: u32, bytes: u32, out: &mut impl FrameSink) {
        self.unreleased += bytes;
        self.release(StreamId(stream), bytes as usize, out);
    }

    /// DATA for a stream that is not there: late after our reset, or an error (RFC 9113 section 5.1).
    #[cold]
    fn data_without_stream(
        &mut self,
        header: FrameHeader,
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        if header.stream == 0 || self.is_idle(header.stream) {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "DATA on an idle stream or stream 0"));
        }
        // The octets have counted for the connection window although nobody sees them.
        self.release_connection(header.len, out);
        self.receiver.skip(header.len);
        self.spend_overhead(1, now, "too many frames on closed streams")?;
        if self.is_ignored(header.stream) {
            return Ok(None);
        }
        self.stream_error(header.stream, ErrorCode::STREAM_CLOSED, now, out)
    }

    /// DATA before headers, after the end, or beyond the stream's window.
    #[cold]
    fn refuse_data(
        &mut self,
        header: FrameHeader,
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        let code = match self.streams.get(header.stream).map(|stream| stream.state) {
            Some(bits) if bits & state::REMOTE_ENDED != 0 => ErrorCode::STREAM_CLOSED,
            Some(bits) if bits & state::HEADERS_RECEIVED == 0 => ErrorCode::PROTOCOL_ERROR,
            _ => ErrorCode::FLOW_CONTROL_ERROR,
        };
        self.release_connection(header.len, out);
        self.receiver.skip(header.len);
        self.stream_error(header.stream, code, now, out)
    }

    /// DATA that does not add up to content-length (RFC 9113 section 8.1.1).
    #[cold]
    fn wrong_content_length(
        &mut self,
        stream: u32,
        len: u32,
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        self.release_connection(len, out);
        self.receiver.skip(len);
        self.stream_error(stream, ErrorCode::PROTOCOL_ERROR, now, out)
    }

    // === Frames handled whole ===

    /// Any frame but DATA: checks its size, then handles or collects it.
    fn begin_frame<'a>(
        &mut self,
        header: FrameHeader,
        input: &mut &'a [u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'a> {
        self.check_frame(header)?;
        let has_right_size = match header.kind {
            kind::HEADERS | kind::CONTINUATION => {
                let size = self.receiver.block.len() + header.len as usize;
                if size > self.config.limits.header_block_bytes_max as usize {
                    return Err(violation(ErrorCode::ENHANCE_YOUR_CALM, "header block too large"));
                }
                true
            }
            kind::RST_STREAM | kind::WINDOW_UPDATE => header.len == 4,
            kind::PING => header.len == 8,
            kind::GOAWAY => header.len >= GO_AWAY_LEN,
            kind::SETTINGS if header.len > SETTINGS_BYTES_MAX => {
                return Err(violation(ErrorCode::ENHANCE_YOUR_CALM, "SETTINGS too large"));
            }
            kind::SETTINGS => header.len.is_multiple_of(6) && (header.len == 0 || !header.has(flag::ACK)),
            kind::PUSH_PROMISE => {
                // Not from a client (section 8.4), and not from a server that we told not to.
                return Err(violation(ErrorCode::PROTOCOL_ERROR, "PUSH_PROMISE though push is disabled"));
            }
            kind::PRIORITY => {
                if header.len == 5 {
                    true
                } else {
                    self.receiver.skip(header.len);
                    return self.open_stream_error(header.stream, ErrorCode::FRAME_SIZE_ERROR, now, out);
                }
            }
            _ => {
                // Unknown types are ignored (section 5.5), within reason.
                self.receiver.skip(header.len);
                return self.spend_overhead(1, now, "too many frames of unknown types").map(|()| None);
            }
        };
        if !has_right_size {
            return Err(violation(ErrorCode::FRAME_SIZE_ERROR, "frame of the wrong size for its type"));
        }
        self.receiver.frame = header;
        let needed = needed(header);
        if let Some((payload, rest)) = input.split_at_checked(needed as usize) {
            *input = rest;
            self.receiver.skip(header.len - needed);
            return self.handle(header, payload, now, out);
        }
        self.receiver.remaining = needed;
        self.receiver.position = Position::Collect;
        self.expect_whole_frame(now);
        Ok(None)
    }

    /// Keeps the piece of a frame that has arrived; handles the frame once it is whole.
    #[cold]
    fn collect<'a>(&mut self, input: &mut &'a [u8], now: Instant, out: &mut impl FrameSink) -> Outcome<'a> {
        let count = input.len().min(self.receiver.remaining as usize);
        let (piece, rest) = input.split_at(count);
        *input = rest;
        self.receiver.buffer.extend_from_slice(piece);
        self.receiver.remaining -= u32::try_from(count).unwrap_or(0);
        if self.receiver.remaining > 0 {
            return Ok(None);
        }
        let header = self.receiver.frame;
        self.receiver.skip(header.len - needed(header));
        let mut buffer = std::mem::take(&mut self.receiver.buffer);
        let event = self.handle(header, &buffer, now, out);
        if self.receiver.open_block.is_none() {
            self.frame_due = None;
        }
        if buffer.capacity() <= BUFFER_KEPT {
            buffer.clear();
            self.receiver.buffer = buffer;
        }
        event
    }

    fn handle(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        match header.kind {
            kind::HEADERS => self.on_headers(header, payload, now, out),
            kind::CONTINUATION => self.on_continuation(header, payload, now, out),
            kind::PRIORITY => self.on_priority(header.stream, payload, now, out),
            kind::RST_STREAM => self.on_reset(header.stream, payload, now),
            kind::SETTINGS => self.on_settings(header, payload, now, out),
            kind::PING => self.on_ping(header, payload, now, out),
            kind::GOAWAY => self.on_go_away(header.stream, payload),
            _ => self.on_window_update(header.stream, payload, now, out),
        }
    }

    // === Helpers ===

    /// A frame, or the header block that it is of, goes on in what is yet to come. How long that may take counts from the first
    /// such moment, so that pieces do not prolong it.
    #[cold]
    pub(super) fn expect_whole_frame(&mut self, now: Instant) {
        self.frame_due.get_or_insert(now + self.config.limits.completion_timeout);
    }

    pub(super) fn end_remote(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.state |= state::REMOTE_ENDED;
            if stream.is(state::LOCAL_ENDED) {
                self.streams.remove(id);
            }
        }
    }

    /// Whether a stream was never used (RFC 9113 section 5.1).
    pub(super) fn is_idle(&self, id: u32) -> bool {
        let next = match self.config.role {
            Role::Client => self.next_stream,
            Role::Server => self.highest_peer_stream.saturating_add(1),
        };
        !is_request_stream(id) || id >= next
    }

    /// Whether frames of a stream that is gone are no error: we reset it, or said that we would ignore it.
    pub(super) fn is_ignored(&self, id: u32) -> bool {
        matches!(self.closing, Closing::Final { last } if id > last) || self.recently_reset.contains(&id)
    }

    /// Ends a stream because of the peer's fault. Counts as a reset by the peer, which provoked it (MadeYouReset).
    #[cold]
    pub(super) fn stream_error(
        &mut self,
        id: u32,
        code: ErrorCode,
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        let known = self.streams.get(id).map(|stream| stream.head_bytes);
        self.refuse(id, code, out);
        self.spend_large_head(known.unwrap_or(0) as usize, now)?;
        self.spend_reset(1, now)?;
        Ok(known.is_some().then_some(Event::Reset { stream: StreamId(id), code, by: ResetBy::Engine }))
    }

    /// A stream error if there is such a stream; RST_STREAM on any other would itself be an error.
    pub(super) fn open_stream_error(
        &mut self,
        id: u32,
        code: ErrorCode,
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        if self.streams.get(id).is_some() {
            return self.stream_error(id, code, now, out);
        }
        Err(violation(code, "malformed frame on a stream that is not open"))
    }

    /// What a header block that was in vain costs beside the reset: it was copied and looked at.
    pub(super) fn spend_large_head(&mut self, bytes: usize, now: Instant) -> Result<(), ConnectionError> {
        match u32::try_from(bytes / HEAD_BYTES_PER_RESET).unwrap_or(u32::MAX) {
            0 => Ok(()),
            resets => self.spend_reset(resets, now),
        }
    }

    pub(super) fn spend_reset(&mut self, count: u32, now: Instant) -> Result<(), ConnectionError> {
        if self.resets.spend(count, now) {
            return Ok(());
        }
        Err(violation(ErrorCode::ENHANCE_YOUR_CALM, "too many streams reset"))
    }

    #[inline]
    pub(super) fn spend_overhead(
        &mut self,
        cost: u32,
        now: Instant,
        detail: &'static str,
    ) -> Result<(), ConnectionError> {
        if self.overhead.spend(cost, now) {
            return Ok(());
        }
        Err(violation(ErrorCode::ENHANCE_YOUR_CALM, detail))
    }
}

/// Octets of a payload that are looked at.
fn needed(header: FrameHeader) -> u32 {
    if header.kind == kind::GOAWAY { header.len.min(GO_AWAY_LEN) } else { header.len }
}
