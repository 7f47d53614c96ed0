//! The requests of one downstream connection, one after the other.
//!
//! A pipelined request waits, unread, until the response before it is complete. After a request whose framing is not
//! known, or whose body was not read to its end, the connection is closed: what follows could be anything.

use std::borrow::Cow;
use std::cell::RefCell;
use std::time::Instant;

use bytes::Bytes;
use l7::filter::Chain;
use l7::http1::{
    BodyFraming, Http1Error, Request, Rewritten, Version, empty_headers, local_reply, local_reply_with,
    parse_request, redirect_reply, write_request, write_rewritten_request,
};
use l7::ir::{Header, RequestHead};
use l7::path::{Target, normalize};

use super::exchange::{Exchange, Outcome};
use super::reader::{HeadError, Reader};
use super::{Director, Filtered, NORMALIZATION, Reply, Wire};
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{HttpFacts, Path, method};
use crate::session::connection::Connection;
use crate::worker::Worker;

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
    pub(super) filtered: Filtered,
}

/// The answer to a request that took longer than its route allows.
pub(super) const TIMED_OUT: Reply =
    Reply { status: 504, body: "upstream request timeout", cause: CloseCause::RequestTimeout };

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
    let current = RefCell::new(None);
    match connection.until_cut(requests(connection, downstream, director, &current)).await {
        Ok(cause) => cause,
        Err(cause) => {
            downstream.reset();
            if let Some(InFlight { facts, began, before }) = current.take() {
                let bytes = since(before, counted(connection));
                connection.log_request(facts, cause, began, bytes);
            }
            cause
        }
    }
}

/// The request that is being served, for the books if it is cut.
struct InFlight {
    facts: Box<HttpFacts>,
    began: Instant,
    /// The connection's byte counts when it began.
    before: (u64, u64),
}

/// Why there is no next request.
enum NoRequest {
    /// The downstream is done, or we are.
    Closed(CloseCause),
    Refused(Reply),
}

async fn requests<D: Director>(
    connection: &Connection,
    downstream: &Wire,
    director: &mut D,
    current: &RefCell<Option<InFlight>>,
) -> CloseCause {
    let worker = &connection.node.worker;
    let mut reader = Reader::default();
    loop {
        let head = match next_head(worker, &mut reader, downstream).await {
            Ok(head) => head,
            Err(NoRequest::Closed(cause)) => return cause,
            Err(NoRequest::Refused(reply)) => {
                return refuse(connection, downstream, reply, Box::default()).await;
            }
        };
        let began = Instant::now();
        let mut facts = Box::<HttpFacts>::default();
        let Seen { plan, decision } = match look(&head, director, &mut facts) {
            Ok(seen) => seen,
            Err(reply) => return refuse(connection, downstream, reply, facts).await,
        };
        current.replace(Some(InFlight { facts, began, before: counted(connection) }));
        let outcome = serve(connection, downstream, director, &mut reader, &plan, decision).await;
        if let Some(InFlight { mut facts, began, before }) = current.take() {
            facts.status = outcome.status;
            connection.log_request(facts, outcome.cause, began, since(before, counted(connection)));
        }
        if !outcome.downstream_lives {
            if outcome.downstream_is_whole {
                downstream.close(worker).await;
            }
            return outcome.cause;
        }
    }
}

/// The head of the next request, or why there is none.
async fn next_head(worker: &Worker, reader: &mut Reader, downstream: &Wire) -> Result<Bytes, NoRequest> {
    // A connection that only waits ends with the drain; what has been begun is finished.
    match worker.unless_draining(reader.begun(worker, downstream)).await {
        None => {
            downstream.close(worker).await;
            return Err(NoRequest::Closed(CloseCause::Drained));
        }
        Some(Ok(true)) => {}
        Some(Ok(false)) => {
            // The client has ended; whether it still listens does not matter, for all is said.
            drop(downstream.finish());
            return Err(NoRequest::Closed(CloseCause::Finished));
        }
        Some(Err(_)) => return Err(NoRequest::Closed(CloseCause::ClientReset)),
    }
    match reader.head(worker, downstream).await {
        Ok(Some(head)) => Ok(head),
        Ok(None) | Err(HeadError::Io | HeadError::Truncated) => {
            Err(NoRequest::Closed(CloseCause::ClientReset))
        }
        Err(HeadError::Timeout) => Err(NoRequest::Refused(Reply {
            status: 408,
            body: "request head timed out",
            cause: CloseCause::RequestTimeout,
        })),
        Err(HeadError::Http(error)) => Err(NoRequest::Refused(invalid(error))),
    }
}

/// Forwards a decided request, or answers it.
async fn serve<D: Director>(
    connection: &Connection,
    downstream: &Wire,
    director: &mut D,
    reader: &mut Reader,
    plan: &Plan,
    decision: Result<D::Choice, Reply>,
) -> Outcome {
    let deadline = plan.filtered.limit.map(|limit| Instant::now() + limit);
    let opened = match decision {
        Ok(choice) => within(deadline, director.upstream(choice)).await.unwrap_or(Err(TIMED_OUT)),
        Err(reply) => Err(reply),
    };
    match opened {
        Ok(mut upstream) => {
            upstream.busy = true;
            let exchange = Exchange { connection, downstream, plan, deadline };
            let outcome = exchange.run(reader, &mut upstream).await;
            upstream.busy = !outcome.upstream_is_whole;
            director.finished(outcome.upstream_lives.then_some(upstream));
            outcome
        }
        Err(reply) => {
            director.finished(None);
            answer(connection, downstream, plan, reply).await
        }
    }
}

