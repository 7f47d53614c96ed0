//! TLS to a backend, within whatever carries the connection: the bytes of [`tunnel::backend_tls`] moved over a [`Wire`].

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::future::LocalBoxFuture;
use tunnel::backend_tls::{BackendContext, BackendSession, BackendTlsError, Opened};

use super::dial::Wire;
use crate::link::Bytes;
use crate::worker::{Signal, Worker};

/// From the connection to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Taken from the carrier at once while the handshake lasts.
const HANDSHAKE_READ_BYTES_MAX: usize = 16 * 1024;

/// Sealed at once: a larger piece goes out in parts, so that what is sealed and not yet sent is bounded.
const SEALED_BYTES_MAX: usize = 64 * 1024;

/// A connection whose peer has proved its name. Cheap to clone.
#[derive(Clone)]
pub(super) struct TlsStream {
    shared: Rc<Shared>,
}

struct Shared {
    carrier: Wire,
    worker: Worker,
    session: RefCell<BackendSession>,
    /// Received, and not yet opened.
    received: RefCell<BytesMut>,
    /// Somebody is sending what is sealed; what is sealed meanwhile follows.
    sending: Cell<bool>,
    /// Raised whenever everything sealed has been sent, or cannot be.
    sent: Signal,
    /// Sending has failed: nothing more is taken.
    failed: Cell<bool>,
    /// Our direction of the carrier ends when everything sealed has been sent.
    finishing: Cell<bool>,
    /// The last look found nothing to read.
    dry: Cell<bool>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("the handshake took longer than {HANDSHAKE_TIMEOUT:?}")]
    TimedOut,
    #[error(transparent)]
    Tls(#[from] BackendTlsError),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
}

impl TlsStream {
    /// Shakes hands over a connection on which nothing has been said.
    pub(super) async fn connect(
        worker: &Worker,
        carrier: Wire,
        context: &BackendContext,
    ) -> Result<Self, HandshakeError> {
        let shared = Rc::new(Shared {
            carrier,
            worker: worker.clone(),
            session: RefCell::new(context.start()?),
            received: RefCell::default(),
            sending: Cell::new(false),
            sent: Signal::default(),
            failed: Cell::new(false),
            finishing: Cell::new(false),
            dry: Cell::new(true),
        });
        let shaken = monoio::time::timeout(HANDSHAKE_TIMEOUT, shared.shake_hands()).await;
        let result = shaken.unwrap_or(Err(HandshakeError::TimedOut));
        if result.is_err() {
            // An alert may tell the peer why.
            drop(shared.flush().await);
        }
        result.map(|()| Self { shared })
    }

    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.shared.try_read(buffer)
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        // The session may have something to say that nobody asked for, such as new keys.
        self.shared.flush().await?;
        self.shared.carrier.readable().await
    }

    pub(super) async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(SEALED_BYTES_MAX) {
            self.shared.session.borrow_mut().write(piece);
            self.shared.flush().await?;
        }
        Ok(())
    }

    /// The protocol that was agreed on by ALPN.
    pub(super) fn speaks_http2(&self) -> bool {
        self.shared.session.borrow().protocol() == Some(b"h2")
    }

    /// The addresses at our end and at the other of what carries it.
    pub(super) fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        self.shared.carrier.addresses()
    }

    /// Ends our direction: the peer is told, then the carrier.
    pub(super) fn finish(&self) {
        self.shared.session.borrow_mut().finish();
        self.shared.finishing.set(true);
        self.flush_in_background();
    }

    fn flush_in_background(&self) {
        let shared = Rc::clone(&self.shared);
        // A peer that is gone need not be told.
        self.shared.worker.spawn(async move { drop(shared.flush().await) });
    }

    pub(super) fn reset(&self) {
        self.shared.carrier.reset();
    }

    pub(super) async fn broken_off(&self) {
        self.shared.carrier.broken_off().await;
    }
}

/// HTTP/2 within TLS of the backend's own.
impl Bytes for TlsStream {
    fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut filled = 0;
        self.shared.dry.set(false);
        while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.shared.try_read(room) {
                Ok(Some(0)) | Err(_) if filled > 0 => break,
                Ok(Some(0)) => return Ok(Some(0)),
                Ok(Some(count)) => filled += count,
                Ok(None) => {
                    self.shared.dry.set(true);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok((filled > 0).then_some(filled))
    }

    fn try_send(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        if self.shared.failed.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.shared.sending.get() {
            return Ok(None);
        }
        let piece = bytes.get(..SEALED_BYTES_MAX).unwrap_or(bytes);
        self.shared.session.borrow_mut().write(piece);
        self.flush_in_background();
        Ok(Some(piece.len()))
    }

    fn readable(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async { if self.shared.dry.get() { Self::readable(self).await } else { Ok(()) } })
    }

    fn writable(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            while self.shared.sending.get() && !self.shared.failed.get() {
                self.shared.sent.wait().await;
            }
            Ok(())
        })
    }

    fn finish(&self) {
        Self::finish(self);
    }

    fn reset(&self) {
        Self::reset(self);
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("carrier", &self.shared.carrier).finish_non_exhaustive()
    }
}

impl Shared {
    async fn shake_hands(&self) -> Result<(), HandshakeError> {
        loop {
            self.flush().await?;
            if !self.session.borrow().is_handshaking() {
                return Ok(());
            }
            let mut taken = self.worker.lend(|lent| {
                let room = HANDSHAKE_READ_BYTES_MAX.min(lent.len());
                self.receive(lent.get_mut(..room).unwrap_or_default())
            })?;
            if taken.is_none() {
                self.carrier.readable().await?;
                taken = Some(0);
            }
            if taken != Some(0) {
                self.open()?;
            }
        }
    }

    /// Takes bytes from the carrier, through `lent`; `None` if there are none yet.
    fn receive(&self, lent: &mut [u8]) -> io::Result<Option<usize>> {
        match self.carrier.try_read(lent)? {
            // The peer has to say that it ends: without that, somebody may have cut it short.
            Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(count) => {
                self.received.borrow_mut().extend_from_slice(lent.get(..count).unwrap_or_default());
                Ok(Some(count))
            }
            None => Ok(None),
        }
    }

    /// Gives the session of what was received as much as it takes.
    fn open(&self) -> Result<usize, BackendTlsError> {
        let mut received = self.received.borrow_mut();
        let taken = self.session.borrow_mut().receive(&received)?;
        received.advance(taken);
        if received.is_empty() {
            *received = BytesMut::new();
        }
        Ok(taken)
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let opened = self.session.borrow_mut().read(buffer);
            match opened {
                Opened::Bytes(count) => return Ok(Some(count)),
                Opened::Ended => return Ok(Some(0)),
                Opened::Nothing => {}
            }
            if self.open().map_err(io::Error::other)? == 0 && self.receive(buffer)?.is_none() {
                return Ok(None);
            }
        }
    }

    /// Sends what is sealed, unless somebody does.
    async fn flush(&self) -> io::Result<()> {
        if self.sending.replace(true) {
            return Ok(());
        }
        // Stays set if this is given up: what is sealed would have a gap then.
        let result = self.send_all().await;
        self.sending.set(result.is_err());
        self.failed.set(result.is_err());
        self.sent.raise();
        result
    }

    async fn send_all(&self) -> io::Result<()> {
        let mut out = Vec::new();
        loop {
            self.session.borrow_mut().take_output(&mut out);
            if out.is_empty() {
                break;
            }
            self.carrier.write_all(&out).await?;
            out.clear();
        }
        if self.finishing.replace(false) { self.carrier.finish() } else { Ok(()) }
    }
}
