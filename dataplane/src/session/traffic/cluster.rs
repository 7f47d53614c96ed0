//! One governed port of a service: the choice among its endpoints, by what this worker knows of them.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use l7::balance::{HashKey, HashSource, Turns, hash_key};
use l7::ir::{Balancing, HashOn, RequestHead, TrafficSettings};
use l7::outlier::{Answer, Outliers};
use model::Workload;
use xds::snapshot::{Among, Balancer, Chooser};

use super::ClusterName;
use super::limits::Limits;
use super::tables::Tables;
use crate::net::CONNECT_TIMEOUT;
use crate::session::load::EndpointLoads;
use crate::session::node::Node;
use crate::session::state::NodeState;

#[derive(Debug)]
pub(in crate::session) struct Cluster {
    name: ClusterName,
    settings: TrafficSettings,
    pub(super) limits: Limits,
    /// What is under way to each endpoint; counted only where endpoints are chosen by it.
    pub(super) loads: Rc<EndpointLoads>,
    turns: Cell<Option<Turns>>,
    tables: RefCell<Tables>,
    outliers: Option<RefCell<Outliers>>,
    /// The generation of a state, and how many endpoints it has.
    members: Cell<(u64, usize)>,
}

impl Cluster {
    pub(super) fn new(name: ClusterName, settings: TrafficSettings, workers: NonZeroU32) -> Self {
        Self {
            limits: Limits::new(&settings.limits, workers),
            loads: Rc::default(),
            turns: Cell::default(),
            tables: RefCell::default(),
            outliers: settings.outliers.map(|policy| RefCell::new(Outliers::new(policy, Instant::now()))),
            members: Cell::default(),
            name,
            settings,
        }
    }

    pub(super) fn name(&self) -> &ClusterName {
        &self.name
    }

    pub(super) fn settings(&self) -> &TrafficSettings {
        &self.settings
    }

    /// How long it may take to reach an endpoint, where that is not as long as it always may.
    pub(in crate::session) fn connect_timeout(&self) -> Option<Duration> {
        let limit = Duration::from_millis(self.settings.limits.connect_timeout_ms?.get().into());
        (limit != CONNECT_TIMEOUT).then_some(limit)
    }

    pub(super) fn counts_load(&self) -> bool {
        self.settings.balancing == Balancing::LeastRequest
    }

    /// What a request is hashed by; `of_route` says it where the cluster does not.
    pub(in crate::session) fn key_of(
        &self,
        request: &RequestHead<'_>,
        of_route: &[HashOn],
        client: IpAddr,
        random: u64,
    ) -> HashKey {
        let Balancing::Hash(policy) = &self.settings.balancing else { return HashKey::default() };
        let on = if policy.on.is_empty() { of_route } else { &policy.on };
        hash_key(on, HashSource { headers: request.headers, query: request.query, client }, random)
    }

    /// The same for a connection that carries no requests: only its client's address can be looked at.
    pub(in crate::session) fn key_of_connection(&self, client: IpAddr) -> Option<u64> {
        let Balancing::Hash(policy) = &self.settings.balancing else { return None };
        let by_client = policy.on.is_empty() || policy.on.contains(&HashOn::SourceIp);
        let source = HashSource { headers: &[], query: None, client };
        by_client.then(|| hash_key(&[HashOn::SourceIp], source, 0).hash).flatten()
    }

    /// What one choice is made by. `requested` is the address that the client asked for.
    pub(in crate::session) fn pick(
        &self,
        state: &NodeState,
        hash: Option<u64>,
        requested: IpAddr,
    ) -> Pick<'_> {
        let leaves_out = self.outliers.as_ref().is_some_and(|outliers| {
            let mut outliers = outliers.borrow_mut();
            if outliers.out() == 0 {
                return false;
            }
            outliers.advance(Instant::now());
            outliers.out() > 0 && !outliers.is_panic(self.member_count(state))
        });
        Pick { cluster: self, hash, requested, generation: state.snapshot.generation(), leaves_out }
    }

    /// Enters how something ended at an endpoint.
    pub(in crate::session) fn note(&self, state: &NodeState, workload: &Workload, answer: Answer) {
        let Some(outliers) = &self.outliers else { return };
        let mut outliers = outliers.borrow_mut();
        if !outliers.is_quiet() && self.members.get().0 != state.snapshot.generation() {
            let members: HashSet<&str, foldhash::fast::RandomState> =
                self.members_of(state).into_iter().map(|member| &*member.uid).collect();
            outliers.retain(|uid| members.contains(uid));
        }
        let is_out = outliers.note(&workload.uid, answer, Instant::now(), || self.member_count(state));
        if is_out {
            let (service, port) = (&self.name.service, self.name.port);
            tracing::info!(%service, port, endpoint = %workload.uid, "an endpoint fails and is left out");
        }
    }

    fn members_of<'s>(&self, state: &'s NodeState) -> Vec<&'s Arc<Workload>> {
        let ClusterName { service, port, subset, consumer } = &self.name;
        let namespace = consumer.as_deref().unwrap_or_default();
        let members = state.snapshot.members(service, *port, subset.as_deref(), namespace);
        self.members.set((state.snapshot.generation(), members.len()));
        members
    }

    fn member_count(&self, state: &NodeState) -> usize {
        let (generation, count) = self.members.get();
        if generation == state.snapshot.generation() { count } else { self.members_of(state).len() }
    }
}

/// One choice among the endpoints of a cluster.
#[derive(Debug)]
pub(in crate::session) struct Pick<'a> {
    cluster: &'a Cluster,
    hash: Option<u64>,
    requested: IpAddr,
    generation: u64,
    /// Endpoints that fail are.
    leaves_out: bool,
}

impl Pick<'_> {
    pub(in crate::session) fn chooser<'c>(&'c self, node: &'c Node) -> Chooser<'c> {
        let chooser = match &self.cluster.settings.balancing {
            Balancing::Unset => node.chooser(),
            Balancing::LeastRequest => self.cluster.loads.chooser(node.random()),
            _ => Chooser::random(node.random()),
        };
        chooser.balanced(self)
    }

    fn in_turn(&self, among: &Among<'_, '_>) -> Option<usize> {
        let turns = &self.cluster.turns;
        let seed = || l7::balance::xxh64(among.client().uid.as_bytes(), self.generation);
        let mut own = turns.get().unwrap_or_else(|| Turns::begin(seed()));
        let weight = |index| among.is_open(index).then(|| among.weight(index)).flatten();
        let taken = own.next(among.entry().endpoints.len(), among.weight_max(), weight);
        turns.set(Some(own));
        taken
    }
}

impl Balancer for Pick<'_> {
    fn is_out(&self, workload: &Workload) -> bool {
        let outliers = self.cluster.outliers.as_ref().filter(|_| self.leaves_out);
        outliers.is_some_and(|outliers| outliers.borrow().is_out(&workload.uid))
    }

    fn pick(&self, among: &Among<'_, '_>) -> Option<usize> {
        match &self.cluster.settings.balancing {
            Balancing::RoundRobin => self.in_turn(among),
            Balancing::Hash(policy) => {
                self.cluster.tables.borrow_mut().find(policy.table, self.hash?, self.generation, among)
            }
            // The address of an endpoint is that endpoint; any other is the service's, behind which all are alike.
            Balancing::Passthrough => (0..among.entry().endpoints.len()).find(|index| {
                let is_asked = |it: &Arc<Workload>| it.addresses.contains(&self.requested);
                among.workload(*index).is_some_and(is_asked) && among.is_open(*index)
            }),
            Balancing::Unset | Balancing::Random | Balancing::LeastRequest => None,
        }
    }
}
