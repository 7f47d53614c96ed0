//! What a worker shows of its connections to operators.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::connection::Shared;
use super::node::Node;
use crate::access_log::record::{Authority, Direction};

/// Connections listed at most: the list is made on the worker, which has other things to do.
const LISTED_MAX: usize = 10_000;

impl Node {
    /// Of the snapshot that this worker decides from.
    pub fn generation(&self) -> u64 {
        self.state().snapshot.generation()
    }

    pub fn live_connections(&self) -> usize {
        self.registry.len()
    }

    /// How many live connections have been asked for again since the start because their policies changed.
    pub fn connections_asked_again(&self) -> u64 {
        self.registry.asked_again()
    }

    /// Tunnels that others have made to the pods and that are open.
    pub fn accepted_tunnels(&self) -> usize {
        self.accepted_tunnels.get()
    }

    /// The live connections with ztunnel's keys and ours, at most [`LISTED_MAX`].
    pub fn connections(&self) -> Vec<Value> {
        let mut list = Vec::new();
        self.registry.for_each(|connection| {
            if list.len() < LISTED_MAX {
                list.push(entry(self.worker.index(), connection));
            }
        });
        list
    }
}

/// `originalDst` is the address that an outbound client dialled, and the service that an inbound one named;
/// `actualDst` is the next hop, which for HBONE is the port of tunnels, and at the end the application.
fn entry(worker: usize, connection: &Shared) -> Value {
    let record = connection.record.borrow();
    let address = |address: Option<SocketAddr>| address.map(|it| it.to_string());
    let service = record.service.as_ref().map(|service| service.key.hostname.to_string());
    let counters = &connection.counters;
    // The counters are the client's view; the list is the local pod's.
    let (to_server, to_client) = (counters.sent.get(), counters.received.get());
    let (original, sent, received) = match connection.direction {
        Direction::Outbound => (address(connection.wanted.get()), to_server, to_client),
        Direction::Inbound => (service.clone(), to_client, to_server),
    };
    let authority = record.hbone_authority.as_ref().map(|authority| match authority {
        Authority::Address(it) => it.to_string(),
        Authority::Hostname(host, port) => format!("{host}:{port}"),
    });
    let across = matches!(record.hbone_authority, Some(Authority::Hostname(..)));
    let protocol = match (record.tls.is_some(), connection.direction) {
        (false, _) => "TCP",
        // Only what leaves for another network asks for a name.
        (true, Direction::Outbound) if across => "DOUBLEHBONE",
        (true, _) => "HBONE",
    };
    json!({
        "workload": &*connection.pod.uid,
        "direction": connection.direction.label(),
        "src": address(record.source.address),
        "originalDst": original,
        "actualDst": address(record.destination.address),
        "protocol": protocol,
        "hboneTarget": authority,
        "service": service,
        "srcIdentity": record.source.identity.as_ref().map(|identity| identity.uri().to_owned()),
        "dstIdentity": record.destination.identity.as_ref().map(|identity| identity.uri().to_owned()),
        "bytesSent": sent,
        "bytesReceived": received,
        "worker": worker,
    })
}
