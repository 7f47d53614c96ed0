//! Passing a body on, from either protocol to either protocol.
//!
//! Between two ends that speak HTTP/1.1 bytes are passed on as they came, framing included. Otherwise the content is
//! taken out of its framing and put into another one; its trailers go along. Credit goes back to an HTTP/2 peer only when
//! the other end has taken the payload.

use bytes::BytesMut;
use l7::http1::{Body, BodyFraming, Http1Error};
use tunnel::h2::{ErrorCode, Headers};

use super::Wire;
use super::books::Meter;
use super::reader::Reader;
use super::replay::Replay;
use super::side::{Place, Side, Sink};
use crate::access_log::cause::CloseCause;
use crate::link::{Payload, StreamEnd, StreamError, Taken, TunnelStream};
use crate::worker::Worker;

/// Content taken from an HTTP/2 stream at once.
pub(super) const TAKEN_BYTES_MAX: usize = 64 * 1024;

/// Why a body could not be passed on.
#[derive(Debug)]
pub(super) enum Broken {
    /// The side it comes from failed or lied about its framing.
    From(Fault),
    /// The side it goes to failed.
    To,
}

/// What the side that a message comes from did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) cause: CloseCause,
    /// It was not well-formed.
    pub(super) malformed: Option<Http1Error>,
    /// The code of its reset.
    pub(super) code: Option<ErrorCode>,
}

impl Fault {
    pub(super) fn of(cause: CloseCause) -> Self {
        Self { cause, malformed: None, code: None }
    }

    pub(super) fn malformed(error: Http1Error) -> Self {
        Self { cause: CloseCause::InvalidHttp, malformed: Some(error), code: None }
    }

    /// A stream that ended before its time; `cause` is what that means of its side.
    pub(super) fn of_stream(error: &StreamError, cause: CloseCause) -> Self {
        let code = match error {
            StreamError::Ended(StreamEnd::Reset(code)) => Some(*code),
            StreamError::Ended(StreamEnd::Link(_)) | StreamError::Send(_) => None,
        };
        Self { code, ..Self::of(cause) }
    }
}

/// The end that a body comes from, and how far it has been read.
#[derive(Debug)]
pub(super) enum Source<'a> {
    Http1 { wire: &'a Wire, reader: &'a mut Reader, body: Body },
    Http2(&'a TunnelStream),
}

/// A piece of a body.
enum Next<'s> {
    Owned(BytesMut),
    Held(Payload<'s>),
    End(Option<Headers>),
}

impl<'a> Source<'a> {
    pub(super) fn http1(wire: &'a Wire, reader: &'a mut Reader, framing: BodyFraming) -> Self {
        Self::Http1 { wire, reader, body: Body::new(framing) }
    }

    /// Whether all of it has been read, and it ended without trailers.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Http1 { body, .. } => body.is_done(),
            Self::Http2(stream) => stream.is_received() && !stream.has_trailers(),
        }
    }

    /// Whether its content can pass through to an end that speaks HTTP/1.1 as it comes.
    pub(super) fn is_http1(&self) -> bool {
        matches!(self, Self::Http1 { .. })
    }

    /// From here on bytes are only bytes, until the end of the connection.
    pub(super) fn become_opaque(&mut self) {
        if let Self::Http1 { body, .. } = self {
            *body = Body::new(BodyFraming::UntilClose);
        }
    }

    /// Keeps the next piece, or the end, in `replay` and passes nothing on.
    pub(super) async fn keep_next(&mut self, worker: &Worker, replay: &Replay) -> Result<(), Fault> {
        match self.next(worker, CloseCause::ClientReset, None).await {
            Ok(Next::Owned(content)) => replay.keep(&content),
            Ok(Next::Held(payload)) => {
                replay.keep(payload.bytes());
                if payload.is_last() {
                    replay.complete(None);
                }
            }
            Ok(Next::End(trailers)) => replay.complete(trailers.as_ref()),
            Err(Broken::From(fault)) => return Err(fault),
            Err(Broken::To) => return Err(Fault::of(CloseCause::ClientReset)),
        }
        Ok(())
    }

    /// The next piece; `failed` is what a failure of the source is called. Whatever waits for `to` leaves before the
    /// piece is waited for.
    async fn next(
        &mut self,
        worker: &Worker,
        failed: CloseCause,
        to: Option<&Sink<'_>>,
    ) -> Result<Next<'_>, Broken> {
        match self {
            Self::Http1 { wire, reader, body } => loop {
                if body.is_done() {
                    return Ok(Next::End(trailers(body)));
                }
                if reader.is_empty() && fill(worker, reader, wire, failed, to).await? == 0 {
                    body.close().map_err(|_| Broken::From(Fault::of(failed)))?;
                    continue;
                }
                let piece = body.step(reader.bytes()).map_err(malformed)?;
                let content = reader.split(piece.consumed, piece.payload);
                if !content.is_empty() {
                    return Ok(Next::Owned(content));
                }
            },
            Self::Http2(stream) => {
                let broken = |error| Broken::From(Fault::of_stream(&error, failed));
                let mut taken = stream.try_take(TAKEN_BYTES_MAX).map_err(broken)?;
                if matches!(taken, Taken::Nothing) {
                    flush(to).await?;
                    taken = stream.take(TAKEN_BYTES_MAX).await.map_err(broken)?;
                }
                Ok(match taken {
                    Taken::Payload(payload) => Next::Held(payload),
                    Taken::End(trailers) => Next::End(trailers),
                    // Not given by a call that waits.
                    Taken::Nothing => Next::Owned(BytesMut::new()),
                })
            }
        }
    }
}

