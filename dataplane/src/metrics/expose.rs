//! The text of a scrape: names and help of every metric. Those of ztunnel have its names, labels and help.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use l7::ir::Metric;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeLabelSet, LabelSetEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::cells::{DNS_BOUNDS_S, read};
use super::labels::{DNS_LABEL_NAMES, LabelValues, ON_DEMAND_LABEL_NAMES};
use super::process;
use super::registry::{DnsTotals, State, TcpTotals, TerminationReason};
use super::shadow::SHADOW_LABEL_NAMES;
use super::told::told;
use super::worker::{Counter, DELAY_BOUNDS_S, Gauge, Limit, WorkerCells};
use crate::access_log::CloseCause;
use crate::trace::SpanCounts;

/// Encodes the state at each scrape.
#[derive(Debug)]
pub(super) struct Exposition {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) log_dropped: Arc<AtomicU64>,
    pub(super) spans: Arc<SpanCounts>,
}

/// A short label set with fixed names.
struct Pairs<'a, const N: usize>([(&'static str, &'a str); N]);

/// Label values with their names.
pub(super) struct Values<'a>(pub(super) &'static [&'static str], pub(super) &'a LabelValues);

struct TcpFamily {
    metric: Metric,
    name: &'static str,
    help: &'static str,
    value: fn(&TcpTotals) -> u64,
    /// Whether the series shows; bytes show from the opening on.
    shows: fn(&TcpTotals) -> bool,
}

const TCP_FAMILIES: [TcpFamily; 5] = [
    TcpFamily {
        metric: Metric::TcpOpened,
        name: "istio_tcp_connections_opened",
        help: "The total number of TCP connections opened.",
        value: |t| t.opened,
        shows: |t| t.opened != 0,
    },
    TcpFamily {
        metric: Metric::TcpClosed,
        name: "istio_tcp_connections_closed",
        help: "The total number of TCP connections closed.",
        value: |t| t.closed,
        shows: |t| t.closed != 0,
    },
    TcpFamily {
        metric: Metric::TcpReceived,
        name: "istio_tcp_received_bytes",
        help: "The size of total bytes received during request in case of a TCP connection.",
        value: |t| t.received_bytes,
        shows: |t| t.opened != 0,
    },
    TcpFamily {
        metric: Metric::TcpSent,
        name: "istio_tcp_sent_bytes",
        help: "The size of total bytes sent during response in case of a TCP connection.",
        value: |t| t.sent_bytes,
        shows: |t| t.opened != 0,
    },
    TcpFamily {
        metric: Metric::TcpFailed,
        name: "istio_tcp_connections_failed",
        help: "The total number of TCP connections that failed to establish (unstable).",
        value: |t| t.failed,
        shows: |t| t.failed != 0,
    },
];

struct DnsFamily {
    name: &'static str,
    help: &'static str,
    value: fn(&DnsTotals) -> u64,
}

const DNS_FAMILIES: [DnsFamily; 3] = [
    DnsFamily {
        name: "istio_dns_requests",
        help: "Total number of DNS requests (unstable).",
        value: |t| t.requests,
    },
    DnsFamily {
        name: "istio_dns_upstream_requests",
        help: "Total number of DNS requests forwarded to upstream (unstable).",
        value: |t| t.upstream_requests,
    },
    DnsFamily {
        name: "istio_dns_upstream_failures",
        help: "Total number of DNS requests that failed to forward upstream (unstable).",
        value: |t| t.upstream_failures,
    },
];

pub(super) type Encoded = Result<(), fmt::Error>;

// === impl label sets ===

pub(super) fn encode_pair(encoder: &mut LabelSetEncoder<'_>, name: &str, value: &str) -> Encoded {
    use std::fmt::Write;
    let mut label = encoder.encode_label();
    let mut key = label.encode_label_key()?;
    key.write_str(name)?;
    let mut text = key.encode_label_value()?;
    text.write_str(value)?;
    text.finish()
}

impl<const N: usize> EncodeLabelSet for Pairs<'_, N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Encoded {
        self.0.iter().try_for_each(|(name, value)| encode_pair(encoder, name, value))
    }
}

impl EncodeLabelSet for Values<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Encoded {
        let pairs = self.0.iter().zip(self.1.iter()).filter(|(_, value)| !value.is_empty());
        pairs.into_iter().try_for_each(|(name, value)| encode_pair(encoder, name, value))
    }
}

