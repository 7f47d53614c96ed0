//! TLS 1.2 with a peer that has nothing newer, in both roles: suites, records, and what ends the connection.

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS13_AES_128_GCM_SHA256,
};

use super::super::record::RECORD_BYTES_MAX;
use super::*;

const OLD: [(SupportedCipherSuite, CipherSuite); 4] = [
    (TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, CipherSuite::EcdheEcdsaAes256GcmSha384),
    (TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, CipherSuite::EcdheEcdsaAes128GcmSha256),
    (TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, CipherSuite::EcdheRsaAes256GcmSha384),
    (TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, CipherSuite::EcdheRsaAes128GcmSha256),
];
/// Header, explicit nonce and tag.
const OVERHEAD: usize = 5 + 8 + 16;

fn new_client(credentials: &Credentials) -> ClientContext {
    ClientContext::new(credentials, CryptoPolicy::StandardAndTls12).unwrap()
}

fn new_server(credentials: &Credentials) -> ServerContext {
    ServerContext::new(credentials, CryptoPolicy::StandardAndTls12).unwrap()
}

fn leaf(identity: &str, suite: CipherSuite) -> Leaf {
    let key = if suite.name().contains("_RSA_") { &PKCS_RSA_SHA256 } else { &PKCS_ECDSA_P256_SHA256 };
    Leaf { key, ..Leaf::of(identity) }
}

fn records(outcome: Option<Outcome>) -> Records {
    let Established { secrets, schedule, .. } = *outcome.unwrap().unwrap();
    Records::new(secrets, schedule).unwrap()
}

/// Both ends of a connection of TLS 1.2 after its handshake.
fn old_pair() -> (Records, Records) {
    let authority = Authority::new();
    let client = ClientContext::of_suite(&authority.identity(CLIENT), OLD[0].0);
    let (dialled, accepted) = shake(&client, &[SERVER], &new_server(&authority.identity(SERVER)));
    (records(dialled), records(accepted))
}

fn assert_carries(from: &mut Records, to: &mut Records) {
    for length in [1, 16_384, 16_385, 100_000] {
        let bytes: Vec<u8> = (0..length).map(|n: u32| n.to_le_bytes()[0]).collect();
        let sealed = written(from, &bytes);
        assert_eq!(sealed.len(), bytes.len() + bytes.len().div_ceil(16_384) * OVERHEAD);
        assert_eq!(sealed[..3], [23, 3, 3]);
        assert_eq!(read(to, sealed).unwrap(), bytes);
    }
}

#[test]
fn each_suite_is_spoken_in_both_roles_with_a_peer_that_has_nothing_newer() {
    for (suite, ours) in OLD {
        let authority = Authority::new();
        let (dialling, accepting) =
            (authority.issue(&leaf(CLIENT, ours)), authority.issue(&leaf(SERVER, ours)));
        let pairs = [
            (new_client(&dialling), ServerContext::of_suite(&accepting, suite)),
            (ClientContext::of_suite(&dialling, suite), new_server(&accepting)),
        ];
        for (client, server) in pairs {
            let (dialled, accepted) = shake(&client, &[SERVER], &server);
            for (outcome, peer) in [(&dialled, SERVER), (&accepted, CLIENT)] {
                let established = outcome.as_ref().unwrap().as_ref().unwrap();
                assert_eq!((established.cipher, established.peer.identity().uri()), (ours, peer));
                assert_eq!(established.cipher.version().name(), "TLSv1.2");
            }
            let (mut dialled, mut accepted) = (records(dialled), records(accepted));
            assert_carries(&mut dialled, &mut accepted);
            assert_carries(&mut accepted, &mut dialled);
        }
    }
}

#[test]
fn two_that_know_both_versions_agree_on_tls_1_3() {
    let authority = Authority::new();
    let (dialling, accepting) = (authority.identity(CLIENT), authority.identity(SERVER));
    for (client, server) in [
        (new_client(&dialling), new_server(&accepting)),
        (client(&dialling), new_server(&accepting)),
        (new_client(&dialling), server(&accepting)),
    ] {
        let (dialled, accepted) = shake(&client, &[SERVER], &server);
        for outcome in [dialled, accepted] {
            assert_eq!(outcome.unwrap().unwrap().cipher.version(), TlsVersion::Tls13);
        }
    }
}

