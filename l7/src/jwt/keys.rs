//! The keys of an issuer (JWKS, RFC 7517) and the verification of signatures.

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde::de::IgnoredAny;

use super::Rejection;

/// Keys of one issuer.
const KEYS_MAX: usize = 64;

/// The kinds of keys that can verify something here.
const KINDS: [&str; 4] = ["RSA", "EC", "OKP", "oct"];

/// Why a JWKS cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    #[error("no JWKS: {0}")]
    Syntax(String),
    #[error("key {index}: {reason}")]
    Key { index: usize, reason: String },
    #[error("{0} keys; at most {KEYS_MAX} are taken")]
    TooMany(usize),
}

/// The keys that can verify something.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    keys: Box<[Key]>,
}

struct Key {
    id: Option<Box<str>>,
    /// The only algorithm, if the key names one.
    algorithm: Option<Algorithm>,
    decoding: DecodingKey,
}

/// Whether a JWKS can be used, key by key. Keys of kinds that nobody here can verify with are no error: an issuer may
/// publish keys for others.
pub fn check_jwks(text: &str) -> Result<(), JwksError> {
    read(text).map(drop)
}

fn read(text: &str) -> Result<Vec<Key>, JwksError> {
    #[derive(serde::Deserialize)]
    struct Raw {
        keys: Vec<serde_json::Value>,
    }
    let raw: Raw = serde_json::from_str(text).map_err(|error| JwksError::Syntax(error.to_string()))?;
    if raw.keys.len() > KEYS_MAX {
        return Err(JwksError::TooMany(raw.keys.len()));
    }
    let mut keys = Vec::new();
    for (index, value) in raw.keys.into_iter().enumerate() {
        let failed = |reason: String| JwksError::Key { index, reason };
        let kind = value.get("kty").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        let jwk: Jwk = serde_json::from_value(value).map_err(|error| failed(error.to_string()))?;
        if matches!(jwk.algorithm, AlgorithmParameters::Other(_)) {
            if KINDS.contains(&&*kind) {
                return Err(failed(format!("has not the parameters that a key of kty {kind} has")));
            }
            continue;
        }
        let decoding = DecodingKey::from_jwk(&jwk).map_err(|error| failed(error.to_string()))?;
        let algorithm = jwk.common.key_algorithm.and_then(|name| name.to_string().parse().ok());
        keys.push(Key { id: jwk.common.key_id.map(Into::into), algorithm, decoding });
    }
    Ok(keys)
}

impl KeySet {
    /// None of a JWKS that cannot be read: then no token is valid.
    pub(super) fn read(text: &str) -> Self {
        Self { keys: read(text).unwrap_or_default().into() }
    }

    /// Whether one of the keys made the signature. A token that names its key is tried with no other.
    pub(super) fn verify(&self, token: &str, header: &Header) -> Result<(), Rejection> {
        let mut validation = Validation::new(header.alg);
        // Times, issuer and audience have been checked already, by our own clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let mut fitting = self.keys.iter().filter(|key| key.fits(header)).peekable();
        if fitting.peek().is_none() {
            return Err(Rejection::NoKey);
        }
        let verifies =
            |key: &Key| jsonwebtoken::decode::<IgnoredAny>(token, &key.decoding, &validation).is_ok();
        if fitting.any(verifies) { Ok(()) } else { Err(Rejection::Signature) }
    }
}

impl Key {
    fn fits(&self, header: &Header) -> bool {
        let named = match (&header.kid, &self.id) {
            (Some(wanted), Some(own)) => **wanted == **own,
            _ => true,
        };
        named
            && self.decoding.family() == header.alg.family()
            && self.algorithm.is_none_or(|algorithm| algorithm == header.alg)
    }
}

impl std::fmt::Debug for Key {
    /// A key may be a shared secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}
