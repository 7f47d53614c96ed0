//! The load: calls of one message each, or calls that stay open and carry one message after the other.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::try_join_all;
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use hdrhistogram::Histogram;
use http::{HeaderValue, Request, Response};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};

use super::super::http::client::{LATENCY_MAX_NS, Outcome, PATIENCE, Span, Target};
use super::{Messages, NUMBER_BYTES, WINDOW_BYTES, message};
use crate::Failure;
use crate::wire::{block, is_pattern};

/// Connections, and calls under way on each.
const CONNECTIONS: usize = 4;
const CALLS_EACH: usize = 16;

/// What a closed loop does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::compare) enum Calls {
    /// One call after the other, a message each way.
    Unary,
    /// One call for the whole time, in which each message is sent when the one before is answered.
    Streams,
}

/// Sixty-four loops over a few connections for `duration`, after some warming; `begin` is called when it counts from.
pub(in crate::compare) fn load(
    target: &Target,
    calls: Calls,
    reply_bytes: u64,
    duration: Duration,
    begin: impl FnOnce(),
) -> Result<Outcome, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(connect(target).await?);
        }
        let load = Load {
            target,
            reply_bytes,
            block: block(),
            counted: RefCell::new(Counted {
                span: Span::new(duration, begin),
                latencies: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
                number: 0,
            }),
        };
        let loops = connections.iter().flat_map(|connection| std::iter::repeat_n(connection, CALLS_EACH));
        let work = try_join_all(loops.map(|connection| load.repeat(connection.clone(), calls)));
        tokio::time::timeout(duration + PATIENCE, work).await.map_err(|_| "a call is not answered")??;
        let Counted { span, latencies, .. } = load.counted.into_inner();
        let requests = latencies.len();
        Ok(Outcome { requests, body_bytes: requests * reply_bytes, elapsed: span.start.elapsed(), latencies })
    })
}

/// The status of a call of one message in the terms of HTTP; an error where it is 200 and what follows is wrong.
pub(in crate::compare) fn status_of(target: &Target) -> Result<u16, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let ask = async {
            let mut call = Call::open(target, connect(target).await?).await?;
            call.send(64, 1, true)?;
            let status = call.status().await?;
            if status == 200 {
                call.check(&block(), 64, 1).await?;
                call.end().await?;
            }
            Ok(status)
        };
        tokio::time::timeout(PATIENCE, ask).await.map_err(|_| "a call is not answered")?
    })
}

async fn connect(target: &Target) -> Result<SendRequest<Bytes>, Failure> {
    let stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    let mut builder = client::Builder::new();
    builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    let (sender, connection) = builder.handshake(stream).await?;
    spawn_local(async move {
        // What breaks shows at the calls.
        let _ = connection.await;
    });
    Ok(sender)
}

/// What all loops share.
struct Load<'a, B> {
    target: &'a Target,
    reply_bytes: u64,
    block: Vec<u8>,
    counted: RefCell<Counted<B>>,
}

struct Counted<B> {
    span: Span<B>,
    latencies: Histogram<u64>,
    number: u64,
}

impl<B: FnOnce()> Load<'_, B> {
    async fn repeat(&self, connection: SendRequest<Bytes>, calls: Calls) -> Result<(), Failure> {
        let is_unary = calls == Calls::Unary;
        let mut open = None;
        loop {
            let from = Instant::now();
            let number = self.next_number();
            let mut call = match open.take() {
                Some(call) => call,
                None => Call::open(self.target, connection.clone()).await?,
            };
            call.send(self.reply_bytes, number, is_unary)?;
            if call.status().await? != 200 {
                return Err("a call was refused".into());
            }
            call.check(&self.block, self.reply_bytes, number).await?;
            if is_unary {
                call.end().await?;
            } else {
                open = Some(call);
            }
            if !self.record(from) {
                break;
            }
        }
        let Some(mut call) = open else { return Ok(()) };
        call.request.send_data(Bytes::new(), true)?;
        call.end().await
    }

    fn next_number(&self) -> u64 {
        let mut counted = self.counted.borrow_mut();
        counted.number += 1;
        counted.number
    }

    /// Notes the latency of an exchange that is done; whether another one is wanted.
    fn record(&self, from: Instant) -> bool {
        let now = Instant::now();
        let mut counted = self.counted.borrow_mut();
        let elapsed = u64::try_from(now.duration_since(from).as_nanos()).unwrap_or(LATENCY_MAX_NS);
        counted.latencies.saturating_record(elapsed.min(LATENCY_MAX_NS));
        if counted.span.begins(now) {
            counted.latencies.reset();
        }
        counted.span.is_open(now)
    }
}

/// One call under way.
struct Call {
    request: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    status: u16,
    body: Option<RecvStream>,
    messages: Messages,
}

impl Call {
    async fn open(target: &Target, connection: SendRequest<Bytes>) -> Result<Self, Failure> {
        let mut request = Request::post(format!("http://{}{}", target.ask.host, target.ask.path))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for field in target.ask.fields.lines() {
            let (name, value) = field.split_once(": ").ok_or("a field has no colon")?;
            request = request.header(name, value);
        }
        let (response, request) = connection.ready().await?.send_request(request.body(())?, false)?;
        let messages = Messages::default();
        Ok(Self { request, response: Some(response), status: 0, body: None, messages })
    }

    fn send(&mut self, wanted: u64, number: u64, is_last: bool) -> Result<(), Failure> {
        let bytes = message(&[&wanted.to_be_bytes(), &number.to_be_bytes()]);
        Ok(self.request.send_data(bytes, is_last)?)
    }

    /// The status, once it has come.
    async fn status(&mut self) -> Result<u16, Failure> {
        if let Some(response) = self.response.take() {
            let (head, body) = Response::into_parts(response.await?);
            // A refusal may be a response of trailers only (gRPC over HTTP/2, "Trailers-Only").
            self.status = match head.headers.get("grpc-status").map(HeaderValue::as_bytes) {
                None | Some(b"0") => head.status.as_u16(),
                Some(b"7") => 403,
                Some(b"12") => 404,
                Some(_) => 503,
            };
            self.body = Some(body);
        }
        Ok(self.status)
    }

    /// Takes one message and compares it.
    async fn check(&mut self, block: &[u8], wanted: u64, number: u64) -> Result<(), Failure> {
        let body = self.body.as_mut().ok_or("a call has no body")?;
        let reply = loop {
            if let Some(reply) = self.messages.next()? {
                break reply;
            }
            let piece = body.data().await.ok_or("a call ended before its answer")??;
            body.flow_control().release_capacity(piece.len())?;
            self.messages.push(&piece);
        };
        let (seen, bytes) = reply.split_first_chunk::<NUMBER_BYTES>().ok_or("an answer is too short")?;
        let is_right = u64::from_be_bytes(*seen) == number
            && bytes.len() as u64 == wanted
            && is_pattern(block, 0, bytes);
        if is_right { Ok(()) } else { Err(format!("the answer to message {number} is wrong").into()) }
    }

    /// Nothing follows but the trailers, and they say that all is well.
    async fn end(&mut self) -> Result<(), Failure> {
        let body = self.body.as_mut().ok_or("a call has no body")?;
        while let Some(piece) = body.data().await {
            if !piece?.is_empty() {
                return Err("there are bytes after the last answer of a call".into());
            }
        }
        let trailers = body.trailers().await?.ok_or("a call has no trailers")?;
        if trailers.get("grpc-status").is_some_and(|status| status == "0") && self.messages.is_empty() {
            Ok(())
        } else {
            Err(format!("a call ended with {trailers:?}").into())
        }
    }
}
