//! Two sessions against each other on virtual time, with random chunking, loss of the connection and damage.

use std::time::Duration;

use super::*;
use crate::h2::{Config, ConnectionError};
use crate::hbone::{Authority, ConnectAnswer, ConnectHead, ConnectRequest, accept};
use crate::tls::testing::{Authority as CertificateAuthority, CLIENT, SERVER, client, expecting, server};

mod interop;
mod old;
mod pair;
mod transfer;

use pair::{End, Pair, Seen};

fn connect() -> Headers {
    let authority: Authority = "10.0.0.1:80".parse().unwrap();
    ConnectHead { authority: &authority, baggage: "", forwarded: None, trace: None, network: None }
        .encode()
        .unwrap()
}

/// An established pair with one accepted stream.
fn tunnel(seed: u64) -> (Pair, StreamId) {
    let mut pair = Pair::established(seed);
    let stream = pair.client.session.open(&connect(), false).unwrap();
    pair.settle();
    let request = pair.server.headers(stream);
    assert_eq!(ConnectRequest::parse(&request).unwrap().authority().to_string(), "10.0.0.1:80");
    pair.server.session.respond(stream, &accept("cloud.region=r").unwrap(), false).unwrap();
    pair.settle();
    let answer = pair.client.headers(stream);
    assert!(matches!(ConnectAnswer::parse(&answer), ConnectAnswer::Accepted(_)));
    (pair, stream)
}

#[test]
fn a_request_travels_and_both_know_the_peer() {
    for seed in 0..20 {
        let (pair, _) = tunnel(seed);
        assert_eq!(pair.client.session.peer().unwrap().identity().uri(), SERVER);
        assert_eq!(pair.server.session.peer().unwrap().identity().uri(), CLIENT);
        assert_eq!(pair.client.session.stream_count(), 1);
    }
}

#[test]
fn half_close_is_kept_in_each_direction() {
    for (seed, client_first) in [(1, true), (2, false)] {
        let (mut pair, stream) = tunnel(seed);
        let (first, _) = pair.ends(client_first);
        assert_eq!(first.session.send_data(stream, b"question", true), Ok(8));
        pair.settle();
        let (first, second) = pair.ends(client_first);
        assert_eq!(second.received(stream), (b"question".to_vec(), true));
        assert_eq!(second.session.send_data(stream, b"late ", false), Ok(5));
        assert_eq!(second.session.send_data(stream, b"answer", false), Ok(6));
        assert_eq!(first.session.stream_count(), 1, "one direction still runs");
        pair.settle();
        let (first, second) = pair.ends(client_first);
        assert_eq!(first.received(stream), (b"late answer".to_vec(), false));
        assert_eq!(second.session.send_data(stream, b"", true), Ok(0));
        pair.settle();
        let (first, second) = pair.ends(client_first);
        assert!(first.received(stream).1);
        assert_eq!((first.session.stream_count(), second.session.stream_count()), (0, 0));
    }
}

#[test]
fn frames_of_many_streams_share_one_record_and_one_send() {
    let mut pair = Pair::established(3);
    let streams: Vec<_> = (0..50).map(|_| pair.client.session.open(&connect(), false).unwrap()).collect();
    for stream in &streams {
        pair.client.session.send_data(*stream, b"payload of a small request", false).unwrap();
    }
    let length = crate::tls::record::record_length(pair.client.session.output()).unwrap().unwrap();
    assert_eq!(length, pair.client.session.output().len(), "one record");
    pair.settle();
    assert!(streams.iter().all(|stream| pair.server.received(*stream).0 == b"payload of a small request"));
}

#[test]
fn an_idle_session_holds_no_buffer() {
    let (mut pair, stream) = tunnel(4);
    pair.client.session.send_data(stream, &vec![7; 100_000], false).unwrap();
    pair.settle();
    for end in [&mut pair.client, &mut pair.server] {
        let mut spare = Vec::new();
        end.session.reclaim_output(&mut spare);
        assert!(spare.capacity() > 0, "the output had grown");
        end.session.reclaim_output(&mut spare);
        assert!(!end.session.holds_input());
        assert_eq!(end.session.tail.capacity(), 0);
        assert_eq!(end.session.output_backlog(), 0);
    }
    assert!(size_of::<Session>() <= 128, "{}", size_of::<Session>());
}