// === impl Exposition ===

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        process(&mut encoder)?;
        build_info(&mut encoder)?;
        xds(&mut encoder, &state)?;
        pods(&mut encoder, &state)?;
        tcp(&mut encoder, &state)?;
        revocation(&mut encoder, &state)?;
        shadow(&mut encoder, &state)?;
        dns(&mut encoder, &state)?;
        super::expose_requests::requests(&mut encoder, &state)?;
        tunnels(&mut encoder, &state)?;
        workers(&mut encoder, &state)?;
        delays(&mut encoder, &state)?;
        let [exported, dropped] =
            [&self.spans.exported, &self.spans.dropped].map(|count| count.load(Ordering::Relaxed));
        let help = "Spans that the collector took.";
        single(&mut encoder, MetricType::Counter, "corelane_spans_exported", help, exported)?;
        let help = "Spans that were lost on the way to the collector.";
        single(&mut encoder, MetricType::Counter, "corelane_spans_dropped", help, dropped)?;
        let dropped = self.log_dropped.load(Ordering::Relaxed);
        let help = "Access log records lost because the queue was full.";
        single(&mut encoder, MetricType::Counter, "corelane_access_log_dropped", help, dropped)
    }
}

/// A family without samples does not show at all.
pub(super) fn family<L: EncodeLabelSet, V>(
    encoder: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    (name, help, unit): (&str, &str, Option<&Unit>),
    values: impl IntoIterator<Item = (L, V)>,
    encode: impl Fn(&mut prometheus_client::encoding::MetricEncoder<'_>, V) -> Encoded,
) -> Encoded {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
    for (labels, value) in values {
        encode(&mut family.encode_family(&labels)?, value)?;
    }
    Ok(())
}

pub(super) fn counter<L: EncodeLabelSet, V: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, V)>,
) -> Encoded {
    family(encoder, MetricType::Counter, (name, help, None), values, |metric, value| {
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    })
}

fn gauge<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) -> Encoded {
    family(encoder, MetricType::Gauge, (name, help, None), values, |metric, value| {
        metric.encode_gauge(&value)
    })
}

/// A family of one sample without labels.
fn single(
    encoder: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    name: &str,
    help: &str,
    value: u64,
) -> Encoded {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    match kind {
        MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
        _ => metric.encode_gauge(&value),
    }
}

fn process(encoder: &mut DescriptorEncoder<'_>) -> Encoded {
    let open = process::open_descriptors();
    single(encoder, MetricType::Gauge, "process_open_fds", "Number of open file descriptors", open)?;
    let max = process::descriptors_max();
    single(encoder, MetricType::Gauge, "process_max_fds", "Maximum number of file descriptors", max)
}

/// Also under ztunnel's name, by which dashboards find the version of whatever has its place.
fn build_info(encoder: &mut DescriptorEncoder<'_>) -> Encoded {
    let tag = env!("CARGO_PKG_VERSION");
    let labels = ["corelane", "ztunnel"].map(|name| (Pairs([("component", name), ("tag", tag)]), 1));
    gauge(encoder, "istio_build", "Istio component build info.", labels)
}

fn pods(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let pods = state.control.pods;
    let number = |amount: usize| u64::try_from(amount).unwrap_or(u64::MAX);
    for (kind, name, help, value) in [
        (
            MetricType::Gauge,
            "workload_manager_active_proxy_count",
            "The total number current workloads with active inpod proxies.",
            number(pods.active),
        ),
        (
            MetricType::Gauge,
            "workload_manager_pending_proxy_count",
            "The total number current workloads with pending inpod proxies.",
            number(pods.pending),
        ),
        (
            MetricType::Counter,
            "workload_manager_proxies_started",
            "The total number of inpod proxies that were started.",
            pods.started,
        ),
        (
            MetricType::Counter,
            "workload_manager_proxies_stopped",
            "The total number of inpod proxies that were stopped.",
            pods.stopped,
        ),
    ] {
        single(encoder, kind, name, help, value)?;
    }
    Ok(())
}

