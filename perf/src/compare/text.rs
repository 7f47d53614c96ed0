//! A report as tables on the terminal.

use std::fmt::{self, Write};

use comfy_table::Table;

use super::result::{Figure, Kind, Report, Verdict, Winner, Work};
use crate::statistics::Spread;

/// Everything that a person looks at after a run.
pub(super) struct Shown<'a>(pub(super) &'a Report);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        writeln!(f, "{}", report.machine)?;
        if report.rounds_done < report.rounds {
            writeln!(f, "UNFINISHED: {} of {} rounds", report.rounds_done, report.rounds)?;
        }
        for note in &report.placement.notes {
            writeln!(f, "{note}")?;
        }
        for program in &report.programs {
            writeln!(f, "{}: {}", program.name, program.version)?;
        }
        for work in &report.works {
            writeln!(f, "\n{}: {}\n{}", work.name, work.description, table_of(report, work))?;
        }
        writeln!(f, "\nTargets (median of paired rounds, at most the bar)\n{}", targets(report))?;
        summary(report, f)
    }
}

fn table_of(report: &Report, work: &Work) -> Table {
    let mut table = Table::new();
    let mut header = vec!["min/median/max of rounds".to_owned()];
    header.extend(work.headline.iter().cloned());
    table.set_header(header);
    for topology in &report.topologies {
        let Some(row) = report.row(&topology.name, &work.name) else { continue };
        let mut cells = vec![topology.name.clone()];
        cells.extend(work.headline.iter().map(|name| row.figures.get(name).map_or_else(String::new, shown)));
        table.add_row(cells);
    }
    table
}

/// Its spread, in a unit that leaves few digits; of one round the one value.
fn shown(figure: &Figure) -> String {
    let Some(spread) = figure.spread else { return "-".to_owned() };
    let (by, unit) = match figure.unit.as_str() {
        "bytes" if spread.median >= 1e6 => (1e6, " MB"),
        "bytes" if spread.median >= 1e4 => (1e3, " KB"),
        _ => (1.0, ""),
    };
    let spread = Spread { min: spread.min / by, median: spread.median / by, max: spread.max / by };
    if figure.samples.iter().flatten().count() == 1 {
        let text = spread.to_string();
        return format!("{}{unit}", text.split('/').next().unwrap_or_default());
    }
    format!("{spread}{unit}")
}

fn targets(report: &Report) -> Table {
    let mut table = Table::new();
    table.set_header(["", "what", "ours", "against", "measured", "bar", ""]);
    for target in report.targets.iter().filter(|target| target.verdict != Verdict::NotMeasured) {
        table.add_row([
            target.id.clone(),
            target.text.clone(),
            target.ours.clone(),
            target.against.clone().unwrap_or_default(),
            target.value.map_or_else(|| "-".to_owned(), |value| value.to_string()),
            format!("{} {}", target.bar, target.unit),
            match target.verdict {
                Verdict::Reached => "reached",
                Verdict::Missed => "MISSED",
                Verdict::NotMeasured => "not measured",
            }
            .to_owned(),
        ]);
    }
    table
}

/// Where a peer wins, what could not be run, what was checked.
fn summary(report: &Report, out: &mut impl Write) -> fmt::Result {
    let is_peer = |name: &str| {
        let found = report.topologies.iter().find(|topology| topology.name == name);
        found.is_some_and(|topology| matches!(topology.kind, Kind::Peer | Kind::Custom))
    };
    let lost = report.ratios.iter().filter(|ratio| ratio.winner == Winner::Peer && is_peer(&ratio.peer));
    for lost in lost {
        let (peer, ours, work) = (&lost.peer, &lost.ours, &lost.work);
        writeln!(out, "{peer} beats {ours} at {work}: {} of ours is {} of its", lost.figure, lost.value)?;
    }
    let unmeasured = report.targets.iter().filter(|target| target.verdict == Verdict::NotMeasured);
    let unmeasured: Vec<_> = unmeasured
        .map(|target| {
            format!(
                "{} ({} against {})",
                target.id,
                target.ours,
                target.against.as_deref().unwrap_or("itself")
            )
        })
        .collect();
    if !unmeasured.is_empty() {
        writeln!(out, "targets not measured: {}", unmeasured.join(", "))?;
    }
    for missing in &report.missing {
        writeln!(out, "not run: {}: {}", missing.topology, missing.reason)?;
    }
    for check in &report.checks {
        let word = if check.passed { "ok" } else { "FAILED" };
        writeln!(out, "{word}: {}: {}", check.name, check.text)?;
    }
    Ok(())
}
