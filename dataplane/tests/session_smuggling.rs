//! Messages that two parsers could read in two ways: each is refused, or passed on in the one way that leaves nothing to
//! read into it. What reaches the application is recorded byte by byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod flood_support;
mod session_support;
mod smuggling_support;

use std::net::SocketAddr;

use session_support::{Bed, inside, message, pods, policy};
use smuggling_support::recorder::Recorder;
use smuggling_support::{SMUGGLED_PATHS, Way, judge};

/// A service with a route, so that the client's proxy reads requests as well as the server's.
fn yaml() -> String {
    let service = |name: &str, ip: u8, selected: &str| {
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: app }}
spec: {{ clusterIP: 10.96.1.{ip}, selector: {{ app: {selected} }}, ports: [{{ port: 8080, appProtocol: http }}] }}
"
        )
    };
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: app }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 8080 }]
  rules: [{ backendRefs: [{ name: real, port: 8080 }] }]
";
    let rules = format!("[{{ to: [{{ operation: {{ paths: ['/*'], notPaths: ['{SMUGGLED_PATHS}'] }} }}] }}]");
    [
        pods(),
        service("web", 1, "none"),
        service("real", 2, "server"),
        route.to_owned(),
        policy("all", "ALLOW", &rules),
    ]
    .concat()
}

/// Where the service with a route is.
fn service() -> SocketAddr {
    "10.96.1.1:8080".parse().unwrap()
}

/// Hands over the ways to the application: routed and authorized, authorized behind a tunnel, authorized in plain text.
fn by_all_ways(bed: &Bed, server: SocketAddr, judge: impl FnOnce(&[Way<'_>])) {
    judge(&[
        Way { name: "routed", connect: &|| bed.connect("client", service()).unwrap() },
        Way { name: "tunnelled", connect: &|| bed.connect("client", server).unwrap() },
        Way { name: "plain", connect: &|| bed.connect("plain", server).unwrap() },
    ]);
}

#[test]
fn no_request_hides_in_another() {
    inside("no_request_hides_in_another", || {
        let bed = Bed::new(&yaml());
        let recorder = Recorder::default();
        let server = bed.serve("server", 8080, recorder.server());
        by_all_ways(&bed, server, |ways| judge::requests(&recorder, ways));
        bed.until_idle();
    });
}

#[test]
fn no_request_hides_in_one_of_http2() {
    inside("no_request_hides_in_one_of_http2", || {
        let bed = Bed::new(&yaml());
        let recorder = Recorder::default();
        bed.serve("server", 8080, recorder.server());
        let way = Way { name: "routed", connect: &|| bed.connect("client", service()).unwrap() };
        judge::requests_of_http2(&recorder, &way);
        bed.until_idle();
    });
}

#[test]
fn no_response_hides_in_another() {
    inside("no_response_hides_in_another", || {
        let bed = Bed::new(&yaml());
        let server = bed.serve("server", 8080, judge::hostile_application().server());
        by_all_ways(&bed, server, judge::responses);
    });
}
