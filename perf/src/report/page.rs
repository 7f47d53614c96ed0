//! The page.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::defeat::{Defeat, defeats};
use super::plot::{Bar, Curve, bars, colour, curves, shown};
use crate::Failure;
use crate::compare::result::{Better, Figure, Form, Kind, Report, Row, Target, Verdict, Winner, Work, names};

/// Percentiles of the latency plot.
const PERCENTILES: [(&str, &str); 4] = [
    ("p50", names::LATENCY_P50),
    ("p90", names::LATENCY_P90),
    ("p99", names::LATENCY_P99),
    ("p99.9", names::LATENCY_P999),
];

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 0 auto; max-width: 1080px; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 6px; border-bottom: 1px solid #d8dee6; }
h3 { font-size: 15px; margin: 20px 0 4px; } p { margin: 6px 0; } code { background: #f2f4f7; padding: 1px 4px; }
table { border-collapse: collapse; margin: 8px 0; font-size: 13px; width: 100%; }
th, td { border-bottom: 1px solid #e4e8ee; padding: 4px 8px; text-align: right; vertical-align: top; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
tr.ours td { background: #eef8f7; } .good { color: #0b6b3a; font-weight: 600; } .bad { color: #b42318; font-weight: 600; }
.open { color: #5b6572; } .chip { display: inline-block; width: 11px; height: 11px; margin: 0 5px 0 14px; }
.scroll { overflow-x: auto; } details { margin: 8px 0; } summary { cursor: pointer; color: #334155; } svg { max-width: 100%; height: auto; }
";

pub(crate) fn page(report: &Report) -> Result<String, Failure> {
    let works = report.works.iter().map(|work| section(report, work)).collect::<Result<Vec<_>, _>>()?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Corelane beside other proxies" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Corelane beside other proxies" }
                (facts(report))
                h2 { "In short" }
                (verdicts(report))
                h2 { "Targets" }
                (targets(&report.targets))
                @for work in works { (work) }
                h2 { "Who took part" }
                (participants(report))
            }
        }
    };
    Ok(page.into_string())
}

fn facts(report: &Report) -> Markup {
    let form = match report.form {
        Form::Short => "short form: coarse figures",
        Form::Full => "full form",
    };
    html! {
        @if report.rounds_done < report.rounds {
            p class="bad" { "Unfinished: " (report.rounds_done) " of " (report.rounds) " rounds were done." }
        }
        p { (report.started) ", " (report.rounds_done) " interleaved rounds in " (format!("{:.0}", report.seconds)) " s, " (form) "." }
        p { code { (report.command_in_words()) } }
        p { (report.machine) }
        @for note in &report.placement.notes { p { (note) } }
        p {
            "Figures are minimum / median / maximum of the rounds; ratios are taken round by round, ours over theirs."
            @for (kind, text) in [(Kind::Ours, "ours"), (Kind::Peer, "peers"), (Kind::Custom, "from a file"), (Kind::Floor, "floor")] {
                span class="chip" style=(format!("background:{}", css(kind))) {} (text)
            }
        }
    }
}

fn css(kind: Kind) -> String {
    let colour = colour(kind);
    format!("rgb({},{},{})", colour.0, colour.1, colour.2)
}

/// What a reader must know who reads nothing else: the bars, the defeats, what is missing, whether it can be believed.
fn verdicts(report: &Report) -> Markup {
    let count = |verdict| report.targets.iter().filter(|target| target.verdict == verdict).count();
    let failed: Vec<_> = report.checks.iter().filter(|check| !check.passed).collect();
    let (lost, to_less): (Vec<_>, Vec<_>) =
        defeats(report).into_iter().partition(|defeat| defeat.does_as_much);
    html! {
        ul {
            li {
                (count(Verdict::Reached)) " targets reached, " (count(Verdict::Missed)) " missed, "
                (count(Verdict::NotMeasured)) " not measured by this run."
            }
            @for defeat in &lost { li class="lost" { (told(defeat)) } }
            @if lost.is_empty() { li { "No other proxy that does as much beats ours in any figure of this run." } }
            @for missing in &report.missing { li { "Not run: " (missing.topology) ": " (missing.reason) } }
            @if failed.is_empty() {
                li { "All " (report.checks.len()) " self-checks passed: no reply was wrong, and neither load nor backend was the bottleneck." }
            }
            @for check in failed { li class="bad" { "SELF-CHECK FAILED: " (check.name) ": " (check.text) } }
        }
        @if !to_less.is_empty() {
            details {
                summary {
                    (to_less.len()) " more by proxies that do less: bytes where ours reads requests, or fewer proxies on the way"
                }
                ul { @for defeat in &to_less { li class="lost" { (told(defeat)) } } }
            }
        }
        details {
            summary { "Self-checks" }
            ul { @for check in &report.checks { li { (check.name) ": " (check.text) } } }
        }
    }
}

/// A defeat in one line; the ratios are ours over theirs.
fn told(defeat: &Defeat<'_>) -> Markup {
    html! {
        span class="bad" { (defeat.peer) " beats " (defeat.ours) } " at " (defeat.work) ": ours over its "
        @for (at, ratio) in defeat.ratios.iter().enumerate() {
            @if at > 0 { ", " }
            (worded(&ratio.figure)) " " (ratio.value)
        }
    }
}

fn targets(targets: &[Target]) -> Markup {
    html! {
        table id="targets" {
            tr { th { "" } th.text { "what" } th.text { "ours" } th.text { "against" } th { "measured" } th { "at most" } th { "" } }
            @for target in targets {
                tr {
                    td { (target.id) } td.text { (target.text) } td.text { (target.ours) }
                    td.text { (target.against.as_deref().unwrap_or("itself")) }
                    td { @match target.value { Some(value) => (value), None => "-" } }
                    td { (bar(target)) }
                    @match target.verdict {
                        Verdict::Reached => td.good { "reached" },
                        Verdict::Missed => td.bad { "missed" },
                        Verdict::NotMeasured => td.open { "not measured" },
                    }
                }
            }
        }
    }
}

/// A bar, without the unit of a ratio.
pub(super) fn bar(target: &Target) -> String {
    match &*target.unit {
        "1" => target.bar.to_string(),
        "" => target.bar.to_string(),
        unit => format!("{} {unit}", shown(target.bar)),
    }
}

// === One work ===

/// The name of a figure for people.
fn worded(name: &str) -> String {
    name.replace('_', " ")
}

fn section(report: &Report, work: &Work) -> Result<Markup, Failure> {
    let plots =
        work.headline.iter().map(|name| bar_plot(report, work, name)).collect::<Result<Vec<_>, _>>()?;
    let percentiles = percentile_plot(report, work)?;
    Ok(html! {
        h2 id=(work.name) { (work.label) }
        p { (work.description) }
        @for plot in plots.into_iter().flatten() { (plot) }
        @if let Some(plot) = percentiles { h3 { "Latency by percentile" } (PreEscaped(plot)) }
        (ratios(report, work))
        // What the plots leave out is what a reader of these looks for.
        details open[matches!(&*work.name, names::FLOOD | names::CHURN)] {
            summary { "All figures" }
            div class="scroll" { (figures(report, work)) (processes(report, work)) }
        }
    })
}

/// Rows of a work, in the order in which topologies are shown.
fn rows<'a>(report: &'a Report, work: &'a Work) -> impl Iterator<Item = (&'a str, Kind, &'a Row)> {
    report.topologies.iter().filter_map(|topology| {
        let row = report.row(&topology.name, &work.name)?;
        Some((&*topology.name, topology.kind, row))
    })
}

