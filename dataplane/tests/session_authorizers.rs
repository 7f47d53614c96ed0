//! External authorizers, over sockets: HTTP and gRPC, with and without the body of the request.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use dataplane::access_log::{CloseCause, Direction};
use session_support::{Bed, PATIENCE, inside, pods};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status};
use xds::proto::ext_authz::authorization_server::{Authorization, AuthorizationServer};
use xds::proto::ext_authz::check_response::HttpResponse;
use xds::proto::ext_authz::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus,
    OkHttpResponse, QueryParameter,
};

const HTTP: &str = "envoyExtAuthzHttp";
/// Of a bed; each has connections of its own.
const WORKERS: usize = 2;
const GRPC: &str = "envoyExtAuthzGrpc";

/// The authorizer is the pod `other`, behind a service; the policy asks it about `/ask`.
fn custom(kind: &str, provider: &str) -> String {
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
      {kind}: {{ service: ext.app.svc.cluster.local, port: 9000{provider} }}
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

/// The value of a line of that name.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(": ").filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Answers requests, and tells their heads, with a body of a length as the last line.
fn application(mut socket: TcpStream, tell: &Sender<Vec<String>>) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    loop {
        let mut lines = head(&mut reader);
        if let Some(length) = lines.iter().find_map(|line| field(line, "content-length")) {
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            lines.push(String::from_utf8(body).unwrap());
        }
        if lines.is_empty() || tell.send(lines).is_err() {
            return;
        }
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
}

/// Answers questions by what their path says, and tells their lines, with the body as the last.
fn authorizer(mut socket: TcpStream, tell: &Sender<Vec<String>>) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    loop {
        let mut lines = head(&mut reader);
        let Some(first) = lines.first().cloned() else { return };
        let length = lines.iter().find_map(|line| field(line, "content-length")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        lines.push(String::from_utf8(body).unwrap());
        let _ = tell.send(lines);
        if !answered(&mut socket, &first) {
            return;
        }
    }
}

/// Whether the connection goes on.
fn answered(socket: &mut TcpStream, first: &str) -> bool {
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
        "/check/ask/closes" => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "/check/ask/garbage" => "HELLO\r\n\r\n",
        "/check/ask/slow" => {
            std::thread::sleep(Duration::from_secs(3));
            ""
        }
        "/check/ask/gone" => "",
        _ => "HTTP/1.1 503 Down\r\ncontent-length: 0\r\n\r\n",
    };
    socket.write_all(answer.as_bytes()).is_ok() && answer.starts_with("HTTP") && !answer.contains("close")
}

struct Asked {
    bed: Bed,
    server: std::net::SocketAddr,
    questions: Receiver<Vec<String>>,
    /// Heads of the requests that reached the server.
    told: Receiver<Vec<String>>,
    /// That the authorizer has accepted.
    connections: Arc<AtomicUsize>,
}

impl Asked {
    fn new(provider: &str) -> Self {
        let bed = Bed::new(&custom(HTTP, provider));
        let (tell, questions) = channel();
        let connections = Arc::<AtomicUsize>::default();
        let counted = connections.clone();
        bed.serve("other", 9000, move |socket, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            authorizer(socket, &tell);
        });
        let (tell, told) = channel();
        let server = bed.serve("server", 8080, move |socket, _| application(socket, &tell));
        Self { bed, server, questions, told, connections }
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
        asked.bed.apply(&custom(HTTP, "").replace("provider: { name: ext }", "provider: { name: nobody }"));
        let mut client = asked.bed.client("client", asked.server);
        assert_eq!((client.get("/ask/allow").status, client.get("/free").status), (403, 200));
        assert!(asked.questions.try_recv().is_err());
    });
}

#[test]
fn questions_share_connections() {
    inside("questions_share_connections", || {
        let asked = Asked::new(", pathPrefix: /check");
        let count = || asked.connections.load(Ordering::Relaxed);
        for _ in 0..5 {
            let mut client = asked.bed.client("client", asked.server);
            assert_eq!((client.get("/ask/allow").status, client.get("/ask/deny").status), (200, 401));
        }
        assert!(count() <= WORKERS, "whichever connection asks: {}", count());
        let before = count();
        let mut client = asked.bed.client("client", asked.server);
        for _ in 0..3 {
            assert_eq!(client.get("/ask/closes").status, 200);
        }
        assert!(count() >= before + 2, "one that the authorizer has closed is not used again");
    });
}

const BODY: &str =
    ", pathPrefix: /check, includeRequestBodyInCheck: { maxRequestBytes: 8, allowPartialMessage: ";

fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn an_authorizer_is_shown_the_body() {
    inside("an_authorizer_is_shown_the_body", || {
        let asked = Asked::new(&format!("{BODY} true }}"));
        let mut client = asked.bed.client("client", asked.server);
        for (body, shown, partial) in [
            ("", "", None),
            ("1234567", "1234567", Some("false")),
            ("12345678", "12345678", Some("false")),
            ("123456789", "12345678", Some("true")),
        ] {
            client.send(post("/ask/allow", body)).unwrap();
            assert_eq!(client.response().unwrap().status, 200, "{body}");
            let question = asked.questions.recv_timeout(PATIENCE).unwrap();
            assert_eq!(question.last().unwrap(), shown);
            let told = question.iter().find_map(|line| line.strip_prefix("x-envoy-auth-partial-body: "));
            assert_eq!(told, partial, "{body}");
            let told = asked.told.recv_timeout(PATIENCE).unwrap();
            assert!(body.is_empty() || told.last().unwrap() == body, "{told:?}");
        }
        // In chunks, of which not all have come.
        let head = "POST /ask/deny HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n";
        client.send(format!("{head}5\r\nfghij\r\n")).unwrap();
        assert_eq!(client.response().unwrap().status, 401);
        assert_eq!(asked.questions.recv_timeout(PATIENCE).unwrap().last().unwrap(), "abcdefgh");
        // A client that waits to be asked for it.
        let mut client = asked.bed.client("client", asked.server);
        client
            .send(
                "POST /ask/allow HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
            )
            .unwrap();
        assert_eq!(client.response().unwrap().status, 100);
        client.send("abc").unwrap();
        assert_eq!(client.response().unwrap().status, 200);
        assert_eq!(asked.questions.recv_timeout(PATIENCE).unwrap().last().unwrap(), "abc");
        // Of HTTP/2.
        let http2 = asked.bed.client2("client", asked.server);
        let answer = http2.post("/ask/deny", "text/plain", b"123456789", http::HeaderMap::new()).unwrap();
        assert_eq!(answer.status, 401);
        assert_eq!(asked.questions.recv_timeout(PATIENCE).unwrap().last().unwrap(), "12345678");
    });
}

#[test]
fn a_body_that_is_too_large_to_be_shown_is_refused() {
    inside("a_body_that_is_too_large_to_be_shown_is_refused", || {
        let asked = Asked::new(&format!("{BODY} false }}, failOpen: true"));
        let send = |text: &str| {
            let mut client = asked.bed.client("client", asked.server);
            client.send(text).unwrap();
            client.response().unwrap().status
        };
        assert_eq!(send(&post("/ask/allow", "12345678")), 200);
        assert_eq!(send(&post("/ask/allow", "123456789")), 413);
        let head = "POST /ask/allow HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(send(&format!("{head}5\r\nabcde\r\n5\r\nfghij\r\n")), 413);
    });
}

/// Answers calls by the path that they are about.
#[derive(Clone)]
struct Service {
    tell: Sender<CheckRequest>,
}

fn option(key: &str, value: &str, append: bool) -> HeaderValueOption {
    let header = Some(HeaderValue { key: key.into(), value: value.into(), raw_value: Vec::new() });
    HeaderValueOption { header, append: Some(append), append_action: 0 }
}

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let request = request.into_inner();
        let http = request.attributes.clone().unwrap().request.unwrap().http.unwrap();
        let _ = self.tell.send(request);
        let path = http.path.split('?').next().unwrap_or_default().to_owned();
        let denied = || DeniedHttpResponse {
            status: Some(HttpStatus { code: 401 }),
            headers: vec![option("x-why", "no", false)],
            body: "who now".into(),
        };
        let (code, response) = match path.as_str() {
            "/ask/allow" => {
                let ok = OkHttpResponse {
                    headers: vec![option("x-auth-user", "ann", false), option("x-user", "more", true)],
                    headers_to_remove: vec!["x-secret".into()],
                    response_headers_to_add: vec![option("set-cookie", "s=1", true)],
                    query_parameters_to_set: vec![QueryParameter { key: "by".into(), value: "ext".into() }],
                    query_parameters_to_remove: vec!["token".into()],
                };
                (0, Some(HttpResponse::OkResponse(ok)))
            }
            "/ask/plain" => (0, None),
            "/ask/deny" => (16, Some(HttpResponse::DeniedResponse(denied()))),
            "/ask/bare" => (7, None),
            "/ask/slow" => {
                tokio::time::sleep(Duration::from_secs(3)).await;
                (0, None)
            }
            _ => return Err(Status::unavailable("down")),
        };
        let status = Some(xds::proto::rpc::Status { code, ..Default::default() });
        Ok(Response::new(CheckResponse { status, http_response: response }))
    }
}

/// Serves calls on one connection to its end.
fn serve_calls(socket: TcpStream, service: Service) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(service));
        // No end of the connections to come, at which the server would end.
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(socket)).chain(tokio_stream::pending());
        let _served = server.serve_with_incoming(incoming).await;
    });
}

struct Called {
    bed: Bed,
    server: std::net::SocketAddr,
    calls: Receiver<CheckRequest>,
    told: Receiver<Vec<String>>,
    connections: Arc<AtomicUsize>,
}

