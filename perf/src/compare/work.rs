//! What is done with each topology, and what is read off while it is done.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::http::Load;
use super::http::client::{Client, Outcome, Target};
use super::peers::Rules;
use super::peers::Running;
use super::result::{Better, Form, Work, names};
use super::site::Site;
use super::syscalls;
use crate::Failure;
use crate::machine::thread_cpu_time;
use crate::process::Process;

const CONNECTIONS: usize = 64;
const NEW_CONNECTION_LOOPS: usize = 16;
const RATE: u32 = 2000;
const KEEP_ALIVE_16: usize = 16;
const REPLY_BYTES: u64 = 1024;
const SMALL: Load = Load::Down(REPLY_BYTES);

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Requests,
    Requests16,
    Rate,
    Single,
    Connections,
    Bulk { streams: u64, up: bool },
    RequestsManyRules,
    Idle,
}

/// In the order in which they are done. Those on one instance of the proxies come together.
pub(super) const ALL: [Kind; 11] = [
    Kind::Requests,
    Kind::Requests16,
    Kind::Rate,
    Kind::Single,
    Kind::Connections,
    Kind::Bulk { streams: 1, up: false },
    Kind::Bulk { streams: 8, up: false },
    Kind::Bulk { streams: 1, up: true },
    Kind::Bulk { streams: 8, up: true },
    Kind::RequestsManyRules,
    Kind::Idle,
];

/// Works that are done on one instance of the proxies, instance by instance. Memory varies little, and thousands of
/// connections take their time: that is done once.
pub(super) fn instances(works: &[Kind], is_first_round: bool) -> Vec<Vec<Kind>> {
    let mut instances: Vec<Vec<Kind>> = Vec::new();
    for work in works.iter().filter(|work| is_first_round || **work != Kind::Idle) {
        match instances.last_mut() {
            Some(same) if same.iter().all(|other| other.shares_instance(*work)) => same.push(*work),
            _ => instances.push(vec![*work]),
        }
    }
    instances
}

