//! Tying a stream to an application's socket: the fast path of plain TCP through the tunnel.
//!
//! From the tunnel to the application nothing runs here: the link's reader writes to the socket ([`super::deliver`]).
//! From the application to the tunnel one task per connection waits for bytes, receives them into the worker's buffer,
//! no more than the tunnel takes at once, and appends them to the session.

use std::fmt;
use std::future::Future;
use std::io;
use std::rc::Rc;

use tunnel::h2::ErrorCode;

use super::stream::{Sink, Stream, StreamEnd, StreamError, TunnelStream};
use crate::net::{ByteCounters, Socket};

/// How a relayed stream ended.
#[derive(Debug)]
pub enum StreamRelayEnd {
    /// Both directions reached their end.
    Complete,
    /// The stream or its tunnel was cut.
    Stream(StreamEnd),
    /// The application's connection failed.
    Application(io::Error),
}

impl fmt::Display for StreamRelayEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("complete"),
            Self::Stream(end) => end.fmt(f),
            Self::Application(error) => write!(f, "the application's connection failed: {error}"),
        }
    }
}

/// One step from the application to the tunnel.
enum Step {
    Moved(usize),
    /// The application has nothing to say.
    Nothing,
    /// The tunnel takes nothing now; the stream will be woken when it does.
    NoRoom,
    End,
}

enum Failure {
    Stream(StreamEnd),
    Application(io::Error),
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Ended(end) => Self::Stream(end),
            // The engine has forgotten the stream: it has been reset, and the event is on its way.
            StreamError::Send(_) => Self::Stream(StreamEnd::Reset(ErrorCode::STREAM_CLOSED)),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Application(error)
    }
}

impl TunnelStream {
    /// Relays between the stream and `socket` until both directions have ended or one side fails, and closes both.
    ///
    /// `counters` are live; "sent" is what the socket gave to the tunnel when `socket` is a downstream. For an upstream
    /// socket (server role) pass `flow` accordingly: see [`Flow`].
    pub fn relay(
        self,
        socket: Socket,
        flow: Flow,
        counters: &Rc<ByteCounters>,
    ) -> impl Future<Output = StreamRelayEnd> + 'static {
        let sink = Rc::new(Sink { socket, counters: counters.clone(), flow });
        self.stream.attach(&sink);
        let relay = Relay { tunnel: self, sink };
        async move {
            let stream = &relay.tunnel.stream;
            let result = match relay.send().await {
                Err(Failure::Stream(end)) if !end.is_orderly() => Err(Failure::Stream(end)),
                // An ordinary end of the peer's leaves to the application what came before.
                Ok(()) | Err(Failure::Stream(_)) => stream.wait_delivered().await,
                failed => failed,
            };
            stream.conclude(result)
        }
    }
}

/// What a relay needs for as long as it lives. The futures borrow it as a whole, for each idle connection has one and
/// each argument of an async function is stored twice.
struct Relay {
    tunnel: TunnelStream,
    sink: Rc<Sink>,
}

impl Relay {
    /// The loop from the application to the tunnel, until the application ends its direction.
    async fn send(&self) -> Result<(), Failure> {
        loop {
            self.sink.socket.readable().await?;
            loop {
                match self.step()? {
                    Step::Moved(_) | Step::Nothing => break,
                    Step::NoRoom => self.tunnel.stream.outbound.wait().await,
                    Step::End => return Ok(()),
                }
            }
        }
    }

    fn step(&self) -> Result<Step, Failure> {
        let step = self.tunnel.stream.send_once(&self.sink.socket)?;
        if let Step::Moved(bytes) = step {
            self.sink.count_taken(bytes);
        }
        Ok(step)
    }
}

/// On which side of the tunnel the relayed socket is, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The socket is the client's: what it gives is sent.
    Downstream,
    /// The socket is the server's: what it gives is received.
    Upstream,
}

impl Stream {
    fn conclude(&self, result: Result<(), Failure>) -> StreamRelayEnd {
        match result {
            Ok(()) => StreamRelayEnd::Complete,
            Err(Failure::Stream(end)) if end.is_orderly() => StreamRelayEnd::Complete,
            Err(Failure::Stream(end)) => StreamRelayEnd::Stream(end),
            Err(Failure::Application(error)) => {
                self.reset(ErrorCode::CONNECT_ERROR);
                StreamRelayEnd::Application(error)
            }
        }
    }

    /// From now on payload goes to the socket, what is held first.
    fn attach(self: &Rc<Self>, sink: &Rc<Sink>) {
        let attached = self.sink.set(sink.clone());
        debug_assert!(attached.is_ok(), "a relay takes its stream, so there is one in a stream's life");
        if self.has_ended() {
            return self.abort_sink();
        }
        if self.pending.borrow().is_empty() {
            self.pass_end_on();
        } else {
            self.drain_to(sink.clone());
        }
    }

    fn send_once(self: &Rc<Self>, socket: &Socket) -> Result<Step, Failure> {
        // What the tunnel does not take stays in the application's socket: that is the back-pressure.
        let room = self.room()?;
        if room == 0 {
            return Ok(Step::NoRoom);
        }
        self.link().worker().lend(|buffer| {
            let limit = room.min(buffer.len());
            let buffer = buffer.get_mut(..limit).unwrap_or_default();
            match socket.try_recv(buffer)? {
                None => Ok(Step::Nothing),
                Some(0) => {
                    self.check()?;
                    self.send(&[], true)?;
                    Ok(Step::End)
                }
                Some(count) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    let sent = self.send(bytes, false)?;
                    debug_assert_eq!(sent, count, "no more was received than the tunnel takes");
                    Ok(Step::Moved(sent))
                }
            }
        })
    }

    /// Waits until the peer has ended its direction and the application has got all of it.
    async fn wait_delivered(&self) -> Result<(), Failure> {
        loop {
            if self.received_end.get() && self.pending.borrow().is_empty() && !self.draining.get() {
                return Ok(());
            }
            if self.is_cut() {
                self.check()?;
            }
            self.inbound.wait().await;
        }
    }
}