fn bar_plot(report: &Report, work: &Work, name: &str) -> Result<Option<Markup>, Failure> {
    let found = |row: &Row| row.figures.get(name).and_then(|figure| figure.spread);
    let drawn: Vec<Bar<'_>> = rows(report, work)
        .filter_map(|(label, kind, row)| Some(Bar { label, kind, spread: found(row)? }))
        .collect();
    let unit = rows(report, work).find_map(|(_, _, row)| row.figures.get(name).map(described));
    let Some((unit, _)) = unit.filter(|_| !drawn.is_empty()) else { return Ok(None) };
    let svg = bars(&unit, &drawn)?;
    Ok(Some(html! { h3 { (worded(name)) } (PreEscaped(svg)) }))
}

/// The axis' text, and which way is better.
fn described(figure: &Figure) -> (String, Better) {
    let direction = match figure.better {
        Better::Lower => "less is better",
        Better::Higher => "more is better",
        Better::Neither => "a fact of the run",
    };
    (format!("{} ({direction})", figure.unit), figure.better)
}

fn percentile_plot(report: &Report, work: &Work) -> Result<Option<String>, Failure> {
    let median = |row: &Row, name: &str| Some(row.figures.get(name)?.spread?.median);
    let drawn: Vec<Curve<'_>> = rows(report, work)
        .filter_map(|(label, kind, row)| {
            let values = PERCENTILES.iter().map(|(_, name)| median(row, name)).collect::<Option<_>>()?;
            Some(Curve { label, kind, values })
        })
        .collect();
    if drawn.is_empty() {
        return Ok(None);
    }
    curves("us", &PERCENTILES.map(|(shown, _)| shown), &drawn).map(Some)
}

