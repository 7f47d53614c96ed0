//! SPIFFE identity of a workload: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";

/// A verified-by-construction SPIFFE identity of the five-part form that Istio uses.
///
/// Cloning is one reference count. Equality is byte equality of the whole URI, never a normalised form:
/// two spellings of one name are two identities.
#[derive(Clone)]
pub struct Identity {
    uri: Arc<str>,
    /// End of the trust domain in `uri`.
    trust_domain_end: u32,
    /// End of the namespace in `uri`.
    namespace_end: u32,
}

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("{0:?} does not start with spiffe://")]
    Scheme(String),
    #[error("{0:?} is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    Shape(String),
    #[error("{0:?} holds a character that no identity may hold (only a-z A-Z 0-9 . - _ : are allowed)")]
    Character(String),
    #[error("an identity of {0} bytes is longer than 2048")]
    Length(usize),
}

/// Longest identity accepted, as the SPIFFE-ID specification section 2.3 sets it.
const IDENTITY_BYTES_MAX: usize = 2048;

impl Identity {
    /// Builds an identity from its parts; each part must be a single valid path segment.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, IdentityError> {
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The whole URI, `spiffe://` included.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The form that policies compare: the URI without `spiffe://`.
    pub fn principal(&self) -> &str {
        self.slice(SCHEME.len(), self.uri.len())
    }

    pub fn trust_domain(&self) -> &str {
        self.slice(SCHEME.len(), self.trust_domain_end as usize)
    }

    pub fn namespace(&self) -> &str {
        self.slice(self.trust_domain_end as usize + "/ns/".len(), self.namespace_end as usize)
    }

    pub fn service_account(&self) -> &str {
        self.slice(self.namespace_end as usize + "/sa/".len(), self.uri.len())
    }

    /// Whether this is not the only copy, so that whoever keeps it does not keep it alone.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.uri) > 1
    }

    fn slice(&self, start: usize, end: usize) -> &str {
        self.uri.get(start..end).unwrap_or_default()
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > IDENTITY_BYTES_MAX {
            return Err(IdentityError::Length(text.len()));
        }
        let path = text.strip_prefix(SCHEME).ok_or_else(|| IdentityError::Scheme(text.to_owned()))?;
        let mut parts = path.split('/');
        let mut next = || parts.next();
        let (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (next(), next(), next(), next(), next(), next())
        else {
            return Err(IdentityError::Shape(text.to_owned()));
        };
        for part in [trust_domain, namespace, account] {
            if part.is_empty() || part == "." || part == ".." {
                return Err(IdentityError::Shape(text.to_owned()));
            }
            // `:` is legal in no Kubernetes name, but trust domains of some installations carry it.
            if !part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':')) {
                return Err(IdentityError::Character(text.to_owned()));
            }
        }
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = trust_domain_end + "/ns/".len() + namespace.len();
        // The length check above keeps both below u32::MAX.
        #[allow(clippy::cast_possible_truncation)]
        Ok(Self {
            uri: Arc::from(text),
            trust_domain_end: trust_domain_end as u32,
            namespace_end: namespace_end as u32,
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.uri)
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.uri == other.uri
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.uri.hash(state);
    }
}

impl PartialOrd for Identity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Identity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.uri.cmp(&other.uri)
    }
}

impl serde::Serialize for Identity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_back() {
        let id: Identity = "spiffe://cluster.local/ns/app/sa/web".parse().unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), "app");
        assert_eq!(id.service_account(), "web");
        assert_eq!(id.principal(), "cluster.local/ns/app/sa/web");
        assert_eq!(id, Identity::new("cluster.local", "app", "web").unwrap());
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in [
            "",
            "spiffe://",
            "https://cluster.local/ns/a/sa/b",
            "SPIFFE://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/sa/a/ns/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a\0/sa/b",
            "spiffe://cluster.local/ns/a b/sa/b",
            "spiffe://cluster.local/ns/a%2f/sa/b",
            "spiffe://cluster.local/ns/a?x/sa/b",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?} must be refused");
        }
        let long = format!("spiffe://t/ns/{}/sa/b", "n".repeat(IDENTITY_BYTES_MAX));
        assert!(matches!(long.parse::<Identity>(), Err(IdentityError::Length(_))));
    }

    #[test]
    fn fuzz_what_parses_prints_back() {
        bolero::check!().with_type::<String>().for_each(|text| {
            for candidate in [text.clone(), format!("spiffe://{text}"), format!("spiffe://a/ns/{text}/sa/b")]
            {
                if let Ok(id) = candidate.parse::<Identity>() {
                    assert_eq!(id.to_string(), candidate);
                    let again =
                        Identity::new(id.trust_domain(), id.namespace(), id.service_account()).unwrap();
                    assert_eq!(again, id);
                }
            }
        });
    }
}