#[test]
fn a_cut_connection_is_told_from_a_closed_one() {
    let (mut pair, _) = tunnel(5);
    assert_eq!(pair.server.session.on_end_of_input(), CloseCause::Truncated);

    let (mut pair, _) = tunnel(6);
    pair.client.session.close(CloseCause::LocalClose);
    pair.settle();
    assert!(matches!(pair.server.seen.last(), Some(Seen::Closed)));
    assert_eq!(pair.server.session.on_end_of_input(), CloseCause::Clean);
    assert_eq!(pair.client.session.close_cause(), Some(CloseCause::LocalClose));

    let (mut pair, stream) = tunnel(7);
    pair.client.session.send_data(stream, b"cut inside this record", false).unwrap();
    let sealed = pair.client.session.output().to_vec();
    pair.server.take(&sealed[..sealed.len() - 1], pair.now).unwrap();
    assert!(pair.server.session.holds_input());
    assert!(pair.server.received(stream).0.is_empty(), "nothing of an unfinished record is delivered");
    assert_eq!(pair.server.session.on_end_of_input(), CloseCause::Truncated);
    assert!(!pair.server.session.holds_input());
}

#[test]
fn a_flipped_bit_ends_the_connection_on_both_sides() {
    let (mut pair, stream) = tunnel(8);
    pair.client.session.send_data(stream, b"data", false).unwrap();
    let mut sealed = pair.client.session.output().to_vec();
    pair.client.session.consumed(sealed.len());
    let middle = sealed.len() / 2;
    sealed[middle] ^= 0x10;
    let error = pair.server.take(&sealed, pair.now).unwrap_err();
    assert_eq!(error.close_cause(), CloseCause::TlsBadRecord);
    assert_eq!(pair.server.session.close_cause(), Some(CloseCause::TlsBadRecord));
    assert!(pair.server.received(stream).0.is_empty());
    let alert = pair.server.session.output().to_vec();
    let error = pair.client.take(&alert, pair.now).unwrap_err();
    assert!(matches!(error, SessionError::Tls(TlsError::AlertReceived { code: 20, .. })), "{error}");
    assert!(matches!(pair.server.take(b"more", pair.now), Err(SessionError::Over)));
}

#[test]
fn plaintext_is_refused_at_its_first_bytes() {
    let mut pair = Pair::new(9);
    let error = pair.server.take(b"GET / HTTP/1.1\r\n\r\n", pair.now).unwrap_err();
    assert_eq!(error.close_cause(), CloseCause::TlsProtocol);
    assert_eq!(pair.server.session.output().first(), Some(&21), "an alert tells the peer");
}

#[test]
fn the_client_is_told_why_the_server_refused_it() {
    let authority = CertificateAuthority::new();
    let foreign = authority.identity("spiffe://other.domain/ns/app/sa/client");
    let mut pair = Pair::between(10, &client(&foreign), &server(&authority.identity(SERVER)));
    let (client_outcome, server_outcome) = pair.run();
    assert_eq!(server_outcome.unwrap_err().close_cause(), CloseCause::TlsTrustDomain);
    let error = client_outcome.unwrap_err();
    assert!(matches!(error, SessionError::Tls(TlsError::AlertReceived { code: 46, .. })), "{error}");
    assert!(pair.server.seen.is_empty(), "nothing of a refused peer is delivered");
}

#[test]
fn an_unexpected_server_never_sees_the_client_certificate() {
    let authority = CertificateAuthority::new();
    let mut pair =
        Pair::between(11, &client(&authority.identity(CLIENT)), &server(&authority.identity(CLIENT)));
    let (client_outcome, server_outcome) = pair.run();
    assert_eq!(client_outcome.unwrap_err().close_cause(), CloseCause::TlsIdentityUnexpected);
    assert_eq!(server_outcome.unwrap_err().close_cause(), CloseCause::TlsAlertReceived);
    assert!(pair.server.session.peer().is_none());
}

#[test]
fn a_handshake_that_stalls_times_out() {
    let mut pair = Pair::new(12);
    let deadline = pair.server.session.next_deadline().unwrap();
    assert_eq!(deadline, pair.now + HANDSHAKE_TIMEOUT);
    let before = deadline.checked_sub(Duration::from_millis(1)).unwrap();
    pair.server.session.on_timer(before).unwrap();
    let error = pair.server.session.on_timer(deadline).unwrap_err();
    assert_eq!(error.close_cause(), CloseCause::TlsHandshakeTimeout);
    assert_eq!(pair.server.session.next_deadline(), None);
}

#[test]
fn a_peer_that_falls_silent_is_given_up() {
    let (mut pair, _) = tunnel(13);
    let mut error = None;
    for _ in 0..4 {
        let deadline = pair.client.session.next_deadline().unwrap();
        if let Err(found) = pair.client.session.on_timer(deadline) {
            error = Some(found);
            break;
        }
    }
    assert_eq!(error.unwrap().close_cause(), CloseCause::PingTimeout);
}

