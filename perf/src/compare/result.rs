//! What `perf compare` found, as its JSON file holds it (`docs/performance.md` shows how to read one).
//!
//! Names of topologies, works and figures are stable: they are what tables, plots and targets are made from. A reader
//! passes over figures that it does not know; [`SCHEMA`] changes when a name changes its meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::machine::Machine;
use crate::statistics::Spread;

/// Value of [`Report::schema`].
pub(crate) const SCHEMA: &str = "corelane.perf.compare/1";

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: String,
    /// The command that made it, word by word.
    pub(crate) command: Vec<String>,
    /// RFC 3339, UTC.
    pub(crate) started: String,
    pub(crate) seconds: f64,
    pub(crate) form: Form,
    /// Planned.
    pub(crate) rounds: usize,
    /// Fewer where the run ended before its time, or has not ended.
    pub(crate) rounds_done: usize,
    pub(crate) machine: Machine,
    pub(crate) placement: Placement,
    /// The programs that took part.
    pub(crate) programs: Vec<ProgramFacts>,
    /// In the order in which they were run and are to be shown.
    pub(crate) topologies: Vec<Topology>,
    /// Topologies that were asked for and could not be run.
    pub(crate) missing: Vec<Missing>,
    /// In the order in which they were run and are to be shown.
    pub(crate) works: Vec<Work>,
    /// At most one of each topology and work.
    pub(crate) rows: Vec<Row>,
    /// Each topology of ours over each other topology that stands on the same network.
    pub(crate) ratios: Vec<Ratio>,
    pub(crate) targets: Vec<Target>,
    /// What would make the figures worthless; the run fails unless all passed.
    pub(crate) checks: Vec<Check>,
}

/// How long the measurements were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Form {
    /// Shows that everything works; its figures are coarse.
    Short,
    Full,
}

/// Who runs where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Placement {
    /// The CPU of all proxies.
    pub(crate) proxies_cpu: usize,
    /// The CPU of the load generator and the backend.
    pub(crate) load_cpu: usize,
    /// Congestion control that a socket has unless its program sets another, on loopback and in the pods' namespaces.
    pub(crate) congestion_loopback: String,
    pub(crate) congestion_namespaces: String,
    /// Sentences for the reader: what is pinned, what crosses what.
    pub(crate) notes: Vec<String>,
}

/// A program of the comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProgramFacts {
    pub(crate) name: String,
    pub(crate) path: String,
    /// First line of what it says about itself.
    pub(crate) version: String,
}

/// An arrangement of proxies between the load generator and the backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Topology {
    /// The name that `--peer` takes, such as `envoy-sidecar`; unique.
    pub(crate) name: String,
    /// For people.
    pub(crate) label: String,
    pub(crate) kind: Kind,
    pub(crate) network: Network,
    /// What each of the proxies does with the bytes.
    pub(crate) layer: Layer,
    /// Its measured processes, in the order in which a request meets them.
    pub(crate) processes: Vec<String>,
    /// What is set up, in a sentence or two.
    pub(crate) description: String,
}

/// Whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// What any proxy is measured from: nothing between, or relays without a protocol.
    Floor,
    Ours,
    Peer,
    /// From `--peer-file`.
    Custom,
}

/// What joins the processes. Ratios are taken only between topologies on the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Network {
    /// All on 127.0.0.1 of a network namespace that the run made.
    Loopback,
    /// Client and server in two namespaces joined by a router; the client's connections are redirected to its proxy.
    Namespaces,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Layer {
    /// No proxy at all.
    None,
    /// Carries bytes; sees no requests.
    L4,
    /// Reads, decides and routes each request.
    L7,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Missing {
    pub(crate) topology: String,
    pub(crate) reason: String,
}

/// A kind of work; the same bytes are asked of every topology.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Work {
    /// The name that `--work` takes; see [`names`].
    pub(crate) name: String,
    pub(crate) label: String,
    /// What is done, with its sizes, in a sentence.
    pub(crate) description: String,
    /// Seconds of one measurement, 0 where an amount is moved instead.
    pub(crate) seconds: f64,
    /// The figures that are shown first, in this order.
    pub(crate) headline: Vec<String>,
}

/// All figures of a topology at one work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) topology: String,
    pub(crate) work: String,
    /// Of all proxies together, and of the load; by name, see [`names`].
    pub(crate) figures: BTreeMap<String, Figure>,
    /// Of each measured process, in the order of [`Topology::processes`].
    pub(crate) processes: Vec<ProcessRow>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProcessRow {
    pub(crate) process: String,
    pub(crate) figures: BTreeMap<String, Figure>,
}

