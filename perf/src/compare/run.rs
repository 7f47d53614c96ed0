//! One run: which topologies and works, round by round, and the report of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Args;
use super::peers::Rules;
use super::peers::{self, Setup, Spec};
use super::programs::{self, Programs};
use super::result::{
    Check, Figure, Form, Kind, Missing, Network, Placement, ProcessRow, ProgramFacts, Report, Row, SCHEMA,
};
use super::site::Site;
use super::targets;
use super::verdict;
use super::work::{self, Sample, Scale, unit};
use crate::Failure;
use crate::certificates::Certificates;
use crate::machine::{self, Cores, Machine};

/// Those in namespaces whose short form adds nothing to that of their twins on loopback.
const FULL_ONLY: [&str; 9] = [
    "relay-pair-ns",
    "envoy-sidecar-h2-ns",
    "envoy-sidecar-plain-stats-ns",
    "envoy-l4-ns",
    "haproxy-sidecar-ns",
    "haproxy-l4-ns",
    "corelane-l7-log",
    "corelane-l7-epoll",
    "corelane-l7-2-workers",
];

pub(super) struct Run<'a> {
    args: &'a Args,
    scale: Scale,
    rounds: usize,
    specs: Vec<Spec>,
    works: Vec<work::Kind>,
    setup: Setup,
    loopback: Site,
    namespaces: Site,
    machine: Machine,
    started: OffsetDateTime,
    clock: Instant,
    _scratch: tempfile::TempDir,
    samples: BTreeMap<(usize, work::Kind), Vec<Option<Sample>>>,
    missing: Vec<Missing>,
    failures: Vec<String>,
}

/// All topologies that there are, those of `--peer-file` last.
pub(super) fn specs(args: &Args) -> Result<Vec<Spec>, Failure> {
    let mut specs = peers::all();
    if let Some(path) = &args.peer_file {
        specs.extend(peers::read_custom(path)?);
    }
    Ok(specs)
}

pub(super) fn scale(args: &Args) -> Scale {
    let mut scale = Scale::of(if args.full { Form::Full } else { Form::Short });
    if let Some(seconds) = args.seconds {
        scale.duration = Duration::try_from_secs_f64(seconds).unwrap_or(scale.duration);
    }
    // A proxy needs two descriptors a connection, and some of its own.
    let affordable = machine::descriptor_limit().saturating_sub(500) / 2;
    scale.idle = args.idle.unwrap_or(scale.idle).clamp(1, affordable.max(1));
    scale
}

fn chosen_specs(args: &Args) -> Result<Vec<Spec>, Failure> {
    let mut specs = specs(args)?;
    for name in &args.peers {
        if !specs.iter().any(|spec| spec.name == *name) {
            return Err(format!("there is no topology {name}; --list names them").into());
        }
    }
    if args.peers.is_empty() {
        specs.retain(|spec| args.full || !FULL_ONLY.contains(&spec.name.as_str()));
    } else {
        specs.retain(|spec| args.peers.contains(&spec.name));
    }
    Ok(specs)
}

fn chosen_works(args: &Args) -> Result<Vec<work::Kind>, Failure> {
    for name in &args.works {
        if !work::ALL.iter().any(|work| work.name() == name) {
            return Err(format!("there is no work {name}; --list names them").into());
        }
    }
    let wanted =
        |work: &work::Kind| args.works.is_empty() || args.works.iter().any(|name| name == work.name());
    Ok(work::ALL.into_iter().filter(wanted).collect())
}

impl<'a> Run<'a> {
    pub(super) fn prepare(args: &'a Args) -> Result<Self, Failure> {
        let (specs, works) = (chosen_specs(args)?, chosen_works(args)?);
        let cores = Cores::pick()?;
        machine::raise_descriptor_limit();
        let machine = Machine::read();
        machine::pin(cores.load)?;
        let (loopback, namespaces) = (Site::loopback()?, Site::namespaces()?);
        if let Some(name) = &args.congestion {
            loopback.set_congestion(name)?;
            namespaces.set_congestion(name)?;
        }
        let scratch = tempfile::tempdir()?;
        let folder = args.keep.clone().unwrap_or_else(|| scratch.path().to_owned());
        let programs = Programs::find(args.corelane.as_deref(), &args.peers_in)?;
        let certificates = Certificates::generate()?;
        let setup = Setup { certificates, programs, cores, folder: std::path::absolute(folder)? };
        let rounds = args.rounds.unwrap_or(if args.full { 5 } else { 1 }).max(1);
        Ok(Self {
            args,
            scale: scale(args),
            rounds,
            specs,
            works,
            setup,
            loopback,
            namespaces,
            machine,
            started: OffsetDateTime::now_utc(),
            clock: Instant::now(),
            _scratch: scratch,
            samples: BTreeMap::new(),
            missing: Vec::new(),
            failures: Vec::new(),
        })
    }

