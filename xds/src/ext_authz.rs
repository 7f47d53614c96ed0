//! External authorization over gRPC (`envoy.service.auth.v3.Authorization`): the question about a request, and what an
//! answer does to it, as Envoy asks and understands. [`l7::check`] says what becomes of the request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use l7::check::{Answer, Approval, Denied, PARTIAL_BODY_HEADER, Shown};
use l7::ir::{Header, HeaderEdits, HeaderValue, QueryEdits, RequestHead};
use model::Identity;
use prost::Message;

use crate::proto::ext_authz::attribute_context::{HttpRequest, Peer, Request};
use crate::proto::ext_authz::check_response::HttpResponse;
use crate::proto::ext_authz::header_value_option::AppendAction;
use crate::proto::ext_authz::{
    Address, AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValueOption,
    OkHttpResponse, SocketAddress,
};

/// The path of the method.
pub const CHECK_PATH: &str = "/envoy.service.auth.v3.Authorization/Check";

/// A compressed-flag and a length stand before each message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// Somebody at one end of the connection.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    pub address: SocketAddr,
    pub identity: Option<&'a Identity>,
}

/// What a question tells beside the request's head.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    pub source: End<'a>,
    pub destination: End<'a>,
    pub time: SystemTime,
    /// Tells the request from others.
    pub id: u64,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'a str,
    /// As much of the body as is shown, with whether that is not all of it.
    pub body: Option<(&'a [u8], Shown)>,
    /// The body goes as bytes, and not as text.
    pub as_bytes: bool,
}

/// The question as the one message of a call, prefix included.
pub fn question(request: &RequestHead<'_>, circumstances: &Circumstances<'_>) -> Vec<u8> {
    let Circumstances { source, destination, time, .. } = circumstances;
    let attributes = AttributeContext {
        source: Some(peer(source)),
        destination: Some(peer(destination)),
        request: Some(Request { time: Some((*time).into()), http: Some(http(request, circumstances)) }),
    };
    let message = CheckRequest { attributes: Some(attributes) };
    let length = message.encoded_len();
    let mut out = Vec::with_capacity(PREFIX_BYTES + length);
    out.push(0);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&message.encode_to_vec());
    out
}

fn peer(end: &End<'_>) -> Peer {
    let port_value = end.address.port().into();
    let socket_address = Some(SocketAddress { address: end.address.ip().to_string(), port_value });
    Peer {
        address: Some(Address { socket_address }),
        principal: end.identity.map(|identity| identity.uri().to_owned()).unwrap_or_default(),
    }
}

