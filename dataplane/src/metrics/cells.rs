//! The cells of one series on one worker, and the handles that write them.
//!
//! Invariant: a cell has one writer, the worker whose table made the series; the handles are not `Send`. So an
//! addition is a relaxed load and a relaxed store, which no other thread can come between.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::labels::{DnsLabels, Labels, OnDemandLabels};
use super::request::{RequestCounts, RequestLabels};

/// Upper bounds of the histograms of requests, in milliseconds and in bytes: Envoy's, which are the same for both and
/// which Istio leaves as they are. The last bucket has none.
pub(super) const REQUEST_BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

pub(super) const REQUEST_BUCKETS: usize = REQUEST_BOUNDS.len() + 1;

/// Upper bounds of the histogram of upstream DNS queries in seconds, ztunnel's in order; the last bucket has none.
pub(super) const DNS_BOUNDS_S: [f64; 6] = [0.001, 0.005, 0.01, 0.1, 1.0, 5.0];

pub(super) const DNS_BUCKETS: usize = DNS_BOUNDS_S.len() + 1;

/// Adds without a locked instruction. Only the cell's one writer may call it.
pub(super) fn add(cell: &AtomicU64, count: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

/// Takes away, likewise.
pub(super) fn subtract(cell: &AtomicU64, count: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_sub(count), Ordering::Relaxed);
}

pub(super) fn read(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

/// Counters of connections. Aligned so that no two workers write to one cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct TcpCells {
    pub(super) labels: Labels,
    pub(super) opened: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
}

/// Counters of requests that ended in one way.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct RequestCells {
    pub(super) labels: RequestLabels,
    pub(super) duration_us: HistogramCells,
    pub(super) request_bytes: HistogramCells,
    pub(super) response_bytes: HistogramCells,
    pub(super) request_messages: AtomicU64,
    pub(super) response_messages: AtomicU64,
}

/// A histogram within [`REQUEST_BOUNDS`]. Its count is the sum of its buckets.
#[derive(Debug)]
pub(super) struct HistogramCells {
    pub(super) sum: AtomicU64,
    pub(super) buckets: [AtomicU64; REQUEST_BUCKETS],
}

/// Counters of DNS queries.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct DnsCells {
    pub(super) labels: DnsLabels,
    pub(super) requests: AtomicU64,
    pub(super) upstream_requests: AtomicU64,
    pub(super) upstream_failures: AtomicU64,
    pub(super) duration_sum_us: AtomicU64,
    pub(super) duration_buckets: [AtomicU64; DNS_BUCKETS],
}

/// Counter of connections whose next hop was resolved by name.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct OnDemandCells {
    pub(super) labels: OnDemandLabels,
    pub(super) count: AtomicU64,
}

/// Writes the connection counters of one series. Kept by a connection for its life.
#[derive(Debug, Clone)]
pub struct TcpSeries {
    cells: Arc<TcpCells>,
    not_send: PhantomData<*const ()>,
}

/// Writes the query counters of one series.
#[derive(Debug, Clone)]
pub struct DnsSeries {
    cells: Arc<DnsCells>,
    not_send: PhantomData<*const ()>,
}

// === impl TcpCells ===

impl TcpCells {
    pub(super) fn new(labels: Labels) -> Self {
        Self {
            labels,
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }
}

// === impl RequestCells, HistogramCells ===

impl RequestCells {
    pub(super) fn new(labels: RequestLabels) -> Self {
        Self {
            labels,
            duration_us: HistogramCells::new(),
            request_bytes: HistogramCells::new(),
            response_bytes: HistogramCells::new(),
            request_messages: AtomicU64::new(0),
            response_messages: AtomicU64::new(0),
        }
    }

    /// Counts one request that is over.
    pub(super) fn count(&self, counts: &RequestCounts) {
        let us = u64::try_from(counts.duration.as_micros()).unwrap_or(u64::MAX);
        self.duration_us.note(counts.duration.as_secs_f64() * 1_000.0, us);
        self.request_bytes.note_bytes(counts.request_bytes);
        self.response_bytes.note_bytes(counts.response_bytes);
        add(&self.request_messages, counts.request_messages);
        add(&self.response_messages, counts.response_messages);
    }
}

impl HistogramCells {
    fn new() -> Self {
        Self { sum: AtomicU64::new(0), buckets: [const { AtomicU64::new(0) }; REQUEST_BUCKETS] }
    }

    /// Notes one value, in the bounds' unit for the bucket and in the sum's own.
    fn note(&self, value: f64, for_sum: u64) {
        let bucket = REQUEST_BOUNDS.partition_point(|bound| *bound < value);
        if let Some(cell) = self.buckets.get(bucket) {
            add(cell, 1);
        }
        add(&self.sum, for_sum);
    }

    #[allow(clippy::cast_precision_loss)] // The bounds are far below 2^53.
    fn note_bytes(&self, bytes: u64) {
        self.note(bytes as f64, bytes);
    }
}

// === impl DnsCells ===

impl DnsCells {
    pub(super) fn new(labels: DnsLabels) -> Self {
        Self {
            labels,
            requests: AtomicU64::new(0),
            upstream_requests: AtomicU64::new(0),
            upstream_failures: AtomicU64::new(0),
            duration_sum_us: AtomicU64::new(0),
            duration_buckets: [const { AtomicU64::new(0) }; DNS_BUCKETS],
        }
    }
}

// === impl OnDemandCells ===

impl OnDemandCells {
    pub(super) fn new(labels: OnDemandLabels) -> Self {
        Self { labels, count: AtomicU64::new(0) }
    }
}

// === impl TcpSeries ===

impl TcpSeries {
    pub(super) fn new(cells: Arc<TcpCells>) -> Self {
        Self { cells, not_send: PhantomData }
    }

    pub fn opened(&self) {
        add(&self.cells.opened, 1);
    }

    pub fn closed(&self) {
        add(&self.cells.closed, 1);
    }

    pub fn failed(&self) {
        add(&self.cells.failed, 1);
    }

    /// Bytes that went from the client to the server, whichever side reports.
    pub fn client_to_server(&self, bytes: u64) {
        add(&self.cells.received_bytes, bytes);
    }

    /// Bytes that went from the server to the client, whichever side reports.
    pub fn server_to_client(&self, bytes: u64) {
        add(&self.cells.sent_bytes, bytes);
    }
}

// === impl DnsSeries ===

impl DnsSeries {
    pub(super) fn new(cells: Arc<DnsCells>) -> Self {
        Self { cells, not_send: PhantomData }
    }

    /// Counts a query of a pod.
    pub fn request(&self) {
        add(&self.cells.requests, 1);
    }

    /// Counts a query that was passed on to an upstream server.
    pub fn upstream_request(&self) {
        add(&self.cells.upstream_requests, 1);
    }

    /// Counts a query that no upstream server answered.
    pub fn upstream_failure(&self) {
        add(&self.cells.upstream_failures, 1);
    }

    /// Notes how long the upstream server took to answer.
    pub fn upstream_duration(&self, duration: Duration) {
        let bucket = DNS_BOUNDS_S.partition_point(|bound| *bound < duration.as_secs_f64());
        if let Some(cell) = self.cells.duration_buckets.get(bucket) {
            add(cell, 1);
        }
        add(&self.cells.duration_sum_us, u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }
}
