//! Sessions and sharing across origins on sockets: which endpoint a request reaches, and what its client is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::collections::BTreeSet;
use std::sync::mpsc;

use dataplane::access_log::CloseCause;
use session_support::http::{Client, Response};
use session_support::{Bed, inside, pods};

const OBJECTS: &str = "---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec: { clusterIP: 10.96.1.1, selector: { tier: back }, ports: [{ port: 8000, targetPort: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: one, namespace: app }
spec: { clusterIP: 10.96.1.2, selector: { app: server }, ports: [{ port: 8000, targetPort: 8080 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web }]
  rules:
  - matches: [{ path: { value: /cookie } }]
    sessionPersistence: { sessionName: sid }
    backendRefs: [{ name: web, port: 8000, weight: 1 }, { name: one, port: 8000, weight: 1 }]
  - matches: [{ path: { value: /header } }]
    sessionPersistence: { sessionName: x-sid, type: Header }
    backendRefs: [{ name: web, port: 8000 }]
  - matches: [{ path: { value: /cors } }]
    filters:
    - type: CORS
      cors: { allowOrigins: ['https://*.example'], allowMethods: [PUT], allowCredentials: true }
    backendRefs: [{ name: web, port: 8000 }]
  - matches: [{ path: { value: /backend } }, { path: { value: /again } }]
    backendRefs:
    - name: kept
      port: 8000
      filters: [{ type: CORS, cors: { allowOrigins: ['https://b.example'], allowMethods: [PUT] } }]
---
apiVersion: v1
kind: Service
metadata: { name: kept, namespace: app }
spec: { clusterIP: 10.96.1.3, selector: { tier: back }, ports: [{ port: 8000, targetPort: 8080 }] }
---
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XBackendTrafficPolicy
metadata: { name: kept, namespace: app }
spec: { targetRefs: [{ group: '', kind: Service, name: kept }], sessionPersistence: { type: Cookie } }
";

/// Two servers, `server` and `other`, behind one Service.
fn objects() -> String {
    let labelled = ["server", "other"].into_iter().fold(pods(), |yaml, name| {
        yaml.replace(&format!("labels: {{ app: {name}, "), &format!("labels: {{ app: {name}, tier: back, "))
    });
    labelled + OBJECTS
}

fn bed() -> Bed {
    let bed = Bed::new(&objects());
    for pod in ["server", "other"] {
        bed.serve_http(pod, 8080, mpsc::channel().0);
    }
    bed
}

fn client(bed: &Bed) -> Client {
    bed.client("client", "10.96.1.1:8000".parse().unwrap())
}

fn ask(bed: &Bed, line: &str, fields: &str) -> Response {
    let mut client = client(bed);
    client.send(format!("{line} HTTP/1.1\r\nHost: web\r\n{fields}\r\n")).unwrap();
    client.response().unwrap()
}

/// The pod that answered.
fn pod(response: &Response) -> String {
    assert_eq!(response.status, 200, "{response:?}");
    response.text().split(' ').next().unwrap().to_owned()
}

fn field<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    let mut lines = response.head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

#[test]
fn a_cookie_keeps_its_endpoint_and_its_backend() {
    inside("a_cookie_keeps_its_endpoint_and_its_backend", || {
        let mut bed = bed();
        let mut reached = BTreeSet::new();
        for _ in 0..40 {
            let first = ask(&bed, "GET /cookie/a", "");
            let cookie = field(&first, "set-cookie").unwrap();
            assert!(cookie.starts_with("sid=") && cookie.ends_with("; Path=/cookie; HttpOnly"), "{cookie}");
            let sent = format!("Cookie: other=1; {}\r\n", cookie.split(';').next().unwrap());
            for _ in 0..4 {
                let again = ask(&bed, "GET /cookie/b", &sent);
                assert_eq!(pod(&again), pod(&first));
                assert_eq!(field(&again, "set-cookie"), None, "the client knows");
            }
            reached.insert(pod(&first));
        }
        assert_eq!(reached.len(), 2, "sessions go everywhere: {reached:?}");

        // The endpoint goes, and the session begins anew where there is one.
        let mut carried = None;
        while carried.is_none() {
            let response = ask(&bed, "GET /cookie/a", "");
            let cookie = field(&response, "set-cookie").unwrap().split(';').next().unwrap().to_owned();
            carried = (pod(&response) == "other").then_some(cookie);
        }
        let sent = format!("Cookie: {}\r\n", carried.unwrap());
        bed.apply(&objects().replace("app: other, tier: back", "app: other"));
        let moved = ask(&bed, "GET /cookie/a", &sent);
        assert_eq!(pod(&moved), "server");
        assert!(field(&moved, "set-cookie").is_some());
        // What nobody wrote leads nowhere in particular.
        assert_eq!(pod(&ask(&bed, "GET /cookie/a", "Cookie: sid=forged\r\n")), "server");
    });
}

#[test]
fn the_policy_of_a_backend_keeps_its_endpoint_on_every_path() {
    inside("the_policy_of_a_backend_keeps_its_endpoint_on_every_path", || {
        let bed = bed();
        let mut reached = BTreeSet::new();
        for _ in 0..40 {
            let first = ask(&bed, "GET /backend/a", "");
            let cookie = field(&first, "set-cookie").unwrap();
            let is_named = cookie.starts_with("corelane-session-app-kept-8000=");
            assert!(is_named && cookie.ends_with("; Path=/; HttpOnly"), "{cookie}");
            let sent = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
            for path in ["/backend/b", "/again", "/backend/c"] {
                let again = ask(&bed, &format!("GET {path}"), &sent);
                assert_eq!((pod(&again), field(&again, "set-cookie")), (pod(&first), None), "{path}");
            }
            reached.insert(pod(&first));
        }
        assert_eq!(reached.len(), 2, "sessions go everywhere: {reached:?}");
    });
}

#[test]
fn a_backend_answers_preflights_of_its_own() {
    inside("a_backend_answers_preflights_of_its_own", || {
        let bed = bed();
        let origin = |name: &str| format!("Origin: https://{name}.example\r\n");
        let asks = "Access-Control-Request-Method: PUT\r\n";
        let answered = ask(&bed, "OPTIONS /backend/a", &(origin("b") + asks));
        assert_eq!((answered.status, answered.body.len()), (200, 0));
        assert_eq!(field(&answered, "access-control-allow-origin"), Some("https://b.example"));
        assert_eq!(field(&answered, "access-control-allow-methods"), Some("PUT"));
        let refused = ask(&bed, "OPTIONS /backend/a", &(origin("a") + asks));
        assert_eq!((refused.body.len(), field(&refused, "access-control-allow-origin")), (0, None));
        let shared = ask(&bed, "PUT /backend/a", &(origin("b") + "Content-Length: 0\r\n"));
        assert_eq!(field(&shared, "access-control-allow-origin"), Some("https://b.example"));
        pod(&shared);
    });
}

#[test]
fn a_header_keeps_its_endpoint() {
    inside("a_header_keeps_its_endpoint", || {
        let bed = bed();
        for _ in 0..10 {
            let first = ask(&bed, "GET /header/a", "");
            let sent = format!("X-Sid: {}\r\n", field(&first, "x-sid").unwrap());
            for _ in 0..4 {
                assert_eq!(pod(&ask(&bed, "GET /header/a", &sent)), pod(&first));
            }
        }
    });
}

#[test]
fn preflights_are_answered_and_responses_are_shared() {
    inside("preflights_are_answered_and_responses_are_shared", || {
        let mut bed = bed();
        let asks = "Access-Control-Request-Method: PUT\r\n";
        let answered = ask(&bed, "OPTIONS /cors/a", &format!("Origin: https://a.example\r\n{asks}"));
        assert_eq!((answered.status, answered.body.len(), answered.closes()), (200, 0, false));
        assert_eq!(field(&answered, "access-control-allow-origin"), Some("https://a.example"));
        assert_eq!(field(&answered, "access-control-allow-methods"), Some("PUT"));
        let record = bed.record("a preflight", |it| it.http.is_some());
        assert_eq!((record.cause, record.http.unwrap().status), (CloseCause::Finished, 200));
        let refused = ask(&bed, "OPTIONS /cors/a", &format!("Origin: https://evil\r\n{asks}"));
        assert_eq!((refused.status, field(&refused, "access-control-allow-origin")), (200, None));

        let shared = ask(&bed, "PUT /cors/a", "Origin: https://a.example\r\nContent-Length: 0\r\n");
        assert_eq!(field(&shared, "access-control-allow-origin"), Some("https://a.example"));
        assert_eq!(field(&shared, "access-control-allow-credentials"), Some("true"));
        pod(&shared);
        assert_eq!(field(&ask(&bed, "GET /cors/a", ""), "access-control-allow-origin"), None);
    });
}
