//! What is done with each topology, and what is read off while it is done.

mod kind;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::grpc;
use super::grpc::client::Calls;
use super::handshake;
use super::hardship;
use super::http::Load;
use super::http::client::{Client, Outcome};
use super::overload;
use super::peers::Running;
use super::result::{Better, Form, names};
use super::site::Site;
use super::slow;
use super::syscalls;
use crate::Failure;
use crate::machine::thread_cpu_time;
use crate::process::Process;

pub(super) use kind::{ALL, Kind, instances};

const CONNECTIONS: usize = 64;
pub(super) const NEW_CONNECTION_LOOPS: usize = 16;
pub(super) const RATE: u32 = 2000;
const KEEP_ALIVE_16: usize = 16;
pub(super) const REPLY_BYTES: u64 = 1024;
pub(super) const SMALL: Load = Load::Down(REPLY_BYTES);

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    pub(super) form: Form,
    /// Of each measurement of requests.
    pub(super) duration: Duration,
    /// Of each bulk measurement, over all streams.
    pub(super) bulk_bytes: u64,
    pub(super) idle: usize,
}

impl Scale {
    pub(super) fn of(form: Form) -> Self {
        match form {
            Form::Short => {
                Self { form, duration: Duration::from_millis(300), bulk_bytes: 64 << 20, idle: 200 }
            }
            Form::Full => {
                Self { form, duration: Duration::from_millis(1200), bulk_bytes: 1 << 30, idle: 10_000 }
            }
        }
    }
}

/// Figures of one measurement, by name; of all together and of each process.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    pub(super) figures: BTreeMap<&'static str, f64>,
    pub(super) processes: Vec<BTreeMap<&'static str, f64>>,
}

impl Kind {
    /// Does it once, and notes how much memory the processes had at most.
    pub(super) fn measure(self, site: &Site, running: &Running, scale: &Scale) -> Result<Sample, Failure> {
        let mut sample = self.sample(site, running, scale)?;
        sample.processes.resize(running.processes.len(), BTreeMap::new());
        for (process, figures) in running.processes.iter().zip(&mut sample.processes) {
            let peak = figures.entry(names::RESIDENT_PEAK).or_insert(0.0);
            *peak = peak.max(process.peak_bytes() as f64);
        }
        Ok(sample)
    }

    fn sample(self, site: &Site, running: &Running, scale: &Scale) -> Result<Sample, Failure> {
        match self {
            Self::Idle => return idle(site, running, scale),
            Self::Churn => return hardship::churn(site, running, scale),
            Self::Flood => return hardship::flood(site, running, scale),
            Self::Slow => return slow::slow(site, running, scale),
            Self::Overload => return overload::overload(site, running, scale),
            _ => {}
        }
        let mut meter = None;
        let outcome =
            site.client.within(|| self.drive(running, scale, || meter = Some(Meter::start(running))))??;
        let meter = meter.ok_or("a measurement ended before it began")?;
        let mut sample = meter.finish(&outcome, self);
        if let Some(tunnel) = running.tunnel.as_ref().filter(|_| self == Self::Handshakes) {
            let bound = handshake::bound(tunnel)?;
            let own = sample.figures.get(names::CPU_PER_REQUEST).copied().unwrap_or(0.0);
            sample.figures.insert(names::HANDSHAKE_BOUND, bound);
            sample.figures.insert(names::HANDSHAKE_OVER_BOUND, own / bound);
        }
        if matches!(self, Self::Requests)
            && let Some(count) = system_calls(site, running, scale)?
        {
            sample.figures.insert(names::SYSTEM_CALLS_PER_REQUEST, count);
        }
        Ok(sample)
    }

