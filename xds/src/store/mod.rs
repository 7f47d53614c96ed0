//! The state of the mesh on the control thread: takes resources, yields snapshots.
//!
//! The store works on a [`Snapshot`] of its own whose tables are persistent: [`Store::snapshot`] hands out a clone,
//! and the next change copies only the few nodes on its path. So a delta costs what changed, not what exists.
//!
//! Invariants:
//! - Resources may come in any order: an endpoint waits for its service, a workload for its policies.
//! - A service update keeps the endpoints; a service removal leaves them waiting.
//! - A workload that names a policy which is not held is denied everything, until the policy comes.
//! - Compiled policy sets and routers are brought up to date before a snapshot is handed out, and those that did not
//!   change keep their address, so that a worker sees by pointer comparison whom a change concerns.

mod endpoints;
#[cfg(test)]
pub(crate) mod fixtures;
mod fronted;
mod policies;
mod routes;
mod services;
mod telemetry;
#[cfg(test)]
mod tests;
mod traffic;
mod waypoint;
mod workloads;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use l7::ir::MeshWide;
use prost_types::Any;

use crate::decode::{self, Address, Interner};
use crate::delta::Sink;
use crate::envoy::Serving;
use crate::proto::{
    ADDRESS_TYPE, AUTHORIZATION_POLICY_TYPE, AUTHORIZATION_TYPE, HTTP_ROUTE_TYPE, LOAD_ASSIGNMENT_TYPE,
    MESH_WIDE_TYPE, REQUEST_AUTHENTICATION_TYPE, TELEMETRY_TYPE, TRAFFIC_POLICY_TYPE, WAYPOINT_POLICIES_TYPE,
    WORKLOAD_LABELS_TYPE, WORKLOAD_TYPE,
};
use crate::snapshot::Snapshot;

use endpoints::WaitingEndpoints;
use policies::PolicyKind;
use waypoint::is_envoy;

/// Takes the resources of a delta stream (as its [`Sink`]).
pub struct Store {
    state: Snapshot,
    /// The node whose workloads are local; empty: none are.
    node: Arc<str>,
    /// The network that the node is in, as the control plane names it.
    network: Arc<str>,
    interner: Interner,
    waiting: WaitingEndpoints,
    policies: policies::Dirty,
    routes: routes::Routes,
    /// Only where the control plane speaks Envoy's resources.
    envoy: Option<Box<Serving>>,
    changed: bool,
}

impl Store {
    /// One that belongs to no node.
    pub fn new() -> Self {
        Self::of_node(Arc::from(""))
    }

    /// One whose snapshots tell which workloads run on `node`.
    pub fn of_node(node: Arc<str>) -> Self {
        Self {
            state: Snapshot::default(),
            node,
            network: Arc::from(""),
            interner: Interner::new(),
            waiting: WaitingEndpoints::default(),
            policies: policies::Dirty::default(),
            routes: routes::Routes::default(),
            envoy: None,
            changed: false,
        }
    }

    /// Names the network that a waypoint is in; the addresses that Envoy's resources tell are of that network.
    pub fn set_network(&mut self, network: Arc<str>) {
        self.network = network;
    }

    /// The state as of now, if it changed since the last call.
    pub fn snapshot(&mut self) -> Option<Arc<Snapshot>> {
        self.note_envoy();
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.compile_policies();
        self.compile_routes();
        self.serve_envoy();
        self.state.generation += 1;
        Some(Arc::new(self.state.clone()))
    }

    /// Marks the state as one of the past, or as current again.
    pub fn set_stale(&mut self, since: Option<SystemTime>) {
        if self.state.stale != since {
            self.state.stale = since;
            self.changed = true;
        }
    }

    /// The working state. Its compiled policies may be behind; for lookups on the control thread.
    pub fn state(&self) -> &Snapshot {
        &self.state
    }

    /// Takes a workload or a service.
    pub fn upsert_address(&mut self, address: Address) {
        match address {
            Address::Workload(workload) => self.upsert_workload(workload),
            Address::Service(service) => self.upsert_service(service),
        }
    }

