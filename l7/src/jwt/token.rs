//! One token: its claims, before and after they can be trusted.

use jsonwebtoken::Header;
use serde_json::{Map, Value};

use super::{LEEWAY_SECONDS, Rejection, TOKEN_BYTES_MAX};
use crate::ir::TokenRule;

/// Claims that are lists written as one text (RFC 8693 section 4.2), whatever the rule says.
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// A token whose signature nobody has looked at.
pub(super) struct Unverified<'a> {
    header: Header,
    claims: Map<String, Value>,
    payload: &'a str,
}

/// What a verified token says.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    claims: Map<String, Value>,
    payload: Box<str>,
    /// `ISSUER/SUBJECT`, if it has both. Slashes of the subject are written as NUL, see [`Token::principal`].
    principal: Option<Box<str>>,
    space_delimited: Box<[Box<str>]>,
}

// === impl Unverified ===

impl<'a> Unverified<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, Rejection> {
        let mut parts = text.split('.');
        let (Some(_), Some(payload), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Rejection::Malformed);
        };
        if text.len() > TOKEN_BYTES_MAX {
            return Err(Rejection::Malformed);
        }
        let decoded = jsonwebtoken::dangerous::insecure_decode::<Map<String, Value>>(text);
        let decoded = decoded.map_err(|_| Rejection::Malformed)?;
        Ok(Self { header: decoded.header, claims: decoded.claims, payload })
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// Everything but the signature. In Envoy's order, so that the same fault is named.
    pub(super) fn check(&self, rule: &TokenRule, now: u64) -> Result<(), Rejection> {
        if self.text("iss") != Some(&rule.issuer) {
            return Err(Rejection::UnknownIssuer);
        }
        if self.time("nbf")?.is_some_and(|time| now.saturating_add(LEEWAY_SECONDS) < time) {
            return Err(Rejection::NotYetValid);
        }
        if self.time("exp")?.is_some_and(|time| now > time.saturating_add(LEEWAY_SECONDS)) {
            return Err(Rejection::Expired);
        }
        let wanted = |audience: &str| rule.audiences.iter().any(|it| same_audience(it, audience));
        if !rule.audiences.is_empty() && !texts(self.claims.get("aud")).any(wanted) {
            return Err(Rejection::Audience);
        }
        Ok(())
    }

    pub(super) fn into_token(self, rule: &TokenRule) -> Token {
        let principal = match (self.text("iss"), self.text("sub")) {
            (Some(issuer), Some(subject)) if !issuer.is_empty() && !subject.is_empty() => {
                Some([issuer, "/", &subject.replace('/', "\0")].concat().into())
            }
            _ => None,
        };
        let listed = rule.space_delimited_claims.iter().map(AsRef::as_ref);
        let space_delimited = SPACE_DELIMITED.into_iter().chain(listed).map(Into::into).collect();
        Token { principal, payload: self.payload.into(), space_delimited, claims: self.claims }
    }

    fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim)?.as_str()
    }

    /// Seconds since the epoch. A time that is none makes the token unusable, not timeless.
    fn time(&self, claim: &str) -> Result<Option<u64>, Rejection> {
        match self.claims.get(claim) {
            None => Ok(None),
            Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
                (Some(seconds), _) => Ok(Some(seconds)),
                // Before the epoch: long past. Fractions count down.
                (None, Some(seconds)) if seconds < 0.0 => Ok(Some(0)),
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                // saturates, which is meant
                (None, Some(seconds)) => Ok(Some(seconds as u64)),
                (None, None) => Err(Rejection::Malformed),
            },
            Some(_) => Err(Rejection::Malformed),
        }
    }
}

/// Audiences are often URLs: their scheme and a slash at their end do not count.
fn same_audience(wanted: &str, audience: &str) -> bool {
    fn bare(text: &str) -> &str {
        let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        text.strip_suffix('/').unwrap_or(text)
    }
    bare(wanted) == bare(audience)
}

/// The texts of a claim that is one or a list of them; numbers and truth values never match anything.
fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let (one, list) = match value {
        Some(Value::String(text)) => (Some(text.as_str()), &[][..]),
        Some(Value::Array(list)) => (None, list.as_slice()),
        _ => (None, &[][..]),
    };
    one.into_iter().chain(list.iter().filter_map(Value::as_str))
}

// === impl Token ===

impl Token {
    /// `ISSUER/SUBJECT`, to be compared with a policy's text, whose last slash divides the two. A slash inside the
    /// subject therefore stands as NUL, which no policy can write: else an issuer could name a subject `b/c` and be
    /// taken for the issuer `ISSUER/b`.
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        texts(self.claims.get("aud"))
    }

    /// Who asked for the token (`azp`).
    pub fn presenter(&self) -> Option<&str> {
        self.claims.get("azp")?.as_str()
    }

    /// The texts of the claim at a path; more than one if it is a list, or a list written as one text.
    pub fn claim<'a>(&'a self, path: &[impl AsRef<str>]) -> impl Iterator<Item = &'a str> {
        let mut at = None;
        for (depth, name) in path.iter().enumerate() {
            let inside = if depth == 0 { Some(&self.claims) } else { at.and_then(Value::as_object) };
            at = inside.and_then(|map| map.get(name.as_ref()));
        }
        let splits = match path {
            [name] => self.space_delimited.iter().any(|it| **it == *name.as_ref()),
            _ => false,
        };
        texts(at).flat_map(move |text| {
            // Without splitting the text is its own only piece.
            let (whole, pieces) = if splits { (None, Some(text.split(' '))) } else { (Some(text), None) };
            whole.into_iter().chain(pieces.into_iter().flatten().filter(|piece| !piece.is_empty()))
        })
    }

    /// The claims as they came, in base64url.
    pub(super) fn payload(&self) -> &str {
        &self.payload
    }

    /// A claim for a header: texts, numbers and truth values only, and only what a header can hold.
    pub(super) fn claim_as_text(&self, name: &str) -> Option<String> {
        let text = match self.claims.get(name)? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            _ => return None,
        };
        text.bytes().all(|byte| (b' '..0x7f).contains(&byte)).then_some(text)
    }
}
