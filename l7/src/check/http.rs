//! The question as an HTTP request, and its answer (Envoy, "ext_authz HTTP service").

use std::sync::Arc;

use super::{Answer, Approval, Denied, PARTIAL_BODY_HEADER};
use crate::filter;
use crate::ir::{Header, HeaderValue, HttpCheck, NameTest, RequestHead};

/// Shown in every question, beside method, path and authority.
const ALWAYS_SHOWN: [&str; 1] = ["authorization"];

/// Of a denial the client gets these whatever is configured. The body's length is counted anew, and the status is the
/// status.
const ALWAYS_PASSED: [&str; 3] = ["path", "www-authenticate", "location"];

/// Of a denial the client never gets these: they concern the authorizer's own connection.
const NEVER_PASSED: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A request to an authorizer, which speaks for itself and not for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub method: Arc<str>,
    pub authority: Arc<str>,
    /// Path and query.
    pub target: String,
    /// Without `content-length`, which counts `body`.
    pub headers: Vec<(Box<str>, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl Question {
    /// As an HTTP/1.1 message.
    pub fn to_http1(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.body.len());
        for part in [&*self.method, " ", &self.target, " HTTP/1.1\r\nhost: ", &self.authority, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        for (name, value) in &self.headers {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        let length = self.body.len().to_string();
        for part in ["content-length: ", &length, "\r\n\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(&self.body);
        out
    }
}

/// The question about a request. `body` is as much of the request's as is shown, with whether that is not all of it.
pub fn http_question(check: &HttpCheck, request: &RequestHead<'_>, body: Option<(&[u8], Shown)>) -> Question {
    let query = request.query.map(|query| format!("?{query}")).unwrap_or_default();
    let is_shown = |header: &&Header<'_>| {
        let named = |name: &&str| header.name.eq_ignore_ascii_case(name);
        let asked = check.request_headers.iter().any(|test| test.holds(header.name));
        (asked || ALWAYS_SHOWN.iter().any(named))
            && !NEVER_PASSED.iter().any(named)
            && !check.additional_headers.iter().any(|own| own.name.eq_ignore_ascii_case(header.name))
    };
    let shown = request.headers.iter().filter(is_shown);
    let mut headers: Vec<(Box<str>, Vec<u8>)> =
        shown.map(|header| (header.name.to_ascii_lowercase().into(), header.value.to_vec())).collect();
    let added = check.additional_headers.iter();
    headers.extend(added.map(|header| (Box::from(&*header.name), header.value.as_bytes().to_vec())));
    if let Some((_, shown)) = body {
        let partial: &[u8] = if shown == Shown::Beginning { b"true" } else { b"false" };
        headers.push((PARTIAL_BODY_HEADER.into(), partial.to_vec()));
    }
    Question {
        method: request.method.into(),
        authority: request.authority.into(),
        target: [&check.path_prefix, request.path, &query].concat(),
        headers,
        body: body.map_or_else(Vec::new, |(bytes, _)| bytes.to_vec()),
    }
}

/// How much of a body is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    Whole,
    Beginning,
}

/// What a response to a question means: 200 lets the request pass, 5xx is no answer, anything else denies.
pub fn http_answer(check: &HttpCheck, status: u16, headers: &[Header<'_>], body: &[u8]) -> Answer {
    match status {
        200 => {
            let mut approval = Approval::default();
            let taken = [
                (&check.to_upstream_on_allow, &mut approval.request_headers),
                (&check.to_downstream_on_allow, &mut approval.response_headers),
            ];
            for (wanted, edits) in taken {
                for header in headers.iter().filter(|header| is_wanted(wanted, header.name)) {
                    let Some(header) = owned(header) else {
                        return Answer::Failed("the answer holds a header that cannot be passed on");
                    };
                    edits.set.push(header);
                }
            }
            Answer::Allowed(approval)
        }
        500.. => Answer::Failed("the authorizer failed"),
        _ => {
            let wanted = &check.to_downstream_on_deny;
            let is_passed = |name: &str| {
                !NEVER_PASSED.iter().any(|own| own.eq_ignore_ascii_case(name))
                    && (wanted.is_empty()
                        || is_wanted(wanted, name)
                        || ALWAYS_PASSED.iter().any(|own| own.eq_ignore_ascii_case(name)))
            };
            let passed = headers.iter().filter(|header| is_passed(header.name)).filter_map(owned);
            Answer::Denied(Denied { status, headers: passed.collect(), body: body.to_vec(), failed: None })
        }
    }
}

fn is_wanted(tests: &[NameTest], name: &str) -> bool {
    tests.iter().any(|test| test.holds(name))
}

/// `None` for a header that no message of ours may hold.
fn owned(header: &Header<'_>) -> Option<HeaderValue> {
    let name: Arc<str> = Arc::from(header.name.to_ascii_lowercase());
    let value = std::str::from_utf8(header.value).ok()?;
    filter::header_name(&name).ok()?;
    // An empty value is one that the check for written ones refuses.
    if !value.is_empty() {
        filter::header_value(&name, value).ok()?;
    }
    Some(HeaderValue { name, value: Arc::from(value) })
}
