//! Clients and servers inside pods: plain threads on plain sockets.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use dataplane::net::{NetworkNamespace, canonical};
use socket2::{Domain, Protocol, Socket, Type};

use super::PATIENCE;

/// Connects from inside a namespace, with bounded waits.
pub fn connect(from: &NetworkNamespace, to: SocketAddr) -> io::Result<TcpStream> {
    let socket: TcpStream = from
        .within(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            Ok::<_, io::Error>(socket.into())
        })
        .unwrap()?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends all, ends its direction, and reads to the end.
pub fn exchange(mut socket: &TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    socket.write_all(bytes)?;
    socket.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    Ok(answer)
}

/// One piece there and back; for servers of [`serve_pieces`].
pub fn ping(mut socket: &TcpStream) -> io::Result<()> {
    socket.write_all(b"ping")?;
    let mut answer = [0; 4];
    socket.read_exact(&mut answer)?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

/// How long it takes until the connection ends, as its peer or a proxy wishes.
pub fn time_to_end(mut socket: &TcpStream) -> Duration {
    let start = Instant::now();
    let end = socket.read(&mut [0; 64]);
    let is_end =
        matches!(&end, Ok(0)) || matches!(&end, Err(error) if error.kind() == io::ErrorKind::ConnectionReset);
    assert!(is_end, "the connection has not ended: {end:?}");
    start.elapsed()
}

/// Listens in a namespace; each connection is served on a thread of its own.
pub fn serve(
    network: &NetworkNamespace,
    port: u16,
    serve: impl Fn(TcpStream, SocketAddr) + Clone + Send + 'static,
) {
    let listener = network.within(|| TcpListener::bind(("::", port))).unwrap().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            // Without a descriptor for it: tests take those away as well.
            let Ok(socket) = socket else {
                std::thread::yield_now();
                continue;
            };
            let serve = serve.clone();
            std::thread::spawn(move || {
                // A peer that has gone already is nobody's.
                if let Ok(peer) = socket.peer_addr() {
                    serve(socket, canonical(peer));
                }
            });
        }
    });
}

/// Gives back each piece as it comes.
pub fn serve_pieces(mut socket: TcpStream, _: SocketAddr) {
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = socket.read(&mut piece) {
        if socket.write_all(&piece[..count]).is_err() {
            return;
        }
    }
}

/// Answers, once it has read the end, with its name, its client's address and what it read.
pub fn answer_once(name: &str, mut socket: TcpStream, peer: SocketAddr) {
    let mut all = Vec::new();
    if socket.read_to_end(&mut all).is_ok() {
        // The client may have broken off.
        let _ = socket.write_all(format!("{name} {} ", peer.ip()).as_bytes());
        let _ = socket.write_all(&all);
    }
}
