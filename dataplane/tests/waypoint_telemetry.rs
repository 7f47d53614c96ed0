//! Telemetry at a waypoint, a process of its own: of the service behind it, of the waypoint, and of what it says nothing.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::time::Instant;

use node_support::istiod::{cluster, listener, service_address};
use node_support::waypoint::WAYPOINT;
use node_support::{Bed, PATIENCE, inside};
use prost::Message;
use xds::proto::waypoint::access_log_filter::FilterSpecifier;
use xds::proto::waypoint::{
    AccessLog, AccessLogFilter, ComparisonFilter, Percent, RuntimeNumber, StatusCodeFilter, Tracing,
};
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

/// A log of the answers from 400 on.
fn failures() -> Vec<u8> {
    let value = Some(RuntimeNumber { default_value: 400 });
    let comparison = Some(ComparisonFilter { op: 1, value });
    let status = FilterSpecifier::StatusCodeFilter(StatusCodeFilter { comparison });
    AccessLog { filter: Some(AccessLogFilter { filter_specifier: Some(status) }) }.encode_to_vec()
}

#[test]
fn under_istiod_the_chain_says_which_lines_and_which_spans_there_are() {
    inside("under_istiod_the_chain_says_which_lines_and_which_spans_there_are", || {
        let mut bed = Bed::new(&["a", "b"]);
        for (node, pod) in [("a", "client"), ("b", "server"), ("b", "second")] {
            bed.pod(node, pod);
        }
        bed.http_echo("server", 8080);
        bed.http_echo("second", 8080);
        // Spans are made for a collector, be it there or not. One worker's lines keep their order.
        bed.waypoint_under_istiod_with(["server", "second"], [cluster(|_| {}), listener(|_| {})], |node| {
            node.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
            node.set("ZTUNNEL_WORKER_THREADS", 1);
        });
        let until = |path: &str, holds: &dyn Fn(&str) -> bool| {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let answer = bed.http("client", service_address(), path, &[]);
                if answer.as_ref().is_ok_and(|answer| holds(&answer.body)) {
                    return;
                }
                assert!(Instant::now() < deadline, "{path}: {answer:?}\n{}", bed.nodes[WAYPOINT].log());
            }
        };
        let log = &bed.nodes[WAYPOINT];
        until("/before", &|_| log.log().contains("http.path=\"/before\""));
        let sampled = Tracing { random_sampling: Some(Percent { value: 100.0 }), custom_tags: Vec::new() };
        bed.apply([listener(|manager| manager.tracing = sampled.encode_to_vec())]);
        until("/traced", &|body| body.contains("traceparent: 00-"));
        let none = Tracing { random_sampling: Some(Percent { value: 0.0 }), custom_tags: Vec::new() };
        bed.apply([listener(|manager| {
            manager.tracing = none.encode_to_vec();
            manager.access_log = vec![failures()];
        })]);
        until("/untraced", &|body| !body.contains("traceparent"));
        for _ in 0..3 {
            assert_eq!(bed.http("client", service_address(), "/fine", &[]).unwrap().status, 200);
        }
        // And all again.
        bed.apply([listener(|manager| manager.access_log = vec![AccessLog::default().encode_to_vec()])]);
        until("/after", &|_| log.log().contains("http.path=\"/after\""));
        let log = log.log();
        assert!(!log.contains("http.path=\"/fine\""), "{log}");
    });
}
