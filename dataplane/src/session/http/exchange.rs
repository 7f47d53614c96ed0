//! One request and its response, both ways at once.
//!
//! The response may come before the request body is complete; interim responses are passed on as they come, so
//! that `Expect: 100-continue` works end to end. Nothing that follows an upgrade request is passed on before
//! the upstream has agreed to the switch (RFC 9110 section 7.8).

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Instant;

use bytes::Bytes;
use futures::future::{Either, select};
use l7::http1::{
    Body, BodyFraming, Http1Error, Version, empty_headers, local_reply, parse_response, write_response,
    write_rewritten_response,
};

use super::conversation::{Plan, within};
use super::reader::{HeadError, Reader};
use super::reply::TIMED_OUT;
use super::{Books, Reply, Upstream, Wire};
use crate::access_log::cause::CloseCause;
use crate::worker::Worker;

/// Interim responses to one request.
const INTERIM_MAX: usize = 16;

/// What is left after an exchange.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) status: u16,
    pub(super) cause: CloseCause,
    /// The downstream may send another request.
    pub(super) downstream_lives: bool,
    /// The downstream got a whole response; if not it sees a reset.
    pub(super) downstream_is_whole: bool,
    /// The upstream may carry another request.
    pub(super) upstream_lives: bool,
    /// The upstream got the whole request; if not it must see a reset.
    pub(super) upstream_is_whole: bool,
}

pub(super) struct Exchange<'a, 'c> {
    pub(super) books: &'a Books<'c>,
    pub(super) downstream: &'a Wire,
    pub(super) plan: &'a Plan,
    /// By then the response must be complete, or the connection have switched protocols.
    pub(super) deadline: Option<Instant>,
}

/// Why a body could not be passed on.
enum Broken {
    /// The side it comes from failed or lied about its framing.
    From(CloseCause, Option<Http1Error>),
    /// The side it goes to failed.
    To,
}

/// How far a request and its response came.
enum Passed {
    /// What was sent, if sending has ended.
    Answered(Option<Result<(), Broken>>, Result<Responded, Broken>),
    ClientFailed(CloseCause, Option<Http1Error>),
    ClientGone,
}

/// A response that was passed on.
struct Responded {
    status: u16,
    /// The upstream may carry another request.
    upstream_lives: bool,
    /// The downstream was not told of an end.
    downstream_lives: bool,
}

/// A response head, read and written anew.
struct ResponseHead {
    status: u16,
    interim: bool,
    framing: BodyFraming,
    upstream_lives: bool,
    downstream_lives: bool,
    written: Vec<u8>,
}

impl Exchange<'_, '_> {
    fn worker(&self) -> &Worker {
        &self.books.connection().node.worker
    }

    pub(super) async fn run(&self, reader: &mut Reader, upstream: &mut Upstream) -> Outcome {
        let started = Cell::new(false);
        let passed = within(self.deadline, self.pass_both_ways(reader, upstream, &started)).await;
        let (sent, responded) = match passed {
            Some(Passed::Answered(sent, responded)) => (sent, responded),
            Some(Passed::ClientFailed(cause, error)) => {
                return self.client_failed(cause, error, started.get()).await;
            }
            Some(Passed::ClientGone) => return self.client_gone(),
            None => return self.timed_out(started.get()).await,
        };
        let is_sent = matches!(sent, Some(Ok(())));
        match responded {
            Ok(Responded { status: 101, .. }) if is_sent => self.switched(reader, upstream).await,
            // What is left of the request could not be told from the other protocol.
            Ok(Responded { status: 101, .. }) => {
                self.upstream_failed(Broken::From(CloseCause::InvalidHttp, None), true).await
            }
            Ok(responded) => Outcome {
                status: responded.status,
                cause: CloseCause::Finished,
                downstream_lives: is_sent && responded.downstream_lives,
                downstream_is_whole: true,
                upstream_lives: is_sent && responded.upstream_lives && upstream.reader.is_empty(),
                upstream_is_whole: is_sent,
            },
            Err(failed) => self.upstream_failed(failed, started.get()).await,
        }
    }

    async fn pass_both_ways(
        &self,
        reader: &mut Reader,
        upstream: &mut Upstream,
        started: &Cell<bool>,
    ) -> Passed {
        let Upstream { wire, reader: upstream_reader, .. } = upstream;
        let mut sending = pin!(self.send(reader, wire));
        let mut responding = pin!(self.respond(upstream_reader, wire, started));
        match select(sending.as_mut(), responding.as_mut()).await {
            // The upstream may answer before it has read, or after it has stopped reading.
            Either::Left((sent @ (Ok(()) | Err(Broken::To)), responding)) => {
                match select(responding, pin!(self.downstream.broken_off())).await {
                    Either::Left((responded, _)) => Passed::Answered(Some(sent), responded),
                    Either::Right(((), _)) => Passed::ClientGone,
                }
            }
            Either::Left((Err(Broken::From(cause, error)), _)) => Passed::ClientFailed(cause, error),
            Either::Right((responded, sending)) => Passed::Answered(now_or_never(sending), responded),
        }
    }

