//! One tunnel connection: reading, flushing, time, and its end.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use model::Identity;
use tunnel::h2::{ErrorCode, StreamId};
use tunnel::session::{Session, SessionError};
use tunnel::tls::{CipherSuite, CloseCause, VerifiedIdentity};

use super::carrier::{Carried, Carrier};
use super::clear::Arrivals;
use super::events::Batch;
use super::server::Handler;
use super::stream::{Stream, StreamEnd, TunnelStream};
use super::turn::Turn;
use super::{IncomingRequest, LinkEnd};
use crate::net::Socket;
use crate::worker::{CensusGuard, Flush, Latch, Signal, Tick, Worker};

/// Requests that are begun in a row before others get their turn: each may look up, decide, log, and dial.
const REQUESTS_IN_A_ROW_MAX: usize = 8;

/// How long the last words may take to leave, and how long the peer's are read over before the socket closes. A socket
/// closed with unread input sends a reset, which would destroy what we said last (RFC 9113 section 6.8).
const LINGER: Duration = Duration::from_secs(1);

/// Bytes read over while lingering.
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Who is at the other end, as proved in the handshake.
#[derive(Debug, Clone)]
pub struct Peer {
    pub identity: Identity,
    pub cipher: CipherSuite,
    /// By which a later revocation finds it.
    pub proof: VerifiedIdentity,
}

/// What a link does with requests.
pub(super) enum Role {
    Client,
    Server(Rc<dyn Handler>),
    /// Without TLS.
    Queue(Arrivals),
}

/// One tunnel connection of a worker.
pub struct Link {
    pub(super) worker: Worker,
    pub(super) carrier: Carrier,
    pub(super) session: RefCell<Session>,
    pub(super) streams: RefCell<HashMap<StreamId, Rc<Stream>, foldhash::fast::RandomState>>,
    role: Role,
    pub(super) turn: Turn,
    remote: SocketAddr,
    local: SocketAddr,
    pub(super) peer: OnceCell<Peer>,
    end: OnceCell<LinkEnd>,
    /// Opens when the handshake is over or the link has ended.
    settled: Rc<Latch>,
    /// Opens when the peer's settings have arrived or the link has ended.
    pub(super) introduced: Rc<Latch>,
    /// Rouses the reader from waiting: the link has ended, or there is room for output again.
    roused: Signal,
    /// On the worker's flush list.
    flush_queued: Cell<bool>,
    /// The kernel takes no more; a task waits until it does.
    send_blocked: Cell<bool>,
    /// Streams that wait for room in the output.
    starved: RefCell<Vec<Rc<Stream>>>,
    /// No new streams: GOAWAY was sent or received.
    pub(super) going_away: Cell<bool>,
    /// There is no TLS on it, and its streams are messages.
    clear: bool,
    /// Its end is a reset of what carries it.
    cut: Cell<bool>,
    /// Ends with the stream that it was made for.
    pub(super) single_use: Cell<bool>,
    /// Links within streams of this one.
    pub(super) carried: RefCell<Carried>,
    /// Those of them for which bytes have come in this turn.
    pub(super) fed: RefCell<Vec<Rc<Self>>>,
    /// Unsent output, as the worker's account knows it.
    charged: Cell<usize>,
    _live: CensusGuard,
}

/// What a link costs beside its output: TLS state, HTTP/2 state, tables.
const LINK_BYTES: usize = 8 * 1024;

impl Drop for Link {
    fn drop(&mut self) {
        self.worker.memory().give_back(LINK_BYTES + self.charged.get());
    }
}

impl Link {
    /// Puts a session onto a connected socket and starts its tasks.
    pub(super) fn start(
        worker: &Worker,
        socket: Socket,
        remote: SocketAddr,
        session: Session,
        role: Role,
    ) -> io::Result<Rc<Self>> {
        let local = socket.local_address()?;
        Ok(Self::start_on(worker, Carrier::Socket(socket), (local, remote), session, role))
    }

