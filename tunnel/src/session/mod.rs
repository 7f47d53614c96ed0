//! One connection without its socket: TLS records around HTTP/2 streams, as tunnels have them, or the streams alone.
//!
//! How a shell drives it:
//! 1. Reading. When the socket is readable: [`Session::prepare_input`] puts the kept start of an unfinished record at
//!    the front of a buffer that the shell lends, the shell reads behind it, and [`Session::ingest`] turns what is
//!    there into events. Payload in events points into that buffer, decrypted where it lay.
//! 2. Writing. [`Session::open`], [`Session::respond`], [`Session::send_data`] and [`Session::release`] append frames to
//!    the open record; nothing is sealed before the record is full or the output is asked for. So a whole batch of
//!    calls costs one record and one send.
//! 3. Flushing. Once a batch: send [`Session::output`] and report with [`Session::consumed`] how much went out.
//! 4. Time. [`Session::on_timer`] at [`Session::next_deadline`], then [`Session::ingest`] of nothing.
//!
//! Invariants: an idle session holds no buffer (see [`Session::reclaim_output`]); no payload is delivered before the
//! handshake has proved the peer; after an error or a close nothing more is taken in, and the output holds what the
//! peer should still see (GOAWAY, alert).
//!
//! Bounds: the shell takes no bytes from applications while [`Session::output_is_full`] and none from the peer while
//! [`Session::input_is_blocked`]. The second bound is higher, so that two ends which both wait for output keep
//! reading each other and cannot stand still together.

mod error;
mod ingest;
mod layer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::identity::Identity;

use crate::h2::{self, ErrorCode, Headers, OpenError, SendError, StreamId};
use crate::tls::record::Output;
use layer::{Layer, Sink};

use crate::tls::{
    AlertCode, CipherSuite, ClientContext, CloseCause, Handshake, ServerContext, TlsError, VerifiedIdentity,
};

pub use error::SessionError;
pub use ingest::Ingest;

/// Unsent bytes above which no more is taken from applications.
pub const OUTPUT_BYTES_FULL: usize = 1 << 20;
/// Unsent bytes above which nothing is read from the peer either: what lies between the two bounds is only answers
/// to the peer (acknowledgements, window updates), which a peer that reads keeps small.
pub const OUTPUT_BYTES_MAX: usize = OUTPUT_BYTES_FULL + 256 * 1024;
/// From the first byte to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What happened on the connection.
#[derive(Debug)]
pub enum SessionEvent<'b> {
    /// The handshake is over and the peer is who it says it is. Comes once, before any other event; never without TLS.
    Established { peer: VerifiedIdentity, cipher: CipherSuite },
    /// Something on the HTTP/2 connection.
    Http(h2::Event<'b>),
    /// The peer ended the connection in order; it sends nothing more.
    Closed,
}

/// One end of a tunnel connection.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    output: Output,
    /// The start of a record whose rest has not arrived. Empty, without allocation, whenever input ends on a
    /// record's boundary.
    tail: Vec<u8>,
    closed: Option<CloseCause>,
}

#[derive(Debug)]
enum Phase {
    Handshake(Box<Handshaking>),
    Open(Box<Open>),
    /// Ended; only the output may still hold something.
    Over,
}

#[derive(Debug)]
struct Handshaking {
    handshake: Handshake,
    http: h2::Config,
    deadline: Instant,
}

#[derive(Debug)]
struct Open {
    layer: Layer,
    http: h2::Connection,
    /// Our sending side failed inside a call that has no way to say so; reported by the next one that has.
    fault: Option<TlsError>,
}

// === impl Session: life ===

impl Session {
    /// Dials: the ClientHello is ready in [`Self::output`]. Only a peer of one of the identities `expected` is accepted.
    pub fn client(
        context: &ClientContext,
        expected: &Arc<[Identity]>,
        http: h2::Config,
        now: Instant,
    ) -> Result<Self, SessionError> {
        let mut output = Output::default();
        let handshake = Handshake::client(context, expected, output.handshake_bytes())?;
        Ok(Self::new(handshake, output, http, now))
    }

