//! Handshakes between our two roles, each wrong certificate refused with its cause, and records against rustls.

use std::sync::{Arc, Mutex};

use rcgen::{ExtendedKeyUsagePurpose, SanType};

use super::record::{Opened, Output, Records, record_length};
use super::testing::{Authority, CLIENT, Leaf, SERVER, client, expecting, server, uri};
use super::*;

mod again;
mod interop;
mod openssl;
mod tls12;

type Outcome = Result<Box<Established>, TlsError>;

/// Feeds all records in `bytes`; the result once there is one.
fn feed(handshake: &mut Handshake, bytes: &mut Vec<u8>, output: &mut Vec<u8>) -> Option<Outcome> {
    let mut outcome = None;
    while outcome.is_none()
        && let Some(length) = record_length(bytes).unwrap()
    {
        let record: Vec<u8> = bytes.drain(..length).collect();
        match handshake.feed(&record, output) {
            Ok(Progress::NeedMore) => {}
            Ok(Progress::Established(established)) => outcome = Some(Ok(established)),
            Err(error) => outcome = Some(Err(error)),
        }
    }
    outcome
}

/// A whole handshake. None: that side still waits.
fn shake(
    client: &ClientContext,
    expected: &[&str],
    server: &ServerContext,
) -> (Option<Outcome>, Option<Outcome>) {
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut dialling = Handshake::client(client, &expecting(expected), &mut to_server).unwrap();
    let mut accepting = Handshake::server(server).unwrap();
    let (mut dialled, mut accepted) = (None, None);
    for _ in 0..4 {
        if accepted.is_none() {
            accepted = feed(&mut accepting, &mut to_server, &mut to_client);
        }
        if dialled.is_none() {
            dialled = feed(&mut dialling, &mut to_client, &mut to_server);
        }
    }
    (dialled, accepted)
}

fn cause(outcome: Option<Outcome>) -> &'static str {
    match outcome {
        None => "still waiting",
        Some(Ok(_)) => "established",
        Some(Err(error)) => error.close_cause().label(),
    }
}

fn refused_as_client(leaf: &Leaf, authority: &Authority, trusted: &Authority) -> &'static str {
    let bad = authority.issue_trusting(leaf, trusted);
    let good = trusted.identity(SERVER);
    let (_, accepted) = shake(&client(&bad), &[SERVER], &server(&good));
    cause(accepted)
}

fn refused_as_server(
    leaf: &Leaf,
    authority: &Authority,
    trusted: &Authority,
) -> (&'static str, &'static str) {
    let bad = authority.issue_trusting(leaf, trusted);
    let good = trusted.identity(CLIENT);
    let (dialled, accepted) = shake(&client(&good), &[SERVER], &server(&bad));
    (cause(dialled), cause(accepted))
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let authority = Authority::new();
    let (dialled, accepted) = shake(
        &client(&authority.identity(CLIENT)),
        &["spiffe://cluster.local/ns/app/sa/other", SERVER],
        &server(&authority.identity(SERVER)),
    );
    let (dialled, accepted) = (dialled.unwrap().unwrap(), accepted.unwrap().unwrap());
    assert_eq!(dialled.peer.identity().uri(), SERVER);
    assert_eq!(accepted.peer.identity().uri(), CLIENT);
    assert_eq!(dialled.cipher, CipherSuite::Aes256GcmSha384);
    assert_eq!(accepted.cipher, CipherSuite::Aes256GcmSha384);
}

#[test]
fn post_quantum_policy_agrees_with_the_standard_one() {
    let authority = Authority::new();
    let dialling = ClientContext::new(&authority.identity(CLIENT), CryptoPolicy::PostQuantum).unwrap();
    let (dialled, accepted) = shake(&dialling, &[SERVER], &server(&authority.identity(SERVER)));
    assert_eq!((cause(dialled), cause(accepted)), ("established", "established"));
}