/// Figures of one measurement, by name; of all together and of each process.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    pub(super) figures: BTreeMap<&'static str, f64>,
    pub(super) processes: Vec<BTreeMap<&'static str, f64>>,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Requests => names::REQUESTS,
            Self::Requests16 => names::REQUESTS_16,
            Self::Rate => names::RATE,
            Self::Single => names::SINGLE,
            Self::Connections => names::CONNECTIONS,
            Self::Bulk { streams: 1, up: false } => names::BULK_DOWN_1,
            Self::Bulk { streams: _, up: false } => names::BULK_DOWN_8,
            Self::Bulk { streams: 1, up: true } => names::BULK_UP_1,
            Self::Bulk { streams: _, up: true } => names::BULK_UP_8,
            Self::RequestsManyRules => names::REQUESTS_MANY_RULES,
            Self::Idle => names::IDLE,
        }
    }

    /// Whether both can be done on the same processes, one after the other.
    fn shares_instance(self, other: Self) -> bool {
        self.rules() == other.rules() && self != Self::Idle && other != Self::Idle
    }

    /// What the proxies are told.
    pub(super) fn rules(self) -> Rules {
        if self == Self::RequestsManyRules { Rules::Many } else { Rules::One }
    }

    pub(super) fn facts(self, scale: &Scale) -> Work {
        let seconds = scale.duration.as_secs_f64();
        let (label, description, seconds) = match self {
            Self::Requests => (
                "requests, 64 connections".to_owned(),
                format!("{CONNECTIONS} closed loops on keep-alive connections, {REPLY_BYTES} byte replies"),
                seconds,
            ),
            Self::Requests16 => (
                "requests, 16 connections".to_owned(),
                format!("{KEEP_ALIVE_16} closed loops on keep-alive connections, {REPLY_BYTES} byte replies"),
                seconds,
            ),
            Self::Rate => (
                format!("{RATE} requests a second"),
                format!(
                    "an open loop over {CONNECTIONS} keep-alive connections, {REPLY_BYTES} byte replies; latency counts from the time at which each request is due"
                ),
                seconds,
            ),
            Self::Single => (
                "one connection".to_owned(),
                format!("one closed loop on one keep-alive connection, {REPLY_BYTES} byte replies"),
                seconds,
            ),
            Self::Connections => (
                "a connection per request".to_owned(),
                format!(
                    "{NEW_CONNECTION_LOOPS} loops: connect, one request, {REPLY_BYTES} byte reply, close"
                ),
                seconds,
            ),
            Self::Bulk { streams, up } => {
                let megabytes = scale.bulk_bytes >> 20;
                let way = if up { "up" } else { "down" };
                let plural = if streams == 1 { "" } else { "s" };
                (
                    format!("bulk {way}, {streams} stream{plural}"),
                    format!("{megabytes} MiB over {streams} connection{plural} at once, one body on each"),
                    0.0,
                )
            }
            Self::RequestsManyRules => (
                "requests through many rules".to_owned(),
                "as requests, through 1,000 routes and 100 policies of which the last ones fit".to_owned(),
                seconds,
            ),
            Self::Idle => (
                format!("{} idle connections", scale.idle),
                format!("fresh processes, then {} connections with one request each, held open", scale.idle),
                0.0,
            ),
        };
        let headline = self.headline().iter().map(|name| (*name).to_owned()).collect();
        Work { name: self.name().to_owned(), label, description, seconds, headline }
    }

    fn headline(self) -> &'static [&'static str] {
        match self {
            Self::Bulk { .. } => &[names::CPU_PER_GB, names::GB_PER_SECOND],
            Self::Idle => &[names::RESIDENT_READY, names::PRIVATE_READY, names::PRIVATE_PER_CONNECTION_SIDE],
            Self::Rate | Self::Single => {
                &[names::LATENCY_P50, names::LATENCY_P99, names::LATENCY_P999, names::CPU_PER_REQUEST]
            }
            _ => &[
                names::CPU_PER_REQUEST,
                names::REQUESTS_PER_SECOND,
                names::LATENCY_P50,
                names::LATENCY_P99,
                names::SYSTEM_CALLS_PER_REQUEST,
            ],
        }
    }

    /// Does it once.
    pub(super) fn measure(self, site: &Site, running: &Running, scale: &Scale) -> Result<Sample, Failure> {
        if self == Self::Idle {
            return idle(site, running, scale);
        }
        let target = &running.target;
        let mut meter = None;
        let outcome =
            site.client.within(|| self.drive(target, scale, || meter = Some(Meter::start(running))))??;
        let meter = meter.ok_or("a measurement ended before it began")?;
        let mut sample = meter.finish(&outcome, self);
        if matches!(self, Self::Requests)
            && let Some(count) = system_calls(site, running, scale)?
        {
            sample.figures.insert(names::SYSTEM_CALLS_PER_REQUEST, count);
        }
        Ok(sample)
    }

    fn drive(self, target: &Target, scale: &Scale, begin: impl FnOnce()) -> Result<Outcome, Failure> {
        let client = Client::new(target)?;
        let duration = scale.duration;
        match self {
            Self::Requests | Self::RequestsManyRules => {
                client.closed_loop(CONNECTIONS, SMALL, duration, begin)
            }
            Self::Requests16 => client.closed_loop(KEEP_ALIVE_16, SMALL, duration, begin),
            Self::Rate => client.open_loop(CONNECTIONS, SMALL, RATE, duration, begin),
            Self::Single | Self::Idle => client.closed_loop(1, SMALL, duration, begin),
            Self::Connections => client.new_connections(NEW_CONNECTION_LOOPS, SMALL, duration, begin),
            Self::Bulk { streams, up } => {
                let each = scale.bulk_bytes / streams;
                let load = if up { Load::Up(each) } else { Load::Down(each) };
                client.bulk(usize::try_from(streams)?, load, begin)
            }
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
        names::REQUESTS_PER_SECOND => ("1/s", Better::Higher),
        names::GB_PER_SECOND => ("GB/s", Better::Higher),
        names::CPU_PER_GB => ("s/GB", Better::Lower),
        names::SWITCHES_PER_REQUEST | names::SYSTEM_CALLS_PER_REQUEST => ("1", Better::Lower),
        names::PROXY_CPU_SHARE | names::LOAD_CPU_SHARE => ("1", Better::Neither),
        name if name.ends_with("_us") || name == names::CPU_PER_REQUEST => ("us", Better::Lower),
        _ => ("bytes", Better::Lower),
    }
}
