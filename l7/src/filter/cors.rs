//! Cross-origin resource sharing: which preflights are answered, and what responses say (Fetch standard, section 3.2;
//! Gateway API, HTTPCORSFilter).
//!
//! The proxy refuses nothing: whether a page may read a response is the browser's decision, by the fields it finds.
//! Where an answer depends on what was asked, `vary` says so, or a cache would give one origin's answer to another.

use std::sync::Arc;

use crate::http1::is_token;
use crate::ir::{Cors, Header, HeaderEdits, HeaderValue, OriginMatch};
use crate::router::{Pattern, PatternError};

/// What a request asks for in `access-control-request-headers`, at most: more names nobody has.
const ASKED_BYTES_MAX: usize = 4096;

/// A CORS filter, compiled.
#[derive(Debug)]
pub struct CorsPolicy {
    cors: Arc<Cors>,
    origins: Vec<Origins>,
}

#[derive(Debug)]
enum Origins {
    Any,
    /// Compared without case: schemes and hosts have none.
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Pattern(Pattern),
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsVerdict {
    /// It goes on, and its response stays as it is.
    Pass,
    /// It goes on, and its response is edited.
    Share(HeaderEdits),
    /// It is a preflight, answered with 200 and these fields; none of them tells of sharing where the origin is not
    /// allowed.
    Answer(Vec<HeaderValue>),
}

/// The same policy compiles to the same.
impl PartialEq for CorsPolicy {
    fn eq(&self, other: &Self) -> bool {
        self.cors == other.cors
    }
}

impl CorsPolicy {
    pub fn compile(cors: &Arc<Cors>) -> Result<Self, PatternError> {
        let origin = |origin: &OriginMatch| {
            Ok(match origin {
                OriginMatch::Any => Origins::Any,
                OriginMatch::Exact(text) => Origins::Exact(text.clone()),
                OriginMatch::Prefix(text) => Origins::Prefix(text.clone()),
                OriginMatch::Glob(text) => Origins::Pattern(Pattern::compile(&glob(text))?),
                OriginMatch::Regex(text) => Origins::Pattern(Pattern::compile(text)?),
            })
        };
        Ok(Self { cors: cors.clone(), origins: cors.origins.iter().map(origin).collect::<Result<_, _>>()? })
    }

