//! Heads for the next hop: written anew from what was parsed, hop-by-hop fields left out (RFC 9110 section 7.6.1).

use crate::ir::Header;

use super::body::BodyFraming;
use super::head::{Request, Response, Version};

/// Appends the request head for the upstream. `target` is the normalised path with its query; `added` are fields of
/// the proxy's own, which replace any of the same name that the client sent.
pub fn write_request(out: &mut Vec<u8>, request: &Request<'_, '_>, target: &str, added: &[Header<'_>]) {
    write_request_line(out, request, target, request.authority);
    write_fields(out, request.headers, added);
    write_request_end(out, request);
}

/// What filters made of a request.
#[derive(Debug)]
pub struct Rewritten<'a, I> {
    pub authority: &'a str,
    /// Path with its query.
    pub target: &'a str,
    /// All end-to-end fields. Those that this module writes itself are left out.
    pub fields: I,
}

/// As [`write_request`], with what filters made of the request; the framing is still that of `request`.
pub fn write_rewritten_request<'a>(
    out: &mut Vec<u8>,
    request: &Request<'_, '_>,
    rewritten: Rewritten<'_, impl Iterator<Item = Header<'a>>>,
) {
    write_request_line(out, request, rewritten.target, rewritten.authority);
    write_rewritten_fields(out, rewritten.fields);
    write_request_end(out, request);
}

fn write_request_line(out: &mut Vec<u8>, request: &Request<'_, '_>, target: &str, authority: &str) {
    put(out, &[request.method, " ", target, " HTTP/1.1\r\nhost: ", authority, "\r\n"]);
}

fn write_request_end(out: &mut Vec<u8>, request: &Request<'_, '_>) {
    write_framing(out, request.body);
    if accepts_trailers(request.headers) {
        put(out, &["te: trailers\r\n"]);
    }
    match request.upgrade {
        Some(protocol) => put(out, &["connection: upgrade\r\nupgrade: ", protocol, "\r\n\r\n"]),
        None if accepts_trailers(request.headers) => put(out, &["connection: te\r\n\r\n"]),
        None => put(out, &["\r\n"]),
    }
}

/// Appends the response head for the downstream, which speaks `version`. `keep_alive` says whether the downstream
/// connection lives on after this response. The body framing written is the upstream's, except that an HTTP/1.0
/// client is never sent chunks: it reads the bare content until close.
pub fn write_response(
    out: &mut Vec<u8>,
    response: &Response<'_, '_>,
    version: Version,
    keep_alive: bool,
    added: &[Header<'_>],
) {
    write_status_line(out, response.status, response.reason);
    write_fields(out, response.headers, added);
    write_response_end(out, response, version, keep_alive);
}

/// As [`write_response`], with the fields that filters made; the framing is still that of `response`.
pub fn write_rewritten_response<'a>(
    out: &mut Vec<u8>,
    response: &Response<'_, '_>,
    version: Version,
    keep_alive: bool,
    fields: impl Iterator<Item = Header<'a>>,
) {
    write_status_line(out, response.status, response.reason);
    write_rewritten_fields(out, fields);
    write_response_end(out, response, version, keep_alive);
}

fn write_status_line(out: &mut Vec<u8>, status: u16, reason: &str) {
    let mut digits = [0; 3];
    put(out, &["HTTP/1.1 ", decimal(status, &mut digits), " ", reason, "\r\n"]);
}

fn write_response_end(out: &mut Vec<u8>, response: &Response<'_, '_>, version: Version, keep_alive: bool) {
    if response.is_interim() {
        return put(out, &["\r\n"]);
    }
    if response.status == 101 {
        for header in response.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("upgrade")) {
            write_field(out, header);
        }
        return put(out, &["connection: upgrade\r\n\r\n"]);
    }
    match response.body {
        BodyFraming::Chunked if version == Version::Http10 => {}
        // A response without a body may announce the length that its GET would have (HEAD, 304).
        BodyFraming::None => {
            for header in response.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("content-length")) {
                write_field(out, header);
            }
        }
        framing => write_framing(out, framing),
    }
    match (keep_alive, version) {
        (false, _) => put(out, &["connection: close\r\n\r\n"]),
        (true, Version::Http10) => put(out, &["connection: keep-alive\r\n\r\n"]),
        (true, Version::Http11) => put(out, &["\r\n"]),
    }
}

