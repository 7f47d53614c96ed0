//! Echo and relay on tokio's current-thread runtime.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use super::buffer;
use crate::Failure;

pub(super) fn run(program: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, program)
}

pub(super) async fn echo(listen: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        spawn_local(copy(read, write));
    }
}

pub(super) async fn relay(listen: SocketAddr, to: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (downstream, _) = listener.accept().await?;
        spawn_local(async move {
            let Ok(upstream) = TcpStream::connect(to).await else { return };
            let _ = (downstream.set_nodelay(true), upstream.set_nodelay(true));
            let (down_read, down_write) = downstream.into_split();
            let (up_read, up_write) = upstream.into_split();
            spawn_local(copy(down_read, up_write));
            spawn_local(copy(up_read, down_write));
        });
    }
}

async fn copy(mut read: OwnedReadHalf, mut write: OwnedWriteHalf) {
    let mut buffer = buffer();
    while let Ok(count @ 1..) = read.read(&mut buffer).await {
        if write.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // The other direction may go on; a peer that is gone already needs no FIN.
    let _ = write.shutdown().await;
}
