//! At the server's proxy: each request is allowed or denied by the workload's policies.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use l7::authz::{DENIED_BODY, DENIED_STATUS, Denial, MatchedRule, PolicySet, Verdict};
use l7::filter::Chain;
use l7::ir::{Authorizer, ConnectionAttributes, Filters, RequestHead};
use l7::jwt::{Authenticated, Rejection, Token};
use l7::path::Normalization;
use model::AppProtocol;

use super::consult::Asker;
use super::shelf::Kept;
use super::{
    Books, Decision, Director, Filtered, Opening, Protocol, Received, Reply, Upstream, Wire, converse,
};
use crate::access_log::cause::CloseCause;
use crate::net::Socket;
use crate::session::admission::Arrival;
use crate::session::application::dial_application;
use crate::session::connection::Connection;
use crate::session::dial::UpstreamFacts;
use crate::session::lookup::Lookup;
use crate::session::node::{Node, workload_of};
use crate::session::pod::Pod;
use crate::session::shadow::{observe, policy_name};

/// The answer to a denied request, at whichever end it is denied.
pub(super) const DENIED: Reply = Reply::text(DENIED_STATUS, DENIED_BODY, CloseCause::PolicyDenied);

/// The application behind an inbound connection; its first socket is open already.
#[derive(Debug)]
pub(in crate::session) struct Application {
    pub(in crate::session) node: Rc<Node>,
    pub(in crate::session) pod: Rc<Pod>,
    pub(in crate::session) target: SocketAddr,
    pub(in crate::session) socket: Socket,
}

/// Serves the requests of an inbound connection to its end: a task of its own.
pub(in crate::session) async fn serve(
    connection: Connection,
    arrival: Arrival,
    downstream: Wire,
    application: Application,
) {
    let Application { node, pod, target, socket } = application;
    let first = Cell::new(Some(Wire::Socket(socket)));
    let gate = Gate { node, pod, arrival, target, first, kept: Kept::default() };
    let cause = converse(&connection, downstream, &gate).await;
    drop(gate);
    connection.end_silently(cause);
}

struct Gate {
    node: Rc<Node>,
    pod: Rc<Pod>,
    arrival: Arrival,
    target: SocketAddr,
    /// Opened with the connection, for whichever protocol it turns out to speak.
    first: Cell<Option<Wire>>,
    kept: Kept,
}

impl Director for Gate {
    type Choice = Protocol;

    fn normalization(&self) -> Normalization {
        self.node.state().snapshot.mesh_wide().normalization
    }

    fn declared(&self) -> AppProtocol {
        let state = self.node.state();
        let Some(workload) = workload_of(&state, &self.pod.local) else { return AppProtocol::Unknown };
        Lookup { state: &state, workload: &workload }.declared(&workload, self.arrival.destination.port())
    }

    async fn consult(
        &self,
        request: &Received,
        opening: &mut Opening<'_>,
        books: &mut Books<'_>,
    ) -> Result<Option<Arc<Filters>>, Reply> {
        let state = self.node.state();
        let Some(workload) = workload_of(&state, &self.pod.local) else { return Ok(None) };
        let policies = state.snapshot.policies_for(&workload);
        let (node, pod, address) = (&self.node, &*self.pod, self.arrival.destination);
        let asker = Asker { node, pod, state: &state, workload: &workload, address };
        asker.approve(&policies, &self.arrival, request, opening, books).await
    }

    fn decide(&self, request: &RequestHead<'_>, books: &mut Books<'_>) -> Decision<Protocol> {
        let state = self.node.state();
        let Some(workload) = workload_of(&state, &self.pod.local) else {
            return Decision::answer(Reply { cause: CloseCause::UnknownWorkload, ..DENIED });
        };
        let policies = state.snapshot.policies_for(&workload);
        let Permit { edits, .. } = match permit(&policies, &self.arrival, request, books) {
            Ok(permit) => permit,
            Err(reply) => return Decision::answer(reply),
        };
        let filtered = Filtered { chain: Chain::of_rule(edits.as_ref(), None), ..Filtered::default() };
        Decision::forward(books.protocol(), filtered)
    }

