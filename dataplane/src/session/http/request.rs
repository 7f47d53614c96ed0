//! One request, whichever protocol carried it: decided, forwarded as often as need be, answered, entered in the books.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use l7::filter::Chain;
use l7::grpc;
use l7::http1::{BodyFraming, Version};
use l7::ir::{Filters, RequestHead};
use tunnel::h2::ErrorCode;

use super::body::Source;
use super::copies::Message;
use super::exchange::{Exchange, Outcome, Try};
use super::head::{Extended, Received, seen, write_http1};
use super::opening::Opening;
use super::reader::Reader;
use super::replay::Replay;
use super::reply::{TIMED_OUT, invalid};
use super::side::Side;
use super::{Allowed, Books, Decision, Director, Filtered, Protocol, Reply, Wire};
use crate::access_log::cause::CloseCause;
use crate::link::TunnelStream;
use crate::session::connection::Connection;

/// A request that has been read and decided, ready to be forwarded.
pub(super) struct Plan {
    /// The head for an upstream that speaks HTTP/1.1, where that is likely to be wanted.
    pub(super) head: Option<Vec<u8>>,
    pub(super) is_head_method: bool,
    pub(super) is_grpc: bool,
    pub(super) body: BodyFraming,
    pub(super) version: Version,
    pub(super) keep_alive: bool,
    /// It asks to switch protocols.
    pub(super) upgrades: bool,
    pub(super) filtered: Filtered,
}

/// Why a try at a request failed before anything of its response was passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::session) enum Failure {
    /// There is no upstream.
    Unreachable,
    /// The server has not looked at the request (RFC 9113 section 8.7).
    Refused,
    /// The server broke off, or what it said is not HTTP.
    Broken,
    /// The time for this try is up, or that of the whole request.
    TimedOut,
    /// The server's answer.
    Answered {
        status: u16,
        /// Of a gRPC response that consists of trailers only.
        grpc: Option<u16>,
    },
    /// The service takes no more of them, by its own traffic policy.
    Overflow,
    /// It is the client's fault, or its own: another try would be no better.
    Client,
}

/// What the first look at a request says.
struct Seen<C> {
    plan: Plan,
    verdict: Result<C, Reply>,
}

/// A request in hand.
pub(super) struct Request<'a, D> {
    pub(super) connection: &'a Connection,
    pub(super) director: &'a D,
    pub(super) downstream: Side<'a>,
    pub(super) received: Received,
}

