//! Tokens of requests (JWT, RFC 7519): where they are looked for, what makes one valid, and what it says of its bearer.
//!
//! [`Authenticator::compile`] takes the RequestAuthentications that govern a workload. For each request
//! [`Authenticator::authenticate`] then answers one of three: there is no token, there is a valid one, or there is one
//! that is not. Only the last is an error; whether a request without a token may pass is for the policies to say.
//!
//! Invariants:
//! - A rule whose keys could not be read holds none, so every token of its issuer is refused.
//! - A key verifies only signatures of its own kind: a public key is never taken for a shared secret.
//! - What a token says is used only after its signature, its times and its audience were found good.
//! - The clock is an argument.

mod keys;
mod location;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;

use crate::ir::{Filters, Header, HeaderEdits, HeaderValue, RequestAuthentication, RequestHead, TokenRule};
use keys::KeySet;
use location::{Found, Holder, Locations};
use token::Unverified;

pub use keys::{JwksError, check_jwks};
pub use token::Token;

/// Tokens of one request that are looked at; a request with more is refused.
const TOKENS_MAX: usize = 8;

/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Seconds by which clocks may differ, as Envoy allows.
const LEEWAY_SECONDS: u64 = 60;

/// The token rules that govern a workload.
#[derive(Debug, Default)]
pub struct Authenticator {
    rules: Box<[Rule]>,
}

#[derive(Debug)]
struct Rule {
    written: TokenRule,
    locations: Locations,
    keys: KeySet,
}

/// Why a request with a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.body())]
pub enum Rejection {
    Malformed,
    UnknownIssuer,
    Expired,
    NotYetValid,
    Audience,
    NoKey,
    Signature,
    TooMany,
}

/// What authentication found.
#[derive(Debug, Default)]
pub struct Authenticated {
    /// `None`: the request carries no token.
    pub token: Option<Token>,
    /// What the application gets to see: tokens taken out, claims put in. Without a token, too, for a client must not be
    /// able to write the fields that stand for a verified claim.
    pub edits: Option<Arc<Filters>>,
}

// === impl Rejection ===

impl Rejection {
    /// 403 where the bearer is known and not meant, 401 otherwise.
    pub fn status(self) -> u16 {
        match self {
            Self::Audience => 403,
            _ => 401,
        }
    }

    /// The text of the answer: Envoy's, which clients know.
    pub fn body(self) -> &'static str {
        match self {
            Self::Malformed => {
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
            }
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::Expired => "Jwt is expired",
            Self::NotYetValid => "Jwt not yet valid",
            Self::Audience => "Audiences in Jwt are not allowed",
            Self::NoKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::Signature => "Jwt verification fails",
            Self::TooMany => "more tokens than are looked at",
        }
    }

    /// Value of `www-authenticate` (RFC 6750 section 3). The URL is without its query, which may hold the token.
    pub fn challenge(request: &RequestHead<'_>) -> String {
        // A quote would end the value. Neither part can hold one: authority and path are checked before.
        let url: String = ["http://", request.authority, request.path].concat();
        let url = url.replace(['"', '\\'], "");
        format!("Bearer realm=\"{url}\", error=\"invalid_token\"")
    }

    /// The more telling of two: that an issuer is unknown says only that another rule was meant.
    fn or(self, other: Self) -> Self {
        if self == Self::UnknownIssuer { other } else { self }
    }
}

// === impl Authenticator ===

impl Authenticator {
    /// Never fails: a rule whose keys cannot be read refuses its issuer's tokens. [`check_jwks`] says why they cannot.
    pub fn compile<'a>(policies: impl IntoIterator<Item = &'a RequestAuthentication>) -> Self {
        let rules = policies.into_iter().flat_map(|policy| &policy.rules).map(|rule| Rule {
            locations: Locations::of(rule),
            keys: KeySet::read(&rule.jwks),
            written: rule.clone(),
        });
        Self { rules: rules.collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Looks for tokens and verifies them; `now` in seconds since the epoch.
    ///
    /// One valid token is enough. A request with tokens of which none is valid is refused, except a CORS preflight,
    /// which browsers send without asking anybody.
    pub fn authenticate(&self, request: &RequestHead<'_>, now: u64) -> Result<Authenticated, Rejection> {
        let mut edits = Filters { request_headers: self.guarded_headers(), ..Filters::default() };
        if is_preflight(request) {
            return Ok(Authenticated { token: None, edits: finished(edits) });
        }
        let mut seen = 0;
        let mut rejection: Option<Rejection> = None;
        for rule in &self.rules {
            for found in rule.locations.tokens(request) {
                seen += 1;
                if seen > TOKENS_MAX {
                    return Err(Rejection::TooMany);
                }
                match rule.verify(found.text, now) {
                    Ok(token) => {
                        rule.hand_on(&token, &found, &mut edits);
                        return Ok(Authenticated { token: Some(token), edits: finished(edits) });
                    }
                    Err(reason) => rejection = Some(rejection.map_or(reason, |first| first.or(reason))),
                }
            }
        }
        match rejection {
            Some(rejection) => Err(rejection),
            None => Ok(Authenticated { token: None, edits: finished(edits) }),
        }
    }

    /// Fields that only a verified token may fill are taken out of every request.
    fn guarded_headers(&self) -> HeaderEdits {
        let mut edits = HeaderEdits::default();
        for Rule { written, .. } in &self.rules {
            let claims = written.claims_to_headers.iter().map(|(header, _)| header);
            edits.remove.extend(written.payload_to_header.iter().chain(claims).cloned());
        }
        edits
    }
}

impl Rule {
    fn verify(&self, text: &str, now: u64) -> Result<Token, Rejection> {
        let unverified = Unverified::parse(text)?;
        unverified.check(&self.written, now)?;
        self.keys.verify(text, unverified.header())?;
        Ok(unverified.into_token(&self.written))
    }

    /// What the application gets of a verified token.
    fn hand_on(&self, token: &Token, found: &Found<'_>, edits: &mut Filters) {
        match found.holder {
            _ if self.written.forward_original => {}
            Holder::Header(name) => edits.request_headers.remove.push(Arc::from(name.to_ascii_lowercase())),
            Holder::Parameter(name) => edits.query.remove.push(Arc::from(name)),
            // Envoy leaves it, too.
            Holder::Cookie => {}
        }
        let mut put = |name: &Arc<str>, value: String| {
            edits.request_headers.set.push(HeaderValue { name: Arc::clone(name), value: value.into() });
        };
        if let Some(header) = &self.written.payload_to_header {
            put(header, token.payload().to_owned());
        }
        for (header, claim) in &self.written.claims_to_headers {
            if let Some(value) = token.claim_as_text(claim) {
                put(header, value);
            }
        }
    }
}

fn finished(edits: Filters) -> Option<Arc<Filters>> {
    (edits != Filters::default()).then(|| Arc::new(edits))
}

/// A CORS preflight (Fetch standard, "CORS-preflight request").
fn is_preflight(request: &RequestHead<'_>) -> bool {
    let has = |name: &str| {
        let filled = |header: &Header<'_>| header.name.eq_ignore_ascii_case(name) && !header.value.is_empty();
        request.headers.iter().any(filled)
    };
    request.method == "OPTIONS" && has("origin") && has("access-control-request-method")
}