/// Appends a whole response of the proxy's own with a text body.
pub fn local_reply(out: &mut Vec<u8>, status: u16, body: &str, keep_alive: bool, is_head: bool) {
    local_reply_with(out, status, &[], body, keep_alive, is_head);
}

/// As [`local_reply`], with fields beside those of the body.
pub fn local_reply_with(
    out: &mut Vec<u8>,
    status: u16,
    fields: &[Header<'_>],
    body: &str,
    keep_alive: bool,
    is_head: bool,
) {
    write_status_line(out, status, reason(status));
    for field in fields {
        write_field(out, field);
    }
    put(out, &["content-length: ", &body.len().to_string(), "\r\n"]);
    if !fields.iter().any(|field| field.name.eq_ignore_ascii_case("content-type")) {
        put(out, &["content-type: text/plain\r\n"]);
    }
    put(out, &[if keep_alive { "\r\n" } else { "connection: close\r\n\r\n" }]);
    if !is_head {
        put(out, &[body]);
    }
}

/// Appends a whole response of the proxy's own without a body that sends the client elsewhere: `fields` hold its
/// Location.
pub fn redirect_reply<'a>(
    out: &mut Vec<u8>,
    status: u16,
    fields: impl Iterator<Item = Header<'a>>,
    keep_alive: bool,
) {
    write_status_line(out, status, reason(status));
    write_rewritten_fields(out, fields);
    put(out, &["content-length: 0\r\n"]);
    put(out, &[if keep_alive { "\r\n" } else { "connection: close\r\n\r\n" }]);
}

/// The fields of a received head that may go to the next hop.
pub fn end_to_end<'h, 'b>(headers: &'h [Header<'b>]) -> impl Iterator<Item = &'h Header<'b>> {
    let named = NamedByConnection::of(headers);
    let goes_on = move |header: &&Header<'b>| !is_hop_by_hop(header.name) && !named.has(header.name);
    headers.iter().filter(goes_on)
}

fn write_fields(out: &mut Vec<u8>, headers: &[Header<'_>], added: &[Header<'_>]) {
    for header in end_to_end(headers) {
        if !added.iter().any(|a| a.name.eq_ignore_ascii_case(header.name)) {
            write_field(out, header);
        }
    }
    for header in added {
        write_field(out, header);
    }
}

/// Whatever a filter holds, the fields that frame the message are written once and by this module.
fn write_rewritten_fields<'a>(out: &mut Vec<u8>, fields: impl Iterator<Item = Header<'a>>) {
    for header in fields.filter(|header| !is_hop_by_hop(header.name)) {
        write_field(out, &header);
    }
}

fn write_field(out: &mut Vec<u8>, header: &Header<'_>) {
    put(out, &[header.name, ": "]);
    out.extend_from_slice(header.value);
    put(out, &["\r\n"]);
}

fn write_framing(out: &mut Vec<u8>, framing: BodyFraming) {
    match framing {
        BodyFraming::None | BodyFraming::UntilClose => {}
        BodyFraming::Length(length) => put(out, &["content-length: ", &length.to_string(), "\r\n"]),
        BodyFraming::Chunked => put(out, &["transfer-encoding: chunked\r\n"]),
    }
}

/// Fields that concern one connection, or that are written anew by this module.
pub(crate) fn is_hop_by_hop(name: &str) -> bool {
    // Hardly any name has the length of one of these.
    let names: &[&str] = match name.len() {
        2 => &["te"],
        4 => &["host"],
        7 => &["upgrade"],
        10 => &["connection", "keep-alive"],
        14 => &["content-length", "http2-settings"],
        16 => &["proxy-connection"],
        17 => &["transfer-encoding"],
        18 => &["proxy-authenticate"],
        _ => return false,
    };
    names.iter().any(|hop| name.eq_ignore_ascii_case(hop))
}

/// What the Connection fields of a head name, besides themselves.
#[derive(Clone, Copy)]
struct NamedByConnection<'h, 'b> {
    /// The fields from the first Connection field on; empty where there is none.
    headers: &'h [Header<'b>],
}

