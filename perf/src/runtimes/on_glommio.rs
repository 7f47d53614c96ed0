//! Echo and relay on glommio.

use std::net::SocketAddr;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};

use super::{buffer, own_core};
use crate::Failure;

pub(super) fn run(program: impl Future<Output = Result<(), Failure>> + 'static) -> Result<(), Failure> {
    let executor =
        LocalExecutorBuilder::new(Placement::Fixed(own_core()?)).make().map_err(|error| error.to_string())?;
    executor.run(program)
}

pub(super) async fn echo(listen: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen).map_err(|error| error.to_string())?;
    loop {
        let stream = listener.accept().await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (read, write) = stream.split();
        glommio::spawn_local(copy(read, write)).detach();
    }
}

pub(super) async fn relay(listen: SocketAddr, to: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen).map_err(|error| error.to_string())?;
    loop {
        let downstream = listener.accept().await.map_err(|error| error.to_string())?;
        glommio::spawn_local(async move {
            let Ok(upstream) = TcpStream::connect(to).await else { return };
            let _ = (downstream.set_nodelay(true), upstream.set_nodelay(true));
            let (down_read, down_write) = downstream.split();
            let (up_read, up_write) = upstream.split();
            glommio::spawn_local(copy(down_read, up_write)).detach();
            glommio::spawn_local(copy(up_read, down_write)).detach();
        })
        .detach();
    }
}

async fn copy(mut read: impl AsyncRead + Unpin, mut write: impl AsyncWrite + Unpin) {
    let mut buffer = buffer();
    while let Ok(count @ 1..) = read.read(&mut buffer).await {
        if write.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // The other direction may go on; a peer that is gone already needs no FIN.
    let _ = write.close().await;
}
