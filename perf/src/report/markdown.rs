//! The table of a report for a README.

use std::fmt::Write;

use super::plot::shown;
use crate::compare::result::{Report, Row, Verdict, names};

/// The figures that a reader who has to choose asks for first: work, figure, heading.
const COLUMNS: [(&str, &str, &str); 5] = [
    (names::REQUESTS, names::CPU_PER_REQUEST, "CPU us/request"),
    (names::RATE, names::LATENCY_P50, "p50 us"),
    (names::RATE, names::LATENCY_P99, "p99 us"),
    (names::BULK_DOWN_1, names::CPU_PER_GB, "CPU s/GB"),
    (names::IDLE, names::RESIDENT_READY, "RSS ready MB"),
];
const BYTES_OF_A_MEGABYTE: f64 = 1e6;

/// Medians by topology, then the targets.
pub(crate) fn markdown(report: &Report) -> String {
    let mut out = String::new();
    let headings = COLUMNS.map(|(_, _, heading)| heading);
    line(&mut out, "topology", &headings.map(str::to_owned));
    line(&mut out, "---", &headings.map(|_| "---:".to_owned()));
    for topology in &report.topologies {
        let cells = COLUMNS
            .map(|(work, figure, _)| report.row(&topology.name, work).and_then(|row| median(row, figure)));
        if cells.iter().any(Option::is_some) {
            line(&mut out, &topology.name, &cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned())));
        }
    }
    out.push('\n');
    line(&mut out, "target", &["measured", "at most", ""].map(str::to_owned));
    line(&mut out, "---", &["---:", "---:", "---"].map(str::to_owned));
    for target in report.targets.iter().filter(|target| target.verdict != Verdict::NotMeasured) {
        let verdict = if target.verdict == Verdict::Reached { "reached" } else { "**missed**" };
        let against = target.against.as_deref().map(|peer| format!(", of {peer}")).unwrap_or_default();
        let measured = target.value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let text = format!("{} {}{against}", target.id, target.text);
        line(&mut out, &text, &[measured, super::page::bar(target), verdict.to_owned()]);
    }
    let lost: Vec<String> = super::lost(report)
        .map(|ratio| format!("{} at {} ({} {})", ratio.peer, ratio.work, ratio.figure, ratio.value))
        .collect();
    if !lost.is_empty() {
        // The reader is told where the choice is another one.
        let _infallible = write!(out, "\nWhere another proxy does better than ours: {}.\n", lost.join("; "));
    }
    out
}

fn line(out: &mut String, first: &str, cells: &[String]) {
    // Writing into a text does not fail.
    let _infallible = writeln!(out, "| {first} | {} |", cells.join(" | "));
}

fn median(row: &Row, name: &str) -> Option<String> {
    let figure = row.figures.get(name)?;
    let median = figure.spread?.median;
    Some(shown(if figure.unit == "bytes" { median / BYTES_OF_A_MEGABYTE } else { median }))
}
