//! Every raw request of `cases/http/h1-framing.yaml` through the framing code, as a proxy would use it: what would
//! reach the upstream is collected and held against the outcomes that the case accepts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use base64::Engine as _;
use l7::http1::{Body, HeadScanner, Http1Error, empty_headers, parse_request, write_request};

#[derive(serde::Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    id: String,
    accept: Vec<String>,
    raw_b64: Option<String>,
    raw_gen: Option<Generated>,
    #[serde(default)]
    upstream_must_not_contain: Vec<String>,
}

/// `head`, then `repeat` up to `length` bytes.
#[derive(serde::Deserialize)]
struct Generated {
    length: usize,
    head: String,
    repeat: String,
}

struct Outcome {
    /// Whole requests passed on.
    forwarded: usize,
    upstream: Vec<u8>,
    error: Option<Http1Error>,
}

/// Passes on what may be passed on. A request is buffered until it is whole, as if the upstream were slow, so that
/// `upstream` holds only complete messages.
fn proxy(raw: &[u8]) -> Outcome {
    let mut outcome = Outcome { forwarded: 0, upstream: Vec::new(), error: None };
    let mut rest = raw;
    while !rest.is_empty() {
        match exchange(rest) {
            Ok(Some((message, consumed))) => {
                outcome.upstream.extend_from_slice(&message);
                outcome.forwarded += 1;
                rest = &rest[consumed..];
            }
            Ok(None) => break,
            Err(error) => {
                outcome.error = Some(error);
                break;
            }
        }
    }
    outcome
}

fn exchange(input: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Http1Error> {
    let Some(head_length) = HeadScanner::default().find(input)? else { return Ok(None) };
    let mut storage = empty_headers();
    let request = parse_request(&input[..head_length], &mut storage)?;
    let mut message = Vec::new();
    // The path normaliser cuts the fragment before a target is forwarded.
    let target = request.target.split('#').next().unwrap();
    write_request(&mut message, &request, target, &[]);
    let mut body = Body::new(request.body);
    let length = body.take(&input[head_length..])?;
    if !body.is_done() {
        return Ok(None);
    }
    message.extend_from_slice(&input[head_length..head_length + length]);
    Ok(Some((message, head_length + length)))
}

#[test]
fn every_case_has_an_accepted_outcome() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/cases/http/h1-framing.yaml");
    let cases: Cases = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(cases.cases.len() >= 60);
    let mut failures = Vec::new();
    for case in &cases.cases {
        let raw = match (&case.raw_b64, &case.raw_gen) {
            (Some(text), _) => base64::engine::general_purpose::STANDARD.decode(text).unwrap(),
            (None, Some(generated)) => {
                let mut raw = generated.head.clone().into_bytes();
                raw.resize(generated.length, generated.repeat.as_bytes()[0]);
                raw
            }
            (None, None) => panic!("{}: no input", case.id),
        };
        let outcome = proxy(&raw);
        let upstream = String::from_utf8_lossy(&outcome.upstream).to_ascii_lowercase();
        let framings = upstream.matches("\r\ncontent-length:").count()
            + upstream.matches("\r\ntransfer-encoding:").count();
        let accepted = case.accept.iter().any(|wanted| match wanted.as_str() {
            "reject" => outcome.forwarded == 0 && outcome.error.is_some(),
            "forward1" => outcome.forwarded == 1,
            "forward2" => outcome.forwarded == 2,
            "one-framing" => outcome.forwarded == 1 && framings == 1,
            // Outcomes of a lenient reader, which this one is not.
            "te-wins-cl-dropped" | "reserialized" | "unfolded" | "cleaned" => false,
            other => panic!("{}: unknown outcome {other}", case.id),
        });
        let leaked =
            case.upstream_must_not_contain.iter().any(|text| upstream.contains(&text.to_ascii_lowercase()));
        if !accepted || leaked {
            failures.push(format!(
                "{}: {} forwarded, {:?}, wanted {:?}",
                case.id, outcome.forwarded, outcome.error, case.accept
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