fn xds(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    single(
        encoder,
        MetricType::Gauge,
        "corelane_state_stale",
        "1 while the state is the last one from disk and the control plane has not answered.",
        u64::from(state.control.state_stale),
    )?;
    single(
        encoder,
        MetricType::Gauge,
        "corelane_waypoint_problems",
        "What a waypoint is told and does not understand: refused or left out.",
        u64::try_from(state.control.waypoint_problems).unwrap_or(u64::MAX),
    )?;
    let messages = || state.control.xds_messages.iter();
    let reason = |r: TerminationReason| match r {
        TerminationReason::ConnectionError => "ConnectionError",
        TerminationReason::Error => "Error",
        TerminationReason::Reconnect => "Reconnect",
        TerminationReason::Complete => "Complete",
    };
    counter(
        encoder,
        "istio_xds_connection_terminations",
        "The total number of completed connections to xds server (unstable).",
        state.control.xds_terminations.iter().map(|(r, n)| (Pairs([("reason", reason(*r))]), *n)),
    )?;
    counter(
        encoder,
        "istio_xds_message",
        "Total number of messages received (unstable).",
        messages().map(|(url, (count, _))| (Pairs([("url", url.as_str())]), *count)),
    )?;
    family(
        encoder,
        MetricType::Counter,
        ("istio_xds_message", "Total number of bytes received (unstable).", Some(&Unit::Bytes)),
        messages().map(|(url, (_, bytes))| (Pairs([("url", url.as_str())]), *bytes)),
        |metric, bytes| metric.encode_counter::<NoLabelSet, _, u64>(&bytes, None),
    )
}

fn tcp(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let totals = state.tcp_totals();
    for family in &TCP_FAMILIES {
        let told = told(&totals, family.metric).into_iter();
        let values =
            told.filter(|(_, sum)| (family.shows)(sum)).map(|(tags, sum)| (tags, (family.value)(&sum)));
        counter(encoder, family.name, family.help, values)?;
    }
    let sockets = |g: Gauge| state.workers.iter().map(|w| w.read_gauge(g)).sum();
    let values = by_reporter(sockets(Gauge::SocketsSource), sockets(Gauge::SocketsDestination));
    gauge(encoder, "istio_tcp_sockets_open", "The current number of open TCP sockets (unstable).", values)
}

