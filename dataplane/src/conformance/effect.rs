//! What filters make of messages: requests as the backend sees them, and responses as the client does.
//!
//! Both are written to the wire and read back, by the code that serves.

use std::collections::BTreeMap;

use l7::filter::{Chain, Dialled};
use l7::http1::{
    Request, Rewritten, Version, empty_headers, parse_request, parse_response, redirect_reply,
    write_rewritten_request, write_rewritten_response,
};
use l7::ir::{Header, HeaderValue, RequestHead, Scheme};

use super::request::{Headers, Text};

/// What a case says of messages; what it does not say is not compared.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Expectations {
    backend_request: Option<BackendRequest>,
    response_headers: Option<ResponseHeaders>,
    redirect: Option<Redirect>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct BackendRequest {
    authority: Option<String>,
    path: Option<String>,
    method: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Text>,
    #[serde(default)]
    absent_headers: Vec<String>,
    /// Of TLS to the backend.
    sni: Option<String>,
    port: Option<Text>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ResponseHeaders {
    #[serde(default)]
    equal: BTreeMap<String, Text>,
    #[serde(default)]
    absent: Vec<String>,
    /// Each header has one of the values.
    #[serde(default)]
    one_of: BTreeMap<String, Vec<Text>>,
    /// Blanks in values do not count.
    #[serde(default)]
    ignore_whitespace: bool,
}

/// Scheme and path are the request's where unset, and no port is written.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Redirect {
    host: Option<String>,
    scheme: Option<String>,
    port: Option<Text>,
    path: Option<String>,
    query: Option<String>,
}

/// A request at the backend, and a response at the client.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    request: Option<SeenRequest>,
    /// Of the response.
    pub(super) status: u16,
    /// Of the response.
    headers: Lines,
}

#[derive(Debug, Clone, PartialEq)]
struct SeenRequest {
    method: String,
    authority: String,
    target: String,
    headers: Lines,
}

type Lines = Vec<(String, String)>;

// === impl Seen ===

impl Seen {
    pub(super) fn location(&self) -> Option<String> {
        joined(&self.headers, "location")
    }
}

/// The request and a response with the headers of `answer`, passed on.
pub(super) fn forwarded(
    received: &Request<'_, '_>,
    head: &RequestHead<'_>,
    filters: &Chain,
    answer: Option<&Headers>,
) -> Result<Seen, String> {
    let mut target = filters.path(head.path).into_owned();
    if let Some(query) = head.query {
        target.extend(["?", query]);
    }
    let fields = filters.request_fields(head.headers);
    let authority = filters.authority(head.authority);
    let rewritten = Rewritten { authority, target: &target, fields: fields.iter() };
    let mut wire = Vec::new();
    write_rewritten_request(&mut wire, received, rewritten);
    let mut storage = empty_headers();
    let request = parse_request(&wire, &mut storage).map_err(|error| format!("at the backend: {error}"))?;
    let request = SeenRequest {
        method: request.method.to_owned(),
        authority: request.authority.to_owned(),
        target: request.target.to_owned(),
        headers: lines(request.headers),
    };

    let mut sent = String::from("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n");
    for (name, value) in answer.map(Headers::lines).unwrap_or_default() {
        sent.extend([name, ": ", &value, "\r\n"]);
    }
    sent.push_str("\r\n");
    let mut storage = empty_headers();
    let response = parse_response(sent.as_bytes(), received.method, &mut storage)
        .map_err(|error| format!("of the backend: {error}"))?;
    let fields = filters.response_fields(response.headers);
    let mut wire = Vec::new();
    write_rewritten_response(&mut wire, &response, Version::Http11, true, fields.iter());
    let (status, headers) = receive(&wire)?;
    Ok(Seen { request: Some(request), status, headers })
}

/// An answer to a preflight.
pub(super) fn answered(fields: &[HeaderValue]) -> Result<Seen, String> {
    let fields = fields.iter().map(|it| Header { name: &it.name, value: it.value.as_bytes() });
    let mut wire = Vec::new();
    redirect_reply(&mut wire, 200, fields, true);
    let (status, headers) = receive(&wire)?;
    Ok(Seen { request: None, status, headers })
}

/// The answer that sends the client elsewhere; it dialled `port`.
pub(super) fn redirected(
    head: &RequestHead<'_>,
    filters: &Chain,
    has_tls: bool,
    port: u16,
) -> Result<Seen, String> {
    let redirect = filters.redirect().ok_or("there is no redirect")?;
    let dialled = Dialled { scheme: if has_tls { Scheme::Https } else { Scheme::Http }, port };
    let location = filters.location(redirect, dialled, head.authority, head.path, head.query);
    let location = [Header { name: "location", value: location.as_bytes() }];
    let fields = filters.response_fields(&location);
    let mut wire = Vec::new();
    redirect_reply(&mut wire, redirect.status, fields.iter(), true);
    let (status, headers) = receive(&wire)?;
    Ok(Seen { request: None, status, headers })
}

