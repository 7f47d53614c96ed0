//! One HTTP/2 connection: its state, its beginning and end, its timers. Receiving is in [`super::receive`], sending in
//! [`super::send`].

use super::budget::Budget;
use super::config::{Config, FRAME_SIZE_MIN, HEADER_TABLE_SIZE_DEFAULT, Role, WINDOW_DEFAULT};
use super::error::{ConnectionError, ErrorCode};
use super::frame::{
    self, FrameSink, PREFACE, StreamId, put_go_away, put_ping, put_settings, put_settings_ack,
    put_window_update, setting,
};
use super::headers::Headers;
use super::hpack_decode::Decoder;
use super::hpack_encode::Encoder;
use super::receive::Receiver;
use super::streams::{Stream, Streams, state};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Payload of keepalive PINGs, told apart from the caller's by being sent only while one is due.
const KEEP_ALIVE_PAYLOAD: [u8; 8] = *b"keepaliv";
/// Payload of the PING between the two steps of a graceful end.
const DRAIN_PAYLOAD: [u8; 8] = *b"draining";
/// How long the peer has to answer that PING before the second step is taken without it.
const DRAIN_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams we assume to be granted before the peer's SETTINGS arrive (RFC 9113 section 6.5.2 recommends at least 100).
const STREAMS_BEFORE_SETTINGS: u32 = 100;
/// Scratch space for header blocks kept between uses.
pub(super) const SCRATCH_KEPT: usize = 512;

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
    /// The peer will not take new streams. Streams above `last` have their `Reset` events before this one.
    GoAway { last: StreamId, code: ErrorCode },
    /// Answer to [`Connection::ping`].
    Pong { payload: [u8; 8] },
    /// The peer's SETTINGS arrived: limits on opening streams may have changed.
    SettingsChanged,
}

/// What the peer announced with SETTINGS.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerSettings {
    pub(super) initial_window: u32,
    pub(super) max_frame_size: u32,
    pub(super) max_concurrent_streams: u32,
    pub(super) max_header_list_size: u32,
    pub(super) connect_protocol: bool,
}

/// How far a graceful end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    No,
    /// The first GOAWAY is out; the second follows the PING's answer, or the deadline.
    Announced {
        deadline: Instant,
    },
    /// Streams above this one are ignored.
    Final {
        last: u32,
    },
}

/// Where the keepalive stands.
#[derive(Debug, Clone, Copy)]
struct KeepAliveState {
    awaiting_answer: bool,
    deadline: Instant,
}

/// One HTTP/2 connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) config: Config,
    pub(super) streams: Streams,
    pub(super) receiver: Receiver,
    pub(super) decoder: Decoder,
    /// Connection window that we grant.
    pub(super) receive_window: u32,
    /// Released by consumers, not yet announced.
    pub(super) release_pending: u32,
    /// Handed out and not yet released: the most that `release` may still give back.
    pub(super) unreleased: u32,
    /// Stream window that we grant to new streams.
    pub(super) stream_window: u32,
    /// Highest stream the peer has opened.
    pub(super) highest_peer_stream: u32,
    pub(super) settings_acknowledged: bool,

    pub(super) encoder: Encoder,
    pub(super) scratch: Vec<u8>,
    /// Connection window that the peer grants; never negative (RFC 9113 section 6.9.2).
    pub(super) send_window: i32,
    pub(super) peer: PeerSettings,
    /// Next stream we open.
    pub(super) next_stream: u32,
    /// Streams waiting for connection window, in order. Those that were granted a turn and found nothing left go to
    /// `passed_over`, which is served first: so a stream that takes all cannot do it twice in a row.
    pub(super) waiting: VecDeque<u32>,
    pub(super) passed_over: VecDeque<u32>,

    /// Streams that ended without a call of ours, not yet told.
    pub(super) resets_to_tell: VecDeque<(u32, ErrorCode, ResetBy)>,
    pub(super) go_away_to_tell: Option<(u32, ErrorCode)>,
    /// Streams that we reset lately, whose late frames are no error.
    pub(super) recently_reset: VecDeque<u32>,
    pub(super) go_away_received: bool,
    pub(super) closing: Closing,
    pub(super) failed: Option<ConnectionError>,

    pub(super) resets: Budget,
    pub(super) overhead: Budget,
    keep_alive: Option<KeepAliveState>,
    next_stall_scan: Option<Instant>,
    /// When the peer must have shown that it speaks HTTP/2 and knows our settings; none once it has.
    start_due: Option<Instant>,
    /// When the frame or the header block that has begun must be whole.
    pub(super) frame_due: Option<Instant>,
}

