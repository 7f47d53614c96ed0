//! The head of a request as it was received, whichever protocol carried it, and as it leaves.

use std::borrow::Cow;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use l7::filter::Chain;
use l7::http1::{
    BodyFraming, Http1Error, Request, Rewritten, empty_headers, is_token, parse_request, write_request,
    write_rewritten_request,
};
use l7::http2::{Pseudo, joined_cookie, passing, put_request_fields, read_request};
use l7::ir::{Header, RequestHead};
use l7::path::{Normalization, Target, normalize};
use tunnel::h2::{HeaderError, Headers};

/// A request head, kept as it came: it can be read again, when policies have changed or somebody else is asked.
#[derive(Debug, Clone)]
pub(in crate::session) enum Received {
    Http1 { raw: Bytes, normalization: Normalization },
    Http2(Rc<Http2Head>),
}

/// A request head that came in HTTP/2.
#[derive(Debug)]
pub(in crate::session) struct Http2Head {
    headers: Headers,
    /// The crumbs of its cookie, if there was more than one.
    cookie: Option<Vec<u8>>,
    /// It has no body.
    ended: bool,
    normalization: Normalization,
}

/// Without it a server of HTTP/1.1 takes no switch to WebSocket; HTTP/2 has no use for it (RFC 8441 section 5).
pub(super) const WEBSOCKET_KEY: &str = "sec-websocket-key";

impl Received {
    pub(super) fn http2(headers: Headers, ended: bool, normalization: Normalization) -> Self {
        let cookie = joined_cookie(lines(&headers));
        Self::Http2(Rc::new(Http2Head { headers, cookie, ended, normalization }))
    }

    /// Bytes of the head, about.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Http1 { raw, .. } => raw.len(),
            Self::Http2(head) => head.headers.list_size(),
        }
    }

    /// Parses the head, normalises its target, and shows both. Synchronous, so that the room for header fields lies on
    /// the stack only for so long.
    pub(super) fn read<R>(
        &self,
        take: impl FnOnce(&Request<'_, '_>, &Target<'_>) -> R,
    ) -> Result<R, Http1Error> {
        match self {
            Self::Http1 { raw, normalization } => {
                let mut storage = empty_headers();
                let mut request = parse_request(raw, &mut storage)?;
                // Without its Upgrade field a request asks for no switch, which a server is free to ignore as well.
                request.upgrade = request.upgrade.filter(|protocols| !hides_requests(protocols));
                let target = normalize(request.target, *normalization).map_err(|_| Http1Error::Target)?;
                Ok(take(&request, &target))
            }
            Self::Http2(head) => {
                let Http2Head { headers, cookie, ended, normalization } = &**head;
                let pseudo = Pseudo {
                    method: headers.method().unwrap_or_default(),
                    authority: headers.authority(),
                    path: headers.path(),
                    protocol: headers.protocol(),
                };
                let mut storage = Vec::with_capacity(headers.field_count());
                let request = read_request(pseudo, lines(headers), cookie.as_deref(), *ended, &mut storage)?;
                if request.upgrade.is_some_and(hides_requests) {
                    return Err(Http1Error::Connect);
                }
                let target = normalize(request.target, *normalization).map_err(|_| Http1Error::Target)?;
                Ok(take(&request, &target))
            }
        }
    }

    /// Shows the head as matchers see it. An error for one that is no request, which is refused before it is decided.
    pub(in crate::session) fn view<R>(
        &self,
        take: impl FnOnce(&RequestHead<'_>) -> R,
    ) -> Result<R, Http1Error> {
        self.read(|request, target| take(&seen(request, target)))
    }

    /// Whether a request to switch protocols can be an extended CONNECT, which has one protocol, and no body before it.
    pub(super) fn can_extend(&self) -> bool {
        let can = |request: &Request<'_, '_>| {
            let is_one = request.upgrade.is_some_and(|it| !it.is_empty() && it.bytes().all(is_token));
            is_one && request.method == "GET" && request.body == BodyFraming::None
        };
        self.read(|request, _| can(request)).unwrap_or(false)
    }

    /// The head for an upstream that speaks HTTP/2. `extended` says that it takes extended CONNECT; elsewhere a request
    /// of HTTP/1.1 to switch protocols becomes an ordinary one, as if the server had ignored it.
    pub(super) fn to_http2(&self, filters: &Chain, extended: Extended) -> Result<Headers, Unwritable> {
        let scheme = match self {
            Self::Http1 { .. } => None,
            Self::Http2(head) => head.headers.scheme(),
        };
        self.read(|request, target| {
            write_http2(request, target, scheme.unwrap_or(b"http"), filters, extended)
        })?
        .map_err(Unwritable::Field)
    }

    /// The head for an upstream that speaks HTTP/1.1; `random` makes up what only that asks for.
    pub(super) fn to_http1(&self, filters: &Chain, random: impl Fn() -> u64) -> Result<Vec<u8>, Unwritable> {
        let mut out = Vec::with_capacity(self.len() + 64);
        self.read(|request, target| {
            let needs_key = matches!(self, Self::Http2(_)) && request.upgrade.is_some();
            let has_key = request.headers.iter().any(|it| it.name.eq_ignore_ascii_case(WEBSOCKET_KEY));
            let key = (needs_key && !has_key).then(|| {
                let bytes = [random(), random()].map(u64::to_ne_bytes);
                STANDARD.encode(bytes.as_flattened())
            });
            let key = key.as_ref().map(|key| Header { name: WEBSOCKET_KEY, value: key.as_bytes() });
            write_http1(&mut out, request, target, filters, key);
        })?;
        Ok(out)
    }
}

/// Whether extended CONNECT may be sent (RFC 8441 section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extended {
    Taken,
    Not,
}

