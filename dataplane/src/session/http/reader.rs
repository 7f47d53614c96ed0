//! Received bytes of one side, and the heads among them.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use l7::http1::{HeadScanner, Http1Error};

use super::Wire;
use crate::link::StreamError;
use crate::worker::Worker;

/// From the first byte of a head to its last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes taken in one read: bodies pass through in pieces of this size.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Bytes received and not yet passed on. Holds no memory while there are none.
#[derive(Debug, Default)]
pub(super) struct Reader {
    buffer: BytesMut,
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

    /// Waits for more; 0 at the end of the stream.
    pub(super) async fn fill(&mut self, worker: &Worker, wire: &Wire) -> io::Result<usize> {
        loop {
            let received = worker.lend(|lent| {
                let room = READ_BYTES_MAX.min(lent.len());
                let lent = lent.get_mut(..room).unwrap_or_default();
                let count = wire.try_read(lent)?;
                self.buffer.extend_from_slice(lent.get(..count.unwrap_or(0)).unwrap_or_default());
                Ok::<_, io::Error>(count)
            })?;
            match received {
                Some(count) => return Ok(count),
                None => wire.readable().await?,
            }
        }
    }

    /// The next head, with its final empty line; `None` if the peer closed before its first byte.
    pub(super) async fn head(&mut self, worker: &Worker, wire: &Wire) -> Result<Option<Bytes>, HeadError> {
        if self.buffer.is_empty() && self.fill(worker, wire).await.map_err(|_| HeadError::Io)? == 0 {
            return Ok(None);
        }
        let mut scanner = HeadScanner::default();
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
        monoio::time::timeout(HEAD_TIMEOUT, rest).await.unwrap_or(Err(HeadError::Timeout))
    }
}

// === impl Wire ===

impl Wire {
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self {
            Self::Tunnel(stream) => stream.try_read(buffer).map_err(io_error),
            Self::Socket(socket) => socket.try_recv(buffer),
        }
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tunnel(stream) => {
                stream.readable().await;
                Ok(())
            }
            Self::Socket(socket) => socket.readable().await,
        }
    }

    pub(super) async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tunnel(stream) => stream.write_all(bytes).await.map_err(io_error),
            Self::Socket(socket) => socket.write_all(bytes).await,
        }
    }

    /// Ends our direction.
    pub(super) fn finish(&self) -> io::Result<()> {
        match self {
            Self::Tunnel(stream) => stream.finish().map_err(io_error),
            Self::Socket(socket) => socket.shutdown_write(),
        }
    }

    /// Makes the coming drop a reset, so that the peer does not take what it got for the whole. A stream that is
    /// dropped before its end is reset anyhow.
    pub(super) fn reset_on_drop(&self) {
        if let Self::Socket(socket) = self {
            socket.reset_on_close();
        }
    }

    /// Whether an idle upstream may be used again: nothing has arrived, neither bytes nor an end.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let seen = match self {
            Self::Tunnel(stream) => stream.try_read(&mut byte).map_err(io_error),
            Self::Socket(socket) => socket.try_peek(&mut byte),
        };
        matches!(seen, Ok(None))
    }
}

fn io_error(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
