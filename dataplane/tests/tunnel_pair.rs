//! `corelane tunnel client` and `server` against each other, over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // helpers of tests

mod tunnel_support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use sha2::{Digest, Sha256};
use tunnel_support::*;

const DRIVERS: [&str; 2] = ["io_uring", "epoll"];

/// io_uring where this machine allows it, and epoll everywhere.
fn on_each_driver(test: impl Fn(&str)) {
    for driver in DRIVERS {
        if driver == "io_uring" && dataplane::preflight::probe_io_uring().is_err() {
            eprintln!("io_uring is denied here; only epoll is tried");
            continue;
        }
        test(driver);
    }
}

#[test]
fn ten_thousand_small_requests_on_many_connections_come_back_unchanged() {
    const CONNECTIONS: u64 = 250;
    const REQUESTS: u64 = 40;
    on_each_driver(|driver| {
        let pair = Pair::new(echo(), &["--driver", driver]);
        let at = pair.at;
        let threads: Vec<_> = (0..10)
            .map(|part| {
                thread::spawn(move || {
                    for connection in (0..CONNECTIONS).filter(|number| number % 10 == part) {
                        let mut stream = dial(at);
                        for request in 0..REQUESTS {
                            let bytes = pattern(
                                connection * 1_000 + request,
                                1 + usize::try_from(request * 37 % 900).unwrap(),
                            );
                            stream.write_all(&bytes).unwrap();
                            let mut answer = vec![0; bytes.len()];
                            stream.read_exact(&mut answer).unwrap();
                            assert!(answer == bytes, "connection {connection}, request {request}");
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn bulk_passes_both_ways_at_once_with_every_byte() {
    const BYTES: usize = 32 * 1024 * 1024;
    on_each_driver(|driver| {
        let pair = Pair::new(echo(), &["--driver", driver]);
        let mut stream = pair.connect();
        let mut writing = stream.try_clone().unwrap();
        let writer = thread::spawn(move || {
            let bytes = pattern(7, BYTES);
            writing.write_all(&bytes).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
            Sha256::digest(&bytes)
        });
        let mut received = Sha256::new();
        let mut total = 0;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let count = read_some(&mut stream, &mut buffer).unwrap();
            if count == 0 {
                break;
            }
            total += count;
            received.update(&buffer[..count]);
        }
        assert_eq!(total, BYTES);
        assert_eq!(received.finalize(), writer.join().unwrap());
    });
}

#[test]
fn a_slow_reader_holds_its_sender_back_and_nobody_else() {
    // More than all windows and socket buffers of the path together.
    const BYTES: usize = 48 * 1024 * 1024;
    let (ready, go) = channel::<()>();
    let go = Arc::new(Mutex::new(go));
    let lazy = application(move |mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        if first == *b"s" {
            go.lock().unwrap().recv().unwrap();
        }
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&(all.len() as u64).to_be_bytes()).unwrap();
    });
    let pair = Pair::new(lazy, &["--workers", "1"]);
    let mut slow = pair.connect();
    let mut writing = slow.try_clone().unwrap();
    let writer = thread::spawn(move || {
        writing.write_all(b"s").unwrap();
        writing.write_all(&vec![1; BYTES]).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    for _ in 0..20 {
        let mut quick = pair.connect();
        quick.write_all(b"qabc").unwrap();
        quick.shutdown(Shutdown::Write).unwrap();
        let mut answer = [0; 8];
        quick.read_exact(&mut answer).unwrap();
        assert_eq!(u64::from_be_bytes(answer), 3);
    }
    assert!(!writer.is_finished(), "the tunnel has swallowed {BYTES} bytes that nobody reads");
    ready.send(()).unwrap();
    writer.join().unwrap();
    let mut answer = [0; 8];
    slow.read_exact(&mut answer).unwrap();
    assert_eq!(u64::from_be_bytes(answer), BYTES as u64);
}

#[test]
fn each_direction_ends_by_itself() {
    on_each_driver(|driver| {
        // Ends its direction at once, then tells what it received after that.
        let (tell, told) = channel();
        let tell = Arc::new(Mutex::new(tell));
        let server_first = application(move |mut stream| {
            stream.write_all(b"bye").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            tell.lock().unwrap().send(rest).unwrap();
        });
        let pair = Pair::new(server_first, &["--driver", driver]);
        let mut stream = pair.connect();
        let mut greeting = Vec::new();
        stream.read_to_end(&mut greeting).unwrap();
        assert_eq!(greeting, b"bye");
        stream.write_all(b"still here").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), b"still here");

        // Answers only after the end of the request.
        let client_first = application(|mut stream| {
            let mut request = Vec::new();
            stream.read_to_end(&mut request).unwrap();
            request.reverse();
            stream.write_all(&request).unwrap();
        });
        let pair = Pair::new(client_first, &["--driver", driver]);
        let mut stream = pair.connect();
        stream.write_all(b"abc").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"cba");
    });
}

#[test]
fn a_reset_of_the_application_reaches_the_other_end_as_a_reset() {
    on_each_driver(|driver| {
        let resetting = application(|mut stream| {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        });
        let pair = Pair::new(resetting, &["--driver", driver]);
        let mut stream = pair.connect();
        stream.write_all(b"x").unwrap();
        let error = read_some(&mut stream, &mut [0; 16]).expect_err("a reset must not look like the end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_refused_upstream_closes_the_downstream_and_the_tunnel_goes_on() {
    let good = echo();
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let mut pair = Pair::new(closed, &[]);
    let mut stream = pair.connect();
    let end = read_some(&mut stream, &mut [0; 1]);
    assert!(end.is_err() || end.unwrap() == 0);
    pair.server.wait_for("refuses connections");
    assert!(pair.client.wait_for("no stream").contains("503"));

    // The same server, asked for something that is there.
    let files = pair.pki.issue("second", CLIENT);
    let (at, peer, authority) = (address().to_string(), pair.server_at.to_string(), good.to_string());
    let arguments = ["--listen", &at, "--peer", &peer, "--authority", &authority, "--peer-identity", SERVER];
    let _client = start("client", &files, &arguments);
    let mut stream = dial(at.parse().unwrap());
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

#[test]
fn sigterm_lets_connections_end_and_takes_no_new_ones() {
    on_each_driver(|driver| {
        let mut pair = Pair::new(echo(), &["--driver", driver, "--grace", "25"]);
        let mut stream = pair.connect();
        let mut byte = [0];
        stream.write_all(b"1").unwrap();
        stream.read_exact(&mut byte).unwrap();
        pair.server.terminate();
        pair.client.terminate();
        pair.server.wait_for("draining");
        pair.client.wait_for("draining");
        for _ in 0..3 {
            stream.write_all(b"2").unwrap();
            stream.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"2");
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_some(&mut stream, &mut byte).unwrap(), 0);
        drop(stream);
        assert_eq!(pair.client.wait(), Some(0));
        assert_eq!(pair.server.wait(), Some(0));
        assert!(std::net::TcpStream::connect(pair.at).is_err());
    });
}

#[test]
fn a_drain_cuts_what_outlives_its_grace() {
    let mut pair = Pair::new(echo(), &["--grace", "0"]);
    let mut stream = pair.connect();
    let mut byte = [0];
    stream.write_all(b"1").unwrap();
    stream.read_exact(&mut byte).unwrap();
    pair.client.terminate();
    assert_eq!(pair.client.wait(), Some(0));
    let end = read_some(&mut stream, &mut byte);
    assert!(end.is_err() || end.unwrap() == 0);
}