    /// Accepts. Only a peer of our own trust domain is accepted.
    pub fn server(context: &ServerContext, http: h2::Config, now: Instant) -> Result<Self, SessionError> {
        let handshake = Handshake::server(context)?;
        Ok(Self::new(handshake, Output::default(), http, now))
    }

    /// Either end of a connection without TLS, whose peer is nobody in particular. `received` has been read from it
    /// before: it is taken in by the first pass of [`Self::ingest`].
    pub fn clear(http: h2::Config, received: &[u8], now: Instant) -> Self {
        let mut output = Output::default();
        let http = h2::Connection::new(http, now, &mut Sink::Clear(&mut output));
        let open = Open { layer: Layer::Clear, http, fault: None };
        Self { phase: Phase::Open(Box::new(open)), output, tail: received.to_vec(), closed: None }
    }

    fn new(handshake: Handshake, output: Output, http: h2::Config, now: Instant) -> Self {
        let handshaking = Handshaking { handshake, http, deadline: now + HANDSHAKE_TIMEOUT };
        let phase = Phase::Handshake(Box::new(handshaking));
        Self { phase, output, tail: Vec::new(), closed: None }
    }

    /// Who the peer is, once that is proved.
    pub fn peer(&self) -> Option<&VerifiedIdentity> {
        self.opened().and_then(|open| open.layer.tls()).map(|tls| &tls.peer)
    }

    pub fn cipher(&self) -> Option<CipherSuite> {
        self.opened().and_then(|open| open.layer.tls()).map(|tls| tls.cipher)
    }

    /// Whether the handshake is still under way.
    pub fn is_handshaking(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_))
    }

    /// Whether the key of a TLS 1.2 connection has done half of what it may. It cannot be replaced: let the connection end with
    /// its streams, or it ends under them.
    pub fn key_wears_out(&self) -> bool {
        self.opened().and_then(|open| open.layer.tls()).is_some_and(|tls| tls.records.key_wears_out())
    }

    /// Why the connection ended; none while it lives. Once set, flush the output and close the socket.
    pub fn close_cause(&self) -> Option<CloseCause> {
        self.closed
    }

    /// Whether a graceful end has come to its end: no stream is left. Call [`Self::close`] then.
    pub fn is_drained(&self) -> bool {
        self.opened().is_some_and(|open| open.http.is_drained())
    }

    /// When [`Self::on_timer`] must be called at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Handshake(handshaking) => Some(handshaking.deadline),
            Phase::Open(open) => open.http.next_deadline(),
            Phase::Over => None,
        }
    }

    /// Does what is due. Streams may have ended: call [`Self::ingest`] of nothing afterwards for their events.
    pub fn on_timer(&mut self, now: Instant) -> Result<(), SessionError> {
        if let Phase::Handshake(handshaking) = &self.phase
            && now >= handshaking.deadline
        {
            return Err(self.fail(TlsError::HandshakeTimeout(HANDSHAKE_TIMEOUT.as_secs()).into()));
        }
        match self.with_http(|http, out| http.on_timer(now, out)) {
            Some(Err(error)) => Err(self.fail(error.into())),
            _ => self.take_fault(),
        }
    }

    /// The socket has no more to read. Tells an orderly end from one that anyone on the path could have made.
    pub fn on_end_of_input(&mut self) -> CloseCause {
        let orderly = self.opened().is_some_and(Open::may_end) && self.tail.is_empty();
        let cause = if orderly { CloseCause::Clean } else { CloseCause::Truncated };
        self.end(cause)
    }

    /// Ends the connection from our side: the closing alert is appended to the output. Streams that are still open are
    /// cut; use [`Self::go_away`] first to let them end.
    pub fn close(&mut self, cause: CloseCause) -> CloseCause {
        self.append_alert(AlertCode::CLOSE_NOTIFY);
        self.end(cause)
    }

    fn end(&mut self, cause: CloseCause) -> CloseCause {
        if let Phase::Open(open) = &mut self.phase {
            // What was written before the end is still owed to the peer.
            let _sealed = open.layer.seal(&mut self.output);
        }
        self.phase = Phase::Over;
        self.tail = Vec::new();
        *self.closed.get_or_insert(cause)
    }

    /// Ends the connection with an error, telling the peer where the protocol has words for it.
    fn fail(&mut self, error: SessionError) -> SessionError {
        match &error {
            SessionError::Tls(error) => {
                if let Some(alert) = error.alert() {
                    self.append_alert(alert);
                }
            }
            // The GOAWAY that the engine has written says why; TLS itself ends in order.
            SessionError::Http(_) => self.append_alert(AlertCode::CLOSE_NOTIFY),
            SessionError::Over => {}
        }
        self.end(error.close_cause());
        error
    }

    /// Sealing the alert can only fail as everything before did, and then there is nobody left to tell.
    fn append_alert(&mut self, alert: AlertCode) {
        match &mut self.phase {
            Phase::Open(open) => {
                let _told = open.layer.alert(&mut self.output, alert);
            }
            Phase::Handshake(_) | Phase::Over => {}
        }
    }

    fn take_fault(&mut self) -> Result<(), SessionError> {
        let fault = match &mut self.phase {
            Phase::Open(open) => open.fault.take(),
            Phase::Handshake(_) | Phase::Over => None,
        };
        fault.map_or(Ok(()), |error| Err(self.fail(error.into())))
    }

    fn opened(&self) -> Option<&Open> {
        match &self.phase {
            Phase::Open(open) => Some(open),
            Phase::Handshake(_) | Phase::Over => None,
        }
    }

    /// Runs a call into the engine with the open record as its output. None if the connection is not open.
    fn with_http<R>(&mut self, call: impl FnOnce(&mut h2::Connection, &mut Sink<'_>) -> R) -> Option<R> {
        let Phase::Open(open) = &mut self.phase else { return None };
        match open.layer.sink(&mut self.output) {
            Ok(mut sink) => Some(call(&mut open.http, &mut sink)),
            Err(error) => {
                open.fault.get_or_insert(error);
                None
            }
        }
    }
}

