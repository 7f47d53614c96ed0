//! At the client's proxy: each request goes to the backend that the service's routes choose.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use l7::filter::{Chain, Dialled};
use l7::ir::{Filters, Header, RequestHead, Scheme};
use l7::outlier::Answer;
use l7::path::Normalization;
use l7::router::{MatchedRoute, Router, Sender};
use model::{AppProtocol, NamespacedHostname, Workload};
use xds::snapshot::resolve::{Chooser, Client, Refusal, Route};

use super::authorize::DENIED;
use super::request::within;
use super::shelf::Kept;
use super::steered::Steered;
use super::way::Aim;
use super::{
    Begun, Books, Decision, Director, Opening, Protocol, Received, Reply, Upstream, Way, Wire, converse,
    converse_from, prepare, protocol_to,
};
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{HttpFacts, Record};
use crate::session::connection::Connection;
use crate::session::dial::{Dialler, UpstreamFacts, refusal_cause};
use crate::session::lookup::Lookup;
use crate::session::node::{Node, workload_of};
use crate::session::pod::Pod;
use crate::session::state::NodeState;

/// A captured connection to a service that routes govern.
#[derive(Debug)]
pub(in crate::session) struct Caller {
    pub(in crate::session) node: Rc<Node>,
    pub(in crate::session) pod: Rc<Pod>,
    pub(in crate::session) workload: Arc<Workload>,
    pub(in crate::session) remote: SocketAddr,
    pub(in crate::session) goal: Goal,
    /// Where the client dialled.
    pub(in crate::session) to: SocketAddr,
}

/// Where requests go if no route says otherwise.
#[derive(Debug, Clone)]
pub(in crate::session) enum Goal {
    Service(NamespacedHostname),
    /// The address that was dialled, which is the workload's own: from its waypoint.
    Workload(Arc<Workload>),
}

impl Goal {
    /// The way to it for a client that dialled `to`. Who stands before it as its waypoint is passed over; a waypoint is
    /// never led to itself.
    pub(in crate::session) fn resolve(
        &self,
        state: &NodeState,
        client: Client<'_>,
        to: SocketAddr,
        subset: Option<&str>,
        chooser: Chooser<'_>,
    ) -> Result<Route, Refusal> {
        match self {
            Self::Service(service) => {
                state.snapshot.resolve_backend(client, service, to.port(), subset, chooser)
            }
            Self::Workload(workload) => state.snapshot.resolve_fronted(client, workload, to),
        }
    }

    /// What its port says that it speaks.
    pub(super) fn declared(&self, state: &NodeState, port: u16) -> Option<AppProtocol> {
        let Self::Service(service) = self else { return None };
        let entry = state.snapshot.service(&service.namespace, &service.hostname)?;
        entry.service.port(port).map(|port| port.app_protocol)
    }
}

impl Caller {
    /// The routes that govern what the client has dialled.
    fn router(&self, state: &NodeState, workload: &Workload) -> Option<Arc<Router>> {
        match &self.goal {
            Goal::Service(service) => {
                let (port, namespace) = (self.to.port(), workload.identity.namespace());
                state.snapshot.routes_for(service, port, namespace).cloned()
            }
            Goal::Workload(_) => None,
        }
    }

    /// What the port that the client has dialled says that it speaks.
    fn declared(&self) -> AppProtocol {
        let state = self.node.state();
        let Goal::Workload(workload) = &self.goal else {
            return self.goal.declared(&state, self.to.port()).unwrap_or_default();
        };
        Lookup { state: &state, workload }.declared(workload, self.to.port())
    }

    /// Whom routes take the client for.
    pub(super) fn sender<'s>(&self, state: &'s NodeState) -> Sender<'s> {
        let owner =
            state.snapshot.workload_by_address(&self.workload.network, self.remote.ip().to_canonical());
        owner.map_or_else(Sender::default, |owner| Sender {
            namespace: owner.identity.namespace(),
            labels: state.snapshot.labels_of(owner).map(AsRef::as_ref),
        })
    }
}

/// Serves the requests of a captured connection; `begun` is what has been read of it.
pub(in crate::session) async fn route(
    connection: &Connection,
    caller: Caller,
    downstream: Wire,
    begun: Option<Begun>,
) -> CloseCause {
    let steering = Steering::new(connection, caller);
    match begun {
        Some(begun) => converse_from(connection, downstream, begun, &steering).await,
        None => converse(connection, downstream, &steering).await,
    }
}