/// Why a head cannot be written for the next hop.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unwritable {
    #[error(transparent)]
    Head(#[from] Http1Error),
    #[error(transparent)]
    Field(HeaderError),
}

fn lines(headers: &Headers) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers.fields().map(|field| (field.name, field.value))
}

/// What matchers see of a request: the path that is matched is the path that is forwarded.
pub(super) fn seen<'a>(request: &'a Request<'a, 'a>, target: &'a Target<'a>) -> RequestHead<'a> {
    RequestHead {
        method: request.method,
        authority: request.authority,
        path: &target.path,
        query: target.query,
        headers: request.headers,
        token: None,
    }
}

/// The path that was matched, unless filters put another in its place, with its query.
fn path_and_query<'a>(target: &'a Target<'a>, filters: &'a Chain) -> Cow<'a, str> {
    let path = filters.path(&target.path);
    match filters.query(target.query) {
        Some(query) => Cow::Owned(format!("{path}?{query}")),
        None => path,
    }
}

/// Appends the head for an upstream that speaks HTTP/1.1.
pub(super) fn write_http1(
    out: &mut Vec<u8>,
    request: &Request<'_, '_>,
    target: &Target<'_>,
    filters: &Chain,
    added: Option<Header<'_>>,
) {
    let target = path_and_query(target, filters);
    if filters.is_empty() {
        return write_request(out, request, &target, added.as_slice());
    }
    let fields = filters.request_fields(request.headers);
    let authority = filters.authority(request.authority);
    let fields = fields.iter().chain(added);
    write_rewritten_request(out, request, Rewritten { authority, target: &target, fields });
}

fn write_http2(
    request: &Request<'_, '_>,
    target: &Target<'_>,
    scheme: &[u8],
    filters: &Chain,
    extended: Extended,
) -> Result<Headers, HeaderError> {
    let protocol = request.upgrade.filter(|_| extended == Extended::Taken);
    let method = if protocol.is_some() { "CONNECT" } else { request.method };
    let target = path_and_query(target, filters);
    let mut headers = Headers::request(method, scheme, filters.authority(request.authority), &*target)?;
    if let Some(protocol) = protocol {
        headers.set_protocol(protocol.to_ascii_lowercase())?;
    }
    let mut result = Ok(());
    let mut put = |name: &str, value: &[u8]| {
        let is_left_behind = protocol.is_some() && name == WEBSOCKET_KEY;
        if result.is_ok() && !is_left_behind {
            result = headers.push(name, value);
        }
    };
    if filters.is_empty() {
        put_request_fields(request, passing(request.headers), &mut put);
    } else {
        let fields = filters.request_fields(request.headers);
        put_request_fields(request, fields.iter(), &mut put);
    }
    result.map(|()| headers)
}

/// Whether a switch to one of these protocols would carry HTTP requests that nobody here could read, past every route
/// and policy: HTTP itself in another version, or TLS with anything inside.
fn hides_requests(protocols: &str) -> bool {
    protocols.split(',').any(|protocol| {
        let name = protocol.split('/').next().unwrap_or_default().trim();
        ["h2c", "http", "tls"].iter().any(|hidden| name.eq_ignore_ascii_case(hidden))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_normalised_as_it_was_received_for_wherever_it_is_looked_at() {
        for (normalization, expected) in [
            (Normalization::None, "/a/../b//c%2Fd"),
            (Normalization::Base, "/b//c%2Fd"),
            (Normalization::MergeSlashes, "/b/c%2Fd"),
            (Normalization::DecodeAndMergeSlashes, "/b/c/d"),
        ] {
            let raw = Bytes::from_static(b"GET /a/../b//c%2Fd HTTP/1.1\r\nhost: web\r\n\r\n");
            let received = Received::Http1 { raw, normalization };
            assert_eq!(received.view(|head| head.path.to_owned()).unwrap(), expected);
            let written = received.to_http1(&Chain::default(), || 0).unwrap();
            let line = format!("GET {expected} HTTP/1.1\r\n");
            assert!(written.starts_with(line.as_bytes()), "{normalization:?}");
        }
    }
}
