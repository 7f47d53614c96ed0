//! Metrics: cells written by one worker each, read and summed by the control thread.
//!
//! A worker owns its [`WorkerMetrics`]: it finds the series of a connection there once and then adds to plain cells
//! with relaxed stores (no locked instruction: every cell has one writer). The control thread owns the [`Metrics`],
//! which learns of new series through a bounded queue, sums the workers' cells of equal labels at each scrape and
//! forgets a series when no worker holds it any more.

mod cells;
mod expose;
mod expose_requests;
mod health;
pub mod labels;
pub mod plain;
mod process;
mod registry;
pub mod request;
mod series;
mod shadow;
mod told;
mod worker;

pub use cells::{DnsSeries, TcpSeries};
pub use health::WorkerHealth;
pub use labels::{ConnectionSecurity, DnsLabels, DnsProtocol, Labels, OnDemandLabels, Reporter, Subject};
pub use registry::{ControlCounter, Metrics, TerminationReason};
pub use request::{
    GrpcStatus, RequestCounts, RequestKey, RequestLabels, RequestOutcome, RequestProtocol, SubjectRef,
};
pub use series::SERIES_MAX;
pub use shadow::{ShadowLabels, ShadowVerdict};
pub use worker::{Counter, Gauge, Limit, WorkerMetrics};

/// The metrics of one node proxy with `workers` workers.
pub fn metrics(workers: usize) -> (Vec<WorkerMetrics>, Metrics) {
    registry::build(workers)
}

#[cfg(test)]
mod request_tests;
#[cfg(test)]
mod tests;