#[test]
fn pings_keep_a_living_pair_open() {
    let (mut pair, _) = tunnel(14);
    for _ in 0..20 {
        pair.sleep_to_deadline().unwrap();
        pair.settle();
    }
    assert_eq!((pair.client.session.close_cause(), pair.server.session.close_cause()), (None, None));
    assert!(pair.client.session.output_backlog() < 1_000);
}

#[test]
fn a_drain_lets_streams_end() {
    let (mut pair, stream) = tunnel(15);
    pair.server.session.go_away(ErrorCode::NO_ERROR, pair.now);
    pair.settle();
    assert!(pair.client.seen.iter().any(|seen| matches!(seen, Seen::GoAway)));
    assert_eq!(pair.client.session.open(&connect(), false), Err(OpenError::GoingAway));
    assert!(!pair.server.session.is_drained());
    pair.client.session.send_data(stream, b"last", true).unwrap();
    pair.server.session.send_data(stream, b"words", true).unwrap();
    pair.settle();
    assert_eq!(pair.server.received(stream), (b"last".to_vec(), true));
    assert_eq!(pair.client.received(stream), (b"words".to_vec(), true));
    assert!(pair.server.session.is_drained());
    pair.server.session.close(CloseCause::LocalClose);
    pair.settle();
    assert_eq!(pair.client.session.on_end_of_input(), CloseCause::Clean);
}

#[test]
fn a_reset_reaches_the_peer() {
    let (mut pair, stream) = tunnel(16);
    pair.server.session.reset(stream, ErrorCode::CANCEL);
    pair.settle();
    assert!(pair.client.seen.contains(&Seen::Reset(stream, ErrorCode::CANCEL)));
    assert_eq!(pair.client.session.send_data(stream, b"x", false), Err(SendError::NoSuchStream));
}

#[test]
fn events_that_are_not_taken_end_the_session_instead_of_losing_bytes() {
    let (mut pair, stream) = tunnel(17);
    pair.client.session.send_data(stream, &vec![1; 40_000], false).unwrap();
    let mut sealed = pair.client.session.output().to_vec();
    let mut ingest = pair.server.session.ingest(&mut sealed, pair.now);
    assert!(matches!(ingest.next(), Ok(Some(SessionEvent::Http(h2::Event::Data { .. })))));
    drop(ingest);
    assert_eq!(pair.server.session.close_cause(), Some(CloseCause::Internal));
}

#[test]
fn input_without_its_kept_start_ends_the_session() {
    let (mut pair, stream) = tunnel(18);
    pair.client.session.send_data(stream, b"in two pieces", false).unwrap();
    let mut sealed = pair.client.session.output().to_vec();
    let (start, rest) = sealed.split_at_mut(10);
    pair.server.take(start, pair.now).unwrap();
    let error = pair.server.session.ingest(rest, pair.now).next().unwrap_err();
    assert_eq!(error.close_cause(), CloseCause::Internal);
}

/// Sends plaintext that no engine has written.
fn inject(end: &mut End, plaintext: &[u8]) {
    let Phase::Open(open) = &mut end.session.phase else { panic!("not open") };
    open.records().builder(&mut end.session.output).unwrap().put(plaintext);
}

#[test]
fn a_peer_that_breaks_http2_is_told_so_and_cut() {
    let (mut pair, _) = tunnel(19);
    // A DATA frame on stream 0, RFC 9113 section 6.1.
    inject(&mut pair.client, &[0, 0, 1, 0, 0, 0, 0, 0, 0, 7]);
    let sealed = pair.client.session.output().to_vec();
    let error = pair.server.take(&sealed, pair.now).unwrap_err();
    assert_eq!(error.close_cause(), CloseCause::Http2Protocol);
    let answer = pair.server.session.output().to_vec();
    pair.client.take(&answer, pair.now).unwrap();
    assert!(pair.client.seen.contains(&Seen::GoAway));
    assert_eq!(pair.client.seen.last(), Some(&Seen::Closed));
    assert_eq!(pair.client.session.on_end_of_input(), CloseCause::Clean);
}

