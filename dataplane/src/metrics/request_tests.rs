//! Requests: Istio's labels, three histograms, the ways by which their series are found and lost.

use std::time::Duration;

use super::tests::{REGIONS, SET, labels, line_of};
use super::*;
use crate::access_log::cause::{CloseCause, RequestFlag};

fn key(labels: &Labels, outcome: RequestOutcome) -> RequestKey<'_> {
    RequestKey {
        reporter: labels.reporter,
        source: subject(&labels.source),
        destination: subject(&labels.destination),
        service: labels.service.as_ref(),
        security: labels.security,
        outcome,
    }
}

fn subject(it: &Subject) -> SubjectRef<'_> {
    SubjectRef { workload: it.workload.as_ref(), identity: it.identity.as_ref() }
}

fn answered(status: u16) -> RequestOutcome {
    RequestOutcome { status, ..RequestOutcome::default() }
}

fn took(duration: Duration) -> RequestCounts {
    RequestCounts { duration, request_bytes: 60, response_bytes: 2_000, ..RequestCounts::default() }
}

#[test]
fn requests_are_counted_by_status_with_histograms_of_time_and_size() {
    let (workers, metrics) = metrics(2);
    let ends = labels("client", "web");
    for (worker, duration) in
        [(0, Duration::from_micros(500)), (1, Duration::from_millis(7)), (0, Duration::from_hours(2))]
    {
        workers[worker].request_ended(&key(&ends, answered(403)), &took(duration));
    }
    let text = metrics.text().unwrap();
    let set = format!(
        "{SET},request_protocol=\"http\",response_flags=\"-\",connection_security_policy=\"mutual_tls\",{REGIONS},\
         response_code=\"403\""
    );
    assert!(text.contains(&format!("istio_requests_total{{{set}}} 3\n")), "{text}");
    let bucket =
        |of: &str, bound: &str, count: u64| format!("istio_{of}_bucket{{le=\"{bound}\",{set}}} {count}\n");
    let duration = |bound, count| bucket("request_duration_milliseconds", bound, count);
    for line in [
        duration("0.5", 1),
        duration("5.0", 1),
        duration("10.0", 2),
        duration("3600000.0", 2),
        duration("+Inf", 3),
        bucket("request_bytes", "50.0", 0),
        bucket("request_bytes", "100.0", 3),
        bucket("response_bytes", "1000.0", 0),
        bucket("response_bytes", "2500.0", 3),
        format!("istio_response_bytes_sum{{{set}}} 6000.0\n"),
        format!("istio_request_bytes_count{{{set}}} 3\n"),
    ] {
        assert!(text.contains(&line), "{line} not in {text}");
    }
    assert!(!text.contains("istio_request_messages"), "only gRPC has messages");
}

#[test]
fn grpc_calls_have_their_status_and_messages() {
    let (workers, metrics) = metrics(1);
    let ends = Labels { reporter: Reporter::Waypoint, ..labels("client", "web") };
    let outcome = RequestOutcome {
        protocol: RequestProtocol::Grpc,
        status: 200,
        grpc_status: Some(GrpcStatus::of_field(b"14")),
        flag: RequestFlag::UpstreamConnectionTermination,
    };
    let counts = RequestCounts { request_messages: 3, response_messages: 5, ..RequestCounts::default() };
    workers[0].request_ended(&key(&ends, outcome), &counts);
    let text = metrics.text().unwrap();
    let requests = line_of(&text, "istio_requests_total{reporter=\"waypoint\"").unwrap();
    for pair in [
        "request_protocol=\"grpc\"",
        "response_flags=\"UC\"",
        "response_code=\"200\"",
        "grpc_response_status=\"14\"",
        "source_principal=\"spiffe://cluster.local/ns/app/sa/client\"",
        "destination_service=\"web.app.svc.cluster.local\"",
    ] {
        assert!(requests.contains(pair), "{pair} not in {requests}");
    }
    assert!(line_of(&text, "istio_request_messages_total{").unwrap().ends_with(" 3"));
    assert!(line_of(&text, "istio_response_messages_total{").unwrap().ends_with(" 5"));
}

