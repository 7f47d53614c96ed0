//! Istio's own objects at the node: VirtualServices and DestinationRules, over sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::fmt::Write as _;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use dataplane::access_log::{CloseCause, Direction};
use session_support::{Bed, inside, pods};

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
