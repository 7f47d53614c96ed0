//! The backend: answers each message of a call with one message; the call ends when the client has ended its side.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{self, SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};

use super::{Messages, NUMBER_BYTES, REQUEST_BYTES, WINDOW_BYTES, message};
use crate::wire::block;
use crate::{Failure, machine};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    listen: SocketAddr,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    machine::raise_descriptor_limit();
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(args.listen), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&args.listen.into())?;
    socket.listen(4096)?;
    serve(socket.into())
}

pub(super) fn serve(listener: TcpListener) -> Result<(), Failure> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let block = Rc::new(block());
        loop {
            let (stream, _) = listener.accept().await?;
            let block = block.clone();
            spawn_local(async move {
                // A connection that breaks is the client's affair.
                let _ = converse(stream, &block).await;
            });
        }
    })
}

async fn converse(stream: TcpStream, block: &Rc<Vec<u8>>) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let mut builder = server::Builder::new();
    builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    let mut connection = builder.handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        let block = block.clone();
        spawn_local(async move {
            if let Err(error) = answer(request, respond, &block).await {
                eprintln!("perf grpc backend: {error}");
            }
        });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    block: &[u8],
) -> Result<(), Failure> {
    let mut body = request.into_body();
    let response = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut reply = respond.send_response(response, false)?;
    let mut messages = Messages::default();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        messages.push(&piece);
        while let Some(request) = messages.next()? {
            let Some((wanted, number)) = request.split_first_chunk::<NUMBER_BYTES>() else {
                return Err("a request is too short".into());
            };
            let wanted = usize::try_from(u64::from_be_bytes(*wanted))?;
            let bytes = block.get(..wanted).filter(|_| request.len() == REQUEST_BYTES);
            let bytes = bytes.ok_or("a request has another length than all, or asks for too much")?;
            reply.send_data(message(&[number, bytes]), false)?;
        }
    }
    if !messages.is_empty() {
        return Err("a call ends within a message".into());
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Ok(reply.send_trailers(trailers)?)
}
