//! Labels, sums over workers, eviction, bounds, and the likeness to a ztunnel's metrics page.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use std::time::Duration;

use super::*;
use crate::access_log::cause::{CloseCause, ResponseFlag};
use crate::access_log::format::tests::{service, workload};

pub(super) fn labels(source: &str, destination: &str) -> Labels {
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

pub(super) const SET: &str = "reporter=\"source\",source_workload=\"client\",source_canonical_service=\"client\",\
    source_canonical_revision=\"v1\",source_workload_namespace=\"app\",\
    source_principal=\"spiffe://cluster.local/ns/app/sa/client\",source_app=\"client\",source_version=\"v1\",\
    source_cluster=\"Kubernetes\",destination_service=\"web.app.svc.cluster.local\",\
    destination_service_namespace=\"app\",destination_service_name=\"web\",destination_workload=\"web\",\
    destination_canonical_service=\"web\",destination_canonical_revision=\"v1\",\
    destination_workload_namespace=\"app\",destination_principal=\"spiffe://cluster.local/ns/app/sa/web\",\
    destination_app=\"web\",destination_version=\"v1\",destination_cluster=\"Kubernetes\"";

pub(super) const REGIONS: &str = "source_region=\"unknown\",source_zone=\"unknown\",destination_region=\"unknown\",destination_zone=\"unknown\"";

pub(super) fn line_of<'a>(text: &'a str, start: &str) -> Option<&'a str> {
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
fn a_sweep_of_new_series_asks_of_each_once() {
    let (workers, metrics) = metrics(1);
    let worker = &workers[0];
    worker.tcp(&labels("client", "web")).opened();
    let asked = Cell::new(0);
    let sweep_new = |known: bool| {
        asked.set(0);
        worker.sweep_new(|_| {
            asked.set(asked.get() + 1);
            known
        });
        asked.get()
    };
    assert_eq!([sweep_new(true), sweep_new(true)], [2, 0]);
    // Its workload has gone, and a connection that outlived it ends only now.
    worker.tcp(&labels("client", "gone")).closed();
    assert_eq!([sweep_new(false), sweep_new(false)], [1, 0]);
    let text = metrics.text().unwrap();
    assert!(text.contains("destination_workload=\"web\"") && !text.contains("\"gone\""), "{text}");
}

#[test]
fn beyond_the_bound_counts_go_to_one_series_and_the_limit_says_so() {
    let (workers, metrics) = metrics(1);
    for index in 0..SERIES_MAX + 3 {
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
    workers[0].ended(CloseCause::ConnectFailed);
    workers[0].raise(Gauge::sockets(Reporter::Destination));
    metrics.count(ControlCounter::XdsMessage { type_url: "type.googleapis.com/a".into(), bytes: 12 });
    metrics.count(ControlCounter::XdsTermination(TerminationReason::Reconnect));
    metrics.set_log_dropped(4);
    let text = metrics.text().unwrap();
    for line in [
        "corelane_links_total{worker=\"1\",role=\"server\"} 1",
        "corelane_links_open{worker=\"1\"} 1",
        "corelane_snapshot_generation{worker=\"0\"} 7",
        "corelane_connections_ended_total{cause=\"connect_failed\"} 1",
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

#[test]
fn dns_queries_are_counted_by_type_protocol_and_pod() {
    let (workers, metrics) = metrics(1);
    let source = workload("app", "client");
    let labels = DnsLabels { source: Some(source), query_type: 28, protocol: DnsProtocol::Udp };
    let series = workers[0].dns(&labels);
    series.request();
    series.upstream_request();
    series.upstream_failure();
    series.upstream_duration(Duration::from_millis(7));
    // A number that a pod made up does not make a series of its own.
    for query_type in [4_000, 4_001] {
        workers[0].dns(&DnsLabels { query_type, ..labels.clone() }).request();
    }
    let text = metrics.text().unwrap();
    let set = |query: &str| {
        format!(
            "request_query_type=\"{query}\",request_protocol=\"udp\",source_canonical_service=\"client\",\
             source_canonical_revision=\"v1\""
        )
    };
    let aaaa = set("aaaa");
    for line in [
        format!("istio_dns_requests_total{{{aaaa}}} 1"),
        format!("istio_dns_requests_total{{{}}} 2", set("unknown")),
        format!("istio_dns_upstream_requests_total{{{aaaa}}} 1"),
        format!("istio_dns_upstream_failures_total{{{aaaa}}} 1"),
        format!("istio_dns_upstream_request_duration_seconds_bucket{{le=\"0.005\",{aaaa}}} 0"),
        format!("istio_dns_upstream_request_duration_seconds_bucket{{le=\"0.01\",{aaaa}}} 1"),
        format!("istio_dns_upstream_request_duration_seconds_sum{{{aaaa}}} 0.007"),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} not in {text}");
    }
}

#[test]
fn names_resolved_on_demand_and_revoked_certificates_are_counted() {
    let (workers, metrics) = metrics(1);
    let source = labels("client", "web").source;
    workers[0].on_demand_dns(&OnDemandLabels { source, hostname: "db.example".into() });
    workers[0].count(Counter::crl_rejections(Reporter::Destination));
    workers[0].count(Counter::crl_untracked(Reporter::Source));
    let text = metrics.text().unwrap();
    let on_demand = line_of(&text, "istio_on_demand_dns_total{source_workload=\"client\"").unwrap();
    assert!(on_demand.ends_with("source_cluster=\"Kubernetes\",hostname=\"db.example\"} 1"), "{on_demand}");
    assert!(text.contains("istio_crl_policy_rejections_total{reporter=\"destination\"} 1\n"), "{text}");
    assert!(text.contains("istio_crl_untracked_connections_total{reporter=\"source\"} 1\n"), "{text}");
    workers[0].sweep(|_| false);
    assert_eq!(line_of(&metrics.text().unwrap(), "istio_on_demand_dns_total"), None);
}

/// A page by family: its HELP, TYPE and UNIT lines, and the label names of its samples by the samples' name.
type Families = BTreeMap<String, (BTreeSet<String>, BTreeMap<String, BTreeSet<Vec<String>>>)>;

fn families(page: &str) -> Families {
    let mut families = Families::new();
    let mut family = String::new();
    for line in page.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# ") {
            family = rest.split(' ').nth(1).unwrap().to_owned();
            families.entry(family.clone()).or_default().0.insert(line.to_owned());
        } else {
            let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
            let labels = rest.trim_start_matches('{').split_once('}').map_or("", |(labels, _)| labels);
            let pairs = labels.split("\",").filter(|pair| !pair.is_empty());
            let names = pairs.map(|pair| pair.split_once('=').unwrap().0.to_owned()).collect();
            families.get_mut(&family).unwrap().1.entry(name.to_owned()).or_default().insert(names);
        }
    }
    families
}

