//! What one worker counts: its series, and counters of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use crossbeam_utils::CachePadded;
use model::Workload;

use super::cells::{self, DnsSeries, TcpSeries};
use super::labels::{DnsLabels, Labels, OnDemandLabels, Reporter};
use super::request::{RequestCounts, RequestKey};
use super::series::{Announcement, SeriesTable};
use super::shadow::{ShadowLabels, ShadowVerdict};
use crate::access_log::CloseCause;

/// Monotonic counts of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Tunnel connections opened as the client.
    LinksConnected,
    /// Tunnel connections accepted.
    LinksAccepted,
    /// CONNECT streams opened as the client.
    StreamsOpened,
    /// CONNECT streams accepted.
    StreamsAccepted,
    /// Certificates of next hops that are on a revocation list.
    CrlRejectionsSource,
    /// Certificates of clients that are on a revocation list.
    CrlRejectionsDestination,
    /// Connections to peers of whose issuer no revocation list speaks.
    CrlUntrackedSource,
    /// Connections from peers of whose issuer no revocation list speaks.
    CrlUntrackedDestination,
}

/// Present amounts of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gauge {
    /// Open sockets of captured connections to other workloads.
    SocketsSource,
    /// Open sockets of connections from other workloads.
    SocketsDestination,
    /// Open tunnel connections, of both roles.
    Links,
    /// Connections of pods that are being carried.
    Connections,
    /// Generation of the snapshot that the worker acts upon.
    Generation,
    /// The kernel's number of the worker's thread.
    ThreadId,
    /// Milliseconds from the start of the metrics to the worker's last sign of life.
    Heartbeat,
    /// Bytes of output buffers that wait for a tunnel to use them.
    SpareBufferBytes,
    /// Pipes that wait for a relay to use them.
    SparePipes,
    /// Bytes that the worker holds for others.
    HeldBytes,
}

/// The bounds of the data path. Each is one value of `corelane_limit_hits_total{limit=}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Connections and accepted tunnels of a worker.
    Connections,
    /// Metric series of a worker.
    MetricSeries,
    /// Name queries of a pod under way.
    DnsQueries,
    /// TCP connections of a pod to its name server.
    DnsConnections,
    /// Questions on demand, and connections that wait for their answers.
    Demands,
    /// Bytes that a worker holds for others.
    Memory,
    /// Accepted tunnels of one client address.
    TunnelsOfClient,
    /// Handshakes of clients that are under way.
    Handshakes,
    /// Descriptors of the process.
    Descriptors,
    /// Time without a byte on a connection.
    IdleTime,
    /// Copies of requests under way.
    Copies,
}

/// Upper bounds of the histogram of how late a worker's tick was, in seconds; the last bucket has none.
pub(super) const DELAY_BOUNDS_S: [f64; 7] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];

pub(super) const DELAY_BUCKETS: usize = DELAY_BOUNDS_S.len() + 1;

/// The cells of a worker's own counts. Each array is in the order of its enumeration.
#[derive(Debug)]
pub(super) struct WorkerCells {
    counters: [AtomicU64; Counter::ALL.len()],
    gauges: [AtomicU64; Gauge::ALL.len()],
    limits: [AtomicU64; Limit::ALL.len()],
    causes: [AtomicU64; CloseCause::ALL.len()],
    tunnel_causes: [AtomicU64; tunnel::tls::CloseCause::ALL.len()],
    pub(super) delay_sum_us: AtomicU64,
    pub(super) delay_buckets: [AtomicU64; DELAY_BUCKETS],
    began: Instant,
}

/// The worker's end. Moves to its thread once and stays there (it is not `Sync`).
#[derive(Debug)]
pub struct WorkerMetrics {
    cells: Arc<CachePadded<WorkerCells>>,
    series: SeriesTable,
}

// === impl Counter, Gauge, Limit ===

impl Counter {
    pub(super) const ALL: [Self; 8] = [
        Self::LinksConnected,
        Self::LinksAccepted,
        Self::StreamsOpened,
        Self::StreamsAccepted,
        Self::CrlRejectionsSource,
        Self::CrlRejectionsDestination,
        Self::CrlUntrackedSource,
        Self::CrlUntrackedDestination,
    ];

    /// The counter of peers that a revocation list refused, as `reporter` counts it.
    pub const fn crl_rejections(reporter: Reporter) -> Self {
        match reporter {
            Reporter::Source => Self::CrlRejectionsSource,
            Reporter::Destination | Reporter::Waypoint => Self::CrlRejectionsDestination,
        }
    }

