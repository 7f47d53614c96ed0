//! One try at a request: the request and its response, both ways at once.
//!
//! The response may come before the request body is complete; interim responses are passed on as they come, so
//! that `Expect: 100-continue` works end to end. Nothing that follows an upgrade request is passed on before
//! the upstream has agreed to the switch (RFC 9110 section 7.8).

use std::borrow::Cow;
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::future::{Either, select};
use l7::http1::{BodyFraming, Version};
use l7::outlier::Answer;
use tunnel::h2::ErrorCode;

use super::body::{Broken, Fault, Passage, Source};
use super::books::Flow;
use super::head::{Extended, Received};
use super::reader::Reader;
use super::replay::Replay;
use super::reply::{TIMED_OUT, invalid};
use super::request::{Failure, Plan, within};
use super::response::{ResponseHead, Written};
use super::side::{Framing, Side, Sink};
use super::switch::Switch;
use super::upstream::{Upstream, Way};
use super::{Books, Keep, Reply, Wire};
use crate::access_log::cause::CloseCause;
use crate::link::{Link, TunnelStream};
use crate::worker::Worker;

/// The answer to an extended CONNECT where the server takes none (RFC 8441 section 3).
const NO_SWITCH: Reply = Reply::text(501, "the server does not switch protocols", CloseCause::InvalidHttp);

/// Interim responses to one request.
const INTERIM_MAX: usize = 16;

/// What is left after an exchange.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) status: u16,
    pub(super) cause: CloseCause,
    /// The downstream may send another request on the same connection of HTTP/1.1.
    pub(super) downstream_lives: bool,
    /// The downstream got a whole response; if not it sees a reset.
    pub(super) downstream_is_whole: bool,
    /// The upstream may carry another request.
    pub(super) upstream_lives: bool,
    /// The upstream got the whole request; if not it must see a reset.
    pub(super) upstream_is_whole: bool,
}

/// How a try ended.
pub(super) enum Try {
    Over(Outcome),
    /// Nothing of a response was passed on: the answer in its place, unless the request is tried again.
    Failed(Failure, Reply),
    /// It is tried again after a pause, for that status of the response.
    Again(u16, Duration),
}

impl Try {
    /// What it says of the endpoint, if anything.
    pub(super) fn answer(&self) -> Option<Answer> {
        match self {
            Self::Over(Outcome { status: 0, cause, .. }) => match cause {
                CloseCause::ServerReset => Some(Answer::Unconnected),
                CloseCause::RequestTimeout => Some(Answer::TimedOut),
                _ => None,
            },
            Self::Over(Outcome { status, .. }) | Self::Again(status, _) => Some(Answer::Status(*status)),
            Self::Failed(failure, _) => match failure {
                Failure::Unreachable | Failure::Refused | Failure::Broken => Some(Answer::Unconnected),
                Failure::TimedOut => Some(Answer::TimedOut),
                Failure::Answered { status, .. } => Some(Answer::Status(*status)),
                Failure::Client | Failure::Overflow => None,
            },
        }
    }
}

pub(super) struct Exchange<'a, 'c> {
    pub(super) books: &'a Books<'c>,
    pub(super) downstream: Side<'a>,
    pub(super) received: &'a Received,
    pub(super) plan: &'a Plan,
    pub(super) replay: &'a Replay,
    /// Whether the request would be tried again after a failure.
    pub(super) again: &'a dyn Fn(Failure) -> Option<Duration>,
    /// By then the response must be complete, or the connection have switched protocols.
    pub(super) deadline: Option<Instant>,
}

/// How far a request and its response came.
enum Passed {
    /// What was sent, if sending has ended.
    Answered(Option<Result<(), Broken>>, Result<Responded, Stopped>),
    ClientFailed(Fault),
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

/// Why a response was not passed on.
enum Stopped {
    Broken(Broken),
    Again(u16, Duration),
}

impl From<Broken> for Stopped {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// The end of an exchange towards the server.
pub(super) enum Server<'u> {
    Http1 {
        wire: &'u Wire,
        reader: &'u mut Reader,
    },
    Http2 {
        stream: &'u TunnelStream,
        /// What the server is asked to switch to, for a client that reads HTTP/1.1.
        switch: Option<Switch>,
    },
}

impl<'u> Server<'u> {
    fn side(&self) -> Side<'u> {
        match self {
            Self::Http1 { wire, .. } => Side::Http1(wire),
            Self::Http2 { stream, .. } => Side::Http2(stream),
        }
    }
}

impl Exchange<'_, '_> {
    pub(super) fn worker(&self) -> &Worker {
        &self.books.connection().node.worker
    }