    /// The head and the body of the request.
    async fn send(&self, reader: &mut Reader, upstream: &Wire) -> Result<(), Broken> {
        upstream.write_all(&self.plan.head).await.map_err(|_| Broken::To)?;
        self.books.count_sent(self.plan.head.len());
        let body = Pump { worker: self.worker(), from: self.downstream, to: upstream, bare: false };
        let count = |bytes| self.books.count_sent(bytes);
        body.run(reader, self.plan.body, &count, CloseCause::ClientReset).await
    }

    /// Interim responses, the final head, its body.
    async fn respond(
        &self,
        reader: &mut Reader,
        upstream: &Wire,
        started: &Cell<bool>,
    ) -> Result<Responded, Broken> {
        let worker = self.worker();
        for _ in 0..INTERIM_MAX {
            let raw = match reader.head(worker, upstream).await {
                Ok(Some(raw)) => raw,
                Ok(None) | Err(HeadError::Io | HeadError::Truncated | HeadError::Timeout) => {
                    return Err(Broken::From(CloseCause::ServerReset, None));
                }
                Err(HeadError::Http(error)) => {
                    return Err(Broken::From(CloseCause::InvalidHttp, Some(error)));
                }
            };
            let head = self.look(&raw).map_err(|error| Broken::From(CloseCause::InvalidHttp, Some(error)))?;
            if head.interim && self.plan.version == Version::Http10 {
                continue; // RFC 9110 section 15.2: an HTTP/1.0 client must not be sent one
            }
            // While a head is on its way, an interim one as well, no other may be begun.
            started.set(true);
            self.downstream.write_all(&head.written).await.map_err(|_| Broken::To)?;
            started.set(!head.interim);
            self.books.count_received(head.written.len());
            if head.interim {
                continue;
            }
            let bare = head.framing == BodyFraming::Chunked && self.plan.version == Version::Http10;
            let body = Pump { worker, from: upstream, to: self.downstream, bare };
            let count = |bytes| self.books.count_received(bytes);
            body.run(reader, head.framing, &count, CloseCause::ServerReset).await?;
            let ResponseHead { status, upstream_lives, downstream_lives, .. } = head;
            return Ok(Responded { status, upstream_lives, downstream_lives });
        }
        Err(Broken::From(CloseCause::InvalidHttp, None))
    }

    fn look(&self, raw: &Bytes) -> Result<ResponseHead, Http1Error> {
        let mut storage = empty_headers();
        let method = if self.plan.is_head_method { "HEAD" } else { "" };
        let response = parse_response(raw, method, &mut storage)?;
        if response.status == 101 && !self.plan.upgrades {
            return Err(Http1Error::Malformed);
        }
        let lasts = response.body == BodyFraming::UntilClose;
        let ends = lasts || (response.body == BodyFraming::Chunked && self.plan.version == Version::Http10);
        // Asked now, for a drain may have begun since the request.
        let draining = self.worker().drain().is_open();
        let downstream_lives = self.plan.keep_alive && !draining && !ends;
        let mut written = Vec::with_capacity(raw.len() + 32);
        let filters = &self.plan.filtered.chain;
        if filters.edits_response() && !response.is_interim() {
            let fields = filters.response_fields(response.headers);
            let version = self.plan.version;
            write_rewritten_response(&mut written, &response, version, downstream_lives, fields.iter());
        } else {
            write_response(&mut written, &response, self.plan.version, downstream_lives, &[]);
        }
        Ok(ResponseHead {
            status: response.status,
            interim: response.is_interim(),
            framing: response.body,
            upstream_lives: response.keep_alive && !lasts,
            downstream_lives,
            written,
        })
    }

    /// Both sides have agreed on another protocol: from here on bytes are only bytes.
    async fn switched(&self, reader: &mut Reader, upstream: &mut Upstream) -> Outcome {
        let worker = self.worker();
        let Upstream { wire, reader: upstream_reader, .. } = upstream;
        let there = Pump { worker, from: self.downstream, to: wire, bare: false };
        let back = Pump { worker, from: wire, to: self.downstream, bare: false };
        let (there, back) = futures::future::join(
            there.run_to_end(reader, &|bytes| self.books.count_sent(bytes), CloseCause::ClientReset),
            back.run_to_end(
                upstream_reader,
                &|bytes| self.books.count_received(bytes),
                CloseCause::ServerReset,
            ),
        )
        .await;
        let cause = match (there, back) {
            (Ok(()), Ok(())) => CloseCause::Finished,
            (Err(Broken::From(cause, _)), _) | (_, Err(Broken::From(cause, _))) => cause,
            (Err(Broken::To), _) => CloseCause::ServerReset,
            (_, Err(Broken::To)) => CloseCause::ClientReset,
        };
        let whole = cause == CloseCause::Finished;
        if !whole {
            self.downstream.reset();
        }
        Outcome { upstream_is_whole: whole, downstream_is_whole: whole, ..ended(101, cause) }
    }

