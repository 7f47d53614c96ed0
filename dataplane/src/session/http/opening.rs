//! The beginning of a request's body, read before the request is decided: for authorizers that are shown it.
//!
//! What is read is kept in the request's [`Replay`], from which it goes to the upstream before the rest.

use std::time::Duration;

use bytes::Bytes;
use l7::check::{BODY_TOO_LARGE_STATUS, Shown};
use l7::http1::{Body, BodyFraming};
use l7::ir::CheckBody;
use tunnel::h2::Headers;

use super::Wire;
use super::body::{Source, TAKEN_BYTES_MAX};
use super::head::Received;
use super::reader::Reader;
use super::replay::Replay;
use super::reply::{Reply, invalid};
use crate::access_log::cause::CloseCause;
use crate::link::TunnelStream;
use crate::worker::Worker;

/// From the question for a body to as much of it as is wanted.
const BODY_TIMEOUT: Duration = Duration::from_mins(1);

const CONTINUE: u16 = 100;

const TOO_LARGE: Reply = Reply::text(BODY_TOO_LARGE_STATUS, "Payload Too Large", CloseCause::LimitReached);
const TOO_SLOW: Reply = Reply::text(408, "request body timed out", CloseCause::RequestTimeout);
const NO_ROOM: Reply = Reply::text(503, "out of memory", CloseCause::LimitReached);
const GONE: Reply = Reply::text(400, "malformed request", CloseCause::ClientReset);

/// A request whose head has been read, and where its body is.
pub(in crate::session) struct Opening<'a> {
    pub(super) worker: &'a Worker,
    pub(super) from: From<'a>,
    pub(super) replay: &'a Replay,
}

pub(super) enum From<'a> {
    /// `body` is how far it was read, once it was looked at.
    Http1 {
        wire: &'a Wire,
        reader: &'a mut Reader,
        body: Option<Body>,
    },
    Http2(&'a TunnelStream),
}

impl<'a> Opening<'a> {
    pub(super) fn http1(
        worker: &'a Worker,
        wire: &'a Wire,
        reader: &'a mut Reader,
        replay: &'a Replay,
    ) -> Self {
        Self { worker, from: From::Http1 { wire, reader, body: None }, replay }
    }

    pub(super) fn http2(worker: &'a Worker, stream: &'a TunnelStream, replay: &'a Replay) -> Self {
        Self { worker, from: From::Http2(stream), replay }
    }

    /// What is left of the body.
    pub(super) fn rest(self, framing: BodyFraming) -> Source<'a> {
        match self.from {
            From::Http1 { wire, reader, body: Some(body) } => Source::Http1 { wire, reader, body },
            From::Http1 { wire, reader, body: None } => Source::http1(wire, reader, framing),
            From::Http2(stream) => Source::Http2(stream),
        }
    }

    /// Reads as much of the body as `wanted` says; `None` for a request without one. An error is the answer.
    pub(super) async fn body(
        &mut self,
        request: &Received,
        wanted: CheckBody,
    ) -> Result<Option<(Bytes, Shown)>, Reply> {
        let max = wanted.bytes_max.get() as usize;
        let read = request.read(|request, _| {
            let waits = request.headers.iter().any(|it| {
                it.name.eq_ignore_ascii_case("expect") && it.value.eq_ignore_ascii_case(b"100-continue")
            });
            // What follows a switch of protocols is no body.
            let framing = if request.upgrade.is_some() { BodyFraming::None } else { request.body };
            (framing, waits)
        });
        let (framing, waits) = read.map_err(invalid)?;
        match framing {
            BodyFraming::None => return Ok(None),
            BodyFraming::Length(length) if length > max as u64 && !wanted.allow_partial => {
                return Err(TOO_LARGE);
            }
            _ => {}
        }
        if waits && self.replay.is_fresh() {
            self.ask_for_body().await?;
        }
        // Enough to know whether there is more.
        let enough = if wanted.allow_partial { max } else { max + 1 };
        let reading = self.read(framing, enough);
        monoio::time::timeout(BODY_TIMEOUT, reading).await.unwrap_or(Err(TOO_SLOW))?;
        let is_complete = self.replay.is_complete();
        self.replay.with_content(|content| match content.get(..max) {
            Some(_) if content.len() > max && !wanted.allow_partial => Err(TOO_LARGE),
            Some(beginning) if content.len() > max || !is_complete => {
                Ok(Some((Bytes::copy_from_slice(beginning), Shown::Beginning)))
            }
            _ => Ok(Some((Bytes::copy_from_slice(content), Shown::Whole))),
        })
    }

    /// A client that waits to be asked for the body is asked.
    async fn ask_for_body(&mut self) -> Result<(), Reply> {
        let asked = match &mut self.from {
            From::Http1 { reader, .. } if !reader.is_empty() => true,
            From::Http1 { wire, .. } => wire.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok(),
            From::Http2(stream) => {
                Headers::response(CONTINUE).is_ok_and(|head| stream.respond(&head, false).is_ok())
            }
        };
        if asked { Ok(()) } else { Err(GONE) }
    }

    async fn read(&mut self, framing: BodyFraming, enough: usize) -> Result<(), Reply> {
        self.replay.make_room(enough + TAKEN_BYTES_MAX);
        let replay = self.replay;
        match &mut self.from {
            From::Http1 { wire, reader, body } => {
                let begun = body.take().unwrap_or_else(|| {
                    let mut body = Body::new(framing);
                    body.keep_trailers();
                    body
                });
                let mut source = Source::Http1 { wire, reader, body: begun };
                let read = source.read_until(self.worker, replay, enough).await;
                if let Source::Http1 { body: left, .. } = source {
                    *body = Some(left);
                }
                read
            }
            From::Http2(stream) => Source::Http2(stream).read_until(self.worker, replay, enough).await,
        }
    }
}

impl Source<'_> {
    /// Reads into `replay` until that holds enough, or all.
    async fn read_until(&mut self, worker: &Worker, replay: &Replay, enough: usize) -> Result<(), Reply> {
        while !replay.is_complete() && (self.is_done() || replay.with_content(<[u8]>::len) < enough) {
            self.keep_next(worker, replay).await.map_err(|fault| match fault.malformed {
                Some(error) => invalid(error),
                None => GONE,
            })?;
            if !replay.is_possible() {
                return Err(NO_ROOM);
            }
        }
        Ok(())
    }
}
