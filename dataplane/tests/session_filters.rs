//! Filters and timeouts of routes on sockets: what the backend gets and what the client gets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use dataplane::access_log::CloseCause;
use session_support::{Bed, PATIENCE, inside, pods};

const SERVICES_AND_ROUTE: &str = "---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec: { clusterIP: 10.96.1.1, selector: { app: none }, ports: [{ port: 8000, targetPort: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: v1, namespace: app }
spec: { clusterIP: 10.96.1.2, selector: { app: server }, ports: [{ port: 8080, targetPort: 8080 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 8000 }]
  rules:
  - matches: [{ path: { value: /old } }]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [{ name: x-tenant, value: blue }], add: [{ name: x-via, value: mesh }], remove: [x-secret] }
    - type: URLRewrite
      urlRewrite: { hostname: v1.example, path: { type: ReplacePrefixMatch, replacePrefixMatch: /new } }
    - type: ResponseHeaderModifier
      responseHeaderModifier: { set: [{ name: x-served, value: 'yes' }], remove: [server] }
    backendRefs:
    - name: v1
      port: 8080
      filters:
      - type: RequestHeaderModifier
        requestHeaderModifier: { add: [{ name: x-via, value: v1 }] }
  - matches: [{ path: { value: /moved } }]
    filters:
    - type: RequestRedirect
      requestRedirect: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /here }, statusCode: 308 }
    - type: ResponseHeaderModifier
      responseHeaderModifier: { set: [{ name: x-served, value: 'no' }] }
  - matches: [{ path: { value: /hold } }]
    backendRefs: [{ name: v1, port: 8080 }]
    timeouts: { request: 300ms }
  - matches: [{ path: { value: /begun } }]
    backendRefs: [{ name: v1, port: 8080 }]
    timeouts: { request: 0s, backendRequest: 300ms }
  - matches: [{ path: { value: /plain } }]
    backendRefs: [{ name: v1, port: 8080 }]
    timeouts: { request: 30s, backendRequest: 0s }
";

/// A server that tells the client the head that it got, in the body.
fn serve(bed: &Bed) {
    bed.serve("server", 8080, |socket, _| {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reader = BufReader::new(socket);
        // The test may have ended, and nobody may listen.
        while let Some(head) = head(&mut reader) {
            let sent = if head.starts_with("GET /hold") {
                Ok(())
            } else if head.starts_with("GET /begun") {
                reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            } else {
                let reply =
                    format!("HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: {}\r\n\r\n{head}", head.len());
                reader.get_mut().write_all(reply.as_bytes())
            };
            if sent.is_err() {
                return;
            }
        }
    });
}

fn head(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    // Each request has another.
    let lines = head.split_inclusive("\r\n").filter(|line| !line.starts_with("x-request-id: "));
    Some(lines.collect())
}

fn bed() -> (Bed, SocketAddr) {
    let bed = Bed::new(&(pods() + SERVICES_AND_ROUTE));
    serve(&bed);
    (bed, "10.96.1.1:8000".parse().unwrap())
}

#[test]
fn filters_change_requests_and_responses_on_a_connection_that_lives_on() {
    inside("filters_change_requests_and_responses_on_a_connection_that_lives_on", || {
        let (mut bed, web) = bed();
        let mut client = bed.client("client", web);
        for _ in 0..2 {
            client
                .send(
                    "GET /old/a?q=1 HTTP/1.1\r\nHost: web\r\nConnection: x-tenant\r\nx-tenant: red\r\nX-Secret: s\r\nX-Via: pod\r\n\r\n",
                )
                .unwrap();
            let response = client.response().unwrap();
            assert_eq!(
                response.text(),
                "GET /new/a?q=1 HTTP/1.1\r\nhost: v1.example\r\nX-Via: pod,mesh,v1\r\nx-tenant: blue\r\n\r\n"
            );
            assert!(response.head.contains("\r\nx-served: yes\r\n"), "{response:?}");
            assert!(!response.head.to_lowercase().contains("server:"), "{response:?}");

            let redirect = client.get("/moved/b?q=1");
            assert_eq!((redirect.status, redirect.body.len(), redirect.closes()), (308, 0, false));
            assert!(redirect.head.contains("\r\nlocation: http://web:8000/here/b?q=1\r\n"), "{redirect:?}");
            assert!(redirect.head.contains("\r\nx-served: no\r\n"), "{redirect:?}");

            let plain = client.get("/plain");
            assert_eq!(plain.text(), "GET /plain HTTP/1.1\r\nhost: web\r\n\r\n");
            assert!(plain.head.contains("\r\nServer: s\r\n"), "{plain:?}");
        }
        drop(client);
        let redirected =
            bed.record("a redirect", |it| it.http.as_ref().is_some_and(|http| http.status == 308));
        assert_eq!(redirected.cause, CloseCause::Finished);
        assert_eq!(redirected.http.unwrap().route.unwrap().0.as_ref(), "app/web");
    });
}

#[test]
fn a_request_that_takes_too_long_is_answered_504_or_cut_off() {
    inside("a_request_that_takes_too_long_is_answered_504_or_cut_off", || {
        let (mut bed, web) = bed();
        let late = bed.client("client", web).get("/hold");
        assert_eq!((late.status, late.text(), late.closes()), (504, "upstream request timeout", true));
        let is_late = |it: &dataplane::access_log::Record| it.cause == CloseCause::RequestTimeout;
        let record = bed.record("a late request", is_late);
        assert_eq!(record.http.unwrap().status, 504);

        // Once the response has begun no other can follow, and the end must not look like one.
        let mut begun = bed.client("client", web);
        begun.send("GET /begun HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
        assert!(begun.response().is_err());
        bed.record("a response that was cut", is_late);
    });
}
