//! What a request's head and its trailers tell the books.

use std::sync::Arc;

use l7::ir::{Header, RequestHead};

use super::record::{HEADER_BYTES_MAX, HttpFacts, Path, kept, method, prefix};
use crate::metrics::{GrpcStatus, RequestProtocol};
use crate::trace::TraceContext;

impl HttpFacts {
    /// Notes what is known once the head has been read and its path normalised.
    /// `wanted` are the headers that telemetry asks for, in lower case.
    pub fn note_request(&mut self, request: &RequestHead<'_>, wanted: &[Arc<str>]) {
        self.method = method(request.method);
        self.path = Path::new(request.path);
        self.authority = kept(request.authority);
        let text =
            |name: &str| field(request.headers, name).and_then(|value| std::str::from_utf8(value).ok());
        self.user_agent = kept(text("user-agent").unwrap_or_default());
        self.request_id = kept(text("x-request-id").unwrap_or_default());
        self.caller = TraceContext::of_headers(request.headers);
        if let Some(content_type) = field(request.headers, "content-type") {
            self.protocol = RequestProtocol::of_content_type(content_type);
        }
        for name in wanted {
            if let Some(value) = text(name) {
                self.headers.push((Arc::clone(name), prefix(value, HEADER_BYTES_MAX).into()));
            }
        }
    }

    /// Notes the status of a gRPC call: from the trailers, or from a response that has nothing but a head. Other
    /// requests have none.
    pub fn note_grpc_status<'a>(&mut self, fields: impl IntoIterator<Item = Header<'a>>) {
        if self.protocol != RequestProtocol::Grpc {
            return;
        }
        let status = fields.into_iter().find(|it| it.name.eq_ignore_ascii_case("grpc-status"));
        if let Some(status) = status {
            self.grpc_status = Some(GrpcStatus::of_field(status.value));
        }
    }
}

/// The first value of a field.
fn field<'a>(headers: &[Header<'a>], name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|it| it.name.eq_ignore_ascii_case(name)).map(|it| it.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_and_under_which_id_is_noted_within_bounds() {
        let long = "x".repeat(1_000);
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let headers = [
            Header { name: "User-Agent", value: long.as_bytes() },
            Header { name: "X-Request-Id", value: b"an id" },
            Header { name: "traceparent", value: trace.as_bytes() },
        ];
        let mut facts = HttpFacts::default();
        facts.note_request(&RequestHead { authority: &long, ..head(&headers) }, &[]);
        assert_eq!((facts.user_agent.len(), facts.authority.len()), (128, 128));
        assert_eq!((&*facts.request_id, facts.caller.unwrap().to_string()), ("an id", trace.to_owned()));
        // Bytes that are no text are as none.
        facts.note_request(&head(&[Header { name: "user-agent", value: b"\xff" }]), &[]);
        assert_eq!((&*facts.user_agent, facts.caller), ("", None));
    }

    #[test]
    fn only_headers_that_are_asked_for_are_noted() {
        let long = "x".repeat(1_000);
        let headers = [
            Header { name: "X-User", value: b"u" },
            Header { name: "X-Long", value: long.as_bytes() },
            Header { name: "X-Other", value: b"o" },
        ];
        let mut facts = HttpFacts::default();
        facts.note_request(&head(&headers), &["x-user".into(), "x-long".into(), "x-none".into()]);
        let noted: Vec<_> = facts.headers.iter().map(|(name, value)| (&**name, value.len())).collect();
        assert_eq!(noted, [("x-user", 1), ("x-long", HEADER_BYTES_MAX)]);
    }

    fn head<'a>(headers: &'a [Header<'a>]) -> RequestHead<'a> {
        RequestHead { method: "POST", authority: "web", path: "/a.B/C", query: None, headers, token: None }
    }

    #[test]
    fn only_a_grpc_call_has_a_grpc_status() {
        let status = Header { name: "Grpc-Status", value: b"5" };
        let mut facts = HttpFacts::default();
        facts.note_request(&head(&[]), &[]);
        facts.note_grpc_status([status]);
        assert_eq!((facts.protocol, facts.grpc_status), (RequestProtocol::Http, None));
        facts.note_request(&head(&[Header { name: "Content-Type", value: b"application/grpc+proto" }]), &[]);
        facts.note_grpc_status([Header { name: "x", value: b"" }]);
        assert_eq!(facts.grpc_status, None);
        facts.note_grpc_status([status]);
        assert_eq!((facts.protocol, facts.grpc_status.unwrap().code()), (RequestProtocol::Grpc, 5));
        assert_eq!((&*facts.method, facts.path.as_str()), ("POST", "/a.B/C"));
    }
}
