//! HTTP/2 header lists as the heads that routes, policies and HTTP/1.1 know, and back (RFC 9113 sections 8.2 and 8.3).
//!
//! A head that came in HTTP/2 is held to the rules of HTTP/1.1 before anybody sees it, whichever protocol it leaves in: so
//! a route or a policy means the same in both, and no field can become two on the way. The engine that decoded it has
//! checked already that names are lower-case tokens, that pseudo-header fields are complete and stand once, and that
//! Host agrees with `:authority`.

use crate::http1::{
    BodyFraming, Http1Error, METHOD_BYTES_MAX, Request, Response, TARGET_BYTES_MAX, Version,
    accepts_trailers, content_length, end_to_end, expectation, is_authority, is_field_value, is_hop_by_hop,
    is_token, reason,
};
use crate::ir::Header;

/// Most fields of a head; what is over is refused.
pub const FIELDS_MAX: usize = 128;

/// The pseudo-header fields of a request, as they came.
#[derive(Debug, Clone, Copy)]
pub struct Pseudo<'b> {
    pub method: &'b [u8],
    pub authority: Option<&'b [u8]>,
    pub path: Option<&'b [u8]>,
    /// Of an extended CONNECT (RFC 8441).
    pub protocol: Option<&'b [u8]>,
}

/// The crumbs of a cookie in one line, if there is more than one (RFC 9113 section 8.2.3).
pub fn joined_cookie<'b>(fields: impl Iterator<Item = (&'b [u8], &'b [u8])>) -> Option<Vec<u8>> {
    let mut crumbs = fields.filter(|(name, _)| *name == b"cookie").map(|(_, value)| value);
    let (first, second) = (crumbs.next()?, crumbs.next()?);
    let mut joined = first.to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb);
    }
    Some(joined)
}

/// Reads a request. `cookie` is what [`joined_cookie`] made of its fields, `ended` says that it has no body.
///
/// An extended CONNECT is shown as the HTTP/1.1 request that asks for the same: GET, with the protocol as the one to switch
/// to (RFC 8441 section 5). Its body is not a body but the other protocol.
pub fn read_request<'b, 'h>(
    pseudo: Pseudo<'b>,
    fields: impl Iterator<Item = (&'b [u8], &'b [u8])>,
    cookie: Option<&'b [u8]>,
    ended: bool,
    storage: &'h mut Vec<Header<'b>>,
) -> Result<Request<'b, 'h>, Http1Error> {
    read_fields(fields, cookie, storage)?;
    let headers = storage.as_slice();
    let upgrade = pseudo.protocol.map(protocol).transpose()?;
    let method = text(pseudo.method)?;
    if method == "CONNECT" && upgrade.is_none() {
        return Err(Http1Error::Connect);
    }
    if method.is_empty() || method.len() > METHOD_BYTES_MAX || !method.bytes().all(is_token) {
        return Err(Http1Error::Malformed);
    }
    let target = pseudo.path.and_then(|path| std::str::from_utf8(path).ok()).ok_or(Http1Error::Target)?;
    if target.len() > TARGET_BYTES_MAX {
        return Err(Http1Error::TargetTooLong);
    }
    let has_form = target.starts_with('/') || (target == "*" && method == "OPTIONS");
    if !has_form || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Http1Error::Target);
    }
    let host = headers.iter().find(|header| header.name == "host").map(|header| header.value);
    let authority = pseudo.authority.or(host).ok_or(Http1Error::Host)?;
    let authority = std::str::from_utf8(authority).map_err(|_| Http1Error::Host)?;
    if !is_authority(authority) {
        return Err(Http1Error::Host);
    }
    let body = match content_length(headers)? {
        _ if ended || upgrade.is_some() => BodyFraming::None,
        Some(0) => BodyFraming::None,
        Some(length) => BodyFraming::Length(length),
        None => BodyFraming::Chunked,
    };
    Ok(Request {
        method: if upgrade.is_some() { "GET" } else { method },
        target,
        authority,
        version: Version::Http11,
        headers,
        body,
        keep_alive: true,
        expect_continue: expectation(headers)?,
        upgrade,
    })
}