    pub(super) fn carry_out(mut self) -> Result<Report, Failure> {
        for round in 0..self.rounds {
            for index in 0..self.specs.len() {
                let name = &self.specs[index].name;
                if self.missing.iter().any(|missing| missing.topology == *name) {
                    continue;
                }
                let minutes = self.clock.elapsed().as_secs_f64() / 60.0;
                eprintln!("[{minutes:5.1} min] round {}/{}: {name}", round + 1, self.rounds);
                self.visit(index, round);
            }
        }
        self.report()
    }

    fn site(&self, spec: &Spec) -> &Site {
        match spec.network {
            Network::Loopback => &self.loopback,
            Network::Namespaces => &self.namespaces,
        }
    }

    /// All works of one topology in one round. Works that need fresh processes or other rules get them.
    fn visit(&mut self, index: usize, round: usize) {
        let works = self.works.clone();
        let is_plain = |work: &work::Kind| !matches!(work, work::Kind::RequestsManyRules | work::Kind::Idle);
        let plain: Vec<_> = works.iter().copied().filter(is_plain).collect();
        let mut groups = vec![plain];
        let spec = &self.specs[index];
        let many = spec.has_many_rules && works.contains(&work::Kind::RequestsManyRules);
        // Memory varies little, and ten thousand connections take their time.
        let idle = round == 0 && !spec.processes.is_empty() && works.contains(&work::Kind::Idle);
        groups.extend(many.then(|| vec![work::Kind::RequestsManyRules]));
        groups.extend(idle.then(|| vec![work::Kind::Idle]));
        for group in groups.into_iter().filter(|group| !group.is_empty()) {
            if let Err(error) = self.measure(index, round, &group) {
                eprintln!("  {error}");
                self.note(index, round, &error.to_string());
                return;
            }
        }
    }

    /// A topology that never starts is missing; one that fails later fails the run.
    fn note(&mut self, index: usize, round: usize, error: &str) {
        let name = self.specs[index].name.clone();
        let has_sample = self.samples.keys().any(|(topology, _)| *topology == index);
        if round == 0 && !has_sample {
            let must = self.args.peers.contains(&name) || self.specs[index].kind == Kind::Ours;
            if must {
                self.failures.push(error.to_owned());
            }
            self.missing.push(Missing { topology: name, reason: error.to_owned() });
        } else {
            self.failures.push(format!("round {}: {error}", round + 1));
        }
    }

    fn measure(&mut self, index: usize, round: usize, works: &[work::Kind]) -> Result<(), Failure> {
        let spec = self.specs[index].clone();
        let rules = works.first().map_or(Rules::One, |work| work.rules());
        let running = spec.start(&self.setup, self.site(&spec), rules)?;
        for work in works {
            let sample = work
                .measure(self.site(&spec), &running, &self.scale)
                .map_err(|error| format!("{}: {}: {error}", spec.name, work.name()))?;
            eprintln!("  {:20} {}", work.name(), one_line(*work, &sample, &self.scale));
            let samples = self.samples.entry((index, *work)).or_default();
            samples.resize(round, None);
            samples.push(Some(sample));
        }
        Ok(())
    }

    fn report(self) -> Result<Report, Failure> {
        let works: Vec<_> = self.works.iter().map(|work| work.facts(&self.scale)).collect();
        let rows = self.samples.iter().map(|((index, work), samples)| self.row(*index, *work, samples));
        let rows: Vec<_> = rows.collect();
        let mut report = Report {
            schema: SCHEMA.to_owned(),
            command: std::env::args().collect(),
            started: self.started.format(&Rfc3339)?,
            seconds: self.clock.elapsed().as_secs_f64(),
            form: self.scale.form,
            rounds: self.rounds,
            machine: self.machine.clone(),
            placement: self.placement(),
            programs: self.programs(),
            topologies: self.specs.iter().map(Spec::topology).collect(),
            missing: self.missing.clone(),
            works,
            rows,
            ratios: Vec::new(),
            targets: Vec::new(),
            checks: Vec::new(),
        };
        report.ratios = verdict::ratios(&report);
        report.targets = targets::targets(&report);
        let failures = self.failures.join("; ");
        report.checks = vec![Check {
            name: "replies".to_owned(),
            passed: failures.is_empty(),
            text: if failures.is_empty() { "every reply was whole and right".to_owned() } else { failures },
        }];
        report.checks.extend(verdict::checks(&report));
        Ok(report)
    }

