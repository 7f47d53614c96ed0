//! Chains that have been verified, so that a peer that comes again does not cost another check of its authority's signatures.
//!
//! What is remembered of a chain cannot change for the same bytes, roots and revocation lists: that it leads to a root and
//! serves a role, that nobody on it is revoked, and whom it names. Time passes, so each finding is asked whether all
//! certificates of the chain are valid now; whether the one who is named may come in, and the peer's own signature over the
//! handshake, are no part of it. It belongs to one set of credentials: other roots and other lists begin with nothing.
//!
//! Nobody waits here for another thread: who finds it in use verifies the chain itself.

use std::sync::RwLock;

use model::identity::Identity;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Chains remembered; the oldest makes room.
const CHAINS_MAX: usize = 64;
/// Longest chain that is remembered, all certificates together.
const CHAIN_BYTES_MAX: usize = 4 * 1024;

/// What a peer is, in a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// The chains that one set of credentials has found good.
#[derive(Debug, Default)]
pub(super) struct VerifiedChains {
    chains: RwLock<Vec<Verified>>,
}

/// A chain, byte by byte, and what holds of it.
#[derive(Debug)]
struct Verified {
    certificates: Box<[CertificateDer<'static>]>,
    role: Role,
    /// Seconds since the epoch in which every certificate is valid, both ends included.
    valid: (u64, u64),
    identity: Identity,
}

impl Verified {
    fn is_of(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], role: Role) -> bool {
        self.role == role
            && self
                .certificates
                .split_first()
                .is_some_and(|(first, rest)| first == leaf && rest == intermediates)
    }
}

impl VerifiedChains {
    /// Whom a chain names that was found good before and is valid now.
    pub(super) fn find(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Option<Identity> {
        let chains = self.chains.try_read().ok()?;
        let found = chains.iter().find(|it| it.is_of(leaf, intermediates, role))?;
        let (from, until) = found.valid;
        (from..=until).contains(&now.as_secs()).then(|| found.identity.clone())
    }

    /// Remembers a chain that has been found good.
    pub(super) fn keep(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        identity: &Identity,
    ) {
        let chain = || std::iter::once(leaf).chain(intermediates);
        if chain().map(|it| it.len()).sum::<usize>() > CHAIN_BYTES_MAX {
            return;
        }
        let Some(valid) = validity(chain()) else { return };
        let Ok(mut chains) = self.chains.try_write() else { return };
        if chains.iter().any(|it| it.is_of(leaf, intermediates, role)) {
            return;
        }
        if chains.len() >= CHAINS_MAX {
            chains.remove(0);
        }
        let certificates = chain().map(|it| it.clone().into_owned()).collect();
        chains.push(Verified { certificates, role, valid, identity: identity.clone() });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.chains.read().unwrap().len()
    }
}

/// The time in which all of them are valid; `None` if that cannot be told.
fn validity<'a>(chain: impl Iterator<Item = &'a CertificateDer<'a>>) -> Option<(u64, u64)> {
    let mut common = (0, u64::MAX);
    for der in chain {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        let from = u64::try_from(validity.not_before.timestamp()).ok()?;
        let until = u64::try_from(validity.not_after.timestamp()).ok()?;
        common = (common.0.max(from), common.1.min(until));
    }
    Some(common)
}
