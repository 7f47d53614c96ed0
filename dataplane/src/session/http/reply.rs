//! Answers of the proxy's own, as each client reads them.

use std::borrow::Cow;

use l7::grpc;
use l7::http1::{Http1Error, local_reply_with, redirect_reply};
use l7::ir::Header;
use tunnel::h2::{HeaderError, Headers};

use crate::access_log::cause::CloseCause;
use crate::session::traffic::Overflow;

/// An answer in the upstream's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::session) struct Reply {
    pub(in crate::session) status: u16,
    pub(in crate::session) body: Cow<'static, str>,
    /// Beside those that frame the body.
    pub(in crate::session) fields: Vec<(Cow<'static, str>, Vec<u8>)>,
    pub(in crate::session) cause: CloseCause,
}

/// The answer to a request that took longer than its route allows.
pub(super) const TIMED_OUT: Reply = Reply::text(504, "upstream request timeout", CloseCause::RequestTimeout);

impl From<Overflow> for Reply {
    /// As Envoy answers, whose clients know by the field that another try would be no help.
    fn from(_: Overflow) -> Self {
        let text = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
        Self::text(503, text, CloseCause::UpstreamOverflow).with("x-envoy-overloaded", "true")
    }
}

impl Reply {
    /// A status and a line of text.
    pub(in crate::session) const fn text(status: u16, body: &'static str, cause: CloseCause) -> Self {
        Self { status, body: Cow::Borrowed(body), fields: Vec::new(), cause }
    }

    /// The same with another field. Its value holds no control characters.
    pub(in crate::session) fn with(mut self, name: &'static str, value: impl Into<Vec<u8>>) -> Self {
        self.fields.push((Cow::Borrowed(name), value.into()));
        self
    }

    /// The same as clients of gRPC read it: the status is in the fields, of a response without a body
    /// (gRPC's "Trailers-Only"). What else the fields say stays.
    pub(super) fn for_grpc(self) -> Self {
        if self.has("grpc-status") {
            return self;
        }
        let status = grpc::status_of(self.status).to_string();
        let message = grpc::message(&self.body);
        let mut fields = self.fields;
        fields.retain(|(name, _)| !name.eq_ignore_ascii_case("content-type"));
        fields.extend([
            (Cow::Borrowed("content-type"), grpc::CONTENT_TYPE.into()),
            (Cow::Borrowed("grpc-status"), status.into_bytes()),
            (Cow::Borrowed("grpc-message"), message.into_bytes()),
        ]);
        Self { status: 200, body: Cow::Borrowed(""), fields, cause: self.cause }
    }

    fn has(&self, field: &str) -> bool {
        self.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case(field))
    }

    fn headers(&self) -> Vec<Header<'_>> {
        self.fields.iter().map(|(name, value)| Header { name, value }).collect()
    }

    /// As a client of HTTP/1.1 reads it.
    pub(super) fn to_http1(&self, keep_alive: bool, is_head_method: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let fields = self.headers();
        if self.body.is_empty() {
            redirect_reply(&mut out, self.status, fields.into_iter(), keep_alive);
        } else {
            local_reply_with(&mut out, self.status, &fields, &self.body, keep_alive, is_head_method);
        }
        out
    }

    /// The head for a client of HTTP/2; the body follows it as it is.
    pub(super) fn to_http2(&self) -> Result<Headers, HeaderError> {
        let mut headers = Headers::response(self.status)?;
        for (name, value) in &self.fields {
            headers.push(name.to_ascii_lowercase(), value)?;
        }
        if !self.body.is_empty() {
            headers.push("content-length", self.body.len().to_string())?;
            if !self.has("content-type") {
                headers.push("content-type", "text/plain")?;
            }
        }
        Ok(headers)
    }
}

/// The answer to a message that is no request.
pub(super) fn invalid(error: Http1Error) -> Reply {
    tracing::debug!(%error, label = error.label(), "a request is refused");
    Reply::text(error.status(), "malformed request", CloseCause::InvalidHttp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_grpc_reads_the_status_in_the_fields() {
        let denied = Reply::text(403, "RBAC: access denied", CloseCause::PolicyDenied).for_grpc();
        let headers = denied.to_http2().unwrap();
        assert_eq!(headers.status(), Some(200));
        assert_eq!(headers.get("grpc-status"), Some(b"7".as_slice()));
        assert_eq!(headers.get("grpc-message"), Some(b"RBAC: access denied".as_slice()));
        assert_eq!(headers.get("content-type"), Some(b"application/grpc".as_slice()));
        assert_eq!(headers.get("content-length"), None);
        let text = String::from_utf8(denied.to_http1(true, false)).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("grpc-status: 7\r\n"), "{text}");
        assert!(text.contains("content-length: 0\r\n"), "{text}");
    }

    #[test]
    fn what_else_an_answer_says_is_told_to_clients_of_grpc_as_well() {
        let overflow = Reply::from(Overflow).for_grpc().to_http2().unwrap();
        assert_eq!(overflow.get("x-envoy-overloaded"), Some(b"true".as_slice()));
        assert_eq!(overflow.get("grpc-status"), Some(b"14".as_slice()));
        let typed = Reply::text(403, "no", CloseCause::PolicyDenied).with("Content-Type", "text/html");
        let headers = typed.for_grpc().to_http2().unwrap();
        let kinds: Vec<_> = headers.fields().filter(|field| field.name == b"content-type").collect();
        assert_eq!(kinds.len(), 1);
        assert_eq!(kinds[0].value, b"application/grpc");
    }
}
