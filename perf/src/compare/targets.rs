//! The targets: bars that were set before anything was measured, and whether a run reached them.

use super::result::{Figure, Report, Target, Verdict, names};
use super::verdict::paired;
use crate::statistics::Spread;

use Against::{Nothing, OneProcess, Peer, Work};
use names::{
    BULK_DOWN_1, BULK_DOWN_8, CHURN, CHURN_OVER_QUIET, CONNECTIONS, CPU_PER_GB, CPU_PER_REQUEST, FLOOD,
    FLOOD_FAILURES, FLOOD_GROWTH, FLOOD_WORST, HANDSHAKE_OVER_BOUND, HANDSHAKES, IDLE, LATENCY_P50,
    LATENCY_P99, PRIVATE_PER_CONNECTION_SIDE, RATE, REQUESTS, REQUESTS_16, REQUESTS_MANY_RULES,
    RESIDENT_READY, SINGLE,
};

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
#[rustfmt::skip] // a table
const BARS: &[Bar] = &[
    bar("P1", "a request through a pair, CPU", REQUESTS, CPU_PER_REQUEST, "corelane-l4", Peer("envoy-sidecar"), 0.1),
    bar("P2", "a request through a pair, CPU", REQUESTS, CPU_PER_REQUEST, "corelane-l4", Peer("envoy-hbone"), 0.65),
    bar("P3", "a request, redirected, 16 connections, CPU", REQUESTS_16, CPU_PER_REQUEST, "corelane-node-l4", Peer("ztunnel"), 0.7),
    bar("P4", "bulk, as each sets its sockets, CPU", BULK_DOWN_1, CPU_PER_GB, "corelane-l4-reno", Peer("envoy-hbone"), 0.45),
    bar("P4", "bulk, all sockets alike, CPU", BULK_DOWN_1, CPU_PER_GB, "corelane-l4", Peer("envoy-hbone"), 0.65),
    bar("P4", "bulk, CPU", BULK_DOWN_1, CPU_PER_GB, "corelane-node-l4", Peer("ztunnel"), 0.45),
    bar("P4", "bulk, as each sets its sockets, CPU", BULK_DOWN_8, CPU_PER_GB, "corelane-l4-reno", Peer("envoy-hbone"), 0.45),
    bar("P4", "bulk, all sockets alike, CPU", BULK_DOWN_8, CPU_PER_GB, "corelane-l4", Peer("envoy-hbone"), 0.65),
    bar("P4", "bulk, CPU", BULK_DOWN_8, CPU_PER_GB, "corelane-node-l4", Peer("ztunnel"), 0.45),
    bar("P5", "a new connection per request, CPU", CONNECTIONS, CPU_PER_REQUEST, "corelane-l4", Peer("envoy-hbone"), 0.35),
    bar("P5", "a new connection per request, CPU", CONNECTIONS, CPU_PER_REQUEST, "corelane-node-l4", Peer("ztunnel"), 0.4),
    bar("P6", "a full handshake, CPU over that of its cryptography", HANDSHAKES, HANDSHAKE_OVER_BOUND, "corelane-l4", Nothing(1.0, "times"), 1.11),
    bar("P7", "one closed loop, median latency", SINGLE, LATENCY_P50, "corelane-node-l4", Peer("ztunnel"), 0.5),
    bar("P7", "2,000 a second, median latency", RATE, LATENCY_P50, "corelane-l4", Peer("envoy-sidecar"), 0.4),
    bar("P7", "2,000 a second, p99 latency", RATE, LATENCY_P99, "corelane-l4", Peer("envoy-sidecar"), 0.4),
    bar("P7", "2,000 a second, median latency", RATE, LATENCY_P50, "corelane-l4", Peer("haproxy-sidecar-h2"), 0.8),
    bar("P7", "2,000 a second, p99 latency", RATE, LATENCY_P99, "corelane-l4", Peer("haproxy-sidecar-h2"), 0.8),
    bar("P8", "an L7 request through a pair, CPU", REQUESTS, CPU_PER_REQUEST, "corelane-l7", Peer("envoy-sidecar-ns"), 0.15),
    bar("P8", "an L7 request through a pair, CPU", REQUESTS, CPU_PER_REQUEST, "corelane-l7", Peer("haproxy-sidecar-h2-ns"), 1.0),
    bar("P9", "an HTTP hop, CPU", REQUESTS, CPU_PER_REQUEST, "corelane-hop", Peer("envoy-hop-ns"), 0.25),
    bar("P9", "an HTTP hop, CPU", REQUESTS, CPU_PER_REQUEST, "corelane-hop", Peer("haproxy-hop-ns"), 1.1),
    bar("P9", "an HTTP hop, CPU", REQUESTS, CPU_PER_REQUEST, "corelane-hop", Peer("nginx-hop-ns"), 1.1),
    bar("P10", "1,000 routes, 100 policies, CPU", REQUESTS_MANY_RULES, CPU_PER_REQUEST, "corelane-l7", Work(REQUESTS), 1.15),
    bar("P10", "1,000 routes at one hop, CPU", REQUESTS_MANY_RULES, CPU_PER_REQUEST, "corelane-hop", Work(REQUESTS), 1.15),
    bar("P11", "resident when ready, one process", IDLE, RESIDENT_READY, "corelane-node-l4", OneProcess(1e6, "MB"), 8.0),
    bar("P11", "resident when ready, one process", IDLE, RESIDENT_READY, "corelane-l4", OneProcess(1e6, "MB"), 8.0),
    bar("P11", "an idle connection, each side", IDLE, PRIVATE_PER_CONNECTION_SIDE, "corelane-node-l4", Nothing(1e3, "KB"), 1.2),
    bar("P11", "an idle L7 connection, each side", IDLE, PRIVATE_PER_CONNECTION_SIDE, "corelane-l7", Nothing(1e3, "KB"), 1.2),
    bar("P11", "an idle tunnel stream, each side", IDLE, PRIVATE_PER_CONNECTION_SIDE, "corelane-l4", Nothing(1e3, "KB"), 1.0),
    bar("P12", "p99 while routes and endpoints change, over p99 while they do not", CHURN, CHURN_OVER_QUIET, "corelane-l7", Nothing(1.0, "times"), 1.05),
    bar("P14", "two workers against one, CPU", REQUESTS, CPU_PER_REQUEST, "corelane-l4-2-workers", Peer("corelane-l4"), 1.05),
    bar("P14", "two workers against one, CPU", REQUESTS, CPU_PER_REQUEST, "corelane-l7-2-workers", Peer("corelane-l7"), 1.05),
    bar("floods", "a neighbour's p99 in the worst flood of requests, over its quiet one", FLOOD, FLOOD_WORST, "corelane-l7", Nothing(1.0, "times"), 2.0),
    bar("floods", "a neighbour's p99 in the worst flood of a tunnel, over its quiet one", FLOOD, FLOOD_WORST, "corelane-l4", Nothing(1.0, "times"), 2.0),
    bar("floods", "floods of requests in which a neighbour is not answered", FLOOD, FLOOD_FAILURES, "corelane-l7", Nothing(1.0, ""), 0.0),
    bar("floods", "floods of a tunnel in which a neighbour is not answered", FLOOD, FLOOD_FAILURES, "corelane-l4", Nothing(1.0, ""), 0.0),
    bar("floods", "what a process grows in a flood of requests", FLOOD, FLOOD_GROWTH, "corelane-l7", Nothing(1_048_576.0, "MiB"), 8.0),
    bar("floods", "what a process grows in a flood of a tunnel", FLOOD, FLOOD_GROWTH, "corelane-l4", Nothing(1_048_576.0, "MiB"), 8.0),
];

