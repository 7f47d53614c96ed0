//! TLS to a backend, within whatever carries the connection: the bytes of [`tunnel::backend_tls`] moved over a [`Wire`].

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tunnel::backend_tls::{BackendContext, BackendSession, BackendTlsError, Opened};

use super::dial::Wire;
use crate::worker::Worker;

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

    /// Ends our direction: the peer is told, then the carrier.
    pub(super) fn finish(&self) {
        self.shared.session.borrow_mut().finish();
        let shared = Rc::clone(&self.shared);
        self.shared.worker.spawn(async move {
            // A peer that is gone need not be told.
            if shared.flush().await.is_ok() {
                drop(shared.carrier.finish());
            }
        });
    }

    pub(super) fn reset(&self) {
        self.shared.carrier.reset();
    }

    pub(super) async fn broken_off(&self) {
        self.shared.carrier.broken_off().await;
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
        let mut out = Vec::new();
        loop {
            self.session.borrow_mut().take_output(&mut out);
            if out.is_empty() {
                break;
            }
            self.carrier.write_all(&out).await?;
            out.clear();
        }
        self.sending.set(false);
        Ok(())
    }
}