/// One way of an exchange.
pub(super) struct Passage<'a, 'c> {
    pub(super) worker: &'a Worker,
    pub(super) to: Sink<'a>,
    /// What a failure of the source is called.
    pub(super) failed: CloseCause,
    pub(super) meter: Meter<'a, 'c>,
}

impl Passage<'_, '_> {
    /// Passes on what is left of a body, and its end. `replay` learns what goes by.
    pub(super) async fn run(&self, source: &mut Source<'_>, replay: Option<&Replay>) -> Result<(), Broken> {
        match source {
            Source::Http1 { wire, reader, body } if self.to.is_verbatim() => {
                if !body.is_done()
                    && let Some(replay) = replay
                {
                    replay.lose();
                }
                self.verbatim(wire, reader, body).await
            }
            _ => self.content(source, replay).await,
        }
    }

    /// Everything until the end of the connection, which is passed on.
    pub(super) async fn run_to_end(&self, source: &mut Source<'_>) -> Result<(), Broken> {
        self.run(source, None).await?;
        match self.to.side {
            Side::Http1(wire) => wire.finish().map_err(|_| Broken::To),
            // Its end is that of the message.
            Side::Http2(_) => Ok(()),
        }
    }

    async fn verbatim(&self, wire: &Wire, reader: &mut Reader, body: &mut Body) -> Result<(), Broken> {
        while !body.is_done() {
            if reader.is_empty() && fill(self.worker, reader, wire, self.failed, Some(&self.to)).await? == 0 {
                return body.close().map_err(|_| Broken::From(Fault::of(self.failed)));
            }
            let consumed = body.take(reader.bytes()).map_err(malformed)?;
            let run = reader.bytes().get(..consumed).unwrap_or_default();
            if !run.is_empty() {
                self.to.write(run, Place::Within).await?;
                self.meter.bytes(run.len());
            }
            reader.advance(consumed);
        }
        self.to.flush().await
    }

    async fn content(&self, source: &mut Source<'_>, replay: Option<&Replay>) -> Result<(), Broken> {
        if let Source::Http1 { body, .. } = source {
            body.keep_trailers();
        }
        loop {
            let last = match source.next(self.worker, self.failed, Some(&self.to)).await? {
                Next::Owned(content) => self.piece(&content, None, replay).await?,
                Next::Held(payload) => self.piece(payload.bytes(), Some(&payload), replay).await?,
                Next::End(trailers) => {
                    replay.inspect(|replay| replay.complete(trailers.as_ref()));
                    if let Some(trailers) = &trailers {
                        self.meter.last_fields(trailers);
                    }
                    return self.to.end(trailers).await;
                }
            };
            if last == Place::Last {
                return Ok(());
            }
        }
    }

    /// One piece; `Last` if nothing follows, not even trailers.
    async fn piece(
        &self,
        content: &[u8],
        held: Option<&Payload<'_>>,
        replay: Option<&Replay>,
    ) -> Result<Place, Broken> {
        let is_last = held.is_some_and(Payload::is_last);
        let place = if is_last { Place::Last } else { Place::Within };
        replay.inspect(|replay| {
            replay.keep(content);
            if is_last {
                replay.complete(None);
            }
        });
        self.meter.content(content);
        self.to.write(content, place).await?;
        self.meter.bytes(content.len());
        Ok(place)
    }
}

/// Reads more; what waits for `to` leaves before.
async fn fill(
    worker: &Worker,
    reader: &mut Reader,
    wire: &Wire,
    failed: CloseCause,
    to: Option<&Sink<'_>>,
) -> Result<usize, Broken> {
    flush(to).await?;
    reader.fill(worker, wire).await.map_err(|_| Broken::From(Fault::of(failed)))
}

async fn flush(to: Option<&Sink<'_>>) -> Result<(), Broken> {
    match to {
        Some(to) => to.flush().await,
        None => Ok(()),
    }
}

fn malformed(error: Http1Error) -> Broken {
    Broken::From(Fault::malformed(error))
}

/// The trailer section of a body that is done, if it has fields.
fn trailers(body: &mut Body) -> Option<Headers> {
    let mut headers = Headers::trailers();
    for (name, value) in body.take_trailers() {
        // What concerns one connection stays behind.
        let _left_behind = headers.push(name.to_ascii_lowercase(), value);
    }
    (headers.field_count() > 0).then_some(headers)
}