/// Certificates that both roles refuse, and the label that each must do it under.
fn bad_leaves(good: &str) -> Vec<(&'static str, Leaf)> {
    let leaf = Leaf::of(good);
    let names = |names: Vec<SanType>| Leaf { names, ..leaf.clone() };
    vec![
        ("tls_certificate_expired", Leaf { years: (2000, 2001), ..leaf.clone() }),
        ("tls_certificate_not_yet_valid", Leaf { years: (2089, 2090), ..leaf.clone() }),
        ("tls_san_missing", names(vec![])),
        ("tls_san_missing", names(vec![SanType::DnsName("a.test".try_into().unwrap())])),
        ("tls_san_multiple", names(vec![uri(good), uri("spiffe://cluster.local/ns/a/sa/b")])),
        ("tls_san_multiple", names(vec![uri(good), uri(good)])),
        ("tls_san_multiple", names(vec![uri("https://a.test/"), uri(good)])),
        ("tls_san_malformed", names(vec![uri(&format!("{good}\0"))])),
        ("tls_san_malformed", names(vec![uri(&format!("{good}\0.test"))])),
        ("tls_san_malformed", names(vec![uri("https://cluster.local/ns/app/sa/server")])),
        ("tls_san_malformed", names(vec![uri("spiffe://cluster.local/app")])),
        ("tls_san_malformed", names(vec![uri(&good.replace("spiffe", "SPIFFE"))])),
        ("tls_san_malformed", names(vec![uri(&good.replace("/sa/", "/sa/%2e"))])),
        (
            "tls_certificate_usage",
            Leaf { usages: vec![ExtendedKeyUsagePurpose::CodeSigning], ..leaf.clone() },
        ),
        ("tls_certificate_usage", Leaf { is_ca: true, ..leaf }),
    ]
}

#[test]
fn server_role_refuses_each_bad_client_with_its_cause() {
    let authority = Authority::new();
    for (label, leaf) in bad_leaves(CLIENT) {
        assert_eq!(refused_as_client(&leaf, &authority, &authority), label);
    }
    let server_only = Leaf { usages: vec![ExtendedKeyUsagePurpose::ServerAuth], ..Leaf::of(CLIENT) };
    assert_eq!(refused_as_client(&server_only, &authority, &authority), "tls_certificate_usage");
    let foreign = Leaf::of("spiffe://other.domain/ns/app/sa/client");
    assert_eq!(refused_as_client(&foreign, &authority, &authority), "tls_trust_domain");
    // Prefix and suffix of our own trust domain are other trust domains.
    for domain in ["cluster.loca", "cluster.locall", "x.cluster.local", "Cluster.local"] {
        let near = Leaf::of(&format!("spiffe://{domain}/ns/app/sa/client"));
        assert_eq!(refused_as_client(&near, &authority, &authority), "tls_trust_domain", "{domain}");
    }
    assert_eq!(
        refused_as_client(&Leaf::of(CLIENT), &Authority::new(), &authority),
        "tls_certificate_untrusted"
    );
}

#[test]
fn client_role_refuses_each_bad_server_with_its_cause_and_tells_it() {
    let authority = Authority::new();
    for (label, leaf) in bad_leaves(SERVER) {
        assert_eq!(refused_as_server(&leaf, &authority, &authority), (label, "tls_alert_received"));
    }
    let client_only = Leaf { usages: vec![ExtendedKeyUsagePurpose::ClientAuth], ..Leaf::of(SERVER) };
    assert_eq!(refused_as_server(&client_only, &authority, &authority).0, "tls_certificate_usage");
    for other in ["spiffe://cluster.local/ns/app/sa/serve", "spiffe://other.domain/ns/app/sa/server", CLIENT]
    {
        assert_eq!(
            refused_as_server(&Leaf::of(other), &authority, &authority),
            ("tls_identity_unexpected", "tls_alert_received"),
            "{other}"
        );
    }
    assert_eq!(
        refused_as_server(&Leaf::of(SERVER), &Authority::new(), &authority).0,
        "tls_certificate_untrusted"
    );
}

#[test]
fn nobody_is_accepted_when_nobody_is_expected() {
    let authority = Authority::new();
    let (dialled, _) = shake(&client(&authority.identity(CLIENT)), &[], &server(&authority.identity(SERVER)));
    assert_eq!(cause(dialled), "tls_identity_unexpected");
}

#[test]
fn names_of_other_kinds_beside_the_one_uri_do_not_matter() {
    let authority = Authority::new();
    let dns = SanType::DnsName("a.test".try_into().unwrap());
    let leaf = Leaf { names: vec![dns, uri(CLIENT)], ..Leaf::of(CLIENT) };
    assert_eq!(refused_as_client(&leaf, &authority, &authority), "established");
}

