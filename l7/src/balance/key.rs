//! What a request is hashed by.

use std::net::IpAddr;
use std::sync::Arc;

use super::xxh64;
use crate::ir::{HashOn, Header, HeaderValue};

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct HashSource<'a> {
    pub headers: &'a [Header<'a>],
    /// Without the question mark.
    pub query: Option<&'a str>,
    pub client: IpAddr,
}

/// The hash of a request, and the cookie that makes those that follow be hashed alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HashKey {
    /// `None`: the request has nothing to be hashed by.
    pub hash: Option<u64>,
    /// A field of the response.
    pub cookie: Option<HeaderValue>,
}

/// Hashes a request as Envoy does (`RouteAction.hash_policy`): what it does not have is passed over, several things are
/// taken together. `random` becomes the value of a cookie that is made.
pub fn hash_key(on: &[HashOn], source: HashSource<'_>, random: u64) -> HashKey {
    let mut key = HashKey::default();
    for part in on {
        let hash = match part {
            HashOn::Header(name) => of_header(name, source.headers),
            HashOn::SourceIp => Some(xxh64(source.client.to_canonical().to_string().as_bytes(), 0)),
            HashOn::QueryParameter(name) => of_query(name, source.query.unwrap_or_default()),
            HashOn::Cookie { name, path, lifetime_s } => match of_cookie(name, source.headers) {
                Some(value) => Some(xxh64(value, 0)),
                None => lifetime_s.map(|lifetime_s| {
                    let value = format!("{random:016x}");
                    key.cookie = Some(cookie(name, &value, path, lifetime_s));
                    xxh64(value.as_bytes(), 0)
                }),
            },
        };
        if let Some(hash) = hash {
            key.hash = Some(key.hash.map_or(hash, |former| former.rotate_left(1) ^ hash));
        }
    }
    key
}

/// Several lines of one name count in the order of their values, whatever order they came in.
fn of_header(name: &str, headers: &[Header<'_>]) -> Option<u64> {
    let mut lines = headers.iter().filter(|line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value);
    let first = lines.next()?;
    let Some(second) = lines.next() else { return Some(xxh64(first, 0)) };
    let mut values: Vec<&[u8]> = [first, second].into_iter().chain(lines).collect();
    values.sort_unstable();
    Some(values.into_iter().fold(0, |seed, value| xxh64(value, seed)))
}

/// As it is written, without decoding.
fn of_query(name: &str, query: &str) -> Option<u64> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
    values.next().map(|value| xxh64(value.as_bytes(), 0))
}

fn of_cookie<'a>(name: &str, headers: &'a [Header<'a>]) -> Option<&'a [u8]> {
    let lines = headers.iter().filter(|line| line.name.eq_ignore_ascii_case("cookie"));
    let mut pairs = lines.flat_map(|line| line.value.split(|byte| *byte == b';'));
    pairs.find_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        let unquoted = value.strip_prefix(b"\"").and_then(|it| it.strip_suffix(b"\"")).unwrap_or(value);
        (!unquoted.is_empty()).then_some(unquoted)
    })
}

/// Without a lifetime it lasts as long as the client's session.
fn cookie(name: &str, value: &str, path: &str, lifetime_s: u32) -> HeaderValue {
    let age = if lifetime_s == 0 { String::new() } else { format!("; Max-Age={lifetime_s}") };
    let path = if path.is_empty() { String::new() } else { format!("; Path={path}") };
    let text = format!("{name}=\"{value}\"{age}{path}; HttpOnly");
    HeaderValue { name: Arc::from("set-cookie"), value: Arc::from(text) }
}
