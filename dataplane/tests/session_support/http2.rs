//! A foreign implementation of HTTP/2 at both ends: a server whose paths choose what it does, and a client.

use std::future::poll_fn;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsAcceptor;

use super::{Bed, LATE, PATIENCE, checksum, pattern};

/// A response as it was read.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// A field of the head, or of the trailers.
    pub fn field(&self, name: &str) -> Option<&str> {
        let trailer = self.trailers.as_ref().and_then(|trailers| trailers.get(name));
        self.headers.get(name).or(trailer).map(|value| value.to_str().unwrap())
    }
}

/// One connection of a client.
pub struct Client {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
}

/// A request whose answer has not been read.
pub struct Asked {
    pub response: ResponseFuture,
    pub body: SendStream<Bytes>,
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn into_tokio(socket: TcpStream) -> tokio::net::TcpStream {
    socket.set_nonblocking(true).unwrap();
    tokio::net::TcpStream::from_std(socket).unwrap()
}

impl Client {
    pub fn new(socket: TcpStream) -> Self {
        let runtime = runtime();
        let sender = runtime.block_on(async {
            let mut builder = h2::client::Builder::new();
            // A response that is not read leaves room for others.
            builder.initial_connection_window_size(1 << 20);
            let (sender, connection) = builder.handshake(into_tokio(socket)).await.unwrap();
            tokio::spawn(async move { drop(connection.await) });
            sender
        });
        Self { runtime, sender }
    }

    pub fn sender(&self) -> SendRequest<Bytes> {
        self.sender.clone()
    }

    /// The connection moves only while the client runs something.
    pub async fn flush(&self) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    /// Runs a future of this client's.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("it takes too long") })
    }

    /// Sends the head of a request.
    pub fn ask(&self, request: Request<()>, ended: bool) -> Asked {
        self.run(async {
            let mut sender = self.sender.clone().ready().await.unwrap();
            let (response, body) = sender.send_request(request, ended).unwrap();
            self.flush().await;
            Asked { response, body }
        })
    }

    pub fn get(&self, path: &str) -> Result<Answer, h2::Error> {
        let Asked { response, .. } = self.ask(request("GET", path, ""), true);
        self.run(read(response))
    }

    /// A request with a body and, if there are any, trailers.
    pub fn post(
        &self,
        path: &str,
        kind: &str,
        body: &[u8],
        trailers: HeaderMap,
    ) -> Result<Answer, h2::Error> {
        let Asked { response, body: to } = self.ask(request("POST", path, kind), false);
        let body = Bytes::copy_from_slice(body);
        self.run(async {
            let sending = tokio::spawn(send(to, body, trailers));
            let answer = read(response).await;
            sending.abort();
            answer
        })
    }
}

pub fn request(method: &str, path: &str, kind: &str) -> Request<()> {
    let builder = Request::builder().method(method).uri(format!("http://web{path}"));
    let builder = if kind.is_empty() { builder } else { builder.header("content-type", kind) };
    builder.body(()).unwrap()
}

/// A request to speak another protocol (RFC 8441).
pub fn extended(path: &str, protocol: &'static str) -> Request<()> {
    let mut request = request("CONNECT", path, "");
    request.extensions_mut().insert(Protocol::from_static(protocol));
    request
}

/// The next interim response.
pub async fn interim(response: &mut ResponseFuture) -> Option<Response<()>> {
    poll_fn(|context| response.poll_informational(context)).await.map(Result::unwrap)
}

pub async fn read(response: ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    let (bytes, trailers) = drain(&mut body).await?;
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: bytes, trailers })
}

/// Everything to the end, credit given back piece by piece.
pub async fn drain(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        all.extend_from_slice(&piece);
    }
    Ok((all, body.trailers().await?))
}

