//! The kinds of work: names, descriptions, what of them is shown first, and which can share an instance of the proxies.

use std::time::Duration;

use super::super::hardship;
use super::super::overload;
use super::super::peers::Rules;
use super::super::result::{Work, names};
use super::{CONNECTIONS, KEEP_ALIVE_16, NEW_CONNECTION_LOOPS, RATE, REPLY_BYTES, Scale};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::compare) enum Kind {
    Requests,
    Requests16,
    Rate,
    Single,
    Connections,
    Bulk { streams: u64, up: bool },
    RequestsManyRules,
    GrpcUnary,
    GrpcStreams,
    Handshakes,
    Churn,
    Flood,
    Overload,
    Slow,
    Idle,
}

/// In the order in which they are done. Those on one instance of the proxies come together.
pub(in crate::compare) const ALL: [Kind; 18] = [
    Kind::Requests,
    Kind::Requests16,
    Kind::Rate,
    Kind::Single,
    Kind::Connections,
    Kind::Bulk { streams: 1, up: false },
    Kind::Bulk { streams: 8, up: false },
    Kind::Bulk { streams: 1, up: true },
    Kind::Bulk { streams: 8, up: true },
    Kind::Handshakes,
    Kind::Flood,
    Kind::Overload,
    Kind::Slow,
    Kind::RequestsManyRules,
    Kind::GrpcUnary,
    Kind::GrpcStreams,
    Kind::Churn,
    Kind::Idle,
];

/// Works that are done on one instance of the proxies, instance by instance. Memory varies little, and thousands of
/// connections take their time: that is done once.
pub(in crate::compare) fn instances(works: &[Kind], is_first_round: bool) -> Vec<Vec<Kind>> {
    let mut instances: Vec<Vec<Kind>> = Vec::new();
    for work in works.iter().filter(|work| is_first_round || **work != Kind::Idle) {
        match instances.last_mut() {
            Some(same) if same.iter().all(|other| other.shares_instance(*work)) => same.push(*work),
            _ => instances.push(vec![*work]),
        }
    }
    instances
}

