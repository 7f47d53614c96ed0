//! How to choose where several endpoints would do: what the caller of a decision knows of them.

use std::fmt;
use std::sync::Arc;

use l7::ir::Labels;
use model::Workload;

use super::endpoint::{Endpoint, Random, Request};
use super::{Map, ServiceEntry};

/// How to choose where several would do.
#[derive(Clone, Copy)]
pub struct Chooser<'a> {
    seed: u64,
    load: Option<&'a dyn Load>,
    balancer: Option<&'a dyn Balancer>,
    avoid: &'a [Arc<Workload>],
    prefer: Option<&'a str>,
    within: Option<Within<'a>>,
}

/// A part of a service's endpoints.
#[derive(Debug, Clone, Copy)]
pub(super) struct Within<'a> {
    /// All of them an endpoint must have; `None` where the part is not known: then none belongs to it.
    pub(super) wanted: Option<&'a Labels>,
    pub(super) labels: &'a Map<Arc<str>, Arc<Labels>>,
}

impl Within<'_> {
    pub(super) fn has(&self, workload: &Workload) -> bool {
        let Some(wanted) = self.wanted else { return false };
        let own = self.labels.get(&workload.uid);
        wanted.iter().all(|(key, value)| own.is_some_and(|own| own.get(key) == Some(value)))
    }
}

/// Live connections or requests to a workload, as far as the asking worker knows.
pub trait Load {
    fn connections(&self, workload: &Workload) -> u32;
}

/// What a worker knows of the endpoints of one service, and in which way it takes one of them.
pub trait Balancer {
    /// Whether the endpoint is left out for now.
    fn is_out(&self, workload: &Workload) -> bool;

    /// The index of the one to take; `None` leaves it to chance, or to the load.
    fn pick(&self, among: &Among<'_, '_>) -> Option<usize>;
}

/// The endpoints of a service, as a [`Balancer`] sees them.
pub struct Among<'r, 'c> {
    request: &'r Request<'r, 'c>,
    /// Of the endpoints that may be taken none is nearer.
    rank: usize,
}

impl<'r, 'c> Among<'r, 'c> {
    pub(super) fn new(request: &'r Request<'r, 'c>) -> Self {
        Self { rank: request.best_rank(), request }
    }

    pub fn entry(&self) -> &Arc<ServiceEntry> {
        self.request.entry
    }

    /// Whose connection it is.
    pub fn client(&self) -> &Workload {
        self.request.client
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    /// No endpoint weighs more.
    pub fn weight_max(&self) -> u32 {
        self.entry().capacity_max
    }

    pub fn workload(&self, index: usize) -> Option<&Arc<Workload>> {
        self.entry().endpoints.get(index).map(|endpoint| &endpoint.workload)
    }

    /// The weight of an endpoint that serves the port and is near enough, be it open or not.
    pub fn weight(&self, index: usize) -> Option<u32> {
        let endpoint = self.near(index)?;
        self.request.standing(endpoint).ok().map(|_| endpoint.workload.capacity)
    }

    /// Whether it may be taken now: it is neither out nor avoided.
    pub fn is_open(&self, index: usize) -> bool {
        self.near(index).is_some_and(|endpoint| self.request.eligible(endpoint).is_some())
    }

    fn near(&self, index: usize) -> Option<&Endpoint> {
        let endpoint = self.entry().endpoints.get(index)?;
        (self.request.rank(&endpoint.workload) == Some(self.rank)).then_some(endpoint)
    }
}

impl fmt::Debug for Among<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Among").field("service", self.entry().key()).finish_non_exhaustive()
    }
}

impl<'a> Chooser<'a> {
    /// Chooses at random, weighted by capacity.
    pub fn random(seed: u64) -> Self {
        Self { seed, load: None, balancer: None, avoid: &[], within: None, prefer: None }
    }

    /// Draws two, weighted by capacity, and takes the one with fewer connections for its capacity.
    pub fn least_loaded(seed: u64, load: &'a dyn Load) -> Self {
        Self { load: Some(load), ..Self::random(seed) }
    }

    /// The same, but first `balancer` is asked.
    #[must_use]
    pub fn balanced(self, balancer: &'a dyn Balancer) -> Self {
        Self { balancer: Some(balancer), ..self }
    }

    /// The same, but never one of these endpoints.
    #[must_use]
    pub fn avoiding(self, workloads: &'a [Arc<Workload>]) -> Self {
        Self { avoid: workloads, ..self }
    }

    /// The same, but the endpoint of this unique name if it will do, whatever its load and its locality.
    #[must_use]
    pub fn preferring(self, uid: &'a str) -> Self {
        Self { prefer: Some(uid), ..self }
    }

    pub(super) fn within(self, within: Within<'a>) -> Self {
        Self { within: Some(within), ..self }
    }

    pub(super) fn start(&self) -> Choosing<'a> {
        Choosing {
            random: Random::new(self.seed),
            load: self.load,
            balancer: self.balancer,
            avoid: self.avoid,
            within: self.within,
            prefer: self.prefer,
        }
    }
}

impl From<u64> for Chooser<'_> {
    fn from(seed: u64) -> Self {
        Self::random(seed)
    }
}

impl fmt::Debug for Chooser<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chooser").field("by_load", &self.load.is_some()).finish_non_exhaustive()
    }
}

/// A [`Chooser`] at work on one decision.
pub(super) struct Choosing<'a> {
    pub(super) random: Random,
    pub(super) load: Option<&'a dyn Load>,
    pub(super) balancer: Option<&'a dyn Balancer>,
    pub(super) avoid: &'a [Arc<Workload>],
    pub(super) within: Option<Within<'a>>,
    pub(super) prefer: Option<&'a str>,
}

impl Choosing<'_> {
    pub(super) fn at_random() -> Self {
        Chooser::random(0).start()
    }
}
