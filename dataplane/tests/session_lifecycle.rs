//! Pods that come and go, applications that do not read, and the end of the node proxy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use dataplane::access_log::{CloseCause, Direction};
use dataplane::session::{Node, NodeOptions};
use dataplane::worker::DriverChoice;
use session_support::http::Client;
use session_support::{
    Bed, PATIENCE, Setup, connect, inside, is_refused, is_reset, pattern, ping, pods, policy,
};
use xds::control::desired::ResourceKind;

/// Comings and goings of one pod.
const ROUNDS: usize = 50;

/// More than all buffers between two applications hold.
const BULK_BYTES: usize = 48 * 1024 * 1024;

fn open(bed: &Bed, pod: &str, to: SocketAddr) -> TcpStream {
    let socket = bed.connect(pod, to).unwrap();
    ping(&socket).unwrap();
    socket
}

#[test]
fn a_pod_that_leaves_takes_its_connections_and_no_others() {
    inside("a_pod_that_leaves_takes_its_connections_and_no_others", || {
        let mut bed = Bed::new(&pods());
        let (server, other) = (bed.serve_pieces("server", 8080), bed.serve_pieces("other", 8080));
        let doomed = [open(&bed, "client", server), open(&bed, "plain", server), open(&bed, "server", other)];
        let spared = open(&bed, "client", other);
        bed.remove("server");
        for socket in &doomed {
            assert!(is_reset(socket));
        }
        ping(&spared).unwrap();
        bed.ended(Direction::Inbound, CloseCause::Drained);
        bed.ended(Direction::Outbound, CloseCause::Drained);
        // Nobody listens for it any more, on any worker.
        let tunnel = SocketAddr::new(bed.ip("server"), 15008);
        for _ in 0..8 {
            assert!(connect(bed.network("plain"), tunnel).is_err());
        }
        bed.add("server");
        ping(&open(&bed, "client", server)).unwrap();
    });
}

#[test]
fn pods_that_come_and_go_leave_no_descriptor_behind() {
    inside("pods_that_come_and_go_leave_no_descriptor_behind", || {
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let mut bed = Bed::with(&pods(), &Setup { driver, ..Setup::default() });
            let (server, other) = (bed.serve_pieces("server", 8080), bed.serve_pieces("other", 8080));
            let mut before = None;
            for round in 0..ROUNDS {
                let sockets =
                    [open(&bed, "client", server), open(&bed, "plain", server), open(&bed, "server", other)];
                bed.remove("server");
                assert!(sockets.iter().all(is_reset));
                drop(sockets);
                bed.until("nothing is open", Node::live_connections, |live| live.iter().all(|it| *it == 0));
                // By then what is made on first use has been made.
                if round == 4 {
                    before = Some(bed.descriptors());
                }
                bed.add("server");
            }
            bed.remove("server");
            bed.until_descriptors(before.unwrap());
        }
    });
}

#[test]
fn connections_end_without_leaving_descriptors_behind() {
    inside("connections_end_without_leaving_descriptors_behind", || {
        let bed = Bed::with(&pods(), &Setup { workers: 1, ..Setup::default() });
        let (server, plain) = (bed.serve_pieces("server", 8080), bed.serve_pieces("plain", 8080));
        let mut before = 0;
        for round in 0..ROUNDS {
            for to in [server, plain] {
                drop((open(&bed, "client", to), open(&bed, "plain", to)));
            }
            bed.until_idle();
            if round == 4 {
                before = bed.descriptors();
            }
        }
        bed.until_descriptors(before);
    });
}

#[test]
fn a_cut_reaches_an_application_that_does_not_read() {
    inside("a_cut_reaches_an_application_that_does_not_read", || {
        let mut bed = Bed::new(&pods());
        let (hand, taken) = channel();
        let server = bed.serve("server", 8080, move |mut socket, _| {
            socket.write_all(b"!").unwrap();
            hand.send(socket).unwrap();
        });
        let mut client = bed.connect("client", server).unwrap();
        client.read_exact(&mut [0]).unwrap();
        let application = taken.recv_timeout(PATIENCE).unwrap();
        // Until nothing more fits anywhere on the way.
        client.set_nonblocking(true).unwrap();
        let bytes = pattern(1 << 20);
        let mut full = 0;
        while full < 1000 {
            match client.write(&bytes) {
                Ok(_) => full = 0,
                Err(_) => full += 1,
            }
            std::thread::yield_now();
        }
        client.set_nonblocking(false).unwrap();
        bed.apply(&(pods() + &policy("deny", "DENY", "[{}]")));
        assert!(is_reset(&client));
        assert!(is_reset(&application));
        bed.until_idle();
    });
}