/// Reads a response to a request that was HEAD or not. `ended` says that it has no body.
pub fn read_response<'b, 'h>(
    status: u16,
    fields: impl Iterator<Item = (&'b [u8], &'b [u8])>,
    is_head_method: bool,
    ended: bool,
    storage: &'h mut Vec<Header<'b>>,
) -> Result<Response<'b, 'h>, Http1Error> {
    read_fields(fields, None, storage)?;
    let headers = storage.as_slice();
    if !(100..=599).contains(&status) || status == 101 {
        return Err(Http1Error::Malformed);
    }
    let body = match content_length(headers)? {
        _ if is_head_method || status < 200 || status == 204 || status == 304 => BodyFraming::None,
        // A length of its own, so that a reader of HTTP/1.1 does not wait for the end of the connection.
        _ if ended => BodyFraming::Length(0),
        Some(length) => BodyFraming::Length(length),
        None => BodyFraming::Chunked,
    };
    Ok(Response { status, reason: reason(status), version: Version::Http11, headers, body, keep_alive: true })
}

fn read_fields<'b>(
    fields: impl Iterator<Item = (&'b [u8], &'b [u8])>,
    cookie: Option<&'b [u8]>,
    storage: &mut Vec<Header<'b>>,
) -> Result<(), Http1Error> {
    storage.clear();
    let mut cookie = cookie;
    let mut is_joined = false;
    for (name, value) in fields {
        let value = if name == b"cookie" && (cookie.is_some() || is_joined) {
            is_joined = true;
            match cookie.take() {
                Some(joined) => joined,
                None => continue,
            }
        } else {
            value
        };
        if storage.len() == FIELDS_MAX {
            return Err(Http1Error::HeadTooLarge);
        }
        if !value.iter().all(|byte| is_field_value(*byte)) {
            return Err(Http1Error::Malformed);
        }
        storage.push(Header { name: text(name)?, value });
    }
    Ok(())
}

/// The name of one protocol, maybe with a version (RFC 9110 section 7.8): as a field it must neither vanish nor name several.
fn protocol(bytes: &[u8]) -> Result<&str, Http1Error> {
    let is_named = |part: &[u8]| !part.is_empty() && part.iter().copied().all(is_token);
    if !bytes.splitn(2, |byte| *byte == b'/').all(is_named) {
        return Err(Http1Error::Malformed);
    }
    text(bytes)
}

fn text(bytes: &[u8]) -> Result<&str, Http1Error> {
    std::str::from_utf8(bytes).map_err(|_| Http1Error::Malformed)
}

/// Shows the fields of a request for the next hop that speaks HTTP/2, names in lower case. `fields` are what filters made of
/// those of `request`.
pub fn put_request_fields<'a>(
    request: &Request<'_, '_>,
    fields: impl Iterator<Item = Header<'a>>,
    put: &mut impl FnMut(&str, &[u8]),
) {
    put_fields(fields, put);
    put_length(request.body, put);
    if accepts_trailers(request.headers) {
        put("te", b"trailers");
    }
}

/// The same of a response.
pub fn put_response_fields<'a>(
    response: &Response<'_, '_>,
    fields: impl Iterator<Item = Header<'a>>,
    put: &mut impl FnMut(&str, &[u8]),
) {
    put_fields(fields, put);
    if response.is_interim() {
        return;
    }
    match response.body {
        // A response without a body may announce the length that its GET would have (HEAD, 304).
        BodyFraming::None => {
            let lengths = response.headers.iter().filter(|it| it.name.eq_ignore_ascii_case("content-length"));
            lengths.for_each(|length| put("content-length", length.value));
        }
        // Its end says so; it may be one without a length.
        BodyFraming::Length(0) => {}
        body => put_length(body, put),
    }
}

fn put_fields<'a>(fields: impl Iterator<Item = Header<'a>>, put: &mut impl FnMut(&str, &[u8])) {
    let mut lower = String::new();
    for field in fields.filter(|field| !is_hop_by_hop(field.name)) {
        lower.clear();
        lower.push_str(field.name);
        lower.make_ascii_lowercase();
        put(&lower, field.value);
    }
}

fn put_length(body: BodyFraming, put: &mut impl FnMut(&str, &[u8])) {
    if let BodyFraming::Length(length) = body {
        put("content-length", length.to_string().as_bytes());
    }
}

