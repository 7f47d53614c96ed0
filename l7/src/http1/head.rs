//! Heads of requests and responses: found, parsed, checked, and their framing decided.

use std::mem::MaybeUninit;
use std::sync::LazyLock;

use arrayvec::ArrayVec;
use memchr::memmem::Finder;

use crate::ir::Header;

use super::authority::is_authority;
use super::body::BodyFraming;
use super::chunked::is_token;
use super::error::Http1Error;
use super::{HEAD_BYTES_MAX, HEADERS_MAX, METHOD_BYTES_MAX, TARGET_BYTES_MAX};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// Room for the field lines of one head, borrowed from the bytes that are parsed.
pub type HeaderStorage<'b> = ArrayVec<Header<'b>, HEADERS_MAX>;

/// Storage to be passed to the parsers.
pub fn empty_headers<'b>() -> HeaderStorage<'b> {
    ArrayVec::new()
}

/// A request head whose framing is known and whose parts may be matched.
#[derive(Debug, Clone, Copy)]
pub struct Request<'b, 'h> {
    pub method: &'b str,
    /// Path and query as sent (`/a?b`, or `*` for OPTIONS); the absolute form is reduced to it.
    pub target: &'b str,
    /// From the absolute form if there is one, else Host.
    pub authority: &'b str,
    pub version: Version,
    pub headers: &'h [Header<'b>],
    pub body: BodyFraming,
    /// The client would use the connection again.
    pub keep_alive: bool,
    /// `Expect: 100-continue`.
    pub expect_continue: bool,
    /// The protocol it asks to switch to, if both Connection and Upgrade say so.
    pub upgrade: Option<&'b str>,
}

/// A response head whose framing is known.
#[derive(Debug, Clone, Copy)]
pub struct Response<'b, 'h> {
    pub status: u16,
    pub reason: &'b str,
    pub version: Version,
    pub headers: &'h [Header<'b>],
    pub body: BodyFraming,
    /// The server would use the connection again.
    pub keep_alive: bool,
}

impl Response<'_, '_> {
    /// 1xx other than 101: more heads follow for the same request.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

/// Finds the end of a head in bytes that arrive piecemeal, looking at each byte once.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadScanner {
    scanned: usize,
}

/// What ends a head. Made once: it takes longer to make than to use.
static HEAD_END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));

impl HeadScanner {
    /// Length of the head that `input` starts with, its final empty line included; `None` if more is needed.
    /// `input` must be what the previous call saw, grown at the end.
    pub fn find(&mut self, input: &[u8]) -> Result<Option<usize>, Http1Error> {
        // The terminator may straddle the border of what was seen before.
        let from = self.scanned.saturating_sub(3);
        let found = HEAD_END.find(input.get(from..).unwrap_or_default());
        let length = found.map(|at| from + at + 4);
        self.scanned = input.len();
        match length {
            // An empty line before the request line: the head proper follows (RFC 9112 section 2.2).
            Some(2..=4) if input.starts_with(b"\r\n\r\n") => Err(Http1Error::Malformed),
            Some(length) if length > HEAD_BYTES_MAX => Err(Http1Error::HeadTooLarge),
            Some(length) => Ok(Some(length)),
            None if input.len() > HEAD_BYTES_MAX => Err(Http1Error::HeadTooLarge),
            None => Ok(None),
        }
    }
}

/// Parses a complete head, as delimited by [`HeadScanner::find`].
pub fn parse_request<'b, 'h>(
    head: &'b [u8],
    storage: &'h mut HeaderStorage<'b>,
) -> Result<Request<'b, 'h>, Http1Error> {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    check_lines(head)?;
    let (method, target, version) = request_line(head)?;
    let mut parsed = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    complete(request.parse_with_uninit_headers(head, &mut parsed).map_err(head_error)?)?;
    let headers = keep_headers(request.headers, storage)?;

    let (target, absolute) = split_target(method, target)?;
    let host = host(headers)?;
    let authority = absolute.or(host).ok_or(Http1Error::Host)?;
    if version == Version::Http11 && host.is_none() || !is_authority(authority) {
        return Err(Http1Error::Host);
    }
    let connection = Connection::of(headers);
    let expect_continue = expectation(headers)?;
    Ok(Request {
        method,
        target,
        authority,
        version,
        headers,
        body: request_framing(headers, version)?,
        keep_alive: connection.keep_alive(version),
        expect_continue: expect_continue && version == Version::Http11,
        upgrade: if connection.upgrade && version == Version::Http11 {
            text(headers, "upgrade")
        } else {
            None
        },
    })
}

