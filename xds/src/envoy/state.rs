//! Everything that istiod has sent to the waypoint, read; pushes of everything are compared byte by byte, so that only
//! what changed is read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use l7::authz::PolicySet;
use l7::ir::HttpRoute;
use l7::jwt::Authenticator;
use l7::path::Normalization;
use model::NamespacedHostname;

use super::Refusal;
use super::chain::{self, Carries, Target};
use super::cluster::{Endpoints, ReadCluster, ServiceCluster, cluster};
use super::destinations::Destinations;
use super::endpoints::{Assignment, load_assignment};
use super::listener::{MAIN, MainListener, ReadListener, listener};
use super::telemetry::Told;
use crate::issuer::{Keys, Wanted};
use crate::kube::istio::KeySource;
use crate::snapshot::TcpWay;

/// What is held of istiod's resources.
#[derive(Debug, Default)]
pub(crate) struct State {
    listeners: HashMap<Box<str>, Bytes, RandomState>,
    pub(super) destinations: Destinations,
    pub(super) chains: BTreeMap<Arc<str>, HeldChain>,
    pub(super) clusters: BTreeMap<Box<str>, Held<ReadCluster>>,
    assignments: HashMap<Box<str>, Held<Arc<Assignment>>, RandomState>,
    /// What is known of the keys that are fetched.
    keys: Arc<Keys>,
    pub(super) changed: Changed,
}

/// What is to be put together anew.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub(super) chains: bool,
    /// Names of clusters that came or changed, they or their endpoints.
    pub(super) clusters: BTreeSet<Box<str>>,
}

#[derive(Debug)]
pub(super) struct Held<T> {
    bytes: Bytes,
    pub(super) value: T,
}

#[derive(Debug)]
pub(super) struct HeldChain {
    bytes: Bytes,
    pub(super) compiled: Arc<CompiledChain>,
}

/// A filter chain as it is served.
#[derive(Debug)]
pub(super) struct CompiledChain {
    pub(super) service: Option<(NamespacedHostname, u16)>,
    pub(super) policies: Arc<PolicySet>,
    pub(super) http: Option<CompiledHttp>,
    /// How its connections go on; `None` where it carries requests, or is not understood.
    pub(super) tcp: Option<Arc<TcpWay>>,
    /// What is told of its requests or connections; `None` where it is not understood.
    pub(super) told: Option<Told>,
    /// Why the chain refuses everything, where it does because it was not understood.
    pub(super) refusal: Option<Refusal>,
    /// The keys of token issuers that have to be fetched for it.
    wanted_keys: Wanted,
}

#[derive(Debug)]
pub(super) struct CompiledHttp {
    pub(super) route: Option<Arc<HttpRoute>>,
    pub(super) normalization: Normalization,
}

impl State {
    // --- Listeners ---

    pub(crate) fn upsert_listener(&mut self, name: &str, bytes: &[u8]) -> Result<(), Refusal> {
        if self.listeners.get(name).is_some_and(|held| held == bytes) {
            return Ok(());
        }
        if let ReadListener::Main(main) = listener(name, bytes)? {
            self.replace_chains(main);
        }
        self.listeners.insert(name.into(), Bytes::copy_from_slice(bytes));
        Ok(())
    }

    pub(crate) fn remove_listener(&mut self, name: &str) {
        if self.listeners.remove(name).is_some() && name == MAIN {
            self.replace_chains(MainListener { destinations: Destinations::default(), chains: Vec::new() });
        }
    }

    fn replace_chains(&mut self, main: MainListener) {
        self.changed.chains = true;
        let mut held = std::mem::take(&mut self.chains);
        for (name, bytes) in main.chains {
            let chain = match held.remove(&name) {
                Some(chain) if chain.bytes == bytes => chain,
                _ => HeldChain { compiled: Arc::new(CompiledChain::read(&name, &bytes, &self.keys)), bytes },
            };
            self.chains.insert(name, chain);
        }
        self.destinations = main.destinations;
    }

    // --- Keys of token issuers ---

    /// What has to be fetched.
    pub(crate) fn wanted_keys(&self) -> Wanted {
        let mut wanted = Wanted::new();
        for (source, pace) in self.chains.values().flat_map(|held| &held.compiled.wanted_keys) {
            let held = wanted.entry(source.clone()).or_insert(*pace);
            *held = held.for_both(*pace);
        }
        wanted
    }

    pub(crate) fn set_keys(&mut self, keys: Arc<Keys>) {
        if *self.keys == *keys {
            return;
        }
        let before = std::mem::replace(&mut self.keys, keys);
        for (name, held) in &mut self.chains {
            let mut wanted = held.compiled.wanted_keys.keys();
            let differ = wanted.any(|source| text_of(&before, source) != text_of(&self.keys, source));
            if differ {
                held.compiled = Arc::new(CompiledChain::read(name, &held.bytes, &self.keys));
            }
        }
        // Whether keys are missing is told, too.
        self.changed.chains = true;
    }

    // --- Clusters and endpoints ---

    pub(crate) fn upsert_cluster(&mut self, name: &str, bytes: &[u8]) -> Result<(), Refusal> {
        if self.clusters.get(name).is_some_and(|held| held.bytes == bytes) {
            return Ok(());
        }
        let value = cluster(name, bytes)?;
        self.changed.clusters.insert(name.into());
        self.clusters.insert(name.into(), Held { bytes: Bytes::copy_from_slice(bytes), value });
        Ok(())
    }