fn by_reporter(source: u64, destination: u64) -> [(Pairs<'static, 1>, u64); 2] {
    [(Pairs([("reporter", "source")]), source), (Pairs([("reporter", "destination")]), destination)]
}

fn revocation(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let sum = |c: Counter| state.workers.iter().map(|w| w.read_counter(c)).sum();
    let shown = |source: u64, destination: u64| {
        by_reporter(source, destination).into_iter().filter(|(_, count)| *count != 0)
    };
    let help = "The total number of connections refused because a certificate is revoked (unstable).";
    let values = shown(sum(Counter::CrlRejectionsSource), sum(Counter::CrlRejectionsDestination));
    counter(encoder, "istio_crl_policy_rejections", help, values)?;
    let help = "The total number of connections whose certificates no revocation list covers (unstable).";
    let values = shown(sum(Counter::CrlUntrackedSource), sum(Counter::CrlUntrackedDestination));
    counter(encoder, "istio_crl_untracked_connections", help, values)
}

fn shadow(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let help = "What dry-run and AUDIT policies say of requests and connections, and do not decide.";
    let totals = state.shadow_totals().map(|(labels, count)| (Values(&SHADOW_LABEL_NAMES, labels), count));
    counter(encoder, "corelane_policy_shadow", help, totals)
}

fn dns(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let help = "The total number of requests that used on-demand DNS (unstable).";
    let values =
        state.on_demand_totals().map(|(labels, count)| (Values(&ON_DEMAND_LABEL_NAMES, labels), count));
    counter(encoder, "istio_on_demand_dns", help, values)?;
    let totals = state.dns_totals();
    for family in &DNS_FAMILIES {
        let values =
            totals.iter().map(|(labels, total)| (Values(&DNS_LABEL_NAMES, labels), (family.value)(total)));
        counter(encoder, family.name, family.help, values.filter(|(_, value)| *value != 0))?;
    }
    let help = "Total time in seconds Istio takes to get DNS response from upstream (unstable).";
    let answered = totals.iter().filter(|(_, total)| total.answered() != 0);
    family(
        encoder,
        MetricType::Histogram,
        ("istio_dns_upstream_request_duration", help, Some(&Unit::Seconds)),
        answered.map(|(labels, total)| (Values(&DNS_LABEL_NAMES, labels), total)),
        |metric, total| {
            let buckets = buckets(&DNS_BOUNDS_S, &total.buckets);
            let sum = seconds(total.duration_sum_us);
            metric.encode_histogram::<NoLabelSet>(sum, total.answered(), &buckets, None)
        },
    )
}

/// Upper bounds with their counts; the last one has none.
pub(super) fn buckets(bounds: &[f64], counts: &[u64]) -> Vec<(f64, u64)> {
    bounds.iter().copied().chain([f64::INFINITY]).zip(counts.iter().copied()).collect()
}

#[allow(clippy::cast_precision_loss)] // A sum for display.
pub(super) fn seconds(us: u64) -> f64 {
    us as f64 / 1_000_000.0
}

/// The workers under their numbers.
fn each(state: &State) -> impl Iterator<Item = (String, &WorkerCells)> {
    state.workers.iter().enumerate().map(|(index, cells)| (index.to_string(), &***cells))
}

/// The label of a worker.
struct OfWorker(String);

impl EncodeLabelSet for OfWorker {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Encoded {
        encode_pair(encoder, "worker", &self.0)
    }
}

fn tunnels(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let names: Vec<_> = each(state).collect();
    let by_role = |client: Counter, server: Counter| {
        names.iter().flat_map(move |(name, cells)| {
            let role =
                |role, counter| (Pairs([("worker", &**name), ("role", role)]), cells.read_counter(counter));
            [role("client", client), role("server", server)]
        })
    };
    let links = by_role(Counter::LinksConnected, Counter::LinksAccepted);
    counter(encoder, "corelane_links", "Tunnel connections established.", links)?;
    let streams = by_role(Counter::StreamsOpened, Counter::StreamsAccepted);
    counter(encoder, "corelane_streams", "Tunnel streams established.", streams)?;
    let causes = CloseCause::ALL.into_iter().map(|cause| {
        let sum: u64 = state.workers.iter().map(|cells| cells.read_cause(cause)).sum();
        (Pairs([("cause", cause.label())]), sum)
    });
    let help = "Connections that have ended, by cause.";
    counter(encoder, "corelane_connections_ended", help, causes.filter(|(_, count)| *count != 0))?;
    let tunnels = tunnel::tls::CloseCause::ALL.into_iter().map(|cause| {
        let sum: u64 = state.workers.iter().map(|cells| cells.read_tunnel_cause(cause)).sum();
        (Pairs([("cause", cause.label())]), sum)
    });
    let help = "Accepted tunnels that have ended, by cause.";
    counter(encoder, "corelane_accepted_tunnels_ended", help, tunnels.filter(|(_, count)| *count != 0))?;
    let hits = names.iter().flat_map(|(name, cells)| {
        Limit::ALL.map(|l| (Pairs([("worker", &**name), ("limit", l.label())]), cells.read_limit(l)))
    });
    counter(encoder, "corelane_limit_hits", "Times that a bound of the data path was reached.", hits)
}

fn workers(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let amounts = [
        ("corelane_connections_open", "Connections of pods that are being carried.", Gauge::Connections),
        ("corelane_links_open", "Tunnel connections open at present.", Gauge::Links),
        ("corelane_snapshot_generation", "Generation of the worker's snapshot.", Gauge::Generation),
        (
            "corelane_spare_buffer_bytes",
            "Bytes of output buffers that wait to be used.",
            Gauge::SpareBufferBytes,
        ),
        ("corelane_spare_pipes", "Pipes that wait to be used.", Gauge::SparePipes),
        ("corelane_held_bytes", "Bytes that are held for applications and peers.", Gauge::HeldBytes),
    ];
    for (name, help, amount) in amounts {
        let values = each(state).map(|(worker, cells)| (OfWorker(worker), cells.read_gauge(amount)));
        gauge(encoder, name, help, values)?;
    }
    let times = each(state).filter_map(|(worker, cells)| {
        let time = process::thread_time(cells.read_gauge(Gauge::ThreadId))?;
        Some((OfWorker(worker), time.as_secs_f64()))
    });
    let help = "Time that the worker has run on a CPU.";
    counter(encoder, "corelane_worker_cpu_seconds", help, times)?;
    let now = Instant::now();
    let silences =
        each(state).filter_map(|(w, cells)| Some((OfWorker(w), cells.silence(now)?.as_secs_f64())));
    let help = "Time since the worker's last sign of life.";
    family(
        encoder,
        MetricType::Gauge,
        ("corelane_worker_silence_seconds", help, None),
        silences,
        |metric, age| metric.encode_gauge(&age),
    )
}

/// How long a task that was ready waited for its turn: the time that one turn of the worker's loop takes.
fn delays(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let values = each(state).map(|(worker, cells)| (OfWorker(worker), cells));
    let help = "How late the worker's tick was, four times a second: how long a turn of its loop took then.";
    family(
        encoder,
        MetricType::Histogram,
        ("corelane_worker_turn_seconds", help, None),
        values,
        |metric, cells| {
            let counts = cells.delay_buckets.each_ref().map(read);
            let sum = seconds(read(&cells.delay_sum_us));
            metric.encode_histogram::<NoLabelSet>(
                sum,
                counts.iter().sum(),
                &buckets(&DELAY_BOUNDS_S, &counts),
                None,
            )
        },
    )
}
