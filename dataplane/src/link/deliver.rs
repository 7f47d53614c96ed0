//! Handing received payload on: kept for a reader, or written to the application's socket within the read turn.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Buf;
use tunnel::h2::ErrorCode;
use tunnel::session::Session;

use super::stream::{Sink, Stream, StreamEnd};
use crate::net::Socket;

impl Stream {
    /// Takes payload in order. Called by the link's reader, which has the session in hand.
    pub(super) fn deliver(self: &Rc<Self>, pieces: &[IoSlice<'_>], session: &mut Session) {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        if total == 0 {
            return;
        }
        if self.has_ended() {
            return session.release(self.id(), total);
        }
        let mut skip = 0;
        let sink = self.sink.get();
        if let Some(sink) = sink
            && self.pending.borrow().is_empty()
            && self.link().turn.may_deliver()
        {
            match sink.socket.try_send_vectored(pieces) {
                Ok(sent) => skip = sent.unwrap_or(0),
                Err(_gone) => {
                    session.release(self.id(), total);
                    return self.application_gone(session);
                }
            }
            sink.count_delivered(skip);
            session.release(self.id(), skip);
        }
        if skip < total {
            let memory = self.link().worker().memory();
            if memory.is_full() {
                memory.note_refused();
                session.release(self.id(), total - skip);
                return self.give_up(ErrorCode::ENHANCE_YOUR_CALM, session);
            }
            memory.take(total - skip);
            self.keep(pieces, skip);
            match sink {
                Some(sink) => self.drain_to(sink.clone()),
                // A link within this stream gets its turn after that of the link around it.
                None if self.link().note_fed(self) => {}
                None => self.inbound.raise(),
            }
        }
    }

    /// Copies what was not taken, from `skip` bytes on. The peer's window bounds how much that can be.
    fn keep(&self, pieces: &[IoSlice<'_>], mut skip: usize) {
        let mut pending = self.pending.borrow_mut();
        for piece in pieces {
            let rest = piece.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(piece.len());
            pending.extend_from_slice(rest);
        }
    }

    /// The peer has ended its direction.
    pub(super) fn receive_end(self: &Rc<Self>, _session: &mut Session) {
        self.received_end.set(true);
        self.pass_end_on();
        self.inbound.raise();
    }

    /// Tells the application of the end, once it has got everything before.
    pub(super) fn pass_end_on(&self) {
        if self.received_end.get()
            && self.pending.borrow().is_empty()
            && let Some(sink) = self.sink.get()
        {
            // Fails on a socket that is gone; the direction from it tells.
            drop(sink.socket.shutdown_write());
        }
    }

    /// The application took its socket away: the peer must learn that the rest did not arrive.
    fn application_gone(self: &Rc<Self>, session: &mut Session) {
        self.give_up(ErrorCode::CONNECT_ERROR, session);
    }

    fn give_up(self: &Rc<Self>, code: ErrorCode, session: &mut Session) {
        session.reset(self.id(), code);
        self.link().streams.borrow_mut().remove(&self.id());
        self.abort(StreamEnd::Reset(code));
    }

    /// Starts the task that writes what is pending when the application reads again.
    pub(super) fn drain_to(self: &Rc<Self>, sink: Rc<Sink>) {
        if self.draining.replace(true) {
            return;
        }
        let stream = self.clone();
        self.link().worker().spawn(async move {
            if stream.drain_pending(&sink).await.is_err() {
                let worthless = std::mem::take(&mut *stream.pending.borrow_mut());
                stream.link().worker().memory().give_back(worthless.len());
                stream.reset(ErrorCode::CONNECT_ERROR);
            }
            stream.draining.set(false);
            stream.pass_end_on();
            stream.inbound.raise();
        });
    }

    async fn drain_pending(&self, sink: &Sink) -> io::Result<()> {
        loop {
            if self.pending.borrow().is_empty() || self.is_cut() {
                return Ok(());
            }
            let sent = {
                let mut pending = self.pending.borrow_mut();
                let sent = sink.socket.try_send(&pending)?;
                pending.advance(sent.unwrap_or(0));
                if pending.is_empty() {
                    *pending = bytes::BytesMut::new();
                }
                sent
            };
            match sent {
                Some(sent) => {
                    self.link().worker().memory().give_back(sent);
                    sink.count_delivered(sent);
                    self.link().write(|session| session.release(self.id(), sent));
                }
                None => self.writable_or_cut(&sink.socket).await?,
            }
        }
    }

    /// Waits until the application reads again, or the stream is cut: the application may never read again.
    async fn writable_or_cut(&self, socket: &Socket) -> io::Result<()> {
        let mut writable = pin!(socket.writable());
        poll_fn(|context| {
            if self.cut.poll_wait(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            writable.as_mut().poll(context)
        })
        .await
    }

    /// Whether it ended in a way that makes what is pending worthless.
    pub(super) fn is_cut(&self) -> bool {
        self.ended.borrow().as_ref().is_some_and(|end| !end.is_orderly())
    }

    /// The stream was cut: so is the application's connection, unless the peer meant an ordinary end.
    pub(super) fn abort_sink(&self) {
        let Some(sink) = self.sink.get() else { return };
        if self.is_cut() {
            sink.socket.reset_on_close();
            self.cut.raise();
        } else {
            // What came before is still the application's: its end follows it.
            self.received_end.set(true);
            self.pass_end_on();
        }
        // Wakes the task that waits for the application to say something.
        drop(sink.socket.shutdown_read());
    }
}
