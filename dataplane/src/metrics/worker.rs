//! What one worker counts: its series, and counters of its own.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crossbeam_channel::Sender;
use crossbeam_utils::CachePadded;
use model::Workload;

use super::cells::{self, HttpSeries, TcpSeries};
use super::labels::{Labels, Reporter};
use super::series::{Announcement, SeriesTable};

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
}

/// Present amounts of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gauge {
    /// Open sockets of captured connections to other workloads.
    SocketsSource,
    /// Open sockets of connections from other workloads.
    SocketsDestination,
    Links,
    Streams,
    /// Generation of the snapshot that the worker acts upon.
    Generation,
}

/// The bounds of the data path. Each is one value of `corelane_limit_hits_total{limit=}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Connections,
    StreamsPerLink,
    HeaderBytes,
    BufferBytes,
    Handshakes,
    MetricSeries,
}

const COUNTERS: usize = 4;
const GAUGES: usize = 5;
const LIMITS: usize = 6;

const _: () =
    assert!(Counter::ALL.len() == COUNTERS && Gauge::ALL.len() == GAUGES && Limit::ALL.len() == LIMITS);

/// The cells of a worker's own counts.
#[derive(Debug, Default)]
pub(super) struct WorkerCells {
    counters: [AtomicU64; COUNTERS],
    gauges: [AtomicU64; GAUGES],
    limits: [AtomicU64; LIMITS],
}

/// The worker's end. Moves to its thread once and stays there (it is not `Sync`).
#[derive(Debug)]
pub struct WorkerMetrics {
    cells: Arc<CachePadded<WorkerCells>>,
    series: SeriesTable,
}

// === impl Counter, Gauge, Limit ===

impl Counter {
    pub(super) const ALL: [Self; 4] =
        [Self::LinksConnected, Self::LinksAccepted, Self::StreamsOpened, Self::StreamsAccepted];
}

impl Gauge {
    pub(super) const ALL: [Self; 5] =
        [Self::SocketsSource, Self::SocketsDestination, Self::Links, Self::Streams, Self::Generation];

    /// The gauge of open sockets that `reporter` counts.
    pub const fn sockets(reporter: Reporter) -> Self {
        match reporter {
            Reporter::Source => Self::SocketsSource,
            Reporter::Destination => Self::SocketsDestination,
        }
    }
}

impl Limit {
    pub(super) const ALL: [Self; 6] = [
        Self::Connections,
        Self::StreamsPerLink,
        Self::HeaderBytes,
        Self::BufferBytes,
        Self::Handshakes,
        Self::MetricSeries,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::StreamsPerLink => "streams_per_link",
            Self::HeaderBytes => "header_bytes",
            Self::BufferBytes => "buffer_bytes",
            Self::Handshakes => "handshakes",
            Self::MetricSeries => "metric_series",
        }
    }
}

// === impl WorkerCells ===

impl WorkerCells {
    fn counter(&self, counter: Counter) -> &AtomicU64 {
        let [connected, accepted, opened, streams_accepted] = &self.counters;
        match counter {
            Counter::LinksConnected => connected,
            Counter::LinksAccepted => accepted,
            Counter::StreamsOpened => opened,
            Counter::StreamsAccepted => streams_accepted,
        }
    }

    fn gauge(&self, gauge: Gauge) -> &AtomicU64 {
        let [sockets_source, sockets_destination, links, streams, generation] = &self.gauges;
        match gauge {
            Gauge::SocketsSource => sockets_source,
            Gauge::SocketsDestination => sockets_destination,
            Gauge::Links => links,
            Gauge::Streams => streams,
            Gauge::Generation => generation,
        }
    }

    fn limit(&self, limit: Limit) -> &AtomicU64 {
        let [connections, streams, header, buffer, handshakes, series] = &self.limits;
        match limit {
            Limit::Connections => connections,
            Limit::StreamsPerLink => streams,
            Limit::HeaderBytes => header,
            Limit::BufferBytes => buffer,
            Limit::Handshakes => handshakes,
            Limit::MetricSeries => series,
        }
    }

    pub(super) fn read_counter(&self, counter: Counter) -> u64 {
        cells::read(self.counter(counter))
    }

    pub(super) fn read_gauge(&self, gauge: Gauge) -> u64 {
        cells::read(self.gauge(gauge))
    }

    pub(super) fn read_limit(&self, limit: Limit) -> u64 {
        cells::read(self.limit(limit))
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
        cells::add(self.cells.counter(counter), 1);
    }

    pub fn raise(&self, gauge: Gauge) {
        cells::add(self.cells.gauge(gauge), 1);
    }

    pub fn lower(&self, gauge: Gauge) {
        cells::subtract(self.cells.gauge(gauge), 1);
    }

    /// Notes the generation of the snapshot that the worker has just taken up.
    pub fn set_generation(&self, generation: u64) {
        self.cells.gauge(Gauge::Generation).store(generation, std::sync::atomic::Ordering::Relaxed);
    }

    pub fn limit_hit(&self, limit: Limit) {
        cells::add(self.cells.limit(limit), 1);
    }

    /// The connection counters of these labels. Look it up once for a connection and keep it.
    pub fn tcp(&self, labels: &Labels) -> TcpSeries {
        let (series, own) = self.series.tcp(labels);
        if !own {
            self.limit_hit(Limit::MetricSeries);
        }
        series
    }

    /// The request counters of these labels and this response status.
    pub fn http(&self, labels: &Labels, status: u16) -> HttpSeries {
        let (series, own) = self.series.http(labels, status);
        if !own {
            self.limit_hit(Limit::MetricSeries);
        }
        series
    }

    /// Forgets the series of workloads that are not `known` any more: called when a new snapshot is taken up.
    pub fn sweep(&self, known: impl Fn(&Workload) -> bool) {
        self.series.sweep(&known);
    }
}
