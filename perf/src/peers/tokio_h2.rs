//! The conventional stack: tokio (current thread), tokio-rustls, the h2 crate; windows and frame size of HBONE.
//!
//! Written as its authors would: buffers that grow with the flow, flow-control credit given back once a chunk has
//! been written, one driver task per connection, one task per direction of a stream.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode, Uri};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{ClientArgs, ServerArgs};
use crate::tls::{client_config, server_config};
use crate::{Failure, sockets};

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const FRAME_SIZE: u32 = 1 << 20;
const STREAMS_PER_CONNECTION: usize = 100;

// === Client ===

pub(crate) async fn client(args: ClientArgs) -> Result<(), Failure> {
    let listener = sockets::listen(args.listen, args.congestion.as_deref())?;
    let connector = TlsConnector::from(Arc::new(client_config(&args.files)?));
    let pool = Rc::new(Pool {
        args,
        connector,
        tunnels: RefCell::new(Vec::new()),
        opening: tokio::sync::Mutex::new(()),
    });
    loop {
        let (stream, _) = listener.accept().await?;
        let pool = pool.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = carry(&pool, stream).await {
                eprintln!("tokio-h2 client: {error}");
            }
        });
    }
}

struct Pool {
    args: ClientArgs,
    connector: TlsConnector,
    tunnels: RefCell<Vec<Tunnel>>,
    opening: tokio::sync::Mutex<()>,
}

struct Tunnel {
    sender: h2::client::SendRequest<Bytes>,
    /// One reference per stream in use, and one here.
    streams: Rc<()>,
}

impl Pool {
    fn existing(&self) -> Option<(h2::client::SendRequest<Bytes>, Rc<()>)> {
        let tunnels = self.tunnels.borrow();
        let tunnel =
            tunnels.iter().find(|tunnel| Rc::strong_count(&tunnel.streams) <= STREAMS_PER_CONNECTION)?;
        Some((tunnel.sender.clone(), tunnel.streams.clone()))
    }

    async fn get(&self) -> Result<(h2::client::SendRequest<Bytes>, Rc<()>), Failure> {
        if let Some(found) = self.existing() {
            return Ok(found);
        }
        let _one_at_a_time = self.opening.lock().await;
        if let Some(found) = self.existing() {
            return Ok(found);
        }
        let tcp = sockets::connect(self.args.peer, self.args.congestion.as_deref()).await?;
        let tls = self.connector.connect(ServerName::try_from("unused.invalid")?, tcp).await?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .enable_push(false)
            .handshake(tls)
            .await?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        let streams = Rc::new(());
        self.tunnels.borrow_mut().push(Tunnel { sender: sender.clone(), streams: streams.clone() });
        Ok((sender, streams))
    }
}

async fn carry(pool: &Pool, stream: TcpStream) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let (sender, _in_use) = pool.get().await?;
    let mut sender = sender.ready().await?;
    let uri: Uri = pool.args.authority.parse()?;
    let request = Request::builder().method(Method::CONNECT).uri(uri).body(())?;
    let (response, send) = sender.send_request(request, false)?;
    let response = response.await?;
    if response.status() != StatusCode::OK {
        return Err(format!("the server answered {}", response.status()).into());
    }
    relay(stream, send, response.into_body()).await
}

// === Server ===

pub(crate) async fn server(args: ServerArgs) -> Result<(), Failure> {
    let listener = sockets::listen(args.listen, args.congestion.as_deref())?;
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&args.files)?));
    let congestion: Option<Rc<str>> = args.congestion.as_deref().map(Rc::from);
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, congestion) = (acceptor.clone(), congestion.clone());
        tokio::task::spawn_local(async move {
            // A client that goes away ends its connection; that is no news.
            let _ = serve(stream, acceptor, congestion).await;
        });
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, congestion: Option<Rc<str>>) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let tls = acceptor.accept(stream).await?;
    let mut connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_concurrent_streams(200)
        .handshake::<_, Bytes>(tls)
        .await?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        let congestion = congestion.clone();
        tokio::task::spawn_local(async move {
            let outcome = async {
                let address = request.uri().authority().ok_or("no authority")?.as_str().parse()?;
                let upstream = sockets::connect(address, congestion.as_deref()).await?;
                let send = respond.send_response(Response::new(()), false)?;
                relay(upstream, send, request.into_body()).await
            };
            let _ = outcome.await;
        });
    }
    Ok(())
}

// === Both ===

async fn relay(stream: TcpStream, send: SendStream<Bytes>, receive: RecvStream) -> Result<(), Failure> {
    let (read, write) = stream.into_split();
    tokio::try_join!(to_tunnel(read, send), from_tunnel(receive, write))?;
    Ok(())
}

async fn to_tunnel(mut read: impl AsyncRead + Unpin, mut send: SendStream<Bytes>) -> Result<(), Failure> {
    let mut moved = 0_u64;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(read_size(moved));
        if read.read_buf(&mut buffer).await? == 0 {
            send.send_data(Bytes::new(), true)?;
            return Ok(());
        }
        moved += buffer.len() as u64;
        let mut data = buffer.split().freeze();
        while !data.is_empty() {
            send.reserve_capacity(data.len());
            let capacity = std::future::poll_fn(|context| send.poll_capacity(context))
                .await
                .ok_or("stream closed")??;
            send.send_data(data.split_to(capacity.min(data.len())), false)?;
        }
    }
}

async fn from_tunnel(mut receive: RecvStream, mut write: impl AsyncWrite + Unpin) -> Result<(), Failure> {
    while let Some(chunk) = receive.data().await {
        let chunk = chunk?;
        write.write_all(&chunk).await?;
        receive.flow_control().release_capacity(chunk.len())?;
    }
    write.shutdown().await?;
    Ok(())
}

/// Grows with the flow: small for request traffic, large for bulk.
fn read_size(moved: u64) -> usize {
    match moved {
        0..131_072 => 1024,
        131_072..10_485_760 => 16 * 1024,
        _ => 256 * 1024,
    }
}
