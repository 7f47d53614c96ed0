//! The requests of one downstream connection, one after the other.
//!
//! A pipelined request waits, unread, until the response before it is complete. After a request whose framing is not
//! known, or whose body was not read to its end, the connection is closed: what follows could be anything.

use std::pin::pin;

use bytes::Bytes;
use l7::http1::local_reply;

use super::head::Received;
use super::reader::{HeadError, Reader};
use super::reply::invalid;
use super::request::Request;
use super::side::Side;
use super::{Books, Director, Protocol, Reply, Wire};
use crate::access_log::cause::CloseCause;
use crate::session::connection::Connection;
use crate::worker::Worker;

/// Serves requests until the downstream closes, a request asks for it, or the connection is cut. `reader` holds what has
/// been read of it before.
pub(super) async fn converse<D: Director>(
    connection: &Connection,
    downstream: &Wire,
    reader: Reader,
    director: &D,
) -> CloseCause {
    // Pinned here, for an async function keeps its arguments twice.
    let requests = pin!(requests(connection, downstream, reader, director));
    match connection.until_cut(requests).await {
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

async fn requests<D: Director>(
    connection: &Connection,
    downstream: &Wire,
    mut reader: Reader,
    director: &D,
) -> CloseCause {
    let worker = &connection.node.worker;
    loop {
        let head = match next_head(worker, &mut reader, downstream).await {
            Ok(head) => head,
            Err(NoRequest::Closed(cause)) => return cause,
            Err(NoRequest::Refused(reply)) => return Box::pin(refuse(connection, downstream, &reply)).await,
        };
        let normalization = director.normalization();
        let received = Received::Http1 { raw: head, normalization };
        let request = Request { connection, director, downstream: Side::Http1(downstream), received };
        // Of its own, for as long as it runs: a connection that waits for the next request must not keep the room.
        let outcome = Box::pin(request.serve_http1(downstream, &mut reader)).await;
        if !outcome.downstream_lives {
            if outcome.downstream_is_whole {
                Box::pin(downstream.close(worker)).await;
            }
            return outcome.cause;
        }
    }
}

/// The head of the next request, or why there is none.
async fn next_head(worker: &Worker, reader: &mut Reader, downstream: &Wire) -> Result<Bytes, NoRequest> {
    // A connection that only waits ends with the drain; what has been begun is finished.
    let begun = worker.unless_draining(pin!(reader.begun(worker, downstream))).await;
    match begun {
        None => {
            Box::pin(downstream.close(worker)).await;
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
    match Box::pin(reader.head(worker, downstream)).await {
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

/// Answers a message that is no request, and gives the connection up.
async fn refuse(connection: &Connection, downstream: &Wire, reply: &Reply) -> CloseCause {
    let books = Books::open(connection, Protocol::Http1);
    let mut out = Vec::new();
    local_reply(&mut out, reply.status, &reply.body, false, false);
    let written = downstream.write_all(&out).await;
    books.count_received(out.len());
    books.close(reply.status, reply.cause);
    // The peer may be gone; the line in the log is written either way.
    if written.is_ok() {
        downstream.close(&connection.node.worker).await;
    }
    reply.cause
}