/// The fields of a received head that may go to the next hop, by value.
pub fn passing<'h, 'b>(headers: &'h [Header<'b>]) -> impl Iterator<Item = Header<'b>> + 'h {
    end_to_end(headers).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields<'a> = [(&'a str, &'a str)];

    fn bytes<'a>(fields: &'a Fields<'a>) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone {
        fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()))
    }

    fn pseudo<'a>(method: &'a str, authority: Option<&'a str>, path: &'a str) -> Pseudo<'a> {
        Pseudo {
            method: method.as_bytes(),
            authority: authority.map(str::as_bytes),
            path: Some(path.as_bytes()),
            protocol: None,
        }
    }

    fn refusal(pseudo: Pseudo<'_>, fields: &Fields<'_>) -> Option<Http1Error> {
        read_request(pseudo, bytes(fields), None, false, &mut Vec::new()).err()
    }

    #[test]
    fn a_request_is_held_to_the_rules_of_http1() {
        let get = |path| pseudo("GET", Some("web"), path);
        assert_eq!(refusal(get("/a?b"), &[("x", "1")]), None);
        assert_eq!(refusal(pseudo("GET", None, "/"), &[("host", "web:80")]), None);
        assert_eq!(refusal(pseudo("GET", None, "/"), &[]), Some(Http1Error::Host));
        assert_eq!(refusal(pseudo("GET", Some("a/b"), "/"), &[]), Some(Http1Error::Host));
        assert_eq!(refusal(pseudo("CONNECT", Some("a:1"), "/"), &[]), Some(Http1Error::Connect));
        assert_eq!(refusal(get("no-slash"), &[]), Some(Http1Error::Target));
        assert_eq!(refusal(get("/a b"), &[]), Some(Http1Error::Target));
        assert_eq!(refusal(get("/"), &[("x", "a\u{1}b")]), Some(Http1Error::Malformed));
        assert_eq!(refusal(get("/"), &[("x", "a\u{7f}")]), Some(Http1Error::Malformed));
        assert_eq!(refusal(get("/"), &[("expect", "magic")]), Some(Http1Error::Expectation));
        assert_eq!(refusal(get("/"), &[("content-length", "+1")]), Some(Http1Error::ContentLength));
        let many = vec![("x", "1"); FIELDS_MAX + 1];
        assert_eq!(refusal(get("/"), &many), Some(Http1Error::HeadTooLarge));
        let long = format!("/{}", "a".repeat(TARGET_BYTES_MAX));
        assert_eq!(refusal(get(&long), &[]), Some(Http1Error::TargetTooLong));
    }

    #[test]
    fn crumbs_of_a_cookie_become_one_line() {
        let fields = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")];
        let joined = joined_cookie(bytes(&fields)).unwrap();
        let mut storage = Vec::new();
        let request =
            read_request(pseudo("GET", Some("a"), "/"), bytes(&fields), Some(&joined), true, &mut storage)
                .unwrap();
        let seen: Vec<_> = request.headers.iter().map(|it| (it.name, it.value)).collect();
        assert_eq!(seen, [("cookie", &b"a=1; b=2; c=3"[..]), ("x", b"y")]);
        assert_eq!(joined_cookie(bytes(&fields[..2])), None);
    }

    #[test]
    fn framing_follows_the_end_of_the_stream_and_the_length() {
        let framing = |fields: &Fields<'_>, ended| {
            read_request(pseudo("POST", Some("a"), "/"), bytes(fields), None, ended, &mut Vec::new())
                .map(|request| request.body)
                .unwrap()
        };
        assert_eq!(framing(&[], true), BodyFraming::None);
        assert_eq!(framing(&[], false), BodyFraming::Chunked);
        assert_eq!(framing(&[("content-length", "7")], false), BodyFraming::Length(7));
        let response = |status, fields: &Fields<'_>, head, ended| {
            read_response(status, bytes(fields), head, ended, &mut Vec::new()).map(|response| response.body)
        };
        assert_eq!(response(200, &[], false, false), Ok(BodyFraming::Chunked));
        assert_eq!(response(200, &[], false, true), Ok(BodyFraming::Length(0)));
        assert_eq!(response(200, &[("content-length", "7")], true, true), Ok(BodyFraming::None));
        assert_eq!(response(304, &[("content-length", "7")], false, true), Ok(BodyFraming::None));
        assert_eq!(response(101, &[], false, true), Err(Http1Error::Malformed));
        assert_eq!(response(999, &[], false, true), Err(Http1Error::Malformed));
    }

    #[test]
    fn an_extended_connect_is_a_request_to_switch() {
        let asked = Pseudo { protocol: Some(b"websocket"), ..pseudo("CONNECT", Some("a"), "/chat") };
        let mut storage = Vec::new();
        let request = read_request(asked, std::iter::empty(), None, false, &mut storage).unwrap();
        assert_eq!((request.method, request.upgrade), ("GET", Some("websocket")));
        assert_eq!(request.body, BodyFraming::None);
        for (protocol, is_taken) in
            [("a/1.1", true), ("", false), ("/1", false), ("a, b", false), ("a\u{1}", false)]
        {
            let asked = Pseudo { protocol: Some(protocol.as_bytes()), ..asked };
            assert_eq!(refusal(asked, &[]).is_none(), is_taken, "{protocol:?}");
        }
    }

    #[test]
    fn what_concerns_one_connection_stays_behind() {
        let mut storage = crate::http1::empty_headers();
        let head = b"POST /p HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop, TE\r\nX-Hop: 1\r\nTE: trailers, gzip\r\n\
            Keep-Alive: 5\r\nX-End: 2\r\nContent-Length: 3\r\n\r\n";
        let request = crate::http1::parse_request(head, &mut storage).unwrap();
        let mut seen = Vec::new();
        put_request_fields(&request, passing(request.headers), &mut |name, value| {
            seen.push((name.to_owned(), value.to_vec()));
        });
        let expected = [("x-end", "2"), ("content-length", "3"), ("te", "trailers")];
        assert_eq!(seen, expected.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())));
    }

    /// Which of some known texts, or noise.
    type Value = (u8, Vec<u8>);

    /// The text, without the octets that the engine refuses in any field.
    fn value(known: &[&str], (which, noise): &Value) -> Vec<u8> {
        let known = known.get(usize::from(which % 16)).map(|known| known.as_bytes().to_vec());
        let noise = || noise.iter().copied().filter(|byte| !b"\r\n\0".contains(byte)).collect::<Vec<_>>();
        known.unwrap_or_else(|| noise().trim_ascii().to_vec())
    }

    /// What the request says in HTTP/1.1 must be what it said.
    fn compare_in_http1(taken: &Request<'_, '_>) {
        let mut head = Vec::new();
        crate::http1::write_request(&mut head, taken, taken.target, &[]);
        let text = String::from_utf8_lossy(&head);
        assert_eq!(crate::http1::HeadScanner::default().find(&head), Ok(Some(head.len())), "{text:?}");
        let mut storage = crate::http1::empty_headers();
        let read = crate::http1::parse_request(&head, &mut storage);
        // A head of HTTP/1.1 has room for fewer fields.
        if taken.headers.len() > 90 && matches!(read, Err(Http1Error::HeadTooLarge)) {
            return;
        }
        let read = read.unwrap_or_else(|error| panic!("{error}: {text:?}"));
        assert_eq!((read.method, read.target, read.authority), (taken.method, taken.target, taken.authority));
        assert_eq!((read.body, read.upgrade), (taken.body, taken.upgrade), "{text:?}");
        let values = |it: &Request<'_, '_>| -> Vec<Vec<u8>> {
            passing(it.headers).map(|it| it.value.trim_ascii().to_vec()).collect()
        };
        assert_eq!(values(&read), values(taken), "{text:?}");
    }

    #[test]
    fn fuzz_what_is_taken_is_the_same_request_in_http1() {
        const METHODS: [&str; 4] = ["GET", "POST", "OPTIONS", "CONNECT"];
        const NAMES: [&str; 8] =
            ["x", "te", "cookie", "content-length", "transfer-encoding", "connection", "upgrade", "expect"];
        const VALUES: [&str; 7] = ["", "3", "trailers", "chunked", "100-continue", "a=1", "close, x"];
        const AUTHORITIES: [&str; 5] = ["a", "web:80", "[::1]:8", "10.0.0.1", "a.b."];
        type Head = (u8, Value, Value, Option<Value>, Vec<(u8, Value)>, bool);
        bolero::check!().with_type::<Head>().for_each(|head| {
            let (method, path, authority, protocol, fields, ended) = head;
            let protocol = protocol.as_ref().map(|protocol| value(&["websocket", "connect-udp"], protocol));
            let method = protocol.as_ref().map_or(METHODS[usize::from(*method) % 4], |_| "CONNECT");
            let path = [&b"/"[..], &value(&["", "a?b", "%2f//..;x", "é"], path)].concat();
            let authority = value(&AUTHORITIES, authority);
            let named =
                |(name, text): &(u8, Value)| (NAMES[usize::from(*name) % NAMES.len()], value(&VALUES, text));
            let fields: Vec<_> = fields.iter().map(named).collect();
            let fields = || fields.iter().map(|(name, value)| (name.as_bytes(), &**value));
            let cookie = joined_cookie(fields());
            let pseudo = Pseudo {
                method: method.as_bytes(),
                authority: Some(&authority),
                path: Some(&path),
                protocol: protocol.as_deref(),
            };
            let mut storage = Vec::new();
            if let Ok(taken) = read_request(pseudo, fields(), cookie.as_deref(), *ended, &mut storage) {
                compare_in_http1(&taken);
            }
        });
    }
}
