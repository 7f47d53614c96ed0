//! Received bytes of one side, and the heads among them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use l7::http1::{HeadScanner, Http1Error};
use monoio::time::{Instant, timeout_at};
use tunnel::h2::ErrorCode;
use tunnel::sniff::{Sniffed, sniff};

use super::Wire;
use crate::link::{self, StreamError};
use crate::worker::Worker;

/// From the first byte of a head to its last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a connection is read over before it is closed, and how many bytes at most.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long a response may take before the client's socket is watched meanwhile.
const WATCHED_AFTER: Duration = Duration::from_secs(1);

/// Bytes taken in one read: bodies pass through in pieces of this size.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Bytes received and not yet passed on. Holds no memory while there are none.
#[derive(Debug, Default)]
pub(super) struct Reader {
    buffer: BytesMut,
    /// The last read took less than it asked for: another one would most likely find nothing.
    drained: bool,
    /// When the first head must be whole, if what it is took waiting for.
    head_due: Option<Instant>,
}

/// Why there is no head.
#[derive(Debug)]
pub(super) enum HeadError {
    Io,
    Timeout,
    /// The peer closed in the middle of it.
    Truncated,
    Http(Http1Error),
}

impl Reader {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Lets go of the first `count` bytes.
    pub(super) fn advance(&mut self, count: usize) {
        self.buffer.advance(count.min(self.buffer.len()));
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Takes the first `consumed` bytes and gives the last `payload` of them.
    pub(super) fn split(&mut self, consumed: usize, payload: usize) -> BytesMut {
        let mut run = self.buffer.split_to(consumed.min(self.buffer.len()));
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        run.split_off(run.len().saturating_sub(payload))
    }

    /// Waits for more; 0 at the end of the stream.
    pub(super) async fn fill(&mut self, worker: &Worker, wire: &Wire) -> io::Result<usize> {
        loop {
            // On a socket to wait first costs no system call, and what is there ends the wait. TLS may hold bytes that no
            // socket tells of.
            if std::mem::take(&mut self.drained) && matches!(wire, Wire::Socket(_)) {
                wire.readable().await?;
            }
            let received = worker.lend(|lent| {
                let room = READ_BYTES_MAX.min(lent.len());
                let lent = lent.get_mut(..room).unwrap_or_default();
                let count = wire.try_read(lent)?;
                self.drained = count.is_some_and(|count| count < room);
                self.buffer.extend_from_slice(lent.get(..count.unwrap_or(0)).unwrap_or_default());
                Ok::<_, io::Error>(count)
            })?;
            match received {
                Some(count) => return Ok(count),
                None => wire.readable().await?,
            }
        }
    }

    /// Waits until there is something to read; `false` if the stream has ended.
    pub(super) async fn begun(&mut self, worker: &Worker, wire: &Wire) -> io::Result<bool> {
        Ok(!self.buffer.is_empty() || self.fill(worker, wire).await? > 0)
    }

    /// Reads until it is clear whether the connection begins as HTTP/2 does. A connection that is quiet is waited for, one
    /// that has begun at most as long as for a head.
    pub(super) async fn preface(&mut self, worker: &Worker, wire: &Wire) -> io::Result<()> {
        self.read_while(worker, wire, is_part_of_preface).await
    }

    /// Reads until it is clear what the connection speaks, as [`sniff`] judges; waits as [`Self::preface`] does.
    pub(super) async fn first_line(&mut self, worker: &Worker, wire: &Wire) -> io::Result<()> {
        self.read_while(worker, wire, |bytes| sniff(bytes) == Sniffed::NeedMore).await
    }

    async fn read_while(
        &mut self,
        worker: &Worker,
        wire: &Wire,
        is_undecided: impl Fn(&[u8]) -> bool,
    ) -> io::Result<()> {
        if !self.begun(worker, wire).await? || !is_undecided(&self.buffer) {
            return Ok(());
        }
        let due = *self.head_due.insert(Instant::now() + HEAD_TIMEOUT);
        let rest = async {
            while is_undecided(&self.buffer) && self.fill(worker, wire).await? > 0 {}
            Ok(())
        };
        timeout_at(due, rest).await.unwrap_or(Ok(()))
    }

    /// The next head, with its final empty line; `None` if the peer closed before its first byte.
    pub(super) async fn head(&mut self, worker: &Worker, wire: &Wire) -> Result<Option<Bytes>, HeadError> {
        if !self.begun(worker, wire).await.map_err(|_| HeadError::Io)? {
            return Ok(None);
        }
        let mut scanner = HeadScanner::default();
        let due = self.head_due.take();
        if let Some(length) = scanner.find(&self.buffer).map_err(HeadError::Http)? {
            return Ok(Some(self.buffer.split_to(length).freeze()));
        }
        let rest = async {
            loop {
                if self.fill(worker, wire).await.map_err(|_| HeadError::Io)? == 0 {
                    return Err(HeadError::Truncated);
                }
                if let Some(length) = scanner.find(&self.buffer).map_err(HeadError::Http)? {
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
            }
        };
        let due = due.unwrap_or_else(|| Instant::now() + HEAD_TIMEOUT);
        timeout_at(due, rest).await.unwrap_or(Err(HeadError::Timeout))
    }
}

/// Whether this may become the preface of HTTP/2 (RFC 9113 section 3.4), and is not all of it yet.
fn is_part_of_preface(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'P') && bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes)
}

