//! One connection to the node agent: whole packets, and the descriptors that come with them, on a Unix socket.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::protocol::{PACKET_BYTES_MAX, Packet};

/// Descriptors for which there is room at least: one is allowed, another shows that it is one too many.
const DESCRIPTORS_MAX: usize = 2;

/// A connected socket. Descriptors that come and are not wanted are closed.
#[derive(Debug)]
pub(super) struct Connection {
    /// What tokio calls a datagram socket is here one with connections: it only waits on it.
    socket: UnixDatagram,
}

/// The room for one packet.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: [u8; PACKET_BYTES_MAX],
}

impl Default for Buffer {
    fn default() -> Self {
        Self { bytes: [0; PACKET_BYTES_MAX] }
    }
}

impl Connection {
    /// Connects without waiting: an agent that does not accept in time has no room in its queue.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self { socket: UnixDatagram::from_std(socket.into())? })
    }

    pub(super) async fn send(&self, packet: &[u8]) -> io::Result<()> {
        let send = || Ok(rustix::net::send(&self.socket, packet, SendFlags::NOSIGNAL)?);
        // A packet is taken whole or not at all.
        self.socket.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// The next packet; `None` at the end of the connection.
    pub(super) async fn receive<'a>(
        &self,
        buffer: &'a mut Buffer,
    ) -> io::Result<Option<Packet<'a, OwnedFd>>> {
        let receive = || receive(&self.socket, &mut buffer.bytes);
        let (length, flags, descriptors) = self.socket.async_io(Interest::READABLE, receive).await?;
        if length == 0 {
            return Ok(None);
        }
        Ok(Some(Packet {
            bytes: buffer.bytes.get(..length).unwrap_or_default(),
            is_cut: flags.contains(ReturnFlags::TRUNC),
            descriptors,
            has_more_descriptors: flags.contains(ReturnFlags::CTRUNC),
        }))
    }
}

fn receive(socket: &UnixDatagram, bytes: &mut [u8]) -> io::Result<(usize, ReturnFlags, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((received.bytes, received.flags, descriptors.flatten().collect()))
}
