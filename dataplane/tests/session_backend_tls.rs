//! HTTP/2 and gRPC to backends that end TLS themselves, and copies of such requests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use session_support::http2::{Asked, read, request, trailers};
use session_support::{Bed, PATIENCE, checksum, inside, pattern, pods};

const GRPC: &str = "application/grpc";
const TLS_PORT: u16 = 8443;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn issuer() -> Issuer {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Issuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server named `backend.example` that offers these protocols.
fn server(issuer: &Issuer, protocols: &[&str]) -> Arc<ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.subject_alt_names = vec![SanType::DnsName("backend.example".try_into().unwrap())];
    let certificate = params.signed_by(&key, issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// One service in front of three that end TLS: one of gRPC, one that expects another name, one that says nothing of what
/// it speaks. Requests to `/copied` go to a plain one and are copied to the first of them and to one in the clear.
fn objects(issuer: &Issuer) -> String {
    let mut yaml = pods();
    for (name, ip, app, port) in [
        ("web", 1, "none", "port: 80"),
        ("greeter", 2, "server", "port: 443, targetPort: 8443, appProtocol: grpc"),
        ("mismatched", 3, "server", "port: 443, targetPort: 8443, appProtocol: grpc"),
        ("silent", 4, "other", "port: 443, targetPort: 8443"),
        ("clear", 5, "other", "port: 443, targetPort: 8080, appProtocol: kubernetes.io/h2c"),
        ("plain", 6, "server", "port: 443, targetPort: 8080"),
    ] {
        write!(
            yaml,
            "---
apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: app }}
spec: {{ clusterIP: 10.96.1.{ip}, selector: {{ app: {app} }}, ports: [{{ {port} }}] }}
"
        )
        .unwrap();
    }
    for (name, hostname) in
        [("greeter", "backend.example"), ("mismatched", "other.example"), ("silent", "backend.example")]
    {
        write!(
            yaml,
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{ name: {name}, namespace: app }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: {name} }}]
  validation:
    caCertificateRefs: [{{ group: '', kind: ConfigMap, name: authority }}]
    hostname: {hostname}
"
        )
        .unwrap();
    }
    let authority = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "authority", "namespace": "app" },
        "data": { "ca.crt": issuer.pem() },
    });
    write!(yaml, "---\n{authority}\n").unwrap();
    yaml += "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
  - matches: [{ path: { value: /greeter } }]
    backendRefs: [{ name: greeter, port: 443 }]
  - matches: [{ path: { value: /mismatched } }]
    backendRefs: [{ name: mismatched, port: 443 }]
  - matches: [{ path: { value: /silent } }]
    backendRefs: [{ name: silent, port: 443 }]
  - matches: [{ path: { value: /copied } }]
    filters:
    - { type: RequestMirror, requestMirror: { backendRef: { name: greeter, port: 443 } } }
    - { type: RequestMirror, requestMirror: { backendRef: { name: clear, port: 443 } } }
    backendRefs: [{ name: plain, port: 443 }]
";
    yaml
}

struct Web {
    bed: Bed,
    service: SocketAddr,
    issuer: Issuer,
    tell: Sender<String>,
    told: Receiver<String>,
}

impl Web {
    fn new() -> Self {
        let issuer = issuer();
        let (tell, told) = channel();
        let bed = Bed::new(&objects(&issuer));
        Self { bed, service: "10.96.1.1:80".parse().unwrap(), issuer, tell, told }
    }

    fn serve(&self, pod: &str, protocols: &[&str]) {
        self.bed.serve_http2_tls(pod, TLS_PORT, server(&self.issuer, protocols), self.tell.clone());
    }

    fn next(&self) -> String {
        self.told.recv_timeout(PATIENCE).unwrap()
    }
}