#[test]
fn the_families_of_a_ztunnels_metrics_page_are_all_there_as_they_are() {
    let theirs = families(include_str!("../../testdata/ztunnel-metrics.txt"));
    let (workers, metrics) = metrics(2);
    for reporter in [Reporter::Source, Reporter::Destination] {
        let series = workers[0].tcp(&Labels { reporter, ..labels("client", "web") });
        series.opened();
        series.closed();
        workers[0].tcp(&Labels { reporter, flag: ResponseFlag::Connect, ..labels("client", "web") }).failed();
    }
    metrics.count(ControlCounter::XdsMessage { type_url: "type.googleapis.com/a".into(), bytes: 12 });
    let ours = families(&metrics.text().unwrap());
    for (name, (comments, samples)) in &theirs {
        if name.starts_with("tokio_") {
            assert!(!ours.contains_key(name), "the workers have no tokio runtime that {name} could tell of");
            continue;
        }
        let (our_comments, our_samples) = ours.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!((our_comments, our_samples), (comments, samples), "{name}");
    }
}

#[test]
fn values_of_flags_and_security_are_those_that_ztunnel_has() {
    let flags = [
        (ResponseFlag::None, "-"),
        (ResponseFlag::Deny, "DENY"),
        (ResponseFlag::Connect, "CONNECT"),
        (ResponseFlag::TlsFailure, "TLS_FAILURE"),
        (ResponseFlag::Http2HandshakeFailure, "H2_HANDSHAKE_FAILURE"),
        (ResponseFlag::NetworkPolicy, "NETWORK_POLICY"),
        (ResponseFlag::IdentityError, "IDENTITY_ERROR"),
        (ResponseFlag::CertificateRevoked, "CERT_REVOKED"),
    ];
    assert!(flags.iter().all(|(flag, label)| flag.label() == *label));
    assert_eq!(ConnectionSecurity::Unknown.label(), "unknown");
    assert_eq!(ConnectionSecurity::MutualTls.label(), "mutual_tls");
}

/// The documentation lists every family that ztunnel does not have.
#[test]
fn the_families_of_requests_and_of_our_own_are_documented() {
    let documented = include_str!("../../../docs/operations.md");
    let (workers, metrics) = metrics(1);
    let ends = labels("client", "web");
    let source = SubjectRef { workload: ends.source.workload.as_ref(), identity: None };
    let key = RequestKey {
        reporter: Reporter::Source,
        source,
        destination: SubjectRef::default(),
        service: None,
        security: ConnectionSecurity::Unknown,
        outcome: RequestOutcome::default(),
    };
    let counts = RequestCounts { request_messages: 1, response_messages: 1, ..RequestCounts::default() };
    workers[0].request_ended(&key, &counts);
    workers[0].ended(CloseCause::Finished);
    let ours = families(&metrics.text().unwrap());
    let own = |name: &&String| {
        ["corelane_", "istio_request", "istio_response"].iter().any(|it| name.starts_with(it))
    };
    assert_eq!(ours.keys().filter(|name| name.starts_with("istio_re")).count(), 6, "{:?}", ours.keys());
    for name in ours.keys().filter(own) {
        assert!(documented.contains(&format!("`{name}")), "{name} is not documented");
    }
}
