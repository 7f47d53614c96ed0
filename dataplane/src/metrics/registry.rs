//! The control thread's end: knows all cells, sums them, forgets what no worker holds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use crossbeam_utils::CachePadded;
use l7::telemetry::Side;
use prometheus_client::registry::Registry;
use xds::snapshot::TelemetryTable;

use super::WorkerMetrics;
use super::cells::{
    DNS_BUCKETS, DnsCells, HistogramCells, OnDemandCells, REQUEST_BUCKETS, RequestCells, TcpCells, read,
};
use super::expose::Exposition;
use super::health::WorkerHealth;
use super::labels::LabelValues;
use super::labels::Labels;
use super::request::RequestLabels;
use super::series::{ANNOUNCEMENTS_MAX, Announcement};
use super::shadow::ShadowCells;
use super::told::{Sum, Total, side_of};
use super::worker::{Limit, WorkerCells};
use crate::trace::SpanCounts;

/// Sums of the connection counters of one label set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TcpTotals {
    pub(super) opened: u64,
    pub(super) closed: u64,
    pub(super) failed: u64,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
}

/// Sums of the request counters of one label set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RequestTotals {
    pub(super) duration_us: HistogramTotals,
    pub(super) request_bytes: HistogramTotals,
    pub(super) response_bytes: HistogramTotals,
    pub(super) request_messages: u64,
    pub(super) response_messages: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct HistogramTotals {
    pub(super) sum: u64,
    pub(super) buckets: [u64; REQUEST_BUCKETS],
}

/// Sums of the query counters of one label set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DnsTotals {
    pub(super) requests: u64,
    pub(super) upstream_requests: u64,
    pub(super) upstream_failures: u64,
    pub(super) duration_sum_us: u64,
    pub(super) buckets: [u64; DNS_BUCKETS],
}

/// The cells of one label set, and the last values of those that are gone: as long as one worker holds the series,
/// its sum must not fall.
#[derive(Debug)]
struct Group<C, T> {
    cells: Vec<Arc<C>>,
    retired: T,
}

/// Why an xDS stream ended, in ztunnel's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TerminationReason {
    ConnectionError,
    Error,
    Reconnect,
    Complete,
}

/// What the control thread itself counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlCounter {
    /// An xDS response of this type and size.
    XdsMessage {
        type_url: String,
        bytes: u64,
    },
    XdsTermination(TerminationReason),
    /// Whether the state is the last one from disk, and the control plane has not answered yet.
    StateStale(bool),
    /// How much of what a waypoint is told is not understood, and so refused or left out.
    WaypointProblems(usize),
    /// The listeners of a pod were opened.
    PodStarted,
    /// The listeners of a pod were closed.
    PodStopped,
    /// Pods that are served now, and pods that cannot be for the time being.
    Pods {
        active: usize,
        pending: usize,
    },
}

/// Pods by the node agent's word.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PodTotals {
    pub(super) active: usize,
    pub(super) pending: usize,
    pub(super) started: u64,
    pub(super) stopped: u64,
}

#[derive(Debug, Default)]
pub(super) struct ControlTotals {
    /// Messages and bytes by type URL.
    pub(super) xds_messages: BTreeMap<String, (u64, u64)>,
    pub(super) xds_terminations: BTreeMap<TerminationReason, u64>,
    pub(super) state_stale: bool,
    pub(super) waypoint_problems: usize,
    pub(super) pods: PodTotals,
}

#[derive(Debug)]
pub(super) struct State {
    announcements: Receiver<Announcement>,
    tcp: BTreeMap<LabelValues, Group<TcpCells, TcpTotals>>,
    requests: BTreeMap<LabelValues, Group<RequestCells, RequestTotals>>,
    dns: BTreeMap<LabelValues, Group<DnsCells, DnsTotals>>,
    on_demand: BTreeMap<LabelValues, Group<OnDemandCells, u64>>,
    shadow: BTreeMap<LabelValues, Group<ShadowCells, u64>>,
    /// Only where it has anything to say of metrics.
    telemetry: Option<Arc<TelemetryTable>>,
    pub(super) workers: Vec<Arc<CachePadded<WorkerCells>>>,
    pub(super) control: ControlTotals,
}

