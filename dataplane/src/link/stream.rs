//! One stream of a link.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use tunnel::h2::{ErrorCode, Headers, SendError, StreamId};

use super::message::Heads;
use super::pool::Permit;
use super::{CloseCause, Flow, Link, LinkEnd};
use crate::net::{ByteCounters, Socket};
use crate::worker::Signal;

/// Why a stream ended before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEnd {
    /// One of the two ends reset it.
    Reset(ErrorCode),
    /// Its link is over.
    Link(LinkEnd),
}

impl StreamEnd {
    /// Whether the peer meant an ordinary end: ztunnel ends streams that it has finished with in this way.
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::Reset(ErrorCode::NO_ERROR | ErrorCode::CANCEL))
    }
}

impl fmt::Display for StreamEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(code) => write!(f, "the stream was reset with {code}"),
            Self::Link(end) => write!(f, "the tunnel ended: {end}"),
        }
    }
}

/// Why a call on a stream failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("{0}")]
    Ended(StreamEnd),
    #[error(transparent)]
    Send(#[from] SendError),
}

/// The application behind a relayed stream, with its live counters.
pub(super) struct Sink {
    pub(super) socket: Socket,
    pub(super) counters: Rc<ByteCounters>,
    pub(super) flow: Flow,
}

impl Sink {
    /// Counts bytes that the application has been given.
    pub(super) fn count_delivered(&self, bytes: usize) {
        let count = match self.flow {
            Flow::Downstream => &self.counters.received,
            Flow::Upstream => &self.counters.sent,
        };
        count.set(count.get() + bytes as u64);
    }

    /// Counts bytes that it has given.
    pub(super) fn count_taken(&self, bytes: usize) {
        let count = match self.flow {
            Flow::Downstream => &self.counters.sent,
            Flow::Upstream => &self.counters.received,
        };
        count.set(count.get() + bytes as u64);
    }
}

/// What the link and the owner of a stream share. There is one for each idle connection, so what is seldom there is
/// in a box.
pub(super) struct Stream {
    link: Rc<Link>,
    id: StreamId,
    /// The application that payload is written to as it arrives; without one it is kept for whoever reads.
    pub(super) sink: OnceCell<Rc<Sink>>,
    /// Received and not taken yet: by the reader, or by the application's socket.
    pub(super) pending: RefCell<BytesMut>,
    pub(super) received_end: Cell<bool>,
    sent_end: Cell<bool>,
    /// A task is writing `pending` to the application's socket.
    pub(super) draining: Cell<bool>,
    pub(super) ended: RefCell<Option<Box<StreamEnd>>>,
    answer: Cell<Option<Box<Headers>>>,
    /// Interim responses and trailers, where messages are forwarded.
    pub(super) heads: RefCell<Option<Box<Heads>>>,
    /// Something arrived: headers, payload, an end.
    pub(super) inbound: Signal,
    /// There may be room to send, or the stream has ended.
    pub(super) outbound: Signal,
    /// What is pending will not be wanted any more.
    pub(super) cut: Signal,
}

impl Stream {
    pub(super) fn new(link: &Rc<Link>, id: StreamId) -> Rc<Self> {
        Rc::new(Self {
            link: link.clone(),
            id,
            sink: OnceCell::new(),
            pending: RefCell::default(),
            received_end: Cell::new(false),
            sent_end: Cell::new(false),
            draining: Cell::new(false),
            ended: RefCell::new(None),
            answer: Cell::new(None),
            heads: RefCell::default(),
            inbound: Signal::default(),
            outbound: Signal::default(),
            cut: Signal::default(),
        })
    }

    pub(super) fn id(&self) -> StreamId {
        self.id
    }

    pub(super) fn link(&self) -> &Rc<Link> {
        &self.link
    }