    /// The application is spoken to as its client speaks.
    async fn upstream(&self, protocol: &mut Protocol, _books: &mut Books<'_>) -> Result<Upstream, Reply> {
        let dial = async {
            if let Some(first) = self.first.take().filter(Wire::is_quiet) {
                return Ok((first, UpstreamFacts::default()));
            }
            let Self { node, pod, arrival, target, .. } = self;
            let dialled = dial_application(node, pod, arrival, *target, true).await;
            let socket = dialled.map_err(|cause| Reply::text(503, "upstream connect error", cause))?;
            Ok((Wire::Socket(socket), UpstreamFacts::default()))
        };
        self.kept.reach(&self.node.worker, &UpstreamFacts::default(), *protocol, None, None, dial).await
    }

    fn keep(&self, upstream: Upstream) {
        self.kept.put_back(&self.node.worker, upstream);
    }
}

/// What lets a request pass.
#[derive(Debug)]
pub(in crate::session) struct Permit {
    pub(in crate::session) token: Option<Token>,
    /// What is done to the request because of its token.
    pub(in crate::session) edits: Option<Arc<Filters>>,
}

/// Asks tokens and policies about a request, and notes in the books which policy has decided.
pub(in crate::session) fn permit(
    policies: &PolicySet,
    arrival: &Arrival,
    request: &RequestHead<'_>,
    books: &mut Books<'_>,
) -> Result<Permit, Reply> {
    let Authenticated { token, edits } =
        policies.tokens().authenticate(request, now()).map_err(|rejection| {
            let (status, body) = (rejection.status(), rejection.body());
            let reply = Reply::text(status, body, CloseCause::TokenRefused);
            reply.with("www-authenticate", Rejection::challenge(request))
        })?;
    let seen = RequestHead { token: token.as_ref(), ..*request };
    let name = |rule: MatchedRule<'_>| policy_name(&rule.policy.namespace, &rule.policy.name);
    let metrics = &books.connection().node.metrics;
    books.facts.observed = observe(metrics, policies, &arrival.attributes(), Some(&seen));
    let verdict = match policies.evaluate_asked(&arrival.attributes(), Some(&seen), &books.approved_by) {
        Verdict::Allow(rule) => {
            books.facts.policy = rule.map(name);
            Ok(())
        }
        Verdict::Deny(Denial::Matched(rule)) => {
            books.facts.policy = Some(name(rule));
            Err(DENIED)
        }
        Verdict::Deny(Denial::NoAllowMatched | Denial::Closed(_)) => {
            books.facts.policy = None;
            Err(DENIED)
        }
    };
    verdict.map(|()| Permit { token, edits })
}

/// A request that policy has let pass, with who has approved it.
#[derive(Debug)]
pub(in crate::session) struct Allowed {
    request: Received,
    approved_by: Vec<Arc<Authorizer>>,
}

impl Allowed {
    pub(super) fn of(request: &Received, books: &Books<'_>) -> Self {
        Self { request: request.clone(), approved_by: books.approved_by.clone() }
    }
}

/// Whether a request that was allowed once is allowed still.
pub(in crate::session) fn is_still_allowed(
    policies: &PolicySet,
    connection: &ConnectionAttributes<'_>,
    allowed: &Allowed,
) -> bool {
    let Allowed { request, approved_by } = allowed;
    let allowed = request.view(|request| {
        let Ok(authenticated) = policies.tokens().authenticate(request, now()) else { return false };
        let request = RequestHead { token: authenticated.token.as_ref(), ..*request };
        policies.evaluate_asked(connection, Some(&request), approved_by).is_allowed()
    });
    allowed.unwrap_or(false)
}

/// Seconds since the epoch, for the times in tokens. A clock before it makes every token one of the future.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