/// Sends as the windows allow, and ends.
pub async fn send(mut to: SendStream<Bytes>, mut body: Bytes, trailers: HeaderMap) -> Result<(), h2::Error> {
    while !body.is_empty() {
        to.reserve_capacity(body.len().min(100_000));
        let room = match poll_fn(|context| to.poll_capacity(context)).await {
            Some(room) => room?,
            None => return Ok(()),
        };
        to.send_data(body.split_to(room.min(body.len())), false)?;
    }
    if trailers.is_empty() { to.send_data(Bytes::new(), true) } else { to.send_trailers(trailers) }
}

impl Bed {
    pub fn client2(&self, pod: &str, to: SocketAddr) -> Client {
        Client::new(self.connect(pod, to).unwrap())
    }

    /// A server of HTTP/2 in a pod. The end of the path chooses: see [`answer`]. Each request, as `METHOD path`, is told.
    pub fn serve_http2(&self, pod: &str, port: u16, tell: Sender<String>) -> SocketAddr {
        self.serve_http2_as(pod, port, with_connect, tell)
    }

    /// The same; it takes no extended CONNECT.
    pub fn serve_http2_alone(&self, pod: &str, port: u16, tell: Sender<String>) -> SocketAddr {
        self.serve_http2_as(pod, port, h2::server::Builder::new, tell)
    }

    fn serve_http2_as(
        &self,
        pod: &str,
        port: u16,
        builder: fn() -> h2::server::Builder,
        tell: Sender<String>,
    ) -> SocketAddr {
        let name = pod.to_owned();
        self.serve(pod, port, move |socket, peer| {
            let (name, tell) = (name.clone(), tell.clone());
            let conversing = async move { converse(builder(), into_tokio(socket), peer, name, tell).await };
            runtime().block_on(conversing);
        })
    }