/// A server that sends [`BULK_BYTES`] at the pace of its reader, and a client that has read the first of them.
fn bulk(bed: &Bed) -> TcpStream {
    let server = bed.serve("server", 8080, |mut socket, _| {
        // The client may be cut.
        let _ = socket.write_all(&pattern(BULK_BYTES));
    });
    let mut client = bed.connect("client", server).unwrap();
    let mut first = [0];
    client.read_exact(&mut first).unwrap();
    client
}

#[test]
fn a_drain_lets_a_transfer_finish() {
    inside("a_drain_lets_a_transfer_finish", || {
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let mut bed = Bed::with(&pods(), &Setup { driver, ..Setup::default() });
            let mut client = bulk(&bed);
            let tunnel = SocketAddr::new(bed.ip("server"), 15008);
            bed.drain(PATIENCE);
            // No new connections; what is open goes on.
            let deadline = Instant::now() + PATIENCE;
            while connect(bed.network("plain"), tunnel).is_ok() {
                assert!(Instant::now() < deadline, "it still listens");
            }
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).unwrap();
            assert!(rest == pattern(BULK_BYTES)[1..], "{} bytes", rest.len());
            drop(client);
            bed.join();
            let record = bed.ended(Direction::Outbound, CloseCause::Finished);
            assert_eq!(record.bytes_received, BULK_BYTES as u64);
        }
    });
}

#[test]
fn what_does_not_end_by_the_deadline_of_a_drain_is_cut_and_logged() {
    inside("what_does_not_end_by_the_deadline_of_a_drain_is_cut_and_logged", || {
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let mut bed = Bed::with(&pods(), &Setup { driver, ..Setup::default() });
            let client = bulk(&bed);
            let plain = bed.serve_pieces("plain", 8080);
            let quiet = open(&bed, "client", plain);
            bed.drain(Duration::from_millis(500));
            assert!(is_reset(&quiet));
            bed.join();
            assert!(is_reset(&client), "a cut transfer must not look whole");
            for _ in 0..2 {
                bed.ended(Direction::Outbound, CloseCause::Drained);
            }
            bed.ended(Direction::Inbound, CloseCause::Drained);
        }
    });
}

#[test]
fn the_books_are_kept_while_a_drain_lasts() {
    inside("the_books_are_kept_while_a_drain_lasts", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_pieces("server", 8080);
        let held = open(&bed, "client", server);
        bed.drain(2 * PATIENCE);
        let tunnel = SocketAddr::new(bed.ip("server"), 15008);
        let deadline = Instant::now() + PATIENCE;
        while connect(bed.network("plain"), tunnel).is_ok() {
            assert!(Instant::now() < deadline, "it still listens");
        }
        ping(&held).unwrap();
        // Two pings, of a connection that is still open.
        while bed.metric("istio_tcp_sent_bytes_total", &["reporter=\"source\""]) < 8 {
            assert!(Instant::now() < deadline, "{}", bed.metrics());
            std::thread::yield_now();
        }
        ping(&held).unwrap();
        drop(held);
        bed.join();
    });
}

#[test]
fn a_drain_without_patience_logs_what_it_cuts() {
    inside("a_drain_without_patience_logs_what_it_cuts", || {
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            // Workers are told one after the other: the other end of a connection may be cut before its turn comes.
            let mut bed = Bed::with(&pods(), &Setup { driver, workers: 1, ..Setup::default() });
            let (other, plain) = (bed.serve_pieces("other", 8080), bed.serve_pieces("plain", 8080));
            let cut = [bulk(&bed), open(&bed, "client", other), open(&bed, "client", plain)];
            bed.drain(Duration::ZERO);
            assert!(cut.iter().all(is_reset));
            bed.join();
            for _ in 0..3 {
                bed.ended(Direction::Outbound, CloseCause::Drained);
            }
            for _ in 0..2 {
                bed.ended(Direction::Inbound, CloseCause::Drained);
            }
        }
    });
}

#[test]
fn a_drain_ends_http_connections_after_the_request_in_flight() {
    inside("a_drain_ends_http_connections_after_the_request_in_flight", || {
        let rules = "[{ to: [{ operation: { paths: ['/v1/*'] } }] }]";
        let mut bed = Bed::new(&(pods() + &policy("paths", "ALLOW", rules)));
        let (tell, told) = channel();
        let server = bed.serve_http("server", 8080, tell);
        let mut idle = bed.client("client", server);
        assert_eq!(idle.get("/v1/a").status, 200);
        let mut busy = Client::new(bed.connect("client", server).unwrap());
        busy.send("POST /v1/b HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\n").unwrap();
        while told.recv_timeout(PATIENCE).unwrap() != "POST /v1/b HTTP/1.1" {}
        bed.drain(PATIENCE);
        assert_eq!(idle.rest().unwrap(), b"");
        drop(idle);
        busy.send("abc").unwrap();
        let answer = busy.response().unwrap();
        assert!(answer.status == 200 && answer.closes(), "{answer:?}");
        assert_eq!(busy.rest().unwrap(), b"");
        drop(busy);
        bed.join();
    });
}

