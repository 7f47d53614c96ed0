//! The load: closed loops, an open loop at a fixed rate, a connection per request, bulk, idle connections.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::backend::is_later;
use super::poll::{Interest, Poll};
use super::{Ask, Body, Head, Load, READ_BYTES, parse_response};
use crate::Failure;
use crate::wire::block;

/// Latencies beyond this are recorded as this.
pub(in crate::compare) const LATENCY_MAX_NS: u64 = 60_000_000_000;
/// A reply that takes longer is lost.
pub(in crate::compare) const PATIENCE: Duration = Duration::from_secs(20);

/// Where the load goes and what it asks for.
#[derive(Debug, Clone)]
pub(in crate::compare) struct Target {
    pub(in crate::compare) address: SocketAddr,
    pub(in crate::compare) ask: Ask,
}

/// What a measurement saw.
#[derive(Debug)]
pub(in crate::compare) struct Outcome {
    pub(in crate::compare) requests: u64,
    pub(in crate::compare) body_bytes: u64,
    pub(in crate::compare) elapsed: Duration,
    /// In nanoseconds.
    pub(in crate::compare) latencies: Histogram<u64>,
}

/// One connection with one exchange under way at most.
#[derive(Debug)]
struct Caller {
    stream: TcpStream,
    is_connected: bool,
    interest: Interest,
    sequence: u64,
    output: Vec<u8>,
    upload: Body,
    head: Vec<u8>,
    reply: Option<Head>,
    body: Body,
    /// From when its latency counts.
    due: Instant,
}

#[derive(Debug)]
pub(in crate::compare) struct Client {
    target: Target,
    poll: Poll,
    callers: Vec<Caller>,
    sequence: u64,
    block: Vec<u8>,
    scratch: Vec<u8>,
    latencies: Histogram<u64>,
    body_bytes: u64,
}

/// Held open until it is dropped.
#[derive(Debug)]
pub(in crate::compare) struct Idle {
    _client: Client,
}

/// Pools fill and caches warm before it counts.
fn warm_up(duration: Duration) -> Duration {
    (duration / 5).min(Duration::from_millis(300))
}

/// When a loop begins to count, and when it ends.
pub(in crate::compare) struct Span<B> {
    counts_from: Instant,
    duration: Duration,
    begin: Option<B>,
    pub(in crate::compare) start: Instant,
}

impl<B: FnOnce()> Span<B> {
    /// What has no duration counts at once.
    pub(in crate::compare) fn new(duration: Duration, begin: B) -> Self {
        let now = Instant::now();
        let mut span =
            Self { counts_from: now + warm_up(duration), duration, begin: Some(begin), start: now };
        if duration.is_zero() {
            span.begins(now);
        }
        span
    }

    /// True once, at the end of the warming.
    pub(in crate::compare) fn begins(&mut self, now: Instant) -> bool {
        if now < self.counts_from {
            return false;
        }
        let Some(begin) = self.begin.take() else { return false };
        begin();
        self.start = Instant::now();
        true
    }

    pub(in crate::compare) fn is_open(&self, now: Instant) -> bool {
        self.begin.is_some() || now.duration_since(self.start) < self.duration
    }
}

impl Client {
    pub(in crate::compare) fn new(target: &Target) -> Result<Self, Failure> {
        Ok(Self {
            target: target.clone(),
            poll: Poll::new()?,
            callers: Vec::new(),
            sequence: 0,
            block: block(),
            scratch: vec![0; READ_BYTES],
            latencies: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
            body_bytes: 0,
        })
    }

    /// `connections` closed loops for `duration`, after some warming; `begin` is called when it counts from.
    pub(in crate::compare) fn closed_loop(
        mut self,
        connections: usize,
        load: Load,
        duration: Duration,
        begin: impl FnOnce(),
    ) -> Result<Outcome, Failure> {
        self.open(connections, load)?;
        let span = Span::new(duration, begin);
        for key in 0..self.callers.len() {
            self.send(key, load, Instant::now())?;
        }
        self.go_round(load, span, |_, _| Ok(()))
    }

