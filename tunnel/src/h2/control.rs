//! What PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY and WINDOW_UPDATE do (RFC 9113 sections 6.3 to 6.9). Frame sizes
//! have been checked before.

use super::config::{FRAME_SIZE_MAX, FRAME_SIZE_MIN, Role, WINDOW_MAX};
use super::connection::{Connection, Event, ResetBy, acknowledge_settings, signed};
use super::error::{ConnectionError, ErrorCode};
use super::frame::{FrameHeader, FrameSink, StreamId, flag, put_ping, read_u32, setting};
use super::receive::violation;
use super::streams::state;
use std::time::Instant;

type Outcome = Result<Option<Event<'static>>, ConnectionError>;

/// SETTINGS may touch every stream, so it costs more than a PING.
const SETTINGS_COST: u32 = 10;

impl Connection {
    /// PRIORITY is deprecated; only its form matters (sections 5.3.2 and 6.3).
    pub(super) fn on_priority(
        &mut self,
        id: u32,
        payload: &[u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome {
        if id == 0 {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "PRIORITY on stream 0"));
        }
        self.spend_overhead(1, now, "too many PRIORITY frames")?;
        if read_u32(payload).map(|word| word & StreamId::MAX) == Some(id) {
            return self.open_stream_error(id, ErrorCode::PROTOCOL_ERROR, now, out);
        }
        Ok(None)
    }

