//! What the workers know of the mesh: immutable, shared, replaced as a whole.
//!
//! Built by [`crate::store::Store`] on the control thread and handed over by [`crate::publish`]. All tables are
//! persistent: two snapshots share what did not change between them, and cloning one costs a few reference
//! counts. Lookups borrow their keys and allocate nothing.
//!
//! - [`Snapshot`]: lookups of workloads, services, policies and routes.
//! - [`resolve`]: where a connection goes (`Snapshot::resolve` and its two halves); `gateway`: by way of whom.
//! - [`endpoint`]: the choice among the endpoints of a service; `chooser`: what the caller says about it.
//! - [`waypoint`]: what a waypoint does with a connection.
//! - [`dump`]: the JSON of `/config_dump`.

mod chooser;
mod demand;
pub mod dump;
pub mod endpoint;
mod gateway;
mod keys;
#[cfg(test)]
mod network_tests;
pub mod resolve;
#[cfg(test)]
mod resolve_tests;
mod routes;
mod table;
pub mod telemetry;
mod traffic;
mod vip_blocks;
pub mod waypoint;
mod workloads;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use l7::authz::PolicySet;
use l7::ir::{HttpRoute, Labels, MeshWide, TrafficPolicy};
use l7::router::Router;
use model::{NamespacedHostname, Service, Visibility, Workload};
use smallvec::SmallVec;

pub use chooser::{Among, Balancer, Chooser, Load};
pub use endpoint::Endpoint;
pub(crate) use keys::{AddressKey, PolicySetKey};
use keys::{AddressQuery, HostQuery, PolicySetQuery};
pub use resolve::{Client, Destination, Refusal, Route, RouteKind, Target, Transport};
pub(crate) use routes::ServiceRoutes;
pub use telemetry::TelemetryTable;
pub use traffic::Governed;
pub(crate) use vip_blocks::VipBlocks;
pub use waypoint::{Asked, Served, ServedHttp, ServedTcp, TcpWay, WaypointConfig};
pub(crate) use workloads::Workloads;

/// A persistent map with the hasher of this crate.
pub(crate) type Map<K, V> =
    imbl::GenericHashMap<K, V, foldhash::fast::RandomState, imbl::shared_ptr::DefaultSharedPtr>;

/// One in nearly every case.
pub(crate) type Few<T> = SmallVec<[T; 1]>;

/// The state of the mesh at one moment.
#[derive(Clone, Default)]
pub struct Snapshot {
    pub(crate) generation: u64,
    pub(crate) workloads: Workloads,
    /// Workloads that have gone so far.
    pub(crate) removals: u64,
    /// Those of the node that the store belongs to, by uid.
    pub(crate) local_workloads: Map<Arc<str>, Arc<Workload>>,
    pub(crate) services: Map<NamespacedHostname, Arc<ServiceEntry>>,
    /// Oldest first.
    pub(crate) services_by_host: Map<Arc<str>, Few<NamespacedHostname>>,
    /// Oldest first; single addresses only.
    pub(crate) services_by_vip: Map<AddressKey, Few<NamespacedHostname>>,
    pub(crate) vip_blocks: VipBlocks,
    /// By `namespace/name`.
    pub(crate) policies: Map<Arc<str>, PolicyEntry>,
    /// By `namespace/request_authentication/name`.
    pub(crate) token_rules: Map<Arc<str>, Arc<TokenRules>>,
    /// One compiled set for all workloads that the same policies govern.
    pub(crate) policy_sets: Map<PolicySetKey, PolicySetEntry>,
    /// What the waypoint that this is made for enforces, by destination; `None` is whatever is addressed by its own
    /// address.
    pub(crate) fronted: Map<Option<NamespacedHostname>, PolicySetKey>,
    /// By the service whose traffic they govern.
    pub(crate) routes: Map<NamespacedHostname, Arc<ServiceRoutes>>,
    /// By the service whose traffic they concern: one for each kind of client.
    pub(crate) traffic: Map<NamespacedHostname, Few<Arc<TrafficPolicy>>>,
    /// By the uid of the workload.
    pub(crate) labels: Map<Arc<str>, Arc<Labels>>,
    pub(crate) mesh: MeshWide,
    pub(crate) telemetry: Arc<TelemetryTable>,
    /// Keys asked for on demand that the control plane has answered for.
    pub(crate) answered: Map<Arc<str>, ()>,
    pub(crate) stale: Option<SystemTime>,
    /// Only where the control plane speaks Envoy's resources.
    pub(crate) waypoint: Option<Arc<WaypointConfig>>,
}

