//! TLS to a backend, within whatever carries the connection: the bytes of [`tunnel::backend_tls`] moved over a [`Wire`].

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::future::LocalBoxFuture;
use tunnel::backend_tls::{BackendContext, BackendSession, BackendTlsError, Opened};

use super::dial::Wire;
use crate::link;
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
    /// Sealed, and not yet taken by the carrier. Here and not with whoever sends, who may give up midway.
    unsent: RefCell<BytesMut>,
    /// Somebody is sending what is sealed; what is sealed meanwhile follows.
    sending: Cell<bool>,
    /// Raised whenever nobody sends any more.
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
            unsent: RefCell::default(),
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
            if self.shared.failed.get() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
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
impl link::Bytes for TlsStream {
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

    /// Sends what is sealed, unless somebody does. Whoever gives this up midway leaves the rest to the next call.
    async fn flush(&self) -> io::Result<()> {
        if self.failed.get() || self.sending.replace(true) {
            return Ok(());
        }
        let _sending = Sending(self);
        let result = self.send_all().await;
        self.failed.set(result.is_err());
        result
    }

    async fn send_all(&self) -> io::Result<()> {
        while self.has_unsent() {
            let sent = {
                let mut unsent = self.unsent.borrow_mut();
                let sent = self.carrier.try_write(&unsent)?;
                unsent.advance(sent.unwrap_or(0));
                sent
            };
            if sent.is_none() {
                self.carrier.writable().await?;
            }
        }
        if self.finishing.replace(false) { self.carrier.finish() } else { Ok(()) }
    }

    /// Fetches what is sealed once all before is sent; false if there is nothing.
    fn has_unsent(&self) -> bool {
        let mut unsent = self.unsent.borrow_mut();
        if unsent.is_empty() {
            let mut sealed = Vec::new();
            self.session.borrow_mut().take_output(&mut sealed);
            *unsent = Bytes::from(sealed).into();
        }
        !unsent.is_empty()
    }
}

/// Somebody sends for as long as this is held.
struct Sending<'s>(&'s Shared);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.sending.set(false);
        self.0.sent.raise();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::{ServerConfig, ServerConnection, StreamOwned};
    use tunnel::backend_tls::Authorities;

    use super::*;
    use crate::net::{ConnectOptions, connect, testing::on_each_driver};

    const NAME: &str = "web.one.example";
    /// Only a failure waits this long.
    const PATIENCE: Duration = Duration::from_secs(20);
    /// More than the sockets between two ends hold.
    const BYTES: usize = 32 << 20;

    /// What a server is, and how it is trusted.
    fn server() -> (Arc<ServerConfig>, BackendContext) {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([NAME.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        let authorities = Authorities::from_pem(&issuer.pem()).unwrap();
        (Arc::new(config), BackendContext::new(&NAME.into(), &[], &authorities, &[]).unwrap())
    }

    /// Shakes hands, reads to the end once it is told to, and gives what it read, or why it could not.
    fn read_later(config: Arc<ServerConfig>, socket: TcpStream, go: &Receiver<()>) -> io::Result<Vec<u8>> {
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), socket);
        stream.conn.complete_io(&mut stream.sock)?;
        stream.write_all(b"!")?;
        go.recv().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn a_write_that_is_given_up_midway_leaves_no_gap_and_holds_up_nobody() {
        on_each_driver(|worker| async move {
            let (config, context) = server();
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let to = listener.local_addr().unwrap();
            let (go, going) = channel();
            let reading =
                std::thread::spawn(move || read_later(config, listener.accept().unwrap().0, &going));
            let socket = connect(to, &ConnectOptions::default()).await.unwrap();
            let stream = TlsStream::connect(&worker, Wire::Socket(socket), &context).await.unwrap();
            let bytes: Vec<u8> = (0_u8..251).cycle().take(BYTES).collect();
            let given_up = monoio::time::timeout(Duration::from_millis(200), stream.write_all(&bytes)).await;
            assert!(given_up.is_err(), "nobody reads yet");
            go.send(()).unwrap();
            stream.write_all(b"end").await.unwrap();
            stream.finish();
            while !reading.is_finished() {
                monoio::time::sleep(Duration::from_millis(1)).await;
            }
            let read = reading.join().unwrap().expect("no record is missing, and the end is told");
            let (begun, end) = read.split_at(read.len() - 3);
            assert!(end == b"end" && bytes.starts_with(begun) && !begun.is_empty());
        });
    }
}
