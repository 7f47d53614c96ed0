//! The client's side of the work: closed loops of requests, new connections, bulk, idle connections.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Failure;
use crate::wire::{HEAD_BYTES, RESPONSE_HEAD_BYTES, RequestHead, block, is_pattern};

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
    pub(crate) async fn connect(address: SocketAddr, block: Rc<Vec<u8>>) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
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

/// `connections` keep-alive connections, each a closed loop, for `duration`. Connections are opened before the clock
/// starts; `started` is called then.
pub(crate) async fn closed_loop(
    address: SocketAddr,
    connections: usize,
    shape: Shape,
    duration: Duration,
    started: impl FnOnce(),
) -> Result<Done, Failure> {
    let block = Rc::new(block());
    let mut callers = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut caller = Caller::connect(address, block.clone()).await?;
        caller.call(shape).await?;
        callers.push(caller);
    }
    let count = Rc::new(Cell::new(0));
    started();
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for mut caller in callers {
        let count = count.clone();
        tasks.spawn_local(async move {
            while start.elapsed() < duration {
                caller.call(shape).await.map_err(|error| error.to_string())?;
                count.set(count.get() + 1);
            }
            Ok::<(), String>(())
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(Done { count: count.get(), elapsed: start.elapsed() })
}

/// `concurrency` loops, each of which opens a connection, sends one request, reads the response and closes.
pub(crate) async fn new_connections(
    address: SocketAddr,
    concurrency: usize,
    shape: Shape,
    duration: Duration,
    started: impl FnOnce(),
) -> Result<Done, Failure> {
    let block = Rc::new(block());
    Caller::connect(address, block.clone()).await?.call(shape).await?;
    let count = Rc::new(Cell::new(0));
    started();
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        let (block, count) = (block.clone(), count.clone());
        tasks.spawn_local(async move {
            while start.elapsed() < duration {
                let mut caller =
                    Caller::connect(address, block.clone()).await.map_err(|error| error.to_string())?;
                caller.call(shape).await.map_err(|error| error.to_string())?;
                count.set(count.get() + 1);
            }
            Ok::<(), String>(())
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(Done { count: count.get(), elapsed: start.elapsed() })
}

/// As [`closed_loop`], against a server that sends back the very bytes it gets.
pub(crate) async fn echo_loop(
    address: SocketAddr,
    connections: usize,
    bytes: usize,
    duration: Duration,
    started: impl FnOnce(),
) -> Result<Done, Failure> {
    let block = Rc::new(block());
    let mut streams = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        echo_once(&mut stream, &block[..bytes], &mut vec![0; bytes]).await?;
        streams.push(stream);
    }
    let count = Rc::new(Cell::new(0));
    started();
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for mut stream in streams {
        let (count, block) = (count.clone(), block.clone());
        tasks.spawn_local(async move {
            let mut buffer = vec![0; bytes];
            while start.elapsed() < duration {
                echo_once(&mut stream, &block[..bytes], &mut buffer)
                    .await
                    .map_err(|error| error.to_string())?;
                count.set(count.get() + 1);
            }
            Ok::<(), String>(())
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(Done { count: count.get(), elapsed: start.elapsed() })
}

async fn echo_once(stream: &mut TcpStream, bytes: &[u8], buffer: &mut [u8]) -> Result<(), Failure> {
    stream.write_all(bytes).await?;
    stream.read_exact(buffer).await?;
    if buffer == bytes { Ok(()) } else { Err("an echo is wrong".into()) }
}

/// Moves `bytes` over each of `streams` connections at once.
pub(crate) async fn bulk(
    address: SocketAddr,
    streams: usize,
    bytes: u32,
    direction: Direction,
    started: impl FnOnce(),
) -> Result<Done, Failure> {
    let block = Rc::new(block());
    let mut callers = Vec::with_capacity(streams);
    for _ in 0..streams {
        let mut caller = Caller::connect(address, block.clone()).await?;
        caller.bulk(1 << 20, direction).await?;
        callers.push(caller);
    }
    started();
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for mut caller in callers {
        tasks.spawn_local(
            async move { caller.bulk(bytes, direction).await.map_err(|error| error.to_string()) },
        );
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(Done { count: streams as u64 * u64::from(bytes), elapsed: start.elapsed() })
}

/// Opens `count` connections, each proven by one request, and hands them back still open.
pub(crate) async fn open_idle(
    address: SocketAddr,
    count: usize,
    shape: Shape,
) -> Result<Vec<Caller>, Failure> {
    let block = Rc::new(block());
    let mut callers = Vec::with_capacity(count);
    for _ in 0..count {
        let mut caller = Caller::connect(address, block.clone()).await?;
        caller.call(shape).await?;
        caller.buffer = Vec::new();
        callers.push(caller);
    }
    Ok(callers)
}
