//! The engine against the `h2` crate, in both roles, over an in-memory pipe: requests, bodies, flow control, trailers,
//! resets, GOAWAY, concurrent streams.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)] // test code outside of test functions

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use std::collections::HashMap;
use std::future::poll_fn;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tunnel::h2::{Config, Connection, ErrorCode, Event, Headers, ResetBy, StreamId};

/// Windows so small that every body of these tests is stopped by them many times.
const STREAM_WINDOW: u32 = 20_000;
const CONNECTION_WINDOW: u32 = 70_000;
/// Octets of the pipe, an odd number so that frames are cut everywhere.
const PIPE: usize = 7_919;

fn small(config: Config) -> Config {
    Config { initial_stream_window: STREAM_WINDOW, connection_window: CONNECTION_WINDOW, ..config }
}

/// Octets that differ by stream and place.
fn body(seed: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut octets = Vec::with_capacity(len);
    for _ in 0..len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        octets.push(state.to_le_bytes()[0]);
    }
    octets
}

/// What is still to be sent on a stream.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    ended: bool,
    trailers: Option<Headers>,
    /// Received octets that are released when they have been sent on.
    echoes: bool,
}

/// The engine on one end of the pipe.
struct Engine {
    io: DuplexStream,
    connection: Connection,
    out: Vec<u8>,
    outgoing: HashMap<StreamId, Outgoing>,
}

impl Engine {
    fn new(io: DuplexStream, config: Config) -> Self {
        let mut out = Vec::new();
        let connection = Connection::new(config, Instant::now(), &mut out);
        Self { io, connection, out, outgoing: HashMap::new() }
    }

    /// Sends what the windows allow.
    fn pump(&mut self, stream: StreamId) {
        let Some(outgoing) = self.outgoing.get_mut(&stream) else { return };
        let ends = outgoing.ended && outgoing.trailers.is_none();
        let rest = &outgoing.bytes[outgoing.sent..];
        let Ok(accepted) = self.connection.send_data(stream, rest, ends, &mut self.out) else {
            self.outgoing.remove(&stream);
            return;
        };
        let is_complete = accepted == rest.len();
        outgoing.sent += accepted;
        if outgoing.echoes {
            self.connection.release(stream, accepted, &mut self.out);
        }
        if is_complete && outgoing.ended {
            if let Some(trailers) = outgoing.trailers.take() {
                self.connection.send_trailers(stream, &trailers, &mut self.out).expect("trailers are due");
            }
            self.outgoing.remove(&stream);
        }
    }

    /// Reads once, writing meanwhile, then gives every event to the caller. False at the end of the pipe.
    async fn turn(&mut self, mut on_event: impl FnMut(&mut Self, Event<'_>)) -> bool {
        let mut buffer = [0; 4_096];
        let (mut reader, mut writer) = tokio::io::split(&mut self.io);
        let len = loop {
            tokio::select! {
                biased;
                len = reader.read(&mut buffer) => break len.unwrap_or(0),
                written = writer.write(&self.out), if !self.out.is_empty() => match written {
                    Ok(count) => drop(self.out.drain(..count)),
                    Err(_) => return false,
                },
            }
        };
        if len == 0 {
            return false;
        }
        let mut input = &buffer[..len];
        loop {
            let event = self.connection.next_event(&mut input, Instant::now(), &mut self.out);
            match event.expect("the h2 crate keeps the protocol") {
                Some(event) => on_event(self, event),
                None => return true,
            }
        }
    }

    /// Echoes requests until the peer goes: the path as a field, the body, the trailers.
    fn echo(&mut self, event: Event<'_>) {
        match event {
            Event::Headers { stream, headers, end_stream } => {
                let mut response = Headers::response(200).unwrap();
                response.push("x-path", headers.path().unwrap()).unwrap();
                for field in headers.fields() {
                    response.push_field(field).unwrap();
                }
                self.connection.respond(stream, &response, end_stream, &mut self.out).unwrap();
                if !end_stream {
                    self.outgoing.insert(stream, Outgoing { echoes: true, ..Outgoing::default() });
                }
            }
            Event::Data { stream, bytes, end_stream } => {
                let outgoing = self.outgoing.get_mut(&stream).expect("data after headers");
                outgoing.bytes.extend_from_slice(bytes);
                outgoing.ended = end_stream;
                self.pump(stream);
            }
            Event::Trailers { stream, headers } => {
                let outgoing = self.outgoing.get_mut(&stream).expect("trailers after headers");
                outgoing.ended = true;
                outgoing.trailers = Some(headers);
                self.pump(stream);
            }
            Event::Writable { stream } => self.pump(stream),
            Event::Reset { stream, .. } => drop(self.outgoing.remove(&stream)),
            _ => {}
        }
    }
}

/// Sends a body with the crate, obeying its flow control.
async fn send_all(stream: &mut SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let capacity =
            poll_fn(|context| stream.poll_capacity(context)).await.expect("open").expect("capacity");
        let part = bytes.split_to(capacity.min(bytes.len()));
        stream.send_data(part, false).expect("sent");
    }
}