#[test]
fn where_it_is_not_switched_on_both_roles_answer_protocol_version() {
    let authority = Authority::new();
    let (dialling, accepting) = (authority.identity(CLIENT), authority.identity(SERVER));
    for policy in [CryptoPolicy::Standard, CryptoPolicy::PostQuantum] {
        let (mut hello, mut answer) = (Vec::new(), Vec::new());
        let old = ClientContext::of_suite(&dialling, OLD[0].0);
        Handshake::client(&old, &expecting(&[SERVER]), &mut hello).unwrap();
        let ours = ServerContext::new(&accepting, policy).unwrap();
        let mut ours = Handshake::server(&ours).unwrap();
        let error = feed(&mut ours, &mut hello, &mut answer).unwrap().unwrap_err();
        assert_eq!(error.close_cause(), CloseCause::TlsNegotiation);
        assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70], "protocol_version");

        // A server that answers in TLS 1.2 although the client has not offered it.
        let (mut hello, mut answer, mut alert) = (Vec::new(), Vec::new(), Vec::new());
        Handshake::client(&old, &expecting(&[SERVER]), &mut hello).unwrap();
        let mut old = Handshake::server(&ServerContext::of_suite(&accepting, OLD[0].0)).unwrap();
        assert!(feed(&mut old, &mut hello, &mut answer).is_none());
        let ours = ClientContext::new(&dialling, policy).unwrap();
        let mut ours = Handshake::client(&ours, &expecting(&[SERVER]), &mut Vec::new()).unwrap();
        let error = feed(&mut ours, &mut answer, &mut alert).unwrap().unwrap_err();
        assert_eq!(error.close_cause(), CloseCause::TlsNegotiation);
        assert_eq!(alert, [21, 3, 3, 0, 2, 2, 70], "protocol_version");
    }
}

#[test]
fn a_peer_of_tls_1_2_is_held_to_the_same_rules_of_certificates() {
    let authority = Authority::new();
    let (client_of, server_of) = (ClientContext::of_suite, ServerContext::of_suite);
    for (label, bad) in bad_leaves(CLIENT) {
        let (_, accepted) = shake(
            &client_of(&authority.issue(&bad), OLD[0].0),
            &[SERVER],
            &new_server(&authority.identity(SERVER)),
        );
        assert_eq!(cause(accepted), label);
    }
    for (label, bad) in bad_leaves(SERVER) {
        let (dialled, accepted) = shake(
            &new_client(&authority.identity(CLIENT)),
            &[SERVER],
            &server_of(&authority.issue(&bad), OLD[0].0),
        );
        assert_eq!((cause(dialled), cause(accepted)), (label, "tls_alert_received"));
    }
}

#[test]
fn a_certificate_without_its_key_proves_nothing_in_either_version() {
    let authority = Authority::new();
    let stolen =
        |identity| Credentials::with_key_of(&authority.identity(identity), &authority.identity(CLIENT));
    for suite in [OLD[0].0, TLS13_AES_128_GCM_SHA256] {
        let thief = ClientContext::of_suite(&stolen(CLIENT), suite);
        let (_, accepted) = shake(&thief, &[SERVER], &new_server(&authority.identity(SERVER)));
        assert_eq!(cause(accepted), "tls_certificate_untrusted");
        let thief = ServerContext::of_suite(&stolen(SERVER), suite);
        let (dialled, _) = shake(&new_client(&authority.identity(CLIENT)), &[SERVER], &thief);
        assert_eq!(cause(dialled), "tls_certificate_untrusted");
    }
}

#[test]
fn any_flipped_bit_of_a_record_fails_it() {
    // All but the length, which decides what is cut off as a record.
    for index in [0, 1, 2].into_iter().chain(5..OVERHEAD + 7) {
        for bit in [0, 7] {
            let (mut client, mut server) = old_pair();
            let mut damaged = written(&mut client, b"payload");
            assert_eq!(damaged.len(), OVERHEAD + 7);
            damaged[index] ^= 1 << bit;
            let error = server.open(&mut damaged).unwrap_err();
            assert_eq!(error.alert(), Some(AlertCode::BAD_RECORD_MAC), "{index}");
        }
    }
}

#[test]
fn truncated_records_fail() {
    for length in 5..OVERHEAD + 7 {
        let (mut client, mut server) = old_pair();
        let mut cut = written(&mut client, b"payload");
        cut.truncate(length);
        cut[4] = u8::try_from(length - 5).unwrap();
        assert!(matches!(server.open(&mut cut), Err(TlsError::BadRecord)), "{length}");
    }
}

#[test]
fn reordered_repeated_and_dropped_records_fail_in_both_directions() {
    for order in [&[1, 0][..], &[0, 0], &[1]] {
        for to_server in [true, false] {
            let (mut client, mut server) = old_pair();
            let (from, to) = if to_server { (&mut client, &mut server) } else { (&mut server, &mut client) };
            let records = [written(from, b"a"), written(from, b"b")];
            let mut outcome = Ok(vec![]);
            for index in order {
                outcome = read(to, records[*index].clone());
            }
            assert!(matches!(outcome, Err(TlsError::BadRecord)), "{order:?}");
        }
    }
}

