//! Our record layer against rustls' own, in both roles: data, key updates, tickets, orderly end.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384,
};
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

use super::super::context::{ALPN, provider_of as provider};
use super::*;

const SUITES: [rustls::SupportedCipherSuite; 4] = [
    TLS13_AES_256_GCM_SHA384,
    TLS13_AES_128_GCM_SHA256,
    TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
];

fn is_new(suite: rustls::SupportedCipherSuite) -> bool {
    suite.version() == &rustls::version::TLS13
}

/// An ordinary rustls server: sends tickets, asks for a client certificate.
fn plain_server(authority: &Authority, suite: rustls::SupportedCipherSuite) -> Connection {
    let mut roots = RootCertStore::empty();
    roots.add(authority.root().clone()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider(suite)).build().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(authority.identity(SERVER).resolver());
    config.alpn_protocols = vec![ALPN.to_vec()];
    Connection::Server(ServerConnection::new(Arc::new(config)).unwrap())
}

/// An ordinary rustls client that dials by DNS name, so the server needs a DNS name in its certificate.
fn plain_client(authority: &Authority, suite: rustls::SupportedCipherSuite, alpn: &[&[u8]]) -> Connection {
    let mut roots = RootCertStore::empty();
    roots.add(authority.root().clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(authority.identity(CLIENT).resolver());
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.check_selected_alpn = false;
    let name = ServerName::try_from("server.test").unwrap();
    Connection::Client(ClientConnection::new(Arc::new(config), name).unwrap())
}

fn dns_credentials(authority: &Authority) -> Credentials {
    let dns = SanType::DnsName("server.test".try_into().unwrap());
    authority.issue(&Leaf { names: vec![dns, uri(SERVER)], ..Leaf::of(SERVER) })
}

fn take(plain: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while plain.wants_write() {
        plain.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn give(plain: &mut Connection, mut bytes: &[u8]) -> Vec<u8> {
    let mut plaintext = Vec::new();
    while !bytes.is_empty() {
        plain.read_tls(&mut bytes).unwrap();
        plain.process_new_packets().unwrap();
        let _end = plain.reader().read_to_end(&mut plaintext);
    }
    plaintext
}

fn finish(
    mut ours: Handshake,
    plain: &mut Connection,
    mut out: Vec<u8>,
) -> Result<(Records, Vec<u8>), TlsError> {
    let mut pending = Vec::new();
    for _ in 0..4 {
        give(plain, &std::mem::take(&mut out));
        pending.extend(take(plain));
        if let Some(outcome) = feed(&mut ours, &mut pending, &mut out) {
            let Established { secrets, schedule, .. } = *outcome?;
            give(plain, &out);
            return Ok((Records::new(secrets, schedule).unwrap(), pending));
        }
    }
    panic!("no end to the handshake");
}

fn exchange(mut ours: Records, mut plain: Connection, pending: Vec<u8>) {
    assert!(read(&mut ours, pending).unwrap().is_empty(), "only tickets");
    let updates = plain.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
    if updates {
        ours.update_key_after(9);
    }
    for round in 0..60_usize {
        let bytes: Vec<u8> = (0..round * 997 % 50_000).map(|n| (n ^ round).to_le_bytes()[0]).collect();
        assert_eq!(give(&mut plain, &written(&mut ours, &bytes)), bytes);
        if updates && round % 7 == 3 {
            plain.refresh_traffic_keys().unwrap();
        }
        let mut written = 0;
        while written < bytes.len() {
            written += plain.writer().write(&bytes[written..]).unwrap();
            let sealed = take(&mut plain);
            let echoed = read(&mut ours, sealed).unwrap();
            assert_eq!(echoed, bytes[written - echoed.len()..written]);
        }
    }
    plain.send_close_notify();
    let mut end = take(&mut plain);
    assert_eq!(ours.open(&mut end).unwrap(), Opened::Closed);
    let mut output = Output::default();
    ours.alert(&mut output, AlertCode::CLOSE_NOTIFY).unwrap();
    plain.read_tls(&mut output.ready()).unwrap();
    assert!(plain.process_new_packets().unwrap().peer_has_closed());
}

#[test]
fn our_client_speaks_with_a_plain_rustls_server() {
    for suite in SUITES {
        let authority = Authority::new();
        let mut out = Vec::new();
        let policy = CryptoPolicy::StandardAndTls12;
        let context = ClientContext::new(&authority.identity(CLIENT), policy).unwrap();
        let ours = Handshake::client(&context, &expecting(&[SERVER]), &mut out).unwrap();
        let mut plain = plain_server(&authority, suite);
        let (records, pending) = finish(ours, &mut plain, out).unwrap();
        let tickets = [pending, take(&mut plain)].concat();
        assert_eq!(!tickets.is_empty(), is_new(suite), "the plain server sends tickets");
        exchange(records, plain, tickets);
    }
}

#[test]
fn our_server_speaks_with_a_plain_rustls_client() {
    for suite in SUITES {
        let authority = Authority::new();
        let policy = CryptoPolicy::StandardAndTls12;
        let context = ServerContext::new(&dns_credentials(&authority), policy).unwrap();
        let ours = Handshake::server(&context).unwrap();
        let mut plain = plain_client(&authority, suite, &[ALPN]);
        let (records, pending) = finish(ours, &mut plain, Vec::new()).unwrap();
        assert!(pending.is_empty());
        exchange(records, plain, pending);
    }
}

#[test]
fn our_server_sends_no_tickets_and_insists_on_h2() {
    let authority = Authority::new();
    let suite = TLS13_AES_256_GCM_SHA384;
    let ours = Handshake::server(&server(&dns_credentials(&authority))).unwrap();
    let mut plain = plain_client(&authority, suite, &[ALPN]);
    finish(ours, &mut plain, Vec::new()).unwrap();
    let Connection::Client(client) = &plain else { unreachable!() };
    assert_eq!(client.tls13_tickets_received(), 0);

    let ours = Handshake::server(&server(&dns_credentials(&authority))).unwrap();
    let error = finish(ours, &mut plain_client(&authority, suite, &[]), Vec::new()).unwrap_err();
    assert_eq!(error.close_cause(), CloseCause::TlsNegotiation);
}

#[test]
fn a_client_without_certificate_is_refused() {
    let authority = Authority::new();
    let mut roots = RootCertStore::empty();
    roots.add(authority.root().clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider(TLS13_AES_256_GCM_SHA384))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let name = ServerName::try_from("server.test").unwrap();
    let mut plain = Connection::Client(ClientConnection::new(Arc::new(config), name).unwrap());
    let ours = Handshake::server(&server(&dns_credentials(&authority))).unwrap();
    let error = finish(ours, &mut plain, Vec::new()).unwrap_err();
    assert_eq!(error.close_cause(), CloseCause::TlsCertificateMissing);
}

#[test]
fn a_client_of_chacha_only_is_refused() {
    let authority = Authority::new();
    let context = server(&dns_credentials(&authority));
    let chacha = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    let mut plain = plain_client(&authority, chacha, &[ALPN]);
    let mut ours = Handshake::server(&context).unwrap();
    let mut alert = Vec::new();
    let outcome = feed(&mut ours, &mut take(&mut plain), &mut alert).unwrap();
    assert_eq!(outcome.unwrap_err().close_cause(), CloseCause::TlsNegotiation);
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 40], "handshake_failure");
}