impl Connection {
    /// Starts a connection: writes the preface (client role), SETTINGS and the connection's WINDOW_UPDATE.
    pub fn new(config: Config, now: Instant, out: &mut impl FrameSink) -> Self {
        let config = config.clamped();
        write_start(&config, out);
        let limits = &config.limits;
        Self {
            streams: Streams::default(),
            receiver: Receiver::new(config.role),
            // Until the peer knows our settings it may count on the defaults (RFC 9113 section 6.5.3).
            decoder: Decoder::new(config.header_table_size.max(HEADER_TABLE_SIZE_DEFAULT) as usize),
            receive_window: config.connection_window,
            release_pending: 0,
            unreleased: 0,
            stream_window: config.initial_stream_window.max(WINDOW_DEFAULT),
            highest_peer_stream: 0,
            settings_acknowledged: false,
            encoder: Encoder::new(config.header_table_size as usize, HEADER_TABLE_SIZE_DEFAULT as usize),
            scratch: Vec::new(),
            send_window: signed(WINDOW_DEFAULT),
            peer: PeerSettings {
                initial_window: WINDOW_DEFAULT,
                max_frame_size: FRAME_SIZE_MIN,
                max_concurrent_streams: STREAMS_BEFORE_SETTINGS,
                max_header_list_size: u32::MAX,
                connect_protocol: false,
            },
            next_stream: 1,
            waiting: VecDeque::new(),
            passed_over: VecDeque::new(),
            resets_to_tell: VecDeque::new(),
            go_away_to_tell: None,
            recently_reset: VecDeque::new(),
            go_away_received: false,
            closing: Closing::No,
            failed: None,
            resets: Budget::new(limits.resets_burst, limits.resets_per_second, now),
            overhead: Budget::new(limits.overhead_burst, limits.overhead_per_second, now),
            keep_alive: config
                .keep_alive
                .map(|keep| KeepAliveState { awaiting_answer: false, deadline: now + keep.interval }),
            next_stall_scan: limits.stalled_stream_timeout.map(|timeout| now + timeout),
            start_due: Some(now + limits.completion_timeout),
            frame_due: None,
            config,
        }
    }

