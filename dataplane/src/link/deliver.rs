//! Handing received payload on: kept for a reader, or written to the application's socket within the read turn.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Buf;
use tunnel::h2::ErrorCode;
use tunnel::session::Session;

use super::stream::{Stream, StreamEnd};
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
        let socket = self.sink.get();
        if let Some(socket) = socket
            && self.pending.borrow().is_empty()
        {
            match socket.try_send_vectored(pieces) {
                Ok(sent) => skip = sent.unwrap_or(0),
                Err(_gone) => {
                    session.release(self.id(), total);
                    return self.application_gone(session);
                }
            }
            self.delivered.set(self.delivered.get() + skip as u64);
            session.release(self.id(), skip);
        }
        if skip < total {
            self.keep(pieces, skip);
            match socket {
                Some(socket) => self.drain_to(socket.clone()),
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
            && let Some(socket) = self.sink.get()
        {
            // Fails on a socket that is gone; the direction from it tells.
            drop(socket.shutdown_write());
        }
    }

    /// The application took its socket away: the peer must learn that the rest did not arrive.
    fn application_gone(self: &Rc<Self>, session: &mut Session) {
        session.reset(self.id(), ErrorCode::CONNECT_ERROR);
        self.link().streams.borrow_mut().remove(&self.id());
        self.abort(StreamEnd::Reset(ErrorCode::CONNECT_ERROR));
    }

    /// Starts the task that writes what is pending when the application reads again.
    pub(super) fn drain_to(self: &Rc<Self>, socket: Rc<Socket>) {
        if self.draining.replace(true) {
            return;
        }
        let stream = self.clone();
        self.link().worker().spawn(async move {
            if stream.drain_pending(&socket).await.is_err() {
                stream.pending.borrow_mut().clear();
                stream.reset(ErrorCode::CONNECT_ERROR);
            }
            stream.draining.set(false);
            stream.pass_end_on();
            stream.inbound.raise();
        });
    }

    async fn drain_pending(&self, socket: &Socket) -> io::Result<()> {
        loop {
            if self.pending.borrow().is_empty() || self.is_cut() {
                return Ok(());
            }
            let sent = {
                let mut pending = self.pending.borrow_mut();
                let sent = socket.try_send(&pending)?;
                pending.advance(sent.unwrap_or(0));
                if pending.is_empty() {
                    *pending = bytes::BytesMut::new();
                }
                sent
            };
            match sent {
                Some(sent) => {
                    self.delivered.set(self.delivered.get() + sent as u64);
                    self.link().write(|session| session.release(self.id(), sent));
                }
                None => self.writable_or_cut(socket).await?,
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
        let Some(socket) = self.sink.get() else { return };
        if self.is_cut() {
            socket.reset_on_close();
            self.cut.raise();
        } else {
            // What came before is still the application's: its end follows it.
            self.received_end.set(true);
            self.pass_end_on();
        }
        // Wakes the task that waits for the application to say something.
        drop(socket.shutdown_read());
    }
}
