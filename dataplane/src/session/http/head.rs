//! The head of a request as it was received, whichever protocol carried it.

use bytes::Bytes;
use l7::http1::{Http1Error, Request, empty_headers, parse_request};
use l7::ir::RequestHead;
use l7::path::{Target, normalize};

use super::NORMALIZATION;

/// A request head, kept as it came: it can be read again, when policies have changed or somebody else is asked.
#[derive(Debug, Clone)]
pub(in crate::session) enum Received {
    Http1(Bytes),
}

impl Received {
    /// Bytes of the head, about.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Http1(raw) => raw.len(),
        }
    }

    /// Parses the head, normalises its target, and shows both. Synchronous, so that the room for header fields lies on
    /// the stack only for so long.
    pub(super) fn read<R>(
        &self,
        take: impl FnOnce(&Request<'_, '_>, &Target<'_>) -> R,
    ) -> Result<R, Http1Error> {
        match self {
            Self::Http1(raw) => {
                let mut storage = empty_headers();
                let mut request = parse_request(raw, &mut storage)?;
                // Without its Upgrade field a request asks for no switch, which a server is free to ignore as well.
                request.upgrade = request.upgrade.filter(|protocols| !hides_requests(protocols));
                let target = normalize(request.target, NORMALIZATION).map_err(|_| Http1Error::Target)?;
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

/// Whether a switch to one of these protocols would carry HTTP requests that nobody here could read, past every route
/// and policy: HTTP itself in another version, or TLS with anything inside.
fn hides_requests(protocols: &str) -> bool {
    protocols.split(',').any(|protocol| {
        let name = protocol.split('/').next().unwrap_or_default().trim();
        ["h2c", "http", "tls"].iter().any(|hidden| name.eq_ignore_ascii_case(hidden))
    })
}
