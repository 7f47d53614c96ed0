//! The text of a scrape: names and help of every metric.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::cells::DURATION_BOUNDS_MS;
use super::labels::{LABEL_NAMES, LabelValues};
use super::registry::{State, TcpTotals, TerminationReason};
use super::worker::{Counter, Gauge, Limit, WorkerCells};

/// Encodes the state at each scrape.
#[derive(Debug)]
pub(super) struct Exposition {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) log_dropped: Arc<AtomicU64>,
}

/// A short label set with fixed names.
struct Pairs<'a, const N: usize>([(&'static str, &'a str); N]);

struct Values<'a>(&'a LabelValues);

struct TcpFamily {
    name: &'static str,
    help: &'static str,
    value: fn(&TcpTotals) -> u64,
}

const TCP_FAMILIES: [TcpFamily; 5] = [
    TcpFamily { name: "istio_tcp_connections_opened", help: "Connections opened", value: |t| t.opened },
    TcpFamily { name: "istio_tcp_connections_closed", help: "Connections closed", value: |t| t.closed },
    TcpFamily {
        name: "istio_tcp_connections_failed",
        help: "Connections that could not be established",
        value: |t| t.failed,
    },
    TcpFamily {
        name: "istio_tcp_received_bytes",
        help: "Bytes that servers received from their clients",
        value: |t| t.received_bytes,
    },
    TcpFamily {
        name: "istio_tcp_sent_bytes",
        help: "Bytes that servers sent to their clients",
        value: |t| t.sent_bytes,
    },
];

type Encoded = Result<(), fmt::Error>;

// === impl label sets ===

fn encode_pair(encoder: &mut LabelSetEncoder<'_>, name: &str, value: &str) -> Encoded {
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
        let pairs = LABEL_NAMES.iter().zip(self.0.iter()).filter(|(_, value)| !value.is_empty());
        pairs.into_iter().try_for_each(|(name, value)| encode_pair(encoder, name, value))
    }
}

// === impl Exposition ===

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        build_info(&mut encoder)?;
        xds(&mut encoder, &state)?;
        pods(&mut encoder, &state)?;
        tcp(&mut encoder, &state)?;
        http(&mut encoder, &state)?;
        workers(&mut encoder, &state)?;
        let dropped = self.log_dropped.load(Ordering::Relaxed);
        let help = "Access log records lost because the queue was full";
        encoder
            .encode_descriptor("corelane_access_log_dropped", help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&dropped, None)
    }
}

fn counter<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) -> Encoded {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    values.into_iter().try_for_each(|(labels, value)| {
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
    })
}

fn gauge<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) -> Encoded {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    values.into_iter().try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
}

fn build_info(encoder: &mut DescriptorEncoder<'_>) -> Encoded {
    let labels = Pairs([("component", "corelane"), ("tag", env!("CARGO_PKG_VERSION"))]);
    gauge(encoder, "istio_build", "The program and its version", [(labels, 1)])
}

fn xds(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
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
        "Ended connections to the control plane",
        state.control.xds_terminations.iter().map(|(r, n)| (Pairs([("reason", reason(*r))]), *n)),
    )?;
    counter(
        encoder,
        "istio_xds_message",
        "Messages received from the control plane",
        messages().map(|(url, (count, _))| (Pairs([("url", url.as_str())]), *count)),
    )?;
    let mut family = encoder.encode_descriptor(
        "istio_xds_message",
        "Bytes received from the control plane",
        Some(&Unit::Bytes),
        MetricType::Counter,
    )?;
    for (url, (_, bytes)) in messages() {
        let labels = Pairs([("url", url.as_str())]);
        family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(bytes, None)?;
    }
    Ok(())
}

fn pods(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let pods = state.control.pods;
    let mut amount = |name: &str, help: &str, value: usize| {
        encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&u64::try_from(value).unwrap_or(u64::MAX))
    };
    amount("workload_manager_active_proxy_count", "Pods that are served", pods.active)?;
    amount("workload_manager_pending_proxy_count", "Pods that cannot be served yet", pods.pending)?;
    let mut count = |name: &str, help: &str, value: u64| {
        encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)
    };
    count("workload_manager_proxies_started", "Pods taken in", pods.started)?;
    count("workload_manager_proxies_stopped", "Pods let go", pods.stopped)
}

fn tcp(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let totals = state.tcp_totals();
    for family in &TCP_FAMILIES {
        let values = totals.iter().map(|(labels, total)| (Values(labels), (family.value)(total)));
        counter(encoder, family.name, family.help, values.filter(|(_, value)| *value != 0))?;
    }
    let sockets = |g: Gauge| state.workers.iter().map(|w| w.read_gauge(g)).sum();
    let values = [
        (Pairs([("reporter", "source")]), sockets(Gauge::SocketsSource)),
        (Pairs([("reporter", "destination")]), sockets(Gauge::SocketsDestination)),
    ];
    gauge(encoder, "istio_tcp_sockets_open", "Sockets open at present", values)
}

fn http(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let totals = state.http_totals();
    let counts = totals.iter().map(|(labels, total)| (Values(labels), total.count()));
    counter(encoder, "istio_requests", "HTTP requests answered", counts)?;
    let mut family = encoder.encode_descriptor(
        "istio_request_duration_milliseconds",
        "Time from the first byte of a request to the last of its response",
        None,
        MetricType::Histogram,
    )?;
    for (labels, total) in &totals {
        let bounds = DURATION_BOUNDS_MS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(total.buckets).collect();
        #[allow(clippy::cast_precision_loss)] // A sum for display.
        let sum_ms = total.duration_sum_us as f64 / 1_000.0;
        family.encode_family(&Values(labels))?.encode_histogram::<NoLabelSet>(
            sum_ms,
            total.count(),
            &buckets,
            None,
        )?;
    }
    Ok(())
}

fn workers(encoder: &mut DescriptorEncoder<'_>, state: &State) -> Encoded {
    let names: Vec<String> = (0..state.workers.len()).map(|i| i.to_string()).collect();
    let each = || names.iter().map(String::as_str).zip(&state.workers);
    let by_role = |client: Counter, server: Counter| {
        each().flat_map(move |(name, cells)| {
            let value = |c| WorkerCells::read_counter(cells, c);
            [
                (Pairs([("worker", name), ("role", "client")]), value(client)),
                (Pairs([("worker", name), ("role", "server")]), value(server)),
            ]
        })
    };
    let amount = |g: Gauge| {
        each().map(move |(name, cells)| (Pairs([("worker", name)]), WorkerCells::read_gauge(cells, g)))
    };
    let links = by_role(Counter::LinksConnected, Counter::LinksAccepted);
    counter(encoder, "corelane_links", "Tunnel connections established", links)?;
    let streams = by_role(Counter::StreamsOpened, Counter::StreamsAccepted);
    counter(encoder, "corelane_streams", "Tunnel streams established", streams)?;
    gauge(encoder, "corelane_links_open", "Tunnel connections open at present", amount(Gauge::Links))?;
    gauge(encoder, "corelane_streams_open", "Tunnel streams open at present", amount(Gauge::Streams))?;
    let generation = amount(Gauge::Generation);
    gauge(encoder, "corelane_snapshot_generation", "Generation of the worker's snapshot", generation)?;
    let hits = each().flat_map(|(name, cells)| {
        Limit::ALL
            .map(|l| (Pairs([("worker", name), ("limit", l.label())]), WorkerCells::read_limit(cells, l)))
    });
    counter(encoder, "corelane_limit_hits", "Times that a bound of the data path was reached", hits)
}
