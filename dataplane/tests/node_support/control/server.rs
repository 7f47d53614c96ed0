//! The socket of the scripted control plane: TLS on TCP, both services, on a thread of its own.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use xds::proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use xds::proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;

use super::Script;
use super::authority::{Authority, Certificates};
use super::discovery::Discovery;

/// A serving thread; dropping it ends it and all its connections at once.
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(super) fn start(listener: TcpListener, script: &Arc<Script>, authority: &Arc<Authority>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (script, authority) = (script.clone(), authority.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, script, authority) => panic!("the control plane has ended"),
                    _ = stopped => {}
                }
            });
            // Dropping the runtime drops every connection.
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn serve(listener: TcpListener, script: Arc<Script>, authority: Arc<Authority>) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(authority.server_config()));
    let (ready, connections) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                socket.set_nodelay(true).unwrap();
                if let Ok(stream) = acceptor.accept(socket).await {
                    // Nobody takes it when the server is going down.
                    let _ = ready.send(Ok::<_, io::Error>(Connection(stream))).await;
                }
            });
        }
    });
    Server::builder()
        .add_service(AggregatedDiscoveryServiceServer::new(Discovery { script }))
        .add_service(IstioCertificateServiceServer::new(Certificates { authority }))
        .serve_with_incoming(ReceiverStream::new(connections))
        .await
        .unwrap();
}

struct Connection(TlsStream<TcpStream>);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A listener that speaks nothing known.
pub struct Nonsense {
    shared: Arc<NonsenseShared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct NonsenseShared {
    stopping: AtomicBool,
    answered: AtomicUsize,
}

impl Nonsense {
    pub(super) fn start(listener: TcpListener) -> Self {
        let shared = Arc::new(NonsenseShared::default());
        let here = shared.clone();
        listener.set_nonblocking(true).unwrap();
        let thread = std::thread::spawn(move || {
            while !here.stopping.load(Ordering::Relaxed) {
                let Ok((mut socket, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                socket.set_nonblocking(false).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                // The client may hang up at any time.
                let _ = socket.read(&mut [0; 4096]);
                let _ = socket.write_all(&[0x16, 0x03, 0x03, 0xff, 0xff, 0x42].repeat(1000));
                here.answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// How many connections were answered.
    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Nonsense {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
