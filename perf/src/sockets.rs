//! Sockets whose congestion control is named: all ends of a measurement set the same.

use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::Failure;

pub(crate) fn listen(address: SocketAddr, congestion: Option<&str>) -> Result<TcpListener, Failure> {
    let socket = socket(address, congestion)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(TcpListener::from_std(socket.into())?)
}

pub(crate) async fn connect(address: SocketAddr, congestion: Option<&str>) -> Result<TcpStream, Failure> {
    let socket = socket(address, congestion)?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Accepted sockets inherit the congestion control of their listener.
fn socket(address: SocketAddr, congestion: Option<&str>) -> Result<Socket, Failure> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(name) = congestion {
        socket
            .set_tcp_congestion(name.as_bytes())
            .map_err(|error| format!("congestion control {name} is not to be had: {error}"))?;
    }
    Ok(socket)
}
