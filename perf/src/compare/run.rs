//! One run: which topologies and works, round by round, and the report of it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Args;
use super::peers::Rules;
use super::peers::{MEMORY_MAX, Setup, Spec};
use super::plan::Plan;
use super::programs::{self, Programs};
use super::result::{
    Check, Figure, Kind, Missing, Network, Placement, ProcessRow, ProgramFacts, Report, Row, SCHEMA,
};
use super::site::Site;
use super::targets;
use super::verdict;
use super::work::{self, Sample, Scale, unit};
use crate::certificates::Certificates;
use crate::machine::{self, Cores, Machine};
use crate::{Failure, confine};

pub(super) struct Run<'a> {
    args: &'a Args,
    plan: Plan,
    rounds_done: usize,
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

impl<'a> Run<'a> {
    pub(super) fn prepare(args: &'a Args) -> Result<Self, Failure> {
        let plan = Plan::of(args)?;
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
        Ok(Self {
            args,
            plan,
            rounds_done: 0,
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
        eprintln!("{}", self.plan.summary());
        for round in 0..self.plan.rounds {
            if self.is_over_time() {
                eprintln!("another round would not fit into the budget");
                break;
            }
            for index in 0..self.plan.entries.len() {
                let name = &self.plan.entries[index].spec.name;
                if self.missing.iter().any(|missing| missing.topology == *name) {
                    continue;
                }
                eprintln!(
                    "[{}] round {}/{}: {name}",
                    self.progress(round, index),
                    round + 1,
                    self.plan.rounds
                );
                self.visit(index, round);
            }
            self.rounds_done += 1;
            self.save()?;
        }
        self.report()
    }

    /// Whether another round, as long as those before, would go far beyond the budget.
    fn is_over_time(&self) -> bool {
        const LENIENCE: f64 = 1.2;
        let Some(budget) = self.plan.budget.filter(|_| self.rounds_done > 0) else { return false };
        let elapsed = self.clock.elapsed();
        elapsed + elapsed / u32::try_from(self.rounds_done).unwrap_or(1) > budget.mul_f64(LENIENCE)
    }

    /// Time that has passed and that is left, the latter first by the estimate and then by what has been done.
    fn progress(&self, round: usize, index: usize) -> String {
        let elapsed = self.clock.elapsed().as_secs_f64();
        let count = self.plan.entries.len() as f64;
        let share = (round as f64 + index as f64 / count) / self.plan.rounds as f64;
        let estimate = self.plan.estimate().as_secs_f64();
        // The estimate counts less the more is known.
        let left = (1.0 - share) * (elapsed + (1.0 - share) * estimate);
        format!("{:.1} min, about {:.1} left", elapsed / 60.0, left / 60.0)
    }

    /// What is known so far, so that a run that is broken off is a result, too.
    fn save(&self) -> Result<(), Failure> {
        let Some(path) = &self.args.json else { return Ok(()) };
        let mut half = path.clone().into_os_string();
        half.push(".part");
        fs::write(&half, serde_json::to_vec_pretty(&self.report()?)?)?;
        Ok(fs::rename(&half, path)?)
    }

    fn site(&self, spec: &Spec) -> &Site {
        match spec.network {
            Network::Loopback => &self.loopback,
            Network::Namespaces => &self.namespaces,
        }
    }

    /// All works of one topology in one round. Works that need fresh processes or other rules get them.
    fn visit(&mut self, index: usize, round: usize) {
        let works = self.plan.entries[index].works.clone();
        for works in work::instances(&works, round == 0) {
            if let Err(error) = self.measure(index, round, &works) {
                eprintln!("  {error}");
                self.note(index, round, &error.to_string());
                return;
            }
        }
    }

    /// A topology that never starts is missing; one that fails later fails the run.
    fn note(&mut self, index: usize, round: usize, error: &str) {
        let name = self.plan.entries[index].spec.name.clone();
        let has_sample = self.samples.keys().any(|(topology, _)| *topology == index);
        if round == 0 && !has_sample {
            let must = self.args.peers.contains(&name) || self.plan.entries[index].spec.kind == Kind::Ours;
            if must {
                self.failures.push(error.to_owned());
            }
            self.missing.push(Missing { topology: name, reason: error.to_owned() });
        } else {
            self.failures.push(format!("round {}: {error}", round + 1));
        }
    }

    fn measure(&mut self, index: usize, round: usize, works: &[work::Kind]) -> Result<(), Failure> {
        let spec = self.plan.entries[index].spec.clone();
        let rules = works.first().map_or(Rules::One, |work| work.rules());
        let running = spec.start(&self.setup, self.site(&spec), rules)?;
        for work in works {
            let sample = work
                .measure(self.site(&spec), &running, &self.plan.scale)
                .map_err(|error| format!("{}: {}: {error}", spec.name, work.name()))?;
            eprintln!("  {:20} {}", work.name(), one_line(*work, &sample, &self.plan.scale));
            let samples = self.samples.entry((index, *work)).or_default();
            samples.resize(round, None);
            samples.push(Some(sample));
        }
        Ok(())
    }

    fn report(&self) -> Result<Report, Failure> {
        let works: Vec<_> = self.plan.works().iter().map(|work| work.facts(&self.plan.scale)).collect();
        let rows = self.samples.iter().map(|((index, work), samples)| self.row(*index, *work, samples));
        let rows: Vec<_> = rows.collect();
        let mut report = Report {
            schema: SCHEMA.to_owned(),
            command: std::env::args().collect(),
            started: self.started.format(&Rfc3339)?,
            seconds: self.clock.elapsed().as_secs_f64(),
            form: self.plan.scale.form,
            rounds: self.plan.rounds,
            rounds_done: self.rounds_done,
            machine: self.machine.clone(),
            placement: self.placement(),
            programs: self.programs(),
            topologies: self.plan.entries.iter().map(|entry| entry.spec.topology()).collect(),
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
        samples.resize(self.rounds_done, None);
        let spec = &self.plan.entries[index].spec;
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
                format!("Each process of ours may have {} MiB of memory: {}", MEMORY_MAX >> 20, if confine::has_groups() { "a control group ends it at more." } else { "no control group can be made here, so its peak is judged." }),
                "CPU is the sum over all threads of the proxies, kernel workers of their rings included.".to_owned(),
            ],
        }
    }

    /// Those that took part.
    fn programs(&self) -> Vec<ProgramFacts> {
        let took_part = |prefix: &str| {
            let missing = |name: &str| self.missing.iter().any(|missing| missing.topology == name);
            self.plan
                .entries
                .iter()
                .any(|entry| entry.spec.name.starts_with(prefix) && !missing(&entry.spec.name))
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