/// One figure over the rounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// Such as `us`, `s/GB`, `1/s`, `bytes`, `1` for a share.
    pub(crate) unit: String,
    pub(crate) better: Better,
    /// By round; `None` where a round has none.
    pub(crate) samples: Vec<Option<f64>>,
    /// Of the samples there are.
    pub(crate) spread: Option<Spread>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Better {
    Lower,
    Higher,
    /// A fact about the run, neither good nor bad.
    Neither,
}

/// A figure of ours over that of another topology, round by round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ratio {
    pub(crate) work: String,
    pub(crate) figure: String,
    pub(crate) ours: String,
    pub(crate) peer: String,
    /// Over the rounds in which both have a sample: what drifts between rounds falls out.
    pub(crate) value: Spread,
    pub(crate) winner: Winner,
}

/// By the median of the ratios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Winner {
    Ours,
    Peer,
    /// The rounds do not agree: 1 lies between the least and the greatest ratio.
    Open,
}

/// One bar that was set beforehand, and whether this run reached it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    /// Such as `P1`; several bars of one target have the same.
    pub(crate) id: String,
    pub(crate) text: String,
    pub(crate) work: String,
    pub(crate) figure: String,
    pub(crate) ours: String,
    /// The topology that it is measured against; `None` where the bar is absolute.
    pub(crate) against: Option<String>,
    /// The ratio or the figure itself; `None` unless measured.
    pub(crate) value: Option<Spread>,
    /// At most this.
    pub(crate) bar: f64,
    pub(crate) unit: String,
    pub(crate) verdict: Verdict,
}

/// By the median.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Reached,
    Missed,
    /// This run had not what it takes.
    NotMeasured,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) passed: bool,
    /// What was seen.
    pub(crate) text: String,
}

/// Names of works and figures.
pub(crate) mod names {
    /// Closed loops on keep-alive connections: as many requests as the proxies can take.
    pub(crate) const REQUESTS: &str = "requests";
    /// The same on fewer connections.
    pub(crate) const REQUESTS_16: &str = "requests-16";
    /// As [`REQUESTS`], through many routes and policies.
    pub(crate) const REQUESTS_MANY_RULES: &str = "requests-many-rules";
    /// gRPC calls of one message each way.
    pub(crate) const GRPC_UNARY: &str = "grpc-unary";
    /// gRPC calls that stay open; a request is a message that is answered.
    pub(crate) const GRPC_STREAMS: &str = "grpc-streams";
    /// A fixed rate; latency counts from the scheduled time.
    pub(crate) const RATE: &str = "rate";
    /// One closed loop on one connection.
    pub(crate) const SINGLE: &str = "single";
    /// A connection for each request.
    pub(crate) const CONNECTIONS: &str = "connections";
    pub(crate) const BULK_DOWN_1: &str = "bulk-down-1";
    pub(crate) const BULK_DOWN_8: &str = "bulk-down-8";
    pub(crate) const BULK_UP_1: &str = "bulk-up-1";
    pub(crate) const BULK_UP_8: &str = "bulk-up-8";
    /// Tunnels that are opened with a full handshake and closed; a request is a tunnel.
    pub(crate) const HANDSHAKES: &str = "handshakes";
    /// A fixed rate while configuration and pods change.
    pub(crate) const CHURN: &str = "churn";
    /// A fixed rate while another client floods.
    pub(crate) const FLOOD: &str = "flood";
    /// More clients than can be served.
    pub(crate) const OVERLOAD: &str = "overload";
    /// Clients that say next to nothing.
    pub(crate) const SLOW: &str = "slow";
    /// Connections that are held open and do nothing, on fresh processes.
    pub(crate) const IDLE: &str = "idle";

