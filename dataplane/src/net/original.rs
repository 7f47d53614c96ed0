//! Where a captured connection was going before it was redirected.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use rustix::net::sockopt;
use socket2::SockRef;

use super::canonical;
use super::descriptor::address;

/// The destination that the client dialled.
///
/// Asked of connection tracking for IPv4 and then for IPv6 (a REDIRECT rule rewrote the destination); where
/// neither knows the connection, the socket's own local address is the destination (a TPROXY rule keeps it, and so
/// does a connection that was not captured at all). `None` only for a socket that is already gone.
pub fn original_destination(socket: impl AsFd) -> Option<SocketAddr> {
    sockopt::ip_original_dst(&socket)
        .map(SocketAddr::V4)
        .or_else(|_| sockopt::ipv6_original_dst(&socket).map(SocketAddr::V6))
        .map(canonical)
        .ok()
        .or_else(|| SockRef::from(&socket).local_addr().and_then(address).ok())
}
