//! Tying two streams together: plain TCP that came through one tunnel and goes on through another.
//!
//! Nothing is copied in between: what one stream holds is appended to the other's session, no more than that takes, and
//! only then is its credit given back. So a side that does not read holds up its own peer and nobody else.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::{Buf, BytesMut};
use futures::future::{Either, select};
use tunnel::h2::ErrorCode;

use super::stream::{Stream, StreamEnd, StreamError, TunnelStream};
use crate::net::ByteCounters;

/// Bytes of one direction that are passed on before the others of the worker get their turn.
const BYTES_IN_A_ROW_MAX: usize = 256 * 1024;

/// How two joined streams ended.
#[derive(Debug)]
pub enum JoinEnd {
    /// Both directions reached their end.
    Complete,
    /// The client's stream or tunnel was cut.
    Downstream(StreamEnd),
    /// The server's was.
    Upstream(StreamEnd),
}

/// One direction's end before its time: at the stream it comes from, or at the one it goes to.
enum Broken {
    From(StreamEnd),
    To(StreamEnd),
}

impl TunnelStream {
    /// Relays between this stream, the client's, and `upstream` until both directions have ended or one side fails, and
    /// closes both. A side that was cut is a cut of the other.
    pub async fn join(self, upstream: Self, counters: &ByteCounters) -> JoinEnd {
        let (down, up) = (&self.stream, &upstream.stream);
        let sending = pin!(pump(down, up, |bytes| counters.sent.set(counters.sent.get() + bytes)));
        let receiving = pin!(pump(up, down, |bytes| counters.received.set(counters.received.get() + bytes)));
        let (first, second) = match select(sending, receiving).await {
            Either::Left((Ok(()), receiving)) => (Ok(()), receiving.await.map_err(of_receiving)),
            Either::Right((Ok(()), sending)) => (Ok(()), sending.await.map_err(of_sending)),
            Either::Left((Err(broken), _)) => (Err(of_sending(broken)), Ok(())),
            Either::Right((Err(broken), _)) => (Err(of_receiving(broken)), Ok(())),
        };
        let Err(end) = first.and(second) else { return JoinEnd::Complete };
        for side in [&self, &upstream] {
            side.cutter().cut(ErrorCode::CONNECT_ERROR);
        }
        end
    }

    /// Shows what has been received and not been read.
    pub fn peek<R>(&self, look: impl FnOnce(&[u8]) -> R) -> R {
        look(&self.stream.pending.borrow())
    }

    /// Waits until more than `count` bytes have been received, or nothing more will be.
    pub async fn received_more_than(&self, count: usize) {
        let stream = &self.stream;
        while stream.pending.borrow().len() <= count && !stream.received_end.get() && !stream.has_ended() {
            stream.inbound.wait().await;
        }
    }
}

fn of_sending(broken: Broken) -> JoinEnd {
    match broken {
        Broken::From(end) => JoinEnd::Downstream(end),
        Broken::To(end) => JoinEnd::Upstream(end),
    }
}

fn of_receiving(broken: Broken) -> JoinEnd {
    match broken {
        Broken::From(end) => JoinEnd::Upstream(end),
        Broken::To(end) => JoinEnd::Downstream(end),
    }
}

/// One direction, to its end.
async fn pump(from: &Rc<Stream>, to: &Rc<Stream>, count: impl Fn(u64)) -> Result<(), Broken> {
    let worker = from.link().worker().clone();
    let mut in_a_row = 0;
    loop {
        match step(from, to)? {
            Step::Moved(bytes) => {
                count(bytes as u64);
                in_a_row += bytes;
                if in_a_row >= BYTES_IN_A_ROW_MAX {
                    in_a_row = 0;
                    worker.yield_now().await;
                }
            }
            Step::End => return Ok(()),
            Step::Nothing => change(from, to).await,
        }
    }
}

enum Step {
    Moved(usize),
    /// The peer has nothing to say, or the other side takes nothing now.
    Nothing,
    End,
}

fn step(from: &Rc<Stream>, to: &Rc<Stream>) -> Result<Step, Broken> {
    if let Some(end) = from.ended().filter(|end| !end.is_orderly()) {
        return Err(Broken::From(end));
    }
    if let Some(end) = to.ended().filter(|end| !end.is_orderly()) {
        return Err(Broken::To(end));
    }
    if from.pending.borrow().is_empty() {
        // An ordinary end of the peer's leaves to the other side what came before.
        if !from.received_end.get() && !from.has_ended() {
            return Ok(Step::Nothing);
        }
        return done(to, to.send(&[], true)).map(|_| Step::End);
    }
    let Some(room) = done(to, to.room())? else { return Ok(Step::End) };
    if room == 0 {
        return Ok(Step::Nothing);
    }
    let sent = {
        let pending = from.pending.borrow();
        let piece = pending.get(..room.min(pending.len())).unwrap_or_default();
        to.send(piece, false)
    };
    let Some(sent) = done(to, sent)? else { return Ok(Step::End) };
    if sent == 0 {
        return Ok(Step::Nothing);
    }
    {
        let mut pending = from.pending.borrow_mut();
        pending.advance(sent);
        if pending.is_empty() {
            *pending = BytesMut::new();
        }
    }
    let link = from.link();
    link.worker().memory().give_back(sent);
    link.write(|session| session.release(from.id(), sent));
    Ok(Step::Moved(sent))
}

/// `None` where the side that is sent to has ended in order: it wants nothing more.
fn done<T>(to: &Stream, result: Result<T, StreamError>) -> Result<Option<T>, Broken> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StreamError::Ended(end)) if end.is_orderly() => Ok(None),
        Err(StreamError::Ended(end)) => Err(Broken::To(end)),
        // The engine has forgotten the stream: it has been reset, and the event is on its way.
        Err(StreamError::Send(_)) => {
            Err(Broken::To(to.ended().unwrap_or(StreamEnd::Reset(ErrorCode::STREAM_CLOSED))))
        }
    }
}

/// Waits until something has happened to either side of a direction: who waits for bytes must see the other side's cut,
/// and who waits for room must see that of the side the bytes come from.
async fn change(from: &Stream, to: &Stream) {
    poll_fn(|context| {
        let seen = [from.inbound.poll_wait(context), to.outbound.poll_wait(context)];
        if seen.iter().any(Poll::is_ready) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
