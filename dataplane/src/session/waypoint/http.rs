//! The requests of a connection: tokens, policies, then the routes of the service, then an endpoint.

use std::net::SocketAddr;
use std::sync::Arc;

use l7::ir::{Filters, HeaderEdits, HeaderValue, RequestHead};
use l7::outlier::Answer;
use l7::path::Normalization;
use model::{AppProtocol, Identity, Workload};

use super::front::{Found, Front, Unserved};
use crate::access_log::cause::CloseCause;
use crate::session::admission::Arrival;
use crate::session::connection::Connection;
use crate::session::http::{
    Asker, Books, Caller, Decision, Director, Goal, Opening, Permit, Received, Reply, Steering, Upstream,
    Way, Wire, converse, permit, prepare,
};
use crate::session::node::workload_of;
use crate::session::state::NodeState;

/// Who called whom, as Envoy writes it: `By` is us, `URI` the client.
const FORWARDED_CERTIFICATE: &str = "x-forwarded-client-cert";

/// Serves the requests of a connection to its end: a task of its own.
pub(super) async fn serve(
    connection: Connection,
    caller: Caller,
    front: Front,
    arrival: Arrival,
    downstream: Wire,
) {
    let certificate = arrival.source.as_ref().map(|peer| forwarded(&caller.workload.identity, peer));
    let waypoint = Waypoint { steering: Steering::new(&connection, caller), front, arrival, certificate };
    let cause = converse(&connection, downstream, &waypoint).await;
    drop(waypoint);
    connection.end_silently(cause);
}

/// Replaces whatever a client says of itself by what its certificate has proved.
fn forwarded(own: &Identity, peer: &Identity) -> Arc<Filters> {
    let value = format!("By={};URI={}", own.uri(), peer.uri());
    let set = vec![HeaderValue { name: FORWARDED_CERTIFICATE.into(), value: value.into() }];
    let request_headers = HeaderEdits { set, ..HeaderEdits::default() };
    Arc::new(Filters { request_headers, ..Filters::default() })
}

struct Waypoint<'a> {
    steering: Steering<'a>,
    front: Front,
    arrival: Arrival,
    certificate: Option<Arc<Filters>>,
}

impl Director for Waypoint<'_> {
    type Choice = Box<Way>;

    fn normalization(&self) -> Normalization {
        let caller = self.steering.caller();
        let state = caller.node.state();
        let usual = state.snapshot.mesh_wide().normalization;
        // Only another control plane says how; one that has not said it yet serves nothing.
        let own =
            workload_of(&state, &caller.pod.local).filter(|_| state.snapshot.waypoint_config().is_some());
        let found = own.and_then(|own| self.front.find(&state, &own).ok());
        found.and_then(|found| found.served.http).map_or(usual, |http| http.normalization)
    }

    fn declared(&self) -> AppProtocol {
        self.steering.declared()
    }

    async fn consult(
        &self,
        request: &Received,
        opening: &mut Opening<'_>,
        books: &mut Books<'_>,
    ) -> Result<Option<Arc<Filters>>, Reply> {
        let caller = self.steering.caller();
        let state = caller.node.state();
        let own = workload_of(&state, &caller.pod.local).unwrap_or_else(|| caller.workload.clone());
        // What is not served is refused when it is decided.
        let Ok(Found { served, .. }) = self.front.find(&state, &own) else { return Ok(None) };
        let Some(http) = served.http else { return Ok(None) };
        let address = SocketAddr::new(own.addresses.first().copied().unwrap_or(caller.to.ip()), 0);
        let asker = Asker { node: &caller.node, pod: &caller.pod, state: &state, workload: &own, address };
        let edits = asker.approve(&http.policies, &self.arrival, request, opening, books).await?;
        if let Some(router) = http.router.filter(|router| router.answers_itself()) {
            // What the route answers itself is nobody's who may not ask.
            let permitted = request.view(|head| permit(&http.policies, &self.arrival, head, books).map(drop));
            permitted.unwrap_or(Ok(()))?;
            prepare(caller, &state, &router, request, books).await?;
        }
        Ok(edits)
    }

    fn decide(&self, request: &RequestHead<'_>, books: &mut Books<'_>) -> Decision<Box<Way>> {
        let caller = self.steering.caller();
        let state = caller.node.state();
        let own = workload_of(&state, &caller.pod.local).unwrap_or_else(|| caller.workload.clone());
        match self.front.find(&state, &own) {
            Ok(found) => self.decide_found(state, own, found, request, books),
            Err(unserved) => Decision::answer(refused(&unserved)),
        }
    }

    async fn upstream(&self, way: &mut Box<Way>, books: &mut Books<'_>) -> Result<Upstream, Reply> {
        self.steering.upstream(way, books).await
    }

    fn note(&self, way: &Box<Way>, answer: Answer) {
        self.steering.note(way, answer);
    }

    fn keep(&self, upstream: Upstream) {
        self.steering.keep(upstream);
    }
}

impl Waypoint<'_> {
    fn decide_found(
        &self,
        state: Arc<NodeState>,
        own: Arc<Workload>,
        found: Found,
        request: &RequestHead<'_>,
        books: &mut Books<'_>,
    ) -> Decision<Box<Way>> {
        // Since the connection began the port has been declared to be something else.
        let Some(http) = found.served.http else { return Decision::answer(NO_HTTP) };
        let Permit { token, edits } = match permit(&http.policies, &self.arrival, request, books) {
            Ok(permit) => permit,
            Err(reply) => return Decision::answer(reply),
        };
        let request = RequestHead { token: token.as_ref(), ..*request };
        let goal = match (found.served.service, found.workload) {
            (Some(service), _) => Goal::Service(service),
            (None, Some(workload)) => Goal::Workload(workload),
            (None, None) => return Decision::answer(NO_HTTP),
        };
        let router = http.router.as_deref();
        let mut decision = self.steering.steer(state, own, goal, router, &request, books);
        for first in [edits, self.certificate.clone()].into_iter().flatten() {
            decision.filtered.chain.put_first(first);
        }
        decision
    }
}

const NO_HTTP: Reply = Reply::text(503, "the destination serves no HTTP", CloseCause::NoHealthyEndpoint);

fn refused(unserved: &Unserved) -> Reply {
    tracing::debug!(%unserved, "a request has nowhere to go");
    Reply::text(503, "the destination is not served here", super::cause_of(unserved))
}
