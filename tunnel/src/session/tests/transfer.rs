//! Large transfers: every byte arrives in its place, and no buffer grows beyond its bound.

use super::pair::Random;
use super::*;

/// The byte at a position of a stream's direction.
fn pattern(stream: StreamId, position: usize) -> u8 {
    (position ^ position >> 8 ^ position >> 16 ^ stream.0 as usize).to_le_bytes()[0]
}

/// What an application sends on one stream.
struct Source {
    stream: StreamId,
    sent: usize,
    total: usize,
    ended: bool,
}

impl Source {
    /// Offers the next piece, as a shell that has read it from a socket.
    fn pump(&mut self, end: &mut End, random: &mut Random) {
        if self.ended || end.session.output_is_full() {
            return;
        }
        let length = random.below(300_000).min(self.total - self.sent);
        let bytes: Vec<u8> = (self.sent..self.sent + length).map(|at| pattern(self.stream, at)).collect();
        let last = self.sent + length == self.total;
        let accepted = end.session.send_data(self.stream, &bytes, last).unwrap();
        self.sent += accepted;
        self.ended = last && accepted == length;
    }
}

#[test]
fn large_transfers_in_both_directions_arrive_whole_under_any_chunking() {
    const TOTAL: usize = 6_000_000;
    for seed in 0..4 {
        let mut pair = Pair::established(seed);
        if let Phase::Open(open) = &mut pair.client.session.phase {
            open.records().update_key_after(37);
        }
        let streams: Vec<_> = (0..3).map(|_| pair.client.session.open(&connect(), false).unwrap()).collect();
        pair.settle();
        for stream in &streams {
            pair.server.session.respond(*stream, &accept("").unwrap(), false).unwrap();
        }
        let sources = |total| -> Vec<Source> {
            streams.iter().map(|s| Source { stream: *s, sent: 0, total, ended: false }).collect()
        };
        let (mut up, mut down) = (sources(TOTAL), sources(TOTAL / 2));
        let mut turns = 0;
        while up.iter().chain(&down).any(|source| !source.ended) {
            for source in &mut up {
                source.pump(&mut pair.client, &mut pair.random);
            }
            for source in &mut down {
                source.pump(&mut pair.server, &mut pair.random);
            }
            for end in [&pair.client, &pair.server] {
                assert!(end.session.output_backlog() < OUTPUT_BYTES_FULL + 4 * 300_000, "seed {seed}");
            }
            for _ in 0..4 {
                pair.step(true).unwrap();
                pair.step(false).unwrap();
            }
            turns += 1;
            assert!(turns < 100_000, "seed {seed}: no progress");
        }
        pair.settle();
        for stream in &streams {
            for (end, total) in [(&pair.server, TOTAL), (&pair.client, TOTAL / 2)] {
                let (received, ended) = end.received(*stream);
                assert_eq!((received.len(), ended), (total, true), "seed {seed}");
                let wrong = received.iter().enumerate().position(|(at, byte)| *byte != pattern(*stream, at));
                assert_eq!(wrong, None, "seed {seed}");
            }
        }
        assert_eq!(pair.server.session.stream_count(), 0);
    }
}

#[test]
fn a_receiver_that_takes_nothing_stops_the_sender_at_its_window() {
    let (mut pair, stream) = tunnel(20);
    pair.server.unreleased = Some(Vec::new());
    let window = Config::hbone_server().initial_stream_window as usize;
    let mut accepted = 0;
    for _ in 0..100 {
        accepted += pair.client.session.send_data(stream, &vec![1; 100_000], false).unwrap();
        pair.settle();
    }
    assert_eq!(accepted, window);
    assert_eq!(pair.client.session.send_capacity(stream), 0);
    assert_eq!(pair.client.session.output_backlog(), 0, "what the peer has no window for is not kept here");

    for (stream, bytes) in pair.server.unreleased.take().unwrap() {
        pair.server.session.release(stream, bytes);
    }
    pair.settle();
    assert!(pair.client.seen.contains(&Seen::Writable(stream)));
    assert_eq!(pair.client.session.send_data(stream, &vec![1; 100_000], false), Ok(100_000));
}

#[test]
fn a_full_output_is_reported_before_more_is_read_from_applications() {
    let (mut pair, stream) = tunnel(21);
    let mut accepted = 0;
    while !pair.client.session.output_is_full() {
        accepted += pair.client.session.send_data(stream, &vec![1; 64 * 1024], false).unwrap();
    }
    assert!(accepted >= OUTPUT_BYTES_FULL - 64 * 1024);
    assert!(accepted <= OUTPUT_BYTES_FULL + 64 * 1024);
    assert!(!pair.client.session.input_is_blocked(), "a sender that waits still listens");
    pair.settle();
    assert!(!pair.client.session.output_is_full());
    assert_eq!(pair.server.received(stream).0.len(), accepted);
}
