//! Requests from inside a pod: HTTP/1.1 with keep-alive over a socket made in the pod's namespace.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpSocket;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::pattern::{Pattern, hexadecimal};
use crate::net::{NamespaceError, NetworkNamespace};

/// Longest wait for anything but a bulk body.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest text body that is kept.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Why a request got no whole answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("connection to {to} failed: {source}")]
    Connect { to: SocketAddr, source: io::Error },
    #[error("nothing came within {PATIENCE:?}")]
    TimedOut,
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the request cannot be written: {0}")]
    Request(#[from] http::Error),
    #[error("the answer is longer than {TEXT_BYTES_MAX} bytes")]
    TooLong,
}

/// One connection of a pod.
#[derive(Debug)]
pub struct PodConnection {
    sender: SendRequest<BoxBody<Bytes, Infallible>>,
    local: SocketAddr,
    host: String,
    driver: AbortHandle,
}

/// An answer whose body is kept.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An answer whose body was only counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub status: StatusCode,
    pub bytes: u64,
    pub sha256: String,
}

impl PodConnection {
    /// Connects from inside the pod. `host` is what the `Host` header says.
    pub async fn open(pod: &NetworkNamespace, to: SocketAddr, host: &str) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect { to, source };
        let socket = pod
            .within(|| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
                socket.set_nonblocking(true)?;
                socket.set_tcp_nodelay(true)?;
                Ok(socket)
            })?
            .map_err(failed)?;
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
        let stream = within_patience(connecting).await?.map_err(failed)?;
        let local = stream.local_addr().map_err(failed)?;
        let (sender, connection) =
            within_patience(hyper::client::conn::http1::handshake(TokioIo::new(stream))).await??;
        // What goes wrong with the connection, the request that is under way is told.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Self { sender, local, host: host.to_owned(), driver })
    }

    /// The address that the pod has given the connection.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends a request without body and keeps the answer's.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, ClientError> {
        let response = self.send(method, path, headers, Empty::new().boxed()).await?;
        let (head, body) = response.into_parts();
        let body = within_patience(text(body)).await??;
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Sends the pattern as a body and keeps the answer's.
    pub async fn upload(&mut self, path: &str, pattern: Pattern) -> Result<Answer, ClientError> {
        let chunks = StreamBody::new(stream::iter(pattern.map(|chunk| Ok(Frame::data(chunk)))));
        let request = self.build(Method::POST, path, &[], chunks.boxed())?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let body = within_patience(text(body)).await??;
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Reads the answer's body to its end and keeps only its length and checksum.
    pub async fn download(&mut self, path: &str) -> Result<Received, ClientError> {
        let response = self.send(Method::GET, path, &[], Empty::new().boxed()).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut hasher = Sha256::new();
        let mut bytes = 0;
        while let Some(frame) = within_patience(body.frame()).await? {
            if let Ok(data) = frame?.into_data() {
                bytes += data.len() as u64;
                hasher.update(&data);
            }
        }
        Ok(Received { status, bytes, sha256: hexadecimal(&hasher.finalize()) })
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: BoxBody<Bytes, Infallible>,
    ) -> Result<http::Response<Incoming>, ClientError> {
        let request = self.build(method, path, headers, body)?;
        within_patience(self.sender.ready()).await??;
        Ok(within_patience(self.sender.send_request(request)).await??)
    }

    fn build(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: BoxBody<Bytes, Infallible>,
    ) -> Result<Request<BoxBody<Bytes, Infallible>>, http::Error> {
        let mut request = Request::builder().method(method).uri(path).header(http::header::HOST, &self.host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body)
    }
}

impl Drop for PodConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn within_patience<F: Future>(future: F) -> Result<F::Output, ClientError> {
    timeout(PATIENCE, future).await.map_err(|_| ClientError::TimedOut)
}

async fn text(mut body: Incoming) -> Result<Bytes, ClientError> {
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if text.len() + data.len() > TEXT_BYTES_MAX {
                return Err(ClientError::TooLong);
            }
            text.extend_from_slice(&data);
        }
    }
    Ok(text.freeze())
}
