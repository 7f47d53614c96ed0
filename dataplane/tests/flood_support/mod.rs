//! What a hostile HTTP/2 client may send without end, and a client that sends it, in TLS or in the clear.

#![allow(dead_code, unreachable_pub)] // each test program uses a part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the support of tests only

mod floods;
mod withstand;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[allow(unused_imports)] // each test program uses a part
pub use floods::{Flood, floods, large_requests};
#[allow(unused_imports)] // likewise
pub use withstand::{Neighbour, withstand};

/// How long anything may take. Only a failure waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// RFC 9113 section 7.
const ENHANCE_YOUR_CALM: u32 = 11;

/// A head, and what of its body follows in one frame.
pub fn request(fields: &[(&str, &str)], body: Option<&[u8]>) -> Vec<u8> {
    let flags = if body.is_none() { END_HEADERS | END_STREAM } else { END_HEADERS };
    let head = frame(HEADERS, flags, stream(0), &block(fields));
    [head, body.map(|body| frame(DATA, END_STREAM, stream(0), body)).unwrap_or_default()].concat()
}

/// Trailers of a request.
pub fn trailers(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream(0), &block(fields))
}

/// A head whose CONTINUATION never comes.
pub fn unended(head: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM, stream(0), head)
}

/// A head, and the beginning of a body.
pub fn begun(head: &[u8], body: &[u8]) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream(0), head), frame(DATA, 0, stream(0), body)].concat()
}

/// A frame as it stands on the wire.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Streams of a client are odd.
fn stream(number: u32) -> u32 {
    2 * number + 1
}

/// Literal fields without indexing and without Huffman (RFC 7541 section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap();
        [&[length][..], text.as_bytes()].concat()
    };
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

// === The client ===

enum Wire {
    Clear,
    Tls(Box<rustls::ClientConnection>),
}

/// A connection that is written to without waiting for what comes back.
pub struct Peer {
    socket: TcpStream,
    wire: Wire,
    received: Vec<u8>,
    pub ended: bool,
}

impl Peer {
    pub fn clear(socket: TcpStream) -> Self {
        Self::new(socket, Wire::Clear)
    }

    pub fn tls(socket: TcpStream, config: rustls::ClientConfig) -> Self {
        let session = rustls::ClientConnection::new(Arc::new(config), "server.invalid".try_into().unwrap());
        Self::new(socket, Wire::Tls(Box::new(session.unwrap())))
    }

    fn new(socket: TcpStream, wire: Wire) -> Self {
        socket.set_nonblocking(true).unwrap();
        let mut peer = Self { socket, wire, received: Vec::new(), ended: false };
        let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat();
        assert!(peer.send(&preface), "the connection ends before its preface");
        assert!(peer.until(|frames| frames.iter().any(|it| it.kind == SETTINGS)), "no settings");
        peer.send(&frame(SETTINGS, ACK, 0, &[]));
        peer
    }

    /// Sends all, unless the connection ends first; whether it goes on.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut rest = bytes;
        if let Wire::Tls(session) = &mut self.wire {
            session.writer().write_all(rest).unwrap();
            rest = &[];
        }
        while !self.ended {
            let written = match &mut self.wire {
                Wire::Clear if rest.is_empty() => break,
                Wire::Clear => self.socket.write(rest).inspect(|count| rest = &rest[*count..]),
                Wire::Tls(session) if session.wants_write() => session.write_tls(&mut self.socket),
                Wire::Tls(session) if session.is_handshaking() => Err(io::ErrorKind::WouldBlock.into()),
                Wire::Tls(_) => break,
            };
            let blocked = match written {
                Ok(_) => false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
                Err(_) => {
                    self.receive();
                    self.ended = true;
                    break;
                }
            };
            self.receive();
            if blocked {
                assert!(Instant::now() < deadline, "neither taken nor refused");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.receive();
        !self.ended
    }

    /// Takes what is there.
    fn receive(&mut self) {
        let mut piece = [0; 16 * 1024];
        while !self.ended {
            let read = match &mut self.wire {
                Wire::Clear => self.socket.read(&mut piece),
                Wire::Tls(session) => match session.read_tls(&mut self.socket) {
                    Ok(0) => Ok(0),
                    Ok(_) => {
                        if session.process_new_packets().is_err() {
                            self.ended = true;
                            return;
                        }
                        match session.reader().read(&mut piece) {
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                            other => other,
                        }
                    }
                    Err(error) => Err(error),
                },
            };
            match read {
                Ok(0) => self.ended = true,
                Ok(count) => self.received.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.ended = true,
            }
        }
        // More may lie decrypted than one read took.
        if let Wire::Tls(session) = &mut self.wire {
            while let Ok(count @ 1..) = session.reader().read(&mut piece) {
                self.received.extend_from_slice(&piece[..count]);
            }
        }
    }

    /// Waits until what has arrived is as wished, or the connection ends.
    fn until(&mut self, holds: impl Fn(&[Frame]) -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.receive();
            if holds(&frames(&self.received)) {
                return true;
            }
            if self.ended || Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends frames and waits for the first answer to a stream, or for the end; whether there was a response.
    pub fn exchange(&mut self, bytes: &[u8]) -> bool {
        self.send(bytes);
        self.until(|frames| frames.iter().any(|it| matches!(it.kind, HEADERS | RST_STREAM | GOAWAY)));
        frames(&self.received).iter().any(|it| it.kind == HEADERS)
    }

    /// Whether the other side still answers.
    fn answers(&mut self) -> bool {
        let ping = frame(PING, 0, 0, b"are you?");
        self.send(&ping)
            && self.until(|frames| frames.iter().any(|it| it.kind == PING && it.payload == b"are you?"))
    }

    /// The code that the connection was closed with, when it has ended.
    pub fn closed_with(&mut self) -> Option<u32> {
        self.until(|_| false);
        let frames = frames(&self.received);
        let goaway = frames.iter().rfind(|it| it.kind == GOAWAY)?;
        Some(u32::from_be_bytes(goaway.payload.get(4..8)?.try_into().unwrap()))
    }
}

struct Frame {
    kind: u8,
    payload: Vec<u8>,
}

fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut all = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some(payload) = rest.get(..length) else { break };
        all.push(Frame { kind: head[3], payload: payload.to_vec() });
        bytes = &rest[length..];
    }
    all
}