    /// The counter of tunnels that no revocation list covers, as `reporter` counts it.
    pub const fn crl_untracked(reporter: Reporter) -> Self {
        match reporter {
            Reporter::Source => Self::CrlUntrackedSource,
            Reporter::Destination | Reporter::Waypoint => Self::CrlUntrackedDestination,
        }
    }
}

impl Gauge {
    pub(super) const ALL: [Self; 10] = [
        Self::SocketsSource,
        Self::SocketsDestination,
        Self::Links,
        Self::Connections,
        Self::Generation,
        Self::ThreadId,
        Self::Heartbeat,
        Self::SpareBufferBytes,
        Self::SparePipes,
        Self::HeldBytes,
    ];

    /// The gauge of open sockets that `reporter` counts.
    pub const fn sockets(reporter: Reporter) -> Self {
        match reporter {
            Reporter::Source => Self::SocketsSource,
            Reporter::Destination | Reporter::Waypoint => Self::SocketsDestination,
        }
    }
}

impl Limit {
    pub const ALL: [Self; 11] = [
        Self::Connections,
        Self::MetricSeries,
        Self::DnsQueries,
        Self::DnsConnections,
        Self::Demands,
        Self::Memory,
        Self::TunnelsOfClient,
        Self::Handshakes,
        Self::Descriptors,
        Self::IdleTime,
        Self::Copies,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::MetricSeries => "metric_series",
            Self::DnsQueries => "dns_queries",
            Self::DnsConnections => "dns_connections",
            Self::Demands => "demands",
            Self::Memory => "memory",
            Self::TunnelsOfClient => "tunnels_of_client",
            Self::Handshakes => "handshakes",
            Self::Descriptors => "descriptors",
            Self::IdleTime => "idle_time",
            Self::Copies => "copies",
        }
    }
}

// === impl WorkerCells ===

impl WorkerCells {
    pub(super) fn new(began: Instant) -> Self {
        Self {
            counters: [const { AtomicU64::new(0) }; Counter::ALL.len()],
            gauges: [const { AtomicU64::new(0) }; Gauge::ALL.len()],
            limits: [const { AtomicU64::new(0) }; Limit::ALL.len()],
            causes: [const { AtomicU64::new(0) }; CloseCause::ALL.len()],
            tunnel_causes: [const { AtomicU64::new(0) }; tunnel::tls::CloseCause::ALL.len()],
            delay_sum_us: AtomicU64::new(0),
            delay_buckets: [const { AtomicU64::new(0) }; DELAY_BUCKETS],
            began,
        }
    }

    pub(super) fn read_counter(&self, counter: Counter) -> u64 {
        read_at(&self.counters, counter as usize)
    }

    pub(super) fn read_gauge(&self, gauge: Gauge) -> u64 {
        read_at(&self.gauges, gauge as usize)
    }

    pub(super) fn read_limit(&self, limit: Limit) -> u64 {
        read_at(&self.limits, limit as usize)
    }

    pub(super) fn read_tunnel_cause(&self, cause: tunnel::tls::CloseCause) -> u64 {
        read_at(&self.tunnel_causes, cause as usize)
    }

    pub(super) fn read_cause(&self, cause: CloseCause) -> u64 {
        read_at(&self.causes, cause as usize)
    }

    /// How long the worker has given no sign of life; `None` before its first.
    pub(super) fn silence(&self, now: Instant) -> Option<Duration> {
        let last = self.read_gauge(Gauge::Heartbeat);
        let since_start = now.saturating_duration_since(self.began);
        (last != 0).then(|| since_start.saturating_sub(Duration::from_millis(last)))
    }
}

/// Reads the cell; every enumeration has as many cells as values.
fn read_at(cells: &[AtomicU64], index: usize) -> u64 {
    cells.get(index).map_or(0, cells::read)
}

fn add_at(cells: &[AtomicU64], index: usize) {
    if let Some(cell) = cells.get(index) {
        cells::add(cell, 1);
    }
}

// === impl WorkerMetrics ===

impl WorkerMetrics {
    pub(super) fn new(cells: Arc<CachePadded<WorkerCells>>, announce: Sender<Announcement>) -> Self {
        Self { cells, series: SeriesTable::new(announce) }
    }

    pub(super) fn overflow(&self) -> impl Iterator<Item = Announcement> {
        self.series.overflow()
    }

    pub fn count(&self, counter: Counter) {
        self.count_many(counter, 1);
    }

    pub fn count_many(&self, counter: Counter, count: u64) {
        if let Some(cell) = self.cells.counters.get(counter as usize) {
            cells::add(cell, count);
        }
    }

    pub fn raise(&self, gauge: Gauge) {
        add_at(&self.cells.gauges, gauge as usize);
    }

