//! Two engines that talk to each other on virtual time, in pieces of any size; the tests of what only two ends show.
//!
//! The harness keeps a model of every direction of every stream and checks after each step that octets arrive as they
//! were sent, in order, none lost and none twice.

use super::connection::{Connection, Event};
use super::error::ErrorCode;
use super::frame::StreamId;
use super::{Config, Headers};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One direction of a stream.
#[derive(Debug, Default)]
struct Flow {
    sent: usize,
    received: usize,
    unreleased: usize,
    ended: bool,
    end_received: bool,
}

/// One end of the pair.
struct End {
    connection: Connection,
    /// Written, not yet delivered to the other end.
    in_flight: Vec<u8>,
    /// All that was ever delivered to the other end.
    delivered: Vec<u8>,
    /// What this end receives, by stream.
    incoming: BTreeMap<u32, Flow>,
    /// Streams that have had `Writable`, in order.
    turns: Vec<u32>,
    resets: usize,
    pongs: usize,
    drained: bool,
}

/// A client, a server, and the wire between them.
struct Pair {
    client: End,
    server: End,
    now: Instant,
}

/// The octet at a place of a stream.
fn octet(stream: u32, place: usize) -> u8 {
    (place.wrapping_mul(31) ^ (stream as usize).wrapping_mul(7)).to_le_bytes()[0]
}

impl End {
    fn new(config: Config, now: Instant) -> Self {
        let mut in_flight = Vec::new();
        let connection = Connection::new(config, now, &mut in_flight);
        Self {
            connection,
            in_flight,
            delivered: Vec::new(),
            incoming: BTreeMap::new(),
            turns: Vec::new(),
            resets: 0,
            pongs: 0,
            drained: false,
        }
    }

    fn receive(&mut self, bytes: &[u8], now: Instant) {
        let mut input = bytes;
        loop {
            let event = self.connection.next_event(&mut input, now, &mut self.in_flight);
            match event.expect("two engines keep the protocol") {
                None => break,
                Some(Event::Headers { stream, end_stream, .. }) => {
                    self.incoming.entry(stream.0).or_default().end_received = end_stream;
                }
                Some(Event::Trailers { stream, .. }) => {
                    self.incoming.get_mut(&stream.0).unwrap().end_received = true;
                }
                Some(Event::Data { stream, bytes, end_stream }) => {
                    let flow = self.incoming.get_mut(&stream.0).expect("headers come first");
                    assert!(!flow.end_received, "nothing follows the end");
                    for (offset, &found) in bytes.iter().enumerate() {
                        assert_eq!(found, octet(stream.0, flow.received + offset));
                    }
                    flow.received += bytes.len();
                    flow.unreleased += bytes.len();
                    flow.end_received = end_stream;
                }
                Some(Event::Reset { .. }) => self.resets += 1,
                Some(Event::Writable { stream }) => self.turns.push(stream.0),
                Some(Event::Pong { .. }) => self.pongs += 1,
                Some(Event::GoAway { .. }) => self.drained = true,
                Some(Event::SettingsChanged) => {}
            }
        }
        assert!(input.is_empty());
    }

    /// Sends on a stream; the receiver's model learns what is due.
    fn send(&mut self, peer: &mut Self, stream: u32, len: usize, ends: bool) -> usize {
        // The receiver may not have heard of the stream yet.
        let flow = peer.incoming.entry(stream).or_default();
        let bytes: Vec<u8> = (flow.sent..flow.sent + len).map(|place| octet(stream, place)).collect();
        let Ok(accepted) = self.connection.send_data(StreamId(stream), &bytes, ends, &mut self.in_flight)
        else {
            return 0;
        };
        flow.sent += accepted;
        flow.ended |= ends && accepted == len;
        accepted
    }

    /// Ends our side of a stream if it is still open.
    fn end(&mut self, peer: &mut Self, stream: u32) {
        if self.connection.is_sending(stream) {
            self.send(peer, stream, 0, true);
        }
    }