#[test]
fn grpc_goes_over_the_tls_of_its_backend() {
    inside("grpc_goes_over_the_tls_of_its_backend", || {
        let web = Web::new();
        web.serve("server", &["h2"]);
        let client = web.bed.client2("client", web.service);
        let body = pattern(2_000_003);
        let answer = client.post("/greeter/a", GRPC, &body, trailers("x-end", "1")).unwrap();
        let begin = format!("server POST /greeter/a 10.244.1.1 {} ", checksum(&body));
        assert!(answer.text().starts_with(&begin), "{}", answer.text());
        assert_eq!(answer.field("x-end"), Some("1"));
        assert_eq!(client.get("/greeter/status").unwrap().field("grpc-status"), Some("5"));
        assert!(client.get("/greeter/bulk").unwrap().body == pattern(3_000_001));
        // All of it over one connection, also what runs at the same time.
        let calls: Vec<_> = (0..50).map(|_| client.ask(request("GET", "/greeter/x", GRPC), true)).collect();
        for Asked { response, .. } in calls {
            assert_eq!(client.run(read(response)).unwrap().status, 200);
        }
        let told: Vec<_> = std::iter::from_fn(|| web.told.try_recv().ok()).collect();
        assert_eq!(told.iter().filter(|it| it.starts_with("tls")).collect::<Vec<_>>(), ["tls h2"]);
        // A client of HTTP/1.1 reaches it as well.
        assert!(web.bed.client("client", web.service).get("/greeter/old").text().starts_with("server GET"));
        drop(client);
        web.bed.until_idle();
    });
}

#[test]
fn a_backend_with_another_name_gets_no_request() {
    inside("a_backend_with_another_name_gets_no_request", || {
        let web = Web::new();
        web.serve("server", &["h2"]);
        let client = web.bed.client2("client", web.service);
        let answer = client.post("/mismatched/a", GRPC, b"", trailers("x", "y")).unwrap();
        assert_eq!((answer.status, answer.field("grpc-status")), (200, Some("14")));
        assert_eq!(client.get("/mismatched/b").unwrap().status, 503);
        assert!(web.told.try_recv().is_err());
    });
}

#[test]
fn the_backend_chooses_the_version() {
    inside("the_backend_chooses_the_version", || {
        let web = Web::new();
        web.serve("other", &["http/1.1"]);
        let client = web.bed.client2("client", web.service);
        for _ in 0..3 {
            let answer = client.get("/silent/a").unwrap();
            assert_eq!((answer.status, answer.field("x-server")), (200, Some("other")));
        }
        assert_eq!(web.next(), "tls http/1.1");
        assert!(web.told.try_recv().is_err(), "the connection is used again");
    });
}

#[test]
fn who_asks_in_http1_is_not_answered_in_http2() {
    inside("who_asks_in_http1_is_not_answered_in_http2", || {
        let web = Web::new();
        web.serve("other", &["h2", "http/1.1"]);
        assert_eq!(web.bed.client("client", web.service).get("/silent/a").status, 200);
        assert_eq!(web.next(), "tls http/1.1");
        assert_eq!(web.bed.client2("client", web.service).get("/silent/b").unwrap().status, 200);
        assert_eq!(web.next(), "tls h2");
    });
}

#[test]
fn copies_go_out_in_the_version_of_their_mirror() {
    inside("copies_go_out_in_the_version_of_their_mirror", || {
        let web = Web::new();
        web.serve("server", &["h2"]);
        web.bed.serve_http2("other", 8080, web.tell.clone());
        web.bed.serve_http("server", 8080, channel().0);
        let mut client = web.bed.client("client", web.service);
        assert!(client.get("/copied/a").text().starts_with("server GET /copied/a"));
        let mut told = [web.next(), web.next(), web.next()];
        told.sort();
        assert_eq!(told, ["GET /copied/a", "GET /copied/a", "tls h2"]);
        client.send("POST /copied/b HTTP/1.1\r\nhost: web\r\ncontent-length: 3\r\n\r\nabc").unwrap();
        assert_eq!(client.response().unwrap().status, 200);
        let mut told = [web.next(), web.next(), web.next()];
        told.sort();
        assert_eq!(told, ["POST /copied/b", "POST /copied/b", "tls h2"]);
    });
}