impl<'h, 'b> NamedByConnection<'h, 'b> {
    fn of(headers: &'h [Header<'b>]) -> Self {
        let first = headers.iter().position(|header| header.name.eq_ignore_ascii_case("connection"));
        Self { headers: first.and_then(|first| headers.get(first..)).unwrap_or_default() }
    }

    fn has(self, name: &str) -> bool {
        self.headers
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case("connection"))
            .flat_map(|header| header.value.split(|&b| b == b','))
            .any(|option| option.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// `TE: trailers` is the only coding preference that may pass.
pub(crate) fn accepts_trailers(headers: &[Header<'_>]) -> bool {
    headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("te"))
        .flat_map(|header| header.value.split(|&b| b == b','))
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn put(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

fn decimal(status: u16, digits: &mut [u8; 3]) -> &str {
    let digit = |unit: u16| b'0' + u8::try_from(status / unit % 10).unwrap_or(0);
    *digits = [digit(100), digit(10), digit(1)];
    std::str::from_utf8(digits).unwrap_or("500")
}

/// What a status is called; the empty text for those that are not called anything here.
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        307 => "Temporary Redirect",
        304 => "Not Modified",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::head::{empty_headers, parse_request, parse_response};
    use super::*;

    fn forwarded(head: &str, added: &[Header<'_>]) -> String {
        let mut storage = empty_headers();
        let request = parse_request(head.as_bytes(), &mut storage).unwrap();
        let mut out = Vec::new();
        write_request(&mut out, &request, request.target, added);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn hop_by_hop_fields_stay_behind() {
        let out = forwarded(
            "GET /p HTTP/1.1\r\nHost: a\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nX-End: 2\r\n\r\n",
            &[],
        );
        assert_eq!(out, "GET /p HTTP/1.1\r\nhost: a\r\nX-End: 2\r\n\r\n");
    }

    #[test]
    fn fields_of_the_proxy_replace_those_of_the_client() {
        let added = [Header { name: "x-forwarded-client-cert", value: b"mine" }];
        let out = forwarded("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: forged\r\n\r\n", &added);
        assert_eq!(out, "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-client-cert: mine\r\n\r\n");
    }

    #[test]
    fn only_trailers_pass_in_te_and_expect_goes_end_to_end() {
        let out = forwarded(
            "POST / HTTP/1.1\r\nHost: a\r\nTE: gzip, trailers\r\nConnection: TE\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
            &[],
        );
        assert_eq!(
            out,
            "POST / HTTP/1.1\r\nhost: a\r\nExpect: 100-continue\r\ncontent-length: 3\r\nte: trailers\r\nconnection: te\r\n\r\n"
        );
    }

    #[test]
    fn what_is_written_parses_to_the_same_framing() {
        for head in [
            "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nX: y\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ] {
            let out = forwarded(head, &[]);
            let (mut first, mut second) = (empty_headers(), empty_headers());
            let before = parse_request(head.as_bytes(), &mut first).unwrap();
            let after = parse_request(out.as_bytes(), &mut second).unwrap();
            assert_eq!(
                (before.body, before.upgrade, before.target),
                (after.body, after.upgrade, after.target)
            );
        }
    }

    #[test]
    fn an_http10_client_gets_no_chunks() {
        let mut storage = empty_headers();
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n";
        let response = parse_response(head, "GET", &mut storage).unwrap();
        let mut out = Vec::new();
        write_response(&mut out, &response, Version::Http10, false, &[]);
        assert_eq!(out, b"HTTP/1.1 200 OK\r\nX: y\r\nconnection: close\r\n\r\n");
    }

    #[test]
    fn a_switch_keeps_its_upgrade_field() {
        let mut storage = empty_headers();
        let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        let response = parse_response(head, "GET", &mut storage).unwrap();
        let mut out = Vec::new();
        write_response(&mut out, &response, Version::Http11, true, &[]);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\r\nUpgrade: websocket\r\nconnection: upgrade\r\n\r\n"), "{text}");
    }

    #[test]
    fn a_local_reply_is_a_valid_response() {
        let mut out = Vec::new();
        local_reply(&mut out, 403, "RBAC: access denied", false, false);
        let mut storage = empty_headers();
        let end = out.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let response = parse_response(&out[..end], "GET", &mut storage).unwrap();
        assert_eq!(
            (response.status, response.body, response.keep_alive),
            (403, BodyFraming::Length(19), false)
        );
        assert_eq!(&out[end..], b"RBAC: access denied");
    }
}