    /// Gives back up to `len` octets of a stream.
    fn release(&mut self, stream: u32, len: usize) {
        if let Some(flow) = self.incoming.get_mut(&stream) {
            let len = len.min(flow.unreleased);
            flow.unreleased -= len;
            self.connection.release(StreamId(stream), len, &mut self.in_flight);
        }
    }

    fn release_all(&mut self) {
        for stream in self.incoming.keys().copied().collect::<Vec<_>>() {
            self.release(stream, usize::MAX);
        }
    }
}

impl Connection {
    /// Whether our side of a stream is still open, for the model.
    fn is_sending(&self, stream: u32) -> bool {
        self.streams.get(stream).is_some_and(|found| !found.is(super::streams::state::LOCAL_ENDED))
    }
}

impl Pair {
    fn new(client: Config, server: Config) -> Self {
        let now = Instant::now();
        Self { client: End::new(client, now), server: End::new(server, now), now }
    }

    /// Ends whose windows stop every transfer soon; the stream window is below the protocol's default.
    fn with_small_windows() -> Self {
        let small = |config| Config {
            initial_stream_window: 3_000,
            connection_window: 70_000,
            header_table_size: 200,
            ..config
        };
        Self::new(small(Config::http_client()), small(Config::hbone_server()))
    }

    /// Delivers up to `len` octets in each direction.
    fn deliver(&mut self, len: usize) -> bool {
        let to_server = len.min(self.client.in_flight.len());
        let bytes: Vec<u8> = self.client.in_flight.drain(..to_server).collect();
        self.client.delivered.extend_from_slice(&bytes);
        self.server.receive(&bytes, self.now);
        let to_client = len.min(self.server.in_flight.len());
        let bytes: Vec<u8> = self.server.in_flight.drain(..to_client).collect();
        self.server.delivered.extend_from_slice(&bytes);
        self.client.receive(&bytes, self.now);
        to_server + to_client > 0
    }

    /// Delivers until nothing is in flight.
    fn settle(&mut self) {
        for _ in 0..1_000_000 {
            if !self.deliver(16_384) {
                return;
            }
        }
        panic!("the two ends never come to rest");
    }

    /// Opens a tunnel and lets the server accept it.
    fn open(&mut self) -> Option<u32> {
        let headers = Headers::connect("10.0.0.1:80").unwrap();
        self.client.connection.open(&headers, false, &mut self.client.in_flight).ok().map(|stream| stream.0)
    }

    fn respond(&mut self, stream: u32) {
        let headers = Headers::response(200).unwrap();
        // Refused if the stream is not there or was answered before.
        let _refused =
            self.server.connection.respond(StreamId(stream), &headers, false, &mut self.server.in_flight);
    }

    /// One step of a random session.
    fn step(&mut self, operation: u8, which: u8, len: u16) {
        let stream = u32::from(which % 8) * 2 + 1;
        let len = usize::from(len);
        let ends = which >= 240;
        let Self { client, server, .. } = self;
        match operation % 12 {
            0 if client.connection.next_stream < 16 => {
                self.open();
            }
            1 | 2 if client.connection.is_open(StreamId(stream)) => {
                client.send(server, stream, len, ends);
            }
            3 | 4 if server.connection.is_open(StreamId(stream)) => {
                server.send(client, stream, len, ends);
            }
            5 => self.respond(stream),
            6 => client.release(stream, len),
            7 => server.release(stream, len),
            8 if which > 250 => {
                client.connection.reset(StreamId(stream), ErrorCode::CANCEL, &mut client.in_flight);
            }
            8 if which > 245 => {
                server.connection.reset(StreamId(stream), ErrorCode::CANCEL, &mut server.in_flight);
            }
            9 => client.connection.ping([1; 8], &mut client.in_flight),
            10 => {
                // What is under way arrives before time passes: a peer that takes longer may be given up.
                self.settle();
                self.now += Duration::from_millis(u64::from(which) * 100);
                for end in [&mut self.client, &mut self.server] {
                    if end.connection.next_deadline().is_some_and(|deadline| deadline <= self.now) {
                        end.connection
                            .on_timer(self.now, &mut end.in_flight)
                            .expect("keepalive is answered in time");
                    }
                }
                self.settle();
            }
            _ => {
                self.deliver(len % 600 + 1);
            }
        }
    }

