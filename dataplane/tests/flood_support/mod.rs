//! What a hostile HTTP/2 client may send without end, and a client that sends it, in TLS or in the clear.

#![allow(dead_code, unreachable_pub)] // each test program uses a part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // the support of tests only

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::session_support::PATIENCE;

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
    ended: bool,
    /// Most memory that the process held while bytes were sent.
    pub peak: usize,
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
        let mut peer = Self { socket, wire, received: Vec::new(), ended: false, peak: 0 };
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
        self.peak = self.peak.max(anonymous_memory());
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
    fn closed_with(&mut self) -> Option<u32> {
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

/// Memory of this process that no file backs, in bytes.
pub fn anonymous_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

// === The floods ===

/// What must come of a flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The connection is closed with ENHANCE_YOUR_CALM.
    Calm,
    /// Its streams are refused, and the connection answers still; or it is closed with ENHANCE_YOUR_CALM.
    Borne,
    /// It is closed, with whatever code.
    Closed,
}

type Chunks = Box<dyn Iterator<Item = Vec<u8>>>;

pub struct Flood {
    pub name: &'static str,
    pub end: End,
    chunks: Chunks,
}

impl Flood {
    fn new(name: &'static str, end: End, chunks: impl Iterator<Item = Vec<u8>> + 'static) -> Self {
        Self { name, end, chunks: Box::new(chunks) }
    }

    /// Runs on a fresh connection; the most memory that the process held meanwhile, or what is wrong.
    pub fn run(self, mut peer: Peer) -> Result<usize, String> {
        let sent = self.chunks.take_while(|chunk| peer.send(chunk)).count();
        let closed = |code: Option<u32>| match code {
            Some(ENHANCE_YOUR_CALM) => Ok(()),
            other => Err(format!("{}: closed with {other:?} after {sent} chunks", self.name)),
        };
        match self.end {
            End::Closed => {
                peer.until(|_| false);
                Ok(())
            }
            End::Calm => closed(peer.closed_with()),
            End::Borne if peer.answers() => Ok(()),
            End::Borne => closed(peer.closed_with()),
        }?;
        if !peer.ended && self.end != End::Borne {
            return Err(format!("{}: the connection goes on", self.name));
        }
        peer.peak = peer.peak.max(anonymous_memory());
        Ok(peer.peak)
    }
}

/// Each kind of flood; `head` is a request that is taken.
pub fn floods(head: &[u8]) -> Vec<Flood> {
    let head = Arc::<[u8]>::from(head);
    let open = |flags: u8| {
        let head = head.clone();
        move |number: u32| frame(HEADERS, flags, stream(number), &head)
    };
    let (asked, begun) = (open(END_HEADERS | END_STREAM), open(END_HEADERS));
    let (asked_too, begun_too, unended) = (asked.clone(), begun.clone(), open(0));
    let repeat = |bytes: Vec<u8>, count: usize| std::iter::repeat_n(bytes, count);
    let field = block(&[("x-flood", "of many octets that say nothing at all, again and again")]);
    let mut floods = vec![
        Flood::new(
            "rapid reset",
            End::Calm,
            (0..100_000)
                .map(move |it| [begun(it), frame(RST_STREAM, 0, stream(it), &8_u32.to_be_bytes())].concat()),
        ),
        Flood::new(
            "provoked resets",
            End::Calm,
            (0..10_000).map(move |it| [begun_too(it), frame(WINDOW_UPDATE, 0, stream(it), &[0; 4])].concat()),
        ),
        Flood::new(
            "continuation",
            End::Calm,
            std::iter::once(unended(0)).chain(repeat(frame(CONTINUATION, 0, stream(0), &field), 10_000)),
        ),
        Flood::new(
            "empty continuation",
            End::Calm,
            std::iter::once(unended(0)).chain(repeat(frame(CONTINUATION, 0, stream(0), &[]), 10_000)),
        ),
        Flood::new(
            "settings",
            End::Calm,
            repeat(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(50), 200),
        ),
        Flood::new("ping", End::Calm, repeat(frame(PING, 0, 0, b"12345678").repeat(100), 200)),
        Flood::new("priority", End::Calm, repeat(frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 10]).repeat(100), 200)),
        Flood::new(
            "window updates",
            End::Calm,
            repeat(frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(100), 200),
        ),
        Flood::new("unknown frames", End::Calm, repeat(frame(0x50, 0, 0, b"zz").repeat(100), 200)),
        Flood::new(
            "empty data",
            End::Calm,
            std::iter::once(open(END_HEADERS)(0))
                .chain(repeat(frame(DATA, 0, stream(0), &[]).repeat(100), 200)),
        ),
        Flood::new(
            "data of one octet",
            End::Borne,
            std::iter::once(open(END_HEADERS)(0))
                .chain(repeat(frame(DATA, 0, stream(0), b"x").repeat(100), 200)),
        ),
    ];
    floods.extend(head_floods(&head));
    floods.push(Flood::new(
        "more streams than are allowed",
        End::Borne,
        (0..1_000).map(move |it| if it == 0 { asked(it) } else { asked_too(it) }),
    ));
    floods
}

/// As many requests as `streams`, whose heads are as large as a list may be, though they say so in few octets.
pub fn large_requests(head: &[u8], streams: u32) -> Vec<u8> {
    let store = [head, b"\x40\x01x\x7f\xa1\x1e", &[b'A'; 4_000]].concat();
    let refer = [head, &[0xbe; 14]].concat();
    let request = |number: u32, block: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, stream(number), block);
    (0..streams).flat_map(|number| request(number, if number == 0 { &store } else { &refer })).collect()
}

/// Heads that are larger than they look, or than anybody needs.
fn head_floods(head: &Arc<[u8]>) -> Vec<Flood> {
    // A field of 4,000 octets is stored, and named by one octet from then on.
    let mut store = head.to_vec();
    store.extend(b"\x40\x01x\x7f\xa1\x1e");
    store.extend([b'A'; 4_000]);
    let refer = |count: usize| [&head[..], &vec![0xbe; count]].concat();
    let large = block(&[("x-large", &"y".repeat(100))]);
    let crumbs = [&head[..], &b"\x0f\x11\x03a=b".repeat(2_000)].concat();
    let request = |number: u32, block: &[u8]| frame(HEADERS, END_HEADERS, stream(number), block);
    let stored = request(0, &store);
    let bomb = |count: usize, streams: u32| {
        let (stored, refer) = (stored.clone(), refer(count));
        std::iter::once(stored).chain((1..streams).map(move |it| request(it, &refer)))
    };
    // No window for what is answered, so every stream waits.
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    vec![
        Flood::new("references", End::Borne, bomb(4_000, 50)),
        // As many as fit into a list, on as many streams as are allowed.
        Flood::new(
            "references that are held",
            End::Borne,
            std::iter::once(no_window.clone()).chain(bomb(14, 100)),
        ),
        Flood::new(
            "three megabytes of references",
            End::Borne,
            std::iter::once(no_window).chain(bomb(16_000, 190)),
        ),
        Flood::new("crumbs of cookies", End::Borne, (0..100).map(move |it| request(it, &crumbs))),
        Flood::new("large lists", End::Borne, {
            let list = [&head[..], &large.repeat(140)].concat();
            (0..100).map(move |it| request(it, &list))
        }),
        Flood::new("sizes of the table", End::Closed, {
            let storm = [&b"\x20\x3f\xe1\x1f".repeat(1_000)[..], head].concat();
            (0..100).map(move |it| request(it, &storm))
        }),
    ]
}
