//! The bounds of a node proxy: each is driven to its end, counted, and recovered from.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use dataplane::access_log::{CloseCause, Direction};
use dataplane::session::NodeOptions;
use dataplane::worker::DriverChoice;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use session_support::{
    Bed, PATIENCE, Setup, connect, exchange, inside, is_refused, is_reset, pattern, ping, pods,
};
use socket2::{Domain, Protocol, Socket, Type};

const LIMIT_HITS: &str = "corelane_limit_hits_total";

fn bed(options: NodeOptions) -> Bed {
    Bed::with(&pods(), &Setup { workers: 1, options, ..Setup::default() })
}

/// Waits until the metrics page says so.
fn until(bed: &Bed, what: &str, holds: impl Fn(&Bed) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds(bed) {
        assert!(Instant::now() < deadline, "waited in vain until {what}:\n{}", bed.metrics());
        std::thread::yield_now();
    }
}

fn hits(bed: &Bed, limit: &str) -> u64 {
    bed.metric(LIMIT_HITS, &[&format!("limit=\"{limit}\"")])
}

#[test]
fn idle_connections_are_cut_and_one_way_traffic_is_not_idle() {
    inside("idle_connections_are_cut_and_one_way_traffic_is_not_idle", || {
        let mut bed =
            bed(NodeOptions { idle_timeout: Some(Duration::from_secs(1)), ..NodeOptions::default() });
        let server = bed.serve("server", 8080, |mut socket, _| {
            let mut buffer = [0; 1024];
            while let Ok(1..) = socket.read(&mut buffer) {}
        });
        // Through a tunnel and in plain text.
        let idle = [bed.connect("client", server).unwrap(), bed.connect("plain", server).unwrap()];
        let mut busy = [bed.connect("client", server).unwrap(), bed.connect("plain", server).unwrap()];
        let mut cut = 0;
        let deadline = Instant::now() + PATIENCE;
        while cut < 3 {
            assert!(Instant::now() < deadline, "{cut} are cut");
            for socket in &mut busy {
                socket.write_all(b"x").unwrap();
            }
            std::thread::yield_now();
            // Out of one pod and into another, and the one in plain text.
            cut = hits(&bed, "idle_time");
        }
        assert!(idle.iter().all(is_reset));
        bed.ended(Direction::Outbound, CloseCause::IdleTimeout);
        bed.ended(Direction::Inbound, CloseCause::IdleTimeout);
        for socket in &mut busy {
            socket.write_all(b"x").unwrap();
        }
        assert_eq!(hits(&bed, "idle_time"), cut);
    });
}

#[test]
fn memory_that_runs_short_refuses_new_work_and_comes_back() {
    inside("memory_that_runs_short_refuses_new_work_and_comes_back", || {
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let options = NodeOptions { memory_max: 1 << 20, ..NodeOptions::default() };
            let mut bed = Bed::with(&pods(), &Setup { workers: 1, driver, options, ..Setup::default() });
            let (hand, taken) = channel();
            let server = bed.serve("server", 8080, move |mut socket, _| {
                socket.write_all(b"!").unwrap();
                hand.send(socket).unwrap();
            });
            let other = bed.serve_pieces("other", 8080);
            let neighbour = bed.connect("client", other).unwrap();
            ping(&neighbour).unwrap();
            // Applications that do not read, and clients that go on sending until they are cut.
            let mut held = Vec::new();
            for _ in 0..2 {
                let mut client = bed.connect("client", server).unwrap();
                client.read_exact(&mut [0]).unwrap();
                held.push((client, taken.recv_timeout(PATIENCE).unwrap()));
            }
            let bytes = pattern(1 << 20);
            let writers: Vec<_> = held
                .iter()
                .map(|(client, _)| {
                    let (mut client, bytes) = (client.try_clone().unwrap(), bytes.clone());
                    // Socket buffers and windows hold some; the rest ends in a reset.
                    std::thread::spawn(move || while client.write_all(&bytes).is_ok() {})
                })
                .collect();
            until(&bed, "memory runs short", |bed| hits(bed, "memory") > 0);
            bed.ended(Direction::Inbound, CloseCause::LimitReached);
            // Those who were there go on.
            ping(&neighbour).unwrap();
            let most = bed.metric("corelane_held_bytes", &[]);
            assert!(most < 4 << 20, "{most} bytes are held under a bound of 1 MiB");
            drop(held);
            for writer in writers {
                writer.join().unwrap();
            }
            until(&bed, "what was held is given back", |bed| {
                bed.metric("corelane_held_bytes", &[]) < 100_000
            });
            let fresh = bed.connect("client", other).unwrap();
            ping(&fresh).unwrap();
        }
    });
}

