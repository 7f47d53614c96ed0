//! Header blocks: HEADERS and CONTINUATION, decoding, and what requests, responses and trailers do to a stream
//! (RFC 9113 sections 6.2, 6.10 and 8.1).

use super::config::Role;
use super::connection::{Connection, Event};
use super::error::{ConnectionError, ErrorCode};
use super::frame::{FrameHeader, FrameSink, StreamId, flag, read_u32};
use super::message::{Bounds, Expected, Fault, Message, MessageBuilder, is_request_stream};
use super::receive::{Outcome, violation};
use super::streams::{UNCHECKED, state};
use std::time::Instant;

/// Space for a message's text reserved ahead, learnt from the one before, at most this.
const TEXT_HINT_MAX: usize = 1_024;

/// A list that is larger than may be ends its stream; one so many times as large ends the connection: few octets of
/// references say it, and naming it all costs more than refusing it.
const LISTS_MAX: usize = 4;

/// A header block that CONTINUATION frames will complete.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenBlock {
    pub(super) stream: u32,
    end_stream: bool,
    self_dependent: bool,
    continuations: u32,
}

impl Connection {
    /// HEADERS (RFC 9113 section 6.2).
    pub(super) fn on_headers(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        if !is_request_stream(header.stream) {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "HEADERS on a stream that no client opens"));
        }
        let mut block = payload;
        if header.has(flag::PADDED) {
            block = block
                .split_first()
                .and_then(|(&pad, rest)| rest.get(..rest.len().checked_sub(usize::from(pad))?))
                .ok_or_else(|| violation(ErrorCode::PROTOCOL_ERROR, "padding longer than the frame"))?;
        }
        let mut self_dependent = false;
        if header.has(flag::PRIORITY) {
            let dependency = read_u32(block).map(|word| word & StreamId::MAX);
            self_dependent = dependency == Some(header.stream);
            block = block
                .get(5..)
                .ok_or_else(|| violation(ErrorCode::FRAME_SIZE_ERROR, "HEADERS shorter than its priority"))?;
        }
        let open = OpenBlock {
            stream: header.stream,
            end_stream: header.has(flag::END_STREAM),
            self_dependent,
            continuations: 0,
        };
        if header.has(flag::END_HEADERS) {
            return self.on_block(open, block, now, out);
        }
        self.receiver.block.extend_from_slice(block);
        self.receiver.open_block = Some(open);
        self.expect_whole_frame(now);
        Ok(None)
    }

    /// CONTINUATION (RFC 9113 section 6.10).
    pub(super) fn on_continuation(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        let Some(open) = &mut self.receiver.open_block else {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "CONTINUATION without HEADERS"));
        };
        open.continuations += 1;
        if open.continuations > self.config.limits.continuation_frames_max {
            return Err(violation(ErrorCode::ENHANCE_YOUR_CALM, "too many CONTINUATION frames"));
        }
        let open = *open;
        self.receiver.block.extend_from_slice(payload);
        if !header.has(flag::END_HEADERS) {
            return Ok(None);
        }
        self.receiver.open_block = None;
        self.frame_due = None;
        let block = std::mem::take(&mut self.receiver.block);
        self.on_block(open, &block, now, out)
    }

    /// A complete header block. It is decoded whatever becomes of it, for the sake of the table.
    fn on_block(
        &mut self,
        open: OpenBlock,
        block: &[u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        let expected = self.expected(open.stream)?;
        let refusal = self.refusal(open.stream, expected);
        // Of what is refused unseen nothing is kept.
        let kept = if refusal.is_some() { Expected::Nothing } else { expected };
        let mut builder = MessageBuilder::new(kept, self.bounds(), self.receiver.text_hint);
        if self.decoder.decode(block, &mut builder).is_err() {
            return Err(violation(ErrorCode::COMPRESSION_ERROR, "header block cannot be decoded"));
        }
        let list_size = builder.list_size();
        if list_size > LISTS_MAX.saturating_mul(self.config.max_header_list_size as usize) {
            return Err(violation(ErrorCode::ENHANCE_YOUR_CALM, "header list out of all proportion"));
        }
        if expected == Expected::Nothing {
            return self.spend_overhead(1, now, "too many frames on closed streams").map(|()| None);
        }
        if let Some(code) = refusal {
            return self.stream_error(open.stream, code, now, out);
        }
        let copied = builder.kept();
        let mut message = match builder.finish() {
            Ok(message) if !open.self_dependent => message,
            fault => {
                let code = match fault {
                    // As if it had come a little later (section 8.7): nobody has seen it.
                    Err(Fault::NoRoom) if expected == Expected::Request => ErrorCode::REFUSED_STREAM,
                    Err(Fault::NoRoom | Fault::TooLarge) => ErrorCode::ENHANCE_YOUR_CALM,
                    Ok(_) | Err(Fault::Malformed) => ErrorCode::PROTOCOL_ERROR,
                };
                // What there was no room for may come again at once, and be as large as it was.
                if code != ErrorCode::REFUSED_STREAM {
                    self.spend_large_head(copied, now)?;
                }
                return self.stream_error(open.stream, code, now, out);
            }
        };
        message.headers.trim();
        self.receiver.text_hint = message.headers.text_len().min(TEXT_HINT_MAX);
        // A list is at most 2^32 - 1, as it was announced.
        let list_size = u32::try_from(list_size).unwrap_or(u32::MAX);
        match expected {
            Expected::Request => self.on_request(open, message, list_size, now, out),
            Expected::Response => self.on_response(open, message, list_size, now, out),
            Expected::Trailers | Expected::Nothing => self.on_trailers(open, message, list_size, now, out),
        }
    }

    /// Why a block is not looked at, whatever it says.
    fn refusal(&self, id: u32, expected: Expected) -> Option<ErrorCode> {
        // RFC 9113 section 5.1, half-closed (remote).
        if self.streams.get(id).is_some_and(|stream| stream.is(state::REMOTE_ENDED)) {
            return Some(ErrorCode::STREAM_CLOSED);
        }
        let is_full = self.streams.len() >= self.config.max_concurrent_streams as usize;
        (expected == Expected::Request && is_full).then_some(ErrorCode::REFUSED_STREAM)
    }

    fn bounds(&self) -> Bounds {
        let limits = &self.config.limits;
        Bounds {
            list_size_max: self.config.max_header_list_size as usize,
            room: (limits.held_heads_bytes_max as usize).saturating_sub(self.streams.head_bytes()),
            fields_max: limits.header_fields_max,
            connect_protocol: self.config.enable_connect_protocol,
        }
    }

    /// Which kind of block is due on a stream (RFC 9113 sections 5.1 and 8.1).
    fn expected(&mut self, id: u32) -> Result<Expected, ConnectionError> {
        if let Some(stream) = self.streams.get(id) {
            let is_response = self.config.role == Role::Client && !stream.is(state::HEADERS_RECEIVED);
            return Ok(if is_response { Expected::Response } else { Expected::Trailers });
        }
        if self.config.role == Role::Client {
            // Late frames of streams we have reset are no error, however long ago that was.
            return if self.is_idle(id) {
                Err(violation(ErrorCode::PROTOCOL_ERROR, "response on a stream that was not opened"))
            } else {
                Ok(Expected::Nothing)
            };
        }
        if id > self.highest_peer_stream {
            self.highest_peer_stream = id;
            return Ok(if self.is_ignored(id) { Expected::Nothing } else { Expected::Request });
        }
        if self.is_ignored(id) {
            return Ok(Expected::Nothing);
        }
        Err(violation(ErrorCode::STREAM_CLOSED, "HEADERS on a closed stream"))
    }

    fn on_request(
        &mut self,
        open: OpenBlock,
        message: Message,
        list_size: u32,
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        let content_remaining = self.content_due(&message, false);
        if open.end_stream && !matches!(content_remaining, 0 | UNCHECKED) {
            return self.stream_error(open.stream, ErrorCode::PROTOCOL_ERROR, now, out);
        }
        let mut bits = state::HEADERS_RECEIVED;
        if open.end_stream {
            bits |= state::REMOTE_ENDED;
        }
        self.insert_stream(open.stream, bits, content_remaining);
        self.streams.hold_head(open.stream, list_size);
        let Message { headers, .. } = message;
        Ok(Some(Event::Headers { stream: StreamId(open.stream), headers, end_stream: open.end_stream }))
    }

    fn on_response(
        &mut self,
        open: OpenBlock,
        message: Message,
        list_size: u32,
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        let is_unchecked =
            self.streams.get(open.stream).is_some_and(|stream| stream.is(state::NO_CONTENT_CHECK));
        let content_remaining = self.content_due(&message, is_unchecked);
        let is_informational = message.headers.status().is_some_and(|status| status < 200);
        if is_informational {
            self.spend_overhead(2, now, "too many informational responses")?;
        }
        let is_short = open.end_stream && !matches!(content_remaining, 0 | UNCHECKED);
        if (is_informational && open.end_stream) || is_short {
            return self.stream_error(open.stream, ErrorCode::PROTOCOL_ERROR, now, out);
        }
        self.streams.hold_head(open.stream, list_size);
        if let Some(stream) = self.streams.get_mut(open.stream)
            && !is_informational
        {
            stream.state |= state::HEADERS_RECEIVED;
            stream.content_remaining = content_remaining;
        }
        if open.end_stream {
            self.end_remote(open.stream);
        }
        let Message { headers, .. } = message;
        Ok(Some(Event::Headers { stream: StreamId(open.stream), headers, end_stream: open.end_stream }))
    }

    fn on_trailers(
        &mut self,
        open: OpenBlock,
        message: Message,
        list_size: u32,
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        let Some(stream) = self.streams.get(open.stream) else { return Ok(None) };
        if !open.end_stream || !matches!(stream.content_remaining, 0 | UNCHECKED) {
            return self.stream_error(open.stream, ErrorCode::PROTOCOL_ERROR, now, out);
        }
        self.streams.hold_head(open.stream, list_size);
        self.end_remote(open.stream);
        Ok(Some(Event::Trailers { stream: StreamId(open.stream), headers: message.headers }))
    }

    /// How much DATA a message's content-length promises (RFC 9113 section 8.1.1).
    fn content_due(&self, message: &Message, is_unchecked: bool) -> u64 {
        let without_content = is_unchecked
            || message.headers.method() == Some(b"CONNECT")
            || message.headers.status().is_some_and(|status| status < 200 || status == 304);
        match message.content_length {
            Some(length) if self.config.check_content_length && !without_content => length,
            _ => UNCHECKED,
        }
    }
}