    /// RST_STREAM (section 6.4). A request reset before its answer counts against the budget of resets: that is the
    /// cheap way to make us work (rapid reset). Later resets cost the peer a whole exchange each.
    pub(super) fn on_reset(&mut self, id: u32, payload: &[u8], now: Instant) -> Outcome {
        if id == 0 || self.is_idle(id) {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "RST_STREAM on an idle stream or stream 0"));
        }
        let code = ErrorCode(read_u32(payload).unwrap_or(0));
        let Some(stream) = self.streams.remove(id) else {
            return self.spend_overhead(1, now, "too many frames on closed streams").map(|()| None);
        };
        if self.config.role == Role::Server && !stream.is(state::HEADERS_SENT) {
            self.spend_large_head(stream.head_bytes as usize, now)?;
            self.spend_reset(1, now)?;
        }
        Ok(Some(Event::Reset { stream: StreamId(id), code, by: ResetBy::Peer }))
    }

    /// SETTINGS (section 6.5).
    pub(super) fn on_settings(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome {
        if header.stream != 0 {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "SETTINGS on a stream"));
        }
        self.spend_overhead(SETTINGS_COST, now, "too many SETTINGS frames")?;
        if header.has(flag::ACK) {
            self.on_settings_acknowledged();
            return Ok(None);
        }
        self.receiver.settings_received = true;
        self.on_start_progress();
        let window_before = self.peer.initial_window;
        for &[a, b, c, d, e, f] in payload.as_chunks::<6>().0 {
            self.apply_setting(u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f]))?;
        }
        if self.peer.initial_window != window_before {
            self.move_send_windows(window_before)?;
        }
        acknowledge_settings(out);
        Ok(Some(Event::SettingsChanged))
    }

    /// One setting (section 6.5.2); unknown ones are ignored.
    fn apply_setting(&mut self, id: u16, value: u32) -> Result<(), ConnectionError> {
        let peer = &mut self.peer;
        match id {
            setting::HEADER_TABLE_SIZE => self.encoder.set_size_limit(value as usize),
            // A server must not offer to be pushed to.
            setting::ENABLE_PUSH if value > 1 || (value == 1 && self.config.role == Role::Client) => {
                return Err(violation(ErrorCode::PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH out of range"));
            }
            setting::MAX_CONCURRENT_STREAMS => peer.max_concurrent_streams = value,
            setting::INITIAL_WINDOW_SIZE => {
                if value > WINDOW_MAX {
                    let detail = "SETTINGS_INITIAL_WINDOW_SIZE out of range";
                    return Err(violation(ErrorCode::FLOW_CONTROL_ERROR, detail));
                }
                peer.initial_window = value;
            }
            setting::MAX_FRAME_SIZE => {
                if !(FRAME_SIZE_MIN..=FRAME_SIZE_MAX).contains(&value) {
                    return Err(violation(ErrorCode::PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE out of range"));
                }
                peer.max_frame_size = value;
            }
            setting::MAX_HEADER_LIST_SIZE => peer.max_header_list_size = value,
            setting::ENABLE_CONNECT_PROTOCOL => {
                // Once offered it cannot be taken back (RFC 8441 section 3).
                if value > 1 || (value == 0 && peer.connect_protocol) {
                    let detail = "SETTINGS_ENABLE_CONNECT_PROTOCOL out of range";
                    return Err(violation(ErrorCode::PROTOCOL_ERROR, detail));
                }
                peer.connect_protocol = value == 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// Moves the send windows of all streams by the change of the initial one (section 6.9.2).
    fn move_send_windows(&mut self, before: u32) -> Result<(), ConnectionError> {
        let change = signed(self.peer.initial_window) - signed(before);
        let mut opened = Vec::new();
        for stream in self.streams.iter_mut() {
            let Some(window) = stream.send_window.checked_add(change) else {
                let detail = "SETTINGS_INITIAL_WINDOW_SIZE overflows a window";
                return Err(violation(ErrorCode::FLOW_CONTROL_ERROR, detail));
            };
            stream.send_window = window;
            if window > 0 && stream.is(state::BLOCKED) {
                opened.push(stream.id);
            }
        }
        for id in opened {
            self.queue_blocked(id);
        }
        Ok(())
    }

    /// PING (section 6.7).
    pub(super) fn on_ping(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome {
        if header.stream != 0 {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "PING on a stream"));
        }
        self.spend_overhead(1, now, "too many PING frames")?;
        let Some(&payload) = payload.first_chunk::<8>() else { return Ok(None) };
        if header.has(flag::ACK) {
            return Ok(self.on_pong(payload, now, out));
        }
        put_ping(out, payload, flag::ACK);
        Ok(None)
    }

    /// GOAWAY (section 6.8): streams of ours that the peer will not process end now and may be tried again.
    pub(super) fn on_go_away(&mut self, id: u32, payload: &[u8]) -> Outcome {
        if id != 0 {
            return Err(violation(ErrorCode::PROTOCOL_ERROR, "GOAWAY on a stream"));
        }
        let last = read_u32(payload).unwrap_or(0) & StreamId::MAX;
        let code = ErrorCode(payload.get(4..).and_then(read_u32).unwrap_or(0));
        self.go_away_received = true;
        if self.config.role == Role::Client {
            let mut refused: Vec<u32> =
                self.streams.iter().map(|stream| stream.id).filter(|&id| id > last).collect();
            refused.sort_unstable();
            for id in refused {
                self.streams.remove(id);
                self.resets_to_tell.push_back((id, ErrorCode::REFUSED_STREAM, ResetBy::Peer));
            }
        }
        self.go_away_to_tell = Some((last, code));
        Ok(None)
    }

    /// WINDOW_UPDATE (section 6.9).
    pub(super) fn on_window_update(
        &mut self,
        id: u32,
        payload: &[u8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Outcome {
        self.spend_overhead(1, now, "too many WINDOW_UPDATE frames")?;
        let increment = signed(read_u32(payload).unwrap_or(0) & StreamId::MAX);
        if id == 0 {
            let grown = self.send_window.checked_add(increment).filter(|_| increment > 0);
            self.send_window = grown.ok_or_else(|| match increment {
                0 => violation(ErrorCode::PROTOCOL_ERROR, "WINDOW_UPDATE of nothing"),
                _ => violation(ErrorCode::FLOW_CONTROL_ERROR, "connection window overflows"),
            })?;
            return Ok(None);
        }
        let Some(stream) = self.streams.get_mut(id) else {
            return if self.is_idle(id) {
                Err(violation(ErrorCode::PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream"))
            } else {
                Ok(None)
            };
        };
        match stream.send_window.checked_add(increment) {
            Some(window) if increment > 0 => {
                stream.send_window = window;
                if window > 0 && stream.is(state::BLOCKED) {
                    self.queue_blocked(id);
                }
                Ok(None)
            }
            Some(_) => self.stream_error(id, ErrorCode::PROTOCOL_ERROR, now, out),
            None => self.stream_error(id, ErrorCode::FLOW_CONTROL_ERROR, now, out),
        }
    }
}
