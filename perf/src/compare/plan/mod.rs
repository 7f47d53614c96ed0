//! What a run does: which works with which topologies, how often and how long.

mod cost;
mod full;

use std::fmt;
use std::time::Duration;

use super::Args;
use super::peers::{self, Spec};
use super::result::Form;
use super::work::{self, Kind, Scale};
use crate::{Failure, machine};
use cost::Cost;

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

/// A topology and what is done with it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) spec: Spec,
    pub(super) works: Vec<Kind>,
}

#[derive(Debug)]
pub(super) struct Plan {
    /// In the order in which each round visits them.
    pub(super) entries: Vec<Entry>,
    pub(super) rounds: usize,
    pub(super) scale: Scale,
    pub(super) budget: Option<Duration>,
    cost: Cost,
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
    specs.retain(|spec| match &spec.name {
        name if !args.peers.is_empty() => args.peers.contains(name),
        name if args.full => full::has(name) || spec.kind == super::result::Kind::Custom,
        name => !FULL_ONLY.contains(&name.as_str()),
    });
    Ok(specs)
}

/// Those that were asked for; otherwise in the full form those of its table, in the short one all.
fn works_of(spec: &Spec, args: &Args) -> Vec<Kind> {
    let is_wanted = |work: &Kind| {
        let name = work.name();
        spec.suits(*work)
            && match &args.works {
                named if !named.is_empty() => named.iter().any(|named| named == name),
                _ if args.full => full::full(&spec.name).contains(&name),
                _ => !work.is_long(),
            }
    };
    work::ALL.into_iter().filter(is_wanted).collect()
}

impl Plan {
    pub(super) fn of(args: &Args) -> Result<Self, Failure> {
        for name in &args.works {
            if !work::ALL.iter().any(|work| work.name() == name) {
                return Err(format!("there is no work {name}; --list names them").into());
            }
        }
        let entries =
            chosen_specs(args)?.into_iter().map(|spec| Entry { works: works_of(&spec, args), spec });
        let entries: Vec<_> = entries.filter(|entry| !entry.works.is_empty()).collect();
        if entries.is_empty() {
            return Err(
                "none of these topologies does any of these works; --full --plan shows what does what".into(),
            );
        }
        let rounds = args.rounds.unwrap_or(if args.full { 3 } else { 1 }).max(1);
        let mut scale = scale(args);
        let cost = Cost::of(&entries, &scale);
        let budget = args.budget.map(|minutes| Duration::try_from_secs_f64(minutes * 60.0)).transpose()?;
        if let Some(budget) = budget {
            scale.duration = cost.fit(rounds, budget)?;
        }
        Ok(Self { entries, rounds, scale, budget, cost })
    }

    /// How long it takes, about.
    pub(super) fn estimate(&self) -> Duration {
        self.cost.total(self.rounds, self.scale.duration)
    }

    /// Works that any topology does.
    pub(super) fn works(&self) -> Vec<Kind> {
        let does = |work: &Kind| self.entries.iter().any(|entry| entry.works.contains(work));
        work::ALL.into_iter().filter(does).collect()
    }

    /// In a line.
    pub(super) fn summary(&self) -> String {
        let measurements: usize = self.entries.iter().map(|entry| entry.works.len()).sum();
        format!(
            "{} topologies, {measurements} measurements a round of {:.1} s each, {} rounds: about {:.1} minutes",
            self.entries.len(),
            self.scale.duration.as_secs_f64(),
            self.rounds,
            self.estimate().as_secs_f64() / 60.0
        )
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Entry { spec, works } in &self.entries {
            let works: Vec<_> = works.iter().map(|work| work.name()).collect();
            writeln!(f, "{:28} {}", spec.name, works.join(" "))?;
        }
        writeln!(f, "{}", self.summary())
    }
}

#[cfg(test)]
mod tests {
    use super::super::targets;
    use super::full::FULL;
    use super::*;

    #[test]
    fn every_line_names_what_exists_and_suits_it() {
        let specs = peers::all();
        for (topology, works) in FULL {
            let spec = specs.iter().find(|spec| spec.name == *topology).expect(topology);
            for name in *works {
                let kind = work::ALL.into_iter().find(|work| work.name() == *name).expect(name);
                assert!(spec.suits(kind), "{topology} cannot do {name}");
            }
        }
    }

    #[test]
    fn both_sides_of_every_target_are_measured() {
        for (topology, work) in targets::needed().filter(|(topology, _)| *topology != "ztunnel") {
            assert!(FULL.iter().any(|(name, _)| *name == topology), "{topology}");
            assert!(full::full(topology).contains(&work), "{topology} does not do {work}");
        }
    }

    #[test]
    fn a_budget_decides_how_long_a_measurement_is() {
        let specs = peers::all();
        let spec = specs.iter().find(|spec| spec.name == "corelane-l4").unwrap().clone();
        let plan = [Entry { spec, works: vec![Kind::Requests, Kind::Rate, Kind::Idle] }];
        let scale = Scale::of(Form::Full);
        let cost = Cost::of(&plan, &scale);
        let budget = Duration::from_secs(24);
        let duration = cost.fit(3, budget).unwrap();
        let total = cost.total(3, duration);
        assert!(total.abs_diff(budget) < Duration::from_millis(10), "{total:?} with {duration:?}");
        assert_eq!(cost.fit(3, Duration::from_hours(1)).unwrap(), Duration::from_secs(3));
        assert!(cost.fit(30, budget).unwrap_err().to_string().contains("30 rounds"));
    }
}
