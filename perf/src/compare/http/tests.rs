//! Load against the backend, and against servers that are wrong or slow.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use super::backend::Backend;
use super::client::{Client, Target, status_of, until_answered, until_status};
use super::crowd;
use super::{Ask, Load};

const SHORT: Duration = Duration::from_millis(100);

fn target(address: SocketAddr) -> Target {
    let (host, path) = ("app".to_owned(), "/v1/blue/users/".to_owned());
    Target { address, ask: Ask { host, path, fields: "x-more: 1\r\n".to_owned() } }
}

/// The backend on a thread that ends with the tests.
fn backend() -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let ended = Backend::new(listener).and_then(|mut backend| backend.serve());
        panic!("the backend ended: {:?}", ended.err().map(|error| error.to_string()));
    });
    target(address)
}

/// Answers every request on one connection with what `answer` makes of its number.
fn server(answer: impl Fn(usize) -> Vec<u8> + Send + 'static) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        for number in 1.. {
            if stream.read(&mut buffer).unwrap_or(0) == 0 || stream.write_all(&answer(number)).is_err() {
                return;
            }
        }
    });
    target(address)
}

fn reply(sequence: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nx-sequence: {sequence}\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[test]
fn every_kind_of_load_is_served() {
    let target = backend();
    until_answered(&target, SHORT).unwrap();
    let client = || Client::new(&target).unwrap();
    let mut begun = 0;
    let outcome = client().closed_loop(5, Load::Down(1024), SHORT, || begun += 1).unwrap();
    assert!(outcome.requests >= 5 && outcome.latencies.len() == outcome.requests);
    assert_eq!(client().open_loop(3, Load::Down(10), 500, SHORT, || begun += 1).unwrap().requests, 50);
    assert!(client().new_connections(2, Load::Down(1024), SHORT, || begun += 1).unwrap().requests >= 2);
    for load in [Load::Down(3_000_001), Load::Up(3_000_001)] {
        let outcome = client().bulk(3, load, || begun += 1).unwrap();
        assert_eq!((outcome.requests, outcome.body_bytes), (3, 9_000_003));
    }
    assert_eq!(begun, 5);
    drop(client().idle(40, Load::Down(1)).unwrap());
}

#[test]
fn a_stall_is_charged_to_every_request_that_it_delays() {
    const STALL: Duration = Duration::from_millis(300);
    let target = server(|number| {
        if number == 2 {
            std::thread::sleep(STALL);
        }
        reply(number, &[0])
    });
    let outcome = Client::new(&target).unwrap().open_loop(1, Load::Down(1), 1000, SHORT, || {}).unwrap();
    // All of them were due long before the stall ended.
    assert_eq!(outcome.requests, 100);
    let least = Duration::from_nanos(outcome.latencies.min());
    assert!(least + SHORT + SHORT >= STALL, "{least:?}");
}

#[test]
fn wrong_replies_are_errors() {
    for (answer, expected) in [
        (reply(1, &[7]), "a byte of a body is wrong"),
        (reply(2, &[0]), "a reply to request 1 is wrong"),
        (reply(1, &[0, 1]), "a reply to request 1 is wrong"),
        ([reply(1, &[0]), b"more".to_vec()].concat(), "bytes after a reply"),
        (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_vec(), "503 No"),
    ] {
        let target = server(move |_| answer.clone());
        let error = Client::new(&target).unwrap().idle(1, Load::Down(1)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} is not {expected}");
    }
}

#[test]
fn a_refusal_is_told_by_its_status() {
    let refusing = || server(|_| b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".to_vec());
    until_status(403, Duration::ZERO, || status_of(&refusing())).unwrap();
    let error = until_status(404, Duration::ZERO, || status_of(&refusing())).unwrap_err();
    assert!(error.to_string().contains("gets 403, not 404"), "{error}");
}

#[test]
fn a_crowd_that_can_be_served_is_served() {
    let fared = crowd::come(&backend(), 1024, 200.0, SHORT, 100).unwrap();
    assert_eq!((fared.came, fared.served, fared.refused, fared.gave_up), (20, 20, 0, 0));
    assert!(fared.served_meanwhile <= 20 && fared.latencies.len() == 20);
}

#[test]
fn of_a_crowd_some_are_refused_and_some_give_up() {
    let refusing = server(|_| b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_vec());
    let fared = crowd::come(&refusing, 1, 1.0, SHORT, 1).unwrap();
    assert_eq!((fared.came, fared.served, fared.refused, fared.gave_up), (1, 0, 1, 0));
    // They are taken and never answered, and there is no room for a third.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let fared = crowd::come(&target(listener.local_addr().unwrap()), 1, 1_000.0, SHORT, 2).unwrap();
    assert_eq!((fared.came, fared.served, fared.refused, fared.gave_up), (2, 0, 0, 2));
    let wrong = server(|_| reply(7, &[0]));
    let error = crowd::come(&wrong, 1, 1.0, SHORT, 1).unwrap_err();
    assert!(error.to_string().contains("a reply to request 1 is wrong"), "{error}");
}