    pub(super) async fn run(&self, source: &mut Source<'_>, upstream: &mut Upstream) -> Try {
        match &mut upstream.way {
            Way::Http1(way) => {
                let head = if let Some(head) = &self.plan.head {
                    Cow::Borrowed(head.as_slice())
                } else {
                    let random = || self.books.connection().node.random();
                    match self.received.to_http1(&self.plan.filtered.chain, random) {
                        Ok(head) => Cow::Owned(head),
                        Err(error) => return unwritable(&error),
                    }
                };
                way.busy = true;
                let mut server = Server::Http1 { wire: &way.wire, reader: &mut way.reader };
                let tried = self.carry(source, Cell::new(head), &mut server).await;
                let left = !way.reader.is_empty();
                way.busy = !matches!(&tried, Try::Over(outcome) if outcome.upstream_is_whole);
                lives_without(tried, left)
            }
            Way::Http2(link) => {
                let extended = self.extended(link).await;
                // As an ordinary request its success would be taken for the agreement to switch.
                if self.plan.upgrades && extended == Extended::Not && !source.is_http1() {
                    return Try::Failed(Failure::Client, NO_SWITCH);
                }
                let headers = match self.received.to_http2(&self.plan.filtered.chain, extended) {
                    Ok(headers) => headers,
                    Err(error) => return unwritable(&error),
                };
                let switch = match extended {
                    Extended::Taken if source.is_http1() => Switch::asked(self.received),
                    Extended::Taken | Extended::Not => None,
                };
                let ended = switch.is_none() && self.is_sent_with_head(source);
                let (asked, size) = (link.ask(&headers, ended), headers.list_size());
                // It is not held for as long as the response is waited for.
                drop(headers);
                match asked {
                    Ok(stream) => {
                        self.books.count_sent(size);
                        self.carry(source, Cell::default(), &mut Server::Http2 { stream: &stream, switch })
                            .await
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a link takes no request");
                        let reply = Reply::text(503, "upstream takes no request", CloseCause::LimitReached);
                        Try::Failed(Failure::Refused, reply)
                    }
                }
            }
        }
    }

    /// Whether the server takes extended CONNECT, where that is wanted: it says so in its first words.
    async fn extended(&self, link: &Link) -> Extended {
        if self.plan.upgrades && self.received.can_extend() {
            link.introduced().await;
            if link.peer_takes_connect_protocol() {
                return Extended::Taken;
            }
        }
        Extended::Not
    }

    /// Whether the head of the request is all of it.
    fn is_sent_with_head(&self, source: &Source<'_>) -> bool {
        if self.replay.is_fresh() { source.is_done() } else { self.replay.is_empty_message() }
    }

    /// Before a message is begun. Between two sockets the packets of a batch leave together. Next to a tunnel they leave one
    /// by one: what it brings comes in batches already, and whoever is sent the first may begin while the others are read.
    async fn end_of_batch(&self, server: Side<'_>) {
        if self.downstream.is_socket() && server.is_socket() {
            self.worker().flush_list().end_of_batch().await;
        }
    }

    async fn carry(
        &self,
        source: &mut Source<'_>,
        head: Cell<Cow<'_, [u8]>>,
        server: &mut Server<'_>,
    ) -> Try {
        let started = Cell::new(false);
        let passed = {
            let passing = pin!(self.pass_both_ways(source, &head, server, &started));
            within(self.deadline, passing).await
        };
        let (sent, responded) = match passed {
            Some(Passed::Answered(sent, responded)) => (sent, responded),
            Some(Passed::ClientFailed(fault)) => return self.client_failed(fault, started.get()),
            Some(Passed::ClientGone) => return Try::Over(self.client_gone()),
            None if started.get() => {
                self.downstream.reset(ErrorCode::CANCEL);
                return Try::Over(ended(0, CloseCause::RequestTimeout));
            }
            None => return Try::Failed(Failure::TimedOut, TIMED_OUT),
        };
        let is_sent = matches!(sent, Some(Ok(())));
        match responded {
            Ok(Responded { status: 101, .. }) if is_sent => Try::Over(self.switched(source, server).await),
            // What is left of the request could not be told from the other protocol.
            Ok(Responded { status: 101, .. }) => {
                self.upstream_failed(Broken::From(Fault::of(CloseCause::InvalidHttp)), true)
            }
            Ok(responded) => Try::Over(Outcome {
                status: responded.status,
                cause: CloseCause::Finished,
                downstream_lives: is_sent && responded.downstream_lives,
                downstream_is_whole: true,
                upstream_lives: is_sent && responded.upstream_lives,
                upstream_is_whole: is_sent,
            }),
            Err(Stopped::Again(status, pause)) => Try::Again(status, pause),
            Err(Stopped::Broken(failed)) => self.upstream_failed(failed, started.get()),
        }
    }