fn http(request: &RequestHead<'_>, circumstances: &Circumstances<'_>) -> HttpRequest {
    let Circumstances { id, protocol, body, as_bytes, .. } = *circumstances;
    let path = match request.query {
        Some(query) => format!("{}?{query}", request.path),
        None => request.path.to_owned(),
    };
    let pseudo = [
        (":authority", request.authority),
        (":method", request.method),
        (":path", &path),
        (":scheme", "http"),
    ];
    let mut headers: std::collections::BTreeMap<String, String> =
        pseudo.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    for Header { name, value } in request.headers {
        let name = name.to_ascii_lowercase();
        if name == "host" || name == PARTIAL_BODY_HEADER {
            continue;
        }
        let value = String::from_utf8_lossy(value);
        let entry = headers.entry(name);
        entry
            .and_modify(|values| {
                values.push(',');
                values.push_str(&value);
            })
            .or_insert_with(|| value.clone().into_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok());
    let mut http = HttpRequest {
        id: id.to_string(),
        method: request.method.to_owned(),
        host: request.authority.to_owned(),
        scheme: "http".to_owned(),
        size: length.unwrap_or(-1),
        protocol: protocol.to_owned(),
        path,
        headers,
        ..HttpRequest::default()
    };
    if let Some((bytes, shown)) = body {
        let is_partial = shown == Shown::Beginning;
        http.headers.insert(PARTIAL_BODY_HEADER.to_owned(), is_partial.to_string());
        if as_bytes {
            http.raw_body = bytes.to_vec();
        } else {
            http.body = String::from_utf8_lossy(bytes).into_owned();
        }
    }
    http
}

/// What the payload of a call that ended with status 0 means for the request that was asked about, of which `headers`
/// names those of the head.
pub fn answer(payload: &[u8], headers: &[String]) -> Answer {
    let message = payload.split_at_checked(PREFIX_BYTES).and_then(|(prefix, message)| {
        let &[0, a, b, c, d] = prefix else { return None };
        (u32::from_be_bytes([a, b, c, d]) as usize == message.len()).then_some(message)
    });
    let Some(Ok(response)) = message.map(CheckResponse::decode) else {
        return Answer::Failed("the answer is no message of gRPC, or a compressed one");
    };
    let is_allowed = response.status.is_none_or(|status| status.code == 0);
    match response.http_response {
        Some(HttpResponse::OkResponse(ok)) if is_allowed => match approval(&ok, headers) {
            Ok(approval) => Answer::Allowed(approval),
            Err(reason) => Answer::Failed(reason),
        },
        _ if is_allowed => Answer::Allowed(Approval::default()),
        Some(HttpResponse::DeniedResponse(denied)) => denial(denied),
        _ => Answer::Denied(Denied { status: l7::authz::DENIED_STATUS, ..Denied::default() }),
    }
}

const UNREADABLE: &str = "the answer holds a header that cannot be passed on";

fn approval(ok: &OkHttpResponse, headers: &[String]) -> Result<Approval, &'static str> {
    let mut approval = Approval::default();
    let edits = &mut approval.request_headers;
    for option in &ok.headers {
        let header = header(option).ok_or(UNREADABLE)?;
        if option.append != Some(true) {
            set(edits, header);
        } else if headers.iter().any(|name| name.eq_ignore_ascii_case(&header.name))
            || edits.set.iter().any(|earlier| earlier.name == header.name)
        {
            // Only to what is there.
            edits.add.push(header);
        }
    }
    // What says where a request goes is not removed.
    let removable =
        |name: &&String| !name.is_empty() && !name.starts_with(':') && !name.eq_ignore_ascii_case("host");
    edits.remove = ok.headers_to_remove.iter().filter(removable).map(|name| lower(name)).collect();
    // Envoy removes last.
    let removed = &edits.remove;
    let stays = |header: &HeaderValue| !removed.contains(&header.name);
    edits.set.retain(stays);
    edits.add.retain(stays);
    for option in &ok.response_headers_to_add {
        let header = header(option).ok_or(UNREADABLE)?;
        match (option.append, AppendAction::try_from(option.append_action)) {
            (Some(true), _) => approval.response_headers.add.push(header),
            (Some(false), _)
            | (None, Ok(AppendAction::AppendIfExistsOrAdd | AppendAction::OverwriteIfExistsOrAdd)) => {
                set(&mut approval.response_headers, header);
            }
            _ => return Err("the answer edits the response depending on what is in it"),
        }
    }
    approval.query = QueryEdits {
        remove: ok.query_parameters_to_remove.iter().map(|name| name.as_str().into()).collect(),
        set: ok
            .query_parameters_to_set
            .iter()
            .map(|it| (it.key.as_str().into(), it.value.as_str().into()))
            .collect(),
    };
    Ok(approval)
}

fn set(edits: &mut HeaderEdits, header: HeaderValue) {
    edits.set.retain(|other| other.name != header.name);
    edits.set.push(header);
}

fn denial(denied: DeniedHttpResponse) -> Answer {
    let status = denied.status.map_or(0, |status| status.code);
    let status = match u16::try_from(status) {
        Ok(0) => l7::authz::DENIED_STATUS,
        Ok(status @ 200..=599) => status,
        _ => return Answer::Failed("the answer has a status that no response can have"),
    };
    let mut edits = HeaderEdits::default();
    for option in &denied.headers {
        // A denial stays one, whatever of it cannot be said.
        let Some(header) = header(option).filter(|it| l7::filter::header_name(&it.name).is_ok()) else {
            continue;
        };
        if option.append == Some(true) {
            edits.set.push(header);
        } else {
            set(&mut edits, header);
        }
    }
    Answer::Denied(Denied { status, headers: edits.set, body: denied.body.into_bytes(), failed: None })
}

/// `None` for what is no text, or would add a line to a head.
fn header(option: &HeaderValueOption) -> Option<HeaderValue> {
    let header = option.header.as_ref()?;
    let value =
        if header.value.is_empty() { std::str::from_utf8(&header.raw_value).ok()? } else { &header.value };
    let is_printable = value.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    is_printable.then(|| HeaderValue { name: lower(&header.key), value: value.into() })
}

fn lower(name: &str) -> Arc<str> {
    name.to_ascii_lowercase().into()
}

#[cfg(test)]
#[path = "ext_authz_tests.rs"]
mod tests;
