//! Istio's own objects at the node: external authorizers, VirtualServices and DestinationRules, over sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use dataplane::access_log::{CloseCause, Direction};
use session_support::{Bed, PATIENCE, inside, pods};

/// The authorizer is the pod `other`, behind a service; the policy asks it about `/ask`.
fn custom(provider: &str) -> String {
    format!(
        "{}---
apiVersion: v1
kind: Service
metadata: {{ name: ext, namespace: app }}
spec: {{ clusterIP: 10.96.2.1, selector: {{ app: other }}, ports: [{{ port: 9000 }}] }}
---
apiVersion: v1
kind: ConfigMap
metadata: {{ name: istio, namespace: istio-system }}
data:
  mesh: |
    extensionProviders:
    - name: ext
      envoyExtAuthzHttp: {{ service: ext.app.svc.cluster.local, port: 9000{provider} }}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ name: ask, namespace: app }}
spec:
  selector: {{ matchLabels: {{ app: server }} }}
  action: CUSTOM
  provider: {{ name: ext }}
  rules: [{{ to: [{{ operation: {{ paths: ['/ask*'] }} }}] }}]
",
        pods()
    )
}

/// The lines of the next head; none at the end.
fn head(reader: &mut impl BufRead) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            return lines;
        }
        lines.push(line.trim_end().to_owned());
    }
}

/// Answers requests without body, and tells their heads.
fn application(mut socket: TcpStream, tell: &Sender<Vec<String>>) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    loop {
        let lines = head(&mut reader);
        if lines.is_empty() || tell.send(lines).is_err() {
            return;
        }
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
}

/// Answers one question a connection, by what its path says, and tells its lines.
fn authorizer(mut socket: TcpStream, tell: &Sender<Vec<String>>) {
    let lines = head(&mut BufReader::new(socket.try_clone().unwrap()));
    let first = lines.first().cloned().unwrap_or_default();
    let _ = tell.send(lines);
    let answer = match first.split(' ').nth(1).unwrap_or_default() {
        "/check/ask/allow" => {
            "HTTP/1.1 200 OK\r\nx-auth-user: ann\r\nx-token-seen: 1\r\nset-cookie: s=1\r\ncontent-length: 0\r\n\r\n"
        }
        "/check/ask/deny" => {
            "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Login\r\nx-why: no\r\ncontent-length: 7\r\n\r\nwho now"
        }
        "/check/ask/chunks" => {
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        }
        "/check/ask/garbage" => "HELLO\r\n\r\n",
        "/check/ask/slow" => {
            std::thread::sleep(Duration::from_secs(3));
            ""
        }
        "/check/ask/gone" => "",
        _ => "HTTP/1.1 503 Down\r\ncontent-length: 0\r\n\r\n",
    };
    let _ = socket.write_all(answer.as_bytes());
}

struct Asked {
    bed: Bed,
    server: std::net::SocketAddr,
    questions: Receiver<Vec<String>>,
    /// Heads of the requests that reached the server.
    told: Receiver<Vec<String>>,
}

impl Asked {
    fn new(provider: &str) -> Self {
        let bed = Bed::new(&custom(provider));
        let (tell, questions) = channel();
        bed.serve("other", 9000, move |socket, _| authorizer(socket, &tell));
        let (tell, told) = channel();
        let server = bed.serve("server", 8080, move |socket, _| application(socket, &tell));
        Self { bed, server, questions, told }
    }
}

#[test]
fn an_authorizer_is_asked_and_its_answer_counts() {
    inside("an_authorizer_is_asked_and_its_answer_counts", || {
        let provider = ", pathPrefix: /check, timeout: 1s, includeRequestHeadersInCheck: [x-user], \
             headersToUpstreamOnAllow: ['x-auth-*'], headersToDownstreamOnAllow: [set-cookie]";
        let mut asked = Asked::new(provider);
        let mut client = asked.bed.client("client", asked.server);
        client.send("GET /ask/allow HTTP/1.1\r\nHost: web\r\nX-User: u\r\nX-Other: o\r\n\r\n").unwrap();
        let answer = client.response().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.head.contains("set-cookie: s=1"), "{}", answer.head);
        let question = asked.questions.recv_timeout(PATIENCE).unwrap();
        assert_eq!(question[..2], ["GET /check/ask/allow HTTP/1.1", "host: web"]);
        assert!(question.iter().any(|line| line == "x-user: u"), "{question:?}");
        assert!(!question.iter().any(|line| line.starts_with("x-other")), "{question:?}");
        let told = asked.told.recv_timeout(PATIENCE).unwrap();
        assert!(told.iter().any(|line| line == "x-auth-user: ann"), "{told:?}");
        assert!(!told.iter().any(|line| line.starts_with("x-token-seen")), "{told:?}");

        let denied = client.get("/ask/deny");
        assert_eq!((denied.status, denied.text()), (401, "who now"));
        assert!(denied.head.contains("www-authenticate: Login") && denied.head.contains("x-why: no"));
        let record = asked.bed.ended(Direction::Inbound, CloseCause::PolicyDenied);
        assert_eq!(record.http.unwrap().policy.as_deref(), Some("app/ask"));
        let chunks = client.get("/ask/chunks");
        assert_eq!((chunks.status, chunks.text()), (403, "abc"));
        // No answer that could be used.
        for path in ["/ask/down", "/ask/garbage", "/ask/gone", "/ask/slow"] {
            let answer = client.get(path);
            assert_eq!((answer.status, answer.text()), (403, "RBAC: access denied"), "{path}");
        }
        while asked.questions.try_recv().is_ok() {}
        assert_eq!(client.get("/free").status, 200);
        assert!(asked.questions.try_recv().is_err(), "nobody is asked about other requests");
        drop(client);
        asked.bed.until_idle();
    });
}

