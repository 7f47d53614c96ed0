//! Labels, sums over workers, eviction, bounds.

use std::time::Duration;

use super::*;
use crate::access_log::cause::ResponseFlag;
use crate::access_log::format::tests::{service, workload};

fn labels(source: &str, destination: &str) -> Labels {
    let subject = |name: &str| {
        let workload = workload("app", name);
        Subject { identity: Some(workload.identity.clone()), workload: Some(workload) }
    };
    Labels {
        reporter: Reporter::Source,
        source: subject(source),
        destination: subject(destination),
        service: Some(service("app", "web")),
        flag: ResponseFlag::None,
        security: ConnectionSecurity::MutualTls,
    }
}

const SET: &str = "reporter=\"source\",source_workload=\"client\",source_canonical_service=\"client\",\
    source_canonical_revision=\"v1\",source_workload_namespace=\"app\",\
    source_principal=\"spiffe://cluster.local/ns/app/sa/client\",source_app=\"client\",source_version=\"v1\",\
    source_cluster=\"Kubernetes\",destination_service=\"web.app.svc.cluster.local\",\
    destination_service_namespace=\"app\",destination_service_name=\"web\",destination_workload=\"web\",\
    destination_canonical_service=\"web\",destination_canonical_revision=\"v1\",\
    destination_workload_namespace=\"app\",destination_principal=\"spiffe://cluster.local/ns/app/sa/web\",\
    destination_app=\"web\",destination_version=\"v1\",destination_cluster=\"Kubernetes\"";

const REGIONS: &str = "source_region=\"unknown\",source_zone=\"unknown\",destination_region=\"unknown\",destination_zone=\"unknown\"";

fn line_of<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.lines().find(|l| l.starts_with(start))
}