    async fn pass_both_ways(
        &self,
        source: &mut Source<'_>,
        head: &Cell<Cow<'_, [u8]>>,
        server: &mut Server<'_>,
        started: &Cell<bool>,
    ) -> Passed {
        self.end_of_batch(server.side()).await;
        let mut sending = pin!(self.send(source, head, server.side()));
        let mut responding = pin!(self.respond(server, started));
        match select(sending.as_mut(), responding.as_mut()).await {
            // The upstream may answer before it has read, or after it has stopped reading.
            Either::Left((sent @ (Ok(()) | Err(Broken::To)), responding)) => {
                match select(responding, pin!(self.downstream.broken_off())).await {
                    Either::Left((responded, _)) => Passed::Answered(Some(sent), responded),
                    Either::Right(((), _)) => Passed::ClientGone,
                }
            }
            Either::Left((Err(Broken::From(fault)), _)) => Passed::ClientFailed(fault),
            Either::Right((responded, sending)) => Passed::Answered(now_or_never(sending), responded),
        }
    }

    /// The head of the request, where it has not gone yet, and its body. Once sent the head is held no longer: the response
    /// may be long in coming.
    async fn send(
        &self,
        source: &mut Source<'_>,
        head: &Cell<Cow<'_, [u8]>>,
        to: Side<'_>,
    ) -> Result<(), Broken> {
        let head = head.take();
        // What follows is held back until the upstream has agreed to the switch. In HTTP/1.1 that is what follows the
        // body, in HTTP/2 there is no other body.
        let is_held_back = self.plan.upgrades && !source.is_http1() && matches!(to, Side::Http1(_));
        let is_all = is_held_back || self.is_sent_with_head(source);
        if let Side::Http1(wire) = to {
            self.books.count_sent(head.len());
            if is_all {
                wire.write_all(&head).await.map_err(|_| Broken::To)?;
            }
        }
        if is_all {
            if !is_held_back {
                self.replay.complete(None);
            }
            return Ok(());
        }
        let framing = match to {
            Side::Http1(_)
                if source.is_http1()
                    && self.plan.filtered.keep == Keep::Nothing
                    && self.replay.is_fresh() =>
            {
                Framing::Verbatim
            }
            _ => Framing::of(self.plan.body),
        };
        let meter = self.books.meter(Flow::ToServer);
        let to = Sink::new(to, framing).after(head.into_owned());
        if !self.replay.is_fresh() {
            self.replay.pass(&to, meter).await?;
            if self.replay.is_complete() {
                return Ok(());
            }
        }
        let passage = Passage { worker: self.worker(), to, failed: CloseCause::ClientReset, meter };
        passage.run(source, Some(self.replay)).await
    }

    /// Interim responses, the final head, its body.
    async fn respond(&self, server: &mut Server<'_>, started: &Cell<bool>) -> Result<Responded, Stopped> {
        for _ in 0..INTERIM_MAX {
            let head = self.response_head(server).await?;
            if head.interim && self.plan.version == Version::Http10 {
                continue; // RFC 9110 section 15.2: an HTTP/1.0 client must not be sent one
            }
            if !head.interim
                && !started.get()
                && self.replay.is_possible()
                && let Some(pause) = (self.again)(Failure::Answered { status: head.status, grpc: head.grpc })
            {
                return Err(Stopped::Again(head.status, pause));
            }
            self.end_of_batch(server.side()).await;
            // While a head is on its way, an interim one as well, no other may be begun.
            started.set(true);
            let ResponseHead { status, upstream_lives, downstream_lives, .. } = head;
            // What follows a switch is no body.
            if !head.interim && !head.is_last && status != 101 {
                self.pass_response(head, server).await?;
            } else {
                self.write_head(&head).await?;
                started.set(!head.interim);
                if head.interim {
                    continue;
                }
            }
            return Ok(Responded { status, upstream_lives, downstream_lives });
        }
        Err(Broken::From(Fault::of(CloseCause::InvalidHttp)).into())
    }

    async fn write_head(&self, head: &ResponseHead) -> Result<(), Broken> {
        match (self.downstream, &head.written) {
            (Side::Http1(wire), Written::Http1(bytes)) => {
                wire.write_all(bytes).await.map_err(|_| Broken::To)?;
                self.books.count_received(bytes.len());
            }
            (Side::Http2(stream), Written::Http2(headers)) => {
                stream.respond(headers, head.is_last).map_err(|_| Broken::To)?;
                if head.is_last {
                    self.books.meter(Flow::ToClient).last_fields(headers);
                }
                self.books.count_received(headers.list_size());
            }
            // Written for the downstream that it is.
            _ => return Err(Broken::To),
        }
        Ok(())
    }