/// Routes requests and reaches their endpoints.
pub(in crate::session) struct Steering<'a> {
    connection: &'a Connection,
    caller: Caller,
    kept: Kept,
    /// The connection counts in the metrics.
    counted: Cell<bool>,
}

impl Director for Steering<'_> {
    type Choice = Box<Way>;

    fn normalization(&self) -> Normalization {
        self.caller.node.state().snapshot.mesh_wide().normalization
    }

    fn declared(&self) -> AppProtocol {
        self.caller.declared()
    }

    async fn consult(
        &self,
        request: &Received,
        _opening: &mut Opening<'_>,
        books: &mut Books<'_>,
    ) -> Result<Option<Arc<Filters>>, Reply> {
        let caller = &self.caller;
        let state = caller.node.state();
        let workload = workload_of(&state, &caller.pod.local).unwrap_or_else(|| caller.workload.clone());
        let router = caller.router(&state, &workload).filter(|router| router.answers_itself());
        if let Some(router) = router {
            prepare(caller, &state, &router, request, books).await?;
        }
        Ok(None)
    }

    fn decide(&self, request: &RequestHead<'_>, books: &mut Books<'_>) -> Decision<Box<Way>> {
        let caller = &self.caller;
        let state = caller.node.state();
        let workload = workload_of(&state, &caller.pod.local).unwrap_or_else(|| caller.workload.clone());
        let goal = caller.goal.clone();
        let router = caller.router(&state, &workload);
        self.steer(state, workload, goal, router.as_deref(), request, books)
    }

    async fn upstream(&self, way: &mut Box<Way>, books: &mut Books<'_>) -> Result<Upstream, Reply> {
        way.begin_try(&self.caller)?;
        let Way { aim: Aim { state, workload, cluster, .. }, route, protocol, tls, .. } = &**way;
        let wanted = UpstreamFacts { backend_tls: tls.clone(), ..UpstreamFacts::of_route(route) };
        let service = route.service.as_ref().map(|entry| entry.service.clone());
        books.record.service.clone_from(&service);
        wanted.describe(&mut books.record);
        let Caller { node, pod, remote, .. } = &self.caller;
        let dial = async {
            let mut facts = wanted.clone();
            let dialler = Dialler { node, pod, workload, client: *remote };
            let limit = cluster.as_ref().and_then(|cluster| cluster.connect_timeout());
            let limit = limit.map(|limit| Instant::now() + limit);
            let wants_http2 = *protocol == Protocol::Http2;
            let dialled = dialler.dial_backend(state, route, &mut facts, wants_http2);
            let dialled = within(limit, pin!(dialled)).await;
            let wire = dialled.unwrap_or(Err(CloseCause::ConnectTimedOut)).map_err(unreachable)?;
            Ok((wire, facts))
        };
        let load = node.loaded(route);
        let cluster = cluster.as_ref();
        let upstream = self.kept.reach(&node.worker, &wanted, *protocol, load, cluster, dial).await?;
        if let Some(facts) = upstream.facts() {
            facts.describe(&mut books.record);
            // Whoever lists connections sees the last one that was reached.
            let mut record = self.connection.record.borrow_mut();
            record.service = service;
            facts.describe(&mut record);
        }
        if !self.counted.replace(true) {
            self.connection.established();
        }
        Ok(upstream)
    }

    fn note(&self, way: &Box<Way>, answer: Answer) {
        way.note(answer);
    }

    fn keep(&self, upstream: Upstream) {
        self.kept.put_back(&self.caller.node.worker, upstream);
    }
}

impl<'a> Steering<'a> {
    pub(in crate::session) fn new(connection: &'a Connection, caller: Caller) -> Self {
        Self { connection, caller, kept: Kept::default(), counted: Cell::new(false) }
    }