    /// The same behind TLS. What ALPN has agreed on is told when a connection begins. Where it is not `h2`, each request
    /// gets an empty answer in HTTP/1.1.
    pub fn serve_http2_tls(
        &self,
        pod: &str,
        port: u16,
        config: Arc<rustls::ServerConfig>,
        tell: Sender<String>,
    ) -> SocketAddr {
        let name = pod.to_owned();
        self.serve(pod, port, move |socket, peer| {
            let (name, tell, acceptor) = (name.clone(), tell.clone(), TlsAcceptor::from(config.clone()));
            runtime().block_on(async move {
                let Ok(mut stream) = acceptor.accept(into_tokio(socket)).await else { return };
                let agreed = stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
                let _ = tell.send(format!("tls {}", String::from_utf8_lossy(&agreed)));
                if agreed == b"h2" {
                    return converse(with_connect(), stream, peer, name, tell).await;
                }
                let mut request = [0; 4096];
                while matches!(stream.read(&mut request).await, Ok(1..)) {
                    let answer = format!("HTTP/1.1 200 OK\r\nx-server: {name}\r\ncontent-length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        })
    }
}

fn with_connect() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    builder
}

async fn converse(
    mut builder: h2::server::Builder,
    transport: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    name: String,
    tell: Sender<String>,
) {
    builder.max_concurrent_streams(100);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(transport).await else { return };
    let mut count = 0;
    while let Some(Ok((request, respond))) = connection.accept().await {
        count += 1;
        let at = (name.clone(), peer, count);
        tokio::spawn(answer(at, request, respond, tell.clone()));
    }
}

type Request2 = Request<RecvStream>;

/// Serves one request. A stream that breaks is the test's business, and the test may have ended.
async fn answer(
    at: (String, SocketAddr, usize),
    request: Request2,
    respond: SendResponse<Bytes>,
    tell: Sender<String>,
) {
    let path = request.uri().path().to_owned();
    let _ = tell.send(format!("{} {path}", request.method()));
    let served = match path.rsplit('/').next().unwrap_or_default() {
        "stream" => stream(request, respond).await,
        "hints" => hints(at, request, respond, 1).await,
        "hints-forever" => hints(at, request, respond, 100).await,
        "late" => {
            tokio::time::sleep(LATE).await;
            echo(at, request, respond).await
        }
        "status" => only_trailers(respond, "5"),
        "unavailable-once" if at.2 == 1 => only_trailers(respond, "14"),
        "unavailable" => only_trailers(respond, "14"),
        "413" => early(respond).await,
        "hold" => hold(respond, &tell, &path).await,
        "torn" => torn(request, respond).await,
        "bulk" => bulk(respond).await,
        "reset-once" if at.2 == 1 => {
            let mut respond = respond;
            respond.send_reset(Reason::REFUSED_STREAM);
            Ok(())
        }
        _ => echo(at, request, respond).await,
    };
    if let Err(error) = served {
        let _ = tell.send(format!("broken {path} {error}"));
    }
}

/// Tells what arrived; trailers come back as they came.
async fn echo(
    (name, peer, _): (String, SocketAddr, usize),
    request: Request2,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let (bytes, trailers) = drain(&mut body).await?;
    let field = |name: &str| {
        let values: Vec<_> = head.headers.get_all(name).iter().map(|it| it.to_str().unwrap()).collect();
        values.join("|")
    };
    let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
    let path = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let text = format!(
        "{name} {} {path} {} {} at={authority} cookie={} te={} connection={} host={}",
        head.method,
        peer.ip(),
        checksum(&bytes),
        field("cookie"),
        field("te"),
        field("connection"),
        field("host"),
    );
    let response = Response::builder().header("x-server", name).body(()).unwrap();
    let to = respond.send_response(response, false)?;
    send(to, text.into(), trailers.unwrap_or_default()).await
}

/// Tells that the body is wanted, where that is asked, and then of what will be wanted beside the answer.
async fn hints(
    at: (String, SocketAddr, usize),
    request: Request2,
    mut respond: SendResponse<Bytes>,
    count: usize,
) -> Result<(), h2::Error> {
    let interim = |status: u16| Response::builder().status(status);
    if request.headers().contains_key("expect") {
        respond.send_informational(interim(100).body(()).unwrap())?;
    }
    for _ in 0..count {
        respond.send_informational(interim(103).header("link", "</a.css>").body(()).unwrap())?;
    }
    echo(at, request, respond).await
}

/// A call of gRPC: each piece comes back as it comes, then the status.
async fn stream(request: Request2, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut to = respond.send_response(response, false)?;
    let mut body = request.into_body();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        to.send_data(piece, false)?;
    }
    to.send_trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]))
}

fn only_trailers(mut respond: SendResponse<Bytes>, status: &'static str) -> Result<(), h2::Error> {
    let response =
        Response::builder().header("content-type", "application/grpc").header("grpc-status", status);
    respond.send_response(response.body(()).unwrap(), true).map(drop)
}

/// Answers before the body has come, and wants none of it.
async fn early(mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let response = Response::builder().status(StatusCode::PAYLOAD_TOO_LARGE).body(()).unwrap();
    let mut to = respond.send_response(response, false)?;
    to.send_data("big".into(), true)?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    to.send_reset(Reason::NO_ERROR);
    Ok(())
}

/// Never answers.
async fn hold(mut respond: SendResponse<Bytes>, tell: &Sender<String>, path: &str) -> Result<(), h2::Error> {
    let reason = poll_fn(|context| respond.poll_reset(context)).await?;
    let _ = tell.send(format!("reset {path} {reason:?}"));
    Ok(())
}

/// Breaks off in the middle, when the client has read the first part.
async fn torn(request: Request2, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut to = respond.send_response(Response::new(()), false)?;
    to.send_data("the first part".into(), false)?;
    let _read = request.into_body().data().await;
    to.send_reset(Reason::INTERNAL_ERROR);
    Ok(())
}

async fn bulk(mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let to = respond.send_response(Response::new(()), false)?;
    send(to, pattern(3_000_001).into(), HeaderMap::new()).await
}

/// One trailer.
pub fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
}
