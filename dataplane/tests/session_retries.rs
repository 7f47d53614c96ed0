//! Further tries of requests, over sockets: those with bodies, and those that gRPC's own statuses call for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use session_support::{Bed, checksum, inside, pattern, pods};

/// A server behind a service, and a VirtualService over it.
fn virtual_service(http: &str) -> String {
    let mut yaml = pods().replace("app: server,", "app: web, version: v1,");
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
  subsets: [{{ name: v1, labels: {{ version: v1 }} }}]
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

/// The lines of the next head; none at the end.
fn head(reader: &mut impl BufRead) -> Vec<String> {
    let lines = reader.lines().map_while(Result::ok);
    lines.take_while(|line| !line.is_empty()).collect()
}

/// Answers by how often it has been asked: 503 first, then it breaks off, then it tells the body that it got.
fn unsteady(socket: TcpStream, count: &AtomicUsize) {
    let mut reader = BufReader::new(socket);
    loop {
        let lines = head(&mut reader);
        let length = |line: &String| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok();
        let Some(length) = lines.iter().find_map(length) else { return };
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let text = match count.fetch_add(1, Ordering::Relaxed) {
            0 => "HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n".to_owned(),
            1 => return,
            _ => {
                let sum = checksum(&body);
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{sum}", sum.len())
            }
        };
        if reader.get_mut().write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

const RETRIED: &str = "
  - match: [{ uri: { prefix: /once } }]
    retries: { attempts: 1, retryOn: 'unavailable' }
    route: [{ destination: { host: web, subset: v1 } }]
  - match: [{ uri: { prefix: /none } }]
    retries: { attempts: 0 }
    route: [{ destination: { host: web, subset: v1 } }]
  - match: [{ uri: { prefix: /body } }]
    retries: { attempts: 3, retryOn: '5xx', backoff: 1ms }
    route: [{ destination: { host: web, subset: v1 } }]
  - route: [{ destination: { host: web, subset: v1 } }]";

#[test]
fn requests_with_bodies_are_tried_again_as_far_as_they_are_kept() {
    inside("requests_with_bodies_are_tried_again_as_far_as_they_are_kept", || {
        let bed = Bed::new(&virtual_service(RETRIED));
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        bed.serve("server", 8080, move |socket, _| unsteady(socket, &counted));
        let post = |length: usize| {
            count.store(0, Ordering::Relaxed);
            let mut client = bed.client("client", "10.96.2.2:80".parse().unwrap());
            let head = format!("POST /body HTTP/1.1\r\nHost: web\r\nContent-Length: {length}\r\n\r\n");
            client.send([head.as_bytes(), &pattern(length)].concat()).unwrap();
            (client.response().unwrap(), count.load(Ordering::Relaxed))
        };
        let (answer, tries) = post(64 * 1024);
        assert_eq!((answer.status, answer.text(), tries), (200, &*checksum(&pattern(64 * 1024)), 3));
        let (answer, tries) = post(64 * 1024 + 1);
        assert_eq!((answer.status, tries), (503, 1), "more is not kept");
    });
}

#[test]
fn statuses_of_grpc_are_tried_again_where_the_route_says_so() {
    inside("statuses_of_grpc_are_tried_again_where_the_route_says_so", || {
        let bed = Bed::new(&virtual_service(RETRIED));
        let (tell, told) = channel();
        bed.serve_http2("server", 8080, tell);
        let ask = |path: &str| {
            let client = bed.client2("client", "10.96.2.2:80".parse().unwrap());
            let answer = client.post(path, "application/grpc", b"a message", http::HeaderMap::new()).unwrap();
            let status = answer.field("grpc-status").map(str::to_owned);
            (
                status.as_deref() == Some("14"),
                told.try_iter().filter(|line| line.starts_with("POST ")).count(),
            )
        };
        assert_eq!(ask("/once/unavailable-once"), (false, 2));
        assert_eq!(ask("/once/unavailable"), (true, 2));
        assert_eq!(ask("/none/unavailable-once"), (true, 1));
        assert_eq!(ask("/usual/unavailable"), (true, 3), "Istio's own default is two further tries");
        assert_eq!(ask("/body/unavailable-once"), (true, 1), "another condition");
    });
}