    pub(in crate::session) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Chooses the endpoint of a request, which goes to `goal` if there is no router.
    pub(in crate::session) fn steer(
        &self,
        state: Arc<NodeState>,
        workload: Arc<Workload>,
        goal: Goal,
        router: Option<&Router>,
        request: &RequestHead<'_>,
        books: &mut Books<'_>,
    ) -> Decision<Box<Way>> {
        let caller = &self.caller;
        self.describe_goal(&state, &goal, &mut books.record);
        let steered = match router {
            // The routes may be gone since the connection began: the service serves itself.
            None => Steered::plain(goal, caller.to.port()),
            Some(router) => match Steered::by(router, caller, &state, &workload, request, books) {
                Ok(steered) => steered,
                Err(reply) => return Decision::answer(*reply),
            },
        };
        let Steered { goal, port, subset, tls, hash, mut filtered, bound } = steered;
        let mut aim = Aim::new(state, workload, &caller.node, (goal, port, subset));
        aim.hash(request, &hash, caller.remote.ip(), &caller.node, &mut filtered.chain);
        if let (Some(cluster), Some(retrying)) = (&aim.cluster, &mut filtered.retrying) {
            retrying.bounded_by(cluster);
        }
        let preferred = bound.as_ref().and_then(|bound| bound.preferred(&aim.goal, port));
        match aim.choose(caller, preferred, &[]) {
            Ok(route) => {
                if let Some(told) = bound.as_ref().and_then(|bound| bound.tell(&aim.goal, port, &route)) {
                    filtered.chain.edit_response(told);
                }
                let protocol = protocol_to(aim.goal.declared(&aim.state, port), books.protocol());
                let way = Way::new(aim, route, protocol, tls).bound(bound.is_some());
                Decision::forward(Box::new(way), filtered)
            }
            Err(refusal) => Decision::answer(refused(&refusal)),
        }
    }

    /// Until a request has an upstream, its books tell of the service alone, and not of another request.
    fn describe_goal(&self, state: &NodeState, goal: &Goal, record: &mut Record) {
        UpstreamFacts::default().describe(record);
        record.destination.address = Some(self.caller.to);
        let entry = match goal {
            Goal::Service(service) => state.snapshot.service(&service.namespace, &service.hostname),
            Goal::Workload(_) => None,
        };
        record.service = entry.map(|entry| entry.service.clone());
    }
}

/// Notes the route of a request.
pub(super) fn note(matched: &MatchedRoute<'_>, facts: &mut HttpFacts) {
    facts.route = Some((Arc::clone(matched.name), u16::try_from(matched.rule_index).unwrap_or(u16::MAX)));
}

/// Gateway API: a backend that is not valid, and a rule without backends, answer 500.
pub(super) fn without_backend(matched: &MatchedRoute<'_>, reason: Option<&Arc<str>>) -> Reply {
    if let Some(reason) = reason {
        tracing::debug!(%reason, route = %matched.name, "a request met an invalid backend");
    }
    Reply::text(500, "the backend is not valid", CloseCause::NoHealthyEndpoint)
}

/// The answer that sends a client to another place. It came in the clear, to this port of the service.
pub(super) fn redirected(chain: &Chain, port: u16, request: &RequestHead<'_>) -> Reply {
    let dialled = Dialled { scheme: Scheme::Http, port };
    let redirect = chain.redirect();
    let status = redirect.map_or(500, |redirect| redirect.status);
    let location = redirect
        .map(|redirect| chain.location(redirect, dialled, request.authority, request.path, request.query));
    let location = location.as_ref().map(|it| Header { name: "location", value: it.as_bytes() });
    let fields = chain.response_fields(location.as_slice());
    let fields = fields.iter().map(|it| (it.name.to_owned().into(), it.value.to_vec())).collect();
    Reply { fields, ..Reply::text(status, "", CloseCause::Finished) }
}

fn refused(refusal: &Refusal) -> Reply {
    tracing::debug!(%refusal, "a request has nowhere to go");
    Reply::text(503, "no healthy upstream", refusal_cause(refusal))
}

fn unreachable(cause: CloseCause) -> Reply {
    match cause {
        CloseCause::PolicyDenied => DENIED,
        CloseCause::TlsFailed => Reply::text(503, "upstream TLS error", cause),
        // 503, as Envoy answers: 504 is said of a request that its server had.
        CloseCause::ConnectTimedOut => Reply::text(503, "upstream connect timed out", cause),
        _ => Reply::text(503, "upstream connect error", cause),
    }
}
