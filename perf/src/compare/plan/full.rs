//! What the full form measures where: data.
//!
//! A work is done only where a target or a comparison needs it: every topology with every work would take hours.

use super::super::result::names::{
    BULK_DOWN_1, BULK_DOWN_8, BULK_UP_1, BULK_UP_8, CHURN, CONNECTIONS, FLOOD, GRPC_STREAMS, GRPC_UNARY,
    HANDSHAKES, IDLE, RATE, REQUESTS, REQUESTS_16, REQUESTS_MANY_RULES, SINGLE,
};

/// Topologies of the full form, each with its works. Both sides of every target are here.
#[rustfmt::skip] // a table
pub(super) const FULL: &[(&str, &[&str])] = &[
    // On loopback: the floors, the tunnel and what is compared with it.
    ("none", &[REQUESTS, RATE, SINGLE, CONNECTIONS, BULK_DOWN_1]),
    ("relay-pair", &[REQUESTS, RATE, SINGLE, CONNECTIONS, BULK_DOWN_1]),
    ("envoy-sidecar", &[REQUESTS, RATE, CONNECTIONS, BULK_DOWN_1, IDLE]),
    ("envoy-sidecar-plain-stats", &[REQUESTS]),
    ("envoy-l4", &[REQUESTS, BULK_DOWN_1]),
    ("envoy-hbone", &[REQUESTS, RATE, SINGLE, CONNECTIONS, BULK_DOWN_1, BULK_DOWN_8, BULK_UP_1, BULK_UP_8, HANDSHAKES, FLOOD, IDLE]),
    ("haproxy-sidecar-h2", &[REQUESTS, RATE, CONNECTIONS, BULK_DOWN_1, IDLE]),
    ("haproxy-l4", &[REQUESTS, BULK_DOWN_1]),
    ("corelane-l4", &[REQUESTS, RATE, SINGLE, CONNECTIONS, BULK_DOWN_1, BULK_DOWN_8, BULK_UP_1, BULK_UP_8, HANDSHAKES, FLOOD, IDLE]),
    ("corelane-l4-reno", &[BULK_DOWN_1, BULK_DOWN_8, BULK_UP_1, BULK_UP_8]),
    ("corelane-l4-epoll", &[REQUESTS]),
    ("corelane-l4-2-workers", &[REQUESTS, CONNECTIONS]),
    // In namespaces: whole nodes and what is compared with them.
    ("none-ns", &[REQUESTS, REQUESTS_16, RATE, SINGLE, CONNECTIONS, BULK_DOWN_1, GRPC_UNARY, GRPC_STREAMS]),
    ("envoy-sidecar-ns", &[REQUESTS, RATE, SINGLE, CONNECTIONS, BULK_DOWN_1, REQUESTS_MANY_RULES, CHURN, IDLE]),
    ("envoy-sidecar-h2-ns", &[REQUESTS, GRPC_UNARY, GRPC_STREAMS, FLOOD]),
    ("envoy-hbone-ns", &[REQUESTS, REQUESTS_16, SINGLE, CONNECTIONS, BULK_DOWN_1, BULK_DOWN_8]),
    ("envoy-waypoint-ns", &[REQUESTS, RATE]),
    ("envoy-hop-ns", &[REQUESTS, REQUESTS_MANY_RULES]),
    ("haproxy-sidecar-h2-ns", &[REQUESTS, RATE, CONNECTIONS, BULK_DOWN_1, REQUESTS_MANY_RULES, GRPC_UNARY, GRPC_STREAMS, FLOOD, IDLE]),
    ("haproxy-hop-ns", &[REQUESTS, REQUESTS_MANY_RULES]),
    ("nginx-hop-ns", &[REQUESTS]),
    ("corelane-node-l4", &[REQUESTS, REQUESTS_16, RATE, SINGLE, CONNECTIONS, BULK_DOWN_1, BULK_DOWN_8, IDLE]),
    ("corelane-l7", &[REQUESTS, RATE, SINGLE, CONNECTIONS, BULK_DOWN_1, REQUESTS_MANY_RULES, GRPC_UNARY, GRPC_STREAMS, CHURN, FLOOD, IDLE]),
    ("corelane-l7-log", &[REQUESTS]),
    ("corelane-l7-2-workers", &[REQUESTS]),
    ("corelane-waypoint", &[REQUESTS, RATE]),
    ("corelane-hop", &[REQUESTS, REQUESTS_MANY_RULES]),
];

/// What a topology of a file does in the full form.
const OF_OTHERS: &[&str] =
    &[REQUESTS, REQUESTS_16, RATE, SINGLE, CONNECTIONS, BULK_DOWN_1, BULK_DOWN_8, IDLE];

/// Works that the full form does with a topology.
pub(super) fn full(topology: &str) -> &'static [&'static str] {
    FULL.iter().find(|(name, _)| *name == topology).map_or(OF_OTHERS, |(_, works)| works)
}

/// Whether the full form has it.
pub(super) fn has(topology: &str) -> bool {
    FULL.iter().any(|(name, _)| *name == topology)
}