/// All metrics of a node proxy.
#[derive(Debug)]
pub struct Metrics {
    state: Arc<Mutex<State>>,
    log_dropped: Arc<AtomicU64>,
    spans: Arc<SpanCounts>,
    registry: Registry,
}

pub(super) fn build(workers: usize) -> (Vec<WorkerMetrics>, Metrics) {
    let (announce, announcements) = bounded(ANNOUNCEMENTS_MAX);
    let began = Instant::now();
    let cells: Vec<_> = (0..workers).map(|_| Arc::new(CachePadded::new(WorkerCells::new(began)))).collect();
    let worker_metrics: Vec<_> =
        cells.iter().map(|c| WorkerMetrics::new(Arc::clone(c), announce.clone())).collect();
    let mut state = State {
        announcements,
        tcp: BTreeMap::new(),
        requests: BTreeMap::new(),
        dns: BTreeMap::new(),
        on_demand: BTreeMap::new(),
        shadow: BTreeMap::new(),
        telemetry: None,
        workers: cells,
        control: ControlTotals::default(),
    };
    for announcement in worker_metrics.iter().flat_map(WorkerMetrics::overflow) {
        state.learn(announcement);
    }
    (worker_metrics, Metrics::new(state))
}

// === impl TcpTotals ===

impl TcpTotals {
    fn add(&mut self, cells: &TcpCells) {
        self.opened += read(&cells.opened);
        self.closed += read(&cells.closed);
        self.failed += read(&cells.failed);
        self.received_bytes += read(&cells.received_bytes);
        self.sent_bytes += read(&cells.sent_bytes);
    }
}

// === impl RequestTotals, HistogramTotals ===

impl RequestTotals {
    fn add(&mut self, cells: &RequestCells) {
        self.duration_us.add(&cells.duration_us);
        self.request_bytes.add(&cells.request_bytes);
        self.response_bytes.add(&cells.response_bytes);
        self.request_messages += read(&cells.request_messages);
        self.response_messages += read(&cells.response_messages);
    }

    pub(super) fn count(&self) -> u64 {
        self.duration_us.count()
    }
}

