//! Answers framed requests (see [`crate::wire`]) on a current-thread runtime.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::wire::{BLOCK_BYTES, HEAD_BYTES, RequestHead, block, is_pattern};
use crate::{Failure, machine};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// CPU to run on.
    #[arg(long)]
    core: Option<usize>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(core) = args.core {
        machine::pin(core)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listen = args.listen;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind(listen).await?;
        serve(listener).await
    })
}

/// Accepts until the future is dropped.
pub(crate) async fn serve(listener: TcpListener) -> Result<(), Failure> {
    let block = Rc::new(block());
    loop {
        let (stream, _) = listener.accept().await?;
        let block = block.clone();
        tokio::task::spawn_local(async move {
            // A client that stops in the middle of a request is the client's affair.
            let _ = converse(stream, &block).await;
        });
    }
}

async fn converse(mut stream: TcpStream, block: &[u8]) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let mut small = [0; 4096];
    let mut filled = 0;
    loop {
        while filled < HEAD_BYTES {
            let count = stream.read(&mut small[filled..]).await?;
            if count == 0 {
                return Ok(());
            }
            filled += count;
        }
        let mut head = [0; HEAD_BYTES];
        head.copy_from_slice(&small[..HEAD_BYTES]);
        let head = RequestHead::decode(head).ok_or("not a request")?;
        let body = head.request_body as usize;
        let here = body.min(filled - HEAD_BYTES);
        if !is_pattern(block, 0, &small[HEAD_BYTES..HEAD_BYTES + here]) {
            return Err("a request body is wrong".into());
        }
        small.copy_within(HEAD_BYTES + here..filled, 0);
        filled -= HEAD_BYTES + here;
        if body > here {
            receive(&mut stream, block, here as u64, (body - here) as u64).await?;
        }
        respond(&mut stream, block, head).await?;
    }
}

async fn receive(
    stream: &mut TcpStream,
    block: &[u8],
    mut position: u64,
    mut rest: u64,
) -> Result<(), Failure> {
    let mut buffer = vec![0; usize::try_from(rest)?.min(512 * 1024)];
    while rest > 0 {
        let room = usize::try_from(rest)?.min(buffer.len());
        let count = stream.read(&mut buffer[..room]).await?;
        if count == 0 || !is_pattern(block, position, &buffer[..count]) {
            return Err("a request body is cut or wrong".into());
        }
        position += count as u64;
        rest -= count as u64;
    }
    Ok(())
}

async fn respond(stream: &mut TcpStream, block: &[u8], head: RequestHead) -> Result<(), Failure> {
    let sequence = head.sequence.to_le_bytes();
    let mut rest = head.response_body as usize;
    if rest <= 2048 {
        let mut response = [0; 2052];
        response[..4].copy_from_slice(&sequence);
        response[4..4 + rest].copy_from_slice(&block[..rest]);
        stream.write_all(&response[..4 + rest]).await?;
        return Ok(());
    }
    stream.write_all(&sequence).await?;
    while rest > 0 {
        let run = rest.min(BLOCK_BYTES);
        stream.write_all(&block[..run]).await?;
        rest -= run;
    }
    Ok(())
}
