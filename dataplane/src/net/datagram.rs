//! UDP sockets of a worker.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, Protocol, SockRef, Type};

use super::descriptor::{address, would_block};
use super::{Descriptor, NetworkNamespace, canonical};

/// How to make one.
#[derive(Debug, Clone, Default)]
pub struct DatagramOptions {
    /// `SO_MARK`, by which capture rules tell the proxy's own packets. Needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
    /// Where the socket lives; `None` is the thread's own namespace.
    pub namespace: Option<NetworkNamespace>,
}

/// A UDP socket: bound, for any peer, or connected to one.
#[derive(Debug)]
pub struct Datagram {
    descriptor: Descriptor,
}

impl Datagram {
    /// Receives what is sent to `at`. Several workers may bind one address (`SO_REUSEPORT`); the kernel spreads the
    /// peers over them.
    pub fn bind(at: SocketAddr, options: &DatagramOptions) -> io::Result<Self> {
        Self::make(options, || {
            let socket = socket(at, options)?;
            socket.set_reuse_port(true)?;
            if at.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&at.into())?;
            Ok(socket.into())
        })
    }

    /// Exchanges datagrams with one peer, from a port that the kernel chooses. A peer that is not there is an error of
    /// the next receive.
    pub fn connect(to: SocketAddr, options: &DatagramOptions) -> io::Result<Self> {
        Self::make(options, || {
            let socket = socket(to, options)?;
            socket.connect(&to.into())?;
            Ok(socket.into())
        })
    }

    fn make(options: &DatagramOptions, make: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Self> {
        let socket = match &options.namespace {
            None => make()?,
            Some(namespace) => namespace.within(make).map_err(io::Error::other)??,
        };
        Ok(Self { descriptor: Descriptor::new(socket)? })
    }

    /// Waits until a receive would not block. Dropping the future takes the wait back.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.descriptor.readable()
    }

    /// Receives one datagram if there is one. One that is longer than the buffer is cut off there.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        would_block(|| rustix::net::recv(self, &mut *buffer, RecvFlags::empty()).map(|(count, _)| count))
    }

    /// As [`Datagram::try_recv`], with the sender.
    pub fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        let mut sender = None;
        let count = would_block(|| {
            let (count, _, from) = rustix::net::recvfrom(self, &mut *buffer, RecvFlags::empty())?;
            sender = from.and_then(|from| SocketAddr::try_from(from).ok()).map(canonical);
            Ok(count)
        })?;
        match (count, sender) {
            (Some(count), Some(sender)) => Ok(Some((count, sender))),
            (Some(_), None) => Err(io::ErrorKind::AddrNotAvailable.into()),
            (None, _) => Ok(None),
        }
    }

    /// Sends one datagram to the connected peer: `None` if the kernel has no room for it.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        would_block(|| rustix::net::send(self, bytes, SendFlags::NOSIGNAL))
    }

    /// Sends one datagram: `None` if the kernel has no room for it.
    pub fn try_send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<Option<usize>> {
        would_block(|| rustix::net::sendto(self, bytes, SendFlags::NOSIGNAL, &to))
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        address(SockRef::from(self).local_addr()?)
    }
}

impl AsFd for Datagram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn socket(for_address: SocketAddr, options: &DatagramOptions) -> io::Result<socket2::Socket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(Domain::for_address(for_address), kind, Some(Protocol::UDP))?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::on_each_driver;

    #[test]
    fn datagrams_are_exchanged_and_say_whom_they_are_from() {
        on_each_driver(|_worker| async {
            for at in ["127.0.0.1:0", "[::1]:0"] {
                let Ok(server) = Datagram::bind(at.parse().unwrap(), &DatagramOptions::default()) else {
                    continue; // a machine without IPv6
                };
                let to = server.local_address().unwrap();
                let client = Datagram::connect(to, &DatagramOptions::default()).unwrap();
                assert_eq!(client.try_send(b"question").unwrap(), Some(8));
                server.readable().await.unwrap();
                let mut buffer = [0; 64];
                let (count, from) = server.try_recv_from(&mut buffer).unwrap().unwrap();
                assert_eq!((&buffer[..count], from), (&b"question"[..], client.local_address().unwrap()));
                assert_eq!(server.try_recv_from(&mut buffer).unwrap(), None);
                server.try_send_to(b"answer", from).unwrap();
                client.readable().await.unwrap();
                let count = client.try_recv(&mut buffer).unwrap().unwrap();
                assert_eq!(&buffer[..count], b"answer");
            }
        });
    }

    #[test]
    fn a_peer_that_is_not_there_is_an_error() {
        on_each_driver(|_worker| async {
            let gone = Datagram::bind("127.0.0.1:0".parse().unwrap(), &DatagramOptions::default()).unwrap();
            let at = gone.local_address().unwrap();
            let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            drop(gone);
            // The close goes through the ring; the port is refused once it has happened.
            let client = Datagram::connect(at, &DatagramOptions::default()).unwrap();
            let error = loop {
                if let Err(error) = client.try_send(b"?") {
                    break error;
                }
                let waited =
                    monoio::time::timeout(std::time::Duration::from_millis(20), client.readable()).await;
                if let Ok(waited) = waited {
                    waited.unwrap();
                    if let Err(error) = client.try_recv(&mut [0; 8]) {
                        break error;
                    }
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            drop(held);
        });
    }
}
