//! A control plane that sends what it is told: gRPC over TLS on loopback, as a node proxy dials it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};
use xds::proto::AUTHORIZATION_TYPE;
use xds::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::mesh::response;
use crate::Failure;

/// The name in its certificate.
pub(super) const SERVER_NAME: &str = "control.perf";

type Sent = Result<DeltaDiscoveryResponse, Status>;

/// A server that runs on its own thread for as long as the process.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) root_pem: String,
    responses: mpsc::Sender<Sent>,
}

impl Server {
    pub(super) fn start() -> Result<Self, Failure> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([SERVER_NAME.to_owned()])?.self_signed(&key)?;
        let root_pem = certificate.pem();
        let key = PrivateKeyDer::try_from(key.serialize_der())?;
        let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let (responses, queued) = mpsc::channel(64);
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        std::thread::spawn(move || {
            let result = serve(listener, tls, queued).map_err(|error| error.to_string());
            if let Err(error) = result {
                eprintln!("perf: the control plane ended: {error}");
            }
        });
        Ok(Self { address, root_pem, responses })
    }

    /// Sends to the one client.
    pub(super) fn send(&self, response: DeltaDiscoveryResponse) -> Result<(), Failure> {
        self.responses.blocking_send(Ok(response)).map_err(|_| "the control plane has ended".into())
    }
}

fn serve(
    listener: std::net::TcpListener,
    tls: rustls::ServerConfig,
    queued: mpsc::Receiver<Sent>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let connections = futures::stream::unfold((listener, acceptor), |(listener, acceptor)| async {
            let accepted = accept(&listener, &acceptor).await;
            Some((accepted, (listener, acceptor)))
        });
        let script = Script(Mutex::new(Some(queued)));
        let service = AggregatedDiscoveryServiceServer::new(script);
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(connections).await?;
        Ok(())
    })
}

async fn accept(listener: &TcpListener, acceptor: &TlsAcceptor) -> io::Result<Connection> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(Connection(acceptor.accept(stream).await?))
}

/// Forwards the script to the one stream that it is for.
struct Script(Mutex<Option<mpsc::Receiver<Sent>>>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type DeltaAggregatedResourcesStream = ReceiverStream<Sent>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let script = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut script = script.ok_or_else(|| Status::unavailable("this script is for one stream"))?;
        let mut requests = request.into_inner();
        let (responses, queued) = mpsc::channel(4);
        // No policies: an answer to the first request of the type, as every server owes it.
        let empty = response(AUTHORIZATION_TYPE, Vec::new(), "policies");
        responses.send(Ok(empty)).await.map_err(|_| Status::cancelled("the client has gone"))?;
        tokio::spawn(async move { while let Ok(Some(_)) = requests.message().await {} });
        tokio::spawn(async move {
            while let Some(response) = script.recv().await {
                if responses.send(response).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(queued)))
    }
}

/// A TLS stream that tonic takes.
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