#[test]
fn connections_beyond_the_limit_are_refused_and_counted() {
    inside("connections_beyond_the_limit_are_refused_and_counted", || {
        let options = NodeOptions { connections_max: 6, ..NodeOptions::default() };
        let bed = Bed::with(&pods(), &Setup { workers: 1, options, ..Setup::default() });
        let server = bed.serve_pieces("server", 8080);
        // Each is three of them here: out of one pod, the tunnel, and into the other pod.
        let held = [open(&bed, "client", server), open(&bed, "other", server)];
        assert!(is_refused(bed.network("client"), server));
        assert!(is_refused(bed.network("plain"), server));
        assert!(bed.metric("corelane_limit_hits_total", &["connections"]) >= 2, "{}", bed.metrics());
        for socket in &held {
            ping(socket).unwrap();
        }
        drop(held);
        bed.until_idle();
        ping(&open(&bed, "client", server)).unwrap();
    });
}

#[test]
fn a_state_asks_again_only_for_connections_whose_grounds_it_changes() {
    inside("a_state_asks_again_only_for_connections_whose_grounds_it_changes", || {
        let allow = policy("clients", "ALLOW", "[{ to: [{ operation: { ports: ['8080'] } }] }]");
        let mut bed = Bed::new(&(pods() + &allow));
        let (server, other) = (bed.serve_pieces("server", 8080), bed.serve_pieces("other", 8080));
        let to_server = [open(&bed, "client", server), open(&bed, "other", server)];
        let to_other = [open(&bed, "client", other), open(&bed, "server", other), open(&bed, "plain", other)];
        let asked = |bed: &Bed| bed.ask(Node::connections_asked_again).iter().sum::<u64>();
        let before = asked(&bed);
        // Nothing, a workload that they do not lead to, and a policy that concerns nobody here.
        bed.publish();
        bed.change_workload("client", |workload| workload.name = "client".into());
        bed.change_workload("client", |workload| workload.canonical_revision = "v2".into());
        bed.apply(
            &(pods() + &allow + &policy("elsewhere", "DENY", "[{}]").replace("app: server", "app: nobody")),
        );
        assert_eq!(asked(&bed) - before, 0);
        // Their own workload: those to it, and no others.
        bed.change_workload("other", |workload| workload.canonical_revision = "v2".into());
        assert_eq!(asked(&bed) - before, 3);
        // Their policies.
        bed.apply(
            &(pods() + &allow + &policy("nobody", "DENY", "[{ to: [{ operation: { ports: ['1'] } }] }]")),
        );
        let after = asked(&bed) - before;
        assert!(after >= 5, "{after}");
        for socket in to_server.iter().chain(&to_other) {
            ping(socket).unwrap();
        }
        bed.apply(&(pods() + &policy("nobody", "DENY", "[{ to: [{ operation: { ports: ['8080'] } }] }]")));
        for socket in &to_server {
            assert!(is_reset(socket));
        }
        for socket in &to_other {
            ping(socket).unwrap();
        }
    });
}

#[test]
fn metric_series_go_with_the_workloads_that_they_name() {
    inside("metric_series_go_with_the_workloads_that_they_name", || {
        let mut bed = Bed::new(&pods());
        let (server, other) = (bed.serve_pieces("server", 8080), bed.serve_pieces("other", 8080));
        ping(&open(&bed, "client", other)).unwrap();
        bed.until_idle();
        let series =
            |bed: &Bed| bed.metrics().lines().filter(|line| line.starts_with("istio_tcp_conn")).count();
        let before = series(&bed);
        for _ in 0..3 {
            ping(&open(&bed, "client", server)).unwrap();
        }
        bed.until_idle();
        let both = ["reporter=\"source\"", "destination_workload=\"server\""];
        assert_eq!(bed.metric("istio_tcp_connections_opened_total", &both), 3, "{}", bed.metrics());
        assert!(series(&bed) > before);
        let uid = bed.local("server").uid;
        bed.lose(ResourceKind::Address, &uid);
        let deadline = Instant::now() + PATIENCE;
        while series(&bed) != before {
            assert!(Instant::now() < deadline, "{before} series at first, now\n{}", bed.metrics());
            std::thread::yield_now();
        }
        assert!(bed.metric("corelane_connections_ended_total", &["finished"]) >= 8, "{}", bed.metrics());
        let dialled = Instant::now() + PATIENCE;
        while bed.metric("corelane_links_total", &["client"]) == 0 {
            assert!(Instant::now() < dialled, "{}", bed.metrics());
            std::thread::yield_now();
        }
        assert!(bed.metric("corelane_streams_total", &["client"]) >= 4, "{}", bed.metrics());
    });
}
