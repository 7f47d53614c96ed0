//! Messages that two parsers could read in two ways, sent through a waypoint: as at a node, each is refused, or passed on in
//! the one way that leaves nothing to read into it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod flood_support;
#[path = "session_support/message.rs"]
mod message;
mod node_support;
mod smuggling_support;

use std::net::{SocketAddr, TcpStream};

use node_support::waypoint::WAYPOINT;
use node_support::{Bed, inside, traffic};
use smuggling_support::recorder::Recorder;
use smuggling_support::{SMUGGLED_PATHS, Way, judge};
use xds::proto::workload::AppProtocol;

/// A client on node `a`, an application on node `b`; before it a waypoint, with a service that has a route to it and one
/// that has none.
struct Behind {
    bed: Bed,
    routed: SocketAddr,
    plain: SocketAddr,
}

impl Behind {
    fn new(application: &Recorder) -> Self {
        let mut bed = Bed::new(&["a", "b"]);
        for (node, pod) in [("a", "client"), ("b", "server")] {
            bed.pod(node, pod);
        }
        let routed = bed.service("web", &["server"], 8080, false).v4;
        let plain = bed.service("real", &["server"], 8080, false).v4;
        traffic::serve(bed.network("server"), 8080, application.server());
        bed.waypoint(|_| {});
        bed.ready();
        let rules = format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: app}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web}}]
  rules: [{{backendRefs: [{{name: real, port: 80}}]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: all, namespace: app}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: {WAYPOINT}}}]
  rules: [{{to: [{{operation: {{paths: ['/*'], notPaths: ['{SMUGGLED_PATHS}']}}}}]}}]
"
        );
        bed.stand_before(&["web", "real"], AppProtocol::Http11, &rules);
        Self { bed, routed, plain }
    }

    fn connect(&self, to: SocketAddr) -> TcpStream {
        self.bed.connect("client", to).unwrap()
    }

    fn by_all_ways(&self, judge: impl FnOnce(&[Way<'_>])) {
        judge(&[
            Way { name: "routed", connect: &|| self.connect(self.routed) },
            Way { name: "authorized", connect: &|| self.connect(self.plain) },
        ]);
    }
}

#[test]
fn no_request_hides_in_another_behind_a_waypoint() {
    inside("no_request_hides_in_another_behind_a_waypoint", || {
        let recorder = Recorder::default();
        let behind = Behind::new(&recorder);
        behind.by_all_ways(|ways| judge::requests(&recorder, ways));
    });
}

#[test]
fn no_request_hides_in_one_of_http2_behind_a_waypoint() {
    inside("no_request_hides_in_one_of_http2_behind_a_waypoint", || {
        let recorder = Recorder::default();
        let behind = Behind::new(&recorder);
        let way = Way { name: "routed", connect: &|| behind.connect(behind.routed) };
        judge::requests_of_http2(&recorder, &way);
    });
}

#[test]
fn no_response_hides_in_another_behind_a_waypoint() {
    inside("no_response_hides_in_another_behind_a_waypoint", || {
        let behind = Behind::new(&judge::hostile_application());
        behind.by_all_ways(judge::responses);
    });
}
