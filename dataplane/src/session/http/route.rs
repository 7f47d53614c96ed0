//! At the client's proxy: each request goes to the backend that the service's routes choose.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use l7::filter::{Chain, Dialled};
use l7::ir::{RequestHead, Scheme};
use l7::router::{MatchedRoute, RouteMatch, Taken};
use model::{NamespacedHostname, Workload};
use xds::snapshot::resolve::{Client, Refusal, Route};

use super::authorize::DENIED;
use super::conversation::converse;
use super::{Director, Filtered, Reply, Upstream, Wire};
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{Authority, HttpFacts};
use crate::session::connection::Connection;
use crate::session::dial::{Dialler, UpstreamFacts, refusal_cause};
use crate::session::node::{Node, workload_of};
use crate::session::pod::Pod;
use crate::session::state::NodeState;

/// Idle upstreams kept for the next requests of one downstream connection.
const IDLE_MAX: usize = 4;

/// A captured connection to a service that routes govern.
#[derive(Debug)]
pub(in crate::session) struct Caller {
    pub(in crate::session) node: Rc<Node>,
    pub(in crate::session) pod: Rc<Pod>,
    pub(in crate::session) workload: Arc<Workload>,
    pub(in crate::session) remote: SocketAddr,
    pub(in crate::session) service: NamespacedHostname,
    /// Where the client dialled.
    pub(in crate::session) to: SocketAddr,
}

/// Serves the requests of a captured connection.
pub(in crate::session) async fn route(
    connection: &Connection,
    caller: Caller,
    downstream: &Wire,
) -> CloseCause {
    let mut steering = Steering {
        connection,
        caller,
        idle: Vec::new(),
        current: None,
        counted: false,
        filtered: Filtered::default(),
    };
    converse(connection, downstream, &mut steering).await
}

struct Steering<'a> {
    connection: &'a Connection,
    caller: Caller,
    /// Most recently used last.
    idle: Vec<(UpstreamFacts, Upstream)>,
    /// Facts of the upstream that carries the request in flight.
    current: Option<UpstreamFacts>,
    /// The connection counts in the metrics.
    counted: bool,
    /// For the request that was decided last.
    filtered: Filtered,
}

/// A chosen endpoint, and the state in which it was chosen.
struct Way {
    state: Arc<NodeState>,
    workload: Arc<Workload>,
    route: Route,
}

impl Director for Steering<'_> {
    type Choice = Box<Way>;

    fn decide(
        &mut self,
        request: &RequestHead<'_>,
        _raw: &Bytes,
        facts: &mut HttpFacts,
    ) -> Result<Box<Way>, Reply> {
        let caller = &self.caller;
        let state = caller.node.state();
        let workload = workload_of(&state, &caller.pod.local).unwrap_or_else(|| caller.workload.clone());
        let port = caller.to.port();
        let routes = state.snapshot.routes_for(&caller.service, port, workload.identity.namespace());
        self.forget_upstream(&state);
        self.filtered = Filtered::default();
        let (service, port) = match &routes {
            // The routes are gone since the connection began: the service serves itself.
            None => (caller.service.clone(), port),
            Some(router) => match router.route(request) {
                RouteMatch::NotFound => {
                    return Err(Reply { status: 404, body: "no route matches", cause: CloseCause::NoRoute });
                }
                RouteMatch::Matched(matched) => {
                    note(&matched, facts);
                    match matched.take(caller.node.random()) {
                        Taken::Forwarded { service, port, filters } => {
                            self.filtered.chain = filters;
                            self.filtered.limit = matched.rule.timeouts.limit();
                            (service.clone(), port)
                        }
                        Taken::Redirected(filters) => {
                            let (filtered, reply) = redirected(filters, port, request);
                            self.filtered = filtered;
                            return Err(reply);
                        }
                        Taken::Failed(reason) => return Err(without_backend(&matched, reason)),
                    }
                }
            },
        };
        let client = Client { workload: &workload, ip: caller.remote.ip() };
        let chosen = state.snapshot.resolve_backend(client, &service, port, caller.node.chooser());
        match chosen {
            Ok(route) => Ok(Box::new(Way { state, workload, route })),
            Err(refusal) => Err(refused(&refusal)),
        }
    }

    fn filtered(&mut self) -> Filtered {
        std::mem::take(&mut self.filtered)
    }

    async fn upstream(&mut self, way: Box<Way>) -> Result<Upstream, Reply> {
        let Way { state, workload, route } = *way;
        let mut facts = UpstreamFacts::of_route(&route);
        {
            let mut record = self.connection.record.borrow_mut();
            record.service = route.service.as_ref().map(|entry| entry.service.clone());
            facts.describe(&mut record);
        }
        let upstream = if let Some((kept, upstream)) = self.take_idle(&facts) {
            facts = kept;
            upstream
        } else {
            let Caller { node, pod, remote, .. } = &self.caller;
            let dialler = Dialler { node, pod, workload: &workload, client: *remote };
            let wire = dialler.dial(&state, &route, &mut facts).await.map_err(unreachable)?;
            Upstream::new(wire, node.loaded(&route))
        };
        facts.describe(&mut self.connection.record.borrow_mut());
        if !std::mem::replace(&mut self.counted, true) {
            self.connection.established();
        }
        self.current = Some(facts);
        Ok(upstream)
    }

    fn finished(&mut self, upstream: Option<Upstream>) {
        let facts = self.current.take();
        if let (Some(upstream), Some(facts)) = (upstream, facts) {
            if self.idle.len() == IDLE_MAX {
                self.idle.remove(0);
            }
            self.idle.push((facts, upstream));
        }
    }
}