    /// Lets every stream run to its end and checks that nothing is lost or left.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.settle();
            self.client.release_all();
            self.server.release_all();
            for stream in (1..=15).step_by(2) {
                self.respond(stream);
                let Self { client, server, .. } = self;
                client.end(server, stream);
                server.end(client, stream);
            }
            if self.client.in_flight.is_empty() && self.server.in_flight.is_empty() {
                break;
            }
        }
        for end in [&self.client, &self.server] {
            assert_eq!(end.connection.stream_count(), 0);
            assert_eq!(end.connection.unreleased, 0);
            let (open, pending) = (end.connection.receive_window, end.connection.release_pending);
            assert_eq!(open + pending, end.connection.config.connection_window, "no credit is lost");
        }
        let windows = |from: &End, to: &End| (from.connection.send_window, to.connection.receive_window);
        for (sends, receives) in [windows(&self.client, &self.server), windows(&self.server, &self.client)] {
            assert_eq!(sends.cast_unsigned(), receives, "both ends agree on the window");
        }
    }
}

#[test]
fn fuzz_octets_in_are_octets_out_and_no_credit_is_lost() {
    bolero::check!().with_type::<Vec<(u8, u8, u16)>>().for_each(|steps| {
        let mut pair = Pair::with_small_windows();
        for &(operation, which, len) in steps {
            pair.step(operation, which, len);
        }
        let was_reset =
            pair.client.resets + pair.server.resets > 0 || steps.iter().any(|step| step.0 % 12 == 8);
        pair.finish();
        for end in [&pair.client, &pair.server] {
            for (stream, flow) in &end.incoming {
                assert!(flow.received <= flow.sent);
                assert!(was_reset || flow.received == flow.sent, "stream {stream}: {flow:?}");
                assert!(was_reset || flow.end_received == flow.ended);
            }
        }
    });
}

#[test]
fn every_way_of_cutting_the_wire_gives_the_same_octets() {
    for piece in [1, 2, 9, 10, 100, 16_384] {
        let mut pair = Pair::with_small_windows();
        let stream = pair.open().unwrap();
        let (mut up, mut down) = (5_000, 7_000);
        while up > 0 || down > 0 || pair.deliver(piece) {
            pair.deliver(piece);
            pair.respond(stream);
            let Pair { client, server, .. } = &mut pair;
            if client.connection.send_capacity(StreamId(stream)) > 0 {
                up -= client.send(server, stream, up, true);
            }
            if server.connection.send_capacity(StreamId(stream)) > 0 {
                down -= server.send(client, stream, down, true);
            }
            client.release_all();
            server.release_all();
        }
        assert_eq!(pair.server.incoming[&stream].received, 5_000);
        assert_eq!(pair.client.incoming[&stream].received, 7_000);
        pair.finish();
    }
}

#[test]
fn fuzz_damaged_sessions_end_in_order() {
    // A valid session of each direction, recorded once.
    let mut pair = Pair::with_small_windows();
    for step in 0..400_u16 {
        pair.step((step % 10).to_le_bytes()[0], (step * 7 % 230).to_le_bytes()[0], step * 3);
        pair.deliver(1_000);
    }
    pair.settle();
    let recorded = [pair.client.delivered, pair.server.delivered];
    let now = Instant::now();
    type Damage = (bool, Vec<(u16, u8)>, Vec<u8>, u8);
    bolero::check!().with_type::<Damage>().for_each(|(to_server, damage, tail, piece)| {
        let (config, recorded) = match to_server {
            true => (Config::http_server(), &recorded[0]),
            false => (Config::http_client(), &recorded[1]),
        };
        let mut bytes = recorded.clone();
        for &(place, octet) in damage {
            let place = usize::from(place) % bytes.len();
            bytes[place] = octet;
        }
        bytes.extend_from_slice(tail);
        let mut out = Vec::new();
        let mut connection = Connection::new(config, now, &mut out);
        if !to_server {
            let headers = Headers::connect("a:1").unwrap();
            for _ in 0..8 {
                connection.open(&headers, false, &mut out).unwrap();
            }
        }
        'session: for piece in bytes.chunks(usize::from(*piece) + 1) {
            let mut input = piece;
            loop {
                match connection.next_event(&mut input, now, &mut out) {
                    Ok(Some(Event::Data { stream, bytes, .. })) => {
                        connection.release(stream, bytes.len(), &mut out);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        let goaway = &out[out.len() - 17..];
                        assert_eq!((goaway[3], &goaway[13..]), (7, error.code().0.to_be_bytes().as_slice()));
                        break 'session;
                    }
                }
            }
            assert!(connection.stream_count() <= 200 && connection.receiver.held() <= 2 * 64 * 1_024);
        }
    });
}

