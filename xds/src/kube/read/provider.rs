//! External authorizers among the providers of MeshConfig (`envoyExtAuthzHttp`, `envoyExtAuthzGrpc`).

use std::num::NonZeroU32;
use std::sync::Arc;

use l7::filter;
use l7::ir::{CheckBody, CheckProtocol, HeaderValue, HttpCheck, NameTest, PathRewrite};

use super::super::mesh::AuthorizerProvider;
use super::super::reader::{Fields, Findings, Item};
use super::super::yaml::{Value, shortened};
use super::duration;

/// `timeout` where none is written: 600 s.
const TIMEOUT_MS: NonZeroU32 = NonZeroU32::MIN.saturating_add(599_999);
/// Bound of our own on a body that is held while the authorizer is asked.
const BODY_BYTES_MAX: i64 = 1 << 20;
/// Bound of our own on each list of headers.
const HEADERS_MAX: usize = 64;

pub(super) fn http(item: &Item<'_>, findings: &mut Findings) -> Option<AuthorizerProvider> {
    let mut fields = item.fields(findings)?;
    let common = Common::read(&mut fields, findings);
    let path_prefix = fields.optional("pathPrefix").and_then(|item| path_prefix(&item, findings));
    let mut request_headers = names(&mut fields, "includeRequestHeadersInCheck", findings);
    request_headers.extend(names(&mut fields, "includeHeadersInCheck", findings));
    let additional = fields.optional("includeAdditionalHeadersInCheck");
    let check = HttpCheck {
        path_prefix: path_prefix.unwrap_or_default(),
        request_headers,
        additional_headers: additional.map_or_else(Vec::new, |item| headers(&item, findings)),
        to_upstream_on_allow: names(&mut fields, "headersToUpstreamOnAllow", findings),
        to_downstream_on_deny: names(&mut fields, "headersToDownstreamOnDeny", findings),
        to_downstream_on_allow: names(&mut fields, "headersToDownstreamOnAllow", findings),
    };
    fields.finish(findings);
    common?.provider(CheckProtocol::Http(check))
}

pub(super) fn grpc(item: &Item<'_>, findings: &mut Findings) -> Option<AuthorizerProvider> {
    let mut fields = item.fields(findings)?;
    let common = Common::read(&mut fields, findings);
    fields.finish(findings);
    common?.provider(CheckProtocol::Grpc)
}

/// What both kinds have.
struct Common {
    service: Option<Arc<str>>,
    port: Option<u16>,
    timeout_ms: NonZeroU32,
    fail_open: bool,
    status_on_error: u16,
    body: Option<CheckBody>,
}

impl Common {
    /// `None` where a part is wrong whose absence means something else.
    fn read(fields: &mut Fields<'_>, findings: &mut Findings) -> Option<Self> {
        let errors = findings.errors;
        let service = fields.required(findings, "service").and_then(|item| item.filled(findings));
        let port = fields.required(findings, "port").and_then(|item| port(&item, findings));
        let timeout_ms = duration::optional(fields, "timeout", findings);
        let fail_open = fields.optional("failOpen").and_then(|item| item.boolean(findings));
        let status = fields.optional("statusOnError").and_then(|item| status(&item, findings));
        let body = fields.optional("includeRequestBodyInCheck").and_then(|item| body(&item, findings));
        (findings.errors == errors).then(|| Self {
            service: service.map(Arc::from),
            port,
            timeout_ms: timeout_ms.unwrap_or(TIMEOUT_MS),
            fail_open: fail_open.unwrap_or_default(),
            status_on_error: status.unwrap_or(l7::authz::DENIED_STATUS),
            body,
        })
    }

    fn provider(self, protocol: CheckProtocol) -> Option<AuthorizerProvider> {
        Some(AuthorizerProvider {
            service: self.service?,
            port: self.port?,
            timeout_ms: self.timeout_ms,
            fail_open: self.fail_open,
            status_on_error: self.status_on_error,
            body: self.body,
            protocol,
        })
    }
}

