//! A client that floods: what a hostile HTTP/2 client may send without end, again and again on new connections, or nothing
//! but new connections.
//!
//! The kinds are those of the data plane's own tests (`dataplane/tests/session_floods.rs`), which pin what must come of each;
//! here it counts what a neighbour notices.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::net::NetworkNamespace;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::handshake::{NAME, PREFACE};
use super::result::names;
use crate::Failure;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a flooder does once all is sent.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The connection is held so long, then it is closed.
    hold: Duration,
    /// Until the next is opened.
    pause: Duration,
}

const POURING: Pace = Pace { hold: Duration::from_millis(100), pause: Duration::from_millis(20) };
/// Each connection ends as soon as it stands, and the next begins at once.
const RECONNECTING: Pace = Pace { hold: Duration::ZERO, pause: Duration::ZERO };

/// One kind, as the bytes of a connection.
#[derive(Debug, Clone)]
pub(super) struct Flood {
    /// Name of the neighbour's p99 under it.
    pub(super) p99: &'static str,
    /// Name of what a process grows.
    pub(super) growth: &'static str,
    /// Name of the connections a second, where those are the flood.
    pub(super) rate: Option<&'static str>,
    bytes: Arc<[u8]>,
    pace: Pace,
}

/// Where it goes.
#[derive(Debug, Clone)]
pub(super) struct Victim {
    pub(super) network: NetworkNamespace,
    pub(super) address: SocketAddr,
    /// In TLS, as a client of a tunnel, or in the clear.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut frame = length.get(1..).unwrap_or_default().to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Streams of a client are odd.
fn stream(number: u32) -> u32 {
    2 * number + 1
}

/// Literal fields without indexing and without Huffman (RFC 7541 section 6.2.2); texts of at most 126 octets.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap_or(0)][..], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// SETTINGS with the flag ACK.
pub(super) const SETTINGS_ACKNOWLEDGED: &[u8] = &[0, 0, 0, SETTINGS, 1, 0, 0, 0, 0];

/// The first request of a client, whose body is to follow.
pub(super) fn request(head: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream(0), head)
}

/// A piece of that body.
pub(super) fn data(bytes: &[u8]) -> Vec<u8> {
    frame(DATA, 0, stream(0), bytes)
}

/// Each kind; `head` is a request that is taken.
pub(super) fn floods(head: &[u8]) -> Vec<Flood> {
    let asked = |number| frame(HEADERS, END_HEADERS, stream(number), head);
    let field = block(&[("x-flood", "of many octets that say nothing at all, again and again")]);
    let reset = |number| [asked(number), frame(RST_STREAM, 0, stream(number), &8_u32.to_be_bytes())].concat();
    let unended = frame(HEADERS, 0, stream(0), head);
    // A field of 4,000 octets is stored, and named by one octet from then on.
    let stored = [head, b"\x40\x01x\x7f\xa1\x1e", &[b'A'; 4_000]].concat();
    let referring = [head, &[0xbe; 14]].concat();
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let whole = |number, block: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, stream(number), block);
    let held = (1..100).flat_map(|number| whole(number, &referring));
    let of =
        |p99, growth, bytes: Vec<u8>| Flood { p99, growth, rate: None, bytes: bytes.into(), pace: POURING };
    vec![
        Flood {
            p99: names::FLOOD_RECONNECTS_P99,
            growth: names::FLOOD_RECONNECTS_GROWTH,
            rate: Some(names::FLOOD_RECONNECTS_RATE),
            bytes: Arc::default(),
            pace: RECONNECTING,
        },
        of(names::FLOOD_RESETS_P99, names::FLOOD_RESETS_GROWTH, (0..20_000).flat_map(reset).collect()),
        of(
            names::FLOOD_CONTINUATION_P99,
            names::FLOOD_CONTINUATION_GROWTH,
            [unended, frame(CONTINUATION, 0, stream(0), &field).repeat(10_000)].concat(),
        ),
        of(names::FLOOD_PINGS_P99, names::FLOOD_PINGS_GROWTH, frame(PING, 0, 0, b"12345678").repeat(20_000)),
        of(
            names::FLOOD_SETTINGS_P99,
            names::FLOOD_SETTINGS_GROWTH,
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(10_000),
        ),
        of(
            names::FLOOD_EMPTY_DATA_P99,
            names::FLOOD_EMPTY_DATA_GROWTH,
            [asked(0), frame(DATA, 0, stream(0), &[]).repeat(20_000)].concat(),
        ),
        of(
            names::FLOOD_SMALL_DATA_P99,
            names::FLOOD_SMALL_DATA_GROWTH,
            [asked(0), frame(DATA, 0, stream(0), b"x").repeat(20_000)].concat(),
        ),
        of(
            names::FLOOD_REFERENCES_P99,
            names::FLOOD_REFERENCES_GROWTH,
            [no_window, whole(0, &stored)].into_iter().flatten().chain(held).collect(),
        ),
    ]
}

