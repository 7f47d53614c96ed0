//! The embedded control plane as its clients meet it: a real socket, TLS, a token, delta discovery, certificates;
//! and a folder of YAML that changes underneath.
//!
//! Every wait is for an event. The time limit only ends a test that has already failed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use xds::control::{ControlConfig, ControlPlane, ListenAddress, NodeCredential, SERVER_NAME};
use xds::proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use xds::proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use xds::proto::workload::{Address, TunnelProtocol, Workload, address};
use xds::proto::{ADDRESS_TYPE, AUTHORIZATION_POLICY_TYPE, AUTHORIZATION_TYPE, HTTP_ROUTE_TYPE, rpc};

const PATIENCE: Duration = Duration::from_secs(30);
const TYPES: [&str; 4] = [ADDRESS_TYPE, AUTHORIZATION_TYPE, HTTP_ROUTE_TYPE, AUTHORIZATION_POLICY_TYPE];

const POLICY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: web
  namespace: app
spec:
  selector:
    matchLabels:
      app: web
  rules:
  - to:
    - operation:
        paths: [\"/v1/*\"]
";

const APP: &str = "\
apiVersion: v1
kind: Namespace
metadata:
  name: app
  labels:
    istio.io/dataplane-mode: ambient
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: web
  namespace: app
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: app
  labels: {app: web}
spec:
  serviceAccountName: web
  containers:
  - name: echo
    image: echo
    ports:
    - containerPort: 8080
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: app
spec:
  selector:
    app: web
  ports:
  - name: http
    port: 80
    targetPort: 8080
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: web
  namespace: app
spec:
  parentRefs:
  - group: \"\"
    kind: Service
    name: web
    port: 80
  rules:
  - backendRefs:
    - name: web
      port: 80
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: strict
  namespace: app
spec:
  mtls:
    mode: STRICT
";

/// A control plane over a folder of its own.
struct Bed {
    directory: TempDir,
    plane: ControlPlane,
}

impl Bed {
    async fn start(change: impl FnOnce(&mut ControlConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let yaml = directory.path().join("yaml");
        fs::create_dir(&yaml).unwrap();
        fs::write(yaml.join("app.yaml"), APP).unwrap();
        fs::write(yaml.join("policy.yaml"), POLICY).unwrap();
        let mut config = ControlConfig::new(yaml, directory.path().join("state"), "node1");
        change(&mut config);
        let plane = ControlPlane::start(config).await.unwrap();
        Self { directory, plane }
    }

    fn write(&self, file: &str, content: &str) {
        fs::write(self.directory.path().join("yaml").join(file), content).unwrap();
    }

    fn token(&self, node: &str) -> String {
        fs::read_to_string(self.plane.token_path(node).unwrap()).unwrap()
    }

    async fn channel(&self) -> Channel {
        channel(self.plane.address(), self.plane.root_pem()).await.unwrap()
    }

    async fn client(&self) -> Client {
        Client::connect(self.channel().await, &self.token("node1")).await
    }
}

/// A channel that trusts one root and checks the server's name.
async fn channel(address: &ListenAddress, root_pem: &str) -> Result<Channel, tonic::transport::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der(root_pem)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let address = address.clone();
    Endpoint::from_static("http://control")
        .connect_with_connector(tower::service_fn(move |_: http::Uri| {
            let (connector, address) = (connector.clone(), address.clone());
            async move {
                let name = ServerName::try_from(SERVER_NAME).unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(match address {
                    ListenAddress::Unix(path) => {
                        let stream = tokio::net::UnixStream::connect(path).await?;
                        Box::new(connector.connect(name, stream).await?) as Box<dyn Stream>
                    }
                    ListenAddress::Tcp(address) => {
                        let stream = tokio::net::TcpStream::connect(address).await?;
                        Box::new(connector.connect(name, stream).await?)
                    }
                }))
            }
        }))
        .await
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

fn der(pem: &str) -> CertificateDer<'static> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents.into()
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let header = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
    request.metadata_mut().insert("authorization", header);
    request
}

/// A node proxy that applies what it receives.
struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    held: BTreeMap<(String, String), Vec<u8>>,
    /// One line for each change, oldest first: `+TYPE NAME` or `-TYPE NAME`.
    changes: VecDeque<String>,
    last_nonce: String,
}