    pub(super) fn ended(&self) -> Option<StreamEnd> {
        self.ended.borrow().as_deref().cloned()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    pub(super) fn check(&self) -> Result<(), StreamError> {
        self.ended().map_or(Ok(()), |end| Err(StreamError::Ended(end)))
    }

    /// Both directions have ended in order.
    pub(super) fn is_over(&self) -> bool {
        self.received_end.get() && self.sent_end.get()
    }

    /// The final response has arrived (client role).
    pub(super) fn answer(&self, headers: Headers) {
        let first = self.answer.take().unwrap_or_else(|| Box::new(headers));
        self.answer.set(Some(first));
        self.inbound.raise();
    }

    /// The final response, once, if it has arrived.
    pub(super) fn take_answer(&self) -> Option<Headers> {
        self.answer.take().map(|headers| *headers)
    }

    /// Waits for the final response.
    pub(super) async fn wait_answer(&self) -> Result<Headers, StreamError> {
        loop {
            if let Some(headers) = self.take_answer() {
                return Ok(headers);
            }
            self.check()?;
            self.inbound.wait().await;
        }
    }

    /// Answers a request (server role).
    pub(super) fn respond(&self, headers: &Headers, end_stream: bool) -> Result<(), StreamError> {
        self.check()?;
        self.link.write(|session| session.respond(self.id, headers, end_stream))?;
        if end_stream {
            self.mark_sent_end();
        }
        Ok(())
    }

    /// How much may be sent now; 0 means that `outbound` will be raised when that changes.
    pub(super) fn room(self: &Rc<Self>) -> Result<usize, StreamError> {
        self.check()?;
        if !self.link.has_room(self) {
            return Ok(0);
        }
        let capacity = self.link.session.borrow().send_capacity(self.id);
        if capacity == 0 {
            // Offering a byte that cannot be taken is how the engine learns that we wait for the window.
            self.link.write(|session| session.send_data(self.id, &[0], false))?;
        }
        Ok(capacity)
    }

    /// Waits until something may be sent.
    pub(super) async fn wait_room(self: &Rc<Self>) -> Result<(), StreamError> {
        while self.room()? == 0 {
            self.outbound.wait().await;
        }
        Ok(())
    }

    /// Sends what fits and says how much; the end goes with the last byte.
    pub(super) fn send(self: &Rc<Self>, bytes: &[u8], end_stream: bool) -> Result<usize, StreamError> {
        self.check()?;
        if !bytes.is_empty() && !self.link.has_room(self) {
            return Ok(0);
        }
        let sent = self.link.write(|session| session.send_data(self.id, bytes, end_stream))?;
        if end_stream && sent == bytes.len() {
            self.mark_sent_end();
        }
        Ok(sent)
    }

    /// Ends our direction with trailers.
    pub(super) fn send_trailers(&self, headers: &Headers) -> Result<(), StreamError> {
        self.check()?;
        self.link.write(|session| session.send_trailers(self.id, headers))?;
        self.mark_sent_end();
        Ok(())
    }

    pub(super) fn mark_sent_end(&self) {
        self.sent_end.set(true);
        self.link.forget_if_over(self);
    }

    /// Ends the stream from our side, both ways.
    pub(super) fn reset(&self, code: ErrorCode) {
        if self.is_over() || self.has_ended() {
            return;
        }
        self.link.write(|session| session.reset(self.id, code));
        self.link.streams.borrow_mut().remove(&self.id);
        self.abort(StreamEnd::Reset(code));
    }

    /// Ends the stream also where it has ended in order and the application has not yet taken all of it.
    fn cut_off(&self, code: ErrorCode) {
        self.reset(code);
        if !self.is_cut() {
            *self.ended.borrow_mut() = Some(Box::new(StreamEnd::Reset(code)));
            self.abort_sink();
            self.inbound.raise();
            self.outbound.raise();
        }
    }

    /// Gives back the credit of payload that nobody will take.
    fn discard_pending(&self) {
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        if !pending.is_empty() {
            self.link.worker().memory().give_back(pending.len());
            self.link.write(|session| session.release(self.id, pending.len()));
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.link.worker().memory().give_back(self.pending.get_mut().len());
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.id)
            .field("received_end", &self.received_end.get())
            .field("sent_end", &self.sent_end.get())
            .field("ended", &self.ended.borrow())
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// Records why the stream ended and tells its owner. Only the first call counts.
    pub(super) fn abort(&self, end: StreamEnd) {
        {
            let mut ended = self.ended.borrow_mut();
            if ended.is_some() {
                return;
            }
            *ended = Some(Box::new(end));
        }
        self.abort_sink();
        self.inbound.raise();
        self.outbound.raise();
    }
}

impl Link {
    /// Takes a stream that has ended both ways out of the map.
    pub(super) fn forget_if_over(&self, stream: &Stream) {
        if stream.is_over() {
            self.streams.borrow_mut().remove(&stream.id());
        }
    }
}

/// One open stream of a link, owned by whoever uses it. Dropped before both directions have ended, it is reset.
///
/// For plain TCP use [`TunnelStream::relay`]; reading and writing are for those who must look at the bytes.
#[derive(Debug)]
pub struct TunnelStream {
    pub(super) stream: Rc<Stream>,
    /// Counts as a stream of its pool for as long as it is owned.
    pub(super) permit: Option<Permit>,
}

impl TunnelStream {
    /// The connection that carries the stream.
    pub fn link(&self) -> &Rc<Link> {
        self.stream.link()
    }

    pub fn id(&self) -> StreamId {
        self.stream.id()
    }

    /// Receives at least one byte, or 0 when the peer has ended its direction.
    pub async fn read(&self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        loop {
            if let Some(count) = self.try_read(buffer)? {
                return Ok(count);
            }
            self.stream.inbound.wait().await;
        }
    }

    /// Receives what is there: `None` if nothing is, `Some(0)` when the peer has ended its direction.
    pub fn try_read(&self, buffer: &mut [u8]) -> Result<Option<usize>, StreamError> {
        let stream = &self.stream;
        let count = {
            let mut pending = stream.pending.borrow_mut();
            let count = pending.len().min(buffer.len());
            pending.copy_to_slice(buffer.get_mut(..count).unwrap_or_default());
            if pending.is_empty() {
                *pending = BytesMut::new();
            }
            count
        };
        if count > 0 {
            stream.link().worker().memory().give_back(count);
            stream.link().write(|session| session.release(stream.id(), count));
            return Ok(Some(count));
        }
        if stream.received_end.get() {
            return Ok(Some(0));
        }
        stream.check().map(|()| None)
    }

    /// Waits until [`TunnelStream::try_read`] would not return `None`.
    pub async fn readable(&self) {
        let stream = &self.stream;
        while stream.pending.borrow().is_empty() && !stream.received_end.get() && !stream.has_ended() {
            stream.inbound.wait().await;
        }
    }

    /// Whether something was received that nobody has taken.
    pub(super) fn holds_bytes(&self) -> bool {
        !self.stream.pending.borrow().is_empty()
    }

    /// Sends all of `bytes`, waiting for the peer's window where needed.
    pub async fn write_all(&self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let sent = self.stream.send(bytes, false)?;
            if sent == 0 {
                self.stream.outbound.wait().await;
            }
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends what fits: `None` if nothing does.
    pub fn try_write(&self, bytes: &[u8]) -> Result<Option<usize>, StreamError> {
        self.stream.send(bytes, false).map(|sent| (sent > 0).then_some(sent))
    }

    /// Waits until [`TunnelStream::try_write`] may take something.
    pub async fn writable(&self) -> Result<(), StreamError> {
        self.stream.wait_room().await
    }

    /// Ends our direction; the peer's goes on.
    pub fn finish(&self) -> Result<(), StreamError> {
        self.stream.send(&[], true).map(drop)
    }

    /// Ends both directions at once, so that the peer does not take what it got for the whole.
    pub fn reset(self, code: ErrorCode) {
        self.stream.reset(code);
    }

    /// A handle by which others can cut this stream, for instance when policy no longer allows it.
    pub fn cutter(&self) -> StreamCutter {
        StreamCutter { stream: Rc::downgrade(&self.stream) }
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        self.stream.reset(ErrorCode::CANCEL);
        self.stream.discard_pending();
        let link = self.stream.link();
        link.forget_carried(&self.stream);
        if link.single_use.get() && link.end().is_none() {
            link.close(CloseCause::LocalClose, "its only stream has ended");
        }
    }
}

/// Cuts a stream that someone else owns. Holds nothing alive.
#[derive(Debug, Clone)]
pub struct StreamCutter {
    stream: std::rc::Weak<Stream>,
}

impl StreamCutter {
    /// Resets the stream, and the application's connection with what it has not taken yet.
    pub fn cut(&self, code: ErrorCode) {
        if let Some(stream) = self.stream.upgrade() {
            stream.cut_off(code);
        }
    }

    /// Whether the stream still has an owner.
    pub fn is_alive(&self) -> bool {
        self.stream.strong_count() > 0
    }
}