/// A service and the workloads behind it.
#[derive(Debug, Clone)]
pub struct ServiceEntry {
    pub service: Arc<Service>,
    /// In no particular order.
    pub endpoints: imbl::Vector<Endpoint>,
    /// No endpoint has more capacity; may be more than any has.
    pub(crate) capacity_max: u32,
}

/// A policy as it arrived, with whom it concerns.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub scope: PolicyScope,
    pub policy: Arc<l7::ir::AuthorizationPolicy>,
}

/// Rules for the tokens of requests as they arrived, with whom they concern.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRules {
    pub scope: PolicyScope,
    pub rules: Arc<l7::ir::RequestAuthentication>,
}

/// The policies of one name: at most one of each of the two types in which policies travel.
#[derive(Debug, Clone, Default)]
pub(crate) struct PolicyEntry {
    pub(crate) connection: Option<Arc<Policy>>,
    pub(crate) request: Option<Arc<Policy>>,
}

#[derive(Clone)]
pub(crate) struct PolicySetEntry {
    pub(crate) set: Arc<PolicySet>,
    /// Workloads that the set governs.
    pub(crate) users: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyScope {
    /// Every workload.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads that name it in `authorization_policies`.
    Workload,
}

impl Snapshot {
    /// Rises by one with each snapshot of a store; 0 is the empty one, before anything was received.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When this state was written to disk, if it is from there and the control plane has not answered since.
    pub fn stale_since(&self) -> Option<SystemTime> {
        self.stale
    }

    // --- Workloads ---

    pub fn workload_by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.by_uid(uid)
    }

    /// The workload that owns an address. Of several, the pod is preferred, then the one that takes HBONE;
    /// one in the host's network is never found.
    pub fn workload_by_address(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.by_address(network, ip)
    }

    /// The workload that a node agent speaks of.
    pub fn workload_by_name(
        &self,
        namespace: &str,
        name: &str,
        service_account: Option<&str>,
    ) -> Option<&Arc<Workload>> {
        self.workloads.by_name(namespace, name, service_account)
    }

    /// Rises with each workload that goes, so that whoever keeps something of workloads sees whether to look for what has
    /// lost its own.
    pub fn workload_removals(&self) -> u64 {
        self.removals
    }