impl Client {
    async fn connect(channel: Channel, token: &str) -> Self {
        let (requests, queued) = mpsc::channel(64);
        for type_url in TYPES {
            let node =
                Node { id: String::from("ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local"), ..Default::default() };
            let request = DeltaDiscoveryRequest {
                node: Some(node),
                type_url: type_url.to_owned(),
                ..Default::default()
            };
            requests.send(request).await.unwrap();
        }
        let mut service = AggregatedDiscoveryServiceClient::new(channel);
        let request = with_token(ReceiverStream::new(queued), token);
        let responses = service.delta_aggregated_resources(request).await.unwrap().into_inner();
        let mut client = Self {
            requests,
            responses,
            held: BTreeMap::new(),
            changes: VecDeque::new(),
            last_nonce: String::new(),
        };
        let mut answered: Vec<String> = Vec::new();
        while answered.len() < TYPES.len() {
            let type_url = client.receive().await.unwrap();
            if !answered.contains(&type_url) {
                answered.push(type_url);
            }
        }
        client
    }

    /// Takes one response, applies and acknowledges it.
    async fn receive(&mut self) -> Result<String, Status> {
        let response = tokio::time::timeout(PATIENCE, self.responses.message())
            .await
            .expect("a response arrives")?
            .expect("the stream goes on");
        let short = response.type_url.rsplit('.').next().unwrap().to_owned();
        for resource in response.resources {
            self.changes.push_back(format!("+{short} {}", resource.name));
            let body = resource.resource.unwrap();
            assert_eq!(body.type_url, response.type_url);
            self.held.insert((response.type_url.clone(), resource.name), body.value);
        }
        for name in response.removed_resources {
            self.changes.push_back(format!("-{short} {name}"));
            self.held.remove(&(response.type_url.clone(), name));
        }
        self.last_nonce.clone_from(&response.nonce);
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce,
            ..Default::default()
        };
        self.requests.send(ack).await.unwrap();
        Ok(response.type_url)
    }

    /// The changes up to and including `last`.
    async fn changes_until(&mut self, last: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            while let Some(change) = self.changes.pop_front() {
                seen.push(change);
                if seen.last().is_some_and(|change| change == last) {
                    return seen;
                }
            }
            self.receive().await.unwrap();
        }
    }

    fn body(&self, type_url: &str, name: &str) -> &[u8] {
        &self.held[&(type_url.to_owned(), name.to_owned())]
    }

    fn workload(&self, name: &str) -> Workload {
        match Address::decode(self.body(ADDRESS_TYPE, name)).unwrap().r#type.unwrap() {
            address::Type::Workload(workload) => workload,
            address::Type::Service(service) => panic!("{name} is the service {}", service.name),
        }
    }
}

/// Waits until the value satisfies `holds`, and returns it.
async fn until<T: Clone>(receiver: &mut watch::Receiver<T>, holds: impl FnMut(&T) -> bool) -> T {
    let waiting = tokio::time::timeout(PATIENCE, receiver.wait_for(holds));
    waiting.await.expect("the value appears").unwrap().clone()
}