#[test]
fn no_nonce_comes_twice_and_the_counter_goes_on_behind_the_handshake() {
    let (mut client, _) = old_pair();
    let nonces: Vec<[u8; 8]> =
        (0..3).map(|_| written(&mut client, b"x")[5..13].try_into().unwrap()).collect();
    let counters: Vec<u64> =
        nonces.iter().map(|nonce| u64::from_be_bytes(*nonce) ^ u64::from_be_bytes(nonces[0])).collect();
    // Finished was record 0, so these are 1, 2 and 3, seen from the first of them.
    assert_eq!(counters, [0, 1 ^ 2, 1 ^ 3]);
}

#[test]
fn a_renegotiation_and_what_else_does_not_belong_behind_the_handshake_is_refused() {
    let hello_request = [0, 0, 0, 0];
    let client_hello = [1, 0, 0, 2, 3, 3];
    let key_update = [24, 0, 0, 1, 0];
    let ticket = [4, 0, 0, 0];
    for (content, bytes) in [
        (22, &hello_request[..]),
        (22, &client_hello),
        (22, &key_update),
        (22, &ticket),
        (22, &[]),
        (20, &[1]),
        (24, &[1, 0, 1, 0]),
    ] {
        for to_server in [true, false] {
            let (mut client, mut server) = old_pair();
            let (from, to) = if to_server { (&mut client, &mut server) } else { (&mut server, &mut client) };
            let mut output = Output::default();
            from.append(&mut output, content, bytes);
            let error = to.open(&mut output.ready().to_vec()).unwrap_err();
            assert_eq!(error.alert(), Some(AlertCode::UNEXPECTED_MESSAGE), "{content} {bytes:?}");
        }
    }
}

#[test]
fn an_unprotected_alert_behind_the_handshake_is_a_forged_record() {
    let (_, mut server) = old_pair();
    assert!(matches!(server.open(&mut [21, 3, 3, 0, 2, 1, 0]), Err(TlsError::BadRecord)));
}

#[test]
fn records_without_data_are_bounded() {
    let (mut client, mut server) = old_pair();
    let outcome = (0..100).find_map(|_| {
        let mut output = Output::default();
        client.append(&mut output, 23, &[]);
        server.open(&mut output.ready().to_vec()).err()
    });
    assert_eq!(outcome.unwrap().close_cause(), CloseCause::TlsProtocol);
}

#[test]
fn oversized_records_are_refused() {
    let (mut client, mut server) = old_pair();
    let mut output = Output::default();
    client.append(&mut output, 23, &vec![0; 16_385]);
    let mut record = output.ready().to_vec();
    assert!(record.len() <= RECORD_BYTES_MAX);
    assert_eq!(server.open(&mut record).unwrap_err().alert(), Some(AlertCode::RECORD_OVERFLOW));
}

#[test]
fn close_notify_is_told_from_a_fatal_alert() {
    let (mut client, mut server) = old_pair();
    let mut output = Output::default();
    client.builder(&mut output).unwrap().put(b"last");
    client.alert(&mut output, AlertCode::CLOSE_NOTIFY).unwrap();
    let mut bytes = output.ready().to_vec();
    let (data, alert) = bytes.split_at_mut(OVERHEAD + 4);
    assert_eq!(server.open(data).unwrap(), Opened::Data(b"last"));
    assert_eq!(alert[..5], [21, 3, 3, 0, 8 + 2 + 16]);
    assert_eq!(server.open(alert).unwrap(), Opened::Closed);

    let mut output = Output::default();
    server.alert(&mut output, AlertCode::INTERNAL_ERROR).unwrap();
    let error = client.open(&mut output.ready().to_vec()).unwrap_err();
    assert!(matches!(error, TlsError::AlertReceived { code: 80, .. }));
}

#[test]
fn a_key_that_is_used_up_ends_the_connection_in_order() {
    let (mut client, mut server) = old_pair();
    client.update_key_after(4);
    for _ in 1..4 {
        let sealed = written(&mut client, b"x");
        assert_eq!(read(&mut server, sealed).unwrap(), b"x");
    }
    let mut output = Output::default();
    let error = client.builder(&mut output).unwrap_err();
    assert_eq!(error.close_cause(), CloseCause::LocalClose);
    assert!(output.is_empty());
    client.alert(&mut output, error.alert().unwrap()).unwrap();
    assert_eq!(server.open(&mut output.ready().to_vec()).unwrap(), Opened::Closed);
}

#[test]
fn fuzz_record_input_of_tls12() {
    let server = Mutex::new(old_pair().1);
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut server = server.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for content in 20..24 {
            let mut rest = [&[content, 3, 3][..], bytes].concat();
            while let Ok(Some(length)) = record_length(&rest)
                && length <= rest.len()
            {
                let mut record: Vec<u8> = rest.drain(..length).collect();
                assert!(server.open(&mut record).is_err(), "forged");
            }
        }
    });
}