// === impl Wire ===

impl Wire {
    pub(in crate::session) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self {
            Self::Tunnel(stream) => stream.try_read(buffer).map_err(io_error),
            Self::Socket(socket) => socket.try_recv(buffer),
            Self::Tls(stream) => stream.try_read(buffer),
        }
    }

    pub(in crate::session) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tunnel(stream) => {
                stream.readable().await;
                Ok(())
            }
            Self::Socket(socket) => socket.readable().await,
            // As deep as the types allow and no deeper: TLS is never within TLS.
            Self::Tls(stream) => Box::pin(stream.readable()).await,
        }
    }

    pub(in crate::session) async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tunnel(stream) => stream.write_all(bytes).await.map_err(io_error),
            Self::Socket(socket) => socket.write_all(bytes).await,
            Self::Tls(stream) => Box::pin(stream.write_all(bytes)).await,
        }
    }

    /// Sends what is taken at once: `None` if nothing is. For [`TlsStream`](crate::session::tls_stream::TlsStream), which is
    /// never within another.
    pub(in crate::session) fn try_write(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        match self {
            Self::Tunnel(stream) => stream.try_write(bytes).map_err(io_error),
            Self::Socket(socket) => socket.try_send(bytes),
            Self::Tls(stream) => link::Bytes::try_send(stream, bytes),
        }
    }

    /// Waits until [`Wire::try_write`] may take something.
    pub(in crate::session) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tunnel(stream) => stream.writable().await.map_err(io_error),
            Self::Socket(socket) => socket.writable().await,
            Self::Tls(stream) => link::Bytes::writable(stream).await,
        }
    }

    /// The addresses at our end and at the other.
    pub(in crate::session) fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        match self {
            Self::Tunnel(stream) => Ok((stream.link().local_address(), stream.link().remote_address())),
            Self::Socket(socket) => Ok((socket.local_address()?, socket.peer_address()?)),
            Self::Tls(stream) => stream.addresses(),
        }
    }

    /// Ends our direction.
    pub(in crate::session) fn finish(&self) -> io::Result<()> {
        match self {
            Self::Tunnel(stream) => stream.finish().map_err(io_error),
            Self::Socket(socket) => socket.shutdown_write(),
            Self::Tls(stream) => {
                stream.finish();
                Ok(())
            }
        }
    }

    /// Makes the end a reset, so that the peer does not take what it got for the whole. Nothing may be sent
    /// afterwards.
    pub(in crate::session) fn reset(&self) {
        match self {
            // Not left to the drop, whose code stands for an ordinary end.
            Self::Tunnel(stream) => stream.cutter().cut(ErrorCode::CONNECT_ERROR),
            Self::Socket(socket) => socket.reset_on_close(),
            Self::Tls(stream) => stream.reset(),
        }
    }

    /// Ends our direction and reads over what still comes, for a while: a socket that is closed with unread input
    /// sends a reset, which may overtake what we said last (RFC 9112 section 9.6).
    pub(super) async fn close(&self, worker: &Worker) {
        let read_over = async {
            self.finish()?;
            let mut left = LINGER_BYTES_MAX;
            while left > 0 {
                match worker.lend(|lent| self.try_read(lent))? {
                    Some(0) => break,
                    Some(count) => left = left.saturating_sub(count),
                    None => self.readable().await?,
                }
            }
            Ok::<(), io::Error>(())
        };
        // The peer may be gone, or keep its direction open: then there is nobody to be polite to.
        drop(monoio::time::timeout(LINGER, read_over).await);
    }

    /// Resolves when the peer has broken off. Never, as long as it is quiet, has ended in order, or has sent more.
    pub(in crate::session) async fn broken_off(&self) {
        if let Self::Tls(stream) = self {
            return Box::pin(stream.broken_off()).await;
        }
        if let Self::Socket(_) = self {
            // Most responses come sooner, and watching a socket costs as much as reading from it.
            monoio::time::sleep(WATCHED_AFTER).await;
        }
        let is_broken = self.readable().await.is_err()
            || match self {
                Self::Tunnel(stream) => stream.try_read(&mut []).is_err(),
                Self::Socket(socket) => socket.try_peek(&mut [0]).is_err(),
                Self::Tls(_) => false,
            };
        if !is_broken {
            std::future::pending::<()>().await;
        }
    }

    /// Whether an idle upstream may be used again: nothing has arrived, neither bytes nor an end.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let seen = match self {
            Self::Tunnel(stream) => stream.try_read(&mut byte).map_err(io_error),
            Self::Socket(socket) => socket.try_peek(&mut byte),
            Self::Tls(stream) => stream.try_read(&mut byte),
        };
        matches!(seen, Ok(None))
    }
}

fn io_error(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
