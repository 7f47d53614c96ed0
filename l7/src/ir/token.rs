//! Tokens: whose are taken, and where they are looked for.

use std::sync::Arc;

use model::SourceRef;

use super::HeaderValue;

/// One RequestAuthentication: whose tokens are taken, and where they are looked for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestAuthentication {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub rules: Vec<TokenRule>,
    pub source: Option<SourceRef>,
}

/// The tokens of one issuer (`JWTRule`).
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRule {
    /// The claim `iss`.
    pub issuer: Arc<str>,
    /// One of these must be in `aud`; empty: any token of the issuer.
    pub audiences: Vec<Arc<str>>,
    /// The keys of the issuer, a JWKS (RFC 7517).
    pub jwks: Arc<str>,
    /// Header (lower case) and what stands before the token. Without any `from_`: Authorization and `access_token`.
    pub from_headers: Vec<HeaderValue>,
    pub from_parameters: Vec<Arc<str>>,
    pub from_cookies: Vec<Arc<str>>,
    /// The application gets the token, too.
    pub forward_original: bool,
    /// Header (lower case) that takes the claims in base64url.
    pub payload_to_header: Option<Arc<str>>,
    /// Header (lower case) and the claim that it takes.
    pub claims_to_headers: Vec<(Arc<str>, Arc<str>)>,
    /// Claims that are lists written as one text, beside `scope` and `permission`.
    pub space_delimited_claims: Vec<Arc<str>>,
}