#[test]
fn revoked_peers_are_refused_and_unlisted_ones_pass() {
    let authority = Authority::new();
    let list = authority.revoke(7);
    let lists = RevocationLists::parse(list.as_bytes()).unwrap();
    let good = authority.identity(SERVER).with_revocation_lists(&lists);
    for (serial, label) in [(7, "tls_certificate_revoked"), (8, "established")] {
        let peer = authority.issue(&Leaf { serial, ..Leaf::of(CLIENT) });
        let (_, accepted) = shake(&client(&peer), &[SERVER], &server(&good));
        assert_eq!(cause(accepted), label);
        let client_role = authority.identity(CLIENT).with_revocation_lists(&lists);
        let peer = authority.issue(&Leaf { serial, ..Leaf::of(SERVER) });
        let (dialled, _) = shake(&client(&client_role), &[SERVER], &server(&peer));
        assert_eq!(cause(dialled), label);
    }
}

#[test]
fn a_later_revocation_finds_the_peers_that_are_already_connected() {
    let authority = Authority::new();
    let good = authority.identity(SERVER);
    let (_, accepted) = shake(&client(&authority.identity(CLIENT)), &[SERVER], &server(&good));
    let peer = accepted.unwrap().unwrap().peer;
    let lists =
        |authority: &Authority, serial| RevocationLists::parse(authority.revoke(serial).as_bytes()).unwrap();
    assert!(!RevocationLists::default().revokes(&peer));
    assert!(lists(&authority, 7).revokes(&peer));
    assert!(!lists(&authority, 8).revokes(&peer) && lists(&authority, 8).covers(&peer));
    let another = lists(&Authority::named("another authority"), 7);
    assert!(!another.revokes(&peer) && !another.covers(&peer), "serial numbers are the issuer's own");
}

#[test]
fn an_unexpected_server_is_told_certificate_unknown() {
    let authority = Authority::new();
    let (_, accepted) =
        shake(&client(&authority.identity(CLIENT)), &[SERVER], &server(&authority.identity(CLIENT)));
    let Some(Err(TlsError::AlertReceived { code, .. })) = accepted else { panic!("{accepted:?}") };
    assert_eq!(code, 46);
}

#[test]
fn credentials_are_checked_when_they_are_made() {
    let authority = Authority::new();
    let good = authority.identity(CLIENT);
    assert_eq!(good.identity().uri(), CLIENT);
    assert!(!format!("{good:?}").contains("PRIVATE"));
    let key = rcgen::KeyPair::generate().unwrap();
    let root = pem("CERTIFICATE", authority.root());
    let chain = pem("CERTIFICATE", &good.chain()[0]);
    let made = |chain: &str, key: &str, roots: &str| {
        Credentials::from_pem(chain.as_bytes(), key.as_bytes(), roots.as_bytes())
    };
    assert!(matches!(made(&chain, &key.serialize_pem(), &root), Err(CredentialsError::KeyMismatch)));
    assert!(matches!(made("", &key.serialize_pem(), &root), Err(CredentialsError::Empty(_))));
    assert!(matches!(made(&chain, &key.serialize_pem(), ""), Err(CredentialsError::Empty(_))));
    assert!(matches!(made(&chain, "junk", &root), Err(CredentialsError::Pem { .. })));
    let nameless = authority.issue(&Leaf { names: vec![], ..Leaf::of(CLIENT) });
    let nameless = pem("CERTIFICATE", &nameless.chain()[0]);
    assert!(matches!(
        made(&nameless, &key.serialize_pem(), &root),
        Err(CredentialsError::Identity(VerifyError::SanMissing))
    ));
}

fn pem(tag: &str, der: &[u8]) -> String {
    let base64 = base64(der);
    format!("-----BEGIN {tag}-----\n{base64}\n-----END {tag}-----\n")
}

/// Base64 of RFC 4648 section 4, enough for a test.
fn base64(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= chunk.len() { char::from(letter) } else { '=' });
        }
        if text.len() % 65 == 64 {
            text.push('\n');
        }
    }
    text
}

/// Both ends of a connection after its handshake.
fn established() -> (Records, Records) {
    let authority = Authority::new();
    let (dialled, accepted) =
        shake(&client(&authority.identity(CLIENT)), &[SERVER], &server(&authority.identity(SERVER)));
    let records = |outcome: Option<Outcome>| {
        let Established { secrets, schedule, .. } = *outcome.unwrap().unwrap();
        Records::new(secrets, schedule).unwrap()
    };
    (records(dialled), records(accepted))
}

fn written(records: &mut Records, bytes: &[u8]) -> Vec<u8> {
    let mut output = Output::default();
    records.builder(&mut output).unwrap().put(bytes);
    records.seal(&mut output).unwrap();
    output.ready().to_vec()
}