    /// The head of a response with all that follows.
    async fn pass_response(&self, head: ResponseHead, server: &mut Server<'_>) -> Result<(), Broken> {
        let old = self.plan.version == Version::Http10;
        let framing = match (&*server, self.downstream) {
            (_, _) if head.framing == BodyFraming::Chunked && old => Framing::Bare,
            (Server::Http1 { .. }, Side::Http1(_)) => Framing::Verbatim,
            _ => Framing::of(head.framing),
        };
        let meter = self.books.meter(Flow::ToClient);
        let mut to = Sink::new(self.downstream, framing);
        match head.written {
            Written::Http1(bytes) => {
                self.books.count_received(bytes.len());
                to = to.after(bytes);
            }
            Written::Http2(_) => self.write_head(&head).await?,
        }
        let passage = Passage { worker: self.worker(), to, failed: CloseCause::ServerReset, meter };
        match server {
            Server::Http1 { wire, reader } => {
                passage.run(&mut Source::http1(wire, reader, head.framing), None).await
            }
            Server::Http2 { stream, .. } => passage.run(&mut Source::Http2(stream), None).await,
        }
    }

    /// Both sides have agreed on another protocol: from here on bytes are only bytes.
    async fn switched(&self, source: &mut Source<'_>, server: &mut Server<'_>) -> Outcome {
        let to = |side| Sink::new(side, Framing::Bare);
        let there = Passage {
            worker: self.worker(),
            to: to(server.side()),
            failed: CloseCause::ClientReset,
            meter: self.books.meter(Flow::ToServer),
        };
        let back = Passage {
            worker: self.worker(),
            to: to(self.downstream),
            failed: CloseCause::ServerReset,
            meter: self.books.meter(Flow::ToClient),
        };
        source.become_opaque();
        let mut from_server = match server {
            Server::Http1 { wire, reader } => Source::http1(wire, reader, BodyFraming::UntilClose),
            Server::Http2 { stream, .. } => Source::Http2(stream),
        };
        let (there, back) =
            futures::future::join(there.run_to_end(source), back.run_to_end(&mut from_server)).await;
        let cause = match (there, back) {
            (Ok(()), Ok(())) => CloseCause::Finished,
            (Err(Broken::From(fault)), _) | (_, Err(Broken::From(fault))) => fault.cause,
            (Err(Broken::To), _) => CloseCause::ServerReset,
            (_, Err(Broken::To)) => CloseCause::ClientReset,
        };
        let whole = cause == CloseCause::Finished;
        if !whole {
            self.downstream.reset(ErrorCode::CONNECT_ERROR);
        }
        Outcome { upstream_is_whole: whole, downstream_is_whole: whole, ..ended(101, cause) }
    }

    /// The request body broke off or was malformed.
    fn client_failed(&self, fault: Fault, started: bool) -> Try {
        if let Some(error) = fault.malformed.filter(|_| !started) {
            return Try::Failed(Failure::Client, Reply { cause: fault.cause, ..invalid(error) });
        }
        self.downstream.reset(ErrorCode::CANCEL);
        Try::Over(ended(0, fault.cause))
    }

    /// The client has broken off while it waited.
    fn client_gone(&self) -> Outcome {
        self.downstream.reset(ErrorCode::CANCEL);
        ended(0, CloseCause::ClientReset)
    }

    fn upstream_failed(&self, broken: Broken, started: bool) -> Try {
        let fault = match broken {
            Broken::From(fault) => fault,
            Broken::To => Fault::of(CloseCause::ClientReset),
        };
        if started || fault.cause == CloseCause::ClientReset {
            // A code that would have the client send again what has been answered in part says too much.
            let told =
                fault.code.filter(|code| !matches!(*code, ErrorCode::NO_ERROR | ErrorCode::REFUSED_STREAM));
            self.downstream.reset(told.unwrap_or(ErrorCode::INTERNAL_ERROR));
            return Try::Over(ended(0, fault.cause));
        }
        let failure = match fault.code {
            Some(ErrorCode::REFUSED_STREAM) => Failure::Refused,
            _ => Failure::Broken,
        };
        // A server that broke off may be there again in a moment; one that does not speak HTTP will not.
        let is_silent = fault.cause == CloseCause::ServerReset && fault.malformed.is_none();
        let status = if is_silent { 503 } else { 502 };
        Try::Failed(failure, Reply::text(status, "upstream failed", fault.cause))
    }
}

/// What was received beyond a response would be taken for the next one.
fn lives_without(tried: Try, left_over: bool) -> Try {
    match tried {
        Try::Over(outcome) if left_over => Try::Over(Outcome { upstream_lives: false, ..outcome }),
        tried => tried,
    }
}

fn unwritable(error: &dyn std::fmt::Display) -> Try {
    tracing::debug!(%error, "a request cannot be written for its upstream");
    Try::Failed(Failure::Client, Reply::text(400, "malformed request", CloseCause::InvalidHttp))
}

/// An exchange after which neither side is used again.
pub(super) fn ended(status: u16, cause: CloseCause) -> Outcome {
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