/// Parses a complete response head. `method` is that of the request it answers.
pub fn parse_response<'b, 'h>(
    head: &'b [u8],
    method: &str,
    storage: &'h mut HeaderStorage<'b>,
) -> Result<Response<'b, 'h>, Http1Error> {
    check_lines(head)?;
    let mut parsed = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let read = config.parse_response_with_uninit_headers(&mut response, head, &mut parsed);
    complete(read.map_err(head_error)?)?;
    let status = response.code.filter(|code| (100..=599).contains(code)).ok_or(Http1Error::Malformed)?;
    let version = version(response.version)?;
    let headers = keep_headers(response.headers, storage)?;
    Ok(Response {
        status,
        reason: response.reason.unwrap_or_default(),
        version,
        headers,
        body: response_framing(headers, version, status, method)?,
        keep_alive: Connection::of(headers).keep_alive(version),
    })
}

/// Only CRLF ends a line, no line is folded, and no control byte stands anywhere else.
fn check_lines(head: &[u8]) -> Result<(), Http1Error> {
    // Without a way out of the loop the compiler compares many bytes at once.
    let is_control = |byte: u8| matches!(byte, 0..=8 | 11 | 12 | 14..=31 | 127);
    if head.iter().fold(false, |found, &byte| found | is_control(byte)) {
        return Err(Http1Error::Malformed);
    }
    let mut ends = 0;
    for at in memchr::memchr_iter(b'\n', head) {
        ends += 1;
        if at.checked_sub(1).and_then(|before| head.get(before)) != Some(&b'\r') {
            return Err(Http1Error::BareLineEnd);
        }
        if matches!(head.get(at + 1), Some(b' ' | b'\t')) {
            return Err(Http1Error::FoldedLine);
        }
    }
    // Each line feed has its own, so one more is a bare one.
    if memchr::memchr_iter(b'\r', head).count() == ends { Ok(()) } else { Err(Http1Error::BareLineEnd) }
}

/// `method SP target SP HTTP/1.x CRLF` with single spaces. Read by hand because httparse is lenient here.
fn request_line(head: &[u8]) -> Result<(&str, &str, Version), Http1Error> {
    let end = memchr::memchr(b'\r', head).ok_or(Http1Error::Malformed)?;
    let line = std::str::from_utf8(head.get(..end).unwrap_or_default()).map_err(|_| Http1Error::Target)?;
    let (method, rest) = line.split_once(' ').ok_or(Http1Error::Malformed)?;
    let (target, version) = rest.rsplit_once(' ').ok_or(Http1Error::Malformed)?;
    if method.is_empty() || method.len() > METHOD_BYTES_MAX || !method.bytes().all(is_token) {
        return Err(Http1Error::Malformed);
    }
    if target.len() > TARGET_BYTES_MAX {
        return Err(Http1Error::TargetTooLong);
    }
    if !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Http1Error::Target);
    }
    let version = match version {
        "HTTP/1.1" => Version::Http11,
        "HTTP/1.0" => Version::Http10,
        _ => return Err(Http1Error::Version),
    };
    Ok((method, target, version))
}

/// Splits a target into path with query and, in the absolute form, its authority (RFC 9112 section 3.2).
fn split_target<'b>(method: &str, target: &'b str) -> Result<(&'b str, Option<&'b str>), Http1Error> {
    if method == "CONNECT" {
        return Err(Http1Error::Connect);
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok((target, None));
    }
    let scheme_end = target.find("://").ok_or(Http1Error::Target)?;
    let (scheme, rest) = target.split_at_checked(scheme_end).ok_or(Http1Error::Target)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Http1Error::Target);
    }
    let rest = rest.get("://".len()..).ok_or(Http1Error::Target)?;
    match rest.find(['/', '?', '#']) {
        None => Ok(("/", Some(rest))),
        Some(end) => {
            let (authority, path) = rest.split_at_checked(end).ok_or(Http1Error::Target)?;
            // `http://host?query` has an empty path, which no origin form can express.
            if path.starts_with('/') { Ok((path, Some(authority))) } else { Err(Http1Error::Target) }
        }
    }
}

fn host<'b>(headers: &[Header<'b>]) -> Result<Option<&'b str>, Http1Error> {
    let mut hosts = values(headers, "host");
    let first = hosts.next();
    if hosts.next().is_some() {
        return Err(Http1Error::Host);
    }
    first.map(|value| std::str::from_utf8(value).map_err(|_| Http1Error::Host)).transpose()
}

pub(crate) fn expectation(headers: &[Header<'_>]) -> Result<bool, Http1Error> {
    let mut expected = false;
    for value in values(headers, "expect") {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Http1Error::Expectation);
        }
        expected = true;
    }
    Ok(expected)
}