    pub(crate) fn remove_cluster(&mut self, name: &str) {
        if self.clusters.remove(name).is_some() {
            self.changed.clusters.insert(name.into());
        }
    }

    pub(crate) fn upsert_assignment(&mut self, name: &str, bytes: &[u8]) -> Result<(), Refusal> {
        if self.assignments.get(name).is_some_and(|held| held.bytes == bytes) {
            return Ok(());
        }
        let value = Arc::new(load_assignment(name, bytes)?);
        self.assignments.insert(name.into(), Held { bytes: Bytes::copy_from_slice(bytes), value });
        self.soil_assignment(name);
        Ok(())
    }

    pub(crate) fn remove_assignment(&mut self, name: &str) {
        if self.assignments.remove(name).is_some() {
            self.soil_assignment(name);
        }
    }

    fn soil_assignment(&mut self, name: &str) {
        let users = self.clusters.iter().filter(|(_, held)| held.value.discovers() == Some(name));
        self.changed.clusters.extend(users.map(|(name, _)| name.clone()));
    }

    /// The names of the endpoints that the clusters want.
    pub(crate) fn wanted_assignments(&self) -> BTreeSet<&str> {
        self.clusters.values().filter_map(|held| held.value.discovers()).collect()
    }

    /// The endpoints of a cluster; `None` where they have not come yet.
    pub(super) fn endpoints(&self, cluster: &ServiceCluster) -> Option<Arc<Assignment>> {
        match &cluster.endpoints {
            Endpoints::Listed(assignment) => Some(Arc::clone(assignment)),
            Endpoints::Discovered(name) => self.assignments.get(name).map(|held| Arc::clone(&held.value)),
        }
    }

    /// What was not understood or cannot be had, and is refused or left out, each with its place.
    pub(crate) fn problems(&self) -> Vec<String> {
        let chains = self.chains.iter().filter_map(|(name, held)| {
            held.compiled.refusal.as_ref().map(|refusal| format!("filter chain {name}: {refusal}"))
        });
        let endpoints = self.assignments.iter().flat_map(|(name, held)| {
            held.value.left_out.iter().map(move |refusal| format!("endpoints of {name}: {refusal}"))
        });
        let keys = self.keys.iter().filter_map(|(source, known)| known.complaint(source));
        let told = self.chains.iter().flat_map(|(name, held)| {
            let left_out = held.compiled.told.iter().flat_map(|told| &told.left_out);
            left_out.map(move |refusal| format!("telemetry of filter chain {name}: {refusal}"))
        });
        let mut problems: Vec<_> = chains.chain(endpoints).chain(keys).chain(told).collect();
        problems.sort();
        problems
    }
}

/// The keys of a source, as they are put into a rule.
fn text_of<'a>(keys: &'a Keys, source: &KeySource) -> Option<&'a Arc<str>> {
    keys.get(source).and_then(|known| known.keys.as_ref())
}

impl ReadCluster {
    /// The name of the resource that lists the endpoints, if one does.
    fn discovers(&self) -> Option<&str> {
        match self {
            Self::Service(cluster) => match &cluster.endpoints {
                Endpoints::Discovered(name) => Some(name),
                Endpoints::Listed(_) => None,
            },
            Self::Tunnel => None,
        }
    }
}

impl CompiledChain {
    /// One that is not understood refuses all that it would serve.
    fn read(name: &str, bytes: &[u8], keys: &Keys) -> Self {
        let compiled = chain::chain(bytes, name).and_then(|chain| Self::compile(chain, keys));
        compiled.unwrap_or_else(|refusal| {
            let normalization = Normalization::default();
            let http = chain::is_http(name).then_some(CompiledHttp { route: None, normalization });
            let reason = format!("filter chain {name} is not understood: {refusal}");
            let policies = Arc::new(PolicySet::deny_all(reason));
            Self {
                service: chain::service(name),
                policies,
                http,
                tcp: None,
                told: None,
                refusal: Some(refusal),
                wanted_keys: Wanted::new(),
            }
        })
    }

    fn compile(chain: chain::Chain, keys: &Keys) -> Result<Self, Refusal> {
        let set = PolicySet::compile(chain.policies).map_err(|error| Refusal::new(error.to_string()))?;
        let service = match &chain.target {
            Target::Service(service) => Some((service.service(), service.port)),
            Target::Workloads => None,
        };
        let mut wanted_keys = Wanted::new();
        let (set, http, tcp) = match chain.carries {
            Carries::Http { tokens, route, normalization } => {
                wanted_keys = tokens.as_ref().map_or(wanted_keys, |tokens| tokens.wanted.clone());
                let tokens = Authenticator::compile(tokens.map(|tokens| tokens.with(keys)).as_ref());
                (set.with_tokens(tokens), Some(CompiledHttp { route, normalization }), None)
            }
            Carries::Tcp(way) => (set, None, Some(Arc::new(way))),
        };
        let (policies, told) = (Arc::new(set), Some(chain.told));
        Ok(Self { service, policies, http, tcp, told, refusal: None, wanted_keys })
    }
}
