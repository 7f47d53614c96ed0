//! What runs in the pods: an HTTP/1.1 server on each container port that answers with what it was asked.
//!
//! One thread serves all pods: a socket belongs to the namespace in which it was made, so only the listening happens
//! inside the pod ([`NetworkNamespace::within`]).
//!
//! Whatever the path starts with, its end chooses: `.../bytes/N` answers N bytes of the [`Pattern`] of seed N,
//! `.../checksum` answers the SHA-256 of the body; anything else answers the request itself as JSON.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::pattern::{Pattern, hexadecimal};
use crate::net::{NamespaceError, NetworkNamespace, canonical};

/// Largest answer of `/bytes/N`.
pub const BYTES_MAX: u64 = 16 << 30;
/// Orders that may wait for the thread.
const ORDERS_MAX: usize = 1_024;
const LISTEN_BACKLOG: i32 = 1_024;

/// Why a pod's server does not run.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("port {port} of pod {pod} cannot be listened on: {source}")]
    Listen { pod: Arc<str>, port: u16, source: io::Error },
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("the thread of the pods' servers cannot run: {0}")]
    Thread(#[source] io::Error),
    #[error("the thread of the pods' servers has ended")]
    Gone,
}

/// The servers of all pods.
#[derive(Debug)]
pub struct Workloads {
    orders: mpsc::Sender<Order>,
}

/// What the pod says of itself in its answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLabel {
    pub namespace: Arc<str>,
    pub pod: Arc<str>,
    pub node: Arc<str>,
}

/// An answer: the request as it arrived in the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    #[serde(flatten)]
    pub label: PodLabel,
    pub port: u16,
    pub method: String,
    pub path: String,
    /// Repeated headers are joined with commas.
    pub headers: BTreeMap<String, String>,
    /// The source address that the application sees.
    pub remote: SocketAddr,
}

/// An answer of `.../checksum`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    #[serde(flatten)]
    pub label: PodLabel,
    pub bytes: u64,
    pub sha256: String,
}

enum Order {
    Serve { uid: Arc<str>, label: PodLabel, listeners: Vec<TcpListener> },
    Stop { uid: Arc<str> },
}

type Body = BoxBody<Bytes, Infallible>;

// === impl Workloads ===

impl Workloads {
    /// Starts the thread, which ends when this handle is dropped.
    pub fn start() -> Result<Self, WorkloadError> {
        let (orders, received) = mpsc::channel(ORDERS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(WorkloadError::Thread)?;
        thread::Builder::new()
            .name("pods".to_owned())
            .spawn(move || runtime.block_on(run(received)))
            .map_err(WorkloadError::Thread)?;
        Ok(Self { orders })
    }

    /// Listens on `ports` inside the pod and serves them, in place of what the pod served before. When this returns,
    /// connections are taken.
    pub fn serve(
        &self,
        uid: &Arc<str>,
        label: PodLabel,
        namespace: &NetworkNamespace,
        ports: &[u16],
    ) -> Result<(), WorkloadError> {
        self.stop(uid)?;
        let listeners = namespace.within(|| {
            ports
                .iter()
                .map(|&port| {
                    listen(port).map_err(|source| WorkloadError::Listen {
                        pod: Arc::clone(uid),
                        port,
                        source,
                    })
                })
                .collect::<Result<Vec<_>, _>>()
        })??;
        let order = Order::Serve { uid: Arc::clone(uid), label, listeners };
        self.orders.try_send(order).map_err(|_| WorkloadError::Gone)
    }

    /// Ends the pod's server and its connections.
    pub fn stop(&self, uid: &Arc<str>) -> Result<(), WorkloadError> {
        self.orders.try_send(Order::Stop { uid: Arc::clone(uid) }).map_err(|_| WorkloadError::Gone)
    }
}

/// Both families on one socket, where IPv6 exists.
fn listen(port: u16) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let (socket, at) = if let Ok(socket) = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)) {
        socket.set_only_v6(false)?;
        (socket, at)
    } else {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        (socket, SocketAddr::from(([0, 0, 0, 0], port)))
    };
    // A successor may listen while connections of its predecessor linger; two servers at once may as well, shortly.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

