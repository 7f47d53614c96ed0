//! The load generator: closed loop, or an open loop at a fixed rate whose latency counts from the scheduled time, so
//! that a stall is charged to every request it delays.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::wire::block;
use crate::work::client::{Caller, Shape, Target};
use crate::{Failure, machine};

/// Latencies beyond this are recorded as this.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A `perf backend`, or a proxy in front of one.
    #[arg(long, value_name = "IP:PORT")]
    target: SocketAddr,
    /// Keep-alive connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Requests a second over all connections; without it each connection sends as soon as it has its answer.
    #[arg(long)]
    rate: Option<u32>,
    /// Seconds.
    #[arg(long, default_value_t = 5)]
    duration: u64,
    /// Bytes of a request, at least 16.
    #[arg(long, default_value_t = 64)]
    request: usize,
    /// Bytes of a response, at least 4.
    #[arg(long, default_value_t = 1024)]
    response: usize,
    /// CPU to run on.
    #[arg(long)]
    core: Option<usize>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What a run saw; latencies in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Report {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    pub(crate) requests_per_second: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(core) = args.core {
        machine::pin(core)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shape = Shape { request: args.request, response: args.response };
    let duration = Duration::from_secs(args.duration);
    let target = Target { address: args.target, congestion: None };
    let work = generate(target, args.connections, args.rate, shape, duration);
    let report = tokio::task::LocalSet::new().block_on(&runtime, work)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!(
            "{} requests in {:.2} s, {:.0}/s",
            report.requests, report.seconds, report.requests_per_second
        );
        println!(
            "latency us: p50 {:.0}, p90 {:.0}, p99 {:.0}, p99.9 {:.0}, max {:.0}",
            report.p50, report.p90, report.p99, report.p999, report.max
        );
    }
    Ok(())
}

/// Runs the load on the current [`tokio::task::LocalSet`].
pub(crate) async fn generate(
    target: Target,
    connections: usize,
    rate: Option<u32>,
    shape: Shape,
    duration: Duration,
) -> Result<Report, Failure> {
    let block = Rc::new(block());
    let mut callers = Vec::with_capacity(connections);
    for _ in 0..connections {
        callers.push(Caller::connect(&target, block.clone()).await?);
    }
    let latencies = Rc::new(RefCell::new(Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_NS, 3)?));
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (index, caller) in callers.into_iter().enumerate() {
        // Each connection has its share of the rate, and an offset so that they do not fire together.
        let schedule = rate.map(|rate| {
            let interval = Duration::from_secs_f64(connections as f64 / f64::from(rate.max(1)));
            (start + interval.mul_f64(index as f64 / connections as f64), interval)
        });
        tasks.spawn_local(repeat(caller, shape, schedule, start + duration, latencies.clone()));
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    let seconds = start.elapsed().as_secs_f64();
    let latencies = latencies.borrow();
    let quantile = |q: f64| latencies.value_at_quantile(q) as f64 / 1000.0;
    Ok(Report {
        requests: latencies.len(),
        seconds,
        requests_per_second: latencies.len() as f64 / seconds,
        p50: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
        p999: quantile(0.999),
        max: latencies.max() as f64 / 1000.0,
    })
}

async fn repeat(
    mut caller: Caller,
    shape: Shape,
    schedule: Option<(Instant, Duration)>,
    end: Instant,
    latencies: Rc<RefCell<Histogram<u64>>>,
) -> Result<(), String> {
    let mut next = schedule.map(|(first, _)| first);
    loop {
        let due = next.unwrap_or_else(Instant::now);
        if due >= end {
            return Ok(());
        }
        if next.is_some() {
            wait_until(due).await;
        }
        caller.call(shape).await.map_err(|error| error.to_string())?;
        let elapsed = u64::try_from(due.elapsed().as_nanos()).unwrap_or(LATENCY_MAX_NS);
        latencies.borrow_mut().saturating_record(elapsed.min(LATENCY_MAX_NS));
        if let (Some(at), Some((_, interval))) = (next.as_mut(), schedule) {
            *at += interval;
        }
    }
}

/// The runtime's timers tick in milliseconds, which would be charged to the peer as latency: so the last stretch is
/// spun, on the generator's own CPU.
async fn wait_until(due: Instant) {
    const COARSE: Duration = Duration::from_millis(2);
    if let Some(early) = due.checked_sub(COARSE)
        && early > Instant::now()
    {
        tokio::time::sleep_until(early.into()).await;
    }
    while Instant::now() < due {
        tokio::task::yield_now().await;
    }
}
