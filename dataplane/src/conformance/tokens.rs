//! Tokens of cases: signed here, with a key that stands for the issuers'.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use l7::jwt::Authenticator;
use serde_json::{Map, Value, json};
use xds::kube::convert::request_authentication;

use super::objects;

/// What a case writes in the place of the issuers' keys.
const PLACEHOLDER: &str = "{JWKS}";
const KEY: &[u8] = b"the key that every issuer of the cases signs with";
const WRONG_KEY: &[u8] = b"a key that no issuer of the cases has published";

/// The token of a request.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Jwt {
    claims: Map<String, Value>,
    key: Option<WrongKey>,
    header: Option<String>,
    #[serde(rename = "param")]
    parameter: Option<String>,
}

#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrongKey {
    Wrong,
}

/// The token rules of a group, through the YAML front end.
pub(super) fn compile(written: &[Value]) -> Result<Authenticator, String> {
    let jwks = json!({ "keys": [{ "kty": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(KEY) }] });
    let jwks = Value::from(jwks.to_string()).to_string();
    let with_keys = |object: &Value| {
        let text = object.to_string().replace(&Value::from(PLACEHOLDER).to_string(), &jwks);
        serde_json::from_str(&text).map_err(|error| error.to_string())
    };
    let objects: Vec<Value> = written.iter().map(with_keys).collect::<Result<_, _>>()?;
    let catalog = objects::read(&objects)?;
    let read = catalog.request_authentications.values();
    let converted: Vec<_> = read.map(|it| request_authentication::convert(it)).collect();
    Ok(Authenticator::compile(&converted))
}

impl Jwt {
    fn sign(&self) -> Result<String, String> {
        let key = if self.key.is_some() { WRONG_KEY } else { KEY };
        let header = Header::new(Algorithm::HS256);
        let signed = jsonwebtoken::encode(&header, &self.claims, &EncodingKey::from_secret(key));
        signed.map_err(|error| error.to_string())
    }

    /// The target of a request with its token in the query, if that is its place.
    pub(super) fn target(&self, target: &str) -> Result<String, String> {
        let Some(parameter) = &self.parameter else { return Ok(target.to_owned()) };
        let sign = if target.contains('?') { '&' } else { '?' };
        Ok(format!("{target}{sign}{parameter}={}", self.sign()?))
    }

    /// The header line of the token, if that is its place.
    pub(super) fn header(&self) -> Result<Option<(String, String)>, String> {
        Ok(match (&self.parameter, &self.header) {
            (Some(_), _) => None,
            (None, Some(name)) => Some((name.clone(), self.sign()?)),
            (None, None) => Some(("authorization".to_owned(), format!("Bearer {}", self.sign()?))),
        })
    }
}