    pub fn lower(&self, gauge: Gauge) {
        if let Some(cell) = self.cells.gauges.get(gauge as usize) {
            cells::subtract(cell, 1);
        }
    }

    /// Notes a present amount as it is.
    pub fn set(&self, gauge: Gauge, value: u64) {
        if let Some(cell) = self.cells.gauges.get(gauge as usize) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Notes the generation of the snapshot that the worker has just taken up.
    pub fn set_generation(&self, generation: u64) {
        self.set(Gauge::Generation, generation);
    }

    /// A sign of life, and how late it comes: the time that a ready task waits for its turn.
    pub fn heartbeat(&self, now: Instant, late: Duration) {
        let age = now.saturating_duration_since(self.cells.began).as_millis();
        self.set(Gauge::Heartbeat, u64::try_from(age).unwrap_or(u64::MAX).max(1));
        add_at(
            &self.cells.delay_buckets,
            DELAY_BOUNDS_S.partition_point(|bound| *bound < late.as_secs_f64()),
        );
        cells::add(&self.cells.delay_sum_us, u64::try_from(late.as_micros()).unwrap_or(u64::MAX));
    }

    pub fn limit_hit(&self, limit: Limit) {
        add_at(&self.cells.limits, limit as usize);
    }

    /// Notes hits that were counted elsewhere.
    pub fn limit_hits(&self, limit: Limit, hits: u64) {
        if let Some(cell) = self.cells.limits.get(limit as usize) {
            cells::add(cell, hits);
        }
    }

    /// Counts why an accepted tunnel ended.
    pub fn tunnel_ended(&self, cause: tunnel::tls::CloseCause) {
        add_at(&self.cells.tunnel_causes, cause as usize);
    }

    /// Counts why a connection ended.
    pub fn ended(&self, cause: CloseCause) {
        add_at(&self.cells.causes, cause as usize);
    }

    /// The connection counters of these labels. Look it up once for a connection and keep it.
    pub fn tcp(&self, labels: &Labels) -> TcpSeries {
        let (series, own) = self.series.tcp(labels);
        self.note_series(own);
        series
    }

    /// Counts a request that is over. Costs neither an allocation nor a reference count where one like it was counted
    /// not long ago.
    pub fn request_ended(&self, key: &RequestKey<'_>, counts: &RequestCounts) {
        let own = self.series.count_request(key, counts);
        self.note_series(own);
    }

    /// The query counters of these labels.
    pub fn dns(&self, labels: &DnsLabels) -> DnsSeries {
        let (series, own) = self.series.dns(labels);
        self.note_series(own);
        series
    }

    /// Counts a connection whose next hop was resolved by name.
    pub fn on_demand_dns(&self, labels: &OnDemandLabels) {
        let own = self.series.count_on_demand(labels);
        self.note_series(own);
    }

    /// Counts what a policy says that decides nothing.
    pub fn policy_shadow(&self, policy: Option<Arc<str>>, verdict: ShadowVerdict) {
        let own = self.series.count_shadow(&ShadowLabels { policy, verdict: Some(verdict) });
        self.note_series(own);
    }

    fn note_series(&self, own: bool) {
        if !own {
            self.limit_hit(Limit::MetricSeries);
        }
    }

    /// Forgets the series of workloads that are not `known` any more: called when workloads have gone.
    pub fn sweep(&self, known: impl Fn(&Workload) -> bool) {
        self.series.sweep(&known);
    }

    /// The same for the series made since the last sweep: enough where none has gone since.
    pub fn sweep_new(&self, known: impl Fn(&Workload) -> bool) {
        self.series.sweep_new(&known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_the_cell_of_its_place() {
        assert!(Counter::ALL.iter().enumerate().all(|(place, it)| *it as usize == place));
        assert!(Gauge::ALL.iter().enumerate().all(|(place, it)| *it as usize == place));
        assert!(Limit::ALL.iter().enumerate().all(|(place, it)| *it as usize == place));
        assert!(CloseCause::ALL.iter().enumerate().all(|(place, it)| *it as usize == place));
    }

    #[test]
    fn silence_is_counted_from_the_last_sign_of_life() {
        let began = Instant::now();
        let cells = Arc::new(CachePadded::new(WorkerCells::new(began)));
        let metrics = WorkerMetrics::new(Arc::clone(&cells), crossbeam_channel::bounded(8).0);
        let second = Duration::from_secs(1);
        assert_eq!(cells.silence(began + second), None);
        metrics.heartbeat(began + second, Duration::from_millis(2));
        assert_eq!(cells.silence(began + 3 * second), Some(2 * second));
        assert_eq!(cells::read(&cells.delay_buckets[1]), 1);
    }
}
