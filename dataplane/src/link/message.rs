//! Streams as messages: heads, payload as it lies, trailers. For those who forward HTTP, where a tunnel has only bytes.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::BytesMut;
use tunnel::h2::{ErrorCode, Headers};

use super::stream::{Stream, StreamEnd, StreamError, TunnelStream};

/// Interim responses kept for one reader. More than that say nothing new.
const INTERIM_MAX: usize = 16;

/// The heads of a stream beside its first.
#[derive(Default)]
pub(super) struct Heads {
    interim: VecDeque<Headers>,
    trailers: Option<Headers>,
}

/// What a stream holds for its reader.
#[derive(Debug)]
pub enum Taken<'s> {
    Payload(Payload<'s>),
    /// The message is complete, with its trailers if it has any.
    End(Option<Headers>),
    Nothing,
}

/// Payload that was taken and not passed on yet: the peer gets its credit back when this is dropped.
#[derive(Debug)]
pub struct Payload<'s> {
    stream: &'s Rc<Stream>,
    bytes: BytesMut,
}

impl Payload<'_> {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the message ends with it, without trailers.
    pub fn is_last(&self) -> bool {
        let has_trailers = self.stream.heads.borrow().as_ref().is_some_and(|heads| heads.trailers.is_some());
        self.stream.received_end.get() && self.stream.pending.borrow().is_empty() && !has_trailers
    }
}

impl Drop for Payload<'_> {
    fn drop(&mut self) {
        let link = self.stream.link();
        link.worker().memory().give_back(self.bytes.len());
        link.write(|session| session.release(self.stream.id(), self.bytes.len()));
    }
}

impl Stream {
    /// An interim response has arrived. False if there are too many.
    pub(super) fn keep_interim(&self, headers: Headers) -> bool {
        let mut heads = self.heads.borrow_mut();
        let heads = heads.get_or_insert_default();
        if heads.interim.len() == INTERIM_MAX {
            return false;
        }
        heads.interim.push_back(headers);
        self.inbound.raise();
        true
    }

    /// Trailers have arrived; the end of the stream follows.
    pub(super) fn keep_trailers(&self, headers: Headers) {
        self.heads.borrow_mut().get_or_insert_default().trailers = Some(headers);
    }

    fn next_interim(&self) -> Option<Headers> {
        self.heads.borrow_mut().as_mut()?.interim.pop_front()
    }
}

impl TunnelStream {
    /// The next head of the response: interim ones first, the final one last (client role).
    pub async fn response(&self) -> Result<Headers, StreamError> {
        loop {
            if let Some(headers) = self.stream.next_interim() {
                return Ok(headers);
            }
            if let Some(headers) = self.stream.take_answer() {
                return Ok(headers);
            }
            self.stream.check()?;
            self.stream.inbound.wait().await;
        }
    }

    /// Sends a head of the response (server role).
    pub fn respond(&self, headers: &Headers, end_stream: bool) -> Result<(), StreamError> {
        self.stream.respond(headers, end_stream)
    }

    /// Takes up to `limit` bytes of what is there.
    pub fn try_take(&self, limit: usize) -> Result<Taken<'_>, StreamError> {
        let stream = &self.stream;
        {
            let mut pending = stream.pending.borrow_mut();
            if !pending.is_empty() {
                let bytes = if pending.len() <= limit {
                    std::mem::take(&mut *pending)
                } else {
                    pending.split_to(limit)
                };
                return Ok(Taken::Payload(Payload { stream, bytes }));
            }
        }
        if stream.received_end.get() {
            let trailers = stream.heads.borrow_mut().as_mut().and_then(|heads| heads.trailers.take());
            return Ok(Taken::End(trailers));
        }
        stream.check().map(|()| Taken::Nothing)
    }

    /// Takes up to `limit` bytes, or the end, when there is something.
    pub async fn take(&self, limit: usize) -> Result<Taken<'_>, StreamError> {
        loop {
            match self.try_take(limit)? {
                Taken::Nothing => self.stream.inbound.wait().await,
                taken => return Ok(taken),
            }
        }
    }

    /// Whether the peer has ended its direction and all of it has been taken, trailers aside.
    pub fn is_received(&self) -> bool {
        self.stream.received_end.get() && self.stream.pending.borrow().is_empty()
    }

    /// Whether trailers wait at the end of what has been received.
    pub fn has_trailers(&self) -> bool {
        self.stream.heads.borrow().as_ref().is_some_and(|heads| heads.trailers.is_some())
    }

    /// As [`TunnelStream::write_all`]; the end of our direction goes with the last byte.
    pub async fn write_last(&self, mut bytes: &[u8]) -> Result<(), StreamError> {
        loop {
            let sent = self.stream.send(bytes, true)?;
            if sent == bytes.len() {
                return Ok(());
            }
            if sent == 0 {
                self.stream.outbound.wait().await;
            }
            bytes = bytes.get(sent..).unwrap_or_default();
        }
    }

    /// Ends our direction with trailers.
    pub fn send_trailers(&self, headers: &Headers) -> Result<(), StreamError> {
        self.stream.send_trailers(headers)
    }

    /// Ends both directions; what has been received can still be taken only if its end has come, too. Does nothing to a
    /// stream that has ended.
    pub fn stop(&self, code: ErrorCode) {
        self.stream.reset(code);
    }

    /// Why the stream ended before its time, if it did.
    pub fn broken(&self) -> Option<StreamEnd> {
        self.stream.ended()
    }

    /// Resolves when the stream has ended before its time.
    pub async fn wait_broken(&self) -> StreamEnd {
        loop {
            if let Some(end) = self.stream.ended() {
                return end;
            }
            self.stream.inbound.wait().await;
        }
    }
}
