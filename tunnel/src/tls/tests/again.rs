//! Peers that come again: what is remembered of their chains, and what is asked anew.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;

use super::super::verified::Role;
use super::*;

const YEAR_S: u64 = 366 * 24 * 3600;

/// A wall clock that stands, in years since 1970.
#[derive(Debug)]
struct Stopped(u64);

impl TimeProvider for Stopped {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0 * YEAR_S)))
    }
}

/// What becomes of a client that dials at that time.
fn accepted_at(years: u64, peer: &Credentials, own: &Credentials) -> &'static str {
    let accepting = server(own).with_time(Arc::new(Stopped(years)));
    let (_, accepted) = shake(&client(peer), &[SERVER], &accepting);
    cause(accepted)
}

#[test]
fn a_chain_is_remembered_once_and_only_as_what_it_was_shown() {
    let authority = Authority::new();
    let own = authority.identity(SERVER);
    let verified = &own.shared.verified;
    for client_leaf in [Leaf::of(CLIENT), Leaf { serial: 8, ..Leaf::of(CLIENT) }] {
        let before = verified.len();
        let peer = authority.issue(&client_leaf);
        for _ in 0..3 {
            assert_eq!(accepted_at(60, &peer, &own), "established");
            assert_eq!(verified.len(), before + 1);
        }
    }
    // The same credentials dial somebody: another role.
    let (dialled, _) = shake(&client(&own), &[CLIENT], &server(&authority.identity(CLIENT)));
    assert_eq!((cause(dialled), verified.len()), ("established", 3));
}

#[test]
fn a_chain_that_was_good_is_refused_when_its_time_is_over_or_to_come() {
    let authority = Authority::new();
    let own = authority.identity(SERVER);
    let peer = authority.issue(&Leaf { years: (2025, 2035), ..Leaf::of(CLIENT) });
    assert_eq!(accepted_at(60, &peer, &own), "established");
    assert_eq!(own.shared.verified.len(), 1);
    assert_eq!(accepted_at(66, &peer, &own), "tls_certificate_expired");
    assert_eq!(accepted_at(54, &peer, &own), "tls_certificate_not_yet_valid");
    assert_eq!(accepted_at(60, &peer, &own), "established");
}

#[test]
fn a_chain_that_was_good_is_refused_once_it_is_revoked_or_its_root_is_gone() {
    let authority = Authority::new();
    let own = authority.identity(SERVER);
    let peer = authority.identity(CLIENT);
    assert_eq!(accepted_at(60, &peer, &own), "established");
    let lists = RevocationLists::parse(authority.revoke(7).as_bytes()).unwrap();
    assert_eq!(accepted_at(60, &peer, &own.with_revocation_lists(&lists)), "tls_certificate_revoked");
    let other = Authority::named("another authority");
    let moved = authority.issue_trusting(&Leaf::of(SERVER), &other);
    let accepting = server(&moved).with_time(Arc::new(Stopped(60)));
    let trusting = authority.issue_trusting(&Leaf::of(CLIENT), &authority);
    let (_, accepted) = shake(&client(&trusting), &[SERVER], &accepting);
    assert_eq!(cause(accepted), "tls_certificate_untrusted");
}

#[test]
fn a_chain_that_serves_one_role_does_not_serve_the_other() {
    let authority = Authority::new();
    let own = authority.identity(SERVER);
    let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let peer = authority.issue(&Leaf { usages, ..Leaf::of(CLIENT) });
    let (dialled, _) = shake(&client(&own), &[CLIENT], &server(&peer));
    assert_eq!(cause(dialled), "established");
    assert_eq!(accepted_at(60, &peer, &own), "tls_certificate_usage");
}

#[test]
fn who_is_expected_and_who_holds_the_key_are_asked_each_time() {
    let authority = Authority::new();
    let own = authority.identity(SERVER);
    let peer = authority.identity(CLIENT);
    let (dialled, _) = shake(&client(&own), &[CLIENT], &server(&peer));
    assert_eq!(cause(dialled), "established");
    let (dialled, _) = shake(&client(&own), &[SERVER], &server(&peer));
    assert_eq!(cause(dialled), "tls_identity_unexpected");
    assert_eq!(accepted_at(60, &peer, &own), "established");
    let thief = Credentials::with_key_of(&peer, &authority.identity(CLIENT));
    assert_ne!(accepted_at(60, &thief, &own), "established");
}

#[test]
fn what_is_remembered_is_bounded() {
    let authority = Authority::new();
    let own = authority.identity(SERVER);
    let verified = &own.shared.verified;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(60 * YEAR_S));
    let identity = CLIENT.parse().unwrap();
    let chains: Vec<_> = (0..70).map(|_| authority.certificate(&Leaf::of(CLIENT)).0).collect();
    for leaf in &chains {
        verified.keep(leaf, &[], Role::Client, &identity);
    }
    assert_eq!(verified.len(), 64);
    let found = |leaf: &CertificateDer<'_>| verified.find(leaf, &[], Role::Client, now);
    assert_eq!((found(&chains[0]), found(&chains[69])), (None, Some(identity.clone())));
    // A chain with another certificate in it is another chain, and a long one is not worth its room.
    assert_eq!(verified.find(&chains[69], &chains[..1], Role::Client, now), None);
    verified.keep(&chains[69], &chains[..16], Role::Client, &identity);
    assert_eq!(verified.find(&chains[69], &chains[..16], Role::Client, now), None);
}
