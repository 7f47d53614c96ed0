//! What follows from the rows: ratios by paired rounds, and whether the figures can be trusted.

use super::peers::MEMORY_MAX;
use super::result::{
    Better, Check, Figure, Kind, Layer, Network, Ratio, Report, Row, Topology, Winner, names,
};
use crate::statistics::Spread;

/// Each of ours over each other on the same network, for the figures that are shown first.
pub(super) fn ratios(report: &Report) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    let (ours, others): (Vec<_>, Vec<_>) =
        report.topologies.iter().partition(|topology| topology.kind == Kind::Ours);
    for work in &report.works {
        for ours in &ours {
            for peer in others.iter().filter(|peer| peer.network == ours.network) {
                let figures = work.headline.iter();
                ratios.extend(figures.filter_map(|figure| ratio(report, &work.name, figure, ours, peer)));
            }
        }
    }
    ratios
}

fn ratio(report: &Report, work: &str, figure: &str, ours: &Topology, peer: &Topology) -> Option<Ratio> {
    let of = |topology: &Topology| report.row(&topology.name, work)?.figures.get(figure);
    let (our, their) = (of(ours)?, of(peer)?);
    let value = paired(our, their)?;
    let (below, above) = match our.better {
        Better::Lower => (Winner::Ours, Winner::Peer),
        Better::Higher => (Winner::Peer, Winner::Ours),
        Better::Neither => return None,
    };
    // One round, or rounds that do not agree, decide nothing.
    let winner = if our.samples.len() < 2 || (value.min < 1.0 && value.max > 1.0) {
        Winner::Open
    } else if value.median < 1.0 {
        below
    } else {
        above
    };
    Some(Ratio {
        work: work.to_owned(),
        figure: figure.to_owned(),
        ours: ours.name.clone(),
        peer: peer.name.clone(),
        value,
        winner,
    })
}

pub(super) fn paired(our: &Figure, their: &Figure) -> Option<Spread> {
    let pairs = our.samples.iter().zip(&their.samples);
    let ratios: Vec<f64> = pairs
        .filter_map(|pair| Some(((*pair.0)?, (*pair.1)?)))
        .filter(|(_, their)| *their > 0.0)
        .map(|(our, their)| our / their)
        .collect();
    Spread::of(&ratios)
}

// === Checks ===

/// A load that takes so much of its CPU while the proxies leave some of theirs measures itself.
const LOAD_SHARE_MAX: f64 = 0.97;
const PROXY_SHARE_MIN: f64 = 0.9;
/// Without a proxy there must be so many times as many requests as with one whose CPU is not spent.
const HEADROOM_MIN: f64 = 1.2;
/// A proxy that has so much of its CPU is itself what limits the row, however much the load has left.
const PROXY_SHARE_SPENT: f64 = 0.98;
const ROUNDS_TO_JUDGE: usize = 3;

/// Whether the load generator or the backend was what limited a row.
pub(super) fn checks(report: &Report) -> Vec<Check> {
    let (mut starved, mut near) = (Vec::new(), Vec::new());
    let saturating = [names::REQUESTS, names::REQUESTS_16, names::REQUESTS_MANY_RULES, names::CONNECTIONS];
    for row in report.rows.iter().filter(|row| saturating.contains(&row.work.as_str())) {
        let Some(topology) = report.topologies.iter().find(|it| it.name == row.topology) else { continue };
        if topology.layer == Layer::None {
            continue;
        }
        let median = |name: &str| Some(row.figures.get(name)?.spread?.median);
        let proxies = median(names::PROXY_CPU_SHARE);
        if let (Some(load), Some(proxies)) = (median(names::LOAD_CPU_SHARE), proxies)
            && load > LOAD_SHARE_MAX
            && proxies < PROXY_SHARE_MIN
        {
            starved.push(format!("{} at {}: load {load:.2}, proxies {proxies:.2}", row.topology, row.work));
        }
        let floor = match topology.network {
            Network::Loopback => "none",
            Network::Namespaces => "none-ns",
        };
        let rate = names::REQUESTS_PER_SECOND;
        let bare = report.row(floor, &row.work).and_then(|row| Some(row.figures.get(rate)?.spread?.median));
        // A proxy that keeps its connections spares the backend those of the clients: there the load's share alone tells.
        if let (Some(bare), Some(own)) = (bare, median(rate))
            && row.work != names::CONNECTIONS
            && bare < own * HEADROOM_MIN
            && proxies.is_none_or(|share| share < PROXY_SHARE_SPENT)
        {
            near.push(format!("{} at {}: {own:.0}/s, {bare:.0}/s without a proxy", row.topology, row.work));
        }
    }
    let check = |name: &str, fine: &str, found: Vec<String>| Check {
        name: name.to_owned(),
        passed: found.is_empty(),
        text: if found.is_empty() { fine.to_owned() } else { found.join("; ") },
    };
    let memory = memory(report);
    let mut checks = Vec::new();
    if let Some((most, beyond)) = memory {
        let fine = format!(
            "no process of ours had more than {:.0} MiB, at most {MEMORY_MIB:.0} are allowed",
            most / MIB
        );
        checks.push(check("memory", &fine, beyond));
    }
    // A single moment of shares and rates says little on a machine with other work.
    if report.rounds_done >= ROUNDS_TO_JUDGE {
        checks.push(check("load", "the load's CPU never was what limited the proxies", starved));
        checks.push(check(
            "headroom",
            "without a proxy there are more requests, or the proxy's CPU is spent",
            near,
        ));
    }
    checks
}

const MIB: f64 = 1_048_576.0;
const MEMORY_MIB: f64 = MEMORY_MAX as f64 / MIB;

/// The most that a process of ours had, and who had more than it may.
fn memory(report: &Report) -> Option<(f64, Vec<String>)> {
    let (mut most, mut beyond) = (None::<f64>, Vec::new());
    let ours =
        |row: &&Row| report.topologies.iter().any(|it| it.name == row.topology && it.kind == Kind::Ours);
    for row in report.rows.iter().filter(ours) {
        for process in &row.processes {
            let peak = process.figures.get(names::RESIDENT_PEAK).and_then(|figure| figure.spread);
            let Some(peak) = peak.map(|spread| spread.max) else { continue };
            most = Some(most.unwrap_or(0.0).max(peak));
            if peak > MEMORY_MAX as f64 {
                beyond.push(format!(
                    "{} of {} at {}: {:.0} MiB",
                    process.process,
                    row.topology,
                    row.work,
                    peak / MIB
                ));
            }
        }
    }
    most.map(|most| (most, beyond))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rounds_that_both_have_are_paired() {
        let figure = |samples: &[Option<f64>]| Figure::new("us", Better::Lower, samples.to_vec());
        let ours = figure(&[Some(1.0), None, Some(3.0)]);
        let theirs = figure(&[Some(2.0), Some(5.0), Some(4.0)]);
        let value = paired(&ours, &theirs).unwrap();
        assert!((value.min - 0.5).abs() < 1e-9 && (value.max - 0.75).abs() < 1e-9);
        assert!(paired(&figure(&[None]), &figure(&[Some(1.0)])).is_none());
    }
}