    pub fn judge(&self, method: &str, headers: &[Header<'_>]) -> CorsVerdict {
        let Some(origin) = one(headers, "origin") else { return CorsVerdict::Pass };
        let asked_method = one(headers, "access-control-request-method");
        let preflight = asked_method.filter(|_| method == "OPTIONS");
        let is_allowed = self.origins.iter().any(|own| own.allows(origin));
        match preflight {
            Some(_) if !is_allowed && self.cors.forward_unmatched_preflights => CorsVerdict::Pass,
            Some(_) if !is_allowed => CorsVerdict::Answer(vec![value("vary", "origin")]),
            Some(asked) => CorsVerdict::Answer(self.answer(origin, asked, headers)),
            None if is_allowed => CorsVerdict::Share(self.share(origin)),
            None => CorsVerdict::Pass,
        }
    }

    /// Allowed for all alike, so that the answer need not name the origin.
    fn is_public(&self) -> bool {
        !self.cors.credentials && self.origins.iter().any(|own| matches!(own, Origins::Any))
    }

    fn share(&self, origin: &str) -> HeaderEdits {
        let mut edits = HeaderEdits { set: self.common(origin), ..HeaderEdits::default() };
        if !self.is_public() {
            edits.add.push(value("vary", "origin"));
        }
        edits
    }

    /// What preflights and responses both are told.
    fn common(&self, origin: &str) -> Vec<HeaderValue> {
        let allowed = if self.is_public() { "*" } else { origin };
        let mut fields = vec![value("access-control-allow-origin", allowed)];
        if self.cors.credentials {
            fields.push(value("access-control-allow-credentials", "true"));
        }
        fields.extend(list("access-control-expose-headers", &self.cors.expose_headers));
        fields
    }

    fn answer(&self, origin: &str, asked_method: &str, headers: &[Header<'_>]) -> Vec<HeaderValue> {
        let mut fields = self.common(origin);
        let mut vary = String::from(if self.is_public() { "" } else { "origin" });
        let mut varies = |name: &str| {
            let separator = if vary.is_empty() { "" } else { ", " };
            vary.extend([separator, name]);
        };
        let asked_headers = one(headers, "access-control-request-headers").filter(|text| is_list(text));
        for (name, allowed, asked, asking) in [
            (
                "access-control-allow-methods",
                &self.cors.methods,
                Some(asked_method).filter(|method| is_list(method)),
                "access-control-request-method",
            ),
            (
                "access-control-allow-headers",
                &self.cors.headers,
                asked_headers,
                "access-control-request-headers",
            ),
        ] {
            let is_wild = allowed.iter().any(|own| &**own == "*");
            match asked {
                // With credentials a star is no wildcard (Fetch, section 3.2.5): what is asked for is granted by name.
                Some(asked) if is_wild && self.cors.credentials => {
                    fields.push(value(name, asked));
                    varies(asking);
                }
                _ if is_wild && self.cors.credentials => {}
                _ if is_wild => fields.push(value(name, "*")),
                _ => fields.extend(list(name, allowed)),
            }
        }
        if let Some(seconds) = self.cors.max_age_s {
            fields.push(value("access-control-max-age", &seconds.to_string()));
        }
        if !vary.is_empty() {
            fields.push(value("vary", &vary));
        }
        fields
    }
}

impl Origins {
    fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(own) => own.eq_ignore_ascii_case(origin),
            Self::Prefix(own) => origin.starts_with(&**own),
            Self::Pattern(pattern) => pattern.is_match(origin.as_bytes()),
        }
    }
}

/// A star stands for labels of a host name, so for neither a slash nor a port.
fn glob(text: &str) -> Arc<str> {
    let mut pattern = String::from("(?i)");
    for letter in text.chars() {
        match letter {
            '*' => pattern.push_str("[^/:]+"),
            letter if letter.is_ascii_alphanumeric() => pattern.push(letter),
            letter => pattern.extend(["\\x{", &format!("{:x}", u32::from(letter)), "}"]),
        }
    }
    Arc::from(pattern)
}

/// The value of a header that stands once and can be written back.
fn one<'a>(headers: &'a [Header<'_>], name: &str) -> Option<&'a str> {
    let mut lines = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    let line = lines.next()?;
    let text = std::str::from_utf8(line.value).ok()?;
    let is_plain = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    (is_plain && lines.next().is_none()).then_some(text)
}

/// Names with commas between them.
fn is_list(text: &str) -> bool {
    text.len() <= ASKED_BYTES_MAX
        && text.split(',').all(|name| {
            let name = name.trim_matches(' ');
            !name.is_empty() && name.bytes().all(is_token)
        })
}

fn list(name: &str, values: &[Arc<str>]) -> Option<HeaderValue> {
    (!values.is_empty()).then(|| value(name, &values.join(", ")))
}

fn value(name: &str, value: &str) -> HeaderValue {
    HeaderValue { name: Arc::from(name), value: Arc::from(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<Arc<str>> {
        texts.iter().map(|text| Arc::from(*text)).collect()
    }

    fn policy(origins: Vec<OriginMatch>, credentials: bool, star: bool) -> CorsPolicy {
        let cors = Cors {
            origins,
            methods: names(if star { &["*"] } else { &["GET", "PUT"] }),
            headers: names(if star { &["*"] } else { &["x-a"] }),
            expose_headers: names(&["x-b", "x-c"]),
            credentials,
            max_age_s: Some(60),
            forward_unmatched_preflights: false,
        };
        CorsPolicy::compile(&Arc::new(cors)).unwrap()
    }

    fn head<'a>(fields: &[(&'a str, &'a str)]) -> Vec<Header<'a>> {
        fields.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect()
    }

    fn written(fields: &[HeaderValue]) -> Vec<String> {
        fields.iter().map(|field| format!("{}: {}", field.name, field.value)).collect()
    }

    const ASKS: (&str, &str) = ("Access-Control-Request-Method", "PUT");

    #[test]
    fn origins_are_told_apart() {
        let glob = || OriginMatch::Glob("https://*.bar.com".into());
        for (own, origin, expected) in [
            (glob(), "https://www.bar.com", true),
            (glob(), "https://a.b.BAR.com", true),
            (glob(), "https://bar.com", false),
            (glob(), "https://www.bar.com:8443", false),
            (glob(), "https://evil.com/.bar.com", false),
            (glob(), "https://wwwxbar.com", false),
            (glob(), "http://www.bar.com", false),
            (OriginMatch::Exact("https://foo.com".into()), "https://FOO.com", true),
            (OriginMatch::Exact("https://foo.com".into()), "https://foo.com.evil", false),
            (OriginMatch::Prefix("https://foo".into()), "https://foo.com", true),
            (OriginMatch::Regex("https://f.o".into()), "https://foo", true),
            (OriginMatch::Regex("https://f.o".into()), "https://foo.evil", false),
            (OriginMatch::Any, "null", true),
        ] {
            let shown = format!("{own:?} {origin}");
            let got = policy(vec![own], true, false).judge("GET", &head(&[("Origin", origin)]));
            assert_eq!(got != CorsVerdict::Pass, expected, "{shown}");
        }
    }

    #[test]
    fn a_preflight_is_answered_by_name_where_credentials_are_sent() {
        let asked = head(&[("origin", "https://a"), ASKS, ("access-control-request-headers", "x-1, x-2")]);
        let CorsVerdict::Answer(fields) = policy(vec![OriginMatch::Any], true, true).judge("OPTIONS", &asked)
        else {
            panic!()
        };
        assert_eq!(
            written(&fields),
            [
                "access-control-allow-origin: https://a",
                "access-control-allow-credentials: true",
                "access-control-expose-headers: x-b, x-c",
                "access-control-allow-methods: PUT",
                "access-control-allow-headers: x-1, x-2",
                "access-control-max-age: 60",
                "vary: origin, access-control-request-method, access-control-request-headers",
            ]
        );
        let CorsVerdict::Answer(fields) =
            policy(vec![OriginMatch::Any], false, true).judge("OPTIONS", &asked)
        else {
            panic!()
        };
        assert_eq!(
            written(&fields),
            [
                "access-control-allow-origin: *",
                "access-control-expose-headers: x-b, x-c",
                "access-control-allow-methods: *",
                "access-control-allow-headers: *",
                "access-control-max-age: 60",
            ]
        );
    }

    #[test]
    fn what_is_no_preflight_passes() {
        let own = policy(vec![OriginMatch::Exact("https://a".into())], false, false);
        let origin = ("origin", "https://a");
        let shared = |method, fields: &[_]| matches!(own.judge(method, &head(fields)), CorsVerdict::Share(_));
        assert!(shared("OPTIONS", &[origin]));
        assert!(shared("GET", &[origin, ASKS]));
        assert!(!shared("GET", &[origin, origin]));
        assert_eq!(own.judge("OPTIONS", &head(&[ASKS])), CorsVerdict::Pass);
        assert_eq!(own.judge("GET", &head(&[("origin", "https://b")])), CorsVerdict::Pass);
        let CorsVerdict::Answer(fields) = own.judge("OPTIONS", &head(&[("origin", "https://b"), ASKS]))
        else {
            panic!()
        };
        assert_eq!(written(&fields), ["vary: origin"]);
    }

    #[test]
    fn fuzz_nothing_that_is_asked_can_break_an_answer() {
        let own = policy(vec![OriginMatch::Any], true, true);
        bolero::check!().with_type::<[Vec<u8>; 3]>().for_each(|[origin, method, names]| {
            let headers = [
                Header { name: "origin", value: origin },
                Header { name: "access-control-request-method", value: method },
                Header { name: "access-control-request-headers", value: names },
            ];
            let fields = match own.judge("OPTIONS", &headers) {
                CorsVerdict::Pass => vec![],
                CorsVerdict::Share(edits) => [edits.set, edits.add].concat(),
                CorsVerdict::Answer(fields) => fields,
            };
            for field in fields {
                assert!(field.value.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{field:?}");
            }
        });
    }
}
