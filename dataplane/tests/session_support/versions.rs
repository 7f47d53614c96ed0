//! Servers of both versions of HTTP, behind one address that is routed by path.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};

use super::{Bed, PATIENCE, pods, policy};

/// One address, port 80 of which is declared as nothing, in front of services whose ports say what they speak, and one
/// that says nothing. `server` speaks HTTP/2 on port 8080, HTTP/1.1 on 8081, and on 8082 HTTP/2 that switches to no other
/// protocol.
pub fn routes() -> String {
    let mut yaml = pods();
    for (name, ip, selected, port) in [
        ("web", 1, "none", "port: 80, targetPort: 8080"),
        ("plain", 2, "server", "port: 8080, targetPort: 8080"),
        ("greeter", 3, "other", "port: 8080, targetPort: 8080, appProtocol: kubernetes.io/h2c"),
        ("old", 4, "server", "port: 8080, targetPort: 8081, appProtocol: http"),
        ("empty", 5, "none", "port: 8080, targetPort: 8080"),
        ("fixed", 6, "server", "port: 8080, targetPort: 8082, appProtocol: kubernetes.io/h2c"),
    ] {
        write!(
            yaml,
            "---
apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: app }}
spec: {{ clusterIP: 10.96.1.{ip}, selector: {{ app: {selected} }}, ports: [{{ {port} }}] }}
"
        )
        .unwrap();
    }
    yaml += "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
";
    for (path, backend) in
        [("/plain", "plain"), ("/grpc", "greeter"), ("/old", "old"), ("/empty", "empty"), ("/fixed", "fixed")]
    {
        let rule = ["  - matches: [{ path: { type: PathPrefix, value: ", path, " } }]\n"];
        let backend = ["    backendRefs: [{ name: ", backend, ", port: 8080 }]\n"];
        yaml.extend(rule.into_iter().chain(backend));
    }
    yaml
}

/// A node with servers of both versions, and what they tell.
pub struct Web {
    pub bed: Bed,
    pub service: SocketAddr,
    pub server: SocketAddr,
    pub told: Receiver<String>,
}

impl Web {
    pub fn new(yaml: &str) -> Self {
        let bed = Bed::new(yaml);
        let (tell, told) = channel();
        let server = bed.serve_http2("server", 8080, tell.clone());
        bed.serve_http2("other", 8080, tell.clone());
        bed.serve_http2_alone("server", 8082, tell.clone());
        bed.serve_http("server", 8081, tell);
        Self { bed, service: "10.96.1.1:80".parse().unwrap(), server, told }
    }

    /// Waits until a server has told of `line`.
    pub fn wait_for(&self, line: &str) {
        while self.told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("not told: {line}")) != line {}
    }
}

/// Routed at the client's proxy and authorized at the server's.
pub fn both() -> String {
    let paths = "['/plain/*', '/old/*', '/grpc/*', '/fixed/*']";
    routes() + &policy("paths", "ALLOW", &format!("[{{ to: [{{ operation: {{ paths: {paths} }} }}] }}]"))
}