#[test]
fn streams_take_turns_at_the_connection_window() {
    let mut pair =
        Pair::new(Config::http_client(), Config { connection_window: 65_535, ..Config::http_server() });
    pair.settle();
    let streams: Vec<u32> = (0..4).map(|_| pair.open().unwrap()).collect();
    for &stream in &streams {
        let Pair { client, server, .. } = &mut pair;
        client.send(server, stream, 1 << 20, false);
    }
    // The first took the whole window; from now on each turn goes to the one that waits longest, even though the
    // sender always tries all of them.
    let mut served = Vec::new();
    for _ in 0..12 {
        pair.settle();
        pair.server.release_all();
        pair.settle();
        for stream in std::mem::take(&mut pair.client.turns) {
            let Pair { client, server, .. } = &mut pair;
            if client.send(server, stream, 1 << 20, false) > 0 {
                served.push(stream);
            }
        }
    }
    assert!(served.len() >= 12);
    for round in served.chunks_exact(4) {
        let mut round = round.to_vec();
        round.sort_unstable();
        assert_eq!(round, streams, "{served:?}");
    }
}

#[test]
fn window_that_streams_do_not_hold_goes_round() {
    let window = 1 << 18;
    let server =
        Config { initial_stream_window: window, connection_window: 4 * window, ..Config::http_server() };
    let mut pair = Pair::new(Config::http_client(), server);
    pair.settle();
    let streams: Vec<u32> = (0..4).map(|_| pair.open().unwrap()).collect();
    for &stream in &streams {
        let Pair { client, server, .. } = &mut pair;
        assert_eq!(client.send(server, stream, window as usize, false), window as usize);
    }
    // The server's consumer takes what is on the first alone, which is less than half of the connection's window.
    let first = streams[0];
    for sent in 1..=8 {
        pair.settle();
        assert_eq!(pair.server.incoming[&first].received, sent * window as usize);
        pair.server.release(first, usize::MAX);
        pair.settle();
        let Pair { client, server, .. } = &mut pair;
        assert_eq!(client.send(server, first, window as usize, false), window as usize);
    }
    pair.finish();
}

#[test]
fn window_released_before_the_rest_was_used_up_goes_round() {
    let server = Config { connection_window: 65_535, ..Config::http_server() };
    let mut pair = Pair::new(Config::http_client(), server);
    pair.settle();
    let (first, second) = (pair.open().unwrap(), pair.open().unwrap());
    let Pair { client, server, .. } = &mut pair;
    assert_eq!(client.send(server, first, 20_000, false), 20_000);
    pair.settle();
    pair.server.release(first, usize::MAX);
    // Nobody takes this.
    let Pair { client, server, .. } = &mut pair;
    assert_eq!(client.send(server, second, 100_000, false), 45_535);
    pair.settle();
    assert_eq!(pair.client.connection.send_capacity(StreamId(first)), 20_000);
    pair.finish();
}

