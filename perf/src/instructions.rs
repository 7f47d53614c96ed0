//! What the pure cores cost in instructions, counted by valgrind's callgrind: a clock that neither the machine's load nor its
//! speed moves, so that a change that costs more is seen where times say nothing.
//!
//! Each work runs in a process of its own. Only what [`take_counted`] does is counted: preparing it, where every run has other hash
//! seeds, is not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use comfy_table::Table;
use perf::cores::{Step, WORKS, Work};
use serde::{Deserialize, Serialize};

use crate::Failure;

const STEPS: u32 = 1_000;
/// Processes that count each work: their hash seeds differ, and the luckiest of them tells work from collisions.
const COUNTS: u32 = 3;
/// The function whose instructions are counted, as callgrind names it.
const COUNTED: &str = "perf::instructions::take_counted";
/// Steps that fill caches and buffers before the counted ones.
const WARM_UP: u32 = 100;

/// Counts the instructions of the pure cores, and compares them with a record.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// The record to compare with; one that costs more than the tolerance fails.
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    check: Option<PathBuf>,
    /// Writes the record.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Percent by which a work may cost more than its record.
    #[arg(long, default_value_t = 5.0)]
    tolerance: f64,
    /// Only works whose names contain this.
    #[arg(value_name = "NAME")]
    only: Option<String>,
}

/// Runs one work; what [`run`] has counted.
#[derive(Debug, Parser)]
pub(crate) struct StepsArgs {
    name: String,
    steps: u32,
}

/// Instructions of one step of each work, and what else they depend on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The compiler that made the program.
    rustc: String,
    /// By which libraries choose their code when they run.
    processor: String,
    instructions: BTreeMap<String, u64>,
}

pub(crate) fn steps(args: &StepsArgs) -> Result<(), Failure> {
    let work = WORKS.iter().find(|work| work.name == args.name).ok_or("there is no such work")?;
    let mut step = work.prepare();
    take(&mut step, WARM_UP);
    take_counted(&mut step, args.steps);
    Ok(())
}

/// What is counted, alone: hence a function that is never a part of another.
#[inline(never)]
fn take_counted(step: &mut Step, steps: u32) {
    take(step, steps);
}

fn take(step: &mut Step, steps: u32) {
    for _ in 0..steps {
        step();
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let record = args.check.as_deref().map(read).transpose()?;
    let (rustc, processor) = (compiler()?, processor());
    let record = record.filter(|record| {
        let same = record.rustc == rustc && record.processor == processor;
        if !same {
            let Record { rustc: by, processor: on, .. } = record;
            eprintln!("recorded by {by} on {on}, this is {rustc} on {processor}: counts are not judged");
        }
        same
    });
    let is_wanted =
        |work: &&Work| work.is_counted && args.only.as_deref().is_none_or(|only| work.name.contains(only));
    let mut counted = BTreeMap::new();
    for work in WORKS.iter().filter(is_wanted) {
        eprintln!("counting {}", work.name);
        let counts = (0..COUNTS).map(|_| count(work)).collect::<Result<Vec<_>, _>>()?;
        counted.insert(work.name.to_owned(), counts.into_iter().min().unwrap_or_default());
    }
    if counted.is_empty() {
        return Err("no counted work has such a name".into());
    }
    let verdict = Verdict::of(&counted, record.as_ref(), args.tolerance);
    println!("{}", verdict.table);
    if let Some(path) = &args.record {
        let record = Record { rustc, processor, instructions: counted };
        fs::write(path, serde_json::to_string_pretty(&record)? + "\n")?;
    }
    if verdict.worse.is_empty() {
        return Ok(());
    }
    let worse = verdict.worse.join(", ");
    Err(format!("costs more than recorded: {worse}. If that is meant, write a new record with --record.")
        .into())
}

fn read(path: &Path) -> Result<Record, Failure> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// What the counts say beside a record.
struct Verdict {
    table: Table,
    /// Works that cost more than the tolerance allows, or of which the record says nothing.
    worse: Vec<String>,
}

impl Verdict {
    fn of(counted: &BTreeMap<String, u64>, record: Option<&Record>, tolerance: f64) -> Self {
        let mut table = Table::new();
        table.set_header(["work", "instructions a step", "recorded", "change"]);
        let mut worse = Vec::new();
        for (name, count) in counted {
            let before = record.and_then(|record| record.instructions.get(name)).copied();
            let change = before.map(|before| (*count as f64 / before as f64 - 1.0) * 100.0);
            if record.is_some() && change.is_none_or(|change| change > tolerance) {
                worse.push(name.clone());
            }
            table.add_row([
                name.clone(),
                count.to_string(),
                before.map_or_else(|| "-".into(), |before| before.to_string()),
                change.map_or_else(|| "-".into(), |change| format!("{change:+.1} %")),
            ]);
        }
        Self { table, worse }
    }
}

/// Instructions of one step.
fn count(work: &Work) -> Result<u64, Failure> {
    let program = std::env::current_exe()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg("--")
        .arg(program)
        .args(["steps", work.name, &STEPS.to_string()])
        .output()
        .map_err(|error| format!("valgrind cannot be started: {error}; install the package valgrind"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{} under valgrind: {}\n{said}", work.name, output.status).into());
    }
    let counted = collected(&said).filter(|counted| *counted > 0);
    Ok(counted.ok_or_else(|| format!("valgrind gave no count:\n{said}"))? / u64::from(STEPS))
}

/// The number in callgrind's line `==PID== Collected : NUMBER`.
fn collected(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("Collected"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

fn compiler() -> Result<String, Failure> {
    let output = Command::new("rustc").arg("--version").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The architecture, and the vector instructions that valgrind passes on and libraries look for.
fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return "x86_64 with AVX2".to_owned();
    }
    std::env::consts::ARCH.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn what_costs_more_or_was_never_recorded_is_named() {
        let record = Record {
            rustc: "rustc 1".into(),
            processor: processor(),
            instructions: counts(&[("a", 100), ("b", 100), ("c", 100)]),
        };
        let now = counts(&[("a", 104), ("b", 106), ("c", 50), ("d", 1)]);
        assert_eq!(Verdict::of(&now, Some(&record), 5.0).worse, ["b", "d"]);
        assert!(Verdict::of(&now, None, 5.0).worse.is_empty());
    }

    #[test]
    fn the_count_is_read_from_what_callgrind_says() {
        let said = "==12== Events    : Ir\n==12== Collected : 48123\n==12== \n";
        assert_eq!(collected(said), Some(48_123));
        assert_eq!(collected("==12== Collected : many"), None);
        assert_eq!(collected(""), None);
    }

    #[test]
    fn names_are_unique_and_every_counted_work_runs() {
        let names: std::collections::BTreeSet<_> = WORKS.iter().map(|work| work.name).collect();
        assert_eq!(names.len(), WORKS.len());
        for work in WORKS.iter().filter(|work| work.is_counted) {
            let mut step = work.prepare();
            step();
            step();
        }
    }
}