fn read(records: &mut Records, mut sealed: Vec<u8>) -> Result<Vec<u8>, TlsError> {
    let mut plaintext = Vec::new();
    let mut rest = sealed.as_mut_slice();
    while let Some(length) = record_length(rest)? {
        let (record, behind) = rest.split_at_mut(length);
        if let Opened::Data(bytes) = records.open(record)? {
            plaintext.extend_from_slice(bytes);
        }
        rest = behind;
    }
    assert!(rest.is_empty());
    Ok(plaintext)
}

#[test]
fn small_writes_share_one_record_and_large_ones_fill_records() {
    let (mut client, mut server) = established();
    let mut output = Output::default();
    for _ in 0..100 {
        client.builder(&mut output).unwrap().put(b"frame of a stream");
    }
    assert!(output.ready().is_empty(), "nothing is sent before it is sealed");
    client.seal(&mut output).unwrap();
    let sealed = output.ready().to_vec();
    assert_eq!(record_length(&sealed).unwrap(), Some(sealed.len()));
    assert_eq!(sealed.len(), 5 + 100 * 17 + 17);
    assert_eq!(read(&mut server, sealed).unwrap(), b"frame of a stream".repeat(100));

    let large: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let sealed = written(&mut client, &large);
    assert_eq!(sealed.len(), large.len() + 7 * 22, "6 full records and the rest");
    assert_eq!(read(&mut server, sealed).unwrap(), large);
}

#[test]
fn partly_sent_output_keeps_its_order_while_more_is_written() {
    let (mut client, mut server) = established();
    let (mut output, mut sent, mut expected) = (Output::default(), Vec::new(), Vec::new());
    for round in 0..200_usize {
        let bytes = vec![round.to_le_bytes()[0]; 1 + round * 37 % 20_000];
        client.builder(&mut output).unwrap().put(&bytes);
        expected.extend_from_slice(&bytes);
        if round % 3 == 0 {
            client.seal(&mut output).unwrap();
        }
        let count = output.ready().len().min(round * 113 % 15_000);
        sent.extend_from_slice(&output.ready()[..count]);
        output.consumed(count);
    }
    client.seal(&mut output).unwrap();
    sent.extend_from_slice(output.ready());
    output.consumed(usize::MAX);
    assert!(output.is_empty());
    assert_eq!(read(&mut server, sent).unwrap(), expected);
}

#[test]
fn the_output_lends_and_returns_its_allocation() {
    let (mut client, _) = established();
    let mut spare = Vec::with_capacity(100_000);
    let mut output = Output::default();
    output.lend(&mut spare);
    assert_eq!(spare.capacity(), 0);
    client.builder(&mut output).unwrap().put(b"x");
    output.reclaim(&mut spare);
    assert_eq!(spare.capacity(), 0, "not while something is pending");
    client.seal(&mut output).unwrap();
    output.consumed(output.ready().len());
    output.reclaim(&mut spare);
    assert!(spare.capacity() >= 100_000);
}

#[test]
fn any_flipped_bit_fails_the_record() {
    // Behind the header, whose length decides what is cut off as a record.
    for index in 5..5 + 7 + 17 {
        let (mut client, mut server) = established();
        let mut damaged = written(&mut client, b"payload");
        damaged[index] ^= 1 << (index % 8);
        let error = read(&mut server, damaged).unwrap_err();
        assert_eq!(error.alert(), Some(AlertCode::BAD_RECORD_MAC));
        assert_eq!(error.close_cause().label(), "tls_bad_record");
    }
    let (mut client, mut server) = established();
    let mut damaged = written(&mut client, b"payload");
    damaged[2] ^= 1;
    assert!(matches!(read(&mut server, damaged), Err(TlsError::BadRecord)), "the header is authenticated");
}

#[test]
fn reordered_repeated_and_dropped_records_fail() {
    for order in [&[1, 0][..], &[0, 0], &[1]] {
        let (mut client, mut server) = established();
        let records = [written(&mut client, b"a"), written(&mut client, b"b")];
        let mut outcome = Ok(vec![]);
        for index in order {
            outcome = read(&mut server, records[*index].clone());
        }
        assert!(matches!(outcome, Err(TlsError::BadRecord)), "{order:?}");
    }
}

