//! Connecting to an upstream.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Type};

use super::exhaustion::{is_exhausted, rest};
use super::listen::set_transparent;
use super::{NamespaceError, NetworkNamespace, Socket, SocketOptions};

/// How long a connect may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How to connect.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    pub socket: SocketOptions,
    /// Source address to wear, which need not be this machine's (`IP_TRANSPARENT`; CAP_NET_ADMIN).
    pub source: Option<SocketAddr>,
    /// Where the socket lives; `None` is the thread's own namespace.
    pub namespace: Option<NetworkNamespace>,
    /// The peer says nothing before we do. So the last packet of the handshake goes with our first bytes, or after 200 ms:
    /// one packet less, and the peer is woken once rather than twice.
    pub speaks_first: bool,
    /// `None` means [`CONNECT_TIMEOUT`].
    pub timeout: Option<Duration>,
}

/// Why there is no connection. The variants are what a caller reports differently.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{to} refuses connections")]
    Refused { to: SocketAddr },
    #[error("{to} does not answer within {after:?}")]
    TimedOut { to: SocketAddr, after: Duration },
    #[error("{to} cannot be reached: {source}")]
    Unreachable { to: SocketAddr, source: io::Error },
    #[error("no socket can be made: {0}")]
    Socket(#[source] io::Error),
    #[error("the source address {source_address} cannot be used (CAP_NET_ADMIN is needed): {error}")]
    Source { source_address: SocketAddr, error: io::Error },
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

impl ConnectError {
    fn is_exhausted(&self) -> bool {
        match self {
            Self::Socket(error) | Self::Namespace(NamespaceError::Open { source: error, .. }) => {
                is_exhausted(error)
            }
            _ => false,
        }
    }
}

/// Connects to `to`. Dropping the future closes the half-made connection.
///
/// Without a descriptor to be had it waits for one, as long as the connect may take: the connection that is to be carried
/// on has been accepted already.
pub async fn connect(to: SocketAddr, options: &ConnectOptions) -> Result<Socket, ConnectError> {
    let after = options.timeout.unwrap_or(CONNECT_TIMEOUT);
    let begun = Instant::now();
    let (socket, pending) = loop {
        let started = match &options.namespace {
            None => start(to, options),
            Some(namespace) => namespace.within(|| start(to, options)).map_err(ConnectError::from).flatten(),
        };
        match started {
            Err(error) if error.is_exhausted() && begun.elapsed() < after => rest().await,
            started => break started?,
        }
    };
    let socket = Socket::new(socket).map_err(ConnectError::Socket)?;
    if pending {
        match monoio::time::timeout(after, socket.writable()).await {
            Err(_elapsed) => return Err(ConnectError::TimedOut { to, after }),
            Ok(waited) => waited.map_err(|error| failed(to, error))?,
        }
        if let Some(error) = SockRef::from(&socket).take_error().map_err(ConnectError::Socket)? {
            return Err(failed(to, error));
        }
    }
    Ok(socket)
}

/// Makes the socket and sends the first packet; the flag says that the answer is still to come.
fn start(to: SocketAddr, options: &ConnectOptions) -> Result<(OwnedFd, bool), ConnectError> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP))
        .map_err(ConnectError::Socket)?;
    options.socket.apply(&SockRef::from(&socket)).map_err(ConnectError::Socket)?;
    if let Some(source) = options.source {
        wear(&socket, source).map_err(|error| ConnectError::Source { source_address: source, error })?;
    }
    if options.speaks_first {
        socket.set_tcp_quickack(false).map_err(ConnectError::Socket)?;
    }
    let mut connected = socket.connect(&to.into());
    if is_pending(&connected) {
        // Within one machine the whole handshake has happened meanwhile: to ask again costs less than to wait.
        connected = socket.connect(&to.into());
    }
    match connected {
        Ok(()) => Ok((socket.into(), false)),
        Err(_) if is_pending(&connected) => Ok((socket.into(), true)),
        Err(error) => Err(failed(to, error)),
    }
}

/// Whether the peer's answer is still to come.
fn is_pending(connected: &io::Result<()>) -> bool {
    let Err(error) = connected else { return false };
    matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY))
}

fn wear(socket: &socket2::Socket, source: SocketAddr) -> io::Result<()> {
    set_transparent(socket, source.ip())?;
    // Leaves the choice of a port to connect(2), which may then share one among destinations.
    if source.port() == 0 {
        late_port(socket);
    }
    socket.bind(&source.into())
}

/// `IP_BIND_ADDRESS_NO_PORT`. Best effort: without it a pod may run out of ports sooner.
#[allow(unsafe_code)] // no safe binding of this option exists
#[allow(clippy::cast_possible_truncation)] // the size of a C int
fn late_port(socket: &socket2::Socket) {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: `on` lives through the call and `length` is its size; the descriptor is open.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            length,
        );
    }
}

fn failed(to: SocketAddr, error: io::Error) -> ConnectError {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => ConnectError::Refused { to },
        Some(libc::ETIMEDOUT) => ConnectError::TimedOut { to, after: CONNECT_TIMEOUT },
        _ => ConnectError::Unreachable { to, source: error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::on_each_driver;

    #[test]
    fn a_closed_port_refuses_and_an_open_one_takes() {
        on_each_driver(|_worker| async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let at = listener.local_addr().unwrap();
            let socket = connect(at, &ConnectOptions::default()).await.unwrap();
            assert_eq!(socket.peer_address().unwrap(), at);
            let (accepted, peer) = listener.accept().unwrap();
            assert_eq!(peer, socket.local_address().unwrap());
            drop((accepted, listener));
            let refused = connect(at, &ConnectOptions::default()).await;
            assert!(matches!(refused, Err(ConnectError::Refused { to }) if to == at), "{refused:?}");
        });
    }

    #[test]
    fn who_speaks_first_is_accepted_with_its_first_bytes_and_without_them_too() {
        on_each_driver(|_worker| async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let at = listener.local_addr().unwrap();
            let options = ConnectOptions { speaks_first: true, ..ConnectOptions::default() };
            let silent = connect(at, &options).await.unwrap();
            assert_eq!(listener.accept().unwrap().1, silent.local_address().unwrap());

            let speaking = connect(at, &options).await.unwrap();
            speaking.write_all(b"first").await.unwrap();
            let (mut accepted, peer) = listener.accept().unwrap();
            assert_eq!(peer, speaking.local_address().unwrap());
            let mut first = [0; 5];
            io::Read::read_exact(&mut accepted, &mut first).unwrap();
            assert_eq!(&first, b"first");
        });
    }

    #[test]
    fn a_silent_peer_times_out() {
        on_each_driver(|_worker| async {
            // A listener whose backlog is full drops further SYN packets, so connects to it hang.
            let full = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
            full.listen(0).unwrap();
            let at = full.local_addr().unwrap().as_socket().unwrap();
            let options =
                ConnectOptions { timeout: Some(Duration::from_millis(50)), ..ConnectOptions::default() };
            let mut queued = Vec::new();
            let error = loop {
                match connect(at, &options).await {
                    Ok(socket) => queued.push(socket),
                    Err(error) => break error,
                }
                assert!(queued.len() < 16, "a backlog of 0 must fill up");
            };
            assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
        });
    }
}