/// Topologies and works that the targets are made of.
#[cfg(test)]
pub(super) fn needed() -> impl Iterator<Item = (&'static str, &'static str)> {
    BARS.iter().flat_map(|bar| {
        let other = match bar.against {
            Peer(peer) => Some((peer, bar.work)),
            Work(work) => Some((bar.ours, work)),
            Nothing(..) | OneProcess(..) => None,
        };
        [Some((bar.ours, bar.work)), other].into_iter().flatten()
    })
}

/// All targets, measured or not.
pub(super) fn targets(report: &Report) -> Vec<Target> {
    BARS.iter().map(|bar| bar.target(report)).collect()
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
            Peer(peer) => {
                let value = our.and_then(|our| paired(our, of(peer, self.work)?));
                (value, Some(peer.to_owned()), "times")
            }
            Work(work) => {
                let value = our.and_then(|our| paired(our, of(self.ours, work)?));
                (value, Some(format!("{} at {work}", self.ours)), "times")
            }
            Nothing(by, unit) => (our.and_then(divided(by)), None, unit),
            OneProcess(by, unit) => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_names_topologies_and_works_that_exist() {
        let names: Vec<_> = super::super::peers::all().into_iter().map(|spec| spec.name).collect();
        let works: Vec<_> = super::super::work::ALL.iter().map(|work| work.name()).collect();
        for bar in BARS {
            assert!(names.iter().any(|name| name == bar.ours), "{}", bar.ours);
            assert!(works.contains(&bar.work), "{}", bar.work);
            match bar.against {
                Peer("ztunnel") | Nothing(..) | OneProcess(..) => {}
                Peer(peer) => assert!(names.iter().any(|name| name == peer), "{peer}"),
                Work(work) => assert!(works.contains(&work), "{work}"),
            }
        }
    }
}
