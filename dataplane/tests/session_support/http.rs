//! A small HTTP/1.1 server whose paths choose what it does.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::Sender;

#[allow(unused_imports)] // each test program uses a part
pub use super::message::{Client, Response};
use super::message::{body_of, field, read_head};
use super::{Bed, LATE, PATIENCE, checksum, pattern};

impl Bed {
    pub fn client(&self, pod: &str, to: SocketAddr) -> Client {
        Client::new(self.connect(pod, to).unwrap())
    }

    /// An HTTP server in a pod. The end of the path chooses: see [`answer`]. Each request line, and the end of each
    /// connection as `end`, is told.
    pub fn serve_http(&self, pod: &str, port: u16, tell: Sender<String>) -> SocketAddr {
        let name = pod.to_owned();
        self.serve(pod, port, move |socket, peer| {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut reader = BufReader::new(socket);
            // The test may have ended, and nobody may listen.
            while let Ok(true) = answer(&name, peer, &mut reader, &tell) {}
            let _ = tell.send(String::from("end"));
        })
    }
}

/// Serves one request; whether another may follow.
fn answer(
    name: &str,
    peer: SocketAddr,
    reader: &mut BufReader<TcpStream>,
    tell: &Sender<String>,
) -> io::Result<bool> {
    let head = read_head(reader)?;
    let line = head.lines().next().unwrap_or_default().to_owned();
    let _ = tell.send(line.clone());
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
    let last = path.rsplit('/').next().unwrap_or_default();
    match last {
        // Never answers: waits for the end of the connection.
        "hold" => drop(reader.read(&mut [0])?),
        "413" => {
            let reply = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
            reader.get_mut().write_all(reply)?;
        }
        "until-close" => {
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\nall of it")?;
        }
        "chunks" => {
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for piece in pattern(3_000_001).chunks(70_001) {
                write!(reader.get_mut(), "{:x}\r\n", piece.len())?;
                reader.get_mut().write_all(piece)?;
                reader.get_mut().write_all(b"\r\n")?;
            }
            reader.get_mut().write_all(b"0\r\n\r\n")?;
            return Ok(true);
        }
        "bulk-until-close" => {
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            reader.get_mut().write_all(&pattern(4_000_001))?;
        }
        // Breaks off where the end could have been.
        "torn" => {
            reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\nthe first part")?;
            // Only when the first part has been read on the other side.
            reader.read_exact(&mut [0])?;
            socket2::SockRef::from(reader.get_ref()).set_linger(Some(std::time::Duration::ZERO))?;
        }
        "switch" => {
            let reply = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
            reader.get_mut().write_all(reply)?;
            let mut all = Vec::new();
            reader.read_to_end(&mut all)?;
            reader.get_mut().write_all(&all)?;
        }
        _ => {
            if field(&head, "expect").is_some() {
                reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            if last == "hints" {
                let hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x\r\nX: 1\r\n\r\n";
                reader.get_mut().write_all(hints)?;
            }
            if last == "late" {
                std::thread::sleep(LATE);
            }
            let body = body_of(reader, &head)?.unwrap_or_default();
            let upgrade = field(&head, "upgrade").unwrap_or_default();
            let text = format!("{name} {method} {path} {} {} {upgrade}", peer.ip(), checksum(&body));
            let length = text.len();
            let text = if method == "HEAD" { "" } else { &*text };
            write!(reader.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}")?;
            return Ok(true);
        }
    }
    Ok(false)
}
