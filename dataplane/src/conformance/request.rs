//! A request of a case, written to the wire and read back by the code that serves.

use std::collections::BTreeMap;

use l7::http1::{Http1Error, Request, empty_headers, parse_request};
use l7::ir::RequestHead;
use l7::path::{Normalization, normalize};

/// Header lines: a map, or a list of pairs where names repeat.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(untagged)]
pub(super) enum Headers {
    Map(BTreeMap<String, Text>),
    Pairs(Vec<(String, Text)>),
}

/// YAML reads an unquoted `1` as a number where a header value is meant.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(untagged)]
pub(super) enum Text {
    Plain(String),
    Number(i64),
    Boolean(bool),
}

#[derive(Debug, Clone)]
pub(super) struct Sent<'a> {
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    pub(super) authority: &'a str,
    pub(super) headers: Option<&'a Headers>,
    /// One more line.
    pub(super) token: Option<(String, String)>,
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Boolean(boolean) => write!(f, "{boolean}"),
        }
    }
}

impl Headers {
    pub(super) fn lines(&self) -> Vec<(&str, String)> {
        match self {
            Self::Map(map) => map.iter().map(|(name, value)| (name.as_str(), value.to_string())).collect(),
            Self::Pairs(pairs) => {
                pairs.iter().map(|(name, value)| (name.as_str(), value.to_string())).collect()
            }
        }
    }
}

impl Sent<'_> {
    /// Hands the request, as parsed, and its head, as normalised, to `judge`; or gives the status that refuses it.
    pub(super) fn receive<T>(
        &self,
        mode: Normalization,
        judge: impl FnOnce(&Request<'_, '_>, &RequestHead<'_>) -> T,
    ) -> Result<T, u16> {
        let mut wire =
            vec![format!("{} {} HTTP/1.1", self.method, self.target), format!("Host: {}", self.authority)];
        let headers = self.headers.map(Headers::lines).unwrap_or_default();
        wire.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
        wire.extend(self.token.iter().map(|(name, value)| format!("{name}: {value}")));
        let wire = wire.join("\r\n") + "\r\n\r\n";
        let mut storage = empty_headers();
        let request = parse_request(wire.as_bytes(), &mut storage).map_err(Http1Error::status)?;
        let target = normalize(request.target, mode).map_err(|_| 400_u16)?;
        let head = RequestHead {
            method: request.method,
            authority: request.authority,
            path: &target.path,
            query: target.query,
            headers: request.headers,
            token: None,
        };
        Ok(judge(&request, &head))
    }
}
