//! Raw HTTP/1 requests: what would reach the backend, and how often.

use base64::Engine as _;
use l7::http1::{Body, HeadScanner, Http1Error, empty_headers, parse_request, write_request};
use l7::path::{Normalization, normalize};

use super::Outcome;

/// Bounds the bytes that a case may have generated.
const GENERATED_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, serde::Deserialize)]
pub(super) struct File {
    cases: Vec<Case>,
}

#[derive(Debug, serde::Deserialize)]
struct Case {
    id: String,
    accept: Vec<String>,
    raw_b64: Option<String>,
    raw_gen: Option<Generated>,
    #[serde(default)]
    upstream_must_not_contain: Vec<String>,
}

/// `head`, then its last part repeated up to `length` bytes.
#[derive(Debug, serde::Deserialize)]
struct Generated {
    length: usize,
    head: String,
    repeat: String,
}

#[derive(Default)]
struct Exchange {
    /// Whole requests passed on.
    forwarded: usize,
    upstream: Vec<u8>,
    error: Option<&'static str>,
}

pub(super) fn run(file: &File, sink: &mut dyn FnMut(&str, Outcome)) {
    for case in &file.cases {
        let outcome = match raw(case) {
            Ok(raw) => judge(case, &raw),
            Err(reason) => Outcome::Skipped(reason),
        };
        sink(&case.id, outcome);
    }
}

fn raw(case: &Case) -> Result<Vec<u8>, String> {
    if let Some(text) = &case.raw_b64 {
        return base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| error.to_string());
    }
    let generated = case.raw_gen.as_ref().ok_or("the case has no bytes")?;
    if generated.length > GENERATED_BYTES_MAX {
        return Err(format!("the case wants more than {GENERATED_BYTES_MAX} bytes"));
    }
    let mut raw = generated.head.clone().into_bytes();
    let missing = generated.length.saturating_sub(raw.len());
    raw.extend(generated.repeat.bytes().cycle().take(missing));
    Ok(raw)
}

fn judge(case: &Case, raw: &[u8]) -> Outcome {
    let exchange = proxy(raw);
    let upstream = String::from_utf8_lossy(&exchange.upstream).to_ascii_lowercase();
    let framings =
        upstream.matches("\r\ncontent-length:").count() + upstream.matches("\r\ntransfer-encoding:").count();
    let leaked =
        case.upstream_must_not_contain.iter().find(|text| upstream.contains(&text.to_ascii_lowercase()));
    let accepted = case.accept.iter().find(|wanted| match wanted.as_str() {
        "reject" => exchange.forwarded == 0 && exchange.error.is_some(),
        "forward1" => exchange.forwarded == 1,
        "forward2" => exchange.forwarded == 2,
        "one-framing" => exchange.forwarded == 1 && framings == 1,
        _ => false,
    });
    let want = case.accept.join(" or ");
    let got = match (leaked, accepted) {
        (Some(text), _) => format!("passed on {text:?}"),
        (None, Some(_)) => want.clone(),
        (None, None) => {
            let error = exchange.error.unwrap_or("no error");
            format!("{} forwarded with {framings} framings, {error}", exchange.forwarded)
        }
    };
    Outcome::Compared { got, want }
}

/// Passes on what may be passed on, each request only once it is whole, as to a slow backend.
fn proxy(raw: &[u8]) -> Exchange {
    let mut exchange = Exchange::default();
    let mut rest = raw;
    while !rest.is_empty() {
        match one(rest) {
            Ok(Some((message, length))) => {
                exchange.upstream.extend_from_slice(&message);
                exchange.forwarded += 1;
                rest = rest.get(length..).unwrap_or_default();
            }
            Ok(None) => break,
            Err(label) => {
                exchange.error = Some(label);
                break;
            }
        }
    }
    exchange
}

/// The first request of `input` as it is passed on, and its length as received; `None` if it is not whole.
fn one(input: &[u8]) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let Some(head_length) = HeadScanner::default().find(input).map_err(Http1Error::label)? else {
        return Ok(None);
    };
    let (head, after) = input.split_at(head_length);
    let mut storage = empty_headers();
    let request = parse_request(head, &mut storage).map_err(Http1Error::label)?;
    let target = normalize(request.target, Normalization::Base).map_err(|_| "path")?;
    let target = match target.query {
        Some(query) => format!("{}?{query}", target.path),
        None => target.path.into_owned(),
    };
    let mut message = Vec::new();
    write_request(&mut message, &request, &target, &[]);
    let mut body = Body::new(request.body);
    let length = body.take(after).map_err(Http1Error::label)?;
    if !body.is_done() {
        return Ok(None);
    }
    message.extend_from_slice(after.get(..length).unwrap_or_default());
    Ok(Some((message, head_length + length)))
}