impl Steering<'_> {
    /// Until a request has an upstream, its books tell of the service alone, and not of the request before.
    fn forget_upstream(&self, state: &NodeState) {
        let Caller { service, to, .. } = &self.caller;
        let mut record = self.connection.record.borrow_mut();
        UpstreamFacts::default().describe(&mut record);
        record.destination.address = Some(*to);
        let entry = state.snapshot.service(&service.namespace, &service.hostname);
        record.service = entry.map(|entry| entry.service.clone());
    }

    /// An idle upstream to the same place that has not been closed meanwhile.
    fn take_idle(&mut self, wanted: &UpstreamFacts) -> Option<(UpstreamFacts, Upstream)> {
        loop {
            let at = self.idle.iter().position(|(facts, _)| place(facts) == place(wanted))?;
            let (facts, upstream) = self.idle.remove(at);
            if upstream.wire.is_quiet() {
                return Some((facts, upstream));
            }
        }
    }
}

/// What makes two upstreams the same one.
fn place(facts: &UpstreamFacts) -> (Option<SocketAddr>, Option<&Authority>) {
    (facts.destination.address, facts.authority.as_ref())
}

/// Notes the route of a request.
fn note(matched: &MatchedRoute<'_>, facts: &mut HttpFacts) {
    facts.route = Some((Arc::clone(matched.name), u16::try_from(matched.rule_index).unwrap_or(u16::MAX)));
}

/// Gateway API: a backend that is not valid, and a rule without backends, answer 500.
fn without_backend(matched: &MatchedRoute<'_>, reason: Option<&Arc<str>>) -> Reply {
    if let Some(reason) = reason {
        tracing::debug!(%reason, route = %matched.name, "a request met an invalid backend");
    }
    Reply { status: 500, body: "the backend is not valid", cause: CloseCause::NoHealthyEndpoint }
}

/// The answer that sends a client to another place. It came in the clear, to this port of the service.
fn redirected(chain: Chain, port: u16, request: &RequestHead<'_>) -> (Filtered, Reply) {
    let dialled = Dialled { scheme: Scheme::Http, port };
    let redirect = chain.redirect();
    let status = redirect.map_or(500, |redirect| redirect.status);
    let location = redirect
        .map(|redirect| chain.location(redirect, dialled, request.authority, request.path, request.query));
    let filtered = Filtered { chain, location, ..Filtered::default() };
    (filtered, Reply { status, body: "", cause: CloseCause::Finished })
}

fn refused(refusal: &Refusal) -> Reply {
    tracing::debug!(%refusal, "a request has nowhere to go");
    Reply { status: 503, body: "no healthy upstream", cause: refusal_cause(refusal) }
}

fn unreachable(cause: CloseCause) -> Reply {
    match cause {
        CloseCause::PolicyDenied => DENIED,
        CloseCause::ConnectTimedOut => Reply { status: 504, body: "upstream connect timed out", cause },
        _ => Reply { status: 503, body: "upstream connect error", cause },
    }
}
