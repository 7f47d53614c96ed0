//! Relaying between two plain sockets by splice(2), without the bytes ever entering this program.
//!
//! Each direction is its own loop, so half-close is kept: the end of one stream is passed on as a shutdown while
//! the other direction goes on. A pipe is held only while bytes are in flight.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use rustix::pipe::{SpliceFlags, splice};

use super::descriptor::would_block;
use super::exhaustion::{is_exhausted, rest};
use super::{Pipe, Socket};
use crate::worker::Worker;

/// Full pipes moved in a row before other tasks get their turn.
const MOVES_IN_A_ROW_MAX: u32 = 8;

/// Live byte counts of a relayed connection, readable while it runs.
#[derive(Debug, Default)]
pub struct ByteCounters {
    /// From the downstream to the upstream.
    pub sent: Cell<u64>,
    /// From the upstream to the downstream.
    pub received: Cell<u64>,
}

/// How a relay ended.
#[derive(Debug)]
pub enum RelayEnd {
    /// Both directions reached their end.
    Complete,
    /// The socket named first failed; the other was reset.
    Downstream(io::Error),
    Upstream(io::Error),
}

/// Which side of a direction failed.
enum Failed {
    From(io::Error),
    To(io::Error),
}

/// Relays until both directions have ended or one socket fails. On a failure the other socket is set to be reset, so
/// that its peer does not take a cut stream for a whole one.
pub async fn relay(
    worker: &Worker,
    downstream: &Socket,
    upstream: &Socket,
    counters: &Rc<ByteCounters>,
) -> RelayEnd {
    let sending = direction(worker, downstream, upstream, &counters.sent);
    let receiving = direction(worker, upstream, downstream, &counters.received);
    let end = match futures::future::try_join(
        async { sending.await.map_err(|failed| failed.end(RelayEnd::Downstream, RelayEnd::Upstream)) },
        async { receiving.await.map_err(|failed| failed.end(RelayEnd::Upstream, RelayEnd::Downstream)) },
    )
    .await
    {
        Ok(((), ())) => RelayEnd::Complete,
        Err(end) => end,
    };
    match &end {
        RelayEnd::Complete => {}
        RelayEnd::Downstream(_) => upstream.reset_on_close(),
        RelayEnd::Upstream(_) => downstream.reset_on_close(),
    }
    end
}

impl Failed {
    fn end(self, from: fn(io::Error) -> RelayEnd, to: fn(io::Error) -> RelayEnd) -> RelayEnd {
        match self {
            Self::From(error) => from(error),
            Self::To(error) => to(error),
        }
    }
}

async fn direction(worker: &Worker, from: &Socket, to: &Socket, count: &Cell<u64>) -> Result<(), Failed> {
    let mut moves_in_a_row = 0;
    loop {
        from.readable().await.map_err(Failed::From)?;
        let pipe = take_pipe(worker).await.map_err(Failed::From)?;
        while let Some(filled) = fill(from, &pipe).map_err(Failed::From)? {
            if filled == 0 {
                worker.pipes().give_back(pipe);
                return to.shutdown_write().map_err(Failed::To);
            }
            drain(&pipe, to, filled).await.map_err(Failed::To)?;
            count.set(count.get() + filled as u64);
            moves_in_a_row += 1;
            if moves_in_a_row >= MOVES_IN_A_ROW_MAX {
                moves_in_a_row = 0;
                worker.yield_now().await;
            }
            // A pipe that was not filled has emptied the socket: wait again rather than ask in vain.
            if filled < pipe.capacity / 2 {
                break;
            }
        }
        worker.pipes().give_back(pipe);
    }
}

/// A pipe to move bytes with. Without descriptors for one the bytes wait where they are.
async fn take_pipe(worker: &Worker) -> io::Result<Pipe> {
    loop {
        match worker.pipes().take() {
            Err(error) if is_exhausted(&error) => rest().await,
            taken => return taken,
        }
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

fn fill(from: &Socket, pipe: &Pipe) -> io::Result<Option<usize>> {
    would_block(|| splice(from, None, &pipe.writer, None, pipe.capacity, FLAGS))
}

async fn drain(pipe: &Pipe, to: &Socket, mut left: usize) -> io::Result<()> {
    while left > 0 {
        match would_block(|| splice(&pipe.reader, None, to, None, left, FLAGS))? {
            Some(moved) => left = left.saturating_sub(moved),
            None => to.writable().await?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::on_each_driver;
    use crate::net::{ConnectOptions, ListenOptions, Listener, connect};
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    const BYTES: usize = 3_000_001;

    fn pattern() -> Vec<u8> {
        (0..BYTES).map(|index| u8::try_from(index % 251).unwrap()).collect()
    }

    #[test]
    fn half_close_and_every_byte_pass_both_ways() {
        on_each_driver(|worker| async move {
            let server = TcpListener::bind("127.0.0.1:0").unwrap();
            let server_at = server.local_addr().unwrap();
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &ListenOptions::default()).unwrap();
            let at = listener.local_address().unwrap();
            // The server answers only after it has read the end of the request: half-close must arrive.
            let serving = std::thread::spawn(move || {
                let (mut socket, _) = server.accept().unwrap();
                let mut request = Vec::new();
                socket.read_to_end(&mut request).unwrap();
                socket.write_all(&request).unwrap();
            });
            let asking = std::thread::spawn(move || {
                let mut client = TcpStream::connect(at).unwrap();
                client.write_all(&pattern()).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).unwrap();
                assert!(answer == pattern());
            });
            let (downstream, _) = listener.accept().await.unwrap();
            let upstream = connect(server_at, &ConnectOptions::default()).await.unwrap();
            let counters = Rc::default();
            let end = relay(&worker, &downstream, &upstream, &counters).await;
            assert!(matches!(end, RelayEnd::Complete), "{end:?}");
            drop((downstream, upstream));
            serving.join().unwrap();
            asking.join().unwrap();
            assert_eq!((counters.sent.get(), counters.received.get()), (BYTES as u64, BYTES as u64));
        });
    }
}