#[test]
fn fuzz_input_of_an_authenticated_peer() {
    bolero::check!().with_type::<Vec<Vec<u8>>>().for_each(|pieces| {
        let mut pair = Pair::established(1);
        for piece in pieces {
            inject(&mut pair.client, piece);
            let sealed = pair.client.session.output().to_vec();
            pair.client.session.consumed(sealed.len());
            if let Err(error) = pair.server.take(&sealed, pair.now) {
                assert!(matches!(error, SessionError::Http(_)), "{error}");
                assert!(pair.server.session.close_cause().is_some());
                assert!(!pair.server.session.output().is_empty());
                return;
            }
        }
    });
}

#[test]
fn fuzz_session_input() {
    let authority = CertificateAuthority::new();
    let contexts =
        std::sync::Mutex::new((client(&authority.identity(CLIENT)), server(&authority.identity(SERVER))));
    bolero::check!().for_each(|bytes: &[u8]| {
        let contexts = contexts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        for mut end in [
            End::new(Session::server(&contexts.1, Config::hbone_server(), now).unwrap()),
            End::new(
                Session::client(&contexts.0, &expecting(&[SERVER]), Config::hbone_client(), now).unwrap(),
            ),
        ] {
            let framed = [&[22, 3, 3][..], bytes].concat();
            for chunk in framed.chunks(7) {
                if end.take(chunk, now).is_err() {
                    break;
                }
            }
            assert!(end.seen.is_empty(), "nothing is delivered before the handshake");
        }
    });
}

/// What one end without TLS makes of bytes from the other, and the bytes it answers with.
fn take_clear(session: &mut Session, bytes: &[u8], now: Instant) -> (Vec<String>, Vec<u8>) {
    let mut buffer = vec![0; 1 << 16];
    let kept = session.prepare_input(&mut buffer);
    buffer[kept..kept + bytes.len()].copy_from_slice(bytes);
    let mut seen = Vec::new();
    let mut ingest = session.ingest(&mut buffer[..kept + bytes.len()], now);
    while let Some(event) = ingest.next().unwrap() {
        match event {
            SessionEvent::Http(h2::Event::Headers { headers, end_stream, .. }) => {
                seen.push(format!("headers {:?} {end_stream}", headers.status()));
            }
            SessionEvent::Http(h2::Event::Data { stream, bytes, .. }) => {
                seen.push(String::from_utf8(bytes.to_vec()).unwrap());
                ingest.session().release(stream, bytes.len());
            }
            SessionEvent::Http(h2::Event::Trailers { headers, .. }) => {
                seen.push(format!("trailers {}", headers.field_count()));
            }
            _ => {}
        }
    }
    drop(ingest);
    let out = session.output().to_vec();
    session.consumed(out.len());
    (seen, out)
}

#[test]
fn two_ends_without_tls_exchange_messages_with_trailers() {
    let now = Instant::now();
    let mut client = Session::clear(Config::proxy_client(), &[], now);
    let request = Headers::request("POST", "http", "a", "/").unwrap();
    let stream = client.open(&request, false).unwrap();
    client.send_data(stream, b"question", true).unwrap();
    let first = client.output().to_vec();
    client.consumed(first.len());

    // What was read before the session existed counts as received.
    let mut server = Session::clear(Config::proxy_server(), &first, now);
    assert!(server.holds_input() && server.peer().is_none() && !server.is_handshaking());
    let (seen, out) = take_clear(&mut server, &[], now);
    assert_eq!(seen, ["headers None false", "question"]);
    assert!(!server.holds_input());
    let (_, out) = (take_clear(&mut client, &out, now), server.output().to_vec());
    assert!(out.is_empty());

    server.respond(stream, &Headers::response(103).unwrap(), false).unwrap();
    server.respond(stream, &Headers::response(200).unwrap(), false).unwrap();
    server.send_data(stream, b"answer", false).unwrap();
    let mut trailers = Headers::trailers();
    trailers.push("grpc-status", "0").unwrap();
    server.send_trailers(stream, &trailers).unwrap();
    let out = server.output().to_vec();
    let (seen, _) = take_clear(&mut client, &out, now);
    assert_eq!(seen, ["headers Some(103) false", "headers Some(200) false", "answer", "trailers 1"]);
    assert_eq!(client.on_end_of_input(), CloseCause::Clean);
}

#[test]
fn a_peer_that_never_speaks_http2_is_given_up() {
    let now = Instant::now();
    let mut server = Session::clear(Config::proxy_server(), &[], now);
    let due = server.next_deadline().unwrap();
    assert!(due <= now + HANDSHAKE_TIMEOUT && server.on_timer(now).is_ok());
    assert!(matches!(server.on_timer(due), Err(SessionError::Http(ConnectionError::Late { .. }))));
    assert_eq!(server.close_cause(), Some(CloseCause::Http2Timeout));
}