impl Open {
    /// Whether the end of input is in order: the peer has announced it, or without TLS there is nothing that it could cut.
    fn may_end(&self) -> bool {
        match &self.layer {
            Layer::Tls(tls) => tls.peer_closed,
            Layer::Clear => self.http.stream_count() == 0,
        }
    }

    #[cfg(test)]
    fn records(&mut self) -> &mut crate::tls::record::Records {
        match &mut self.layer {
            Layer::Tls(tls) => &mut tls.records,
            Layer::Clear => panic!("no TLS"),
        }
    }
}

// === impl Session: input ===

impl Session {
    /// Moves the kept start of an unfinished record to the front of `buffer` and says how long it is. The shell reads
    /// behind it. `buffer` must hold at least one whole record: [`crate::tls::record::RECORD_BYTES_MAX`].
    pub fn prepare_input(&mut self, buffer: &mut [u8]) -> usize {
        let length = self.tail.len();
        match buffer.get_mut(..length) {
            Some(front) => {
                front.copy_from_slice(&self.tail);
                self.tail = Vec::new();
                length
            }
            None => 0,
        }
    }

    /// Whether the start of an unfinished record is kept, that is, whether memory is held for input.
    pub fn holds_input(&self) -> bool {
        !self.tail.is_empty()
    }

    /// Turns received bytes into events: `filled` is the kept part and what was read behind it, or nothing, to fetch
    /// events that timers or writes made. Call [`Ingest::next`] until it returns none or an error.
    pub fn ingest<'s, 'b>(&'s mut self, filled: &'b mut [u8], now: Instant) -> Ingest<'s, 'b> {
        Ingest::new(self, filled, now)
    }

    /// Whether the peer must not be read from now: too much is waiting to be sent to it.
    pub fn input_is_blocked(&self) -> bool {
        self.output.backlog() > OUTPUT_BYTES_MAX
    }
}

