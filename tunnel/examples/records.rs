//! What the record layer and an idle session cost. `cargo run --release -p tunnel --example records`

#![allow(clippy::unwrap_used, clippy::print_stdout)] // A measuring tool for people.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tunnel::h2::{Config, Event, Headers, StreamId};
use tunnel::session::{Session, SessionEvent};
use tunnel::tls::{ClientContext, Credentials, CryptoPolicy, ServerContext};

const CLIENT: &str = "spiffe://cluster.local/ns/app/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/app/sa/server";
const BUFFER_BYTES: usize = 512 * 1024;
const RUNS: usize = 7;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    fn issue(&self, identity: &str) -> Credentials {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        params.not_after = date_time_ymd(2090, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Credentials::from_der(vec![certificate], key, std::slice::from_ref(&self.root)).unwrap()
    }
}

struct Pair {
    client: Session,
    server: Session,
    buffer: Vec<u8>,
    now: Instant,
}

impl Pair {
    fn new(client: &ClientContext, server: &ServerContext) -> Self {
        Self::with_buffer(client, server, vec![0; BUFFER_BYTES])
    }

    fn with_buffer(client: &ClientContext, server: &ServerContext, buffer: Vec<u8>) -> Self {
        let now = Instant::now();
        let expected = Arc::from([SERVER.parse().unwrap()]);
        let mut pair = Self {
            client: Session::client(client, &expected, Config::hbone_client(), now).unwrap(),
            server: Session::server(server, Config::hbone_server(), now).unwrap(),
            buffer,
            now,
        };
        for _ in 0..4 {
            pair.deliver(true);
            pair.deliver(false);
        }
        assert!(pair.client.peer().is_some() && pair.server.peer().is_some());
        pair
    }

    /// Hands all output of one side to the other; returns the payload bytes that arrived.
    fn deliver(&mut self, to_server: bool) -> usize {
        let (from, to) = if to_server {
            (&mut self.client, &mut self.server)
        } else {
            (&mut self.server, &mut self.client)
        };
        let mut payload = 0;
        loop {
            let kept = to.prepare_input(&mut self.buffer);
            let output = from.output();
            let count = output.len().min(BUFFER_BYTES - kept);
            if count == 0 {
                return payload;
            }
            self.buffer[kept..kept + count].copy_from_slice(&output[..count]);
            from.consumed(count);
            let mut ingest = to.ingest(&mut self.buffer[..kept + count], self.now);
            while let Some(event) = ingest.next().unwrap() {
                match event {
                    SessionEvent::Http(Event::Data { stream, bytes, .. }) => {
                        payload += black_box(bytes).len();
                        ingest.session().release(stream, bytes.len());
                    }
                    SessionEvent::Http(Event::Headers { stream, end_stream: false, .. }) if to_server => {
                        let answer = Headers::response(200).unwrap();
                        ingest.session().respond(stream, &answer, false).unwrap();
                    }
                    _ => {}
                }
            }
        }
    }

    fn open(&mut self) -> StreamId {
        let stream = self.client.open(&Headers::connect("10.0.0.1:80").unwrap(), false).unwrap();
        self.deliver(true);
        self.deliver(false);
        stream
    }
}

/// Smallest, middle and largest of several runs.
fn spread(mut run: impl FnMut() -> f64) -> String {
    let mut values: Vec<f64> = (0..RUNS).map(|_| run()).collect();
    values.sort_by(f64::total_cmp);
    format!("{:.2}/{:.2}/{:.2}", values[0], values[RUNS / 2], values[RUNS - 1])
}

fn nanoseconds(time: Duration, count: u32) -> f64 {
    time.as_secs_f64() * 1e9 / f64::from(count)
}

/// Resident bytes of this process, in pages of 4 KiB.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

fn main() {
    let authority = Authority::new();
    let client = ClientContext::new(&authority.issue(CLIENT), CryptoPolicy::Standard).unwrap();
    let server = ServerContext::new(&authority.issue(SERVER), CryptoPolicy::Standard).unwrap();
    let mut pair = Pair::new(&client, &server);
    let stream = pair.open();
    println!("cipher {}; min/median/max of {RUNS} runs", pair.client.cipher().unwrap().name());

    bulk(&mut pair, stream);
    small(&mut pair);
    handshakes(&client, &server);
    idle(&client, &server);
}

