//! The requests of one downstream connection that speaks HTTP/2, all at the same time.

use std::pin::{Pin, pin};

use futures::future::{Either, select};
use futures::stream::{FuturesUnordered, StreamExt};

use super::head::Received;
use super::request::Request;
use super::side::Side;
use super::upstream::transport;
use super::{Director, Wire};
use crate::access_log::cause::CloseCause;
use crate::link::{ClearRequest, Link, LinkEnd};
use crate::session::connection::Connection;
use crate::worker::Worker;

/// What a request costs beside its head and its payload: decision, books, tasks.
const REQUEST_BYTES: usize = 8 * 1024;

/// Requests that are begun in a row before other connections get their turn.
const IN_A_ROW_MAX: usize = 8;

/// Serves requests until the connection ends or is cut. `received` is what has been read of it before.
pub(super) async fn converse<D: Director>(
    connection: &Connection,
    downstream: Wire,
    received: &[u8],
    director: &D,
) -> CloseCause {
    let worker = &connection.node.worker;
    let opened = transport(downstream).and_then(|transport| Link::clear_server(worker, transport, received));
    let Ok(link) = opened else { return CloseCause::ClientReset };
    let requests = pin!(requests(connection, &link, director));
    match connection.until_cut(requests).await {
        Ok(end) => cause_of(&end),
        Err(cause) => {
            link.cut();
            cause
        }
    }
}

async fn requests<D: Director>(connection: &Connection, link: &Link, director: &D) -> LinkEnd {
    let mut running = FuturesUnordered::new();
    let mut begun = 0;
    loop {
        let next = pin!(link.next_request());
        let arrived = if running.is_empty() {
            next.await
        } else {
            match select(next, running.next()).await {
                Either::Left((arrived, _)) => arrived,
                Either::Right(_) => continue,
            }
        };
        match arrived {
            // One that has been taken back is not begun.
            Ok(request) if request.stream.broken().is_some() => {}
            Ok(request) => {
                running.push(serve(connection, director, request));
                begun += 1;
                if begun % IN_A_ROW_MAX == 0 {
                    let others = pin!(connection.node.worker.yield_now());
                    run_until(&mut running, others).await;
                }
            }
            Err(end) => {
                // Their streams have ended with the link; each closes its books.
                while running.next().await.is_some() {}
                return end;
            }
        }
    }
}

/// Goes on with what is running until `over`.
async fn run_until(
    running: &mut FuturesUnordered<impl Future<Output = ()>>,
    mut over: Pin<&mut impl Future<Output = ()>>,
) {
    while !running.is_empty() {
        match select(over.as_mut(), running.next()).await {
            Either::Left(_) => return,
            Either::Right(_) => {}
        }
    }
    over.await;
}

async fn serve<D: Director>(connection: &Connection, director: &D, request: ClearRequest) {
    let ClearRequest { stream, headers } = request;
    let _held = Held::new(&connection.node.worker, REQUEST_BYTES + headers.list_size());
    let received = Received::http2(headers, stream.is_received(), director.normalization());
    let downstream = Side::Http2(&stream);
    Request { connection, director, downstream, received }.serve_http2(&stream).await;
}

/// Counts a request's memory for as long as it runs.
struct Held<'w> {
    worker: &'w Worker,
    bytes: usize,
}

impl<'w> Held<'w> {
    fn new(worker: &'w Worker, bytes: usize) -> Self {
        worker.memory().take(bytes);
        Self { worker, bytes }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.worker.memory().give_back(self.bytes);
    }
}

/// What the end of a connection is called in the books.
fn cause_of(end: &LinkEnd) -> CloseCause {
    use crate::link::CloseCause as Link;
    match end.cause {
        Link::Clean => CloseCause::Finished,
        // We end it only when it is drained.
        Link::LocalClose => CloseCause::Drained,
        Link::Http2Abuse => CloseCause::LimitReached,
        Link::Http2Timeout => CloseCause::RequestTimeout,
        Link::Http2Protocol => CloseCause::InvalidHttp,
        _ => CloseCause::ClientReset,
    }
}