#[tokio::test(flavor = "current_thread")]
async fn folder_is_served_and_its_changes_arrive_as_deltas() {
    let bed = Bed::start(|_| {}).await;
    let mut client = bed.client().await;
    assert!(bed.plane.problems().borrow().is_empty(), "{:?}", bed.plane.problems().borrow());
    let names: Vec<String> = client.held.keys().map(|(_, name)| name.clone()).collect();
    assert_eq!(
        names,
        [
            "app/web",
            "app/web/app/web.app.svc.cluster.local/80",
            "istio-system/istio_converted_static_strict",
            "Kubernetes//Pod/app/web",
            "app/web.app.svc.cluster.local",
        ]
    );
    let web = client.workload("Kubernetes//Pod/app/web");
    assert_eq!(web.tunnel_protocol(), TunnelProtocol::Hbone);
    assert_eq!(web.authorization_policies, ["app/web", "istio-system/istio_converted_static_strict"]);
    let route: l7::ir::HttpRoute = serde_json::from_slice(
        &xds::proto::l7::HttpRoute::decode(
            client.body(HTTP_ROUTE_TYPE, "app/web/app/web.app.svc.cluster.local/80"),
        )
        .unwrap()
        .ir,
    )
    .unwrap();
    assert_eq!((route.parent_port, route.rules.len()), (Some(80), 1));
    client.changes.clear();

    // A label takes the pod out of the mesh; nothing else is told again.
    bed.write("app.yaml", &APP.replace("{app: web}", "{app: web, istio.io/dataplane-mode: none}"));
    let changes = client.changes_until("+Address Kubernetes//Pod/app/web").await;
    assert_eq!(changes, ["+Address Kubernetes//Pod/app/web"]);
    let out = client.workload("Kubernetes//Pod/app/web");
    assert_eq!(out.tunnel_protocol(), TunnelProtocol::None);
    assert_eq!(out.addresses, web.addresses, "the assigned address stays");
    let view = bed.plane.view().borrow().clone();
    let pod = view.pods.values().next().unwrap();
    assert!(!pod.enrolled && pod.tcp_ports() == [8080] && view.namespaces["app"].ambient);

    // A policy goes with its file, after the workload that named it.
    fs::remove_file(bed.directory.path().join("yaml/policy.yaml")).unwrap();
    let changes = client.changes_until("-AuthorizationPolicy app/web").await;
    assert!(changes.contains(&String::from("+Address Kubernetes//Pod/app/web")), "{changes:?}");

    // And comes back before it.
    bed.write("policy.yaml", POLICY);
    let changes = client.changes_until("+Address Kubernetes//Pod/app/web").await;
    assert_eq!(changes, ["+AuthorizationPolicy app/web", "+Address Kubernetes//Pod/app/web"]);
    bed.plane.shutdown().await;
}

#[tokio::test(flavor = "current_thread")]
async fn broken_yaml_is_reported_and_the_last_good_state_stays() {
    let bed = Bed::start(|_| {}).await;
    let mut client = bed.client().await;
    let good = client.body(AUTHORIZATION_POLICY_TYPE, "app/web").to_vec();
    let mut problems = bed.plane.problems();
    bed.write("policy.yaml", &POLICY.replace("/v1/*", "/{**/users"));
    let found = until(&mut problems, |problems| !problems.is_empty()).await;
    let problem = found.iter().find(|problem| problem.is_error()).unwrap();
    assert_eq!((&*problem.file, problem.line), ("policy.yaml", 13), "{problem}");

    // Another file changes meanwhile: what arrives next is that change and nothing about the policy.
    client.changes.clear();
    bed.write("extra.yaml", "apiVersion: v1\nkind: Service\nmetadata:\n  name: extra\n  namespace: app\nspec:\n  ports:\n  - port: 80\n");
    let changes = client.changes_until("+Address app/extra.app.svc.cluster.local").await;
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(client.body(AUTHORIZATION_POLICY_TYPE, "app/web"), good);

    bed.write("policy.yaml", &POLICY.replace("/v1/*", "/v2/*"));
    client.changes_until("+AuthorizationPolicy app/web").await;
    assert_ne!(client.body(AUTHORIZATION_POLICY_TYPE, "app/web"), good);
    until(&mut problems, |problems| problems.iter().all(|problem| !problem.is_error())).await;
    bed.plane.shutdown().await;
}

#[tokio::test(flavor = "current_thread")]
async fn refused_response_is_surfaced_with_its_reason() {
    let bed = Bed::start(|_| {}).await;
    let client = bed.client().await;
    let status = rpc::Status { message: String::from("app/web: no"), ..Default::default() };
    let nack = DeltaDiscoveryRequest {
        type_url: AUTHORIZATION_POLICY_TYPE.to_owned(),
        response_nonce: client.last_nonce.clone(),
        error_detail: Some(status),
        ..Default::default()
    };
    client.requests.send(nack).await.unwrap();
    let mut rejections = bed.plane.rejections();
    let seen = until(&mut rejections, |rejections| !rejections.is_empty()).await;
    assert_eq!((&*seen[0].node, &*seen[0].message), ("node1", "app/web: no"));
}

fn signing_request(key: &KeyPair, uri: Option<&str>) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = uri.map(|uri| SanType::URI(uri.try_into().unwrap())).into_iter().collect();
    params.serialize_request(key).unwrap().pem().unwrap()
}

