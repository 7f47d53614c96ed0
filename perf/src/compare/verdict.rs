//! What follows from the rows: ratios by paired rounds, the targets, and whether the figures can be trusted.

use super::result::{
    Better, Check, Figure, Kind, Layer, Network, Ratio, Report, Target, Topology, Verdict, Winner, names,
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

fn paired(our: &Figure, their: &Figure) -> Option<Spread> {
    let pairs = our.samples.iter().zip(&their.samples);
    let ratios: Vec<f64> = pairs
        .filter_map(|pair| Some(((*pair.0)?, (*pair.1)?)))
        .filter(|(_, their)| *their > 0.0)
        .map(|(our, their)| our / their)
        .collect();
    Spread::of(&ratios)
}

// === Targets ===

/// What a target's figure is taken over.
#[derive(Clone, Copy)]
enum Against {
    /// The same figure of another topology, at the same work.
    Peer(&'static str),
    /// Our own figure at another work.
    Work(&'static str),
    /// Nothing: the bar is absolute. Divided by this for the reader's unit.
    Nothing(f64, &'static str),
    /// The same of the first process alone.
    OneProcess(f64, &'static str),
}

struct Bar {
    id: &'static str,
    text: &'static str,
    work: &'static str,
    figure: &'static str,
    ours: &'static str,
    against: Against,
    at_most: f64,
}

const fn bar(
    id: &'static str,
    text: &'static str,
    work: &'static str,
    figure: &'static str,
    ours: &'static str,
    against: Against,
    at_most: f64,
) -> Bar {
    Bar { id, text, work, figure, ours, against, at_most }
}

/// The bars, as they were set before anything was measured.
fn bars() -> Vec<Bar> {
    use Against::{Nothing, OneProcess, Peer, Work};
    use names::{
        BULK_DOWN_1, BULK_DOWN_8, CONNECTIONS, CPU_PER_GB, CPU_PER_REQUEST, IDLE, LATENCY_P50, LATENCY_P99,
        PRIVATE_PER_CONNECTION_SIDE, RATE, REQUESTS, REQUESTS_16, REQUESTS_MANY_RULES, RESIDENT_READY,
        SINGLE,
    };
    let (l4, reno, node) = ("corelane-l4", "corelane-l4-reno", "corelane-node-l4");
    let (l7, hop) = ("corelane-l7", "corelane-hop");
    let requests =
        |id, text, ours, peer, at_most| bar(id, text, REQUESTS, CPU_PER_REQUEST, ours, Peer(peer), at_most);
    let mut bars = vec![
        requests("P1", "a request through a pair, CPU", l4, "envoy-sidecar", 0.1),
        requests("P2", "a request through a pair, CPU", l4, "envoy-hbone", 0.65),
        bar(
            "P3",
            "a request, redirected, 16 connections, CPU",
            REQUESTS_16,
            CPU_PER_REQUEST,
            node,
            Peer("ztunnel"),
            0.7,
        ),
    ];
    for work in [BULK_DOWN_1, BULK_DOWN_8] {
        bars.push(bar(
            "P4",
            "bulk, as each sets its sockets, CPU",
            work,
            CPU_PER_GB,
            reno,
            Peer("envoy-hbone"),
            0.45,
        ));
        bars.push(bar("P4", "bulk, all sockets alike, CPU", work, CPU_PER_GB, l4, Peer("envoy-hbone"), 0.65));
        bars.push(bar("P4", "bulk, CPU", work, CPU_PER_GB, node, Peer("ztunnel"), 0.45));
    }
    bars.extend([
        bar(
            "P5",
            "a new connection per request, CPU",
            CONNECTIONS,
            CPU_PER_REQUEST,
            l4,
            Peer("envoy-hbone"),
            0.35,
        ),
        bar(
            "P5",
            "a new connection per request, CPU",
            CONNECTIONS,
            CPU_PER_REQUEST,
            node,
            Peer("ztunnel"),
            0.4,
        ),
        bar("P7", "one closed loop, median latency", SINGLE, LATENCY_P50, node, Peer("ztunnel"), 0.5),
        bar("P7", "2,000 a second, median latency", RATE, LATENCY_P50, l4, Peer("envoy-sidecar"), 0.4),
        bar("P7", "2,000 a second, p99 latency", RATE, LATENCY_P99, l4, Peer("envoy-sidecar"), 0.4),
        bar("P7", "2,000 a second, median latency", RATE, LATENCY_P50, l4, Peer("haproxy-sidecar-h2"), 0.8),
        bar("P7", "2,000 a second, p99 latency", RATE, LATENCY_P99, l4, Peer("haproxy-sidecar-h2"), 0.8),
        requests("P8", "an L7 request through a pair, CPU", l7, "envoy-sidecar-ns", 0.15),
        requests("P8", "an L7 request through a pair, CPU", l7, "haproxy-sidecar-h2-ns", 1.0),
        requests("P9", "an HTTP hop, CPU", hop, "envoy-hop-ns", 0.25),
        requests("P9", "an HTTP hop, CPU", hop, "haproxy-hop-ns", 1.1),
        requests("P9", "an HTTP hop, CPU", hop, "nginx-hop-ns", 1.1),
        bar(
            "P10",
            "1,000 routes, 100 policies, CPU",
            REQUESTS_MANY_RULES,
            CPU_PER_REQUEST,
            l7,
            Work(REQUESTS),
            1.15,
        ),
        bar(
            "P10",
            "1,000 routes at one hop, CPU",
            REQUESTS_MANY_RULES,
            CPU_PER_REQUEST,
            hop,
            Work(REQUESTS),
            1.15,
        ),
        bar(
            "P11",
            "resident when ready, one process",
            IDLE,
            RESIDENT_READY,
            node,
            OneProcess(1e6, "MB"),
            8.0,
        ),
        bar("P11", "resident when ready, one process", IDLE, RESIDENT_READY, l4, OneProcess(1e6, "MB"), 8.0),
        bar(
            "P11",
            "an idle connection, each side",
            IDLE,
            PRIVATE_PER_CONNECTION_SIDE,
            node,
            Nothing(1e3, "KB"),
            1.2,
        ),
        bar(
            "P11",
            "an idle tunnel stream, each side",
            IDLE,
            PRIVATE_PER_CONNECTION_SIDE,
            l4,
            Nothing(1e3, "KB"),
            1.0,
        ),
        requests("P14", "two workers against one, CPU", "corelane-l4-2-workers", l4, 1.05),
        requests("P14", "two workers against one, CPU", "corelane-l7-2-workers", l7, 1.05),
    ]);
    bars
}

/// All targets, measured or not.
pub(super) fn targets(report: &Report) -> Vec<Target> {
    bars().into_iter().map(|bar| bar.target(report)).collect()
}

impl Bar {
    fn target(&self, report: &Report) -> Target {
        let row = report.row(self.ours, self.work);
        let our = row.and_then(|row| row.figures.get(self.figure));
        let divided = |by: f64| {
            let scaled = move |spread: Spread| Spread {
                min: spread.min / by,
                median: spread.median / by,
                max: spread.max / by,
            };
            move |figure: &Figure| figure.spread.map(scaled)
        };
        let of = |topology: &str, work: &str| report.row(topology, work)?.figures.get(self.figure);
        let (value, against, unit) = match self.against {
            Against::Peer(peer) => {
                let value = our.and_then(|our| paired(our, of(peer, self.work)?));
                (value, Some(peer.to_owned()), "times")
            }
            Against::Work(work) => {
                let value = our.and_then(|our| paired(our, of(self.ours, work)?));
                (value, Some(format!("{} at {work}", self.ours)), "times")
            }
            Against::Nothing(by, unit) => (our.and_then(divided(by)), None, unit),
            Against::OneProcess(by, unit) => {
                let first = row.and_then(|row| row.processes.first()?.figures.get(self.figure));
                (first.and_then(divided(by)), None, unit)
            }
        };
        let verdict = match value {
            None => Verdict::NotMeasured,
            Some(value) if value.median <= self.at_most => Verdict::Reached,
            Some(_) => Verdict::Missed,
        };
        Target {
            id: self.id.to_owned(),
            text: self.text.to_owned(),
            work: self.work.to_owned(),
            figure: self.figure.to_owned(),
            ours: self.ours.to_owned(),
            against,
            value,
            bar: self.at_most,
            unit: unit.to_owned(),
            verdict,
        }
    }
}

// === Checks ===

/// A load that takes so much of its CPU while the proxies leave some of theirs measures itself.
const LOAD_SHARE_MAX: f64 = 0.97;
const PROXY_SHARE_MIN: f64 = 0.9;
/// Without a proxy there must be so many times as many requests as with one.
const HEADROOM_MIN: f64 = 1.2;

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
        if let (Some(load), Some(proxies)) = (median(names::LOAD_CPU_SHARE), median(names::PROXY_CPU_SHARE))
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
        if let (Some(bare), Some(own)) = (bare, median(rate))
            && bare < own * HEADROOM_MIN
        {
            near.push(format!("{} at {}: {own:.0}/s, {bare:.0}/s without a proxy", row.topology, row.work));
        }
    }
    let check = |name: &str, fine: &str, found: Vec<String>| Check {
        name: name.to_owned(),
        passed: found.is_empty(),
        text: if found.is_empty() { fine.to_owned() } else { found.join("; ") },
    };
    vec![
        check("load", "the load's CPU never was what limited the proxies", starved),
        check("headroom", "without a proxy there are always more requests than with one", near),
    ]
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

    #[test]
    fn every_bar_names_topologies_and_works_that_exist() {
        let names: Vec<_> = super::super::peers::all().into_iter().map(|spec| spec.name).collect();
        let works: Vec<_> = super::super::work::ALL.iter().map(|work| work.name()).collect();
        for bar in bars() {
            assert!(names.iter().any(|name| name == bar.ours), "{}", bar.ours);
            assert!(works.contains(&bar.work), "{}", bar.work);
            match bar.against {
                Against::Peer("ztunnel") | Against::Nothing(..) | Against::OneProcess(..) => {}
                Against::Peer(peer) => assert!(names.iter().any(|name| name == peer), "{peer}"),
                Against::Work(work) => assert!(works.contains(&work), "{work}"),
            }
        }
    }
}
