//! The two gRPC services: delta discovery and certificates. A thin shell around [`super::session`] and [`super::ca`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use model::Identity;
use prost_types::value::Kind;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::auth::Tokens;
use super::ca::{self, CertificateAuthority, SigningRequest};
use super::index::Indexed;
use super::session::{Session, SessionError};
use crate::proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use crate::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

/// A reconnecting client sends a version for each resource it holds: about 80 bytes each.
pub const REQUEST_BYTES_MAX: usize = 64 << 20;
const CERTIFICATE_REQUEST_BYTES_MAX: usize = 64 << 10;
/// Responses that wait for the connection; beyond it the stream's task waits and later changes merge into one.
const RESPONSES_QUEUED_MAX: usize = 4;
/// Requests taken in before an answer, where several are there already.
const REQUESTS_PER_TURN_MAX: usize = 32;
/// Rejections that are remembered for whoever asks.
pub const REJECTIONS_KEPT: usize = 64;
/// Metadata of a certificate request that names the wanted identity.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// One accepted configuration, shared by all streams.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) generation: u64,
    pub(super) indexed: Indexed,
}

/// A response that a node's proxy refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRejection {
    pub node: Arc<str>,
    pub type_url: String,
    pub nonce: String,
    /// The client's reason: `name: reason` joined by `; `.
    pub message: String,
}

pub(super) type Rejections = watch::Sender<VecDeque<NodeRejection>>;

/// The node that a request's token was issued to.
#[derive(Debug, Clone)]
struct Caller(Arc<str>);

/// Lets in who shows a token, and notes whose it is.
#[derive(Clone)]
pub(super) struct Gatekeeper(Arc<Tokens>);

impl tonic::service::Interceptor for Gatekeeper {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let node = header.and_then(|header| self.0.node_of(header)).ok_or_else(|| {
            Status::unauthenticated(
                "authentication failure: no valid bearer token; read it from the token file",
            )
        })?;
        request.extensions_mut().insert(Caller(node));
        Ok(request)
    }
}

fn caller<T>(request: &Request<T>) -> Result<Arc<str>, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.map(|caller| caller.0.clone()).ok_or_else(|| Status::unauthenticated("no token was checked"))
}

// === Discovery ===

/// Serves delta discovery from the published states.
pub(super) struct Discovery {
    states: watch::Receiver<Arc<Published>>,
    streams: AtomicU64,
    rejections: Arc<Rejections>,
}

impl Discovery {
    pub(super) fn service(
        states: watch::Receiver<Arc<Published>>,
        rejections: Arc<Rejections>,
        tokens: Arc<Tokens>,
    ) -> InterceptedService<AggregatedDiscoveryServiceServer<Self>, Gatekeeper> {
        let discovery = Self { states, streams: AtomicU64::new(0), rejections };
        let server =
            AggregatedDiscoveryServiceServer::new(discovery).max_decoding_message_size(REQUEST_BYTES_MAX);
        InterceptedService::new(server, Gatekeeper(tokens))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let node = caller(&request)?;
        let number = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        let (responses, queued) = mpsc::channel(RESPONSES_QUEUED_MAX);
        let stream = Stream {
            session: Session::new(number, node.clone()),
            node,
            requests: request.into_inner(),
            responses,
            states: self.states.clone(),
            rejections: self.rejections.clone(),
        };
        tokio::spawn(stream.run(number));
        Ok(Response::new(ReceiverStream::new(queued)))
    }
}

/// The task of one client's stream.
struct Stream {
    session: Session,
    node: Arc<str>,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    states: watch::Receiver<Arc<Published>>,
    rejections: Arc<Rejections>,
}

impl Stream {
    async fn run(mut self, number: u64) {
        info!(node = %self.node, stream = number, "node proxy connected");
        let end = self.serve().await;
        if let Err(status) = end {
            debug!(node = %self.node, stream = number, "stream ends: {status}");
            // The client may be gone already.
            let _ = self.responses.send(Err(status)).await;
        }
        info!(node = %self.node, stream = number, "node proxy disconnected");
    }