async fn certify(
    channel: &Channel,
    token: &str,
    csr: String,
    identity: Option<&str>,
) -> Result<IstioCertificateResponse, Status> {
    let metadata = identity.map(|identity| {
        let kind = prost_types::value::Kind::StringValue(identity.to_owned());
        Struct { fields: [(String::from("ImpersonatedIdentity"), Value { kind: Some(kind) })].into() }
    });
    let request = IstioCertificateRequest { csr, validity_duration: 3600, metadata };
    let mut service = IstioCertificateServiceClient::new(channel.clone());
    service.create_certificate(with_token(request, token)).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "current_thread")]
async fn node_gets_certificates_for_its_own_pods_only() {
    let bed = Bed::start(|config| {
        config.listen = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
        config.nodes.push(NodeCredential { node: "node2".into(), token: None });
    })
    .await;
    let channel = bed.channel().await;
    let web = "spiffe://cluster.local/ns/app/sa/web";
    let key = KeyPair::generate().unwrap();
    let csr = || signing_request(&key, Some(web));
    let issued = certify(&channel, &bed.token("node1"), csr(), Some(web)).await.unwrap();
    assert_eq!(issued.cert_chain.len(), 2);
    assert_eq!(issued.cert_chain[1], bed.plane.root_pem());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der(&issued.cert_chain[1])).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
    )
    .build()
    .unwrap();
    let leaf = der(&issued.cert_chain[0]);
    verifier.verify_client_cert(&leaf, &[], UnixTime::now()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(parsed.public_key().subject_public_key.data, key.public_key_raw());

    let refused = |result: Result<IstioCertificateResponse, Status>| result.unwrap_err().code();
    let other = "spiffe://cluster.local/ns/app/sa/other";
    let token = bed.token("node1");
    for (token, csr, identity, code) in [
        (bed.token("node2"), csr(), Some(web), Code::PermissionDenied),
        (token.clone(), signing_request(&key, None), Some(other), Code::PermissionDenied),
        (token.clone(), csr(), Some(other), Code::InvalidArgument),
        (token.clone(), signing_request(&key, None), None, Code::InvalidArgument),
        (token, String::from("garbage"), Some(web), Code::InvalidArgument),
        (String::from("wrong-token-of-nobody"), csr(), Some(web), Code::Unauthenticated),
    ] {
        assert_eq!(refused(certify(&channel, &token, csr, identity).await), code, "{identity:?}");
    }
    bed.plane.shutdown().await;
}

#[tokio::test(flavor = "current_thread")]
async fn nobody_comes_in_without_token_or_trust() {
    let bed = Bed::start(|_| {}).await;
    let mut service = AggregatedDiscoveryServiceClient::new(bed.channel().await);
    let request = with_token(tokio_stream::empty(), "not-the-token-of-node1");
    let status = service.delta_aggregated_resources(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);

    let stranger = Bed::start(|_| {}).await;
    assert!(
        channel(bed.plane.address(), stranger.plane.root_pem()).await.is_err(),
        "a client that trusts another root does not connect"
    );
}

#[tokio::test(flavor = "current_thread")]
async fn stopping_ends_the_streams_and_removes_the_socket() {
    let bed = Bed::start(|_| {}).await;
    let mut client = bed.client().await;
    let ListenAddress::Unix(socket) = bed.plane.address().clone() else { panic!("a Unix socket") };
    assert!(socket.exists());
    let ended = async {
        loop {
            match client.responses.message().await {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(bed.plane.shutdown(), ended) }).await.unwrap();
    assert!(!socket.exists());
}

#[tokio::test(flavor = "current_thread")]
async fn examples_are_free_of_problems() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hello-world");
    let state = tempfile::tempdir().unwrap();
    let config = ControlConfig::new(examples, state.path(), "node1");
    let plane = ControlPlane::start(config).await.unwrap();
    let problems = plane.problems().borrow().clone();
    assert!(problems.is_empty(), "{}", xds::kube::problem::render(&problems));
    let view = plane.view().borrow().clone();
    let enrolled: Vec<String> =
        view.pods.iter().filter(|(_, pod)| pod.enrolled).map(|(name, _)| name.to_string()).collect();
    assert_eq!(enrolled, ["hello/client", "hello/hello-world-v1", "hello/hello-world-v2"]);
    let ips: std::collections::BTreeSet<_> = view.pods.values().flat_map(|pod| &pod.ips).collect();
    assert_eq!(ips.len(), view.pods.len(), "every pod has an address of its own");
}