    /// The same within a stream of another link.
    pub(super) fn start_within(outer: TunnelStream, session: Session, role: Role) -> Rc<Self> {
        let link = outer.link().clone();
        let addresses = (link.local, link.remote);
        let within = Self::start_on(&link.worker, Carrier::Stream(outer), addresses, session, role);
        within.carrier.attach(&within);
        within
    }

    pub(super) fn start_on(
        worker: &Worker,
        carrier: Carrier,
        (local, remote): (SocketAddr, SocketAddr),
        session: Session,
        role: Role,
    ) -> Rc<Self> {
        // Without TLS there is nobody to prove anything.
        let clear = !session.is_handshaking();
        let link = Rc::new(Self {
            worker: worker.clone(),
            carrier,
            session: RefCell::new(session),
            streams: RefCell::default(),
            role,
            turn: Turn::default(),
            remote,
            local,
            peer: OnceCell::new(),
            end: OnceCell::new(),
            settled: Rc::default(),
            introduced: Rc::default(),
            roused: Signal::default(),
            flush_queued: Cell::new(false),
            send_blocked: Cell::new(false),
            starved: RefCell::default(),
            going_away: Cell::new(false),
            clear,
            cut: Cell::new(false),
            single_use: Cell::new(false),
            carried: RefCell::default(),
            fed: RefCell::default(),
            charged: Cell::new(0),
            _live: worker.hold(),
        });
        worker.memory().take(LINK_BYTES);
        if clear {
            link.settled.open();
        }
        let ticking: Weak<Self> = Rc::downgrade(&link);
        worker.tick_list().add(ticking);
        worker.spawn(link.clone().run());
        // A client's first words are in the session already.
        link.queue_flush();
        link
    }

    /// All links of a worker that have not been dropped, in both roles.
    pub fn all(worker: &Worker) -> Vec<Rc<Self>> {
        worker.tick_list().members().into_iter().filter_map(|member| member.downcast().ok()).collect()
    }

