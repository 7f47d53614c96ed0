//! Where a request goes: the endpoint that was chosen for it, and what another one is chosen by.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use l7::filter::Chain;
use l7::ir::{BackendTls, HashOn, HeaderEdits, RequestHead};
use l7::outlier::Answer;
use model::Workload;
use xds::snapshot::resolve::{Chooser, Client, Refusal, Route};

use super::Protocol;
use super::route::{Caller, Goal};
use crate::session::node::Node;
use crate::session::state::NodeState;
use crate::session::traffic::{Cluster, Flight, Overflow};

/// A chosen endpoint, and the state in which it was chosen.
#[derive(Debug)]
pub(in crate::session) struct Way {
    pub(super) aim: Aim,
    pub(super) route: Route,
    pub(super) protocol: Protocol,
    pub(super) tls: Option<Arc<BackendTls>>,
    /// The client has been told of the endpoint.
    is_bound: bool,
    /// Endpoints that have failed.
    tried: Vec<Arc<Workload>>,
    /// A try has been made.
    is_begun: bool,
    flight: Option<Flight>,
}

/// What an endpoint is chosen by.
#[derive(Debug)]
pub(in crate::session) struct Aim {
    pub(super) state: Arc<NodeState>,
    pub(super) workload: Arc<Workload>,
    pub(super) goal: Goal,
    pub(super) port: u16,
    /// Of the endpoints of a service only these.
    pub(super) subset: Option<Arc<str>>,
    /// What governs the traffic there.
    pub(super) cluster: Option<Rc<Cluster>>,
    pub(super) hash: Option<u64>,
}

impl Aim {
    pub(super) fn new(
        state: Arc<NodeState>,
        workload: Arc<Workload>,
        node: &Node,
        (goal, port, subset): (Goal, u16, Option<Arc<str>>),
    ) -> Self {
        let cluster = match &goal {
            Goal::Service(service) => {
                let namespace = workload.identity.namespace();
                node.clusters.of(&state, service, port, subset.as_ref(), namespace)
            }
            Goal::Workload(_) => None,
        };
        Self { state, workload, goal, port, subset, cluster, hash: None }
    }

    /// Hashes the request, where endpoints are chosen so. A cookie that it is to be hashed by goes back with the response.
    pub(super) fn hash(
        &mut self,
        request: &RequestHead<'_>,
        of_route: &[HashOn],
        client: IpAddr,
        node: &Node,
        chain: &mut Chain,
    ) {
        let Some(cluster) = &self.cluster else { return };
        let key = cluster.key_of(request, of_route, client, node.random());
        self.hash = key.hash;
        if let Some(cookie) = key.cookie {
            chain.edit_response(HeaderEdits { add: vec![cookie], ..HeaderEdits::default() });
        }
    }

    /// The way to an endpoint: to `preferred` if it will do, and to none of `avoided`.
    pub(super) fn choose(
        &self,
        caller: &Caller,
        preferred: Option<&str>,
        avoided: &[Arc<Workload>],
    ) -> Result<Route, Refusal> {
        let client = Client { workload: &self.workload, ip: caller.remote.ip() };
        let to = SocketAddr::new(caller.to.ip(), self.port);
        let resolve = |chooser: Chooser<'_>| {
            let chooser = chooser.avoiding(avoided);
            let chooser = preferred.map_or(chooser, |uid| chooser.preferring(uid));
            self.goal.resolve(&self.state, client, to, self.subset.as_deref(), chooser)
        };
        match &self.cluster {
            None => resolve(caller.node.chooser()),
            Some(cluster) => resolve(cluster.pick(&self.state, self.hash, to.ip()).chooser(&caller.node)),
        }
    }
}

impl Way {
    pub(super) fn new(aim: Aim, route: Route, protocol: Protocol, tls: Option<Arc<BackendTls>>) -> Self {
        Self { aim, route, protocol, tls, is_bound: false, tried: Vec::new(), is_begun: false, flight: None }
    }

    /// The same; with a session it is kept to.
    pub(super) fn bound(self, is_bound: bool) -> Self {
        Self { is_bound, ..self }
    }

    /// Before each try: a further one goes to an endpoint that has not failed yet, if there is one.
    pub(super) fn begin_try(&mut self, caller: &Caller) -> Result<(), Overflow> {
        self.flight = None;
        if std::mem::replace(&mut self.is_begun, true) && !self.is_bound {
            self.tried.extend(self.route.workload.clone());
            if let Ok(route) = self.aim.choose(caller, None, &self.tried) {
                self.route = route;
            } else if let Ok(route) = self.aim.choose(caller, None, &[]) {
                self.route = route;
            }
        }
        if let Some(cluster) = &self.aim.cluster {
            self.flight = Some(cluster.begin(self.route.workload.as_deref())?);
        }
        Ok(())
    }

    /// Enters how a try ended.
    pub(super) fn note(&self, answer: Answer) {
        if let (Some(cluster), Some(workload)) = (&self.aim.cluster, &self.route.workload) {
            cluster.note(&self.aim.state, workload, answer);
        }
    }
}