    /// The request body broke off or was malformed.
    async fn client_failed(&self, cause: CloseCause, error: Option<Http1Error>, started: bool) -> Outcome {
        let Some(error) = error.filter(|_| !started) else {
            self.downstream.reset();
            return ended(0, cause);
        };
        self.reply(error.status(), "malformed request", cause).await
    }

    /// The route's limit has passed.
    async fn timed_out(&self, started: bool) -> Outcome {
        let Reply { status, body, cause, .. } = TIMED_OUT;
        if started {
            self.downstream.reset();
            return ended(0, cause);
        }
        self.reply(status, &body, cause).await
    }

    /// The client has broken off while it waited.
    fn client_gone(&self) -> Outcome {
        self.downstream.reset();
        ended(0, CloseCause::ClientReset)
    }

    async fn upstream_failed(&self, broken: Broken, started: bool) -> Outcome {
        let cause = match broken {
            Broken::From(cause, _) => cause,
            Broken::To => CloseCause::ClientReset,
        };
        if started || cause == CloseCause::ClientReset {
            self.downstream.reset();
            return ended(0, cause);
        }
        self.reply(502, "upstream failed", cause).await
    }

    async fn reply(&self, status: u16, body: &str, cause: CloseCause) -> Outcome {
        let mut out = Vec::new();
        local_reply(&mut out, status, body, false, self.plan.is_head_method);
        let written = self.downstream.write_all(&out).await;
        self.books.count_received(out.len());
        // The client may be gone; nothing depends on it any more.
        Outcome { downstream_is_whole: written.is_ok(), ..ended(status, cause) }
    }
}

/// An exchange after which neither side is used again.
fn ended(status: u16, cause: CloseCause) -> Outcome {
    Outcome {
        status,
        cause,
        downstream_lives: false,
        downstream_is_whole: false,
        upstream_lives: false,
        upstream_is_whole: false,
    }
}

/// The result of a future that is polled no more.
fn now_or_never<T>(future: impl Future<Output = T>) -> Option<T> {
    futures::FutureExt::now_or_never(future)
}

/// Passes a body on.
struct Pump<'a> {
    worker: &'a Worker,
    from: &'a Wire,
    to: &'a Wire,
    /// Only the content, without chunk framing.
    bare: bool,
}

impl Pump<'_> {
    async fn run(
        &self,
        reader: &mut Reader,
        framing: BodyFraming,
        count: &impl Fn(usize),
        failed: CloseCause,
    ) -> Result<(), Broken> {
        let mut body = Body::new(framing);
        while !body.is_done() {
            if reader.is_empty() && self.fill(reader, failed).await? == 0 {
                return body.close().map_err(|_| Broken::From(failed, None));
            }
            self.pass(reader, &mut body, count).await?;
        }
        Ok(())
    }

    /// One run of what has arrived.
    async fn pass(&self, reader: &mut Reader, body: &mut Body, count: &impl Fn(usize)) -> Result<(), Broken> {
        let malformed = |error| Broken::From(CloseCause::InvalidHttp, Some(error));
        let (consumed, skipped) = if self.bare {
            let piece = body.step(reader.bytes()).map_err(malformed)?;
            (piece.consumed, piece.consumed - piece.payload)
        } else {
            (body.take(reader.bytes()).map_err(malformed)?, 0)
        };
        let run = reader.bytes().get(skipped..consumed).unwrap_or_default();
        if !run.is_empty() {
            self.to.write_all(run).await.map_err(|_| Broken::To)?;
            count(run.len());
        }
        reader.advance(consumed);
        Ok(())
    }

    /// Everything until the end of the stream, which is passed on.
    async fn run_to_end(
        &self,
        reader: &mut Reader,
        count: &impl Fn(usize),
        failed: CloseCause,
    ) -> Result<(), Broken> {
        self.run(reader, BodyFraming::UntilClose, count, failed).await?;
        self.to.finish().map_err(|_| Broken::To)
    }

    async fn fill(&self, reader: &mut Reader, failed: CloseCause) -> Result<usize, Broken> {
        let filled: io::Result<usize> = reader.fill(self.worker, self.from).await;
        filled.map_err(|_| Broken::From(failed, None))
    }
}