impl<D: Director> Request<'_, D> {
    /// Serves a request that came in HTTP/1.1 over `wire`; `reader` holds what came behind its head.
    pub(super) async fn serve_http1(self, wire: &Wire, reader: &mut Reader) -> Outcome {
        let mut books = Books::open(self.connection, Protocol::Http1);
        let worker = &self.connection.node.worker;
        let replay = Replay::new(worker);
        let mut opening = Opening::http1(worker, wire, reader, &replay);
        let outcome = match self.look(&mut opening, &mut books).await {
            Ok(seen) => {
                // As long as it runs it is decided again whenever policies change.
                let _running = seen
                    .verdict
                    .is_ok()
                    .then(|| self.connection.shared.run(Allowed::of(&self.received, &books)));
                let source = opening.rest(seen.plan.body);
                self.serve(&mut books, seen, source, &replay).await
            }
            // Its framing is not known.
            Err(reply) => self.tell(&books, &reply, None, After::Closes).await,
        };
        books.close(outcome.status, outcome.cause);
        outcome
    }

    /// Serves a request that came in HTTP/2, and sees to its stream.
    pub(super) async fn serve_http2(self, stream: &TunnelStream) {
        let mut books = Books::open(self.connection, Protocol::Http2);
        let worker = &self.connection.node.worker;
        let replay = Replay::new(worker);
        let mut opening = Opening::http2(worker, stream, &replay);
        let outcome = match self.look(&mut opening, &mut books).await {
            Ok(seen) => {
                let running = seen
                    .verdict
                    .is_ok()
                    .then(|| self.connection.shared.run(Allowed::of(&self.received, &books)));
                let served = pin!(self.serve(&mut books, seen, Source::Http2(stream), &replay));
                match &running {
                    Some(running) => running.until_cut(served).await,
                    None => Ok(served.await),
                }
            }
            Err(reply) => Ok(self.tell(&books, &reply, None, After::Closes).await),
        };
        match outcome {
            Ok(outcome) => {
                // Nothing more is wanted of a request that has its answer (RFC 9113 section 8.1).
                let whole = outcome.downstream_is_whole;
                stream.stop(if whole { ErrorCode::NO_ERROR } else { ErrorCode::INTERNAL_ERROR });
                books.close(outcome.status, outcome.cause);
            }
            Err(cause) => {
                stream.stop(ErrorCode::CANCEL);
                books.close(0, cause);
            }
        }
    }

    /// Has others asked about the request, parses it, and decides.
    async fn look(&self, opening: &mut Opening<'_>, books: &mut Books<'_>) -> Result<Seen<D::Choice>, Reply> {
        let asked = self.director.consult(&self.received, opening, books).await;
        look(self.director, &self.received, asked, books)
    }

    /// Forwards a decided request, or answers it; then has it copied.
    async fn serve(
        &self,
        books: &mut Books<'_>,
        seen: Seen<D::Choice>,
        source: Source<'_>,
        replay: &Replay,
    ) -> Outcome {
        let Seen { mut plan, verdict } = seen;
        let choice = match verdict {
            Ok(choice) => choice,
            Err(reply) => return self.answer(books, &plan, &reply, After::GoesOn).await,
        };
        let copies = plan.filtered.copies.take();
        let outcome = self.forward(books, &plan, choice, source, replay).await;
        if let Some(copies) = copies
            && let Some(message) = self.whole(&plan, replay)
        {
            copies.send(message);
        }
        outcome
    }

    /// The request as a message of its own; `None` if not all of it was sent, or not all of it was kept.
    fn whole(&self, plan: &Plan, replay: &Replay) -> Option<Message> {
        if plan.upgrades || !replay.is_complete() {
            return None;
        }
        let random = || self.connection.node.random();
        let head = self.received.to_http1(&plan.filtered.chain, random).ok()?;
        let headers = self.received.to_http2(&plan.filtered.chain, Extended::Not).ok()?;
        let content = replay.with_content(<[u8]>::to_vec);
        Some(Message { head, headers, content, is_chunked: plan.body == BodyFraming::Chunked })
    }

    async fn forward(
        &self,
        books: &mut Books<'_>,
        plan: &Plan,
        mut choice: D::Choice,
        mut source: Source<'_>,
        replay: &Replay,
    ) -> Outcome {
        let deadline = plan.filtered.limit.map(|limit| Instant::now() + limit);
        let mut tries = 0;
        loop {
            tries += 1;
            let again = |failure: Failure| self.director.again(&plan.filtered, failure, tries);
            let try_deadline = plan.filtered.try_limit.map(|limit| Instant::now() + limit);
            let try_deadline = deadline.into_iter().chain(try_deadline).min();
            let opened = {
                let opening = pin!(self.director.upstream(&mut choice, books));
                within(try_deadline, opening).await
            };
            let after = if matches!(opened, Some(Ok(_))) { After::Closes } else { After::GoesOn };
            let tried = match opened {
                Some(Ok(mut upstream)) => {
                    let exchange = Exchange {
                        books,
                        downstream: self.downstream,
                        received: &self.received,
                        plan,
                        replay,
                        again: &again,
                        deadline: try_deadline,
                    };
                    let tried = exchange.run(&mut source, &mut upstream).await;
                    if matches!(&tried, Try::Over(outcome) if outcome.upstream_lives) {
                        self.director.keep(upstream);
                    }
                    tried
                }
                Some(Err(reply)) if reply.cause == CloseCause::UpstreamOverflow => {
                    Try::Failed(Failure::Overflow, reply)
                }
                Some(Err(reply)) => Try::Failed(Failure::Unreachable, reply),
                None => Try::Failed(Failure::TimedOut, TIMED_OUT),
            };
            if let Some(answer) = tried.answer() {
                self.director.note(&choice, answer);
            }
            let (pause, reply) = match tried {
                Try::Over(outcome) => return outcome,
                Try::Again(_, pause) => (Some(pause), TIMED_OUT),
                Try::Failed(failure, reply) => {
                    (again(failure).filter(|_| replay.is_possible() && failure != Failure::Client), reply)
                }
            };
            let over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            match pause.filter(|_| !over) {
                Some(pause) if pause.is_zero() => {}
                Some(pause) => drop(within(deadline, pin!(monoio::time::sleep(pause))).await),
                None => return self.answer(books, plan, &reply, after).await,
            }
        }
    }

    /// Answers in the upstream's place.
    async fn answer(&self, books: &Books<'_>, plan: &Plan, reply: &Reply, after: After) -> Outcome {
        let told = plan.is_grpc.then(|| reply.clone().for_grpc());
        let status = told.iter().flat_map(|told| &told.fields).find(|(name, _)| name == "grpc-status");
        books.note_grpc_status(status.map(|(_, value)| value.as_slice()));
        self.tell(books, told.as_ref().unwrap_or(reply), Some(plan), after).await
    }

    async fn tell(&self, books: &Books<'_>, reply: &Reply, plan: Option<&Plan>, after: After) -> Outcome {
        let draining = self.connection.node.worker.drain().is_open();
        // An unread body would be taken for the next request.
        let has_ended = |plan: &Plan| plan.keep_alive && plan.body == BodyFraming::None && !plan.upgrades;
        let lives = after == After::GoesOn && !draining && plan.is_some_and(has_ended);
        let is_head_method = plan.is_some_and(|plan| plan.is_head_method);
        let written = match self.downstream {
            Side::Http1(wire) => {
                let out = reply.to_http1(lives, is_head_method);
                books.count_received(out.len());
                wire.write_all(&out).await.is_ok()
            }
            Side::Http2(stream) => {
                let body = if is_head_method { "" } else { &*reply.body };
                books.count_received(body.len());
                tell_http2(stream, reply, body).await
            }
        };
        Outcome {
            status: reply.status,
            cause: reply.cause,
            downstream_lives: lives && written,
            downstream_is_whole: written,
            upstream_lives: false,
            upstream_is_whole: true,
        }
    }
}