    /// Each connection moves its load once.
    pub(in crate::compare) fn bulk(
        self,
        connections: usize,
        load: Load,
        begin: impl FnOnce(),
    ) -> Result<Outcome, Failure> {
        self.closed_loop(connections, load, Duration::ZERO, begin)
    }

    /// `rate` requests a second over all connections, each due at its time whether or not the one before has a reply:
    /// what waits for its connection counts as waiting.
    pub(in crate::compare) fn open_loop(
        mut self,
        connections: usize,
        load: Load,
        rate: u32,
        duration: Duration,
        begin: impl FnOnce(),
    ) -> Result<Outcome, Failure> {
        self.open(connections, load)?;
        let warming = u64::from(rate) * u64::try_from(warm_up(duration).as_millis())? / 1000;
        let total = warming + u64::from(rate) * u64::try_from(duration.as_millis())? / 1000;
        let mut begin = Some(begin);
        if warming == 0
            && let Some(begin) = begin.take()
        {
            begin();
        }
        let interval = Duration::from_secs_f64(1.0 / f64::from(rate.max(1)));
        let mut start = Instant::now();
        let first = start;
        let due_of = |number: u64| first + interval.mul_f64(number as f64);
        let mut is_busy = vec![false; connections];
        let mut waiting: Vec<VecDeque<Instant>> = vec![VecDeque::new(); connections];
        let (mut scheduled, mut finished) = (0, 0);
        let mut ready = Vec::new();
        while finished < total {
            while scheduled < total && due_of(scheduled) <= Instant::now() {
                let key = usize::try_from(scheduled).unwrap_or(0) % connections;
                if is_busy[key] {
                    waiting[key].push_back(due_of(scheduled));
                } else {
                    is_busy[key] = true;
                    self.send(key, load, due_of(scheduled))?;
                }
                scheduled += 1;
            }
            if scheduled < total {
                self.poll.alarm(due_of(scheduled))?;
            }
            self.wait(&mut ready)?;
            for &key in &ready {
                if !self.advance(key)? {
                    continue;
                }
                let now = self.record(key);
                finished += 1;
                if finished == warming
                    && let Some(begin) = begin.take()
                {
                    begin();
                    self.forget();
                    start = now;
                }
                match waiting[key].pop_front() {
                    Some(due) => self.send(key, load, due)?,
                    None => is_busy[key] = false,
                }
            }
        }
        Ok(self.outcome(start))
    }

    /// `loops` loops, each of which opens a connection, sends one request, takes the reply and closes.
    pub(in crate::compare) fn new_connections(
        mut self,
        loops: usize,
        load: Load,
        duration: Duration,
        begin: impl FnOnce(),
    ) -> Result<Outcome, Failure> {
        self.open(1, load)?;
        self.callers.clear();
        let span = Span::new(duration, begin);
        for key in 0..loops {
            self.dial(key)?;
            self.send(key, load, Instant::now())?;
        }
        self.go_round(load, span, Self::dial)
    }

    /// Has every caller ask again when it has its answer, until the time is up; `prepare` comes before each request.
    fn go_round(
        mut self,
        load: Load,
        mut span: Span<impl FnOnce()>,
        prepare: impl Fn(&mut Self, usize) -> Result<(), Failure>,
    ) -> Result<Outcome, Failure> {
        let mut open = self.callers.len();
        let mut ready = Vec::new();
        while open > 0 {
            self.wait(&mut ready)?;
            for &key in &ready {
                if !self.advance(key)? {
                    continue;
                }
                let now = self.record(key);
                if span.begins(now) {
                    self.forget();
                }
                if span.is_open(now) {
                    prepare(&mut self, key)?;
                    self.send(key, load, now)?;
                } else {
                    open -= 1;
                }
            }
        }
        Ok(self.outcome(span.start))
    }

    /// Opens connections, a few at a time, each proven by one request, and leaves them alone.
    pub(in crate::compare) fn idle(mut self, connections: usize, load: Load) -> Result<Idle, Failure> {
        self.open(connections, load)?;
        for caller in &mut self.callers {
            caller.output = Vec::new();
            caller.head = Vec::new();
        }
        Ok(Idle { _client: self })
    }