    pub(crate) const REQUESTS_PER_SECOND: &str = "requests_per_second";
    pub(crate) const LATENCY_P50: &str = "latency_p50_us";
    pub(crate) const LATENCY_P90: &str = "latency_p90_us";
    pub(crate) const LATENCY_P99: &str = "latency_p99_us";
    pub(crate) const LATENCY_P999: &str = "latency_p999_us";
    pub(crate) const LATENCY_MAX: &str = "latency_max_us";
    pub(crate) const CPU_PER_REQUEST: &str = "cpu_us_per_request";
    pub(crate) const CPU_PER_GB: &str = "cpu_s_per_gb";
    pub(crate) const GB_PER_SECOND: &str = "gb_per_second";
    pub(crate) const SWITCHES_PER_REQUEST: &str = "context_switches_per_request";
    pub(crate) const SYSTEM_CALLS_PER_REQUEST: &str = "system_calls_per_request";
    /// What rustls and aws-lc take in memory for the server's side of a handshake.
    pub(crate) const HANDSHAKE_BOUND: &str = "handshake_bound_us";
    /// CPU of the proxies over that bound.
    pub(crate) const HANDSHAKE_OVER_BOUND: &str = "cpu_over_bound";
    /// p99 before the changes; over it, p99 while things change.
    pub(crate) const CHURN_QUIET_P99: &str = "quiet_p99_us";
    pub(crate) const CHURN_OVER_QUIET: &str = "p99_over_quiet";
    pub(crate) const CHANGES_PER_SECOND: &str = "changes_per_second";
    /// A neighbour's p99 without a flood; under each, with the growth of the process that grew most; the greatest p99 over
    /// the one without.
    pub(crate) const FLOOD_QUIET_P99: &str = "no_flood_p99_us";
    pub(crate) const FLOOD_RECONNECTS_P99: &str = "reconnects_p99_us";
    pub(crate) const FLOOD_RECONNECTS_GROWTH: &str = "reconnects_growth_bytes";
    /// How often the client that only reconnects did so.
    pub(crate) const FLOOD_RECONNECTS_RATE: &str = "reconnects_per_second";
    pub(crate) const FLOOD_RESETS_P99: &str = "rapid_resets_p99_us";
    pub(crate) const FLOOD_RESETS_GROWTH: &str = "rapid_resets_growth_bytes";
    pub(crate) const FLOOD_CONTINUATION_P99: &str = "continuation_p99_us";
    pub(crate) const FLOOD_CONTINUATION_GROWTH: &str = "continuation_growth_bytes";
    pub(crate) const FLOOD_PINGS_P99: &str = "pings_p99_us";
    pub(crate) const FLOOD_PINGS_GROWTH: &str = "pings_growth_bytes";
    pub(crate) const FLOOD_SETTINGS_P99: &str = "settings_p99_us";
    pub(crate) const FLOOD_SETTINGS_GROWTH: &str = "settings_growth_bytes";
    pub(crate) const FLOOD_EMPTY_DATA_P99: &str = "empty_data_p99_us";
    pub(crate) const FLOOD_EMPTY_DATA_GROWTH: &str = "empty_data_growth_bytes";
    pub(crate) const FLOOD_SMALL_DATA_P99: &str = "small_data_p99_us";
    pub(crate) const FLOOD_SMALL_DATA_GROWTH: &str = "small_data_growth_bytes";
    pub(crate) const FLOOD_REFERENCES_P99: &str = "held_references_p99_us";
    pub(crate) const FLOOD_REFERENCES_GROWTH: &str = "held_references_growth_bytes";
    pub(crate) const FLOOD_WORST: &str = "worst_p99_over_quiet";
    /// Floods in which a neighbour was not answered as it should be.
    pub(crate) const FLOOD_FAILURES: &str = "floods_with_failures";
    /// Most that any process grew under any flood, resident.
    pub(crate) const FLOOD_GROWTH: &str = "flood_growth_bytes";
    /// What closed loops get; how many came over that; how many of those who came got their reply while they came, and
    /// what lacks to the peak, as a share of it.
    pub(crate) const OVERLOAD_PEAK: &str = "peak_per_second";
    pub(crate) const OVERLOAD_OFFERED: &str = "offered_over_peak";
    pub(crate) const OVERLOAD_GOODPUT: &str = "goodput_per_second";
    pub(crate) const OVERLOAD_LOST: &str = "goodput_lost";
    /// Shares of those who came.
    pub(crate) const OVERLOAD_REFUSED: &str = "refused_share";
    pub(crate) const OVERLOAD_GAVE_UP: &str = "gave_up_share";
    /// From when nobody comes any more until one client is answered as before.
    pub(crate) const OVERLOAD_RECOVERY: &str = "recovery_us";
    /// Private memory for each client whose handshake or head does not end, whose HTTP/2 does not begin, whose body trickles;
    /// how long the last of those lived that must be ended, from its first octet.
    pub(crate) const SLOW_UNPROVED_COST: &str = "unproved_bytes_per_connection";
    pub(crate) const SLOW_UNPROVED_LIFE: &str = "unproved_life_us";
    pub(crate) const SLOW_HALF_OPEN_COST: &str = "half_open_bytes_per_connection";
    pub(crate) const SLOW_HALF_OPEN_LIFE: &str = "half_open_life_us";
    pub(crate) const SLOW_BODIES_COST: &str = "slow_bodies_bytes_per_connection";
    /// Slow bodies that were cut: none should be.
    pub(crate) const SLOW_BODIES_CUT: &str = "slow_bodies_cut";
    /// A neighbour's p99 alone; the worst beside them, over that; kinds beside which it was not answered.
    pub(crate) const SLOW_QUIET_P99: &str = "without_slow_p99_us";
    pub(crate) const SLOW_WORST: &str = "worst_p99_over_alone";
    pub(crate) const SLOW_FAILURES: &str = "slow_with_failures";
    /// CPU time of all proxies over the time that passed: 1 is a whole core.
    pub(crate) const PROXY_CPU_SHARE: &str = "proxy_cpu_share";
    /// The same of load generator and backend together.
    pub(crate) const LOAD_CPU_SHARE: &str = "load_cpu_share";
    /// Resident and private memory of fresh processes, and with the idle connections.
    pub(crate) const RESIDENT_READY: &str = "resident_ready_bytes";
    pub(crate) const PRIVATE_READY: &str = "private_ready_bytes";
    pub(crate) const RESIDENT_IDLE: &str = "resident_idle_bytes";
    pub(crate) const PRIVATE_IDLE: &str = "private_idle_bytes";
    /// Most that a process ever had, resident, up to the end of this work.
    pub(crate) const RESIDENT_PEAK: &str = "resident_peak_bytes";
    /// What an idle connection adds to all proxies together.
    pub(crate) const PRIVATE_PER_CONNECTION: &str = "private_bytes_per_connection";
    /// The same divided by the number of proxies that it passes.
    pub(crate) const PRIVATE_PER_CONNECTION_SIDE: &str = "private_bytes_per_connection_and_side";
}

