//! Telemetry at a waypoint, a process of its own: of the service behind it, of the waypoint, and of what it says nothing.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::time::Instant;

use node_support::waypoint::WAYPOINT;
use node_support::{Bed, PATIENCE, inside};
use xds::proto::workload::AppProtocol;

/// The waypoint logs what fails; of `quiet` it logs nothing at all.
const TELEMETRY: &str = "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: waypoint, namespace: app}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  accessLogging: [{filter: {expression: response.code >= 400}}]
  metrics: [{overrides: [{match: {metric: RESPONSE_SIZE}, disabled: true}, {tagOverrides: {source_cluster: {operation: REMOVE}}}]}]
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: quiet, namespace: app}
spec:
  targetRefs: [{group: '', kind: Service, name: quiet}]
  accessLogging: [{disabled: true}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: never, namespace: app}
spec:
  action: DENY
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  rules: [{to: [{operation: {paths: ['/never*']}}]}]
";

#[test]
fn a_waypoint_logs_what_the_telemetry_of_its_destination_says() {
    inside("a_waypoint_logs_what_the_telemetry_of_its_destination_says", || {
        let mut bed = Bed::new(&["a", "b"]);
        for (node, pod) in [("a", "client"), ("b", "server")] {
            bed.pod(node, pod);
        }
        let web = bed.service("web", &["server"], 8080, false);
        let quiet = bed.service("quiet", &["server"], 8080, false);
        bed.http_echo("server", 8080);
        bed.waypoint(|_| {});
        bed.ready();
        bed.stand_before(&["web", "quiet"], AppProtocol::Http11, TELEMETRY);
        for (to, path, status) in [
            (quiet.v4, "/quiet", 200),
            (quiet.v4, "/never/quiet", 403),
            (web.v4, "/fine", 200),
            (web.v4, "/never/web", 403),
        ] {
            assert_eq!(bed.http("client", to, path, &[]).unwrap().status, status, "{path}");
        }
        let log = &bed.nodes[WAYPOINT];
        log.until_logged(&["request complete", "/never/web", "policy=\"app/never\""]);
        // What was counted all the same has had its chance to stand in the log.
        let counted = ["reporter=\"waypoint\"", "destination_service_name=\"quiet\""];
        assert_eq!(log.metric("istio_requests_total", &counted), 2);
        assert_eq!(log.metric("istio_requests_total", &["source_cluster="]), 0);
        assert_eq!(log.metric("istio_request_bytes_count", &[]), 4);
        assert_eq!(log.metric("istio_response_bytes_count", &[]), 0);
        bed.enforce(&["web", "quiet"], &TELEMETRY.replace("disabled: true", "disabled: false"));
        let deadline = Instant::now() + PATIENCE;
        while !log.log().contains("http.path=\"/again\"") {
            assert!(Instant::now() < deadline, "{}", log.log());
            assert_eq!(bed.http("client", quiet.v4, "/again", &[]).unwrap().status, 200);
        }
        let log = log.log();
        for silent in ["/quiet", "/never/quiet", "/fine"] {
            assert!(!log.contains(&format!("http.path=\"{silent}\"")), "{silent}:\n{log}");
        }
    });
}
