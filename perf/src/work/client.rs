//! The client's side of the work: closed loops of requests, new connections, bulk, idle connections.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::wire::{HEAD_BYTES, RESPONSE_HEAD_BYTES, RequestHead, block, is_pattern};
use crate::{Failure, sockets};

/// Where the work goes.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// Congestion control of the load's own sockets; `None` leaves the host's.
    pub(crate) congestion: Option<Rc<str>>,
}

/// Body lengths of one kind of request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes of the request, its head included.
    pub(crate) request: usize,
    /// Bytes of the response, its head included.
    pub(crate) response: usize,
}

impl Shape {
    fn head(self, sequence: u32) -> Result<RequestHead, Failure> {
        Ok(RequestHead {
            sequence,
            request_body: u32::try_from(self.request.saturating_sub(HEAD_BYTES))?,
            response_body: u32::try_from(self.response.saturating_sub(RESPONSE_HEAD_BYTES))?,
        })
    }
}

/// One connection that has a request in flight at most.
#[derive(Debug)]
pub(crate) struct Caller {
    stream: TcpStream,
    block: Rc<Vec<u8>>,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Caller {
    pub(crate) async fn connect(target: &Target, block: Rc<Vec<u8>>) -> Result<Self, Failure> {
        let stream = sockets::connect(target.address, target.congestion.as_deref()).await?;
        Ok(Self { stream, block, sequence: 0, buffer: Vec::new() })
    }

    /// Sends a small request and checks the whole response.
    pub(crate) async fn call(&mut self, shape: Shape) -> Result<(), Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let head = shape.head(self.sequence)?;
        self.buffer.clear();
        self.buffer.extend_from_slice(&head.encode());
        self.buffer.extend_from_slice(&self.block[..head.request_body as usize]);
        self.stream.write_all(&self.buffer).await?;
        let length = RESPONSE_HEAD_BYTES + head.response_body as usize;
        self.buffer.resize(length.max(HEAD_BYTES), 0);
        self.stream.read_exact(&mut self.buffer[..length]).await?;
        let (sequence, body) = self.buffer[..length].split_at(RESPONSE_HEAD_BYTES);
        if sequence != self.sequence.to_le_bytes() || !is_pattern(&self.block, 0, body) {
            return Err("a response is wrong".into());
        }
        Ok(())
    }

    /// Receives `bytes` as one response, or sends them as one request.
    pub(crate) async fn bulk(&mut self, bytes: u32, direction: Direction) -> Result<(), Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let (request_body, response_body) = match direction {
            Direction::Down => (0, bytes),
            Direction::Up => (bytes, 0),
        };
        let head = RequestHead { sequence: self.sequence, request_body, response_body };
        self.stream.write_all(&head.encode()).await?;
        let mut rest = request_body as usize;
        while rest > 0 {
            let run = rest.min(self.block.len());
            self.stream.write_all(&self.block[..run]).await?;
            rest -= run;
        }
        let mut sequence = [0; RESPONSE_HEAD_BYTES];
        self.stream.read_exact(&mut sequence).await?;
        self.buffer.resize(512 * 1024, 0);
        let mut position = 0;
        while position < u64::from(response_body) {
            let room = usize::try_from(u64::from(response_body) - position)?.min(self.buffer.len());
            let count = self.stream.read(&mut self.buffer[..room]).await?;
            if count == 0 || !is_pattern(&self.block, position, &self.buffer[..count]) {
                return Err("a bulk body is cut or wrong".into());
            }
            position += count as u64;
        }
        if sequence != self.sequence.to_le_bytes() {
            return Err("a bulk response is out of order".into());
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Down,
    Up,
}

/// Requests done and the time they took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) count: u64,
    pub(crate) elapsed: Duration,
}

/// `connections` keep-alive connections, each a closed loop, for `duration`. They are opened before the clock starts.
pub(crate) async fn closed_loop(
    target: Target,
    connections: usize,
    shape: Shape,
    duration: Duration,
) -> Result<Done, Failure> {
    let callers = open_idle(target, connections, shape).await?;
    repeat(callers, duration, async move |caller| caller.call(shape).await).await
}

/// `concurrency` loops, each of which opens a connection, sends one request, reads the response and closes.
pub(crate) async fn new_connections(
    target: Target,
    concurrency: usize,
    shape: Shape,
    duration: Duration,
) -> Result<Done, Failure> {
    let block = Rc::new(block());
    Caller::connect(&target, block.clone()).await?.call(shape).await?;
    repeat(vec![block; concurrency], duration, async move |block| {
        Caller::connect(&target, block.clone()).await?.call(shape).await
    })
    .await
}

/// As [`closed_loop`], against a server that sends back the very bytes it gets.
pub(crate) async fn echo_loop(
    target: Target,
    connections: usize,
    bytes: usize,
    duration: Duration,
) -> Result<Done, Failure> {
    let block = Rc::new(block());
    let mut streams = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut stream = sockets::connect(target.address, target.congestion.as_deref()).await?;
        let mut buffer = vec![0; bytes];
        echo_once(&mut stream, &block[..bytes], &mut buffer).await?;
        streams.push((stream, buffer));
    }
    repeat(streams, duration, async move |(stream, buffer)| echo_once(stream, &block[..bytes], buffer).await)
        .await
}

async fn echo_once(stream: &mut TcpStream, bytes: &[u8], buffer: &mut [u8]) -> Result<(), Failure> {
    stream.write_all(bytes).await?;
    stream.read_exact(buffer).await?;
    if buffer == bytes { Ok(()) } else { Err("an echo is wrong".into()) }
}

/// Moves `bytes` over each of `streams` connections at once.
pub(crate) async fn bulk(
    target: Target,
    streams: usize,
    bytes: u32,
    direction: Direction,
) -> Result<Done, Failure> {
    let block = Rc::new(block());
    let mut callers = Vec::with_capacity(streams);
    for _ in 0..streams {
        let mut caller = Caller::connect(&target, block.clone()).await?;
        caller.bulk(1 << 20, direction).await?;
        callers.push(caller);
    }
    let done =
        repeat(callers, Duration::ZERO, async move |caller| caller.bulk(bytes, direction).await).await?;
    Ok(Done { count: done.count * u64::from(bytes), ..done })
}

/// Does `work` with each of `states` in a loop of its own, at least once, until `duration` is over. Any failure fails
/// the whole.
async fn repeat<S: 'static>(
    states: Vec<S>,
    duration: Duration,
    work: impl AsyncFn(&mut S) -> Result<(), Failure> + 'static,
) -> Result<Done, Failure> {
    let (count, work) = (Rc::new(Cell::new(0)), Rc::new(work));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for mut state in states {
        let (count, work) = (count.clone(), work.clone());
        tasks.spawn_local(async move {
            loop {
                work(&mut state).await.map_err(|error| error.to_string())?;
                count.set(count.get() + 1);
                if start.elapsed() >= duration {
                    return Ok::<(), String>(());
                }
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(Done { count: count.get(), elapsed: start.elapsed() })
}

/// Opens `count` connections, each proven by one request, and hands them back still open.
pub(crate) async fn open_idle(target: Target, count: usize, shape: Shape) -> Result<Vec<Caller>, Failure> {
    let block = Rc::new(block());
    let mut callers = Vec::with_capacity(count);
    for _ in 0..count {
        let mut caller = Caller::connect(&target, block.clone()).await?;
        caller.call(shape).await?;
        caller.buffer = Vec::new();
        callers.push(caller);
    }
    Ok(callers)
}