/// Receives a body with the crate, giving credit back as it goes.
async fn receive_all(stream: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut received = Vec::new();
    while let Some(part) = stream.data().await {
        let part = part?;
        stream.flow_control().release_capacity(part.len())?;
        received.extend_from_slice(&part);
    }
    Ok(received)
}

async fn crate_client(io: DuplexStream) -> h2::client::SendRequest<Bytes> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    let (sender, connection) = builder.handshake(io).await.expect("handshake");
    tokio::spawn(async move { drop(connection.await) });
    sender
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://shop.test{path}")).body(()).unwrap()
}

#[tokio::test]
async fn server_echoes_concurrent_bodies_and_trailers_of_the_crate() {
    let (near, far) = duplex(PIPE);
    let server = tokio::spawn(async move {
        let mut engine = Engine::new(near, small(Config::http_server()));
        while engine.turn(Engine::echo).await {}
        (engine.connection.stream_count(), engine.outgoing.len())
    });
    let sender = crate_client(far).await;
    let exchanges = (0..12_u32).map(|number| {
        let sender = sender.clone();
        tokio::spawn(async move {
            let expected = body(number, 40_000 * number as usize);
            let mut sender = sender.ready().await.expect("ready");
            let (response, mut stream) =
                sender.send_request(post(&format!("/{number}")), false).expect("request");
            let bytes = Bytes::from(expected.clone());
            tokio::spawn(async move {
                send_all(&mut stream, bytes).await;
                let mut trailers = HeaderMap::new();
                trailers.insert("x-number", number.into());
                stream.send_trailers(trailers).expect("trailers");
            });
            let response = response.await.expect("response");
            assert_eq!(response.headers()["x-path"], format!("/{number}"));
            let mut received = response.into_body();
            assert_eq!(receive_all(&mut received).await.expect("body"), expected);
            let trailers = received.trailers().await.expect("trailers").expect("present");
            assert_eq!(trailers["x-number"], number.to_string());
        })
    });
    for exchange in exchanges.collect::<Vec<_>>() {
        exchange.await.expect("exchange");
    }
    drop(sender);
    assert_eq!(server.await.unwrap(), (0, 0), "nothing is left of ended streams");
}

#[tokio::test]
async fn server_takes_headers_that_need_continuation() {
    let (near, far) = duplex(PIPE);
    tokio::spawn(async move {
        let mut engine = Engine::new(near, Config::http_server());
        while engine.turn(Engine::echo).await {}
    });
    let mut sender = crate_client(far).await.ready().await.unwrap();
    let large = "v".repeat(40_000);
    let mut request = post("/large");
    request.headers_mut().insert("x-large", large.parse().unwrap());
    let (response, _) = sender.send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().headers()["x-large"], large);
}

#[tokio::test]
async fn server_sees_resets_and_resets() {
    let (near, far) = duplex(PIPE);
    let server = tokio::spawn(async move {
        let mut engine = Engine::new(near, Config::http_server());
        let mut reset = None;
        while engine
            .turn(|engine, event| match event {
                Event::Headers { stream, headers, .. } if headers.path() == Some(b"/refuse") => {
                    engine.connection.reset(stream, ErrorCode::REFUSED_STREAM, &mut engine.out);
                }
                Event::Headers { stream, .. } => {
                    let headers = Headers::response(200).unwrap();
                    engine.connection.respond(stream, &headers, false, &mut engine.out).unwrap();
                }
                Event::Reset { code, by, .. } => reset = Some((code, by)),
                _ => {}
            })
            .await
        {}
        (reset, engine.connection.stream_count())
    });
    let mut sender = crate_client(far).await.ready().await.unwrap();
    let (response, _) = sender.send_request(post("/refuse"), false).unwrap();
    assert_eq!(response.await.unwrap_err().reason(), Some(h2::Reason::REFUSED_STREAM));
    let (response, mut stream) = sender.send_request(post("/cancel"), false).unwrap();
    let response = response.await.unwrap();
    stream.send_reset(h2::Reason::CANCEL);
    drop((sender, stream, response));
    assert_eq!(server.await.unwrap(), (Some((ErrorCode::CANCEL, ResetBy::Peer)), 0));
}

