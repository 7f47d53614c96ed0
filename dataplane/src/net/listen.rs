//! Listening sockets.
//!
//! A worker waits for a listener to be readable and then takes connections by accept4(2) directly: an accept that
//! is in flight in the ring and dropped would leak the descriptor it completes with (monoio 0.2.4).

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, SockFilter, SockRef, Type};

use super::descriptor::address;
use super::exhaustion::rest;
use super::{Descriptor, NetworkNamespace, Socket, SocketOptions, canonical};
use crate::worker::requeue;

/// Connections that may wait to be accepted.
pub const LISTEN_BACKLOG: i32 = 1024;

/// Connections taken in a row before other tasks get their turn.
const ACCEPTS_IN_A_ROW_MAX: u32 = 32;

/// `SYN` and `ACK` in the byte of the TCP header that holds the flags (RFC 9293 section 3.1), and where that byte is.
const FLAGS_AT: u32 = 13;
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;

/// Drops what would begin a connection, lets everything else pass. A filter of a TCP socket sees the TCP header first.
const NO_NEW_HANDSHAKES: [SockFilter; 5] = [
    instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS_AT),
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN | ACK),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
];

#[allow(clippy::cast_possible_truncation)] // opcodes have 16 bits
const fn instruction(code: u32, if_true: u8, if_false: u8, value: u32) -> SockFilter {
    SockFilter::new(code as u16, if_true, if_false, value)
}

/// How to listen.
#[derive(Debug, Clone, Default)]
pub struct ListenOptions {
    /// Set on the listener, from which each accepted socket inherits them.
    pub socket: SocketOptions,
    /// `IP_TRANSPARENT`, without which packets of a TPROXY rule do not reach the listener.
    pub transparent: Transparent,
    /// Where the socket lives; `None` is the thread's own namespace.
    pub namespace: Option<NetworkNamespace>,
    /// `listen(2)` backlog; 0 means [`LISTEN_BACKLOG`].
    pub backlog: i32,
}

/// How much `IP_TRANSPARENT` matters; it needs CAP_NET_ADMIN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transparent {
    #[default]
    Off,
    /// Set if the process may.
    BestEffort,
    /// An error if the process may not.
    Required,
}

/// A listening socket of one worker. Several workers listen on one address (`SO_REUSEPORT`); the kernel spreads the
/// connections over them.
#[derive(Debug)]
pub struct Listener {
    descriptor: Descriptor,
    taken_in_a_row: Cell<u32>,
    /// Nobody else holds this socket, so dropping it may end the listening itself.
    exclusive: bool,
}

/// What one accept4(2) came to.
enum Attempt {
    Taken(Socket, SocketAddr),
    /// Nobody waits.
    Empty,
    /// There is no descriptor or memory for a connection.
    Exhausted,
    /// One that waited has gone.
    Gone,
}

impl Listener {
    /// Listens on `at`; the unspecified IPv6 address takes IPv4 as well.
    pub fn bind(at: SocketAddr, options: &ListenOptions) -> io::Result<Self> {
        let socket = match &options.namespace {
            None => listening_socket(at, options)?,
            Some(namespace) => {
                namespace.within(|| listening_socket(at, options)).map_err(io::Error::other)??
            }
        };
        let mut listener = Self::from_descriptor(socket)?;
        listener.exclusive = true;
        Ok(listener)
    }

    /// Takes over a non-blocking listening socket that others may hold as well: dropping it only closes ours.
    pub fn from_descriptor(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { descriptor: Descriptor::new(socket)?, taken_in_a_row: Cell::new(0), exclusive: false })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        address(SockRef::from(&self.descriptor).local_addr()?)
    }

    /// Waits for the next connection and says who it is from. Dropping the future loses nothing: a connection is
    /// taken and returned in one step.
    ///
    /// Running out of descriptors or memory is survived by resting; an error means that the listener is broken.
    pub async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        loop {
            // A wait through the runtime is due now and then even when connections keep coming: epoll answers it at
            // once if more are there, so other tasks are let through first.
            if self.taken_in_a_row.get() >= ACCEPTS_IN_A_ROW_MAX {
                self.taken_in_a_row.set(0);
                requeue().await;
                self.descriptor.readable().await?;
            }
            match self.attempt()? {
                Attempt::Taken(socket, peer) => return Ok((socket, peer)),
                Attempt::Empty => {
                    self.taken_in_a_row.set(0);
                    self.descriptor.readable().await?;
                }
                Attempt::Exhausted => rest().await,
                Attempt::Gone => {}
            }
        }
    }

    /// Takes a connection that waits already, if there is one and there is a descriptor for it.
    pub fn try_accept(&self) -> io::Result<Option<(Socket, SocketAddr)>> {
        // As long as the queue at most: each attempt takes one out.
        loop {
            match self.attempt()? {
                Attempt::Taken(socket, peer) => return Ok(Some((socket, peer))),
                Attempt::Empty | Attempt::Exhausted => return Ok(None),
                Attempt::Gone => {}
            }
        }
    }

    /// Begins no further handshakes, and goes on with those that are under way. Who begins one now is not answered and
    /// tries again a second later, as if the packet had been lost: by then another listener of the address may have
    /// taken this one's place.
    pub fn begin_no_more(&self) -> io::Result<()> {
        SockRef::from(&self.descriptor).attach_filter(&NO_NEW_HANDSHAKES)
    }

    fn attempt(&self) -> io::Result<Attempt> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::acceptfrom_with(&self.descriptor, flags) {
            Ok((socket, peer)) => {
                self.taken_in_a_row.set(self.taken_in_a_row.get() + 1);
                // The peer may have reset the connection already: then it is no error of the listener.
                let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) else {
                    return Ok(Attempt::Gone);
                };
                match Socket::new(socket) {
                    Ok(socket) => return Ok(Attempt::Taken(socket, canonical(peer))),
                    Err(error) => tracing::warn!(%error, "an accepted connection is given up"),
                }
                Ok(Attempt::Gone)
            }
            Err(Errno::AGAIN) => Ok(Attempt::Empty),
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                tracing::warn!(error = %errno, "no connection can be accepted for now; raise the limit (ulimit -n)");
                Ok(Attempt::Exhausted)
            }
            Err(errno @ (Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT)) => {
                Err(errno.into())
            }
            // accept(2) passes on errors that belong to the one connection that is gone now.
            Err(errno) => {
                tracing::debug!(error = %errno, "a connection was gone before it was accepted");
                Ok(Attempt::Gone)
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.exclusive {
            // Closing goes through the ring and comes a little later; until then the kernel would still give this
            // socket its share of the port's connections, and nobody would take them.
            drop(SockRef::from(&self.descriptor).shutdown(Shutdown::Both));
        }
    }
}

