//! Certificate revocation lists (RFC 5280 section 5): whom a handshake refuses, and who must go later.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::VerifiedIdentity;

/// Lists taken at most: one for each certificate authority of a mesh.
pub const REVOCATION_LISTS_MAX: usize = 1_024;
/// Bytes read at most, over all lists.
pub const REVOCATION_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Lists that are in force together. Cheap to clone. Nobody is revoked by none, and a list says nothing of the
/// certificates of other issuers.
#[derive(Clone, Default)]
pub struct RevocationLists {
    lists: Arc<[CertRevocationList<'static>]>,
}

/// Why bytes are no revocation lists.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RevocationError {
    #[error("no revocation list found; expected PEM blocks \"X509 CRL\", or one list in DER")]
    Nothing,
    #[error("PEM block {index} cannot be read: {reason}")]
    Pem { index: usize, reason: String },
    #[error("revocation list {index} cannot be read: {reason}")]
    List { index: usize, reason: String },
    #[error("more than {REVOCATION_LISTS_MAX} revocation lists or {REVOCATION_BYTES_MAX} bytes")]
    TooMuch,
}

impl RevocationLists {
    /// From PEM blocks one behind the other, or a single list in DER. All must be readable: half of a revocation list
    /// would let the other half in. Text without any block is an error as well, so that a truncated file is noticed.
    pub fn parse(bytes: &[u8]) -> Result<Self, RevocationError> {
        if bytes.len() > REVOCATION_BYTES_MAX {
            return Err(RevocationError::TooMuch);
        }
        let list = |index: usize, der: &[u8]| {
            OwnedCertRevocationList::from_der(der)
                .map(CertRevocationList::from)
                .map_err(|error| RevocationError::List { index, reason: error.to_string() })
        };
        // The tag of a DER sequence; no PEM text starts with it.
        if bytes.first() == Some(&0x30) {
            return Ok(Self { lists: Arc::from([list(0, bytes)?]) });
        }
        let mut lists = Vec::new();
        for (index, der) in CertificateRevocationListDer::pem_slice_iter(bytes).enumerate() {
            if index >= REVOCATION_LISTS_MAX {
                return Err(RevocationError::TooMuch);
            }
            let der = der.map_err(|error| RevocationError::Pem { index, reason: error.to_string() })?;
            lists.push(list(index, &der)?);
        }
        if lists.is_empty() {
            return Err(RevocationError::Nothing);
        }
        Ok(Self { lists: lists.into() })
    }

    pub fn len(&self) -> usize {
        self.lists.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Whether both are one and the same reading.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lists, &other.lists) || (self.is_empty() && other.is_empty())
    }

    /// Whether a certificate that proved the peer is revoked: end its connection then.
    pub fn revokes(&self, peer: &VerifiedIdentity) -> bool {
        peer.names().any(|(issuer, serial)| {
            // A list that cannot be read to its end might have held the name: it counts as revoked.
            self.of(issuer).any(|list| !matches!(list.find_serial(serial), Ok(None)))
        })
    }

    /// Whether some list speaks of the issuer of the peer's own certificate.
    pub fn covers(&self, peer: &VerifiedIdentity) -> bool {
        peer.names().next().is_some_and(|(issuer, _)| self.of(issuer).next().is_some())
    }

    fn of(&self, issuer: &[u8]) -> impl Iterator<Item = &CertRevocationList<'static>> {
        self.lists.iter().filter(move |list| list.issuer() == issuer)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &CertRevocationList<'static>> {
        self.lists.iter()
    }
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevocationLists").field("lists", &self.lists.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::Authority;

    #[test]
    fn pem_with_several_lists_and_a_single_der_are_read() {
        let (one, two) = (Authority::named("one").revoke(1), Authority::named("two").revoke(2));
        let both = RevocationLists::parse(format!("# of today\n{one}\n{two}").as_bytes()).unwrap();
        assert_eq!(both.len(), 2);
        let der = CertificateRevocationListDer::from_pem_slice(one.as_bytes()).unwrap();
        assert_eq!(RevocationLists::parse(&der).unwrap().len(), 1);
        assert!(both.is_same(&both.clone()));
        assert!(!both.is_same(&RevocationLists::default()));
    }

    #[test]
    fn what_is_not_wholly_readable_is_an_error() {
        let list = Authority::new().revoke(1);
        let cut = format!("{list}{}", &list[..list.len() / 2]);
        let other = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
        for bytes in ["", "no list", &cut, other, &format!("{list}{other}")] {
            assert!(RevocationLists::parse(bytes.as_bytes()).is_err(), "{bytes}");
        }
        assert!(RevocationLists::parse(&[0x30, 0x03, 1, 2]).is_err());
        assert!(matches!(
            RevocationLists::parse(&vec![b'\n'; REVOCATION_BYTES_MAX + 1]),
            Err(RevocationError::TooMuch)
        ));
    }

    #[test]
    fn fuzz_revocation_lists() {
        let list = Authority::new().revoke(1);
        let der = CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap();
        bolero::check!().with_type::<(u16, u8, Vec<u8>)>().for_each(|(at, with, bytes)| {
            let _arbitrary = RevocationLists::parse(bytes);
            let mut damaged = der.to_vec();
            let at = usize::from(*at) % damaged.len();
            damaged[at] = *with;
            if let Ok(lists) = RevocationLists::parse(&damaged) {
                assert_eq!(lists.len(), 1);
            }
        });
    }
}
