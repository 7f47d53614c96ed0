//! The requests of one downstream connection, one after the other.
//!
//! A pipelined request waits, unread, until the response before it is complete. After a request whose framing is not
//! known, or whose body was not read to its end, the connection is closed: what follows could be anything.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use l7::filter::Chain;
use l7::http1::{
    BodyFraming, Request, Rewritten, Version, local_reply, local_reply_with, redirect_reply, write_request,
    write_rewritten_request,
};
use l7::ir::{Filters, RequestHead};
use l7::path::Target;

use super::exchange::{Exchange, Outcome};
use super::head::{Received, seen};
use super::reader::{HeadError, Reader};
use super::reply::{TIMED_OUT, invalid};
use super::{Books, Decision, Director, Filtered, Reply, Wire};
use crate::access_log::cause::CloseCause;
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

/// What the first look at a request says.
struct Seen<C> {
    plan: Plan,
    verdict: Result<C, Reply>,
}

/// Serves requests until the downstream closes, a request asks for it, or the connection is cut.
pub(in crate::session) async fn converse<D: Director>(
    connection: &Connection,
    downstream: &Wire,
    director: &D,
) -> CloseCause {
    match connection.until_cut(requests(connection, downstream, director)).await {
        Ok(cause) => cause,
        Err(cause) => {
            downstream.reset();
            cause
        }
    }
}

/// Why there is no next request.
enum NoRequest {
    /// The downstream is done, or we are.
    Closed(CloseCause),
    Refused(Reply),
}

async fn requests<D: Director>(connection: &Connection, downstream: &Wire, director: &D) -> CloseCause {
    let worker = &connection.node.worker;
    let mut reader = Reader::default();
    loop {
        let head = match next_head(worker, &mut reader, downstream).await {
            Ok(head) => head,
            Err(NoRequest::Closed(cause)) => return cause,
            Err(NoRequest::Refused(reply)) => {
                let books = Books::open(connection);
                return refuse(worker, downstream, &reply, books).await;
            }
        };
        let received = Received::Http1(head);
        let mut books = Books::open(connection);
        let asked = director.consult(&received, &mut books).await;
        let Seen { plan, verdict } = match look(&received, director, asked, &mut books) {
            Ok(seen) => seen,
            Err(reply) => return refuse(worker, downstream, &reply, books).await,
        };
        // As long as it runs it is decided again whenever policies change.
        let _running = verdict.is_ok().then(|| connection.shared.run(received));
        let outcome = serve(&mut books, downstream, director, &mut reader, &plan, verdict).await;
        books.close(outcome.status, outcome.cause);
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
        Err(HeadError::Timeout) => {
            let reply = Reply::text(408, "request head timed out", CloseCause::RequestTimeout);
            Err(NoRequest::Refused(reply))
        }
        Err(HeadError::Http(error)) => Err(NoRequest::Refused(invalid(error))),
    }
}

/// Forwards a decided request, or answers it.
async fn serve<D: Director>(
    books: &mut Books<'_>,
    downstream: &Wire,
    director: &D,
    reader: &mut Reader,
    plan: &Plan,
    verdict: Result<D::Choice, Reply>,
) -> Outcome {
    let deadline = plan.filtered.limit.map(|limit| Instant::now() + limit);
    let opened = match verdict {
        Ok(mut choice) => {
            within(deadline, director.upstream(&mut choice, books)).await.unwrap_or(Err(TIMED_OUT))
        }
        Err(reply) => Err(reply),
    };
    match opened {
        Ok(mut upstream) => {
            upstream.busy = true;
            let outcome = Exchange { books, downstream, plan, deadline }.run(reader, &mut upstream).await;
            upstream.busy = !outcome.upstream_is_whole;
            if outcome.upstream_lives {
                director.keep(upstream);
            }
            outcome
        }
        Err(reply) => answer(books, downstream, plan, &reply).await,
    }
}

/// The result of `work`, unless the deadline comes first.
pub(super) async fn within<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => monoio::time::timeout_at(deadline.into(), work).await.ok(),
        None => Some(work.await),
    }
}

/// Parses, normalises and decides; `asked` is what the director has been told about the request.
fn look<D: Director>(
    received: &Received,
    director: &D,
    asked: Result<Option<Arc<Filters>>, Reply>,
    books: &mut Books<'_>,
) -> Result<Seen<D::Choice>, Reply> {
    let read = received.read(|request, target| {
        books.facts.note_request(&seen(request, target));
        let Decision { verdict, filtered } = match asked {
            Ok(None) => director.decide(&seen(request, target), books),
            Ok(Some(edits)) => decide_edited(director, &seen(request, target), edits, books),
            Err(reply) => Decision::answer(reply),
        };
        let mut head = Vec::new();
        if verdict.is_ok() {
            head.reserve(received.len() + 64);
            write_head(&mut head, request, target, &filtered.chain);
        }
        let plan = Plan {
            head,
            is_head_method: request.method == "HEAD",
            body: request.body,
            version: request.version,
            keep_alive: request.keep_alive,
            upgrades: request.upgrade.is_some(),
            filtered,
        };
        Seen { plan, verdict }
    });
    read.map_err(invalid)
}

/// Decides about what `edits` make of a request.
fn decide_edited<D: Director>(
    director: &D,
    request: &RequestHead<'_>,
    edits: Arc<Filters>,
    books: &mut Books<'_>,
) -> Decision<D::Choice> {
    let chain = Chain::of_rule(Some(&edits), None);
    let fields = chain.request_fields(request.headers);
    let headers: Vec<_> = fields.iter().collect();
    let mut decision = director.decide(&RequestHead { headers: &headers, ..*request }, books);
    decision.filtered.chain.put_first(edits);
    decision
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

/// Answers in the upstream's place.
async fn answer(books: &Books<'_>, downstream: &Wire, plan: &Plan, reply: &Reply) -> Outcome {
    let draining = books.connection().node.worker.drain().is_open();
    // An unread body would be taken for the next request.
    let lives = plan.keep_alive && plan.body == BodyFraming::None && !plan.upgrades && !draining;
    let mut out = Vec::new();
    let fields = reply.headers();
    if reply.body.is_empty() {
        redirect_reply(&mut out, reply.status, fields.into_iter(), lives);
    } else {
        local_reply_with(&mut out, reply.status, &fields, &reply.body, lives, plan.is_head_method);
    }
    let written = downstream.write_all(&out).await;
    books.count_received(out.len());
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
async fn refuse(worker: &Worker, downstream: &Wire, reply: &Reply, books: Books<'_>) -> CloseCause {
    let mut out = Vec::new();
    local_reply(&mut out, reply.status, &reply.body, false, false);
    let written = downstream.write_all(&out).await;
    books.count_received(out.len());
    books.close(reply.status, reply.cause);
    // The peer may be gone; the line in the log is written either way.
    if written.is_ok() {
        downstream.close(worker).await;
    }
    reply.cause
}