    /// In no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// Those of the node that the snapshot is made for, in no particular order.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.local_workloads.values()
    }

    // --- Services ---

    pub fn service(&self, namespace: &str, hostname: &str) -> Option<&Arc<ServiceEntry>> {
        self.services.get(&HostQuery { namespace, hostname })
    }

    /// The service of a host name as a client of a namespace sees it: its own namespace's first, then the
    /// canonical one, then the oldest.
    pub fn service_by_host(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<ServiceEntry>> {
        self.preferred(self.services_by_host.get(hostname)?, client_namespace)
    }

    /// All services of a host name, oldest first, of every namespace and visibility.
    pub fn services_of_host(&self, hostname: &str) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        let keys = self.services_by_host.get(hostname).into_iter().flatten();
        keys.filter_map(|key| self.services.get(key))
    }

    /// The service that owns a virtual address, as a client of a namespace sees it. A single address goes before
    /// a block that covers it.
    pub fn service_by_vip(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: &str,
    ) -> Option<&Arc<ServiceEntry>> {
        let single = self.services_by_vip.get(&AddressQuery { network, ip });
        if let Some(entry) = single.and_then(|keys| self.preferred(keys, client_namespace)) {
            return Some(entry);
        }
        let mut first_found = None;
        // From the longest prefix to the shortest; the client's own namespace beats a longer prefix.
        for keys in self.vip_blocks.covering(network, ip) {
            let Some(entry) = self.preferred(keys, client_namespace) else { continue };
            if &*entry.service.key.namespace == client_namespace {
                return Some(entry);
            }
            first_found = first_found.or(Some(entry));
        }
        first_found
    }

    /// All services of a virtual address, of every namespace and visibility: those of the single address, then those of
    /// blocks that cover it, the longest prefix first.
    pub fn services_of_vip<'a>(
        &'a self,
        network: &'a str,
        ip: IpAddr,
    ) -> impl Iterator<Item = &'a Arc<ServiceEntry>> {
        let single = self.services_by_vip.get(&AddressQuery { network, ip }).into_iter().flatten();
        let blocks = self.vip_blocks.covering(network, ip).flatten();
        single.chain(blocks).filter_map(|key| self.services.get(key))
    }

    /// Whether some service has this virtual address, be it visible to whom it may.
    pub fn has_vip(&self, network: &str, ip: IpAddr) -> bool {
        self.services_by_vip.contains_key(&AddressQuery { network, ip })
            || self.vip_blocks.covering(network, ip).next().is_some()
    }

    /// In no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.services.values()
    }

    fn preferred(&self, keys: &[NamespacedHostname], client_namespace: &str) -> Option<&Arc<ServiceEntry>> {
        let mut canonical = None;
        let mut first = None;
        for entry in keys.iter().filter_map(|key| self.services.get(key)) {
            let service = &entry.service;
            let own_namespace = &*service.key.namespace == client_namespace;
            if own_namespace {
                return Some(entry);
            }
            if service.visibility == Visibility::Namespace {
                continue;
            }
            if service.canonical {
                canonical = canonical.or(Some(entry));
            }
            first = first.or(Some(entry));
        }
        canonical.or(first)
    }

    // --- Policies ---

    /// In no particular order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values().flat_map(PolicyEntry::iter)
    }

    /// The compiled policies that govern a workload of this snapshot. The same set, by address, as long as none of
    /// them changes. A workload that is not of this snapshot is denied everything.
    pub fn policies_for(&self, workload: &Workload) -> Arc<PolicySet> {
        let query =
            PolicySetQuery { namespace: &workload.namespace, names: &workload.authorization_policies };
        match self.policy_sets.get(&query) {
            Some(entry) => Arc::clone(&entry.set),
            None => Arc::new(PolicySet::deny_all("the workload is not known")),
        }
    }

    /// The compiled policies of a waypoint for a destination: a service, or with `None` whatever is addressed by its own
    /// address. The same set, by address, as long as none of them changes. `None` where they have not been told (yet).
    pub fn waypoint_policies(&self, destination: Option<&NamespacedHostname>) -> Option<&Arc<PolicySet>> {
        let key = self.fronted.get(&destination.cloned())?;
        self.policy_sets.get(key).map(|entry| &entry.set)
    }

    // --- Routes ---

    /// The router of a service port for clients of a namespace; `None` where no route governs that traffic. The same
    /// router, by address, as long as no route of the service changes.
    pub fn routes_for(
        &self,
        service: &NamespacedHostname,
        port: u16,
        client_namespace: &str,
    ) -> Option<&Arc<Router>> {
        self.routes.get(service)?.router(port, client_namespace)
    }

    /// In no particular order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<HttpRoute>> {
        self.routes.values().flat_map(|routes| routes.routes())
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("generation", &self.generation)
            .field("workloads", &self.workloads.len())
            .field("services", &self.services.len())
            .field("policies", &self.policies.len())
            .finish_non_exhaustive()
    }
}

impl PolicyEntry {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.connection.iter().chain(&self.request)
    }
}

impl ServiceEntry {
    pub fn key(&self) -> &NamespacedHostname {
        &self.service.key
    }
}