    /// Ends a stream in both directions. Does nothing if it is gone already.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode, out: &mut impl FrameSink) {
        if self.streams.remove(stream.0).is_some() {
            self.remember_reset(stream.0);
            frame::put_reset(out, stream.0, code);
        }
    }

    /// Announces the end. With NO_ERROR a server first says that it will close, and names the last stream it took only
    /// after a round trip, so that no request is lost (RFC 9113 section 6.8). Running streams go on.
    pub fn go_away(&mut self, code: ErrorCode, now: Instant, out: &mut impl FrameSink) {
        if self.failed.is_some() || matches!(self.closing, Closing::Final { .. }) {
            return;
        }
        if code != ErrorCode::NO_ERROR || self.config.role == Role::Client {
            self.finish_go_away(code, out);
        } else if self.closing == Closing::No {
            put_go_away(out, StreamId::MAX, code);
            put_ping(out, DRAIN_PAYLOAD, 0);
            self.closing = Closing::Announced { deadline: now + DRAIN_ANSWER_TIMEOUT };
        }
    }

    /// Sends a PING; [`Event::Pong`] follows.
    pub fn ping(&mut self, payload: [u8; 8], out: &mut impl FrameSink) {
        put_ping(out, payload, 0);
    }

    /// When [`Connection::on_timer`] must be called at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.failed.is_some() {
            return None;
        }
        let keep_alive = self.keep_alive.map(|keep| keep.deadline);
        let draining = match self.closing {
            Closing::Announced { deadline } => Some(deadline),
            Closing::No | Closing::Final { .. } => None,
        };
        let stalled = self.next_stall_scan.filter(|_| self.streams.len() > 0);
        [keep_alive, draining, stalled, self.start_due, self.frame_due].into_iter().flatten().min()
    }

    /// Does what is due: keepalive, the second step of a graceful end, stalled streams, the end of a peer that takes too
    /// long for what it has begun.
    pub fn on_timer(&mut self, now: Instant, out: &mut impl FrameSink) -> Result<(), ConnectionError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.give_up_late(now, out)?;
        if let Closing::Announced { deadline } = self.closing
            && now >= deadline
        {
            self.finish_go_away(ErrorCode::NO_ERROR, out);
        }
        if let Some(timeout) = self.config.limits.stalled_stream_timeout
            && self.next_stall_scan.is_some_and(|deadline| now >= deadline)
        {
            self.next_stall_scan = Some(now + timeout);
            self.reset_stalled(out);
        }
        self.keep_alive(now, out)
    }

    /// Streams that are open now.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Whether the stream is open in at least one direction.
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.streams.get(stream.0).is_some()
    }

    /// Whether GOAWAY was sent (its last step) or received and the last stream has ended: time to flush and close.
    pub fn is_drained(&self) -> bool {
        let closing = self.go_away_received || matches!(self.closing, Closing::Final { .. });
        closing && self.streams.len() == 0 && self.resets_to_tell.is_empty()
    }

    /// Whether the peer's first SETTINGS have arrived: it does speak HTTP/2.
    pub fn is_established(&self) -> bool {
        self.receiver.settings_received
    }

    /// Whether the peer takes extended CONNECT requests (RFC 8441).
    pub fn peer_takes_connect_protocol(&self) -> bool {
        self.peer.connect_protocol
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Gives up: writes GOAWAY and keeps the error for all later calls.
    #[cold]
    pub(super) fn fail(&mut self, error: ConnectionError, out: &mut impl FrameSink) -> ConnectionError {
        // The last stream never rises from one GOAWAY to the next (RFC 9113 section 6.8).
        let last = match self.closing {
            Closing::Final { last } => last,
            Closing::No | Closing::Announced { .. } => self.highest_peer_stream,
        };
        put_go_away(out, last, error.code());
        self.failed = Some(error);
        error
    }

    /// Keeps in mind that late frames of a stream are no error; the oldest is forgotten first.
    pub(super) fn remember_reset(&mut self, stream: u32) {
        let bound = self.config.limits.reset_streams_remembered as usize;
        while self.recently_reset.len() >= bound.max(1) {
            self.recently_reset.pop_front();
        }
        if bound > 0 {
            self.recently_reset.push_back(stream);
        }
    }

    /// Acts on the answer to a PING. Answers to PINGs that the engine sent are kept from the caller.
    pub(super) fn on_pong(
        &mut self,
        payload: [u8; 8],
        now: Instant,
        out: &mut impl FrameSink,
    ) -> Option<Event<'static>> {
        if payload == DRAIN_PAYLOAD && matches!(self.closing, Closing::Announced { .. }) {
            self.finish_go_away(ErrorCode::NO_ERROR, out);
            return None;
        }
        if let (Some(config), Some(keep)) = (self.config.keep_alive, &mut self.keep_alive)
            && payload == KEEP_ALIVE_PAYLOAD
            && keep.awaiting_answer
        {
            *keep = KeepAliveState { awaiting_answer: false, deadline: now + config.interval };
            return None;
        }
        Some(Event::Pong { payload })
    }

    /// Our settings are in force at the peer now.
    pub(super) fn on_settings_acknowledged(&mut self) {
        if self.settings_acknowledged {
            return;
        }
        self.settings_acknowledged = true;
        self.on_start_progress();
        self.decoder.set_size_limit(self.config.header_table_size as usize);
        let lowered = signed(self.stream_window) - signed(self.config.initial_stream_window);
        self.stream_window = self.config.initial_stream_window;
        if lowered != 0 {
            for stream in self.streams.iter_mut() {
                // At least -2^31 + 1, as the window was not below 0 by more than it is lowered.
                stream.receive_window = stream.receive_window.saturating_sub(lowered);
            }
        }
    }

    /// The peer's SETTINGS or its acknowledgement of ours have arrived; when both have, nothing more is due of its start.
    pub(super) fn on_start_progress(&mut self) {
        if self.settings_acknowledged && self.receiver.settings_received {
            self.start_due = None;
        }
    }

    /// Ends the connection of a peer that has not ended in time what it began.
    fn give_up_late(&mut self, now: Instant, out: &mut impl FrameSink) -> Result<(), ConnectionError> {
        let is_past = |due: Option<Instant>| due.is_some_and(|due| now >= due);
        let (code, what) = match () {
            () if is_past(self.frame_due) => (ErrorCode::ENHANCE_YOUR_CALM, "a frame or a header block"),
            () if !is_past(self.start_due) => return Ok(()),
            () if self.is_established() => (ErrorCode::SETTINGS_TIMEOUT, "the acknowledgement of SETTINGS"),
            () => (ErrorCode::SETTINGS_TIMEOUT, "its preface and SETTINGS"),
        };
        let timeout = self.config.limits.completion_timeout;
        Err(self.fail(ConnectionError::Late { code, what, timeout }, out))
    }

    fn finish_go_away(&mut self, code: ErrorCode, out: &mut impl FrameSink) {
        put_go_away(out, self.highest_peer_stream, code);
        self.closing = Closing::Final { last: self.highest_peer_stream };
    }

    fn keep_alive(&mut self, now: Instant, out: &mut impl FrameSink) -> Result<(), ConnectionError> {
        let (Some(config), Some(keep)) = (self.config.keep_alive, &mut self.keep_alive) else {
            return Ok(());
        };
        if now < keep.deadline {
            return Ok(());
        }
        if keep.awaiting_answer {
            return Err(self.fail(ConnectionError::KeepAliveTimeout, out));
        }
        *keep = KeepAliveState { awaiting_answer: true, deadline: now + config.timeout };
        put_ping(out, KEEP_ALIVE_PAYLOAD, 0);
        Ok(())
    }

    /// Resets streams that were blocked at the last scan and have not moved since; marks those that are blocked now.
    fn reset_stalled(&mut self, out: &mut impl FrameSink) {
        let is_stalled = |stream: &&Stream| stream.is(state::BLOCKED | state::STALLED);
        let stalled: Vec<u32> = self.streams.iter().filter(is_stalled).map(|stream| stream.id).collect();
        for id in stalled {
            self.reset(StreamId(id), ErrorCode::CANCEL, out);
            self.resets_to_tell.push_back((id, ErrorCode::CANCEL, ResetBy::Engine));
        }
        for stream in self.streams.iter_mut().filter(|stream| stream.is(state::BLOCKED)) {
            stream.state |= state::STALLED;
        }
    }
}

