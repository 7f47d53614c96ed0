//! A request to a page and its answer, without the transport.

use bytes::Bytes;
use http::{Method, StatusCode};

/// What was asked.
#[derive(Debug, Clone)]
pub struct Ask {
    pub method: Method,
    pub path: String,
    /// Decoded names and values of the query, in order.
    pub query: Vec<(String, String)>,
    /// The `Accept` header; empty if there is none.
    pub accept: String,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Bytes,
}

impl Ask {
    /// The first value of a query parameter; empty where it has a name only.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl Page {
    /// The body where it is text.
    pub fn as_text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_default()
    }

    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain;charset=utf-8", body: body.into().into() }
    }

    pub fn json(value: &serde_json::Value) -> Self {
        match serde_json::to_string_pretty(value) {
            Ok(body) => Self {
                status: StatusCode::OK,
                content_type: "application/json;charset=utf-8",
                body: body.into(),
            },
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    pub fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "Not Found\n")
    }

    pub fn post_only() -> Self {
        Self::text(StatusCode::METHOD_NOT_ALLOWED, "this changes something: use POST\n")
    }
}

/// Names and values of a query string, percent-decoded; invalid escapes stay as they are.
pub(super) fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let escaped = (byte == b'%').then(|| hexadecimal_pair(after)).flatten();
        if let Some(value) = escaped {
            bytes.push(value);
            rest = after.get(2..).unwrap_or_default();
        } else {
            bytes.push(if byte == b'+' { b' ' } else { byte });
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hexadecimal_pair(bytes: &[u8]) -> Option<u8> {
    let pair = bytes.get(..2)?;
    // `from_str_radix` would take a sign as well.
    if !pair.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()
}