// === impl Session: output ===

impl Session {
    /// Seals what is open and returns all bytes that are to be sent.
    pub fn output(&mut self) -> &[u8] {
        if let Phase::Open(open) = &mut self.phase
            && let Err(error) = open.layer.seal(&mut self.output)
        {
            open.fault.get_or_insert(error);
        }
        self.output.ready()
    }

    /// The first `count` bytes of [`Self::output`] were sent.
    pub fn consumed(&mut self, count: usize) {
        self.output.consumed(count);
    }

    /// Bytes waiting to be sent, not counting what sealing will add.
    pub fn output_backlog(&self) -> usize {
        self.output.backlog()
    }

    /// Whether applications must not be read from now.
    pub fn output_is_full(&self) -> bool {
        self.output.backlog() >= OUTPUT_BYTES_FULL
    }

    /// Gives the allocation of `spare` to the output, if it has none. Called before a batch of writes.
    pub fn lend_output(&mut self, spare: &mut Vec<u8>) {
        self.output.lend(spare);
    }

    /// Takes the output's allocation back when all is sent; the larger of it and `spare` is kept in `spare`.
    pub fn reclaim_output(&mut self, spare: &mut Vec<u8>) {
        self.output.reclaim(spare);
    }
}

// === impl Session: streams ===

impl Session {
    /// Opens a stream with a request (client role).
    pub fn open(&mut self, headers: &Headers, end_stream: bool) -> Result<StreamId, OpenError> {
        self.with_http(|http, out| http.open(headers, end_stream, out)).unwrap_or(Err(OpenError::GoingAway))
    }

    /// Answers a request (server role).
    pub fn respond(
        &mut self,
        stream: StreamId,
        headers: &Headers,
        end_stream: bool,
    ) -> Result<(), SendError> {
        self.with_http(|http, out| http.respond(stream, headers, end_stream, out))
            .unwrap_or(Err(SendError::NoSuchStream))
    }

    /// Sends as much of `bytes` as the windows allow and says how much that was; `end_stream` takes effect only if it
    /// was all. When it was less, `Writable` follows.
    pub fn send_data(
        &mut self,
        stream: StreamId,
        bytes: &[u8],
        end_stream: bool,
    ) -> Result<usize, SendError> {
        self.with_http(|http, out| http.send_data(stream, bytes, end_stream, out))
            .unwrap_or(Err(SendError::NoSuchStream))
    }

    pub fn send_trailers(&mut self, stream: StreamId, headers: &Headers) -> Result<(), SendError> {
        self.with_http(|http, out| http.send_trailers(stream, headers, out))
            .unwrap_or(Err(SendError::NoSuchStream))
    }

    /// What [`Self::send_data`] would take now by the peer's windows.
    pub fn send_capacity(&self, stream: StreamId) -> usize {
        self.opened().map_or(0, |open| open.http.send_capacity(stream))
    }

    /// Gives received payload back to the windows, as its consumer takes it.
    pub fn release(&mut self, stream: StreamId, bytes: usize) {
        self.with_http(|http, out| http.release(stream, bytes, out));
    }

    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        self.with_http(|http, out| http.reset(stream, code, out));
    }

    /// Announces the end; running streams go on. See [`Self::is_drained`].
    pub fn go_away(&mut self, code: ErrorCode, now: Instant) {
        self.with_http(|http, out| http.go_away(code, now, out));
    }

    /// Streams that are open now.
    pub fn stream_count(&self) -> usize {
        self.opened().map_or(0, |open| open.http.stream_count())
    }

    /// Whether the peer takes extended CONNECT requests (RFC 8441).
    pub fn peer_takes_connect_protocol(&self) -> bool {
        self.opened().is_some_and(|open| open.http.peer_takes_connect_protocol())
    }

    /// How many more streams [`Self::open`] would grant now.
    pub fn open_capacity(&self) -> usize {
        self.opened().map_or(0, |open| open.http.open_capacity())
    }
}

#[cfg(test)]
mod tests;