#[test]
fn stream_that_has_ended_its_side_is_not_told_to_send() {
    for ends in [false, true] {
        let mut pair = Pair::with_small_windows();
        pair.settle();
        let stream = pair.open().unwrap();
        let Pair { client, server, .. } = &mut pair;
        assert_eq!(client.send(server, stream, 4_000, false), 3_000);
        if ends {
            let trailers = Headers::trailers();
            client.connection.send_trailers(StreamId(stream), &trailers, &mut client.in_flight).unwrap();
        }
        pair.settle();
        pair.server.release_all();
        pair.settle();
        assert_eq!(pair.client.turns.len(), usize::from(!ends));
    }
}

#[test]
fn lowered_initial_window_stops_senders_until_it_is_made_up_for() {
    let mut pair = Pair::with_small_windows();
    let stream = pair.open().unwrap();
    // Sent before the server's SETTINGS are known: the default window applies.
    let Pair { client, server, .. } = &mut pair;
    assert_eq!(client.send(server, stream, 100_000, false), 65_535);
    pair.settle();
    assert_eq!(pair.client.connection.send_capacity(StreamId(stream)), 0);
    assert_eq!(pair.server.incoming[&stream].received, 65_535);
    assert!(pair.client.turns.is_empty());
    pair.server.release_all();
    pair.settle();
    assert_eq!(pair.client.turns, [stream]);
    assert_eq!(pair.client.connection.send_capacity(StreamId(stream)), 3_000);
}

#[test]
fn graceful_end_of_the_server_loses_no_request() {
    let mut pair = Pair::new(Config::http_client(), Config::http_server());
    pair.settle();
    let first = pair.open().unwrap();
    pair.settle();
    pair.server.connection.go_away(ErrorCode::NO_ERROR, pair.now, &mut pair.server.in_flight);
    // The client has not heard of it and opens another.
    let second = pair.open().unwrap();
    pair.settle();
    assert!(pair.open().is_none(), "the client knows now");
    assert!(pair.client.drained && !pair.client.connection.is_drained());
    assert_eq!(pair.client.resets, 0);
    for stream in [first, second] {
        pair.respond(stream);
        let Pair { client, server, .. } = &mut pair;
        client.send(server, stream, 10, true);
        server.send(client, stream, 10, true);
    }
    pair.settle();
    assert!(pair.client.connection.is_drained() && pair.server.connection.is_drained());
    assert_eq!(pair.client.incoming[&second].received, 10);
}

#[test]
fn streams_beyond_the_last_one_are_refused_and_may_be_retried() {
    let mut pair = Pair::new(Config::http_client(), Config::http_server());
    pair.settle();
    pair.open().unwrap();
    pair.settle();
    pair.server.connection.go_away(ErrorCode::ENHANCE_YOUR_CALM, pair.now, &mut pair.server.in_flight);
    pair.open().unwrap();
    pair.settle();
    assert_eq!((pair.client.resets, pair.client.connection.stream_count()), (1, 1));
    assert_eq!(pair.server.connection.stream_count(), 1);
}

#[test]
fn identifiers_run_out_without_wrapping() {
    let mut pair = Pair::new(Config::http_client(), Config::http_server());
    pair.settle();
    pair.client.connection.next_stream = StreamId::MAX;
    let last = pair.open().unwrap();
    assert_eq!(last, StreamId::MAX);
    assert!(pair.open().is_none());
    pair.settle();
    assert_eq!(pair.server.connection.stream_count(), 1);
}

#[test]
fn pings_of_the_caller_come_back_and_keepalive_stays_inside() {
    let mut pair = Pair::new(Config::hbone_client(), Config::hbone_server());
    pair.client.connection.ping([7; 8], &mut pair.client.in_flight);
    pair.settle();
    assert_eq!(pair.client.pongs, 1);
    for _ in 0..10 {
        pair.now = pair.client.connection.next_deadline().unwrap();
        pair.client.connection.on_timer(pair.now, &mut pair.client.in_flight).unwrap();
        pair.server.connection.on_timer(pair.now, &mut pair.server.in_flight).unwrap();
        pair.settle();
    }
    assert_eq!((pair.client.pongs, pair.server.pongs), (1, 0));
}