#[test]
fn connections_are_summed_over_workers_with_istio_labels() {
    let (workers, metrics) = metrics(2);
    for worker in &workers {
        let series = worker.tcp(&labels("client", "web"));
        series.opened();
        series.client_to_server(100);
        series.server_to_client(3);
    }
    let text = metrics.text().unwrap();
    let expected = format!(
        "istio_tcp_connections_opened_total{{{SET},request_protocol=\"tcp\",response_flags=\"-\",\
         connection_security_policy=\"mutual_tls\",{REGIONS}}} 2"
    );
    assert_eq!(line_of(&text, "istio_tcp_connections_opened_total"), Some(expected.as_str()), "{text}");
    assert!(line_of(&text, "istio_tcp_received_bytes_total").unwrap().ends_with(" 200"));
    assert!(line_of(&text, "istio_tcp_sent_bytes_total").unwrap().ends_with(" 6"));
    assert_eq!(line_of(&text, "istio_tcp_connections_closed_total"), None);
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn requests_are_counted_by_status_with_a_duration_histogram() {
    let (workers, metrics) = metrics(1);
    let series = workers[0].http(&labels("client", "web"), 403);
    series.request(Duration::from_micros(500));
    series.request(Duration::from_millis(7));
    series.request(Duration::from_hours(2));
    let text = metrics.text().unwrap();
    let set = format!(
        "{SET},request_protocol=\"http\",response_flags=\"-\",connection_security_policy=\"mutual_tls\",{REGIONS},\
         response_code=\"403\""
    );
    assert!(text.contains(&format!("istio_requests_total{{{set}}} 3\n")), "{text}");
    let bucket = |bound: &str, count: u64| {
        format!("istio_request_duration_milliseconds_bucket{{le=\"{bound}\",{set}}} {count}\n")
    };
    for line in
        [bucket("0.5", 1), bucket("5.0", 1), bucket("10.0", 2), bucket("3600000.0", 2), bucket("+Inf", 3)]
    {
        assert!(text.contains(&line), "{line} not in {text}");
    }
}

#[test]
fn a_series_goes_when_its_pod_and_its_last_connection_have_gone() {
    let (workers, metrics) = metrics(2);
    let held = workers[0].tcp(&labels("client", "web"));
    held.opened();
    workers[1].tcp(&labels("client", "web")).opened();
    let opened =
        || line_of(&metrics.text().unwrap(), "istio_tcp_connections_opened_total").map(str::to_owned);
    assert!(opened().unwrap().ends_with(" 2"));
    for worker in &workers {
        worker.sweep(|w| &*w.name != "web");
    }
    // One worker has dropped it; the sum must not fall while the other still counts.
    assert!(opened().unwrap().ends_with(" 2"));
    drop(held);
    assert_eq!(opened(), None);
}

#[test]
fn series_of_known_pods_survive_a_sweep() {
    let (workers, metrics) = metrics(1);
    workers[0].tcp(&labels("client", "web")).opened();
    workers[0].sweep(|_| true);
    workers[0].tcp(&labels("client", "web")).opened();
    let text = metrics.text().unwrap();
    assert!(line_of(&text, "istio_tcp_connections_opened_total").unwrap().ends_with(" 2"));
}

#[test]
fn beyond_the_bound_counts_go_to_one_series_and_the_limit_says_so() {
    let (workers, metrics) = metrics(1);
    for index in 0..series::SERIES_MAX + 3 {
        workers[0].tcp(&labels("client", &format!("web-{index}"))).opened();
        metrics.update();
    }
    let text = metrics.text().unwrap();
    assert!(text.contains("corelane_limit_hits_total{worker=\"0\",limit=\"metric_series\"} 3\n"), "{text}");
    let overflow = "istio_tcp_connections_opened_total{reporter=\"source\",source_workload=\"unknown\"";
    assert!(line_of(&text, overflow).unwrap().ends_with(" 3"));
}

#[test]
fn a_control_thread_that_does_not_listen_costs_detail_not_counts() {
    let (workers, metrics) = metrics(1);
    for index in 0..=series::ANNOUNCEMENTS_MAX {
        workers[0].tcp(&labels("client", &format!("web-{index}"))).opened();
    }
    let text = metrics.text().unwrap();
    let counted = text.lines().filter(|l| l.starts_with("istio_tcp_connections_opened_total")).count();
    assert_eq!(counted, series::ANNOUNCEMENTS_MAX + 1);
}

#[test]
fn workers_report_their_own_counts() {
    let (workers, metrics) = metrics(2);
    workers[1].count(Counter::LinksAccepted);
    workers[1].raise(Gauge::Links);
    workers[1].raise(Gauge::Links);
    workers[1].lower(Gauge::Links);
    workers[0].set_generation(7);
    workers[0].raise(Gauge::sockets(Reporter::Destination));
    metrics.count(ControlCounter::XdsMessage { type_url: "type.googleapis.com/a".into(), bytes: 12 });
    metrics.count(ControlCounter::XdsTermination(TerminationReason::Reconnect));
    metrics.set_log_dropped(4);
    let text = metrics.text().unwrap();
    for line in [
        "corelane_links_total{worker=\"1\",role=\"server\"} 1",
        "corelane_links_open{worker=\"1\"} 1",
        "corelane_snapshot_generation{worker=\"0\"} 7",
        "istio_tcp_sockets_open{reporter=\"destination\"} 1",
        "istio_xds_message_total{url=\"type.googleapis.com/a\"} 1",
        "istio_xds_message_bytes_total{url=\"type.googleapis.com/a\"} 12",
        "istio_xds_connection_terminations_total{reason=\"Reconnect\"} 1",
        "corelane_access_log_dropped_total 4",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} not in {text}");
    }
}

#[test]
fn pods_of_the_node_are_counted() {
    let (_workers, metrics) = metrics(1);
    for counter in [
        ControlCounter::PodStarted,
        ControlCounter::PodStarted,
        ControlCounter::PodStopped,
        ControlCounter::Pods { active: 1, pending: 2 },
    ] {
        metrics.count(counter);
    }
    let text = metrics.text().unwrap();
    for line in [
        "workload_manager_active_proxy_count 1",
        "workload_manager_pending_proxy_count 2",
        "workload_manager_proxies_started_total 2",
        "workload_manager_proxies_stopped_total 1",
    ] {
        assert!(text.contains(line), "{line} not in {text}");
    }
}