fn listening_socket(at: SocketAddr, options: &ListenOptions) -> io::Result<OwnedFd> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(Domain::for_address(at), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    match options.transparent {
        Transparent::Off => {}
        Transparent::BestEffort => drop(set_transparent(&socket, at.ip())),
        Transparent::Required => set_transparent(&socket, at.ip())?,
    }
    if at.is_ipv6() {
        socket.set_only_v6(at.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
    }
    // Linux copies the listener's state into each connection: nodelay, keep-alive, mark and, as it was set explicitly,
    // congestion control. So an accept costs one system call.
    options.socket.apply(&SockRef::from(&socket))?;
    socket.bind(&at.into())?;
    socket.listen(if options.backlog > 0 { options.backlog } else { LISTEN_BACKLOG })?;
    Ok(socket.into())
}

/// Lets the socket use addresses that are not this machine's. A dual-stack socket needs both halves.
pub(super) fn set_transparent(socket: &socket2::Socket, ip: IpAddr) -> io::Result<()> {
    match ip {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => {
            socket.set_ip_transparent_v6(true)?;
            // Fails where IPv4 is not built in, and then no IPv4 packet comes.
            drop(socket.set_ip_transparent_v4(true));
            Ok(())
        }
    }
}

/// The unspecified address that takes IPv4 and, unless switched off, IPv6.
pub fn wildcard(port: u16, ipv6: bool) -> SocketAddr {
    let ip = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    SocketAddr::new(ip, port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::KEEPALIVE;
    use crate::net::testing::on_each_driver;
    use std::io::Write;
    use std::time::Duration;

    #[test]
    fn many_connections_in_a_row_are_all_accepted() {
        on_each_driver(|_worker| async {
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &ListenOptions::default()).unwrap();
            let at = listener.local_address().unwrap();
            let clients: Vec<_> = (0..3 * ACCEPTS_IN_A_ROW_MAX)
                .map(|_| {
                    let mut client = std::net::TcpStream::connect(at).unwrap();
                    client.write_all(b"x").unwrap();
                    client
                })
                .collect();
            for client in &clients {
                let (socket, peer) = listener.accept().await.unwrap();
                assert_eq!(peer, client.local_addr().unwrap());
                let mut byte = [0];
                assert_eq!(socket.read(&mut byte).await.unwrap(), 1);
            }
        });
    }

    #[test]
    fn a_listener_that_begins_no_more_takes_who_has_come_and_leaves_the_others_to_its_successor() {
        on_each_driver(|_worker| async {
            let old = Listener::bind("127.0.0.1:0".parse().unwrap(), &ListenOptions::default()).unwrap();
            let at = old.local_address().unwrap();
            let early = std::net::TcpStream::connect(at).unwrap();
            old.begin_no_more().unwrap();
            let late = socket2::Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            assert_eq!(late.connect(&at.into()).unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
            let (taken, peer) = old.try_accept().unwrap().unwrap();
            assert_eq!(peer, early.local_addr().unwrap());
            assert!(old.try_accept().unwrap().is_none());
            let new = Listener::bind(at, &ListenOptions::default()).unwrap();
            drop(old);
            let (_late, peer) = new.accept().await.unwrap();
            assert_eq!(Some(peer), late.local_addr().unwrap().as_socket());
            (&early).write_all(b"x").unwrap();
            assert_eq!(taken.read(&mut [0]).await.unwrap(), 1);
        });
    }

    #[test]
    fn accepted_sockets_inherit_the_options_of_their_listener() {
        on_each_driver(|_worker| async {
            let socket = SocketOptions {
                congestion: Some("reno".parse().unwrap()),
                keepalive: Some(KEEPALIVE),
                ..SocketOptions::default()
            };
            let options = ListenOptions { socket, ..ListenOptions::default() };
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
            let _client = std::net::TcpStream::connect(listener.local_address().unwrap()).unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            let accepted = SockRef::from(&accepted);
            assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
            assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_mins(3));
            assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 9);
            let congestion = accepted.tcp_congestion().unwrap();
            assert_eq!(congestion.split(|byte| *byte == 0).next(), Some(&b"reno"[..]));
        });
    }

    #[test]
    fn two_listeners_share_a_port_and_the_wildcard_takes_both_families() {
        on_each_driver(|_worker| async {
            let first = Listener::bind(wildcard(0, true), &ListenOptions::default()).unwrap();
            let at = first.local_address().unwrap();
            drop(first);
            let again = Listener::bind(wildcard(at.port(), true), &ListenOptions::default()).unwrap();
            let _other = Listener::bind(wildcard(at.port(), true), &ListenOptions::default());
            let port = again.local_address().unwrap().port();
            assert_eq!(port, at.port());
        });
    }
}
