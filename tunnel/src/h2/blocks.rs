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
        let bounds = Bounds {
            list_size_max: self.config.max_header_list_size as usize,
            fields_max: self.config.limits.header_fields_max,
            connect_protocol: self.config.enable_connect_protocol,
        };
        let mut builder = MessageBuilder::new(expected, bounds, self.receiver.text_hint);
        if self.decoder.decode(block, &mut builder).is_err() {
            return Err(violation(ErrorCode::COMPRESSION_ERROR, "header block cannot be decoded"));
        }
        if expected == Expected::Nothing {
            return self.spend_overhead(1, now, "too many frames on closed streams").map(|()| None);
        }
        // Whatever it says: RFC 9113 section 5.1, half-closed (remote).
        if self.streams.get(open.stream).is_some_and(|stream| stream.is(state::REMOTE_ENDED)) {
            return self.stream_error(open.stream, ErrorCode::STREAM_CLOSED, now, out);
        }
        if expected == Expected::Request && self.streams.len() >= self.config.max_concurrent_streams as usize
        {
            return self.stream_error(open.stream, ErrorCode::REFUSED_STREAM, now, out);
        }
        let mut message = match builder.finish() {
            Ok(message) if !open.self_dependent => message,
            Err(Fault::TooLarge) => {
                return self.stream_error(open.stream, ErrorCode::ENHANCE_YOUR_CALM, now, out);
            }
            Ok(_) | Err(Fault::Malformed) => {
                return self.stream_error(open.stream, ErrorCode::PROTOCOL_ERROR, now, out);
            }
        };
        message.headers.trim();
        self.receiver.text_hint = message.headers.text_len().min(TEXT_HINT_MAX);
        match expected {
            Expected::Request => self.on_request(open, message, now, out),
            Expected::Response => self.on_response(open, message, now, out),
            Expected::Trailers | Expected::Nothing => self.on_trailers(open, message, now, out),
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
        let Message { headers, .. } = message;
        Ok(Some(Event::Headers { stream: StreamId(open.stream), headers, end_stream: open.end_stream }))
    }

    fn on_response(
        &mut self,
        open: OpenBlock,
        message: Message,
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
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome<'static> {
        let Some(stream) = self.streams.get(open.stream) else { return Ok(None) };
        if !open.end_stream || !matches!(stream.content_remaining, 0 | UNCHECKED) {
            return self.stream_error(open.stream, ErrorCode::PROTOCOL_ERROR, now, out);
        }
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
