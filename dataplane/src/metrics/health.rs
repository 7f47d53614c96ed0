//! How one worker is, for those who look at it.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::cells::read;
use super::process;
use super::worker::{Counter, Gauge, WorkerCells};

/// What a worker carries and how it does. All but the counts are as of its last sign of life.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerHealth {
    /// Generation of the snapshot that it decides from.
    pub generation: u64,
    /// Connections of pods that it carries.
    pub connections: u64,
    /// Open tunnel connections.
    pub tunnels: u64,
    pub tunnels_dialled: u64,
    pub tunnels_accepted: u64,
    pub streams_opened: u64,
    pub streams_accepted: u64,
    pub spare_buffer_bytes: u64,
    pub spare_pipes: u64,
    /// Ticks so far, and how late they came on average: how long a turn of its loop takes.
    pub ticks: u64,
    pub mean_turn_micros: u64,
    /// Time on a CPU; `None` where the kernel keeps no such books.
    pub cpu_millis: Option<u64>,
    /// Since the last sign of life; `None` before the first.
    pub silent_millis: Option<u64>,
}

impl WorkerHealth {
    pub(super) fn of(cells: &WorkerCells, now: Instant) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let ticks = cells.delay_buckets.iter().map(read).sum();
        Self {
            generation: cells.read_gauge(Gauge::Generation),
            connections: cells.read_gauge(Gauge::Connections),
            tunnels: cells.read_gauge(Gauge::Links),
            tunnels_dialled: cells.read_counter(Counter::LinksConnected),
            tunnels_accepted: cells.read_counter(Counter::LinksAccepted),
            streams_opened: cells.read_counter(Counter::StreamsOpened),
            streams_accepted: cells.read_counter(Counter::StreamsAccepted),
            spare_buffer_bytes: cells.read_gauge(Gauge::SpareBufferBytes),
            spare_pipes: cells.read_gauge(Gauge::SparePipes),
            ticks,
            mean_turn_micros: read(&cells.delay_sum_us).checked_div(ticks).unwrap_or(0),
            cpu_millis: process::thread_time(cells.read_gauge(Gauge::ThreadId)).map(millis),
            silent_millis: cells.silence(now).map(millis),
        }
    }
}
