//! The table of a report for a README.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::defeat::defeats;
use super::plot::shown;
use crate::compare::result::{Report, Row, Verdict, names};

/// The figures that a reader who has to choose asks for first: work, figure, heading.
const COLUMNS: [(&str, &str, &str); 7] = [
    (names::REQUESTS, names::CPU_PER_REQUEST, "CPU us/request"),
    (names::RATE, names::LATENCY_P50, "p50 us"),
    (names::RATE, names::LATENCY_P99, "p99 us"),
    (names::GRPC_UNARY, names::CPU_PER_REQUEST, "CPU us/gRPC call"),
    (names::BULK_DOWN_1, names::CPU_PER_GB, "CPU s/GB"),
    (names::IDLE, names::RESIDENT_READY, "RSS ready MB"),
    (names::FLOOD, names::FLOOD_WORST, "p99 in floods, times"),
];
const BYTES_OF_A_MEGABYTE: f64 = 1e6;

/// Where the tables stand in a larger file.
const BEGIN: &str = "<!-- perf report -->\n";
const END: &str = "<!-- end of perf report -->\n";

/// `text` with the tables in the place of what is between its marks; `None` if it has none.
pub(super) fn put_between(text: &str, tables: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{tables}{END}{after}"))
}

/// What was run, medians by topology, then the targets.
pub(crate) fn markdown(report: &Report) -> String {
    let mut out = String::new();
    // Writing into a text does not fail.
    let _infallible = writeln!(
        out,
        "## Beside other proxies\n\n`{}`, {}, {} of {} interleaved rounds; {}.\n",
        report.command_in_words(),
        report.started.split('T').next().unwrap_or_default(),
        report.rounds_done,
        report.rounds,
        report.machine
    );
    let headings = COLUMNS.map(|(_, _, heading)| heading);
    line(&mut out, "median of the rounds", &headings.map(str::to_owned));
    line(&mut out, "---", &headings.map(|_| "---:".to_owned()));
    for topology in &report.topologies {
        let cells = COLUMNS
            .map(|(work, figure, _)| report.row(&topology.name, work).and_then(|row| median(row, figure)));
        if cells.iter().any(Option::is_some) {
            line(&mut out, &topology.name, &cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned())));
        }
    }
    out.push_str("\nNames that end in `-ns`, and our node proxies, stand in network namespaces, the others on one loopback.\n");
    targets(report, &mut out);
    lost(report, &mut out);
    out
}

/// The reader is told where the choice is another one: each figure of each pair is on the page.
fn lost(report: &Report, out: &mut String) {
    let (lost, to_less): (Vec<_>, Vec<_>) =
        defeats(report).into_iter().partition(|defeat| defeat.does_as_much);
    let as_much = "Where another proxy that does as much does better than ours in at least one figure:";
    let less = "The same of proxies that do less, one hop beside a pair or bytes beside requests:";
    for (heading, defeats) in [(as_much, lost), (less, to_less)] {
        let mut by_peer = BTreeMap::<_, BTreeSet<_>>::new();
        for defeat in &defeats {
            by_peer.entry((defeat.work, defeat.peer)).or_default().insert(defeat.ours);
        }
        if by_peer.is_empty() {
            continue;
        }
        let _infallible = writeln!(out, "\n{heading}\n");
        line(out, "work", &["better", "than"].map(str::to_owned));
        line(out, "---", &["---", "---"].map(str::to_owned));
        for ((work, peer), ours) in by_peer {
            let ours: Vec<&str> = ours.into_iter().collect();
            line(out, work, &[peer.to_owned(), ours.join(", ")]);
        }
    }
}

fn targets(report: &Report, out: &mut String) {
    let count = |verdict| report.targets.iter().filter(|target| target.verdict == verdict).count();
    let _infallible = writeln!(
        out,
        "\nBars that were set beforehand: {} reached, {} missed, {} not measured by this run.\n",
        count(Verdict::Reached),
        count(Verdict::Missed),
        count(Verdict::NotMeasured)
    );
    line(out, "target", &["ours", "measured", "at most", ""].map(str::to_owned));
    line(out, "---", &["---", "---:", "---:", "---"].map(str::to_owned));
    for target in report.targets.iter().filter(|target| target.verdict != Verdict::NotMeasured) {
        let verdict = if target.verdict == Verdict::Reached { "reached" } else { "**missed**" };
        let against = target.against.as_deref().map(|peer| format!(", of {peer}")).unwrap_or_default();
        let measured = target.value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let text = format!("{} {}{against}", target.id, target.text);
        line(out, &text, &[target.ours.clone(), measured, super::page::bar(target), verdict.to_owned()]);
    }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn tables_go_between_the_marks_and_nothing_else_changes() {
        let text = format!("before\n{BEGIN}old\n{END}after\n");
        assert_eq!(put_between(&text, "new\n").unwrap(), format!("before\n{BEGIN}new\n{END}after\n"));
        assert!(put_between("no marks\n", "new\n").is_none());
        assert!(put_between(BEGIN, "new\n").is_none());
    }

    #[test]
    fn the_readme_has_the_tables_of_the_recorded_run() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
        // Nothing is claimed until a run is recorded.
        let tables = match std::fs::read(root.join("perf/results/compare.json")) {
            Ok(json) => markdown(&Report::parse(&json).unwrap()),
            Err(_) => String::new(),
        };
        assert!(
            put_between(&readme, &tables).expect("the README has the marks") == readme,
            "the README is not of the recorded run: `perf report perf/results/compare.json --markdown README.md`"
        );
    }
}