/// A number, or a text that is one: both are found in the wild.
fn port(item: &Item<'_>, findings: &mut Findings) -> Option<u16> {
    match item.node.as_text().map(str::parse::<u16>) {
        Some(Ok(port)) if port > 0 => Some(port),
        _ => item.port(findings),
    }
}

fn status(item: &Item<'_>, findings: &mut Findings) -> Option<u16> {
    let number = match &item.node.value {
        Value::Integer(number) => u16::try_from(*number).ok(),
        _ => item.text(findings)?.parse().ok(),
    };
    let status = number.filter(|status| (200..=599).contains(status));
    if status.is_none() {
        item.error(findings, "this is no status of a response", "write a status such as \"403\"");
    }
    status
}

fn body(item: &Item<'_>, findings: &mut Findings) -> Option<CheckBody> {
    let mut fields = item.fields(findings)?;
    let bytes_max = fields
        .required(findings, "maxRequestBytes")
        .and_then(|item| item.integer(findings, 1, BODY_BYTES_MAX))
        .and_then(|bytes| NonZeroU32::new(u32::try_from(bytes).unwrap_or_default()));
    let mut flag = |name| fields.optional(name).and_then(|item| item.boolean(findings)).unwrap_or_default();
    let (allow_partial, as_bytes) = (flag("allowPartialMessage"), flag("packAsBytes"));
    fields.finish(findings);
    Some(CheckBody { bytes_max: bytes_max?, allow_partial, as_bytes })
}

fn path_prefix(item: &Item<'_>, findings: &mut Findings) -> Option<Arc<str>> {
    let prefix = item.text(findings)?;
    if prefix.is_empty() {
        return None;
    }
    let prefix: Arc<str> = Arc::from(prefix.strip_suffix('/').unwrap_or(prefix));
    if !prefix.is_empty() && filter::replacement(&PathRewrite::Full(prefix.clone())).is_err() {
        let message = format!("{:?} cannot stand before a path", shortened(&prefix));
        item.error(
            findings,
            message,
            "begin with a slash, and write the prefix as it is after normalisation",
        );
        return None;
    }
    Some(prefix)
}

/// Names of headers, a star at either end standing for the rest.
fn names(fields: &mut Fields<'_>, field: &'static str, findings: &mut Findings) -> Vec<NameTest> {
    let Some(list) = fields.optional(field) else {
        return Vec::new();
    };
    let items = list.list(findings);
    if items.len() > HEADERS_MAX {
        list.error(findings, "there are too many headers", format!("keep at most {HEADERS_MAX}"));
    }
    items.iter().filter_map(|item| name(item, findings)).collect()
}

fn name(item: &Item<'_>, findings: &mut Findings) -> Option<NameTest> {
    let text = item.filled(findings)?.to_ascii_lowercase();
    let (test, part): (fn(Arc<str>) -> NameTest, &str) =
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(part), _) => (NameTest::Suffix, part),
            (None, Some(part)) => (NameTest::Prefix, part),
            (None, None) => (NameTest::Exact, text.as_str()),
        };
    if part.is_empty() || !part.bytes().all(l7::http1::is_token) || part.contains('*') {
        let message = format!("{:?} names no header", shortened(&text));
        item.error(findings, message, "write a name such as x-user, x-user-* or *-user");
        return None;
    }
    Some(test(Arc::from(part)))
}

fn headers(item: &Item<'_>, findings: &mut Findings) -> Vec<HeaderValue> {
    let written = item.labels(findings);
    if written.len() > HEADERS_MAX {
        item.error(findings, "there are too many headers", format!("keep at most {HEADERS_MAX}"));
    }
    let mut headers = Vec::new();
    for (name, value) in written {
        let checked = filter::header_name(&name).and_then(|()| filter::header_value(&name, &value));
        if let Err(fault) = checked {
            item.error(findings, fault.to_string(), "");
        }
        headers.push(HeaderValue { name: Arc::from(name.to_ascii_lowercase()), value });
    }
    headers
}
