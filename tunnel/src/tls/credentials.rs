//! What a workload proves itself with, and what it trusts: certificate chain, key and roots.

use std::fmt;
use std::sync::Arc;

use model::identity::Identity;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use rustls::sign::CertifiedKey;

use super::verified::VerifiedChains;
use super::verifier::identity_of;
use super::{RevocationLists, VerifyError, context};

/// Bounds on what a certificate authority may hand us; real chains have 1 to 4 certificates, real bundles a few roots.
const CHAIN_CERTIFICATES_MAX: usize = 16;
const ROOTS_MAX: usize = 1_024;

/// One workload's certificate chain (leaf first, no root), private key and trusted roots.
///
/// Cheap to clone. The key never leaves: it is not printed and cannot be read back.
#[derive(Clone)]
pub struct Credentials {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) identity: Identity,
    pub(super) certified_key: Arc<CertifiedKey>,
    pub(super) roots: Vec<TrustAnchor<'static>>,
    pub(super) revocation: RevocationLists,
    /// Under these roots and lists.
    pub(super) verified: VerifiedChains,
}

/// Why certificate, key and roots do not make usable credentials.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialsError {
    #[error("{what} is not valid PEM: {reason}")]
    Pem { what: &'static str, reason: String },
    #[error("no certificate found in {0}")]
    Empty(&'static str),
    #[error("{what} holds more than {max} certificates")]
    TooMany { what: &'static str, max: usize },
    #[error("the private key cannot be used; it must be PKCS#8 (ECDSA P-256/P-384, Ed25519 or RSA): {0}")]
    Key(String),
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    #[error("our own certificate names no workload: {0}")]
    Identity(VerifyError),
    #[error("root certificate {index} cannot be read: {reason}")]
    Root { index: usize, reason: String },
}

impl Credentials {
    /// From PEM texts: `chain` leaf first, `roots` one or more certificates.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Self, CredentialsError> {
        let chain = certificates("the certificate chain", chain)?;
        let roots = certificates("the roots", roots)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|e| CredentialsError::Pem { what: "the private key", reason: e.to_string() })?;
        Self::from_der(chain, key, &roots)
    }

    /// From DER parts.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: &[CertificateDer<'_>],
    ) -> Result<Self, CredentialsError> {
        let leaf = chain.first().ok_or(CredentialsError::Empty("the certificate chain"))?;
        if chain.len() > CHAIN_CERTIFICATES_MAX {
            return Err(CredentialsError::TooMany {
                what: "the certificate chain",
                max: CHAIN_CERTIFICATES_MAX,
            });
        }
        let identity = identity_of(leaf).map_err(CredentialsError::Identity)?;
        let roots = anchors(roots)?;
        let certified_key = CertifiedKey::from_der(chain, key, context::provider()).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => CredentialsError::KeyMismatch,
            other => CredentialsError::Key(other.to_string()),
        })?;
        Ok(Self {
            shared: Arc::new(Shared {
                identity,
                certified_key: Arc::new(certified_key),
                roots,
                revocation: RevocationLists::default(),
                verified: VerifiedChains::default(),
            }),
        })
    }

    /// Credentials that are wrong on purpose: a certificate that names nobody, or several.
    #[cfg(test)]
    pub(super) fn from_der_unchecked(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: &[CertificateDer<'_>],
        identity: Identity,
    ) -> Self {
        let certified_key = CertifiedKey::from_der(chain, key, context::provider()).unwrap();
        Self {
            shared: Arc::new(Shared {
                identity,
                certified_key: Arc::new(certified_key),
                roots: anchors(roots).unwrap(),
                revocation: RevocationLists::default(),
                verified: VerifiedChains::default(),
            }),
        }
    }

    /// Of a thief: the certificate of one, the key of another.
    #[cfg(test)]
    pub(super) fn with_key_of(victim: &Self, thief: &Self) -> Self {
        let key = Arc::clone(&thief.shared.certified_key.key);
        Self {
            shared: Arc::new(Shared {
                identity: victim.shared.identity.clone(),
                certified_key: Arc::new(CertifiedKey::new(victim.chain().to_vec(), key)),
                roots: victim.shared.roots.clone(),
                revocation: RevocationLists::default(),
                verified: VerifiedChains::default(),
            }),
        }
    }

    /// For peers of other make in tests: presents our certificate, with our key.
    #[cfg(test)]
    pub(crate) fn resolver(&self) -> Arc<rustls::sign::SingleCertAndKey> {
        Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&self.shared.certified_key)))
    }

    /// The same credentials, refusing every peer that one of `lists` revokes. Peers on which they say nothing pass.
    #[must_use]
    pub fn with_revocation_lists(&self, lists: &RevocationLists) -> Self {
        Self {
            shared: Arc::new(Shared {
                identity: self.shared.identity.clone(),
                certified_key: Arc::clone(&self.shared.certified_key),
                roots: self.shared.roots.clone(),
                revocation: lists.clone(),
                verified: VerifiedChains::default(),
            }),
        }
    }

    /// Who these credentials say we are.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// The chain that we present, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.shared.certified_key.cert
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.shared.identity)
            .field("chain_certificates", &self.chain().len())
            .field("roots", &self.shared.roots.len())
            .finish_non_exhaustive()
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(ROOTS_MAX + 1).collect();
    let found = found.map_err(|e| CredentialsError::Pem { what, reason: e.to_string() })?;
    if found.is_empty() {
        return Err(CredentialsError::Empty(what));
    }
    Ok(found)
}

fn anchors(roots: &[CertificateDer<'_>]) -> Result<Vec<TrustAnchor<'static>>, CredentialsError> {
    if roots.is_empty() {
        return Err(CredentialsError::Empty("the roots"));
    }
    if roots.len() > ROOTS_MAX {
        return Err(CredentialsError::TooMany { what: "the roots", max: ROOTS_MAX });
    }
    let anchor = |(index, root): (usize, &CertificateDer<'_>)| {
        webpki::anchor_from_trusted_cert(root)
            .map(|anchor| anchor.to_owned())
            .map_err(|e| CredentialsError::Root { index, reason: e.to_string() })
    };
    roots.iter().enumerate().map(anchor).collect()
}