fn receive(wire: &[u8]) -> Result<(u16, Lines), String> {
    let mut storage = empty_headers();
    let response =
        parse_response(wire, "GET", &mut storage).map_err(|error| format!("at the client: {error}"))?;
    Ok((response.status, lines(response.headers)))
}

fn lines(headers: &[Header<'_>]) -> Lines {
    let line =
        |header: &Header<'_>| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned());
    headers.iter().map(line).collect()
}

/// The value of a header, its lines joined by commas.
fn joined(lines: &Lines, name: &str) -> Option<String> {
    let named = lines.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
    let values: Vec<&str> = named.map(|(_, value)| value.as_str()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

// === Comparison ===

impl Expectations {
    /// What of the expectations cannot be seen here.
    pub(super) fn beyond(&self) -> Option<&'static str> {
        let request = self.backend_request.as_ref()?;
        (request.sni.is_some() || request.port.is_some()).then_some("the backend's connection needs sockets")
    }
}

/// What is not as the case wants it. `path` is that of the request, and `default_path` what the backend must see where
/// the case does not say.
pub(super) fn differences(
    expect: &Expectations,
    seen: &Seen,
    path: &str,
    default_path: Option<&str>,
) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(wanted) = &expect.backend_request {
        match &seen.request {
            Some(request) => compare_request(wanted, request, default_path, &mut found),
            None => found.push(String::from("no request at the backend")),
        }
    }
    found.extend(response_differences(expect, seen));
    if let Some(wanted) = &expect.redirect {
        compare_location(wanted, seen.location().as_deref(), path, &mut found);
    }
    found
}

/// What of the response is not as the case wants it.
pub(super) fn response_differences(expect: &Expectations, seen: &Seen) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(wanted) = &expect.response_headers {
        compare_headers("response", &wanted.equal, &wanted.absent, &seen.headers, &mut found);
        wanted.compare_choices(&seen.headers, &mut found);
    }
    found
}

impl ResponseHeaders {
    fn compare_choices(&self, lines: &Lines, found: &mut Vec<String>) {
        let bare = |text: String| if self.ignore_whitespace { text.replace(' ', "") } else { text };
        for (name, choices) in &self.one_of {
            let got = joined(lines, name).map(bare);
            if !choices.iter().any(|choice| got.as_ref() == Some(&bare(choice.to_string()))) {
                found.push(format!("response header {name}: {got:?}, none of {choices:?}"));
            }
        }
    }
}

fn compare_request(
    wanted: &BackendRequest,
    seen: &SeenRequest,
    default_path: Option<&str>,
    found: &mut Vec<String>,
) {
    let wanted_path = wanted.path.as_deref().or(default_path);
    // Some cases write the query with the path.
    let path = match wanted_path {
        Some(wanted) if wanted.contains('?') => seen.target.as_str(),
        _ => seen.target.split('?').next().unwrap_or_default(),
    };
    for (what, wanted, got) in [
        ("authority", wanted.authority.as_deref(), seen.authority.as_str()),
        ("path", wanted_path, path),
        ("method", wanted.method.as_deref(), seen.method.as_str()),
    ] {
        if wanted.is_some_and(|wanted| wanted != got) {
            found.push(format!("{what} at the backend: {got:?}, not {wanted:?}"));
        }
    }
    compare_headers("backend", &wanted.headers, &wanted.absent_headers, &seen.headers, found);
}

fn compare_headers(
    place: &str,
    equal: &BTreeMap<String, Text>,
    absent: &[String],
    lines: &Lines,
    found: &mut Vec<String>,
) {
    for (name, wanted) in equal {
        let got = joined(lines, name);
        if got.as_ref() != Some(&wanted.to_string()) {
            found.push(format!("{place} header {name}: {got:?}, not {wanted}"));
        }
    }
    for name in absent {
        if let Some(got) = joined(lines, name) {
            found.push(format!("{place} header {name}: {got:?}, not absent"));
        }
    }
}

fn compare_location(wanted: &Redirect, location: Option<&str>, path: &str, found: &mut Vec<String>) {
    let parts = location.and_then(|location| {
        let (scheme, rest) = location.split_once("://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        Some([scheme, host, port, path, query])
    });
    let Some([scheme, host, port, got_path, query]) = parts else {
        return found.push(format!("location {location:?} is no absolute URI"));
    };
    let port_wanted = wanted.port.as_ref().map(Text::to_string).unwrap_or_default();
    let is_wanted = scheme == wanted.scheme.as_deref().unwrap_or("http")
        && wanted.host.as_deref().is_none_or(|wanted| wanted == host)
        && port == port_wanted
        && wanted.query.as_deref().is_none_or(|wanted| wanted == query)
        && got_path == wanted.path.as_deref().unwrap_or(path);
    if !is_wanted {
        found.push(format!("location {location:?}, not {wanted:?}"));
    }
}
