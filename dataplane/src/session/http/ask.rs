//! One question to an authorizer, on a connection that others may have used before and may use afterwards.

use std::rc::Rc;

use bytes::Bytes;
use l7::check::{Answer, BODY_BYTES_MAX, Question, http_answer};
use l7::http1::{Body, BodyFraming, empty_headers, parse_response};
use l7::ir::HttpCheck;
use tunnel::h2::{ErrorCode, Headers};
use xds::ext_authz::{self, CHECK_PATH};

use super::reader::HeadError;
use super::upstream::{Http1Way, Way};
use crate::link::{Link, Taken, TunnelStream};
use crate::worker::Worker;

/// Interim responses to one question.
const INTERIM_MAX: usize = 16;

const MALFORMED: &str = "the answer is malformed";
const BROKEN: &str = "the answer broke off";
const TOO_LONG: &str = "the answer is too long";

/// Why there is no answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unanswered {
    /// The connection ended before a word of one: it may have been at its end when it was taken.
    Unheard,
    Because(&'static str),
}

impl From<&'static str> for Unanswered {
    fn from(reason: &'static str) -> Self {
        Self::Because(reason)
    }
}

/// A question in the language of its authorizer.
pub(super) enum Asked<'a> {
    Http {
        question: Question,
        check: &'a HttpCheck,
    },
    Grpc {
        /// The message of the call.
        payload: Vec<u8>,
        /// Names of the headers of the request that is asked about.
        headers: Vec<String>,
        authority: String,
        timeout_ms: u32,
    },
}

impl Asked<'_> {
    /// Asks, and says whether the connection can be used again.
    pub(super) async fn over(&self, worker: &Worker, way: &mut Way) -> Result<(Answer, bool), Unanswered> {
        match (self, way) {
            (Self::Http { question, check }, Way::Http1(way)) => {
                // Until the answer is whole; dropped before, the connection ends with a reset.
                way.busy = true;
                let answered = over_http1(worker, way, question, check).await;
                way.busy = answered.is_err();
                answered
            }
            (Self::Grpc { payload, headers, authority, timeout_ms }, Way::Http2(link)) => {
                let call = call(authority, *timeout_ms)
                    .ok_or("the authorizer has a name that cannot be asked for")?;
                let reply = over_http2(link, &call, payload).await?;
                Ok((ext_authz::answer(&reply, headers), true))
            }
            _ => Err("the connection speaks another protocol".into()),
        }
    }
}

async fn over_http1(
    worker: &Worker,
    way: &mut Http1Way,
    question: &Question,
    check: &HttpCheck,
) -> Result<(Answer, bool), Unanswered> {
    way.wire.write_all(&question.to_http1()).await.map_err(|_| Unanswered::Unheard)?;
    for _ in 0..=INTERIM_MAX {
        let head = match way.reader.head(worker, &way.wire).await {
            Ok(Some(head)) => head,
            Ok(None) | Err(HeadError::Io) => return Err(Unanswered::Unheard),
            Err(_) => return Err(MALFORMED.into()),
        };
        let Seen { status, framing, keep_alive } = seen(&head, &question.method)?;
        if !(100..200).contains(&status) {
            let body = body(worker, way, framing).await?;
            let lives = keep_alive && framing != BodyFraming::UntilClose && way.reader.is_empty();
            let mut storage = empty_headers();
            let response = parse_response(&head, &question.method, &mut storage)
                .map_err(|_| Unanswered::from(MALFORMED))?;
            return Ok((http_answer(check, status, response.headers, &body), lives));
        }
    }
    Err("the answer never began".into())
}

struct Seen {
    status: u16,
    framing: BodyFraming,
    keep_alive: bool,
}

fn seen(head: &Bytes, method: &str) -> Result<Seen, &'static str> {
    let mut storage = empty_headers();
    let response = parse_response(head, method, &mut storage).map_err(|_| MALFORMED)?;
    Ok(Seen { status: response.status, framing: response.body, keep_alive: response.keep_alive })
}

/// The whole body of an answer; one that is too long is none.
async fn body(worker: &Worker, way: &mut Http1Way, framing: BodyFraming) -> Result<Vec<u8>, &'static str> {
    let Http1Way { wire, reader, .. } = way;
    let mut body = Body::new(framing);
    let mut content = Vec::new();
    while !body.is_done() {
        if reader.is_empty() && reader.fill(worker, wire).await.map_err(|_| BROKEN)? == 0 {
            body.close().map_err(|_| BROKEN)?;
            break;
        }
        let piece = body.step(reader.bytes()).map_err(|_| MALFORMED)?;
        let run = reader.bytes().get(piece.consumed - piece.payload..piece.consumed).unwrap_or_default();
        if content.len() + run.len() > BODY_BYTES_MAX {
            return Err(TOO_LONG);
        }
        content.extend_from_slice(run);
        reader.advance(piece.consumed);
    }
    Ok(content)
}

/// The head of a call (gRPC over HTTP/2, "Requests").
fn call(authority: &str, timeout_ms: u32) -> Option<Headers> {
    let mut headers = Headers::request("POST", "http", authority, CHECK_PATH).ok()?;
    // A number has eight digits at most.
    let timeout =
        if timeout_ms < 100_000_000 { format!("{timeout_ms}m") } else { format!("{}S", timeout_ms / 1000) };
    for (name, value) in
        [("te", "trailers"), ("content-type", "application/grpc"), ("grpc-timeout", &*timeout)]
    {
        headers.push(name, value).ok()?;
    }
    Some(headers)
}

/// The payload of the reply to a call that has succeeded.
async fn over_http2(link: &Rc<Link>, call: &Headers, payload: &[u8]) -> Result<Vec<u8>, Unanswered> {
    let stream = link.ask(call, false).map_err(|_| Unanswered::Unheard)?;
    let reply = reply(&stream, payload).await;
    stream.stop(if reply.is_ok() { ErrorCode::NO_ERROR } else { ErrorCode::CANCEL });
    reply
}

async fn reply(stream: &TunnelStream, payload: &[u8]) -> Result<Vec<u8>, Unanswered> {
    stream.write_last(payload).await.map_err(|_| Unanswered::Unheard)?;
    for _ in 0..=INTERIM_MAX {
        let head = stream.response().await.map_err(|_| Unanswered::Unheard)?;
        let status = head.status().unwrap_or_default();
        if (100..200).contains(&status) {
            continue;
        }
        if status != 200 {
            return Err("the authorizer failed".into());
        }
        let mut content = Vec::new();
        let trailers = loop {
            match stream.take(BODY_BYTES_MAX).await.map_err(|_| Unanswered::from(BROKEN))? {
                Taken::Payload(payload) if content.len() + payload.bytes().len() > 2 * BODY_BYTES_MAX => {
                    return Err(TOO_LONG.into());
                }
                Taken::Payload(payload) => content.extend_from_slice(payload.bytes()),
                Taken::End(trailers) => break trailers,
                // Not given by a call that waits.
                Taken::Nothing => {}
            }
        };
        // In the trailers, or in the head of a response without content.
        let trailers = trailers.as_ref().unwrap_or(&head);
        return match trailers.get("grpc-status") {
            Some(b"0") => Ok(content),
            _ => Err("the call of the authorizer failed".into()),
        };
    }
    Err("the answer never began".into())
}