#[test]
fn requests_that_differ_in_one_label_are_two_series() {
    let (workers, metrics) = metrics(1);
    let ends = labels("client", "web");
    let outcome = answered(200);
    let others = [
        (ends.clone(), RequestOutcome { status: 503, ..outcome }),
        (ends.clone(), RequestOutcome { flag: RequestFlag::NoHealthyUpstream, ..outcome }),
        (ends.clone(), RequestOutcome { protocol: RequestProtocol::Grpc, ..outcome }),
        (ends.clone(), RequestOutcome { grpc_status: Some(GrpcStatus::of_field(b"0")), ..outcome }),
        (Labels { reporter: Reporter::Destination, ..ends.clone() }, outcome),
        (Labels { security: ConnectionSecurity::None, ..ends.clone() }, outcome),
        (Labels { service: None, ..ends.clone() }, outcome),
        (labels("client", "api"), outcome),
        (labels("other", "web"), outcome),
        (Labels { source: Subject { identity: None, ..ends.source.clone() }, ..ends.clone() }, outcome),
    ];
    // Twice: once made, once found.
    for _ in 0..2 {
        for (ends, outcome) in others.iter().chain([&(ends.clone(), outcome)]) {
            workers[0].request_ended(&key(ends, *outcome), &RequestCounts::default());
        }
    }
    let text = metrics.text().unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
    assert_eq!(lines.len(), others.len() + 1, "{text}");
    assert!(lines.iter().all(|line| line.ends_with(" 2")), "{text}");
}

#[test]
fn a_workload_that_came_anew_counts_on_in_its_series() {
    let (workers, metrics) = metrics(1);
    for _ in 0..3 {
        // Equal by uid, but at another place.
        workers[0].request_ended(&key(&labels("client", "web"), answered(200)), &RequestCounts::default());
    }
    assert!(line_of(&metrics.text().unwrap(), "istio_requests_total{").unwrap().ends_with(" 3"));
}

#[test]
fn a_series_of_requests_goes_with_its_pod() {
    let (workers, metrics) = metrics(1);
    let ends = labels("client", "web");
    let count = || workers[0].request_ended(&key(&ends, answered(200)), &RequestCounts::default());
    let shown = || line_of(&metrics.text().unwrap(), "istio_requests_total{").is_some();
    count();
    workers[0].sweep(|_| true);
    assert!(shown());
    workers[0].sweep(|workload| &*workload.name != "web");
    assert!(!shown(), "nobody holds it any more");
    // A request that outlived the pod makes one more, for the next sweep.
    count();
    assert!(shown());
    workers[0].sweep_new(|_| false);
    assert!(!shown());
}

#[test]
fn beyond_the_bound_requests_count_with_unknown_ends() {
    let (workers, metrics) = metrics(1);
    for index in 0..SERIES_MAX + 3 {
        let ends = labels("client", &format!("web-{index}"));
        workers[0].request_ended(&key(&ends, answered(200)), &RequestCounts::default());
        if index % 500 == 0 {
            metrics.update();
        }
    }
    let text = metrics.text().unwrap();
    assert!(text.contains("corelane_limit_hits_total{worker=\"0\",limit=\"metric_series\"} 3\n"));
    let overflow = "istio_requests_total{reporter=\"source\",source_workload=\"unknown\"";
    assert!(line_of(&text, overflow).unwrap().ends_with(" 3"));
}

#[test]
fn every_cause_has_the_flag_that_envoy_gives_it() {
    let flags = CloseCause::ALL.map(|cause| (cause.label(), cause.request_flag(503).label()));
    let expected = [
        ("finished", "-"),
        ("policy_denied", "-"),
        ("token_refused", "-"),
        ("policy_changed", "LR"),
        ("unknown_workload", "-"),
        ("unknown_destination", "NC"),
        ("no_healthy_endpoint", "UH"),
        ("name_unresolved", "DF"),
        ("reserved_port", "-"),
        ("connect_failed", "UF"),
        ("connect_timed_out", "UF"),
        ("tls_failed", "UF"),
        ("identity_mismatch", "UF"),
        ("certificate_missing", "UF"),
        ("certificate_revoked", "UF"),
        ("tunnel_failed", "UF"),
        ("tunnel_refused", "UF"),
        ("wrong_destination", "-"),
        ("invalid_http", "UPE"),
        ("no_route", "NR"),
        ("fault_injected", "FI"),
        ("client_reset", "DC"),
        ("server_reset", "UC"),
        ("idle_timeout", "SI"),
        ("request_timeout", "UT"),
        ("limit_reached", "OM"),
        ("upstream_overflow", "UO"),
        ("drained", "LR"),
    ];
    assert_eq!(flags, expected);
    assert_eq!(CloseCause::InvalidHttp.request_flag(400).label(), "DPE");
    assert_eq!(CloseCause::RequestTimeout.request_flag(408).label(), "-");
}