/// Floods until it is stopped.
#[derive(Debug)]
pub(super) struct Flooder {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<f64, String>>,
}

impl Flooder {
    pub(super) fn start(victim: &Victim, flood: &Flood) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (victim, flood, stopped) = (victim.clone(), flood.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (mut connections, from) = (0_u32, Instant::now());
            while !stopped.load(Ordering::Relaxed) {
                // Whatever the other side does to the connection is its right, but it must take one.
                let connected =
                    victim.network.within(|| victim.connect()).map_err(|error| error.to_string())?;
                let mut connection =
                    connected.map_err(|error| format!("a flooder gets no connection: {error}"))?;
                let _ended_by_the_other_side = pour(&mut *connection, &flood, &stopped);
                connections += 1;
                std::thread::sleep(flood.pace.pause);
            }
            if connections == 0 {
                return Err("the flooder never had a connection".to_owned());
            }
            Ok(f64::from(connections) / from.elapsed().as_secs_f64())
        });
        Self { stop, thread }
    }

    /// How many connections it had a second; at least one in all, or it was no flood.
    pub(super) fn stop(self) -> Result<f64, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.thread.join().map_err(|_| "the flooder panicked")??)
    }
}

pub(super) trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

impl Victim {
    /// The same door, whatever is spoken there.
    pub(super) fn in_the_clear(&self) -> Self {
        Self { tls: None, ..self.clone() }
    }

    pub(super) fn connect(&self) -> Result<Box<dyn Wire>, Failure> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let mut socket = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let Some(config) = &self.tls else {
            socket.set_nonblocking(true)?;
            return Ok(Box::new(socket));
        };
        let mut session = ClientConnection::new(config.clone(), ServerName::try_from(NAME)?)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        socket.set_nonblocking(true)?;
        Ok(Box::new(StreamOwned::new(session, socket)))
    }
}

/// Sends all and takes what comes back, until the connection ends, it was held long enough, or a stop.
fn pour(connection: &mut dyn Wire, flood: &Flood, stopped: &AtomicBool) -> io::Result<()> {
    const PIECE_BYTES: usize = 32 * 1024;
    let bytes = [PREFACE, &flood.bytes].concat();
    let mut rest = bytes.as_slice();
    let mut taken = [0; 16 * 1024];
    let mut sent_at = None;
    while !stopped.load(Ordering::Relaxed) {
        let mut is_stuck = true;
        match connection.read(&mut taken) {
            Ok(0) => return Ok(()),
            Ok(_) => is_stuck = false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if rest.is_empty() {
            if sent_at.get_or_insert_with(Instant::now).elapsed() >= flood.pace.hold {
                return Ok(());
            }
        } else {
            match connection.write(rest.get(..PIECE_BYTES).unwrap_or(rest)) {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    is_stuck = false;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if is_stuck {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_flood_is_poured_and_begins_again_when_it_is_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (network, address) = (NetworkNamespace::home().unwrap(), listener.local_addr().unwrap());
        let flood = floods(&block(&[(":method", "GET")])).remove(1);
        let flooder = Flooder::start(&Victim { network, address, tls: None }, &flood);
        for _ in 0..3 {
            let (mut taken, _) = listener.accept().unwrap();
            let mut bytes = vec![0; 100_000];
            taken.read_exact(&mut bytes).unwrap();
            assert!(bytes.starts_with(PREFACE) && flood.bytes.starts_with(&bytes[PREFACE.len()..]));
        }
        assert!(flooder.stop().unwrap() > 0.0);
    }

    #[test]
    fn who_only_reconnects_says_the_least_and_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (network, address) = (NetworkNamespace::home().unwrap(), listener.local_addr().unwrap());
        let flood = floods(&[]).into_iter().find(|flood| flood.rate.is_some()).unwrap();
        let flooder = Flooder::start(&Victim { network, address, tls: None }, &flood);
        for _ in 0..3 {
            let (mut taken, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            taken.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, PREFACE);
        }
        assert!(flooder.stop().unwrap() > 0.0);
    }
}