#[test]
fn without_an_answer_the_provider_says_what_happens() {
    inside("without_an_answer_the_provider_says_what_happens", || {
        let asked = Asked::new(", pathPrefix: /check, statusOnError: '503'");
        assert_eq!(asked.bed.client("client", asked.server).get("/ask/down").status, 503);
        let asked = Asked::new(", pathPrefix: /check, failOpen: true");
        let mut client = asked.bed.client("client", asked.server);
        assert_eq!(client.get("/ask/down").status, 200);
        assert_eq!(client.get("/ask/deny").status, 401, "an answer is an answer");
        // A provider that nobody knows.
        let mut asked = Asked::new("");
        asked.bed.apply(&custom("").replace("provider: { name: ext }", "provider: { name: nobody }"));
        let mut client = asked.bed.client("client", asked.server);
        assert_eq!((client.get("/ask/allow").status, client.get("/free").status), (403, 200));
        assert!(asked.questions.try_recv().is_err());
    });
}

/// Two servers behind one service, told apart by label, and a VirtualService over it.
fn virtual_service(http: &str) -> String {
    let mut yaml = pods()
        .replace("app: server,", "app: web, version: v1,")
        .replace("app: other,", "app: web, version: v2,");
    write!(
        yaml,
        "---
apiVersion: v1
kind: Service
metadata: {{ name: web, namespace: app }}
spec: {{ clusterIP: 10.96.2.2, selector: {{ app: web }}, ports: [{{ port: 80, targetPort: 8080 }}] }}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: web, namespace: app }}
spec:
  host: web
  subsets: [{{ name: v1, labels: {{ version: v1 }} }}, {{ name: v2, labels: {{ version: v2 }} }}, {{ name: v3, labels: {{ version: v3 }} }}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: web, namespace: app }}
spec:
  hosts: [web]
  http:
{http}
"
    )
    .unwrap();
    yaml
}

#[test]
fn a_virtual_service_routes_to_subsets_and_makes_faults() {
    inside("a_virtual_service_routes_to_subsets_and_makes_faults", || {
        let http = "
  - { match: [{ uri: { prefix: /one } }], route: [{ destination: { host: web, subset: v1 } }] }
  - { match: [{ uri: { prefix: /two } }], route: [{ destination: { host: web, subset: v2 } }] }
  - { match: [{ uri: { prefix: /three } }], route: [{ destination: { host: web, subset: v3 } }] }
  - { match: [{ uri: { prefix: /unknown } }], route: [{ destination: { host: web, subset: v4 } }] }
  - { match: [{ uri: { prefix: /mine }, sourceLabels: { app: client } }], directResponse: { status: 418, body: { string: teapot } } }
  - { match: [{ uri: { prefix: /mine } }], directResponse: { status: 404 } }
  - match: [{ uri: { prefix: /abort } }]
    fault: { abort: { httpStatus: 555, percentage: { value: 100 } } }
    route: [{ destination: { host: web } }]
  - match: [{ uri: { prefix: /grpc } }]
    fault: { abort: { grpcStatus: UNAVAILABLE, percentage: { value: 100 } } }
    route: [{ destination: { host: web } }]
  - match: [{ uri: { prefix: /late } }]
    fault: { delay: { fixedDelay: 300ms, percentage: { value: 100 } } }
    route: [{ destination: { host: web, subset: v1 } }]";
        let mut bed = Bed::new(&virtual_service(http));
        let (tell, _told) = channel();
        bed.serve_http("server", 8080, tell.clone());
        bed.serve_http("other", 8080, tell);
        let mut client = bed.client("client", "10.96.2.2:80".parse().unwrap());
        for _ in 0..5 {
            assert!(client.get("/one").text().starts_with("server "));
            assert!(client.get("/two").text().starts_with("other "));
        }
        assert_eq!((client.get("/three").status, client.get("/unknown").status), (503, 503));
        assert_eq!(client.get("/nowhere").status, 404);
        let mine = client.get("/mine");
        assert_eq!((mine.status, mine.text()), (418, "teapot"));
        let aborted = client.get("/abort");
        assert_eq!((aborted.status, aborted.text()), (555, "fault filter abort"));
        let grpc = client.get("/grpc");
        assert_eq!(grpc.status, 200);
        assert!(grpc.head.contains("grpc-status: 14"), "{}", grpc.head);
        let began = Instant::now();
        assert_eq!(client.get("/late").status, 200);
        assert!(began.elapsed() >= Duration::from_millis(300));
        let record = bed.ended(Direction::Outbound, CloseCause::FaultInjected);
        assert_eq!(record.http.unwrap().route.unwrap().0.as_ref(), "app/web");
        drop(client);
        bed.until_idle();
    });
}
