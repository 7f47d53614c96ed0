//! The server's socket: a Unix socket or a loopback port, and TLS over either.
//!
//! Handshakes run beside each other and within a time limit, so a peer that stays silent keeps nobody waiting; the
//! number of connections is bounded, and those beyond it wait in the backlog.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::config::ListenAddress;
use super::files::{self, FileError};

const CONNECTIONS_MAX: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, for instance for want of descriptors: trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("{0} is not a loopback address; the control plane serves this machine only")]
    NotLoopback(SocketAddr),
    #[error("another process listens on {}; stop it or choose another path", .0.display())]
    InUse(PathBuf),
    #[error("{} exists and is no socket; choose another path", .0.display())]
    Occupied(PathBuf),
    #[error("cannot listen on {address}: {source}")]
    Bind { address: String, source: io::Error },
    #[error(transparent)]
    File(#[from] FileError),
}

/// A bound socket.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener),
}

/// Removes the socket file when the server goes.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing to do about a failure; the next start removes a stale file.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    pub(super) async fn bind(address: &ListenAddress) -> Result<Self, ListenError> {
        match address {
            ListenAddress::Tcp(address) => {
                if !address.ip().is_loopback() {
                    return Err(ListenError::NotLoopback(*address));
                }
                let bound = TcpListener::bind(address).await;
                let error = |source| ListenError::Bind { address: address.to_string(), source };
                Ok(Self::Tcp(bound.map_err(error)?))
            }
            ListenAddress::Unix(path) => {
                if let Some(parent) = path.parent() {
                    files::private_directory(parent)?;
                }
                remove_stale(path).await?;
                let error = |source| ListenError::Bind { address: path.display().to_string(), source };
                let listener = UnixListener::bind(path).map_err(error)?;
                let file = SocketFile(path.clone());
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(error)?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// The address as clients dial it.
    pub(super) fn address(&self) -> Result<ListenAddress, ListenError> {
        Ok(match self {
            Self::Unix(_, SocketFile(path)) => ListenAddress::Unix(path.clone()),
            Self::Tcp(listener) => ListenAddress::Tcp(
                listener
                    .local_addr()
                    .map_err(|source| ListenError::Bind { address: String::from("loopback"), source })?,
            ),
        })
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(listener, _) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }

    /// Accepts and shakes hands until the receiving end is dropped.
    pub(super) async fn run(self, tls: Arc<ServerConfig>, connections: mpsc::Sender<io::Result<Connection>>) {
        let acceptor = TlsAcceptor::from(tls);
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = connections.closed() => return,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok(stream) => {
                    tokio::spawn(handshake(acceptor.clone(), stream, permit, connections.clone()));
                }
                Err(error) => {
                    warn!("the control plane cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: Box<dyn Stream>,
    permit: OwnedSemaphorePermit,
    connections: mpsc::Sender<io::Result<Connection>>,
) {
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let connection = Connection { stream: Box::new(stream), _permit: permit };
            // Fails only when the server is going down.
            let _ = connections.send(Ok(connection)).await;
        }
        Ok(Err(error)) => debug!("TLS handshake with a client of the control plane failed: {error}"),
        Err(_) => debug!("a client of the control plane did not finish its TLS handshake in time"),
    }
}

/// Removes a socket file that nobody listens on any more.
async fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(FileError::new("look at", path, source).into()),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::Occupied(path.to_owned()));
    }
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(ListenError::InUse(path.to_owned()));
    }
    std::fs::remove_file(path).map_err(|source| FileError::new("remove", path, source).into())
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One client's connection after its handshake; counts against the bound as long as it lives.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn socket_is_private_and_a_stale_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let address = ListenAddress::Unix(path.clone());
        let first = Listener::bind(&address).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind(&address).await, Err(ListenError::InUse(_))));
        drop(first);
        assert!(!path.exists());
        // What a killed process leaves behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Listener::bind(&address).await.unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert!(matches!(Listener::bind(&address).await, Err(ListenError::Occupied(_))));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_loopback_ports_are_served() {
        let everyone = ListenAddress::Tcp("0.0.0.0:0".parse().unwrap());
        assert!(matches!(Listener::bind(&everyone).await, Err(ListenError::NotLoopback(_))));
        let local = Listener::bind(&ListenAddress::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        assert!(matches!(local.address().unwrap(), ListenAddress::Tcp(bound) if bound.port() > 0));
    }
}
