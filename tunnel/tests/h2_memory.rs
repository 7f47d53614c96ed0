//! What the engine allocates: nothing for a DATA frame, little for an idle stream, a bounded amount under a header bomb.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)] // test code outside of test functions
#![allow(unsafe_code)] // a global allocator that counts is the only way to see allocations

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Instant;
use tunnel::h2::{Config, Connection, ErrorCode, Event, FrameSink, Headers, StreamId};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with the calls of each thread counted.
struct Counting;

fn count(allocations: usize, bytes: isize) {
    ALLOCATIONS.with(|cell| cell.set(cell.get() + allocations));
    LIVE_BYTES.with(|cell| cell.set(cell.get() + bytes));
}

// SAFETY: every call is passed on unchanged to the system's allocator; the counters are constant-initialised
// thread-locals without destructors, so touching them never allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`; `alloc` took the memory from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A sink that keeps nothing it is told to forget.
#[derive(Default)]
struct Wire(Vec<u8>);

impl FrameSink for Wire {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// A client and a server, and the octets between them.
struct Tunnel {
    client: Connection,
    server: Connection,
    up: Wire,
    down: Wire,
    now: Instant,
}

impl Tunnel {
    fn new() -> Self {
        let now = Instant::now();
        let (mut up, mut down) = (Wire(Vec::with_capacity(1 << 20)), Wire(Vec::with_capacity(1 << 20)));
        let client = Connection::new(Config::hbone_client(), now, &mut up);
        let server = Connection::new(
            Config { max_concurrent_streams: 10_000, ..Config::hbone_server() },
            now,
            &mut down,
        );
        let mut tunnel = Self { client, server, up, down, now };
        tunnel.exchange();
        tunnel
    }

    /// Delivers all that is on the wire; the server accepts tunnels and echoes data.
    fn exchange(&mut self) -> usize {
        let mut echoed = 0;
        while !(self.up.0.is_empty() && self.down.0.is_empty()) {
            let mut input = self.up.0.as_slice();
            while let Some(event) =
                self.server.next_event(&mut input, self.now, &mut self.down).expect("no error")
            {
                match event {
                    Event::Headers { stream, .. } => {
                        let accepted = Headers::response(200).unwrap();
                        self.server.respond(stream, &accepted, false, &mut self.down).unwrap();
                    }
                    Event::Data { stream, bytes, end_stream } => {
                        self.server.release(stream, bytes.len(), &mut self.down);
                        let sent = self.server.send_data(stream, bytes, end_stream, &mut self.down).unwrap();
                        assert_eq!(sent, bytes.len());
                    }
                    _ => {}
                }
            }
            self.up.0.clear();
            let mut input = self.down.0.as_slice();
            while let Some(event) =
                self.client.next_event(&mut input, self.now, &mut self.up).expect("no error")
            {
                if let Event::Data { stream, bytes, .. } = event {
                    echoed += bytes.len();
                    self.client.release(stream, bytes.len(), &mut self.up);
                }
            }
            self.down.0.clear();
        }
        echoed
    }