/// RFC 9112 section 6.3, with every ambiguity refused.
fn request_framing(headers: &[Header<'_>], version: Version) -> Result<BodyFraming, Http1Error> {
    match (transfer_encoding(headers, version)?, content_length(headers)?) {
        (true, Some(_)) => Err(Http1Error::AmbiguousFraming),
        (true, None) => Ok(BodyFraming::Chunked),
        (false, Some(0) | None) => Ok(BodyFraming::None),
        (false, Some(length)) => Ok(BodyFraming::Length(length)),
    }
}

fn response_framing(
    headers: &[Header<'_>],
    version: Version,
    status: u16,
    method: &str,
) -> Result<BodyFraming, Http1Error> {
    let chunked = transfer_encoding(headers, version)?;
    let length = content_length(headers)?;
    if chunked && length.is_some() {
        return Err(Http1Error::AmbiguousFraming);
    }
    if method == "HEAD" || (100..200).contains(&status) || status == 204 || status == 304 {
        return Ok(BodyFraming::None);
    }
    Ok(match (chunked, length) {
        (true, _) => BodyFraming::Chunked,
        (false, Some(0)) => BodyFraming::None,
        (false, Some(length)) => BodyFraming::Length(length),
        (false, None) => BodyFraming::UntilClose,
    })
}

/// True for the one coding that is understood. Any other, a list, a repetition or HTTP/1.0 is refused.
fn transfer_encoding(headers: &[Header<'_>], version: Version) -> Result<bool, Http1Error> {
    let mut codings = values(headers, "transfer-encoding");
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if version == Version::Http11 && coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(true)
        }
        _ => Err(Http1Error::TransferEncoding),
    }
}

pub(crate) fn content_length(headers: &[Header<'_>]) -> Result<Option<u64>, Http1Error> {
    let mut lengths = values(headers, "content-length");
    let Some(first) = lengths.next() else { return Ok(None) };
    // Equal repeats are legal to collapse, but no honest sender makes them.
    if lengths.next().is_some() || first.is_empty() || !first.iter().all(u8::is_ascii_digit) {
        return Err(Http1Error::ContentLength);
    }
    let digits = std::str::from_utf8(first).map_err(|_| Http1Error::ContentLength)?;
    digits.parse().map(Some).map_err(|_| Http1Error::ContentLength)
}

/// What the Connection field says.
#[derive(Debug, Clone, Copy, Default)]
struct Connection {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl Connection {
    fn of(headers: &[Header<'_>]) -> Self {
        let mut connection = Self::default();
        for value in values(headers, "connection") {
            for option in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                connection.close |= option.eq_ignore_ascii_case(b"close");
                connection.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                connection.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
            }
        }
        connection
    }

    fn keep_alive(self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }
}

/// The values of a field, in order.
fn values<'a, 'b: 'a>(headers: &'a [Header<'b>], name: &'a str) -> impl Iterator<Item = &'b [u8]> + 'a {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

fn text<'b>(headers: &[Header<'b>], name: &str) -> Option<&'b str> {
    values(headers, name)
        .next()
        .and_then(|value| std::str::from_utf8(value).ok())
        .filter(|value| !value.is_empty())
}

fn version(minor: Option<u8>) -> Result<Version, Http1Error> {
    match minor {
        Some(1) => Ok(Version::Http11),
        Some(0) => Ok(Version::Http10),
        _ => Err(Http1Error::Version),
    }
}

fn complete(status: httparse::Status<usize>) -> Result<(), Http1Error> {
    if status.is_complete() { Ok(()) } else { Err(Http1Error::Malformed) }
}

fn head_error(error: httparse::Error) -> Http1Error {
    match error {
        httparse::Error::TooManyHeaders => Http1Error::HeadTooLarge,
        httparse::Error::Version => Http1Error::Version,
        _ => Http1Error::Malformed,
    }
}

/// The parser has seen to it that names are tokens of RFC 9110.
fn keep_headers<'b, 'h>(
    parsed: &[httparse::Header<'b>],
    storage: &'h mut HeaderStorage<'b>,
) -> Result<&'h [Header<'b>], Http1Error> {
    storage.clear();
    for header in parsed {
        let header = Header { name: header.name, value: header.value.trim_ascii() };
        storage.try_push(header).map_err(|_| Http1Error::HeadTooLarge)?;
    }
    Ok(storage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: &str) -> Result<(String, String, BodyFraming, bool), Http1Error> {
        let mut storage = empty_headers();
        let parsed = parse_request(head.as_bytes(), &mut storage)?;
        Ok((parsed.authority.to_owned(), parsed.target.to_owned(), parsed.body, parsed.keep_alive))
    }

    #[test]
    fn a_plain_request_is_read() {
        let got = request("GET /a?b HTTP/1.1\r\nHost: x:80\r\nAccept: */*\r\n\r\n").unwrap();
        assert_eq!(got, ("x:80".into(), "/a?b".into(), BodyFraming::None, true));
        let got = request("POST / HTTP/1.0\r\nHost: x\r\nContent-Length: 12\r\n\r\n").unwrap();
        assert_eq!(got, ("x".into(), "/".into(), BodyFraming::Length(12), false));
    }

    #[test]
    fn the_absolute_form_wins_over_host() {
        let got = request("GET http://a.example/p HTTP/1.1\r\nHost: b.example\r\n\r\n").unwrap();
        assert_eq!((got.0.as_str(), got.1.as_str()), ("a.example", "/p"));
        let got = request("GET http://a.example HTTP/1.1\r\nHost: b.example\r\n\r\n").unwrap();
        assert_eq!((got.0.as_str(), got.1.as_str()), ("a.example", "/"));
        for bad in ["ftp://a/", "http://a?b", "a.example:80", "http://u@a/", "http:///p", "*"] {
            assert!(request(&format!("GET {bad} HTTP/1.1\r\nHost: b\r\n\r\n")).is_err(), "{bad}");
        }
    }

    #[test]
    fn upgrade_needs_both_fields() {
        let mut storage = empty_headers();
        let head =
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(parse_request(head.as_bytes(), &mut storage).unwrap().upgrade, Some("websocket"));
        let mut storage = empty_headers();
        let head = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(parse_request(head.as_bytes(), &mut storage).unwrap().upgrade, None);
    }

    #[test]
    fn response_framing_follows_status_and_method() {
        let framing = |head: &str, method: &str| {
            let mut storage = empty_headers();
            parse_response(head.as_bytes(), method, &mut storage).map(|response| response.body)
        };
        let with_length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(framing(with_length, "GET"), Ok(BodyFraming::Length(5)));
        assert_eq!(framing(with_length, "HEAD"), Ok(BodyFraming::None));
        assert_eq!(framing("HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n", "GET"), Ok(BodyFraming::None));
        assert_eq!(framing("HTTP/1.1 204 X\r\n\r\n", "GET"), Ok(BodyFraming::None));
        assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\n", "GET"), Ok(BodyFraming::UntilClose));
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET"),
            Ok(BodyFraming::Chunked)
        );
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "GET"),
            Err(Http1Error::AmbiguousFraming)
        );
        assert_eq!(
            framing("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "GET"),
            Err(Http1Error::TransferEncoding)
        );
    }

    #[test]
    fn the_scanner_finds_an_end_that_comes_in_pieces() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        let mut scanner = HeadScanner::default();
        for end in 0..head.len() - 4 {
            assert_eq!(scanner.find(&head[..end]), Ok(None));
        }
        assert_eq!(scanner.find(head), Ok(Some(head.len() - 4)));
        let endless = vec![b'a'; HEAD_BYTES_MAX + 1];
        assert_eq!(HeadScanner::default().find(&endless), Err(Http1Error::HeadTooLarge));
    }

    #[test]
    fn fuzz_a_head_that_parses_is_read_alike_by_a_naive_reader() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let mut head = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
            head.extend_from_slice(bytes);
            head.extend_from_slice(b"\r\n\r\n");
            let Ok(Some(length)) = HeadScanner::default().find(&head) else { return };
            let mut storage = empty_headers();
            let Ok(request) = parse_request(&head[..length], &mut storage) else { return };
            let body = &head[..length - 4];
            let lines: Vec<&[u8]> = body.split(|&b| b == b'\n').skip(1).collect();
            assert_eq!(lines.len(), request.headers.len());
            for (line, header) in lines.iter().zip(request.headers) {
                let colon = line.iter().position(|&b| b == b':').unwrap();
                assert_eq!(&line[..colon], header.name.as_bytes());
                assert_eq!(line[colon + 1..].trim_ascii(), header.value);
            }
        });
    }

    #[test]
    fn names_of_fields_are_tokens() {
        assert!(request("GET / HTTP/1.1\r\nHost: a\r\n: v\r\n\r\n").is_err());
        for byte in (0..=255_u8).filter(|&byte| byte != b':') {
            for name in [vec![byte], vec![b'x', byte], vec![b'x', byte, b'y']] {
                let head = [b"GET / HTTP/1.1\r\nHost: a\r\n", &*name, b": v\r\n\r\n"].concat();
                let mut storage = empty_headers();
                assert_eq!(parse_request(&head, &mut storage).is_ok(), is_token(byte), "{name:?}");
                let head = [b"HTTP/1.1 200 OK\r\n", &*name, b": v\r\n\r\n"].concat();
                let mut storage = empty_headers();
                assert_eq!(parse_response(&head, "GET", &mut storage).is_ok(), is_token(byte), "{name:?}");
            }
        }
    }

    #[test]
    fn fuzz_random_heads_never_panic() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let mut storage = empty_headers();
            let _ = parse_request(bytes, &mut storage).map(|request| request.headers.len());
            let mut storage = empty_headers();
            let _ = parse_response(bytes, "GET", &mut storage).map(|response| response.status);
        });
    }
}