    /// Who is at the other end; `None` until the handshake is over.
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.get()
    }

    pub fn remote_address(&self) -> SocketAddr {
        self.remote
    }

    /// The address at which the peer reached us, or from which we dialled.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Why the link is over; `None` while it lives.
    pub fn end(&self) -> Option<&LinkEnd> {
        self.end.get()
    }

    /// Whether new streams may be opened on it, as far as known here.
    pub fn takes_streams(&self) -> bool {
        self.end.get().is_none() && !self.going_away.get()
    }

    /// How many more streams may be opened now.
    pub fn open_capacity(&self) -> usize {
        if self.takes_streams() { self.session.borrow().open_capacity() } else { 0 }
    }

    /// Streams that are open now.
    pub fn stream_count(&self) -> usize {
        self.streams.borrow().len()
    }

    /// Waits until the handshake is over, one way or the other.
    pub async fn settled(&self) -> Result<&Peer, LinkEnd> {
        self.settled.wait().await;
        match (self.end.get(), self.peer.get()) {
            (None, Some(peer)) => Ok(peer),
            (Some(end), _) => Err(end.clone()),
            (None, None) => Err(LinkEnd { cause: CloseCause::Internal, detail: String::new() }),
        }
    }

    /// Takes no new streams and ends when the last one has ended. Before the handshake is over there is nobody to tell:
    /// then nothing happens.
    pub fn drain(self: &Rc<Self>) {
        if !self.settled.is_open() {
            return;
        }
        if self.end.get().is_none() && !self.going_away.replace(true) {
            self.write(|session| session.go_away(ErrorCode::NO_ERROR, Instant::now()));
            self.settle_drained();
        }
    }

    /// Ends the link at once; its streams are cut.
    pub fn close(self: &Rc<Self>, cause: CloseCause, detail: impl Into<String>) {
        self.write(|session| session.close(cause));
        self.finish(LinkEnd { cause, detail: detail.into() });
    }

    /// Ends the link at once, and resets what carries it: the peer must not take what it got for the whole.
    pub fn cut(self: &Rc<Self>) {
        if self.end.get().is_none() {
            self.cut.set(true);
            self.carrier.reset();
            self.close(CloseCause::LocalClose, "cut");
        }
    }

    /// Whether it runs without TLS.
    pub fn is_clear(&self) -> bool {
        self.clear
    }

    pub(super) fn role(&self) -> &Role {
        &self.role
    }

    // --- Writing ---

    /// Runs a call that writes into the session and has the output flushed at the end of the batch.
    pub(super) fn write<R>(self: &Rc<Self>, call: impl FnOnce(&mut Session) -> R) -> R {
        let result = {
            let mut session = self.session.borrow_mut();
            self.lend_output(&mut session);
            call(&mut session)
        };
        self.queue_flush();
        result
    }

    fn lend_output(&self, session: &mut Session) {
        if session.output_backlog() == 0 {
            let mut spare = self.worker.spare_buffers().take();
            session.lend_output(&mut spare);
            self.worker.spare_buffers().give_back(spare);
        }
    }

    fn queue_flush(self: &Rc<Self>) {
        if !self.flush_queued.replace(true) {
            self.worker.flush_list().add(self.clone());
        }
    }

    /// Whether a stream may put more into the output; if not, it is woken when it may.
    pub(super) fn has_room(&self, stream: &Rc<Stream>) -> bool {
        if !self.session.borrow().output_is_full() && !self.worker.memory().is_full() {
            return true;
        }
        self.starved.borrow_mut().push(stream.clone());
        false
    }

    /// Sends what the kernel takes; `Ok(true)` if it does not take all.
    fn send_output(&self) -> io::Result<bool> {
        let mut session = self.session.borrow_mut();
        loop {
            let ready = session.output();
            if ready.is_empty() {
                let mut spare = Vec::new();
                session.reclaim_output(&mut spare);
                self.worker.spare_buffers().give_back(spare);
                return Ok(false);
            }
            match self.carrier.try_send(ready)? {
                Some(count) => session.consumed(count),
                None => return Ok(true),
            }
        }
    }

    fn flush_now(self: &Rc<Self>) {
        match self.send_output() {
            Ok(false) => self.send_blocked.set(false),
            Ok(true) if self.send_blocked.replace(true) => {}
            Ok(true) => self.worker.spawn(self.clone().send_when_writable()),
            Err(error) => {
                self.send_blocked.set(false);
                self.broken(&error);
            }
        }
        let (full, blocked, backlog) = {
            let session = self.session.borrow();
            (session.output_is_full(), session.input_is_blocked(), session.output_backlog())
        };
        let memory = self.worker.memory();
        memory.take(backlog);
        memory.give_back(self.charged.replace(backlog));
        if !full {
            self.feed_starved();
        }
        if !blocked {
            self.roused.raise();
        }
    }

    /// Wakes the streams that wait for room in the output.
    fn feed_starved(&self) {
        for stream in self.starved.borrow_mut().drain(..) {
            stream.outbound.raise();
        }
    }

    /// Runs while the kernel takes no more than the peer reads.
    async fn send_when_writable(self: Rc<Self>) {
        while self.send_blocked.get() {
            if let Err(error) = self.carrier.writable().await {
                self.send_blocked.set(false);
                return self.broken(&error);
            }
            self.flush_now();
        }
    }

    // --- Reading ---

    async fn run(self: Rc<Self>) {
        // What was received before there was a link.
        if self.session.borrow().holds_input() {
            self.read();
        }
        while self.end.get().is_none() {
            if self.session.borrow().input_is_blocked() {
                self.roused.wait().await;
                continue;
            }
            match self.wait_readable().await {
                Ok(true) => {
                    self.read();
                    if self.turn.was_cut_short() && !self.carrier.is_socket() {
                        // A socket is waited for in any case; what is already here would be read without a pause.
                        self.worker.yield_now().await;
                    }
                }
                Ok(false) => {}
                Err(error) => self.broken(&error),
            }
        }
        self.linger().await;
    }

    /// Waits until the socket is readable; `false` if something else calls.
    async fn wait_readable(&self) -> io::Result<bool> {
        let mut readable = pin!(self.carrier.readable());
        std::future::poll_fn(|context| {
            if let Poll::Ready(result) = readable.as_mut().poll(context) {
                return Poll::Ready(result.map(|()| true));
            }
            // Only the end of the link ends this wait: rousing for room comes with every flush and says nothing new.
            while self.roused.poll_wait(context).is_ready() {
                if self.end.get().is_some() {
                    return Poll::Ready(Ok(false));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// One turn of the reader: a bounded number of reads into the worker's buffer.
    fn read(self: &Rc<Self>) {
        let mut requests = Vec::new();
        self.turn.begin();
        self.worker.lend(|buffer| {
            loop {
                match self.read_once(buffer, &mut requests) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => return self.broken(&error),
                }
            }
        });
        self.dispatch(requests);
        self.feed();
    }

    /// A read turn on behalf of the link that carries this one.
    pub(super) fn turn(self: &Rc<Self>) {
        if self.end.get().is_none() && !self.session.borrow().input_is_blocked() {
            self.read();
        }
    }

    /// Reads once; says whether it is worth to read again at once.
    fn read_once(
        self: &Rc<Self>,
        buffer: &mut [u8],
        requests: &mut Vec<IncomingRequest>,
    ) -> io::Result<bool> {
        let kept = self.session.borrow_mut().prepare_input(buffer);
        let end = buffer.len().min(kept + self.turn.read_bytes());
        let room = buffer.get_mut(kept..end).unwrap_or_default();
        let room_bytes = room.len();
        let Some(count) = self.carrier.try_recv(room)? else {
            // What was kept must be kept again.
            self.take_events(buffer.get_mut(..kept).unwrap_or_default(), requests);
            return Ok(false);
        };
        if count == 0 {
            let cause = self.session.borrow_mut().on_end_of_input();
            self.finish(LinkEnd { cause, detail: "the peer closed the connection".into() });
            return Ok(false);
        }
        let work = self.take_events(buffer.get_mut(..kept + count).unwrap_or_default(), requests);
        let again = self.turn.note(count, work) && count == room_bytes && self.end.get().is_none();
        Ok(again && !self.session.borrow().input_is_blocked())
    }

    /// Feeds received bytes, or nothing, to the session and acts on its events. How much there was to do.
    fn take_events(self: &Rc<Self>, filled: &mut [u8], requests: &mut Vec<IncomingRequest>) -> usize {
        let (taken, pending) = {
            let mut session = self.session.borrow_mut();
            self.lend_output(&mut session);
            let taken = Batch::new(self, requests).run(session.ingest(filled, Instant::now()));
            let pending = session.output_backlog() > 0;
            if !pending {
                let mut spare = Vec::new();
                session.reclaim_output(&mut spare);
                self.worker.spare_buffers().give_back(spare);
            }
            (taken, pending)
        };
        if pending {
            self.queue_flush();
        }
        match taken.closed {
            Ok(false) => {}
            Ok(true) => {
                let cause = self.session.borrow_mut().close(CloseCause::Clean);
                self.finish(LinkEnd { cause, detail: "the peer ended the connection".into() });
            }
            Err(error) => self.fail(&error),
        }
        if self.peer.get().is_some() && !self.settled.is_open() {
            self.settled.open();
            if let Role::Server(handler) = &self.role {
                handler.established(self);
            }
        }
        self.settle_drained();
        taken.work
    }

    /// Hands requests to the handler, many only by and by.
    fn dispatch(self: &Rc<Self>, mut requests: Vec<IncomingRequest>) {
        let Role::Server(handler) = &self.role else { return };
        let begin = |handler: &dyn Handler, request: IncomingRequest| {
            // One that has been taken back is not begun.
            if !request.is_taken_back() {
                handler.request(request);
            }
        };
        let others = requests.split_off(requests.len().min(REQUESTS_IN_A_ROW_MAX));
        for request in requests {
            begin(&**handler, request);
        }
        if others.is_empty() {
            return;
        }
        let (worker, handler) = (self.worker.clone(), handler.clone());
        self.worker.spawn(async move {
            let mut others = others.into_iter();
            while others.len() > 0 {
                worker.yield_now().await;
                for request in others.by_ref().take(REQUESTS_IN_A_ROW_MAX) {
                    begin(&*handler, request);
                }
            }
        });
    }

    /// Whether others opened it to us.
    pub fn is_server(&self) -> bool {
        matches!(self.role, Role::Server(_) | Role::Queue(_))
    }

    // --- The end ---

    fn settle_drained(self: &Rc<Self>) {
        if self.end.get().is_none() && self.session.borrow().is_drained() {
            self.close(CloseCause::LocalClose, "drained");
        }
    }

    fn fail(self: &Rc<Self>, error: &SessionError) {
        self.finish(LinkEnd { cause: error.close_cause(), detail: error.to_string() });
    }

    /// The transport failed under us.
    fn broken(self: &Rc<Self>, error: &io::Error) {
        let cause = self.session.borrow_mut().on_end_of_input();
        self.finish(LinkEnd { cause, detail: error.to_string() });
    }

    /// Records the end, tells every stream, and has the reader clean up. Only the first call counts.
    fn finish(self: &Rc<Self>, end: LinkEnd) {
        if self.end.set(end.clone()).is_err() {
            return;
        }
        self.going_away.set(true);
        // Out of the map first: a stream may call back while it is told.
        let streams = std::mem::take(&mut *self.streams.borrow_mut());
        for stream in streams.into_values() {
            stream.abort(StreamEnd::Link(end.clone()));
        }
        self.starved.borrow_mut().clear();
        self.settled.open();
        self.introduced.open();
        self.roused.raise();
        self.queue_flush();
        match &self.role {
            Role::Client => {}
            Role::Server(handler) => handler.ended(self, &end),
            Role::Queue(arrivals) => arrivals.close(),
        }
    }

    /// Says the last words, and reads over what still comes so that they arrive.
    async fn linger(&self) {
        if self.cut.get() {
            return self.send_blocked.set(false);
        }
        let last_words = async {
            while self.flush_queued.get() || self.send_blocked.get() {
                self.roused.wait().await;
            }
            self.carrier.shutdown_write()?;
            let mut left = LINGER_BYTES_MAX;
            while left > 0 {
                self.carrier.readable().await?;
                match self.worker.lend(|buffer| self.carrier.try_recv(buffer))? {
                    Some(0) => break,
                    Some(count) => left = left.saturating_sub(count),
                    None => {}
                }
            }
            Ok::<(), io::Error>(())
        };
        // The peer may be gone or silent: then there is nobody to be polite to.
        drop(monoio::time::timeout(LINGER, last_words).await);
        self.send_blocked.set(false);
    }
}

impl Flush for Link {
    fn flush(self: Rc<Self>) {
        self.flush_queued.set(false);
        if self.send_blocked.get() {
            return;
        }
        self.flush_now();
    }
}

impl Tick for Link {
    fn tick(self: Rc<Self>, now: Instant) {
        if self.end.get().is_some() {
            return;
        }
        if self.worker.drain_deadline().is_some() || self.session.borrow().key_wears_out() {
            self.drain();
        }
        // Memory that ran short elsewhere is told of by nobody.
        if !self.worker.memory().is_full() && !self.session.borrow().output_is_full() {
            self.feed_starved();
        }
        let due = self.session.borrow().next_deadline().is_some_and(|deadline| deadline <= now);
        if due {
            let result = self.write(|session| session.on_timer(now));
            let mut requests = Vec::new();
            match result {
                Ok(()) => drop(self.take_events(&mut [], &mut requests)),
                Err(error) => self.fail(&error),
            }
            self.dispatch(requests);
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("remote", &self.remote)
            .field("peer", &self.peer.get())
            .field("streams", &self.stream_count())
            .field("end", &self.end.get())
            .finish_non_exhaustive()
    }
}