#[tokio::test]
async fn graceful_go_away_lets_running_streams_finish() {
    let (near, far) = duplex(PIPE);
    let server = tokio::spawn(async move {
        let mut engine = Engine::new(near, Config::http_server());
        while engine
            .turn(|engine, event| {
                if matches!(event, Event::Headers { .. }) {
                    engine.connection.go_away(ErrorCode::NO_ERROR, Instant::now(), &mut engine.out);
                }
                engine.echo(event);
            })
            .await
        {}
        engine.connection.is_drained()
    });
    let sender = crate_client(far).await;
    let mut ready = sender.ready().await.unwrap();
    let (response, mut stream) = ready.send_request(post("/running"), false).unwrap();
    let response = response.await.unwrap();
    let expected = body(1, 200_000);
    let bytes = Bytes::from(expected.clone());
    tokio::spawn(async move {
        send_all(&mut stream, bytes).await;
        stream.send_data(Bytes::new(), true).unwrap();
    });
    assert_eq!(receive_all(&mut response.into_body()).await.unwrap(), expected);
    // The crate closes the connection once the last stream has ended.
    assert!(server.await.unwrap());
}

/// The crate as a server: echoes, resets `/reset`, says GOAWAY after `/last`.
async fn crate_server(io: DuplexStream) {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    builder.max_concurrent_streams(5);
    let mut connection = builder.handshake::<_, Bytes>(io).await.expect("handshake");
    while let Some(request) = connection.accept().await {
        let Ok((request, mut respond)) = request else { return };
        match request.uri().path() {
            "/reset" => respond.send_reset(h2::Reason::INTERNAL_ERROR),
            path => {
                if path == "/last" {
                    connection.graceful_shutdown();
                }
                tokio::spawn(async move {
                    let response =
                        Response::builder().header("x-path", request.uri().path()).body(()).unwrap();
                    let mut stream = respond.send_response(response, false).expect("response");
                    let mut received = request.into_body();
                    while let Some(Ok(part)) = received.data().await {
                        let len = part.len();
                        send_all(&mut stream, part).await;
                        received.flow_control().release_capacity(len).expect("released");
                    }
                    let mut trailers = received.trailers().await.expect("trailers").unwrap_or_default();
                    trailers.insert("x-done", "yes".parse().unwrap());
                    stream.send_trailers(trailers).expect("trailers");
                });
            }
        }
    }
}

/// What the engine as a client saw of one exchange.
#[derive(Default)]
struct Exchange {
    path: Vec<u8>,
    received: Vec<u8>,
    done: bool,
    reset: Option<ErrorCode>,
}

/// Runs requests with the engine, as many at a time as the server allows.
async fn run_client(io: DuplexStream, requests: &[(String, Vec<u8>)]) -> (Vec<Exchange>, Connection) {
    let mut engine = Engine::new(io, small(Config::http_client()));
    let mut exchanges: HashMap<StreamId, (usize, Exchange)> = HashMap::new();
    let mut opened = 0;
    let mut concurrent_max = 0;
    let is_over = |exchange: &Exchange| exchange.done || exchange.reset.is_some();
    while exchanges.values().filter(|(_, exchange)| is_over(exchange)).count() < requests.len() {
        while opened < requests.len() && engine.connection.is_established() {
            let (path, bytes) = &requests[opened];
            let headers = Headers::request("POST", "http", "shop.test", path).unwrap();
            let Ok(stream) = engine.connection.open(&headers, false, &mut engine.out) else { break };
            let outgoing = Outgoing { bytes: bytes.clone(), ended: true, ..Outgoing::default() };
            engine.outgoing.insert(stream, outgoing);
            exchanges.insert(stream, (opened, Exchange::default()));
            engine.pump(stream);
            opened += 1;
        }
        concurrent_max = concurrent_max.max(engine.connection.stream_count());
        let goes_on = engine
            .turn(|engine, event| match event {
                Event::Headers { stream, headers, .. } => {
                    assert_eq!(headers.status(), Some(200));
                    exchanges.get_mut(&stream).unwrap().1.path = headers.get("x-path").unwrap().to_vec();
                }
                Event::Data { stream, bytes, .. } => {
                    exchanges.get_mut(&stream).unwrap().1.received.extend_from_slice(bytes);
                    engine.connection.release(stream, bytes.len(), &mut engine.out);
                }
                Event::Trailers { stream, headers } => {
                    assert_eq!(headers.get("x-done"), Some(b"yes".as_slice()));
                    exchanges.get_mut(&stream).unwrap().1.done = true;
                }
                Event::Reset { stream, code, by } => {
                    assert_eq!(by, ResetBy::Peer);
                    engine.outgoing.remove(&stream);
                    exchanges.get_mut(&stream).unwrap().1.reset = Some(code);
                }
                Event::Writable { stream } => engine.pump(stream),
                _ => {}
            })
            .await;
        assert!(goes_on, "the server closed early");
    }
    assert!(concurrent_max <= 5);
    let mut ordered: Vec<_> = exchanges.into_values().collect();
    ordered.sort_by_key(|(number, _)| *number);
    (ordered.into_iter().map(|(_, exchange)| exchange).collect(), engine.connection)
}

