//! What a workload proves itself with, as plain bytes; TLS configurations are made of it elsewhere.

use std::fmt;
use std::time::{Duration, SystemTime};

use model::Identity;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Certificates in one answer; more are refused.
const CERTIFICATES_MAX: usize = 64;

/// A certificate with its key and the roots to check peers against.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateBundle {
    pub identity: Identity,
    /// The leaf, then the intermediates, without the root.
    pub chain_der: Vec<Vec<u8>>,
    /// PKCS#8.
    pub key_pkcs8_der: Vec<u8>,
    pub roots_der: Vec<Vec<u8>>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Why an answer of the authority cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("{0} elements in the chain; the authority must send the leaf and, last, the root")]
    TooShort(usize),
    #[error("more than {CERTIFICATES_MAX} certificates")]
    TooMany,
    #[error("element {element} of the chain: {what}")]
    Certificate { element: usize, what: String },
    #[error("the certificate names {got:?} instead of {want}; the authority does not let us speak for it")]
    Identity { want: Identity, got: Vec<String> },
    #[error("the certificate is for another key than the one that was sent")]
    Key,
}

impl CertificateBundle {
    /// Reads the answer of the authority and checks that it is what was asked for. `public_key` is the
    /// SubjectPublicKeyInfo of the key that was sent.
    pub fn from_chain(
        identity: Identity,
        chain: &[String],
        key_pkcs8_der: Vec<u8>,
        public_key: &[u8],
    ) -> Result<Self, BundleError> {
        let [leading @ .., last] = chain else { return Err(BundleError::TooShort(0)) };
        if leading.is_empty() {
            return Err(BundleError::TooShort(chain.len()));
        }
        let mut chain_der = Vec::new();
        for (element, pem) in leading.iter().enumerate() {
            chain_der.extend(certificates(element, pem)?);
        }
        let roots_der = certificates(leading.len(), last)?;
        if chain_der.len() + roots_der.len() > CERTIFICATES_MAX {
            return Err(BundleError::TooMany);
        }
        let fault = |what: String| BundleError::Certificate { element: 0, what };
        let first = chain_der.first().ok_or_else(|| fault("empty".to_owned()))?;
        let (_, leaf) = X509Certificate::from_der(first).map_err(|error| fault(error.to_string()))?;
        if leaf.public_key().raw != public_key {
            return Err(BundleError::Key);
        }
        let names = uris(&leaf).map_err(fault)?;
        if !names.iter().any(|name| name == identity.uri()) {
            return Err(BundleError::Identity { want: identity, got: names });
        }
        let not_before = time(leaf.validity().not_before.timestamp());
        let not_after = time(leaf.validity().not_after.timestamp());
        Ok(Self { identity, chain_der, key_pkcs8_der, roots_der, not_before, not_after })
    }
}

fn certificates(element: usize, pem: &str) -> Result<Vec<Vec<u8>>, BundleError> {
    let fault = |what: String| BundleError::Certificate { element, what };
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(CERTIFICATES_MAX + 1)
        .map(|it| it.map(|it| it.to_vec()).map_err(|error| fault(error.to_string())))
        .collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        return Err(fault("no PEM certificate in it".to_owned()));
    }
    Ok(found)
}

fn uris(leaf: &X509Certificate<'_>) -> Result<Vec<String>, String> {
    let names = leaf.subject_alternative_name().map_err(|error| error.to_string())?;
    let names = names.iter().flat_map(|it| &it.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect())
}

/// Seconds since the epoch; a time before it is the epoch.
fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

impl fmt::Debug for CertificateBundle {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateBundle")
            .field("identity", &self.identity)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