    fn drive(self, running: &Running, scale: &Scale, begin: impl FnOnce()) -> Result<Outcome, Failure> {
        let target = &running.target;
        let duration = scale.duration;
        let calls = match self {
            Self::GrpcUnary => Some(Calls::Unary),
            Self::GrpcStreams => Some(Calls::Streams),
            _ => None,
        };
        if let Some(calls) = calls {
            return grpc::client::load(target, calls, REPLY_BYTES, duration, begin);
        }
        if self == Self::Handshakes {
            let tunnel = running.tunnel.as_ref().ok_or("no tunnels are taken here")?;
            return handshake::load(tunnel, duration, begin);
        }
        let client = Client::new(target)?;
        match self {
            Self::Requests | Self::RequestsManyRules => {
                client.closed_loop(CONNECTIONS, SMALL, duration, begin)
            }
            Self::Requests16 => client.closed_loop(KEEP_ALIVE_16, SMALL, duration, begin),
            Self::Rate => client.open_loop(CONNECTIONS, SMALL, RATE, duration, begin),
            Self::Connections => client.new_connections(NEW_CONNECTION_LOOPS, SMALL, duration, begin),
            Self::Bulk { streams, up } => {
                let each = scale.bulk_bytes / streams;
                let load = if up { Load::Up(each) } else { Load::Down(each) };
                client.bulk(usize::try_from(streams)?, load, begin)
            }
            _ => client.closed_loop(1, SMALL, duration, begin),
        }
    }
}

/// System calls of the proxies per request, in a piece of its own: counting costs what it counts.
fn system_calls(site: &Site, running: &Running, scale: &Scale) -> Result<Option<f64>, Failure> {
    let ids: Vec<u32> = running.processes.iter().map(Process::id).collect();
    let duration = Duration::from_millis(300).min(scale.duration);
    site.client.within(|| {
        let mut counter = None;
        let begin = || counter = syscalls::Counter::start(&ids, duration);
        let outcome = Client::new(&running.target)?.closed_loop(CONNECTIONS, SMALL, duration, begin)?;
        let rate = outcome.requests.max(1) as f64 / outcome.elapsed.as_secs_f64();
        Ok(counter.and_then(syscalls::Counter::finish).map(|calls| calls / rate))
    })?
}

/// Memory of fresh processes, and what many idle connections add to it.
fn idle(site: &Site, running: &Running, scale: &Scale) -> Result<Sample, Failure> {
    let memory = |of: fn(&Process) -> u64| running.processes.iter().map(of).collect::<Vec<_>>();
    let (resident_ready, private_ready) = (memory(Process::resident_bytes), memory(Process::private_bytes));
    // The first connection makes tunnels and buffers that all share.
    let target = &running.target;
    let warm = site.client.within(|| Client::new(target)?.idle(1, SMALL))??;
    let warm_private = memory(Process::private_bytes);
    let held = site.client.within(|| Client::new(target)?.idle(scale.idle, SMALL))??;
    let (resident_idle, private_idle) = (memory(Process::resident_bytes), memory(Process::private_bytes));
    drop((warm, held));

    let grown = |index: usize| {
        let before = warm_private.get(index).copied().unwrap_or(0);
        private_idle.get(index).copied().unwrap_or(0) as f64 - before as f64
    };
    let mut sample = Sample::default();
    for index in 0..running.processes.len() {
        let of = |figures: &[u64]| figures.get(index).copied().unwrap_or(0) as f64;
        sample.processes.push(BTreeMap::from([
            (names::RESIDENT_READY, of(&resident_ready)),
            (names::PRIVATE_READY, of(&private_ready)),
            (names::RESIDENT_IDLE, of(&resident_idle)),
            (names::PRIVATE_IDLE, of(&private_idle)),
            (names::PRIVATE_PER_CONNECTION, grown(index) / scale.idle as f64),
        ]));
    }
    for process in &sample.processes {
        for (name, figure) in process {
            *sample.figures.entry(name).or_insert(0.0) += figure;
        }
    }
    let sides = running.processes.len().max(1) as f64;
    if let Some(all) = sample.figures.get(names::PRIVATE_PER_CONNECTION).copied() {
        sample.figures.insert(names::PRIVATE_PER_CONNECTION_SIDE, all / sides);
    }
    Ok(sample)
}

/// CPU and switches between two moments.
struct Meter<'a> {
    running: &'a Running,
    at: Instant,
    cpu: Vec<Duration>,
    switches: Vec<u64>,
    load: Duration,
}

impl<'a> Meter<'a> {
    fn start(running: &'a Running) -> Self {
        Self {
            running,
            cpu: running.processes.iter().map(Process::cpu_time).collect(),
            switches: running.processes.iter().map(Process::context_switches).collect(),
            load: thread_cpu_time() + running.backend.cpu_time(),
            at: Instant::now(),
        }
    }