/// Frames, copies, sealing on one side; opening and frames on the other, timed apart.
fn bulk(pair: &mut Pair, stream: StreamId) {
    const ROUNDS: u32 = 2_000;
    let chunk = vec![7; 256 * 1024];
    let gigabytes = f64::from(ROUNDS) * 256.0 * 1024.0 / 1e9;
    let (mut seals, mut opens) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (mut seal, mut open) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let accepted = pair.client.send_data(stream, &chunk, false).unwrap();
            black_box(pair.client.output());
            seal += start.elapsed();
            assert_eq!(accepted, chunk.len());
            let start = Instant::now();
            assert_eq!(pair.deliver(true), accepted);
            open += start.elapsed();
            pair.deliver(false);
        }
        seals.push(gigabytes / seal.as_secs_f64());
        opens.push(gigabytes / open.as_secs_f64());
    }
    let (mut seals, mut opens) = (seals.into_iter(), opens.into_iter());
    println!("send 256 KiB chunks (frame, copy, seal)     {} GB/s", spread(|| seals.next().unwrap()));
    println!("receive (one copy of this test, open, frame) {} GB/s", spread(|| opens.next().unwrap()));
}

/// One 64-byte message a record, and 64 messages of as many streams in one record.
fn small(pair: &mut Pair) {
    const ROUNDS: u32 = 50_000;
    let streams: Vec<StreamId> = (0..64).map(|_| pair.open()).collect();
    let message = [7; 64];
    let single = spread(|| {
        let start = Instant::now();
        for round in 0..ROUNDS {
            pair.client.send_data(streams[0], &message, false).unwrap();
            assert_eq!(pair.deliver(true), 64);
            if round % 4_096 == 0 {
                pair.deliver(false);
            }
        }
        pair.deliver(false);
        nanoseconds(start.elapsed(), ROUNDS)
    });
    println!("64 B message, a record each, both sides      {single} ns");
    let batched = spread(|| {
        let start = Instant::now();
        for _ in 0..ROUNDS / 64 {
            for stream in &streams {
                pair.client.send_data(*stream, &message, false).unwrap();
            }
            assert_eq!(pair.deliver(true), 64 * 64);
        }
        pair.deliver(false);
        nanoseconds(start.elapsed(), ROUNDS / 64 * 64)
    });
    println!("64 B message, 64 streams a record, both sides {batched} ns");
}

fn handshakes(client: &ClientContext, server: &ServerContext) {
    const COUNT: u32 = 300;
    let mut buffer = vec![0; BUFFER_BYTES];
    let cost = spread(|| {
        let start = Instant::now();
        for _ in 0..COUNT {
            let pair = Pair::with_buffer(client, server, std::mem::take(&mut buffer));
            buffer = black_box(pair).buffer;
        }
        nanoseconds(start.elapsed(), COUNT) / 1e3
    });
    println!("handshake, HTTP/2 SETTINGS, both sides        {cost} us");
}

/// Sessions after traffic, with 1 and with 101 streams, whose buffers went back as a shell takes them.
fn idle(client: &ClientContext, server: &ServerContext) {
    const COUNT: u64 = 1_000;
    let grow = |streams: usize| {
        let (mut held, mut spare) = (Vec::new(), Vec::new());
        // The first ones fill the allocator's own lists.
        let mut before = 0;
        for index in 0..COUNT + 50 {
            if index == 50 {
                before = resident();
            }
            let mut pair = Pair::new(client, server);
            for _ in 0..streams {
                let stream = pair.open();
                pair.client.send_data(stream, b"hello", false).unwrap();
                pair.deliver(true);
            }
            pair.deliver(false);
            pair.client.reclaim_output(&mut spare);
            pair.server.reclaim_output(&mut spare);
            let Pair { client, server, .. } = pair;
            held.push((client, server));
        }
        (resident().saturating_sub(before) / COUNT / 2, held)
    };
    // The first lot stays alive, so that the second cannot live in its memory.
    let (one, _first) = grow(1);
    let (many, _second) = grow(101);
    println!("idle session with 1 stream, per side         {one} B");
    println!("each further stream, per side                {} B", many.saturating_sub(one) / 100);
}
