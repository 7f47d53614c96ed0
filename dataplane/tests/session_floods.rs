//! Floods on the ports of a node proxy: the flooder is stopped, memory stays, and neighbours go on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod flood_support;
mod session_support;

use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use flood_support::{Neighbour, Peer, block, floods, frame, large_requests, withstand};
use session_support::{Bed, Pki, Setup, inside, ping, pods};

/// What one connection may cost, and some for the process around it.
const MEMORY_MAX: usize = 8 << 20;

fn pings(bed: &Bed, pod: &str, server: SocketAddr) -> Neighbour {
    let socket = bed.connect(pod, server).unwrap();
    socket.set_nodelay(true).unwrap();
    Neighbour::new(move || ping(&socket).unwrap())
}

#[test]
fn floods_of_a_tunnel_are_stopped() {
    inside("floods_of_a_tunnel_are_stopped", || {
        let bed = Bed::with(&pods(), &Setup { workers: 1, ..Setup::default() });
        let server = bed.serve_pieces("server", 8080);
        let head = block(&[(":method", "CONNECT"), (":authority", &server.to_string())]);
        let listener = SocketAddr::new(bed.ip("server"), 15008);
        // The application of the test keeps a thread for each connection.
        let memory_max = MEMORY_MAX + (2 << 20);
        withstand(pings(&bed, "other", server), std::process::id(), floods(&head), memory_max, || {
            let leaf = bed.pki.leaf(&["spiffe://cluster.local/ns/app/sa/raw"], 2090);
            let config = Pki::client(leaf, &rustls::version::TLS13);
            Peer::tls(bed.connect("plain", listener).unwrap(), config)
        });
        bed.until_idle();
    });
}

#[test]
fn a_request_that_is_taken_back_at_once_reaches_nobody() {
    inside("a_request_that_is_taken_back_at_once_reaches_nobody", || {
        let bed = Bed::with(&pods(), &Setup { workers: 1, ..Setup::default() });
        let (tell, told) = channel();
        let server = bed.serve("server", 8080, move |_, _| tell.send(()).unwrap());
        let head = block(&[(":method", "CONNECT"), (":authority", &server.to_string())]);
        let leaf = bed.pki.leaf(&["spiffe://cluster.local/ns/app/sa/raw"], 2090);
        let socket = bed.connect("plain", SocketAddr::new(bed.ip("server"), 15008)).unwrap();
        let mut peer = Peer::tls(socket, Pki::client(leaf, &rustls::version::TLS13));
        let asked = |stream: u32| frame(1, 4, stream, &head);
        for number in 0..100 {
            let stream = 2 * number + 1;
            // Both in one record, so they are read together.
            assert!(peer.send(&[asked(stream), frame(3, 0, stream, &8_u32.to_be_bytes())].concat()));
        }
        assert!(peer.exchange(&asked(201)), "the tunnel goes on");
        told.recv_timeout(session_support::PATIENCE).unwrap();
        assert_eq!(told.try_iter().count(), 0, "nobody else was dialled");
        drop(peer);
        bed.until_idle();
    });
}

/// GET of http://a/ and of http://a/secret, without touching the table.
const ALLOWED: &[u8] = b"\x82\x86\x84\x01\x01a";
const DENIED: &[u8] = b"\x82\x86\x04\x07/secret\x01\x01a";

#[test]
fn floods_of_requests_are_stopped() {
    inside("floods_of_requests_are_stopped", || {
        let rules = "[{ to: [{ operation: { paths: ['/*'], notPaths: [/secret] } }] }]";
        let yaml = pods() + &session_support::policy("all", "ALLOW", rules);
        let bed = Bed::with(&yaml, &Setup { workers: 1, ..Setup::default() });
        let server = bed.serve_http2("server", 8080, channel().0);
        // Its owner asks nothing of requests.
        let bytes = bed.serve_pieces("other", 8080);
        // What is allowed is held by us on the way in and on the way out, and by the application of the test, too.
        for (pod, head, memory_max) in [
            ("plain", DENIED, MEMORY_MAX),
            ("client", DENIED, MEMORY_MAX),
            ("client", ALLOWED, 3 * MEMORY_MAX),
        ] {
            println!("from {pod}:");
            let connect = || Peer::clear(bed.connect(pod, server).unwrap());
            let neighbour = pings(&bed, "client", bytes);
            withstand(neighbour, std::process::id(), floods(head), memory_max, connect);
        }
        bed.until_idle();
    });
}

#[test]
fn the_heads_of_requests_count_as_memory_for_as_long_as_they_run() {
    inside("the_heads_of_requests_count_as_memory_for_as_long_as_they_run", || {
        let rules = "[{ to: [{ operation: { paths: ['/*'] } }] }]";
        let yaml = pods() + &session_support::policy("all", "ALLOW", rules);
        let bed = Bed::with(&yaml, &Setup { workers: 1, ..Setup::default() });
        let server = bed.serve_http2("server", 8080, channel().0);
        let held = || bed.metric("corelane_held_bytes", &[]);
        let before = held();
        let head =
            block(&[(":method", "GET"), (":scheme", "http"), (":authority", "web"), (":path", "/hold")]);
        let mut peer = Peer::clear(bed.connect("plain", server).unwrap());
        assert!(peer.send(&large_requests(&head, 50)));
        let until = |what: &str, holds: &dyn Fn(u64) -> bool| {
            let deadline = Instant::now() + session_support::PATIENCE;
            while !holds(held().saturating_sub(before)) {
                assert!(Instant::now() < deadline, "{what}: {} bytes", held() - before);
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        until("they are counted", &|held| held > 17 * 14 * 4_000);
        drop(peer);
        until("they are given back", &|held| held < 100_000);
        bed.until_idle();
    });
}