    /// A name of an address is the uid of a workload, else the key of a service.
    fn remove_address(&mut self, name: &str) {
        if !self.remove_workload(name) {
            self.remove_service(name);
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("state", &self.state)
            .field("changed", &self.changed)
            .finish_non_exhaustive()
    }
}

impl Sink for Store {
    fn upsert(&mut self, type_url: &str, name: &str, body: &Any) -> Result<(), String> {
        if is_envoy(type_url) {
            return self.upsert_envoy(type_url, name, body).map_err(|refusal| refusal.to_string());
        }
        self.decode_and_upsert(type_url, name, &body.value).map_err(|error| error.to_string())
    }

    fn remove(&mut self, type_url: &str, name: &str) {
        match type_url {
            ADDRESS_TYPE | WORKLOAD_TYPE => self.remove_address(name),
            AUTHORIZATION_TYPE => self.remove_policy(PolicyKind::Connection, name),
            AUTHORIZATION_POLICY_TYPE => self.remove_policy(PolicyKind::Request, name),
            REQUEST_AUTHENTICATION_TYPE => self.remove_token_rules(name),
            HTTP_ROUTE_TYPE => self.remove_route(name),
            WAYPOINT_POLICIES_TYPE => self.remove_fronted(name),
            TRAFFIC_POLICY_TYPE => self.remove_traffic_policy(name),
            WORKLOAD_LABELS_TYPE => self.remove_labels(name),
            MESH_WIDE_TYPE => self.set_mesh_wide(MeshWide::default()),
            TELEMETRY_TYPE => self.remove_telemetry(name),
            _ => self.remove_envoy(type_url, name),
        }
    }

    fn followed(&self, type_url: &str) -> Option<BTreeSet<&str>> {
        (type_url == LOAD_ASSIGNMENT_TYPE).then(|| self.wanted_assignments())
    }

    fn answered(&mut self, _type_url: &str, key: &str) {
        if !self.state.is_answered(key) {
            self.state.answered.insert(self.interner.text(key), ());
            self.changed = true;
        }
    }

    fn shared_name(&self, type_url: &str, name: &str) -> Option<Arc<str>> {
        let is_address = matches!(type_url, ADDRESS_TYPE | WORKLOAD_TYPE);
        is_address.then(|| self.state.workload_by_uid(name).map(|workload| Arc::clone(&workload.uid)))?
    }
}

impl Store {
    fn decode_and_upsert(
        &mut self,
        type_url: &str,
        name: &str,
        bytes: &[u8],
    ) -> Result<(), decode::DecodeError> {
        match type_url {
            ADDRESS_TYPE => {
                let address = decode::address(name, bytes, &mut self.interner)?;
                self.upsert_address(address);
            }
            WORKLOAD_TYPE => {
                let workload = decode::bare_workload(name, bytes, &mut self.interner)?;
                self.upsert_workload(workload);
            }
            AUTHORIZATION_TYPE => {
                self.upsert_policy(PolicyKind::Connection, name, decode::authorization(name, bytes)?);
            }
            AUTHORIZATION_POLICY_TYPE => {
                self.upsert_policy(PolicyKind::Request, name, decode::authorization_policy(name, bytes)?);
            }
            REQUEST_AUTHENTICATION_TYPE => {
                self.upsert_token_rules(name, decode::request_authentication(name, bytes)?);
            }
            HTTP_ROUTE_TYPE => self.upsert_route(name, decode::http_route(name, bytes)?),
            WAYPOINT_POLICIES_TYPE => {
                let (destination, names) = decode::waypoint_policies(name, bytes)?;
                self.upsert_fronted(destination, names);
            }
            TRAFFIC_POLICY_TYPE => self.upsert_traffic_policy(decode::traffic_policy(name, bytes)?),
            WORKLOAD_LABELS_TYPE => self.upsert_labels(name, decode::workload_labels(bytes)?),
            MESH_WIDE_TYPE => self.set_mesh_wide(decode::mesh_wide(bytes)?),
            TELEMETRY_TYPE => {
                let (subject, telemetry) = decode::telemetry(name, bytes)?;
                self.upsert_telemetry(subject, telemetry);
            }
            // The client hands over only what it subscribed to.
            _ => {}
        }
        Ok(())
    }
}