impl Called {
    fn new(provider: &str) -> Self {
        let bed = Bed::new(&custom(GRPC, provider));
        let (tell, calls) = channel();
        let connections = Arc::<AtomicUsize>::default();
        let counted = connections.clone();
        bed.serve("other", 9000, move |socket, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            serve_calls(socket, Service { tell: tell.clone() });
        });
        let (tell, told) = channel();
        let server = bed.serve("server", 8080, move |socket, _| application(socket, &tell));
        Self { bed, server, calls, told, connections }
    }
}

#[test]
fn an_authorizer_is_called_over_grpc_and_its_answer_counts() {
    inside("an_authorizer_is_called_over_grpc_and_its_answer_counts", || {
        let mut called = Called::new(", timeout: 1s, statusOnError: '503'");
        let mut client = called.bed.client("client", called.server);
        client
            .send("GET /ask/allow?token=t&a=b HTTP/1.1\r\nHost: web\r\nX-User: u\r\nX-Secret: s\r\n\r\n")
            .unwrap();
        let answer = client.response().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.head.contains("set-cookie: s=1"), "{}", answer.head);
        let attributes = called.calls.recv_timeout(PATIENCE).unwrap().attributes.unwrap();
        let (source, destination) = (attributes.source.unwrap(), attributes.destination.unwrap());
        assert_eq!(source.principal, called.bed.identity("client").uri());
        assert_eq!(destination.principal, called.bed.identity("server").uri());
        assert_eq!(destination.address.unwrap().socket_address.unwrap().port_value, 8080);
        let http = attributes.request.unwrap().http.unwrap();
        assert_eq!((&*http.method, &*http.path, &*http.host), ("GET", "/ask/allow?token=t&a=b", "web"));
        assert_eq!(http.headers.get("x-user").map(String::as_str), Some("u"));
        let told = called.told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(told[0], "GET /ask/allow?a=b&by=ext HTTP/1.1");
        let has = |line: &str| told.iter().any(|own| own.eq_ignore_ascii_case(line));
        assert!(has("x-auth-user: ann") && has("x-user: u,more"), "{told:?}");
        assert!(!told.iter().any(|line| line.to_lowercase().starts_with("x-secret")), "{told:?}");

        assert_eq!(client.get("/ask/plain").status, 200);
        let denied = client.get("/ask/deny");
        assert_eq!((denied.status, denied.text()), (401, "who now"));
        assert!(denied.head.contains("x-why: no"), "{}", denied.head);
        let record = called.bed.ended(Direction::Inbound, CloseCause::PolicyDenied);
        assert_eq!(record.http.unwrap().policy.as_deref(), Some("app/ask"));
        assert_eq!(client.get("/ask/bare").status, 403);
        assert_eq!((client.get("/ask/down").status, client.get("/ask/slow").status), (503, 503));
        // All of them, and those of other connections of HTTP/2, on one connection.
        let http2 = called.bed.client2("client", called.server);
        assert_eq!(http2.get("/ask/deny").unwrap().status, 401);
        let connections = called.connections.load(Ordering::Relaxed);
        assert!(connections <= WORKERS, "{connections}");
    });
}

#[test]
fn a_call_shows_the_body_and_fails_open_where_that_is_said() {
    inside("a_call_shows_the_body_and_fails_open_where_that_is_said", || {
        let body = "includeRequestBodyInCheck: { maxRequestBytes: 70000, packAsBytes: true }";
        let called = Called::new(&format!(", failOpen: true, {body}"));
        let mut client = called.bed.client("client", called.server);
        // More than is kept of other requests, and nothing of it is lost.
        let sent = "0123456789".repeat(7000);
        client.send(post("/ask/plain", &sent)).unwrap();
        assert_eq!(client.response().unwrap().status, 200);
        let attributes = called.calls.recv_timeout(PATIENCE).unwrap().attributes.unwrap();
        let http = attributes.request.unwrap().http.unwrap();
        assert!((http.raw_body, http.body.as_str()) == (sent.clone().into_bytes(), ""));
        assert_eq!(http.size, 70_000);
        assert!(called.told.recv_timeout(PATIENCE).unwrap().last().unwrap() == &sent);
        client.send(post("/ask/down", "abc")).unwrap();
        assert_eq!(client.response().unwrap().status, 200);
        client.send(post("/ask/plain", &(sent + "x"))).unwrap();
        assert_eq!(client.response().unwrap().status, 413, "not even there");
    });
}

#[test]
fn a_drain_does_not_wait_for_connections_to_authorizers() {
    inside("a_drain_does_not_wait_for_connections_to_authorizers", || {
        let mut asked = Asked::new(", pathPrefix: /check");
        let mut called = Called::new(", timeout: 1s");
        for (bed, server, path) in
            [(&mut asked.bed, asked.server, "/ask/allow"), (&mut called.bed, called.server, "/ask/plain")]
        {
            let mut client = bed.client("client", server);
            assert_eq!(client.get(path).status, 200);
            // Far longer than this test may take, and than a connection to an authorizer rests.
            bed.drain(10 * PATIENCE);
            assert_eq!(client.rest().unwrap(), b"");
            drop(client);
            let began = std::time::Instant::now();
            bed.join();
            assert!(began.elapsed() < PATIENCE, "{path}");
        }
    });
}