/// What becomes of a connection of HTTP/1.1 after an answer of the proxy's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    GoesOn,
    /// How much of the request is left to read is not known.
    Closes,
}

/// Whether the client got the answer.
async fn tell_http2(stream: &TunnelStream, reply: &Reply, body: &str) -> bool {
    let Ok(headers) = reply.to_http2() else { return false };
    if stream.respond(&headers, body.is_empty()).is_err() {
        return false;
    }
    body.is_empty() || stream.write_last(body.as_bytes()).await.is_ok()
}

/// The result of `work`, unless the deadline comes first.
///
/// It is pinned by the caller, for an async function keeps its arguments twice.
pub(super) async fn within<T>(
    deadline: Option<Instant>,
    work: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    match deadline {
        Some(deadline) => monoio::time::timeout_at(deadline.into(), work).await.ok(),
        None => Some(work.await),
    }
}

/// Parses, normalises and decides; `asked` is what the director has been told about the request.
fn look<D: Director>(
    director: &D,
    received: &Received,
    asked: Result<Option<Arc<Filters>>, Reply>,
    books: &mut Books<'_>,
) -> Result<Seen<D::Choice>, Reply> {
    let read = received.read(|request, target| {
        books.note_request(&seen(request, target));
        let Decision { verdict, mut filtered } = match asked {
            Ok(None) => director.decide(&seen(request, target), books),
            Ok(Some(edits)) => decide_edited(director, &seen(request, target), edits, books),
            Err(reply) => Decision::answer(reply),
        };
        books.sign(&mut filtered.chain);
        let head = matches!((&verdict, received), (Ok(_), Received::Http1 { .. })).then(|| {
            let mut head = Vec::with_capacity(received.len() + 64);
            write_http1(&mut head, request, target, &filtered.chain, None);
            head
        });
        let plan = Plan {
            head,
            is_head_method: request.method == "HEAD",
            is_grpc: grpc::is_request(request.headers),
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
    let query = chain.query(request.query);
    let edited = RequestHead { headers: &headers, query: query.as_deref(), ..*request };
    let mut decision = director.decide(&edited, books);
    decision.filtered.chain.put_first(edits);
    decision
}

/// What a director does by default: a request that the server has not looked at is sent once more.
pub(super) fn again_if_refused(failure: Failure, tries: u32) -> Option<Duration> {
    (failure == Failure::Refused && tries == 1).then_some(Duration::ZERO)
}