    fn open(&mut self, port: u32) -> StreamId {
        let mut headers = Headers::connect("10.244.1.7:8080").unwrap();
        headers.push("baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop").unwrap();
        headers.push("forwarded", format!("for=\"10.244.0.3:{port}\"")).unwrap();
        self.client.open(&headers, false, &mut self.up).unwrap()
    }
}

#[test]
fn data_frames_allocate_nothing() {
    let mut tunnel = Tunnel::new();
    let streams: Vec<StreamId> = (0..64).map(|port| tunnel.open(port)).collect();
    tunnel.exchange();
    let before = ALLOCATIONS.get();
    let mut echoed = 0;
    for _ in 0..1_000 {
        for &stream in &streams {
            assert_eq!(tunnel.client.send_data(stream, &[7; 64], false, &mut tunnel.up), Ok(64));
        }
        echoed += tunnel.exchange();
    }
    assert_eq!(echoed, 64 * 64 * 1_000);
    assert_eq!(ALLOCATIONS.get() - before, 0);
}

#[test]
fn new_tunnel_takes_one_allocation_at_the_server() {
    let mut tunnel = Tunnel::new();
    // Tables, hints and scratch space have their size after a few.
    for port in 0..100 {
        let stream = tunnel.open(port);
        tunnel.exchange();
        tunnel.client.send_data(stream, b"", true, &mut tunnel.up).unwrap();
        tunnel.exchange();
    }
    let stream = tunnel.open(5);
    let before = ALLOCATIONS.get();
    tunnel.exchange();
    assert!(ALLOCATIONS.get() - before <= 1, "{}", ALLOCATIONS.get() - before);
    assert!(tunnel.server.is_open(stream));
}

#[test]
fn idle_stream_holds_at_most_128_octets_for_both_ends() {
    let mut tunnel = Tunnel::new();
    tunnel.open(0);
    tunnel.exchange();
    let before = LIVE_BYTES.get();
    for port in 1..=1_000 {
        tunnel.open(port);
        tunnel.exchange();
    }
    assert_eq!(tunnel.server.stream_count(), 1_001);
    let each = (LIVE_BYTES.get() - before) / 1_000;
    assert!((1..=128).contains(&each), "{each}");
}

#[test]
fn idle_connection_is_small() {
    let before = LIVE_BYTES.get();
    let mut out = Vec::new();
    let connection = Connection::new(Config::hbone_server(), Instant::now(), &mut out);
    drop(out);
    let held = (LIVE_BYTES.get() - before).cast_unsigned() + size_of_val(&connection);
    assert!(held <= 1_024, "{held}");
}

#[test]
fn header_bomb_holds_less_than_its_wire_octets() {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    };
    let mut attack = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // No window for answers, then 100 streams of 30,000 one-octet references to a stored field.
    attack.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    let get = b"\x82\x86\x84\x01\x01a".as_slice();
    attack.extend(frame(1, 5, 1, &[get, b"\x40\x01x\x01y"].concat()));
    for number in 1..=100 {
        attack.extend(frame(1, 5, number * 2 + 1, &[get, &vec![0xbe; 30_000]].concat()));
    }
    assert!(attack.len() > 3_000_000);
    let mut out = Vec::with_capacity(1 << 20);
    let now = Instant::now();
    let before = LIVE_BYTES.get();
    let mut connection = Connection::new(Config::hbone_server(), now, &mut out);
    let mut input = attack.as_slice();
    let mut requests = Vec::new();
    let end = loop {
        match connection.next_event(&mut input, now, &mut out) {
            Ok(Some(Event::Headers { headers, .. })) => requests.push(headers),
            Ok(Some(_)) => {}
            Ok(None) => panic!("the attack was borne"),
            Err(error) => break error,
        }
    };
    assert_eq!(end.code(), ErrorCode::ENHANCE_YOUR_CALM);
    let held = LIVE_BYTES.get() - before;
    assert_eq!(requests.len(), 1);
    assert!(held < 64 * 1_024, "{held}");
}

#[test]
fn largest_accepted_requests_are_bounded_together() {
    // The most a peer can make us hold: every stream with as large a list as is accepted.
    let mut tunnel = Tunnel::new();
    let before = LIVE_BYTES.get();
    let mut held = Vec::new();
    let value = "v".repeat(1_000);
    for _ in 0..200 {
        let mut headers = Headers::connect("a:1").unwrap();
        for _ in 0..60 {
            headers.push("x", &value).unwrap();
        }
        tunnel.client.open(&headers, false, &mut tunnel.up).unwrap();
        let mut input = tunnel.up.0.as_slice();
        while let Some(event) =
            tunnel.server.next_event(&mut input, tunnel.now, &mut tunnel.down).expect("no error")
        {
            if let Event::Headers { headers, .. } = event {
                held.push(headers);
            }
        }
        tunnel.up.0.clear();
    }
    assert!((15..18).contains(&held.len()), "{}", held.len());
    let held = LIVE_BYTES.get() - before;
    assert!(held <= (1 << 20) + 64 * 1_024, "{held}");
}
