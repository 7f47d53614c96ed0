//! Asks the admin page of a proxy.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::AdminAddress;
use crate::worker::BoxError;

/// How long a proxy may take to answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 30;

pub(super) struct Client<'a> {
    address: &'a AdminAddress,
}

impl<'a> Client<'a> {
    pub(super) fn new(address: &'a AdminAddress) -> Self {
        Self { address }
    }

    pub(super) fn json(&self, path: &str) -> Result<Value, BoxError> {
        let body = self.ask(Method::GET, path)?;
        serde_json::from_slice(&body)
            .map_err(|error| format!("{}{path} did not answer with JSON: {error}", self.address).into())
    }

    /// Has the proxy do something; what it says to that.
    pub(super) fn post(&self, path: &str) -> Result<String, BoxError> {
        Ok(String::from_utf8_lossy(&self.ask(Method::POST, path)?).into_owned())
    }

    fn ask(&self, method: Method, path: &str) -> Result<Bytes, BoxError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let late = || format!("{} did not answer within {} s", self.address, PATIENCE.as_secs());
        let asked =
            runtime.block_on(async { tokio::time::timeout(PATIENCE, self.exchange(method, path)).await });
        let (status, body) = asked.map_err(|_| late())??;
        if status != StatusCode::OK {
            let said = String::from_utf8_lossy(&body);
            return Err(format!("{}{path}: {status}: {}", self.address, said.trim()).into());
        }
        Ok(body)
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), BoxError> {
        let nobody = |error: io::Error| {
            format!(
                "no admin page at {}: {error}; is the proxy running here? Name another with --admin HOST:PORT or \
                 --admin unix:PATH, or a saved dump with --file",
                self.address
            )
        };
        match self.address {
            AdminAddress::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(nobody)?;
                over(stream, host, method, path).await
            }
            AdminAddress::Unix(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(nobody)?;
                over(stream, "localhost", method, path).await
            }
        }
    }
}

async fn over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    method: Method,
    path: &str,
) -> Result<(StatusCode, Bytes), BoxError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(http::header::HOST, host);
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
    driving.abort();
    Ok((head.status, body))
}