#[test]
fn new_work_is_refused_while_memory_is_short() {
    inside("new_work_is_refused_while_memory_is_short", || {
        // Room for the tunnel and the connections of one client, and not for those of another.
        let options = NodeOptions { memory_max: 26 * 1024, ..NodeOptions::default() };
        let bed = bed(options);
        let server = bed.serve_pieces("server", 8080);
        let socket = bed.connect("client", server).unwrap();
        ping(&socket).unwrap();
        let mut more = vec![socket];
        let refused = loop {
            match bed.connect("client", server).map(|socket| ping(&socket).map(|()| socket)) {
                Ok(Ok(socket)) => more.push(socket),
                refused => break refused,
            }
            assert!(more.len() < 100, "{}", bed.metrics());
        };
        assert!(matches!(refused, Ok(Err(_)) | Err(_)));
        assert!(hits(&bed, "memory") > 0);
        for socket in &more {
            ping(socket).unwrap();
        }
        drop(more);
        bed.until_idle();
        ping(&bed.connect("client", server).unwrap()).unwrap();
    });
}

#[test]
fn one_client_cannot_take_all_tunnels_and_silence_cannot_take_all_handshakes() {
    inside("one_client_cannot_take_all_tunnels_and_silence_cannot_take_all_handshakes", || {
        let tunnels = NodeOptions { tunnels_of_client_max: 2, ..NodeOptions::default() };
        let handshakes = NodeOptions { handshakes_max: 2, ..NodeOptions::default() };
        for (limit, options) in [("tunnels_of_client", tunnels), ("handshakes", handshakes)] {
            let bed = bed(options);
            let server = bed.serve_pieces("server", 8080);
            // A proved tunnel counts no more as a handshake.
            let socket = bed.connect("client", server).unwrap();
            ping(&socket).unwrap();
            let to = SocketAddr::new(bed.ip("server"), 15008);
            let mut silent = Vec::new();
            for accepted in 2..4 {
                silent.push(connect(bed.network("plain"), to).unwrap());
                until(&bed, "it is accepted", |bed| {
                    bed.metric("corelane_links_total", &["role=\"server\""]) == accepted
                });
            }
            let third = connect(bed.network("plain"), to);
            assert!(third.is_err() || third.is_ok_and(|socket| is_reset(&socket)), "{limit}");
            assert_eq!(hits(&bed, limit), 1);
            // Those of other clients, and of tunnels that are there, go on.
            ping(&socket).unwrap();
            if limit == "tunnels_of_client" {
                ping(&bed.connect("other", server).unwrap()).unwrap();
            }
            silent.pop();
            let raw = bed.raw(bed.ip("server"));
            until(&bed, "an accepted tunnel has ended", |bed| {
                bed.metric("corelane_accepted_tunnels_ended_total", &[]) > 0
            });
            let asked = tunnel::h2::Headers::connect("10.244.1.2:8080").unwrap();
            assert_eq!(raw.ask(vec![asked]), [200]);
        }
    });
}

#[test]
fn connections_that_arrive_without_descriptors_are_served_when_there_are_some() {
    inside("connections_that_arrive_without_descriptors_are_served_when_there_are_some", || {
        const CLIENTS: usize = 64;
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let setup = Setup { driver, ..Setup::default() };
            let bed = Bed::with(&pods(), &setup);
            let server = bed.serve_echo("server", 8080);
            let plain = bed.serve_echo("plain", 8080);
            // Everything that is made on first use.
            exchange(&bed.connect("client", server).unwrap(), b"x").unwrap();
            let clients: Vec<_> = bed
                .network("client")
                .within(|| {
                    let make = |_| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
                    (0..CLIENTS).map(make).collect()
                })
                .unwrap();
            let before = getrlimit(Resource::Nofile);
            // No descriptor more than there are now, in the whole process.
            let highest = std::fs::read_dir("/proc/self/fd").unwrap();
            let highest = highest.filter_map(|it| it.unwrap().file_name().to_str()?.parse::<u64>().ok());
            let tight = Rlimit { current: Some(highest.max().unwrap() + 1), maximum: before.maximum };
            setrlimit(Resource::Nofile, tight).unwrap();
            for (number, client) in clients.iter().enumerate() {
                let to = if number % 2 == 0 { server } else { plain };
                client.connect(&to.into()).unwrap();
            }
            until(&bed, "the workers rest", |bed| hits(bed, "descriptors") > 0);
            setrlimit(Resource::Nofile, before).unwrap();
            for client in clients {
                let client = TcpStream::from(client);
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                let answer = exchange(&client, b"late").unwrap();
                assert!(answer.ends_with(b" late"), "{answer:?}");
            }
            assert!(!is_refused(bed.network("client"), server));
        }
    });
}
