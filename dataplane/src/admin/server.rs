//! The small HTTP/1.1 server of the control thread.

use std::convert::Infallible;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, VARY};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::negotiation;
use super::page::{Ask, Page, parse_query};

/// Connections to one site at a time; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 64;
/// Time that a client may take over its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Pages smaller than this are sent as they are.
const PACKED_BYTES_MIN: usize = 1_024;
/// Rest of a listener that cannot accept for lack of descriptors.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Where a site listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    Tcp(SocketAddr),
    /// A socket file, for its owner only.
    Unix(PathBuf),
}

/// A set of pages. Lives on the control thread.
pub trait Site: 'static {
    fn answer(&self, ask: Ask) -> impl Future<Output = Page>;
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Binds and serves until the returned task is aborted. Must be called inside a `LocalSet`. With the address that it
/// got, where it is TCP.
pub async fn serve<S: Site>(
    binding: &Binding,
    site: Rc<S>,
) -> io::Result<(Option<SocketAddr>, tokio::task::JoinHandle<()>)> {
    let listening = match binding {
        Binding::Tcp(address) => Listening::Tcp(TcpListener::bind(address).await?),
        Binding::Unix(path) => {
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            Listening::Unix(listener)
        }
    };
    let address = match &listening {
        Listening::Tcp(listener) => Some(listener.local_addr()?),
        Listening::Unix(_) => None,
    };
    Ok((address, tokio::task::spawn_local(accept(listening, site))))
}

async fn accept<S: Site>(listening: Listening, site: Rc<S>) {
    let places = std::sync::Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped, and with it every connection, when the task is aborted.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // The semaphore is never closed.
        let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else { return };
        let site = Rc::clone(&site);
        let accepted = match &listening {
            Listening::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                connections.spawn_local(async move {
                    connection(stream, site).await;
                    drop(place);
                });
            }),
            Listening::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                connections.spawn_local(async move {
                    connection(stream, site).await;
                    drop(place);
                });
            }),
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "an admin connection was not accepted");
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
        }
    }
}

async fn connection<S: Site>(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, site: Rc<S>) {
    let service = service_fn(|request: Request<Incoming>| {
        let site = Rc::clone(&site);
        async move {
            let packs = negotiation::accepts(&header(&request, &ACCEPT_ENCODING), "gzip");
            let page = site.answer(ask(&request)).await;
            Ok::<_, Infallible>(response(page, packs))
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        // A client that has sent its request may end its direction; it still wants the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection broke");
    }
}

fn ask(request: &Request<Incoming>) -> Ask {
    Ask {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: parse_query(request.uri().query().unwrap_or_default()),
        accept: header(request, &ACCEPT),
    }
}

/// The values of a list header, joined; empty where there is none.
fn header(request: &Request<Incoming>, name: &HeaderName) -> String {
    let values = request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(",")
}

/// The page as a response, packed if the client takes that and it is worth it.
fn response(page: Page, packs: bool) -> Response<Full<Bytes>> {
    let packed = (packs && page.body.len() >= PACKED_BYTES_MIN).then(|| pack(&page.body)).flatten();
    let is_packed = packed.is_some();
    let mut response = Response::new(Full::from(packed.unwrap_or(page.body)));
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    if is_packed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

fn pack(body: &[u8]) -> Option<Bytes> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing into memory does not fail.
    packer.write_all(body).ok()?;
    packer.finish().ok().map(Bytes::from)
}
