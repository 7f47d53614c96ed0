//! Wrong certificates, wrong peers, wrong bytes: each is refused by name, and the neighbours go on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // helpers of tests

mod tunnel_support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;

use tunnel_support::*;

/// An echo through the pair works.
fn assert_works(at: SocketAddr) {
    let mut stream = dial(at);
    stream.write_all(b"neighbour").unwrap();
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"neighbour");
}

/// A client of its own against a server; returns it with its address.
fn another_client(server: SocketAddr, files: &Files, expected: &str) -> (Process, SocketAddr) {
    let at = address();
    let (listen, peer) = (at.to_string(), server.to_string());
    let arguments =
        ["--listen", &listen, "--peer", &peer, "--authority", "127.0.0.1:9", "--peer-identity", expected];
    (start("client", files, &arguments), at)
}

/// What the client does with a connection that gets no stream.
fn assert_dropped(at: SocketAddr) {
    let mut stream = dial(at);
    let end = read_some(&mut stream, &mut [0; 1]);
    assert!(end.is_err() || end.unwrap() == 0);
}

#[test]
fn each_wrong_certificate_has_its_close_cause_and_neighbours_go_on() {
    let mut pair = Pair::new(echo(), &[]);
    let foreign = Pki::new();
    let mut untrusted = foreign.issue("untrusted", CLIENT);
    untrusted.ca = pair.pki.ca();
    let expired = pair.pki.issue_valid("expired", CLIENT, (2020, 2021));
    let other_domain = pair.pki.issue("other", "spiffe://elsewhere.example/ns/app/sa/client");
    let cases = [
        ("untrusted", untrusted, "tls_certificate_untrusted"),
        ("expired", expired, "tls_certificate_expired"),
        ("other trust domain", other_domain, "tls_trust_domain"),
    ];
    assert_works(pair.at);
    for (name, files, cause) in cases {
        let (mut stranger, at) = another_client(pair.server_at, &files, SERVER);
        assert_dropped(at);
        let line = pair.server.wait_for(cause);
        assert!(line.contains("no tunnel"), "{name}: {line}");
        stranger.wait_for("no stream");
        assert_works(pair.at);
    }
}

#[test]
fn a_server_of_another_identity_is_not_talked_to() {
    let pair = Pair::new(echo(), &[]);
    let files = pair.pki.issue("careful", CLIENT);
    let (mut careful, at) =
        another_client(pair.server_at, &files, "spiffe://cluster.local/ns/app/sa/someone-else");
    assert_dropped(at);
    let line = careful.wait_for("no stream");
    assert!(line.contains("tls_identity_unexpected"), "{line}");
    assert!(line.contains(SERVER), "the identity that was met is named: {line}");
    assert_works(pair.at);
}

#[test]
fn only_allowed_identities_get_streams() {
    let pair = Pair::new(echo(), &[]);
    let server_files = pair.pki.issue("strict", SERVER);
    let at = address();
    let listen = at.to_string();
    let mut strict = start(
        "server",
        &server_files,
        &["--listen", &listen, "--allow", "spiffe://cluster.local/ns/app/sa/other"],
    );
    let files = pair.pki.issue("denied", CLIENT);
    let (mut denied, client_at) = another_client(at, &files, SERVER);
    assert_dropped(client_at);
    assert!(denied.wait_for("no stream").contains("401"));
    strict.wait_for("not in --allow");
    assert_works(pair.at);
}

#[test]
fn bytes_that_are_no_tls_end_their_own_connection_only() {
    let mut pair = Pair::new(echo(), &["--workers", "1"]);
    assert_works(pair.at);
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &pattern(3, 100_000), &[22, 3, 1, 0xFF, 0xFF]] {
        let mut stream = dial(pair.server_at);
        // The server may close before it has read all.
        drop(stream.write_all(bytes));
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest));
        assert!(rest.len() < 64, "an alert at most, and no certificate");
    }
    assert!(pair.server.wait_for("tls_protocol").contains("no tunnel"));
    assert_works(pair.at);
}

#[test]
fn a_peer_that_is_not_there_costs_only_the_connection() {
    let pki = Pki::new();
    let files = pki.issue("client", CLIENT);
    let (at, nobody) = (address(), address());
    let (listen, peer) = (at.to_string(), nobody.to_string());
    let arguments = ["--listen", &listen, "--peer", &peer, "--authority", "127.0.0.1:9"];
    let mut client = start("client", &files, &arguments);
    for _ in 0..3 {
        assert_dropped(at);
    }
    client.wait_for("refuses connections");
}

/// Runs the program to its end; the exit code and what it said.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_corelane")).args(arguments).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    (output.status.code(), said)
}

#[test]
fn errors_at_the_start_name_what_to_mend() {
    let pki = Pki::new();
    let files = pki.issue("server", SERVER);
    let (cert, key, ca) =
        (files.cert.to_str().unwrap(), files.key.to_str().unwrap(), files.ca.to_str().unwrap());
    let with = |extra: &[&'static str]| {
        let mut arguments = vec!["tunnel", "server", "--cert", cert, "--key", key, "--ca", ca];
        arguments.extend(extra);
        run(&arguments)
    };
    let (code, said) = with(&["--listen", "192.0.2.1:15008"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("--listen 192.0.2.1:15008"), "{said}");

    let (code, said) = with(&["--listen", "127.0.0.1:0", "--congestion", "nosuch"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("--congestion nosuch") && said.contains("tcp_available"), "{said}");

    let (code, said) = with(&["--listen", "127.0.0.1:0", "--workers", "0"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("0 workers"), "{said}");

    let missing =
        ["tunnel", "server", "--listen", "127.0.0.1:0", "--cert", "/no/file", "--key", key, "--ca", ca];
    let (code, said) = run(&missing);
    assert_eq!(code, Some(1));
    assert!(said.contains("/no/file cannot be read"), "{said}");

    let swapped = ["tunnel", "server", "--listen", "127.0.0.1:0", "--cert", key, "--key", cert, "--ca", ca];
    let (code, said) = run(&swapped);
    assert_eq!(code, Some(1));
    assert!(said.contains("--cert") && said.contains(key), "{said}");

    let (code, said) = run(&["tunnel", "client", "--authority", "no-port"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("port"), "{said}");
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let pki = Pki::new();
    let server_at = address();
    let _server = start(
        "server",
        &pki.issue("server", SERVER),
        &["--listen", &server_at.to_string(), "--forward-to", &echo().to_string()],
    );
    let files = pki.issue("client", CLIENT);
    let at = address();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 48; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_corelane")]);
    command.args(["tunnel", "client", "--workers", "1", "--listen", &at.to_string()]);
    command.args(["--peer", &server_at.to_string(), "--authority", "127.0.0.1:9", "--peer-identity", SERVER]);
    command.arg("--cert").arg(&files.cert).arg("--key").arg(&files.key).arg("--ca").arg(&files.ca);
    let mut client = Process::start("client", command.env("NO_COLOR", "1"));
    client.wait_for("listening");
    assert_works(at);
    let crowd: Vec<_> = (0..80).map(|_| dial(at)).collect();
    client.wait_for("no connection can be accepted for now");
    drop(crowd);
    assert_works(at);
}