/// The result of `work`, unless the deadline comes first.
pub(super) async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => monoio::time::timeout_at(deadline.into(), work).await.ok(),
        None => Some(work.await),
    }
}

/// Bytes of the connection so far: client to server, server to client.
fn counted(connection: &Connection) -> (u64, u64) {
    let counters = &connection.shared.counters;
    (counters.sent.get(), counters.received.get())
}

fn since(before: (u64, u64), now: (u64, u64)) -> (u64, u64) {
    (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1))
}

/// Parses, normalises and decides. Synchronous, so that the room for header fields lies on the stack only for so long.
fn look<D: Director>(
    head: &Bytes,
    director: &mut D,
    facts: &mut HttpFacts,
) -> Result<Seen<D::Choice>, Reply> {
    let mut storage = empty_headers();
    let mut request = parse_request(head, &mut storage).map_err(invalid)?;
    // Without its Upgrade field a request asks for no switch, which a server is free to ignore as well.
    request.upgrade = request.upgrade.filter(|protocols| !hides_requests(protocols));
    facts.method = method(request.method);
    let target = normalize(request.target, NORMALIZATION).map_err(|_| invalid(Http1Error::Target))?;
    facts.path = Path::new(&target.path);
    let view = RequestHead {
        method: request.method,
        authority: request.authority,
        path: &target.path,
        query: target.query,
        headers: request.headers,
        token: None,
    };
    let decision = director.decide(&view, head, facts);
    let filtered = director.filtered();
    let mut forwarded = Vec::with_capacity(head.len() + 64);
    if decision.is_ok() {
        write_head(&mut forwarded, &request, &target, &filtered.chain);
    }
    let plan = Plan {
        head: forwarded,
        is_head_method: request.method == "HEAD",
        body: request.body,
        version: request.version,
        keep_alive: request.keep_alive,
        upgrades: request.upgrade.is_some(),
        filtered,
    };
    Ok(Seen { plan, decision })
}

/// The head for the upstream: the path that was matched, unless filters put another in its place.
fn write_head(out: &mut Vec<u8>, request: &Request<'_, '_>, target: &Target<'_>, filters: &Chain) {
    let path = filters.path(&target.path);
    let target = match target.query {
        Some(query) => Cow::Owned(format!("{path}?{query}")),
        None => path,
    };
    if filters.is_empty() {
        return write_request(out, request, &target, &[]);
    }
    let fields = filters.request_fields(request.headers);
    let authority = filters.authority(request.authority);
    write_rewritten_request(out, request, Rewritten { authority, target: &target, fields: fields.iter() });
}

/// Whether a switch to one of these protocols would carry HTTP requests that nobody here could read, past every route
/// and policy: HTTP itself in another version, or TLS with anything inside.
fn hides_requests(protocols: &str) -> bool {
    protocols.split(',').any(|protocol| {
        let name = protocol.split('/').next().unwrap_or_default().trim();
        ["h2c", "http", "tls"].iter().any(|hidden| name.eq_ignore_ascii_case(hidden))
    })
}

fn invalid(error: Http1Error) -> Reply {
    tracing::debug!(%error, label = error.label(), "a request is refused");
    Reply { status: error.status(), body: "malformed request", cause: CloseCause::InvalidHttp }
}

/// Answers in the upstream's place.
async fn answer(connection: &Connection, downstream: &Wire, plan: &Plan, reply: Reply) -> Outcome {
    let draining = connection.node.worker.drain().is_open();
    // An unread body would be taken for the next request.
    let lives = plan.keep_alive && plan.body == BodyFraming::None && !plan.upgrades && !draining;
    let mut out = Vec::new();
    if let Some(location) = &plan.filtered.location {
        let location = [Header { name: "location", value: location.as_bytes() }];
        let fields = plan.filtered.chain.response_fields(&location);
        redirect_reply(&mut out, reply.status, fields.iter(), lives);
    } else {
        let challenge = plan.filtered.challenge.as_ref();
        let challenge = challenge.map(|it| Header { name: "www-authenticate", value: it.as_bytes() });
        let (fields, is_head) = (challenge.as_slice(), plan.is_head_method);
        local_reply_with(&mut out, reply.status, fields, reply.body, lives, is_head);
    }
    let written = downstream.write_all(&out).await;
    let counters = &connection.shared.counters;
    counters.received.set(counters.received.get() + out.len() as u64);
    Outcome {
        status: reply.status,
        cause: reply.cause,
        downstream_lives: lives && written.is_ok(),
        downstream_is_whole: written.is_ok(),
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
    let written = downstream.write_all(&out).await;
    facts.status = reply.status;
    connection.log_request(facts, reply.cause, began, (0, out.len() as u64));
    // The peer may be gone; the line in the log is written either way.
    if written.is_ok() {
        downstream.close(&connection.node.worker).await;
    }
    reply.cause
}
