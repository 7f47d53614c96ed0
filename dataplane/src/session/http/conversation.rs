//! The requests of one downstream connection, one after the other.
//!
//! A pipelined request waits, unread, until the response before it is complete. After a request whose framing is not
//! known, or whose body was not read to its end, the connection is closed: what follows could be anything.

use std::time::Instant;

use bytes::Bytes;
use l7::http1::{BodyFraming, Http1Error, Version, empty_headers, local_reply, parse_request, write_request};
use l7::ir::RequestHead;
use l7::path::normalize;

use super::exchange::{Exchange, Outcome};
use super::reader::{HeadError, Reader};
use super::{Director, NORMALIZATION, Reply, Upstream, Wire};
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{HttpFacts, Path, method};
use crate::session::connection::Connection;

/// A request that has been read and decided, ready to be forwarded.
pub(super) struct Plan {
    /// The head for the upstream.
    pub(super) head: Vec<u8>,
    pub(super) is_head_method: bool,
    pub(super) body: BodyFraming,
    pub(super) version: Version,
    pub(super) keep_alive: bool,
    /// It asks to switch protocols.
    pub(super) upgrades: bool,
}

/// What the first look at a request says.
struct Seen<C> {
    plan: Plan,
    decision: Result<C, Reply>,
}

/// Serves requests until the downstream closes, a request asks for it, or the connection is cut.
pub(super) async fn converse<D: Director>(
    connection: &Connection,
    downstream: &Wire,
    director: &mut D,
) -> CloseCause {
    match connection.until_cut(requests(connection, downstream, director)).await {
        Ok(cause) => cause,
        Err(cause) => {
            downstream.reset_on_drop();
            cause
        }
    }
}

async fn requests<D: Director>(connection: &Connection, downstream: &Wire, director: &mut D) -> CloseCause {
    let worker = &connection.node.worker;
    let mut reader = Reader::default();
    loop {
        let head = match reader.head(worker, downstream).await {
            Ok(Some(head)) => head,
            Ok(None) => {
                let _ = downstream.finish();
                return CloseCause::Finished;
            }
            Err(HeadError::Io | HeadError::Truncated) => return CloseCause::ClientReset,
            Err(HeadError::Timeout) => {
                let reply =
                    Reply { status: 408, body: "request head timed out", cause: CloseCause::RequestTimeout };
                return refuse(connection, downstream, reply, Box::default()).await;
            }
            Err(HeadError::Http(error)) => {
                return refuse(connection, downstream, invalid(error), Box::default()).await;
            }
        };
        let began = Instant::now();
        let mut facts = Box::<HttpFacts>::default();
        let Seen { plan, decision } = match look(&head, director, &mut facts) {
            Ok(seen) => seen,
            Err(reply) => return refuse(connection, downstream, reply, facts).await,
        };
        let draining = worker.drain().is_open();
        let opened = match decision {
            Ok(choice) => director.upstream(choice).await,
            Err(reply) => Err(reply),
        };
        let outcome = match opened {
            Ok(mut upstream) => {
                let exchange = Exchange { connection, downstream, plan: &plan, draining };
                let outcome = exchange.run(&mut reader, &mut upstream).await;
                let Upstream { wire, .. } = &upstream;
                if !outcome.upstream_is_whole {
                    wire.reset_on_drop();
                }
                director.finished(outcome.upstream_lives.then_some(upstream));
                outcome
            }
            Err(reply) => {
                director.finished(None);
                answer(connection, downstream, &plan, reply, draining).await
            }
        };
        facts.status = outcome.status;
        connection.log_request(facts, outcome.cause, began, outcome.bytes);
        if !outcome.downstream_lives {
            let _ = downstream.finish();
            return outcome.cause;
        }
    }
}

/// Parses, normalises and decides. Synchronous, so that the room for header fields lies on the stack only for so long.
fn look<D: Director>(
    head: &Bytes,
    director: &mut D,
    facts: &mut HttpFacts,
) -> Result<Seen<D::Choice>, Reply> {
    let mut storage = empty_headers();
    let request = parse_request(head, &mut storage).map_err(invalid)?;
    facts.method = method(request.method);
    let target = normalize(request.target, NORMALIZATION).map_err(|_| invalid(Http1Error::Target))?;
    facts.path = Path::new(&target.path);
    let view = RequestHead {
        method: request.method,
        authority: request.authority,
        path: &target.path,
        query: target.query,
        headers: request.headers,
    };
    let decision = director.decide(&view, head, facts);
    let mut forwarded = Vec::with_capacity(head.len() + 64);
    if decision.is_ok() {
        match target.query {
            Some(query) => write_request(&mut forwarded, &request, &format!("{}?{query}", target.path), &[]),
            None => write_request(&mut forwarded, &request, &target.path, &[]),
        }
    }
    let plan = Plan {
        head: forwarded,
        is_head_method: request.method == "HEAD",
        body: request.body,
        version: request.version,
        keep_alive: request.keep_alive,
        upgrades: request.upgrade.is_some(),
    };
    Ok(Seen { plan, decision })
}

fn invalid(error: Http1Error) -> Reply {
    tracing::debug!(%error, label = error.label(), "a request is refused");
    Reply { status: error.status(), body: "malformed request", cause: CloseCause::InvalidHttp }
}

/// Answers in the upstream's place.
async fn answer(
    connection: &Connection,
    downstream: &Wire,
    plan: &Plan,
    reply: Reply,
    draining: bool,
) -> Outcome {
    // An unread body would be taken for the next request.
    let lives = plan.keep_alive && plan.body == BodyFraming::None && !plan.upgrades && !draining;
    let mut out = Vec::new();
    local_reply(&mut out, reply.status, reply.body, lives, plan.is_head_method);
    let written = downstream.write_all(&out).await;
    let counters = &connection.shared.counters;
    counters.received.set(counters.received.get() + out.len() as u64);
    Outcome {
        status: reply.status,
        cause: reply.cause,
        bytes: (0, out.len() as u64),
        downstream_lives: lives && written.is_ok(),
        upstream_lives: false,
        upstream_is_whole: true,
    }
}

/// Answers a message that is no request, and gives the connection up.
async fn refuse(
    connection: &Connection,
    downstream: &Wire,
    reply: Reply,
    mut facts: Box<HttpFacts>,
) -> CloseCause {
    let began = Instant::now();
    let mut out = Vec::new();
    local_reply(&mut out, reply.status, reply.body, false, false);
    // The peer may be gone; the line in the log is written either way.
    let _ = downstream.write_all(&out).await;
    let _ = downstream.finish();
    facts.status = reply.status;
    connection.log_request(facts, reply.cause, began, (0, out.len() as u64));
    reply.cause
}
