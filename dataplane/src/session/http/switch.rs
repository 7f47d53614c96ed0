//! A client of HTTP/1.1 that switches protocols with a server of HTTP/2: the request went as an extended CONNECT, and the
//! server's agreement is told as HTTP/1.1 tells it (RFC 8441 section 5, RFC 6455 section 4.2.2).

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use l7::http1::{BodyFraming, Http1Error, Response, reason};
use l7::ir::Header;

use super::head::{Received, WEBSOCKET_KEY};
use super::response::ResponseHead;

/// What a key is hashed with (RFC 6455 section 1.3).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a client asked for.
#[derive(Debug)]
pub(super) struct Switch {
    protocol: String,
    /// The proof that its key was read, if it sent one.
    accept: Option<String>,
}

impl Switch {
    /// `None` if the request asks for none.
    pub(super) fn asked(request: &Received) -> Option<Self> {
        let asked = request.read(|request, _| {
            let key = request.headers.iter().find(|it| it.name.eq_ignore_ascii_case(WEBSOCKET_KEY));
            let accept = key.map(|key| proof(key.value));
            request.upgrade.map(|protocol| Self { protocol: protocol.to_owned(), accept })
        });
        asked.ok().flatten()
    }

    /// Has the agreement written for the client.
    pub(super) fn agreed(
        &self,
        response: &Response<'_, '_>,
        write: impl FnOnce(&Response<'_, '_>) -> Result<ResponseHead, Http1Error>,
    ) -> Result<ResponseHead, Http1Error> {
        let own = ["upgrade", "connection", "content-length", "sec-websocket-accept"];
        let is_own = |header: &Header<'_>| own.iter().any(|name| header.name.eq_ignore_ascii_case(name));
        let mut headers: Vec<_> = response.headers.iter().filter(|header| !is_own(header)).copied().collect();
        headers.push(Header { name: "upgrade", value: self.protocol.as_bytes() });
        if let Some(accept) = &self.accept {
            headers.push(Header { name: "sec-websocket-accept", value: accept.as_bytes() });
        }
        let (status, body) = (101, BodyFraming::None);
        write(&Response { status, reason: reason(status), headers: &headers, body, ..*response })
    }
}

fn proof(key: &[u8]) -> String {
    let hashed = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, WEBSOCKET_GUID].concat());
    STANDARD.encode(hashed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_that_of_the_protocol() {
        // RFC 6455 section 1.3.
        assert_eq!(proof(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