    async fn serve(&mut self) -> Result<(), Status> {
        loop {
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.take(request)?,
                    None => return Ok(()),
                },
                changed = self.states.changed() => if changed.is_err() {
                    return Err(Status::unavailable("the control plane is going down"));
                },
                () = self.responses.closed() => return Ok(()),
            }
            // What is there already is taken in first, so that the answers to a client's opening requests come in
            // the order that is safe for it.
            for _ in 0..REQUESTS_PER_TURN_MAX {
                match self.requests.message().now_or_never() {
                    Some(Ok(Some(request))) => self.take(request)?,
                    Some(Err(status)) => return Err(status),
                    Some(Ok(None)) | None => break,
                }
            }
            let published = self.states.borrow_and_update().clone();
            for response in self.session.responses(&published.indexed.desired, published.generation) {
                debug!(
                    node = %self.node,
                    nonce = response.nonce,
                    type_url = response.type_url,
                    resources = response.resources.len(),
                    removed = response.removed_resources.len(),
                    "push"
                );
                if self.responses.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn take(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let rejection = self.session.on_request(request).map_err(|error| match error {
            SessionError::NodeMismatch { .. } => Status::permission_denied(error.to_string()),
            _ => Status::invalid_argument(error.to_string()),
        })?;
        if let Some(rejection) = rejection {
            warn!(
                node = %self.node,
                nonce = rejection.nonce,
                type_url = rejection.type_url,
                "the node proxy refused a response: {}",
                rejection.message
            );
            let rejection = NodeRejection {
                node: self.node.clone(),
                type_url: rejection.type_url,
                nonce: rejection.nonce,
                message: rejection.message,
            };
            self.rejections.send_modify(|kept| {
                if kept.len() == REJECTIONS_KEPT {
                    kept.pop_front();
                }
                kept.push_back(rejection);
            });
        }
        Ok(())
    }
}

// === Certificates ===

/// Signs for the nodes what their pods are entitled to.
pub(super) struct Certificates {
    authority: Arc<CertificateAuthority>,
    states: watch::Receiver<Arc<Published>>,
}

impl Certificates {
    pub(super) fn service(
        authority: Arc<CertificateAuthority>,
        states: watch::Receiver<Arc<Published>>,
        tokens: Arc<Tokens>,
    ) -> InterceptedService<IstioCertificateServiceServer<Self>, Gatekeeper> {
        let server = IstioCertificateServiceServer::new(Self { authority, states })
            .max_decoding_message_size(CERTIFICATE_REQUEST_BYTES_MAX);
        InterceptedService::new(server, Gatekeeper(tokens))
    }

    fn sign(&self, node: &str, request: &IstioCertificateRequest) -> Result<Vec<String>, Status> {
        let signing = SigningRequest::parse(&request.csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let identity = wanted_identity(request, &signing)?;
        let published = self.states.borrow().clone();
        if !ca::runs_on(&published.indexed.view, node, &identity) {
            return Err(Status::permission_denied(format!("no pod of {identity} runs on node {node}")));
        }
        let lifetime = u64::try_from(request.validity_duration).ok().filter(|seconds| *seconds > 0);
        self.authority
            .sign_workload(&signing, &identity, lifetime.map(Duration::from_secs), SystemTime::now())
            .map_err(|error| Status::internal(error.to_string()))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let node = caller(&request)?;
        match self.sign(&node, request.get_ref()) {
            Ok(cert_chain) => Ok(Response::new(IstioCertificateResponse { cert_chain })),
            Err(status) => {
                warn!(%node, "no certificate: {}", status.message());
                Err(status)
            }
        }
    }
}

/// The identity that the request's metadata names, else the one its CSR names; if both do, they must agree.
#[allow(clippy::result_large_err)] // Status is the error type of every service method
fn wanted_identity(request: &IstioCertificateRequest, signing: &SigningRequest) -> Result<Identity, Status> {
    let named =
        request.metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY)).and_then(
            |value| match &value.kind {
                Some(Kind::StringValue(text)) => Some(text.as_str()),
                _ => None,
            },
        );
    let named: Option<Identity> = named
        .map(str::parse)
        .transpose()
        .map_err(|error| Status::invalid_argument(format!("{IMPERSONATED_IDENTITY}: {error}")))?;
    match (named, signing.identity()) {
        (Some(named), Some(written)) if named != *written => Err(Status::invalid_argument(format!(
            "{IMPERSONATED_IDENTITY} names {named}, the request itself {written}"
        ))),
        (Some(named), _) => Ok(named),
        (None, Some(written)) => Ok(written.clone()),
        (None, None) => Err(Status::invalid_argument(format!(
            "no identity is named, neither by {IMPERSONATED_IDENTITY} nor by the request"
        ))),
    }
}
