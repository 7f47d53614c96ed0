//! Echo and relay on monoio, with posted reads into a buffer per connection.

use std::net::SocketAddr;

use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, Splitable};
use monoio::net::{TcpListener, TcpStream};

use super::buffer;
use crate::Failure;

/// On io_uring with SINGLE_ISSUER and DEFER_TASKRUN, as the workers of the data plane run.
pub(super) fn uring(program: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let mut builder = io_uring::IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    let mut runtime =
        monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().uring_builder(builder).build()?;
    runtime.block_on(program)
}

pub(super) fn epoll(program: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build()?.block_on(program)
}

pub(super) async fn echo(listen: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        monoio::spawn(copy(read, write));
    }
}

pub(super) async fn relay(listen: SocketAddr, to: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen)?;
    loop {
        let (downstream, _) = listener.accept().await?;
        monoio::spawn(async move {
            let Ok(upstream) = TcpStream::connect_addr(to).await else { return };
            let _ = (downstream.set_nodelay(true), upstream.set_nodelay(true));
            let (down_read, down_write) = downstream.into_split();
            let (up_read, up_write) = upstream.into_split();
            monoio::spawn(copy(down_read, up_write));
            monoio::spawn(copy(up_read, down_write));
        });
    }
}

async fn copy(mut read: impl AsyncReadRent, mut write: impl AsyncWriteRent) {
    let mut owned = buffer();
    loop {
        let (count, filled) = read.read(owned).await;
        let Ok(count @ 1..) = count else { break };
        let (written, returned) = write.write_all(monoio::buf::IoBuf::slice(filled, ..count)).await;
        if written.is_err() {
            return;
        }
        owned = returned.into_inner();
    }
    // The other direction may go on; a peer that is gone already needs no FIN.
    let _ = write.shutdown().await;
}
