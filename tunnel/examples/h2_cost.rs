//! What the engine costs per 64-octet exchange: run under `valgrind --tool=callgrind` or `perf stat`.
//!
//! 64 streams of one connection; each round a client sends 64 octets on every stream and a server echoes them.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stdout)] // a tool for developers

use std::time::Instant;
use tunnel::h2::{Config, Connection, Event, Headers, StreamId};

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(100_000, |text| text.parse().expect("rounds"));
    let now = Instant::now();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut client = Connection::new(Config::hbone_client(), now, &mut up);
    let mut server = Connection::new(Config::hbone_server(), now, &mut down);
    let request = Headers::connect("10.0.0.1:80").unwrap();
    let accepted = Headers::response(200).unwrap();
    let streams: Vec<StreamId> =
        (0..64).map(|_| client.open(&request, false, &mut up).expect("open")).collect();
    let mut octets = 0;
    let started = Instant::now();
    for _ in 0..=rounds {
        let mut input = up.as_slice();
        while let Some(event) = server.next_event(&mut input, now, &mut down).expect("server") {
            match event {
                Event::Headers { stream, .. } => {
                    server.respond(stream, &accepted, false, &mut down).expect("respond");
                }
                Event::Data { stream, bytes, .. } => {
                    server.release(stream, bytes.len(), &mut down);
                    server.send_data(stream, bytes, false, &mut down).expect("echo");
                }
                _ => {}
            }
        }
        up.clear();
        let mut input = down.as_slice();
        while let Some(event) = client.next_event(&mut input, now, &mut up).expect("client") {
            if let Event::Data { stream, bytes, .. } = event {
                octets += bytes.len();
                client.release(stream, bytes.len(), &mut up);
            }
        }
        down.clear();
        for &stream in &streams {
            client.send_data(stream, &[7; 64], false, &mut up).expect("send");
        }
    }
    let exchanges = octets / 64;
    let each = started.elapsed().as_nanos() / exchanges.max(1) as u128;
    println!("{exchanges} exchanges, {each} ns each (both ends, 2 DATA frames)");
}
