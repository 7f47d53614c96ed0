//! What carries a link: a socket, a stream of another link, or bytes that somebody else moves.
//!
//! A link within a stream costs its outer link nothing but a look into an empty table. The bytes of the outer stream
//! are handed to the inner link at the end of the outer one's read turn ([`Link::feed`]), without waking a task; what the
//! inner link does not take stays with the stream, whose window then holds the peer back. What the inner link has to send
//! goes into the outer one's output as the windows allow, in the same run of the worker's flusher.

use std::fmt;
use std::io;
use std::rc::{Rc, Weak};

use futures::future::LocalBoxFuture;
use tunnel::h2::ErrorCode;

use super::connection::Link;
use super::stream::{Stream, StreamError, TunnelStream};
use crate::net::Socket;

/// Bytes that are offered to a stream at once: with the link's bound of unsent output, this bounds what one link within
/// it can add to the output of the outer one.
const OFFER_BYTES_MAX: usize = 256 * 1024;

/// Bytes in order, both ways, that are neither a socket's nor a stream's: a protocol within one of those.
pub trait Bytes: fmt::Debug {
    /// Fills `buffer` as far as bytes are there: `None` if there are none, `Some(0)` at the end.
    fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>>;
    /// Takes a part of `bytes` to send: `None` if there is no room for any.
    fn try_send(&self, bytes: &[u8]) -> io::Result<Option<usize>>;
    fn readable(&self) -> LocalBoxFuture<'_, io::Result<()>>;
    fn writable(&self) -> LocalBoxFuture<'_, io::Result<()>>;
    /// Ends our direction behind what was taken; the peer's goes on.
    fn finish(&self);
    /// Makes the end a reset.
    fn reset(&self);
}

pub(super) enum Carrier {
    Socket(Socket),
    Stream(TunnelStream),
    Bytes(Box<dyn Bytes>),
}

impl Carrier {
    pub(super) fn is_socket(&self) -> bool {
        matches!(self, Self::Socket(_))
    }

    /// Receives what is there: `None` if nothing is, `Some(0)` at the end.
    #[inline]
    pub(super) fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self {
            Self::Socket(socket) => socket.try_recv(buffer),
            Self::Stream(stream) => stream.try_read(buffer).map_err(broken),
            Self::Bytes(bytes) => bytes.try_recv(buffer),
        }
    }

    /// Sends what is taken at once: `None` if nothing is.
    #[inline]
    pub(super) fn try_send(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        match self {
            Self::Socket(socket) => socket.try_send(bytes),
            Self::Stream(stream) => {
                let offered = bytes.get(..OFFER_BYTES_MAX).unwrap_or(bytes);
                let sent = stream.stream.send(offered, false).map_err(broken)?;
                Ok((sent > 0).then_some(sent))
            }
            Self::Bytes(carrier) => carrier.try_send(bytes),
        }
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.readable().await,
            Self::Stream(stream) => {
                stream.readable().await;
                Ok(())
            }
            Self::Bytes(bytes) => bytes.readable().await,
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.writable().await,
            Self::Stream(stream) => stream.stream.wait_room().await.map_err(broken),
            Self::Bytes(bytes) => bytes.writable().await,
        }
    }

    /// Ends our direction; the peer's goes on.
    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Socket(socket) => socket.shutdown_write(),
            Self::Stream(stream) => stream.finish().map_err(broken),
            Self::Bytes(bytes) => {
                bytes.finish();
                Ok(())
            }
        }
    }

    /// Makes the end a reset.
    pub(super) fn reset(&self) {
        match self {
            Self::Socket(socket) => socket.reset_on_close(),
            Self::Stream(stream) => stream.cutter().cut(ErrorCode::CONNECT_ERROR),
            Self::Bytes(bytes) => bytes.reset(),
        }
    }

    /// Has the bytes of the stream handed to `link` in the outer link's turns.
    pub(super) fn attach(&self, link: &Rc<Link>) {
        if let Self::Stream(stream) = self {
            let id = stream.id();
            stream.link().carried.borrow_mut().insert(id, Rc::downgrade(link));
        }
    }

    /// Has the link's own task go on with what a turn left behind.
    fn rouse_leftovers(&self) {
        if let Self::Stream(stream) = self
            && stream.holds_bytes()
        {
            stream.stream.inbound.raise();
        }
    }
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socket(_) => "socket",
            Self::Stream(_) => "stream",
            Self::Bytes(_) => "bytes",
        })
    }
}

fn broken(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

/// The links that the streams of one link carry.
#[derive(Default)]
pub(super) struct Carried {
    links: std::collections::HashMap<tunnel::h2::StreamId, Weak<Link>, foldhash::fast::RandomState>,
}

impl Carried {
    fn insert(&mut self, id: tunnel::h2::StreamId, link: Weak<Link>) {
        self.links.insert(id, link);
    }

    fn get(&self, id: tunnel::h2::StreamId) -> Option<Rc<Link>> {
        if self.links.is_empty() { None } else { self.links.get(&id)?.upgrade() }
    }
}

impl Link {
    /// Bytes of a stream were kept: notes the link that it carries for [`Link::feed`]; false if it carries none.
    pub(super) fn note_fed(&self, stream: &Stream) -> bool {
        let Some(inner) = self.carried.borrow().get(stream.id()) else { return false };
        self.fed.borrow_mut().push(inner);
        true
    }

    /// Gives the links within this one their turn, after its own: no session is borrowed now, and the worker's buffer
    /// is free.
    pub(super) fn feed(&self) {
        if self.fed.borrow().is_empty() {
            return;
        }
        for inner in self.fed.take() {
            inner.turn();
            inner.carrier.rouse_leftovers();
        }
    }

    /// The stream has lost its owner, who was the link within it if there was one.
    pub(super) fn forget_carried(&self, stream: &Stream) {
        self.carried.borrow_mut().links.remove(&stream.id());
    }
}
