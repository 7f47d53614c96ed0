//! Sessions over TLS 1.2, whose keys cannot be replaced.

use rustls::crypto::aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;

use super::*;
use crate::tls::{ClientContext, CryptoPolicy, ServerContext, TlsVersion};

/// An established pair with one accepted stream, whose client has nothing newer.
fn old_tunnel(seed: u64) -> (Pair, StreamId) {
    let authority = CertificateAuthority::new();
    let old = ClientContext::of_suite(&authority.identity(CLIENT), TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256);
    let new = ServerContext::new(&authority.identity(SERVER), CryptoPolicy::StandardAndTls12).unwrap();
    let mut pair = Pair::between(seed, &old, &new);
    pair.settle();
    let stream = pair.client.session.open(&connect(), false).unwrap();
    pair.settle();
    pair.server.session.respond(stream, &accept("").unwrap(), false).unwrap();
    pair.settle();
    (pair, stream)
}

fn limit(session: &mut Session, records: u64) {
    let Phase::Open(open) = &mut session.phase else { panic!("not open") };
    open.records().update_key_after(records);
}

#[test]
fn payload_travels_over_tls12_however_the_bytes_are_cut() {
    for seed in 0..20 {
        let (mut pair, stream) = old_tunnel(seed);
        for session in [&pair.client.session, &pair.server.session] {
            assert_eq!(session.cipher().unwrap().version(), TlsVersion::Tls12);
            assert!(!session.key_wears_out());
        }
        let payload: Vec<u8> = (0..300_000_u32).map(|at| (at ^ at >> 9).to_le_bytes()[0]).collect();
        for from_client in [true, false] {
            let (from, _) = pair.ends(from_client);
            assert_eq!(from.session.send_data(stream, &payload, true), Ok(payload.len()));
            pair.settle();
            let (_, to) = pair.ends(from_client);
            assert_eq!(to.received(stream), (payload.clone(), true));
        }
    }
}

#[test]
fn a_key_tells_that_it_wears_out_and_ends_the_session_in_order_when_it_is_used_up() {
    let (mut pair, stream) = old_tunnel(1);
    limit(&mut pair.server.session, 60);
    let (mut sent, mut sent_worn) = (0, 0);
    while pair.server.session.send_data(stream, b"x", false) == Ok(1) {
        pair.settle();
        sent += 1;
        sent_worn += usize::from(pair.server.session.key_wears_out());
    }
    assert!(sent_worn >= 20 && sent > sent_worn, "{sent_worn} of {sent}");
    let error = pair.server.take(&[], pair.now).unwrap_err();
    assert_eq!(error.close_cause(), CloseCause::LocalClose);
    let (client, server) = pair.run();
    assert!(client.is_ok() && server.is_ok());
    assert_eq!(pair.client.received(stream), (vec![b'x'; sent], false), "cut, not ended");
    assert_eq!(pair.client.seen.last(), Some(&Seen::Closed));
}
