//! Descriptors that a worker waits on, and the direct calls on those that are sockets.
//!
//! Invariant: every descriptor here is non-blocking. A [`Descriptor`] belongs to the worker that made it and is
//! closed by that worker's runtime when it is dropped, after waits in flight have been taken back.
//! Waits are handed through rather than wrapped: each idle connection carries one, and a wrapper would double it.
//! One task may wait for reading and one for writing at a time (the epoll driver keeps one waker for each).

#![allow(unsafe_code)] // monoio streams lend their descriptor only as a number

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use monoio::net::UnixStream;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use socket2::SockRef;

use super::canonical;

/// Anything that can be waited on: a socket, an eventfd, a pipe.
#[derive(Debug)]
pub struct Descriptor {
    /// monoio waits only on its own types, and of these the Unix stream is a bare descriptor: the TCP stream carries
    /// room for two addresses, eighty bytes of each idle connection. Only its waits are ever called.
    stream: UnixStream,
}

impl Descriptor {
    /// Takes over a non-blocking descriptor; must be called inside a worker's runtime.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::from_std(StdUnixStream::from(descriptor))? })
    }

    /// Waits until a read would not block. Dropping the future takes the wait back.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.stream.readable(false)
    }

    /// Waits until a write would not block. Dropping the future takes the wait back.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.stream.writable(false)
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `stream` owns the descriptor and closes it only when dropped; the borrow ends before that.
        unsafe { BorrowedFd::borrow_raw(self.stream.as_raw_fd()) }
    }
}

/// A connected stream socket.
#[derive(Debug)]
pub struct Socket {
    descriptor: Descriptor,
}

impl Socket {
    /// Takes over a non-blocking connected socket; must be called inside a worker's runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { descriptor: Descriptor::new(socket)? })
    }

    /// Waits until a receive would not block.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.descriptor.readable()
    }

    /// Waits until a send would not block.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.descriptor.writable()
    }

    /// Receives what is there: `None` if nothing is, `Some(0)` at the end of the stream.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        would_block(|| rustix::net::recv(self, &mut *buffer, RecvFlags::empty()).map(|(count, _)| count))
    }

    /// Looks at what is there without taking it; the result is that of [`Socket::try_recv`].
    pub fn try_peek(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        would_block(|| rustix::net::recv(self, &mut *buffer, RecvFlags::PEEK).map(|(count, _)| count))
    }

    /// Sends as much as the kernel takes at once: `None` if it takes nothing.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        would_block(|| rustix::net::send(self, bytes, SendFlags::NOSIGNAL))
    }

    /// As [`Socket::try_send`], for bytes that lie in several pieces.
    pub fn try_send_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        if let [piece] = pieces {
            return self.try_send(piece);
        }
        let mut control = SendAncillaryBuffer::default();
        would_block(|| rustix::net::sendmsg(self, pieces, &mut control, SendFlags::NOSIGNAL))
    }

    /// Receives at least one byte, or 0 at the end of the stream. For handshakes and heads; relays lend the worker's
    /// buffer instead.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(count) = self.try_recv(buffer)? {
                return Ok(count);
            }
            self.readable().await?;
        }
    }

    /// Sends all of `bytes`.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_send(bytes)? {
                Some(count) => bytes = bytes.get(count..).unwrap_or_default(),
                None => self.writable().await?,
            }
        }
        Ok(())
    }

    /// Ends our direction: the peer reads the end of the stream.
    pub fn shutdown_write(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Write)
    }

    /// Stops receiving: whoever waits to read is woken and reads the end of the stream. The peer is not told.
    pub fn shutdown_read(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Read)
    }

    /// Makes the coming close send a reset, so that the peer does not take what it got for the whole.
    pub fn reset_on_close(&self) {
        // Fails only on a socket that is gone already, and then there is no peer to tell.
        drop(SockRef::from(self).set_linger(Some(Duration::ZERO)));
    }

    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        address(SockRef::from(self).peer_addr()?)
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        address(SockRef::from(self).local_addr()?)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

pub(super) fn address(address: socket2::SockAddr) -> io::Result<SocketAddr> {
    address.as_socket().map(canonical).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// Runs a non-blocking call, again when a signal cuts it short.
pub(super) fn would_block(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(count) => return Ok(Some(count)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