    fn row(&self, index: usize, work: work::Kind, samples: &[Option<Sample>]) -> Row {
        let mut samples = samples.to_vec();
        samples.resize(self.rounds, None);
        let spec = &self.specs[index];
        let processes = spec.processes.iter().enumerate().map(|(number, process)| {
            let of = |sample: &Sample| sample.processes.get(number).cloned().unwrap_or_default();
            ProcessRow { process: process.clone(), figures: figures(&samples, of) }
        });
        let processes = processes.collect();
        let figures = figures(&samples, |sample| sample.figures.clone());
        Row { topology: spec.name.clone(), work: work.name().to_owned(), figures, processes }
    }

    fn placement(&self) -> Placement {
        let Cores { measured, load } = self.setup.cores;
        Placement {
            proxies_cpu: measured,
            load_cpu: load,
            congestion_loopback: self.loopback.congestion(),
            congestion_namespaces: self.namespaces.congestion(),
            notes: vec![
                format!("All proxies of a topology share CPU {measured}; load generator and backend share CPU {load}."),
                format!(
                    "Congestion control where a program sets none: {} on loopback, {} in namespaces.",
                    self.loopback.congestion(),
                    self.namespaces.congestion()
                ),
                "In namespaces (-ns, and ours but the tunnel alone) client and server are joined by a router over veth, and connections of the client are redirected to its proxy; ours are whole node proxies there.".to_owned(),
                "CPU is the sum over all threads of the proxies, kernel workers of their rings included.".to_owned(),
            ],
        }
    }

    /// Those that took part.
    fn programs(&self) -> Vec<ProgramFacts> {
        let took_part = |prefix: &str| {
            let missing = |name: &str| self.missing.iter().any(|missing| missing.topology == name);
            self.specs.iter().any(|spec| spec.name.starts_with(prefix) && !missing(&spec.name))
        };
        let Programs { corelane, perf, envoy, haproxy, nginx } = &self.setup.programs;
        let known = [
            ("corelane", corelane, "--version"),
            ("envoy", envoy, "--version"),
            ("haproxy", haproxy, "-v"),
            ("nginx", nginx, "-v"),
        ];
        let mut facts = vec![programs::facts("perf", perf, "--version")];
        let peers = known.into_iter().filter(|(name, ..)| took_part(name));
        facts.extend(peers.map(|(name, path, argument)| programs::facts(name, path, argument)));
        facts
    }
}

/// The figures that any of the samples has.
fn figures(
    samples: &[Option<Sample>],
    of: impl Fn(&Sample) -> BTreeMap<&'static str, f64>,
) -> BTreeMap<String, Figure> {
    let by_round: Vec<_> =
        samples.iter().map(|sample| sample.as_ref().map(&of).unwrap_or_default()).collect();
    let mut names: Vec<_> = by_round.iter().flat_map(BTreeMap::keys).copied().collect();
    names.sort_unstable();
    names.dedup();
    let figure = |name: &'static str| {
        let (unit, better) = unit(name);
        let samples = by_round.iter().map(|figures| figures.get(name).copied()).collect();
        (name.to_owned(), Figure::new(unit, better, samples))
    };
    names.into_iter().map(figure).collect()
}

/// What is seen while it runs.
fn one_line(work: work::Kind, sample: &Sample, scale: &Scale) -> String {
    let headline = work.facts(scale).headline;
    let mut parts: Vec<String> = headline
        .iter()
        .filter_map(|name| {
            let figure = sample.figures.get(name.as_str())?;
            Some(format!("{name} {figure:.*}", if *figure < 10.0 { 2 } else { 0 }))
        })
        .collect();
    let share = |name| sample.figures.get(name).map_or(0.0, |share| share * 100.0);
    if sample.figures.contains_key(super::result::names::LOAD_CPU_SHARE) {
        let (proxies, load) =
            (share(super::result::names::PROXY_CPU_SHARE), share(super::result::names::LOAD_CPU_SHARE));
        parts.push(format!("(proxies {proxies:.0} %, load {load:.0} %)"));
    }
    parts.join(", ")
}