    fn finish(self, outcome: &Outcome, kind: Kind) -> Sample {
        let passed = self.at.elapsed().as_secs_f64();
        let load =
            (thread_cpu_time() + self.running.backend.cpu_time()).saturating_sub(self.load).as_secs_f64();
        let requests = outcome.requests.max(1) as f64;
        let gigabytes = (outcome.body_bytes as f64 / 1e9).max(f64::MIN_POSITIVE);
        let is_bulk = matches!(kind, Kind::Bulk { .. });
        let mut sample = Sample::default();
        let (mut cpu_all, mut switches_all) = (0.0, 0.0);
        for ((process, cpu), switches) in self.running.processes.iter().zip(&self.cpu).zip(&self.switches) {
            let cpu = process.cpu_time().saturating_sub(*cpu).as_secs_f64();
            let switches = process.context_switches().saturating_sub(*switches) as f64;
            cpu_all += cpu;
            switches_all += switches;
            sample.processes.push(if is_bulk {
                BTreeMap::from([(names::CPU_PER_GB, cpu / gigabytes)])
            } else {
                BTreeMap::from([
                    (names::CPU_PER_REQUEST, cpu * 1e6 / requests),
                    (names::SWITCHES_PER_REQUEST, switches / requests),
                ])
            });
        }
        let figures = &mut sample.figures;
        figures.insert(names::PROXY_CPU_SHARE, cpu_all / passed);
        figures.insert(names::LOAD_CPU_SHARE, load / passed);
        let elapsed = outcome.elapsed.as_secs_f64();
        if is_bulk {
            figures.insert(names::GB_PER_SECOND, gigabytes / elapsed);
            figures.insert(names::CPU_PER_GB, cpu_all / gigabytes);
            return sample;
        }
        figures.insert(names::REQUESTS_PER_SECOND, outcome.requests as f64 / elapsed);
        figures.insert(names::CPU_PER_REQUEST, cpu_all * 1e6 / requests);
        figures.insert(names::SWITCHES_PER_REQUEST, switches_all / requests);
        let at = |quantile: f64| outcome.latencies.value_at_quantile(quantile) as f64 / 1e3;
        figures.insert(names::LATENCY_P50, at(0.5));
        figures.insert(names::LATENCY_P90, at(0.9));
        figures.insert(names::LATENCY_P99, at(0.99));
        figures.insert(names::LATENCY_P999, at(0.999));
        figures.insert(names::LATENCY_MAX, outcome.latencies.max() as f64 / 1e3);
        sample
    }
}

/// Unit and direction of a figure.
pub(super) fn unit(figure: &str) -> (&'static str, Better) {
    match figure {
        names::REQUESTS_PER_SECOND | names::OVERLOAD_GOODPUT => ("1/s", Better::Higher),
        names::GB_PER_SECOND => ("GB/s", Better::Higher),
        names::CPU_PER_GB => ("s/GB", Better::Lower),
        names::SWITCHES_PER_REQUEST
        | names::SYSTEM_CALLS_PER_REQUEST
        | names::HANDSHAKE_OVER_BOUND
        | names::CHURN_OVER_QUIET
        | names::FLOOD_WORST
        | names::OVERLOAD_LOST
        | names::SLOW_BODIES_CUT
        | names::SLOW_WORST
        | names::SLOW_FAILURES
        | names::FLOOD_FAILURES => ("1", Better::Lower),
        names::HANDSHAKE_BOUND => ("us", Better::Neither),
        names::CHANGES_PER_SECOND | names::FLOOD_RECONNECTS_RATE | names::OVERLOAD_PEAK => {
            ("1/s", Better::Neither)
        }
        names::OVERLOAD_OFFERED | names::OVERLOAD_REFUSED | names::OVERLOAD_GAVE_UP => ("1", Better::Neither),
        names::PROXY_CPU_SHARE | names::LOAD_CPU_SHARE => ("1", Better::Neither),
        name if name.ends_with("_us") || name == names::CPU_PER_REQUEST => ("us", Better::Lower),
        _ => ("bytes", Better::Lower),
    }
}
