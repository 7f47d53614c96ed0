//! Istio's own objects at the node: VirtualServices, DestinationRules and MeshConfig, over sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use dataplane::access_log::{CloseCause, Direction};
use session_support::{Bed, PATIENCE, inside, pods, policy};

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

/// Answers requests without body, `/retry` with 503 every other time, and tells their first lines.
fn unsteady(mut socket: TcpStream, asked: &AtomicUsize, tell: &Sender<String>) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        let mut line = first.clone();
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
        }
        let fails = first.contains("/retry") && asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        let status = if fails { "503 Later" } else { "200 OK" };
        let _ = tell.send(first.trim_end().to_owned());
        if socket.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok").as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn a_virtual_service_tries_again_copies_and_shares_across_origins() {
    inside("a_virtual_service_tries_again_copies_and_shares_across_origins", || {
        let http = "
  - { match: [{ uri: { prefix: /retry } }], retries: { attempts: 2, retryOn: 5xx }, route: [{ destination: { host: web, subset: v1 } }] }
  - match: [{ uri: { prefix: /copy } }]
    mirror: { host: web, subset: v2 }
    mirrorPercentage: { value: 100 }
    route: [{ destination: { host: web, subset: v1 } }]
  - match: [{ uri: { prefix: /cors } }]
    corsPolicy: { allowOrigins: [{ exact: 'https://a.example' }], allowMethods: [PUT], allowCredentials: true }
    route: [{ destination: { host: web, subset: v1 } }]
  - { route: [{ destination: { host: web, subset: v1 } }] }";
        let bed = Bed::new(&virtual_service(http));
        let (tell, told) = channel();
        let asked = Arc::<AtomicUsize>::default();
        bed.serve("server", 8080, move |socket, _| unsteady(socket, &asked, &tell));
        let (tell, copied) = channel();
        bed.serve("other", 8080, move |socket, _| unsteady(socket, &AtomicUsize::new(1), &tell));
        let mut client = bed.client("client", "10.96.2.2:80".parse().unwrap());
        for _ in 0..3 {
            assert_eq!(client.get("/retry").status, 200);
            let tries = [(); 2].map(|()| told.recv_timeout(PATIENCE).unwrap());
            assert_eq!(tries, ["GET /retry HTTP/1.1"; 2]);
        }
        assert_eq!(client.get("/copy/a").status, 200);
        assert_eq!(copied.recv_timeout(PATIENCE).unwrap(), "GET /copy/a HTTP/1.1");
        assert_eq!(client.get("/other").status, 200);
        let asks = "Access-Control-Request-Method: PUT\r\n";
        let origin = "Origin: https://a.example\r\n";
        client.send(format!("OPTIONS /cors HTTP/1.1\r\nHost: web\r\n{origin}{asks}\r\n")).unwrap();
        let preflight = client.response().unwrap();
        let head = preflight.head.to_ascii_lowercase();
        assert_eq!(preflight.status, 200, "{head}");
        assert!(head.contains("access-control-allow-origin: https://a.example\r\n"), "{head}");
        assert!(head.contains("access-control-allow-methods: put\r\n"), "{head}");
        client.send(format!("PUT /cors HTTP/1.1\r\nHost: web\r\n{origin}Content-Length: 0\r\n\r\n")).unwrap();
        let head = client.response().unwrap().head.to_ascii_lowercase();
        assert!(head.contains("access-control-allow-credentials: true"), "{head}");
        let reached: Vec<String> = told.try_iter().collect();
        assert_eq!(reached, ["GET /copy/a HTTP/1.1", "GET /other HTTP/1.1", "PUT /cors HTTP/1.1"]);
        assert!(copied.try_recv().is_err(), "only what a rule copies");
    });
}

#[test]
fn paths_are_matched_and_forwarded_as_the_mesh_normalises_them() {
    inside("paths_are_matched_and_forwarded_as_the_mesh_normalises_them", || {
        const PATHS: [&str; 3] = ["/a/../admin", "//admin", "/x%2Fadmin"];
        let denied = policy("never", "DENY", "[{ to: [{ operation: { paths: ['/admin', '/x/admin'] } }] }]");
        for (mode, forwarded) in [
            ("NONE", PATHS.map(Some)),
            ("BASE", [None, Some("//admin"), Some("/x%2Fadmin")]),
            ("MERGE_SLASHES", [None, None, Some("/x%2Fadmin")]),
            ("DECODE_AND_MERGE_SLASHES", [None; 3]),
        ] {
            let config = format!(
                "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: istio, namespace: istio-system }}\n\
                 data:\n  mesh: |\n    pathNormalization: {{ normalization: {mode} }}\n"
            );
            let bed = Bed::new(&(pods() + &denied + &config));
            let (tell, told) = channel();
            let server = bed.serve("server", 8080, move |socket, _| {
                unsteady(socket, &AtomicUsize::new(1), &tell);
            });
            let mut client = bed.client("client", server);
            for (path, forwarded) in PATHS.into_iter().zip(forwarded) {
                let expected = if forwarded.is_some() { 200 } else { 403 };
                assert_eq!(client.get(path).status, expected, "{mode} {path}");
                if let Some(forwarded) = forwarded {
                    let line = told.recv_timeout(PATIENCE).unwrap();
                    assert_eq!(line, format!("GET {forwarded} HTTP/1.1"), "{mode}");
                }
            }
            assert!(told.try_recv().is_err(), "{mode}");
        }
    });
}