async fn run(mut orders: mpsc::Receiver<Order>) {
    let mut running: BTreeMap<Arc<str>, Vec<JoinHandle<()>>> = BTreeMap::new();
    while let Some(order) = orders.recv().await {
        match order {
            Order::Serve { uid, label, listeners } => {
                let label = Arc::new(label);
                let tasks = listeners.into_iter().filter_map(|listener| {
                    let port = listener.local_addr().ok()?.port();
                    let listener = tokio::net::TcpListener::from_std(listener).ok()?;
                    Some(tokio::spawn(accept(listener, port, Arc::clone(&label))))
                });
                running.insert(uid, tasks.collect());
            }
            Order::Stop { uid } => {
                for task in running.remove(&uid).into_iter().flatten() {
                    task.abort();
                }
            }
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, port: u16, label: Arc<PodLabel>) {
    // Connections end with this task: a stopped pod does not go on answering.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => {
                    let label = Arc::clone(&label);
                    // Best effort: only latency suffers without.
                    drop(stream.set_nodelay(true));
                    connections.spawn(async move {
                        let service = service_fn(|request| answer(request, Arc::clone(&label), port, canonical(remote)));
                        let connection = hyper::server::conn::http1::Builder::new()
                            .half_close(true)
                            .serve_connection(TokioIo::new(stream), service);
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, pod = %label.pod, "a connection of a pod's server broke");
                        }
                    });
                }
                // Out of descriptors, or the peer has gone already; there is nothing to do but to go on.
                Err(error) => {
                    tracing::debug!(%error, pod = %label.pod, "a connection was not accepted");
                    tokio::task::yield_now().await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    label: Arc<PodLabel>,
    port: u16,
    remote: SocketAddr,
) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path();
    let mut segments = path.rsplit('/');
    let (last, previous) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    if previous == "bytes" {
        return Ok(match last.parse().ok().filter(|n| *n <= BYTES_MAX) {
            Some(length) => bytes(length),
            None => plain(StatusCode::BAD_REQUEST, format!("bytes/N: N is at most {BYTES_MAX}\n")),
        });
    }
    if last == "checksum" && request.method() == Method::POST {
        return checksum(request.into_body(), PodLabel::clone(&label)).await;
    }
    let echo = echo(&request, PodLabel::clone(&label), port, remote);
    // Read to the end, so that the connection can carry another request.
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(json(&echo))
}

fn echo(request: &Request<Incoming>, label: PodLabel, port: u16, remote: SocketAddr) -> Echo {
    let mut headers = BTreeMap::<String, String>::new();
    for (name, value) in request.headers() {
        let text = String::from_utf8_lossy(value.as_bytes());
        headers
            .entry(name.as_str().to_owned())
            .and_modify(|all| {
                all.push(',');
                all.push_str(&text);
            })
            .or_insert_with(|| text.clone().into_owned());
    }
    let path = request.uri().path_and_query().map_or("", |p| p.as_str()).to_owned();
    Echo { label, port, method: request.method().to_string(), path, headers, remote }
}

async fn checksum(mut body: Incoming, label: PodLabel) -> Result<Response<Body>, hyper::Error> {
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes += data.len() as u64;
            hasher.update(&data);
        }
    }
    Ok(json(&Checksum { label, bytes, sha256: hexadecimal(&hasher.finalize()) }))
}

fn bytes(length: u64) -> Response<Body> {
    let chunks = Pattern::new(length, length).map(|chunk| Ok(Frame::data(chunk)));
    let mut response = Response::new(StreamBody::new(stream::iter(chunks)).boxed());
    response.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
    response
}

fn json<T: Serialize>(value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => {
            let mut response = Response::new(Full::from(text).boxed());
            let json = http::HeaderValue::from_static("application/json");
            response.headers_mut().insert(http::header::CONTENT_TYPE, json);
            response
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::from(text).boxed());
    *response.status_mut() = status;
    response
}