impl HistogramTotals {
    fn add(&mut self, cells: &HistogramCells) {
        self.sum += read(&cells.sum);
        for (total, cell) in self.buckets.iter_mut().zip(&cells.buckets) {
            *total += read(cell);
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

// === impl DnsTotals ===

impl DnsTotals {
    fn add(&mut self, cells: &DnsCells) {
        self.requests += read(&cells.requests);
        self.upstream_requests += read(&cells.upstream_requests);
        self.upstream_failures += read(&cells.upstream_failures);
        self.duration_sum_us += read(&cells.duration_sum_us);
        for (total, cell) in self.buckets.iter_mut().zip(&cells.duration_buckets) {
            *total += read(cell);
        }
    }

    pub(super) fn answered(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Sum for TcpTotals {
    fn add_sum(&mut self, other: &Self) {
        self.opened += other.opened;
        self.closed += other.closed;
        self.failed += other.failed;
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
    }
}

impl Sum for RequestTotals {
    fn add_sum(&mut self, other: &Self) {
        self.duration_us.add_sum(&other.duration_us);
        self.request_bytes.add_sum(&other.request_bytes);
        self.response_bytes.add_sum(&other.response_bytes);
        self.request_messages += other.request_messages;
        self.response_messages += other.response_messages;
    }
}

impl Sum for HistogramTotals {
    fn add_sum(&mut self, other: &Self) {
        self.sum += other.sum;
        for (own, other) in self.buckets.iter_mut().zip(other.buckets) {
            *own += other;
        }
    }
}

fn add_shadow(total: &mut u64, cells: &ShadowCells) {
    *total += read(&cells.count);
}

fn add_on_demand(total: &mut u64, cells: &OnDemandCells) {
    *total += read(&cells.count);
}

// === impl Group ===

impl<C, T: Copy + Default> Group<C, T> {
    /// Folds cells that only this side still holds into `retired`; whether any worker holds the series still.
    fn retire(&mut self, mut add: impl FnMut(&mut T, &C)) -> bool {
        let retired = &mut self.retired;
        self.cells.retain_mut(|cells| match Arc::get_mut(cells) {
            // `get_mut` synchronises with the worker's drop of its last handle, so these are the final values.
            Some(last) => {
                add(retired, last);
                false
            }
            None => true,
        });
        !self.cells.is_empty()
    }

    fn total(&self, mut add: impl FnMut(&mut T, &C)) -> T {
        let mut total = self.retired;
        for cells in &self.cells {
            add(&mut total, cells);
        }
        total
    }

    /// The sums apart by what is told of the traffic. What is retired goes with the first: of whom it was is not known.
    fn totals_by_side<'a>(
        &'a self,
        side_of: impl Fn(&C) -> Option<&'a Side>,
        mut add: impl FnMut(&mut T, &C),
    ) -> Vec<(Option<&'a Side>, T)> {
        let mut parts: Vec<(Option<&'a Side>, T)> = Vec::with_capacity(1);
        for cells in &self.cells {
            let side = side_of(cells);
            let is_same = |part: &&mut (Option<&Side>, T)| {
                part.0.map(std::ptr::from_ref) == side.map(std::ptr::from_ref)
            };
            if let Some((_, sum)) = parts.iter_mut().find(is_same) {
                add(sum, cells);
            } else {
                let mut sum = if parts.is_empty() { self.retired } else { T::default() };
                add(&mut sum, cells);
                parts.push((side, sum));
            }
        }
        parts
    }
}

impl<C, T: Default> Default for Group<C, T> {
    fn default() -> Self {
        Self { cells: Vec::new(), retired: T::default() }
    }
}

// === impl State ===

impl State {
    fn learn(&mut self, announcement: Announcement) {
        match announcement {
            Announcement::Tcp(cells) => {
                self.tcp.entry(cells.labels.values(None)).or_default().cells.push(cells);
            }
            Announcement::Request(cells) => {
                let RequestLabels { ends, outcome } = &cells.labels;
                self.requests.entry(ends.values(Some(outcome))).or_default().cells.push(cells);
            }
            Announcement::Dns(cells) => {
                self.dns.entry(cells.labels.values()).or_default().cells.push(cells);
            }
            Announcement::OnDemand(cells) => {
                self.on_demand.entry(cells.labels.values()).or_default().cells.push(cells);
            }
            Announcement::Shadow(cells) => {
                self.shadow.entry(cells.labels.values()).or_default().cells.push(cells);
            }
        }
    }

    /// Takes in new series and drops those that have ended. Bounded by what the queue holds.
    fn update(&mut self) {
        let new: Vec<_> = self.announcements.try_iter().take(ANNOUNCEMENTS_MAX).collect();
        for announcement in new {
            self.learn(announcement);
        }
        self.tcp.retain(|_, group| group.retire(TcpTotals::add));
        self.requests.retain(|_, group| group.retire(RequestTotals::add));
        self.dns.retain(|_, group| group.retire(DnsTotals::add));
        self.on_demand.retain(|_, group| group.retire(add_on_demand));
        self.shadow.retain(|_, group| group.retire(add_shadow));
    }

    /// Series in use with their sums. A series that never counted anything (a spare one) is left out.
    pub(super) fn tcp_totals(&self) -> Vec<Total<'_, TcpTotals>> {
        let all = self.tcp.iter().flat_map(|(labels, group)| {
            let parts = group.totals_by_side(|cells| self.side_of(&cells.labels), TcpTotals::add);
            parts.into_iter().map(move |(side, sum)| Total { labels, side, sum })
        });
        all.filter(|total| total.sum != TcpTotals::default()).collect()
    }

    pub(super) fn request_totals(&self) -> Vec<Total<'_, RequestTotals>> {
        let all = self.requests.iter().flat_map(|(labels, group)| {
            let parts = group.totals_by_side(|cells| self.side_of(&cells.labels.ends), RequestTotals::add);
            parts.into_iter().map(move |(side, sum)| Total { labels, side, sum })
        });
        all.filter(|total| total.sum.count() != 0).collect()
    }

    fn side_of(&self, labels: &Labels) -> Option<&Side> {
        side_of(self.telemetry.as_deref()?, labels)
    }
}

impl State {
    pub(super) fn dns_totals(&self) -> Vec<(&LabelValues, DnsTotals)> {
        let all = self.dns.iter().map(|(labels, group)| (labels, group.total(DnsTotals::add)));
        all.filter(|(_, total)| *total != DnsTotals::default()).collect()
    }

    pub(super) fn shadow_totals(&self) -> impl Iterator<Item = (&LabelValues, u64)> {
        let all = self.shadow.iter().map(|(labels, group)| (labels, group.total(add_shadow)));
        all.filter(|(_, total)| *total != 0)
    }

    pub(super) fn on_demand_totals(&self) -> impl Iterator<Item = (&LabelValues, u64)> {
        let all = self.on_demand.iter().map(|(labels, group)| (labels, group.total(add_on_demand)));
        all.filter(|(_, total)| *total != 0)
    }
}

// === impl Metrics ===

impl Metrics {
    fn new(state: State) -> Self {
        let state = Arc::new(Mutex::new(state));
        let log_dropped = Arc::new(AtomicU64::new(0));
        let mut registry = Registry::default();
        let spans = Arc::<SpanCounts>::default();
        let (of_log, of_spans) = (Arc::clone(&log_dropped), Arc::clone(&spans));
        let exposition = Exposition { state: Arc::clone(&state), log_dropped: of_log, spans: of_spans };
        registry.register_collector(Box::new(exposition));
        Self { state, log_dropped, spans, registry }
    }

    /// Counts something on the control side.
    pub fn count(&self, counter: ControlCounter) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match counter {
            ControlCounter::XdsMessage { type_url, bytes } => {
                let (messages, total) = state.control.xds_messages.entry(type_url).or_default();
                *messages += 1;
                *total += bytes;
            }
            ControlCounter::XdsTermination(reason) => {
                *state.control.xds_terminations.entry(reason).or_default() += 1;
            }
            ControlCounter::StateStale(stale) => state.control.state_stale = stale,
            ControlCounter::WaypointProblems(count) => state.control.waypoint_problems = count,
            ControlCounter::PodStarted => state.control.pods.started += 1,
            ControlCounter::PodStopped => state.control.pods.stopped += 1,
            ControlCounter::Pods { active, pending } => {
                (state.control.pods.active, state.control.pods.pending) = (active, pending);
            }
        }
    }

    /// Notes what is told of whose traffic. It is asked at the next scrape, of everything that has been counted so far.
    pub fn follow(&self, telemetry: &Arc<TelemetryTable>) {
        let telemetry = telemetry.is_about_metrics().then(|| Arc::clone(telemetry));
        self.state.lock().unwrap_or_else(PoisonError::into_inner).telemetry = telemetry;
    }

    /// How long each worker has given no sign of life; `None` for one that has not served yet. A worker that serves
    /// gives one every [`crate::worker::TICK`].
    pub fn silences(&self, now: Instant) -> Vec<Option<Duration>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.workers.iter().map(|cells| cells.silence(now)).collect()
    }

    /// How each worker is.
    pub fn workers(&self, now: Instant) -> Vec<WorkerHealth> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.workers.iter().map(|cells| WorkerHealth::of(cells, now)).collect()
    }

    /// Access-log records that were lost so far.
    pub fn log_dropped(&self) -> u64 {
        self.log_dropped.load(Ordering::Relaxed)
    }

    /// How often each bound was reached, over all workers.
    pub fn limit_hits(&self) -> Vec<(Limit, u64)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Limit::ALL
            .map(|limit| (limit, state.workers.iter().map(|cells| cells.read_limit(limit)).sum()))
            .to_vec()
    }

    /// Notes how many access-log records were lost so far.
    pub fn set_log_dropped(&self, records: u64) {
        self.log_dropped.store(records, Ordering::Relaxed);
    }

    /// Notes how many spans were sent and lost so far.
    pub fn set_spans(&self, counts: &SpanCounts) {
        for (own, new) in [(&self.spans.exported, &counts.exported), (&self.spans.dropped, &counts.dropped)] {
            own.store(new.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Learns of new series and forgets ended ones; called at each turn of the control thread, so that the bounded
    /// queue of new series stays short between scrapes.
    pub fn update(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).update();
    }

    /// The text in OpenMetrics; [`super::plain::plain_text`] makes Prometheus' older form of it.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).update();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
