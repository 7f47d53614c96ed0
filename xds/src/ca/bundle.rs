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

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData, SanType};

    use super::*;

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        root_pem: String,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let root_pem = params.self_signed(&key).unwrap().pem();
            Self { issuer: Issuer::new(params, key), root_pem }
        }

        fn leaf(&self, key: &KeyPair, uris: &[&str]) -> String {
            let mut params = CertificateParams::default();
            params.subject_alt_names =
                uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
            params.signed_by(key, &self.issuer).unwrap().pem()
        }
    }

    const URI: &str = "spiffe://td/ns/n/sa/a";

    fn read(chain: &[String], key: &KeyPair) -> Result<CertificateBundle, BundleError> {
        let identity = URI.parse().unwrap();
        CertificateBundle::from_chain(identity, chain, key.serialize_der(), &key.subject_public_key_info())
    }

    #[test]
    fn a_chain_is_split_into_what_is_presented_and_what_is_trusted() {
        let (authority, key) = (Authority::new(), KeyPair::generate().unwrap());
        let (leaf, root) = (authority.leaf(&key, &[URI]), authority.root_pem);
        let bundle = read(&[leaf.clone(), root.clone()], &key).unwrap();
        assert_eq!((bundle.chain_der.len(), bundle.roots_der.len()), (1, 1));
        assert!(bundle.not_before < bundle.not_after);
        // Blocks may be concatenated, and intermediates come between.
        let bundle = read(&[leaf.clone(), root.clone(), format!("{root}{root}")], &key).unwrap();
        assert_eq!((bundle.chain_der.len(), bundle.roots_der.len()), (2, 2));
        let bundle = read(&[format!("{leaf}{root}"), root], &key).unwrap();
        assert_eq!((bundle.chain_der.len(), bundle.roots_der.len()), (2, 1));
    }

    #[test]
    fn an_answer_that_is_not_what_was_asked_for_is_refused() {
        let (authority, key) = (Authority::new(), KeyPair::generate().unwrap());
        let (leaf, root) = (authority.leaf(&key, &[URI]), authority.root_pem.clone());
        assert_eq!(read(&[], &key).unwrap_err(), BundleError::TooShort(0));
        assert_eq!(read(std::slice::from_ref(&leaf), &key).unwrap_err(), BundleError::TooShort(1));
        let other = authority.leaf(&key, &["spiffe://td/ns/n/sa/b"]);
        let error = read(&[other, root.clone()], &key).unwrap_err();
        assert!(
            matches!(&error, BundleError::Identity { got, .. } if got == &["spiffe://td/ns/n/sa/b"]),
            "{error}"
        );
        let nameless = authority.leaf(&key, &[]);
        assert!(matches!(read(&[nameless, root.clone()], &key).unwrap_err(), BundleError::Identity { .. }));
        let foreign = authority.leaf(&KeyPair::generate().unwrap(), &[URI]);
        assert_eq!(read(&[foreign, root.clone()], &key).unwrap_err(), BundleError::Key);
        let error = read(&["junk".into(), root.clone()], &key).unwrap_err();
        assert!(matches!(error, BundleError::Certificate { element: 0, .. }), "{error}");
        let error = read(&[leaf.clone(), String::new()], &key).unwrap_err();
        assert!(matches!(error, BundleError::Certificate { element: 1, .. }), "{error}");
        assert_eq!(read(&[leaf, root.repeat(100)], &key).unwrap_err(), BundleError::TooMany);
    }

    #[test]
    fn fuzz_no_answer_makes_reading_panic() {
        // A static, because a key pair may not be carried across the fuzzer's unwind boundary.
        static KEY: std::sync::LazyLock<KeyPair> = std::sync::LazyLock::new(|| KeyPair::generate().unwrap());
        bolero::check!().with_type::<Vec<String>>().for_each(|chain| {
            let _ = read(chain, &KEY);
        });
    }
}