#[tokio::test]
async fn client_exchanges_bodies_with_the_crate() {
    let (near, far) = duplex(PIPE);
    tokio::spawn(crate_server(far));
    let requests: Vec<_> =
        (0..15).map(|number| (format!("/{number}"), body(number, 30_000 * number as usize))).collect();
    let (exchanges, connection) = run_client(near, &requests).await;
    for (exchange, (path, bytes)) in exchanges.iter().zip(&requests) {
        assert_eq!(exchange.path, path.as_bytes());
        assert!(exchange.done && &exchange.received == bytes, "{path}");
    }
    assert_eq!(connection.stream_count(), 0);
    assert!(!connection.is_drained());
}

#[tokio::test]
async fn client_sees_resets_and_go_away_of_the_crate() {
    let (near, far) = duplex(PIPE);
    tokio::spawn(crate_server(far));
    let requests = [
        ("/reset".to_owned(), Vec::new()),
        ("/first".to_owned(), body(1, 100_000)),
        ("/last".to_owned(), body(2, 100_000)),
    ];
    let (exchanges, connection) = run_client(near, &requests).await;
    assert_eq!(exchanges[0].reset, Some(ErrorCode::INTERNAL_ERROR));
    assert!(exchanges[1].received == requests[1].1 && exchanges[2].received == requests[2].1);
    assert!(connection.is_drained());
    assert_eq!(connection.open_capacity(), 0);
}

/// Fields that partly repeat from request to request, of all lengths, some of them sensitive.
fn varied_fields(number: u32) -> Vec<(String, Vec<u8>, bool)> {
    let octets = body(number, 40);
    octets
        .chunks_exact(4)
        .map(|seed| {
            let len = usize::from(seed[1]) * usize::from(seed[1] & 3);
            let value = body(u32::from(seed[2] & 7), len).iter().map(|octet| b'!' + octet % 90).collect();
            (format!("x-{}", seed[0] & 15), value, seed[3] > 200)
        })
        .collect()
}

#[tokio::test]
async fn header_compression_agrees_with_the_crate_over_many_requests() {
    let (near, far) = duplex(PIPE);
    tokio::spawn(async move {
        let mut connection = h2::server::Builder::new().handshake::<_, Bytes>(far).await.expect("handshake");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let mut response = Response::new(());
            *response.headers_mut() = request.headers().clone();
            respond.send_response(response, true).expect("response");
        }
    });
    let mut engine = Engine::new(near, Config::http_client());
    for number in 0..500 {
        let fields = varied_fields(number);
        let mut request = Headers::request("GET", "http", "shop.test", format!("/{}", number % 7)).unwrap();
        for (name, value, sensitive) in &fields {
            if *sensitive {
                request.push_sensitive(name, value).unwrap();
            } else {
                request.push(name, value).unwrap();
            }
        }
        engine.connection.open(&request, true, &mut engine.out).unwrap();
        let mut echoed = None;
        while echoed.is_none() {
            let goes_on = engine
                .turn(|_, event| match event {
                    Event::Headers { headers, .. } => echoed = Some(headers),
                    Event::Reset { code, .. } => panic!("request {number} was reset: {code}"),
                    _ => {}
                })
                .await;
            assert!(goes_on);
        }
        let mut sent: Vec<_> =
            fields.into_iter().map(|(name, value, _)| (name.into_bytes(), value)).collect();
        let mut received: Vec<_> = echoed
            .iter()
            .flat_map(Headers::fields)
            .map(|field| (field.name.to_vec(), field.value.to_vec()))
            .collect();
        sent.sort();
        received.sort();
        assert_eq!(received, sent, "request {number}");
    }
}