    /// Opens connections; each has had one reply when this returns.
    fn open(&mut self, connections: usize, load: Load) -> Result<(), Failure> {
        const AT_A_TIME: usize = 16;
        let first = match load {
            Load::Down(bytes) => Load::Down(bytes.min(1 << 20)),
            Load::Up(bytes) => Load::Up(bytes.min(1 << 20)),
        };
        let mut ready = Vec::new();
        while self.callers.len() < connections {
            let from = self.callers.len();
            let to = connections.min(from + AT_A_TIME);
            for key in from..to {
                self.dial(key)?;
                self.send(key, first, Instant::now())?;
            }
            let mut open = to - from;
            while open > 0 {
                self.wait(&mut ready)?;
                for &key in &ready {
                    open -= usize::from(self.advance(key)?);
                }
            }
        }
        self.body_bytes = 0;
        Ok(())
    }

    /// Starts a connection in place of that of `key`.
    fn dial(&mut self, key: usize) -> Result<(), Failure> {
        let address = self.target.address;
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(format!("{address} cannot be connected to: {error}").into()),
        }
        let stream = TcpStream::from(socket);
        self.poll.add(&stream, key, Interest::Write)?;
        match self.callers.get_mut(key) {
            Some(caller) => {
                caller.stream = stream;
                caller.is_connected = false;
                caller.interest = Interest::Write;
            }
            None => self.callers.push(Caller::new(stream)),
        }
        Ok(())
    }

    /// Begins an exchange; its latency counts from `due`.
    fn send(&mut self, key: usize, load: Load, due: Instant) -> Result<(), Failure> {
        self.sequence += 1;
        let Some(caller) = self.callers.get_mut(key) else { return Err("no such connection".into()) };
        caller.due = due;
        caller.begin(&self.target.ask, load, self.sequence);
        self.body_bytes += match load {
            Load::Down(bytes) | Load::Up(bytes) => bytes,
        };
        if caller.is_connected { self.flush(key) } else { Ok(()) }
    }

    fn flush(&mut self, key: usize) -> Result<(), Failure> {
        let Some(caller) = self.callers.get_mut(key) else { return Ok(()) };
        let wanted = if caller.write(&self.block)? { Interest::Read } else { Interest::Write };
        if wanted != caller.interest {
            caller.interest = wanted;
            self.poll.change(&caller.stream, key, wanted)?;
        }
        Ok(())
    }

    fn wait(&mut self, ready: &mut Vec<usize>) -> Result<(), Failure> {
        if self.poll.wait(Some(PATIENCE), ready)? {
            Ok(())
        } else {
            Err(format!("no reply within {} s", PATIENCE.as_secs()).into())
        }
    }

    /// Goes on with a connection that is ready; whether its exchange is done.
    fn advance(&mut self, key: usize) -> Result<bool, Failure> {
        let Some(caller) = self.callers.get_mut(key) else { return Ok(false) };
        if caller.interest == Interest::Write {
            caller.is_connected = true;
            if let Some(error) = caller.stream.take_error()? {
                return Err(format!("{} cannot be connected to: {error}", self.target.address).into());
            }
            self.flush(key)?;
            return Ok(false);
        }
        caller.read(&mut self.scratch, &self.block)
    }

    /// What was before does not count.
    fn forget(&mut self) {
        self.latencies.reset();
        self.body_bytes = 0;
    }

    /// Notes the latency of the exchange that is done.
    fn record(&mut self, key: usize) -> Instant {
        let now = Instant::now();
        if let Some(caller) = self.callers.get(key) {
            let elapsed = u64::try_from(now.duration_since(caller.due).as_nanos()).unwrap_or(LATENCY_MAX_NS);
            self.latencies.saturating_record(elapsed.min(LATENCY_MAX_NS));
        }
        now
    }

    fn outcome(self, start: Instant) -> Outcome {
        Outcome {
            requests: self.latencies.len(),
            body_bytes: self.body_bytes,
            elapsed: start.elapsed(),
            latencies: self.latencies,
        }
    }
}