impl Kind {
    pub(in crate::compare) fn name(self) -> &'static str {
        match self {
            Self::Requests => names::REQUESTS,
            Self::Requests16 => names::REQUESTS_16,
            Self::Rate => names::RATE,
            Self::Single => names::SINGLE,
            Self::Connections => names::CONNECTIONS,
            Self::Bulk { streams: 1, up: false } => names::BULK_DOWN_1,
            Self::Bulk { streams: _, up: false } => names::BULK_DOWN_8,
            Self::Bulk { streams: 1, up: true } => names::BULK_UP_1,
            Self::Bulk { streams: _, up: true } => names::BULK_UP_8,
            Self::RequestsManyRules => names::REQUESTS_MANY_RULES,
            Self::GrpcUnary => names::GRPC_UNARY,
            Self::GrpcStreams => names::GRPC_STREAMS,
            Self::Handshakes => names::HANDSHAKES,
            Self::Churn => names::CHURN,
            Self::Flood => names::FLOOD,
            Self::Overload => names::OVERLOAD,
            Self::Slow => names::SLOW,
            Self::Idle => names::IDLE,
        }
    }

    /// Whether both can be done on the same processes, one after the other.
    fn shares_instance(self, other: Self) -> bool {
        self.rules() == other.rules() && self != Self::Idle && other != Self::Idle
    }

    /// Takes many seconds with each topology, so it is done only where it is asked for or needed.
    pub(in crate::compare) fn is_long(self) -> bool {
        matches!(self, Self::Overload | Self::Slow)
    }

    /// What the proxies are told.
    pub(in crate::compare) fn rules(self) -> Rules {
        match self {
            Self::RequestsManyRules => Rules::Many,
            Self::GrpcUnary | Self::GrpcStreams => Rules::Grpc,
            Self::Churn => Rules::Changing,
            _ => Rules::One,
        }
    }

    pub(in crate::compare) fn facts(self, scale: &Scale) -> Work {
        let (label, description) =
            self.requests_in_words(scale).unwrap_or_else(|| self.others_in_words(scale));
        let duration = match self {
            Self::Bulk { .. } | Self::Idle => Duration::ZERO,
            Self::Flood => hardship::flood_duration(scale),
            Self::Overload => overload::duration(scale),
            _ => scale.duration,
        };
        let headline = self.headline().iter().map(|name| (*name).to_owned()).collect();
        let (name, seconds) = (self.name().to_owned(), duration.as_secs_f64());
        Work { name, label, description, seconds, headline }
    }

    /// Label and description of what an HTTP/1.1 client does, rules aside.
    fn requests_in_words(self, scale: &Scale) -> Option<(String, String)> {
        Some(match self {
            Self::Requests => (
                "requests, 64 connections".to_owned(),
                format!("{CONNECTIONS} closed loops on keep-alive connections, {REPLY_BYTES} byte replies"),
            ),
            Self::Requests16 => (
                "requests, 16 connections".to_owned(),
                format!("{KEEP_ALIVE_16} closed loops on keep-alive connections, {REPLY_BYTES} byte replies"),
            ),
            Self::Rate => (
                format!("{RATE} requests a second"),
                format!(
                    "an open loop over {CONNECTIONS} keep-alive connections, {REPLY_BYTES} byte replies; latency counts from the time at which each request is due"
                ),
            ),
            Self::Single => (
                "one connection".to_owned(),
                format!("one closed loop on one keep-alive connection, {REPLY_BYTES} byte replies"),
            ),
            Self::Connections => (
                "a connection per request".to_owned(),
                format!(
                    "{NEW_CONNECTION_LOOPS} loops: connect, one request, {REPLY_BYTES} byte reply, close"
                ),
            ),
            Self::Bulk { streams, up } => {
                let megabytes = scale.bulk_bytes >> 20;
                let way = if up { "up" } else { "down" };
                let plural = if streams == 1 { "" } else { "s" };
                (
                    format!("bulk {way}, {streams} stream{plural}"),
                    format!("{megabytes} MiB over {streams} connection{plural} at once, one body on each"),
                )
            }
            _ => return None,
        })
    }

    fn others_in_words(self, scale: &Scale) -> (String, String) {
        match self {
            Self::RequestsManyRules => (
                "requests through many rules".to_owned(),
                "as requests, through 1,000 routes and 100 policies of which the last ones fit".to_owned(),
            ),
            Self::GrpcUnary => (
                "gRPC calls".to_owned(),
                format!(
                    "64 closed loops of unary calls over 4 connections, HTTP/2 in the clear with prior knowledge to the client's proxy and from the server's, {REPLY_BYTES} byte replies"
                ),
            ),
            Self::GrpcStreams => (
                "gRPC streams".to_owned(),
                format!(
                    "as gRPC calls, but 64 bidirectional streams that stay open; a request is a message and its answer of {REPLY_BYTES} bytes"
                ),
            ),
            Self::Handshakes => (
                "full handshakes".to_owned(),
                "16 loops against the server's tunnel port: connect, full mutual TLS handshake, the first frame of HTTP/2 each way, close; beside it what the server's side of a handshake takes in memory, with rustls and aws-lc alone".to_owned(),
            ),
            Self::Churn => (
                "changes under load".to_owned(),
                format!("{RATE} requests a second over 16 connections while a route and an endpoint change ten times a second; before that the same without changes; the last change must show"),
            ),
            Self::Flood => (
                "a neighbour of floods".to_owned(),
                format!("{RATE} requests a second over 16 connections, alone and then beside a client that floods with HTTP/2, kind after kind, up to 50 connections a second, or with connections alone, one after the other; at a tunnel's port in TLS, where requests are read in the clear"),
            ),
            Self::Slow => (
                format!("{} slow clients", scale.idle),
                format!("{RATE} requests a second over 16 connections beside {} clients of a kind: those whose handshake (or head, in the clear) does not end, those who begin with half the preface of HTTP/2, and those with a body of one octet a second; how much memory one takes in the process that grows most, and how long the last of those lives that must be ended", scale.idle),
            ),
            Self::Overload => (
                "more clients than can be served".to_owned(),
                format!("clients with a connection and a request each, {} times as many a second as {NEW_CONNECTION_LOOPS} closed loops are served; each gives up after a second; goodput counts replies that came while they come; then the time until one client alone is answered as before", overload::EXCESS),
            ),
            _ => (
                format!("{} idle connections", scale.idle),
                format!("fresh processes, then {} connections with one request each, held open", scale.idle),
            ),
        }
    }

    fn headline(self) -> &'static [&'static str] {
        match self {
            Self::Bulk { .. } => &[names::CPU_PER_GB, names::GB_PER_SECOND],
            Self::Handshakes => &[
                names::CPU_PER_REQUEST,
                names::HANDSHAKE_BOUND,
                names::HANDSHAKE_OVER_BOUND,
                names::REQUESTS_PER_SECOND,
            ],
            Self::Churn => {
                &[names::CHURN_QUIET_P99, names::LATENCY_P99, names::CHURN_OVER_QUIET, names::LATENCY_P50]
            }
            Self::Flood => {
                &[names::FLOOD_WORST, names::FLOOD_FAILURES, names::FLOOD_GROWTH, names::FLOOD_QUIET_P99]
            }
            Self::Slow => &[
                names::SLOW_UNPROVED_COST,
                names::SLOW_UNPROVED_LIFE,
                names::SLOW_HALF_OPEN_COST,
                names::SLOW_HALF_OPEN_LIFE,
                names::SLOW_BODIES_COST,
                names::SLOW_BODIES_CUT,
                names::SLOW_WORST,
                names::SLOW_FAILURES,
            ],
            Self::Overload => &[
                names::OVERLOAD_LOST,
                names::OVERLOAD_RECOVERY,
                names::OVERLOAD_OFFERED,
                names::OVERLOAD_GOODPUT,
                names::OVERLOAD_REFUSED,
                names::OVERLOAD_GAVE_UP,
            ],
            Self::Idle => &[names::RESIDENT_READY, names::PRIVATE_READY, names::PRIVATE_PER_CONNECTION_SIDE],
            Self::Rate | Self::Single => {
                &[names::LATENCY_P50, names::LATENCY_P99, names::LATENCY_P999, names::CPU_PER_REQUEST]
            }
            _ => &[
                names::CPU_PER_REQUEST,
                names::REQUESTS_PER_SECOND,
                names::LATENCY_P50,
                names::LATENCY_P99,
                names::SYSTEM_CALLS_PER_REQUEST,
            ],
        }
    }
}