impl Report {
    /// Reads a file of this schema.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Failure> {
        let report: Self = serde_json::from_slice(json)?;
        if report.schema == SCHEMA {
            Ok(report)
        } else {
            Err(format!("the file says schema {:?}, this program reads {SCHEMA:?}", report.schema).into())
        }
    }

    /// The command without the path of the program.
    pub(crate) fn command_in_words(&self) -> String {
        let mut words = self.command.clone();
        if let Some(first) = words.first_mut() {
            *first = first.rsplit('/').next().unwrap_or_default().to_owned();
        }
        words.join(" ")
    }

    pub(crate) fn row(&self, topology: &str, work: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.topology == topology && row.work == work)
    }
}

impl Figure {
    pub(crate) fn new(unit: &str, better: Better, samples: Vec<Option<f64>>) -> Self {
        let present: Vec<f64> = samples.iter().copied().flatten().collect();
        Self { unit: unit.to_owned(), better, spread: Spread::of(&present), samples }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_passes_over_rounds_without_a_sample() {
        let figure = Figure::new("us", Better::Lower, vec![Some(3.0), None, Some(1.0)]);
        let spread = figure.spread.unwrap();
        assert!((spread.min - 1.0).abs() < f64::EPSILON && (spread.median - 2.0).abs() < f64::EPSILON);
        assert!(Figure::new("us", Better::Lower, vec![None]).spread.is_none());
    }

    #[test]
    fn a_file_of_another_schema_is_refused() {
        let report = Report {
            schema: SCHEMA.to_owned(),
            command: vec!["perf".to_owned()],
            started: String::new(),
            seconds: 0.0,
            form: Form::Short,
            rounds: 1,
            rounds_done: 1,
            machine: Machine::read(),
            placement: Placement {
                proxies_cpu: 0,
                load_cpu: 1,
                congestion_loopback: "reno".to_owned(),
                congestion_namespaces: "reno".to_owned(),
                notes: Vec::new(),
            },
            programs: Vec::new(),
            topologies: Vec::new(),
            missing: Vec::new(),
            works: Vec::new(),
            rows: Vec::new(),
            ratios: Vec::new(),
            targets: Vec::new(),
            checks: Vec::new(),
        };
        let text = serde_json::to_string(&report).unwrap();
        assert!(Report::parse(text.as_bytes()).is_ok());
        let other = text.replace(SCHEMA, "corelane.perf.compare/0");
        assert!(Report::parse(other.as_bytes()).unwrap_err().to_string().contains("/0"));
    }
}