/// What each end sends first (RFC 9113 section 3.4).
fn write_start(config: &Config, out: &mut impl FrameSink) {
    let mut settings = [(0_u16, 0_u32); 7];
    let mut count = 0;
    let mut set = |id, value| {
        if let Some(slot) = settings.get_mut(count) {
            *slot = (id, value);
            count += 1;
        }
    };
    if config.header_table_size != HEADER_TABLE_SIZE_DEFAULT {
        set(setting::HEADER_TABLE_SIZE, config.header_table_size);
    }
    match config.role {
        Role::Client => set(setting::ENABLE_PUSH, 0),
        Role::Server => set(setting::MAX_CONCURRENT_STREAMS, config.max_concurrent_streams),
    }
    set(setting::INITIAL_WINDOW_SIZE, config.initial_stream_window);
    set(setting::MAX_FRAME_SIZE, config.max_frame_size);
    set(setting::MAX_HEADER_LIST_SIZE, config.max_header_list_size);
    if config.role == Role::Server && config.enable_connect_protocol {
        set(setting::ENABLE_CONNECT_PROTOCOL, 1);
    }
    if config.role == Role::Client {
        out.put(PREFACE);
    }
    put_settings(out, settings.get(..count).unwrap_or_default());
    if config.connection_window > WINDOW_DEFAULT {
        put_window_update(out, 0, config.connection_window - WINDOW_DEFAULT);
    }
}

/// A window as a signed number. Windows are at most 2^31 - 1.
#[inline]
pub(super) fn signed(window: u32) -> i32 {
    debug_assert!(i32::try_from(window).is_ok());
    i32::try_from(window).unwrap_or(i32::MAX)
}

/// Acknowledges the peer's SETTINGS.
pub(super) fn acknowledge_settings(out: &mut impl FrameSink) {
    put_settings_ack(out);
}