impl Caller {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            is_connected: false,
            interest: Interest::Write,
            sequence: 0,
            output: Vec::new(),
            upload: Body::default(),
            head: Vec::new(),
            reply: None,
            body: Body::default(),
            due: Instant::now(),
        }
    }

    fn begin(&mut self, ask: &Ask, load: Load, sequence: u64) {
        self.sequence = sequence;
        self.reply = None;
        self.head.clear();
        self.output.clear();
        let (method, wanted, sent) = match load {
            Load::Down(bytes) => ("GET", bytes, 0),
            Load::Up(bytes) => ("POST", 0, bytes),
        };
        self.upload = Body { position: 0, rest: sent };
        self.body = Body { position: 0, rest: wanted };
        let Ask { host, path, fields } = ask;
        // Writing into a Vec cannot fail.
        let _ = write!(
            self.output,
            "{method} {path}{wanted}/{sequence} HTTP/1.1\r\nhost: {host}\r\nuser-agent: perf\r\naccept: */*\r\n{fields}"
        );
        if sent > 0 {
            let _ = write!(self.output, "content-length: {sent}\r\n");
        }
        self.output.extend_from_slice(b"\r\n");
    }

    /// Whether everything has been sent.
    fn write(&mut self, block: &[u8]) -> Result<bool, Failure> {
        loop {
            let (bytes, is_head) = if self.output.is_empty() {
                (self.upload.piece(block), false)
            } else {
                (self.output.as_slice(), true)
            };
            if bytes.is_empty() {
                return Ok(true);
            }
            match self.stream.write(bytes) {
                Ok(count) if is_head => drop(self.output.drain(..count)),
                Ok(count) => self.upload.advance(count),
                Err(error) if is_later(&error) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the whole reply has come; it is checked byte by byte.
    fn read(&mut self, scratch: &mut [u8], block: &[u8]) -> Result<bool, Failure> {
        let count = match self.stream.read(scratch) {
            Ok(0) => return Err("a connection was closed before the reply was whole".into()),
            Ok(count) => count,
            Err(error) if is_later(&error) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = scratch.get(..count).unwrap_or_default();
        if self.reply.is_none() {
            let Some(length) = self.take_head(bytes)? else { return Ok(false) };
            bytes = bytes.get(length..).unwrap_or_default();
        }
        if self.body.take(block, bytes)?.is_empty() {
            Ok(self.body.rest == 0)
        } else {
            Err("there are bytes after a reply".into())
        }
    }

    /// Bytes of `bytes` that belong to the head, once it is whole.
    fn take_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Failure> {
        let held = self.head.len();
        let whole = if held == 0 {
            bytes
        } else {
            self.head.extend_from_slice(bytes);
            &self.head
        };
        let Some(head) = parse_response(whole)? else {
            if held == 0 {
                self.head.extend_from_slice(bytes);
            }
            return Ok(None);
        };
        if head.status != 200 || head.sequence != self.sequence || head.body != self.body.rest {
            let text = String::from_utf8_lossy(whole.get(..head.length).unwrap_or_default()).into_owned();
            return Err(format!("a reply to request {} is wrong: {text:?}", self.sequence).into());
        }
        self.reply = Some(head);
        Ok(Some(head.length - held))
    }
}

/// Asks, again and again, until the answer is right.
pub(in crate::compare) fn until_answered(target: &Target, patience: Duration) -> Result<(), Failure> {
    retry(patience, || Client::new(target)?.idle(1, Load::Down(64)).map(drop))
}

/// Asks until the answer has this status; `ask` gets one.
pub(in crate::compare) fn until_status(
    status: u16,
    patience: Duration,
    ask: impl Fn() -> Result<u16, Failure>,
) -> Result<(), Failure> {
    retry(patience, || {
        let seen = ask()?;
        if seen == status { Ok(()) } else { Err(format!("a request gets {seen}, not {status}").into()) }
    })
}

fn retry(patience: Duration, attempt: impl Fn() -> Result<(), Failure>) -> Result<(), Failure> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The status of one response, whatever else it holds.
pub(in crate::compare) fn status_of(target: &Target) -> Result<u16, Failure> {
    let mut stream = TcpStream::connect(target.address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let Ask { host, path, fields } = &target.ask;
    write!(stream, "GET {path}64/1 HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n")?;
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Err("a connection was closed before the status came".into());
        }
        bytes.extend_from_slice(piece.get(..count).unwrap_or_default());
    }
    let status = bytes.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| "a response has no status".into())
}