#[test]
fn keys_are_updated_in_both_directions_and_on_request() {
    let (mut client, mut server) = established();
    client.update_key_after(3);
    server.update_key_after(5);
    for round in 0..50_u8 {
        let sealed = written(&mut client, &[round; 300]);
        assert_eq!(read(&mut server, sealed).unwrap(), [round; 300]);
        if round % 4 == 0 {
            let mut output = Output::default();
            client.request_key_update(&mut output);
            assert!(read(&mut server, output.ready().to_vec()).unwrap().is_empty());
        }
        let sealed = written(&mut server, &vec![round; 20_000]);
        assert_eq!(read(&mut client, sealed).unwrap(), vec![round; 20_000]);
    }
}

#[test]
fn key_updates_without_data_are_bounded() {
    let (mut client, mut server) = established();
    let mut outcome = Ok(vec![]);
    for _ in 0..100 {
        let mut output = Output::default();
        client.request_key_update(&mut output);
        outcome = read(&mut server, output.ready().to_vec());
        if outcome.is_err() {
            break;
        }
    }
    assert_eq!(outcome.unwrap_err().close_cause(), CloseCause::TlsProtocol);
}

#[test]
fn close_notify_is_told_from_a_fatal_alert() {
    let (mut client, mut server) = established();
    let mut output = Output::default();
    client.builder(&mut output).unwrap().put(b"last");
    client.alert(&mut output, AlertCode::CLOSE_NOTIFY).unwrap();
    let mut bytes = output.ready().to_vec();
    let (data, alert) = bytes.split_at_mut(5 + 4 + 17);
    assert_eq!(server.open(data).unwrap(), Opened::Data(b"last"));
    assert_eq!(server.open(alert).unwrap(), Opened::Closed);

    let mut output = Output::default();
    server.alert(&mut output, AlertCode::INTERNAL_ERROR).unwrap();
    let error = client.open(&mut output.ready().to_vec()).unwrap_err();
    assert!(matches!(error, TlsError::AlertReceived { code: 80, .. }));
}

#[test]
fn unprotected_and_oversized_records_are_refused() {
    let (_, mut server) = established();
    for content in [20, 21, 22] {
        let error = server.open(&mut [content, 3, 3, 0, 1, 1]).unwrap_err();
        assert_eq!(error.alert(), Some(AlertCode::UNEXPECTED_MESSAGE));
    }
    assert_eq!(record_length(&[23, 3, 3, 0x41, 0]).unwrap(), Some(5 + 0x4100));
    let error = record_length(&[23, 3, 3, 0x41, 1]).unwrap_err();
    assert_eq!(error.alert(), Some(AlertCode::RECORD_OVERFLOW));
    for bytes in [&b"G"[..], b"GET / HTTP/1.1", &[23, 2, 3, 0, 1], &[24]] {
        assert!(record_length(bytes).is_err(), "{bytes:?}");
    }
    assert_eq!(record_length(&[]).unwrap(), None);
}

#[test]
fn fuzz_record_input() {
    let authority = Authority::new();
    let state = Mutex::new((established().1, server_context(&authority)));
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut state = state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (server, context) = &mut *state;
        let mut accepting = Handshake::server(context).unwrap();
        let mut output = Vec::new();
        for start in [bytes.to_vec(), [&[22, 3, 1][..], bytes].concat(), [&[23, 3, 3][..], bytes].concat()] {
            let mut rest = start.clone();
            while let Ok(Some(length)) = record_length(&rest)
                && length <= rest.len()
            {
                let mut record: Vec<u8> = rest.drain(..length).collect();
                assert!(!matches!(server.open(&mut record), Ok(Opened::Data(_))), "forged");
                let _may_fail = accepting.feed(&record, &mut output);
            }
        }
    });
}

fn server_context(authority: &Authority) -> ServerContext {
    server(&authority.identity(SERVER))
}

#[test]
fn handshake_input_is_bounded() {
    let authority = Authority::new();
    let mut accepting = Handshake::server(&server_context(&authority)).unwrap();
    // A handshake message of 16 MiB - 1, told to come in pieces.
    let mut record = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
    record.resize(5 + 0x4000, 0);
    let mut output = Vec::new();
    let failed = (0..20).find_map(|_| accepting.feed(&record, &mut output).err());
    assert_eq!(failed.unwrap().close_cause(), CloseCause::TlsProtocol);
}

#[test]
fn contexts_are_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<ServerContext>();
    shared::<ClientContext>();
    shared::<Arc<Credentials>>();
}