/// Ours over each other topology.
fn ratios(report: &Report, work: &Work) -> Markup {
    let of_work = || report.ratios.iter().filter(|ratio| ratio.work == work.name);
    html! {
        @if of_work().next().is_some() {
            details open {
                summary { "Ratios, ours over theirs" }
                table {
                    tr { th { "ours" } th.text { "over" } th.text { "figure" } th { "ratio" } th { "" } }
                    @for ratio in of_work() {
                        tr {
                            td { (ratio.ours) } td.text { (ratio.peer) } td.text { (worded(&ratio.figure)) } td { (ratio.value) }
                            @match ratio.winner {
                                Winner::Ours => td.good { "ours" },
                                Winner::Peer => td.bad { (ratio.peer) },
                                Winner::Open => td.open { "open" },
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Names of all figures that any row of the work has.
fn names_of(report: &Report, work: &Work) -> Vec<String> {
    let mut names: Vec<String> = work.headline.clone();
    for (_, _, row) in rows(report, work) {
        let others = row.figures.keys().filter(|name| !work.headline.contains(name));
        names.extend(others.filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
    }
    names
}

fn figures(report: &Report, work: &Work) -> Markup {
    let names = names_of(report, work);
    html! {
        table {
            tr { th { "topology" } @for name in &names { th { (worded(name)) } } }
            @for (label, kind, row) in rows(report, work) {
                tr class=[(kind == Kind::Ours).then_some("ours")] {
                    td { (label) }
                    @for name in &names { td { (cell(row.figures.get(name))) } }
                }
            }
        }
    }
}

fn processes(report: &Report, work: &Work) -> Markup {
    html! {
        table {
            tr { th { "topology" } th.text { "process" } th.text { "figure" } th { "" } }
            @for (label, _, row) in rows(report, work) {
                @for process in &row.processes {
                    @for (name, figure) in &process.figures {
                        tr { td { (label) } td.text { (process.process) } td.text { (worded(name)) } td { (cell(Some(figure))) } }
                    }
                }
            }
        }
    }
}

fn cell(figure: Option<&Figure>) -> String {
    let spread = figure.and_then(|figure| figure.spread);
    spread.map_or_else(
        || "-".to_owned(),
        |spread| format!("{} / {} / {}", shown(spread.min), shown(spread.median), shown(spread.max)),
    )
}

fn participants(report: &Report) -> Markup {
    html! {
        table {
            tr { th { "topology" } th.text { "what it is" } th.text { "processes" } }
            @for topology in &report.topologies {
                tr class=[(topology.kind == Kind::Ours).then_some("ours")] {
                    td { (topology.name) }
                    td.text { (topology.label) ". " (topology.description) }
                    td.text { (topology.processes.join(", ")) }
                }
            }
        }
        table {
            tr { th { "program" } th.text { "version" } }
            @for program in &report.programs { tr { td { (program.name) } td.text { (program.version) } } }
        }
    }
}

#[cfg(test)]
mod tests;
