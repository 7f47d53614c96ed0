//! What the routes of a service say of one request: where it goes, as what, and what is done to it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use l7::filter::{Chain, CorsVerdict};
use l7::ir::{
    Backend, BackendTls, HashOn, HeaderEdits, HeaderValue, HttpMatch, RequestHead, SessionCarrier,
    SessionPersistence,
};
use l7::router::{MatchedRoute, RouteMatch, Router, Taken};
use l7::session::{self, Bond};
use model::Workload;
use xds::snapshot::resolve::Route;

use super::copies::Copies;
use super::retrying::Retrying;
use super::route::{Caller, Goal, note, redirected, without_backend};
use super::{Books, Filtered, Keep, Reply};
use crate::access_log::cause::CloseCause;
use crate::session::state::NodeState;

/// A request that has somewhere to go.
pub(super) struct Steered {
    pub(super) goal: Goal,
    pub(super) port: u16,
    /// Of the endpoints of a service only these.
    pub(super) subset: Option<Arc<str>>,
    pub(super) tls: Option<Arc<BackendTls>>,
    /// What the request is hashed by, if the service does not say.
    pub(super) hash: Vec<HashOn>,
    pub(super) filtered: Filtered,
    pub(super) bound: Option<Bound>,
}

/// The session of a request.
pub(super) struct Bound {
    policy: Arc<SessionPersistence>,
    /// What the client knows already.
    carried: Option<Bond>,
    matched: Option<HttpMatch>,
    /// Seconds since the epoch.
    now: u64,
}

impl Steered {
    /// Where no route says anything.
    pub(super) fn plain(goal: Goal, port: u16) -> Self {
        let (hash, filtered) = (Vec::new(), Filtered::default());
        Self { goal, port, subset: None, tls: None, hash, filtered, bound: None }
    }

    /// What `router` makes of a request, or the answer to it.
    pub(super) fn by(
        router: &Router,
        caller: &Caller,
        state: &Arc<NodeState>,
        workload: &Arc<Workload>,
        request: &RequestHead<'_>,
        books: &mut Books<'_>,
    ) -> Result<Self, Box<Reply>> {
        let RouteMatch::Matched(matched) = router.route_from(request, caller.sender(state)) else {
            return Err(Box::new(Reply::text(404, "no route matches", CloseCause::NoRoute)));
        };
        note(&matched, &mut books.facts);
        let told = shared(matched.judge_origin(request))?;
        let random = caller.node.random();
        let bound = Bound::of_rule(&matched, request);
        let bond = match &bound {
            Some(bound) => bound.carried.clone(),
            None => Bound::carried_to_a_backend(&matched, request),
        };
        let taken = match &bond {
            Some(bond) => matched.take_bound(bond, random),
            None => matched.take(random),
        };
        match taken {
            Taken::Forwarded { service, port, backend, filters: mut chain } => {
                // The backend's own word comes last.
                let told_here = shared(matched.judge_origin_at(backend, request))?;
                [told, told_here].into_iter().flatten().for_each(|edits| chain.edit_response(edits));
                let bound = bound.or_else(|| Bound::of_backend(backend, bond));
                let copies = Copies::drawn(&chain, caller, workload, state, books.protocol());
                let retrying = Retrying::of(&matched, backend, &caller.node);
                let filtered = filtered(chain, &matched, retrying, copies);
                let (subset, tls) = (backend.subset.clone(), backend.tls.clone());
                let hash = matched.rule.hash.clone();
                Ok(Self { goal: Goal::Service(service.clone()), port, subset, tls, hash, filtered, bound })
            }
            Taken::Redirected(filters) => Err(Box::new(redirected(&filters, caller.to.port(), request))),
            Taken::Failed(reason) => Err(Box::new(without_backend(&matched, reason))),
        }
    }
}

impl Bound {
    fn of_rule(matched: &MatchedRoute<'_>, request: &RequestHead<'_>) -> Option<Self> {
        let policy = matched.rule.session.clone()?;
        let now = now();
        let carried = session::presented(&policy, request.headers, now);
        Some(Self { policy, carried, matched: matched.matched().cloned(), now })
    }

    /// The session that a request has with one of the rule's backends by the backend's own policy.
    fn carried_to_a_backend(matched: &MatchedRoute<'_>, request: &RequestHead<'_>) -> Option<Bond> {
        matched.rule.backends.iter().find_map(|backend| {
            let bond = session::presented(backend.session.as_ref()?, request.headers, now())?;
            bond.is_to(&backend.target).then_some(bond)
        })
    }

    /// By the policy of the backend alone. It is the same session in whichever route the backend stands.
    fn of_backend(backend: &Backend, carried: Option<Bond>) -> Option<Self> {
        let policy = backend.session.clone()?;
        let carried = carried.filter(|bond| bond.is_to(&backend.target));
        Some(Self { policy, carried, matched: Some(HttpMatch::default()), now: now() })
    }

    /// The endpoint that the client names, if it is one of this port.
    pub(super) fn preferred(&self, goal: &Goal, port: u16) -> Option<&str> {
        let Goal::Service(service) = goal else { return None };
        let carried = self.carried.as_ref().filter(|bond| bond.service == *service && bond.port == port);
        carried.map(|bond| &*bond.endpoint)
    }

    /// Has the client told of the endpoint that serves its session, if it does not know.
    pub(super) fn tell(&self, goal: &Goal, port: u16, route: &Route) -> Option<HeaderEdits> {
        let (Goal::Service(service), Some(workload)) = (goal, &route.workload) else { return None };
        let (service, endpoint) = (service.clone(), workload.uid.clone());
        let bond = Bond { service, port, endpoint, began: 0, used: 0 };
        let (carried, matched) = (self.carried.as_ref(), self.matched.as_ref());
        let field = session::bind(&self.policy, carried, bond, matched, self.now)?;
        // Cookies stand beside those of the application.
        Some(match self.policy.carrier {
            SessionCarrier::Header => HeaderEdits { set: vec![field], ..HeaderEdits::default() },
            _ => HeaderEdits { add: vec![field], ..HeaderEdits::default() },
        })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What the response to a request of another origin is told, or the answer in its place.
fn shared(verdict: CorsVerdict) -> Result<Option<HeaderEdits>, Box<Reply>> {
    match verdict {
        CorsVerdict::Pass => Ok(None),
        CorsVerdict::Share(edits) => Ok(Some(edits)),
        CorsVerdict::Answer(fields) => Err(Box::new(preflight(&fields))),
    }
}

fn filtered(
    chain: Chain,
    matched: &MatchedRoute<'_>,
    retrying: Option<Retrying>,
    copies: Option<Copies>,
) -> Filtered {
    let timeouts = &matched.rule.timeouts;
    let is_kept = retrying.is_some() || copies.is_some();
    Filtered {
        chain,
        limit: timeouts.whole(),
        try_limit: timeouts.per_try(),
        keep: if is_kept { Keep::Body } else { Keep::Nothing },
        retrying,
        copies,
    }
}

/// The answer to a browser that asks before it sends.
fn preflight(fields: &[HeaderValue]) -> Reply {
    let fields = fields.iter().map(|it| (it.name.to_string().into(), it.value.as_bytes().to_vec())).collect();
    Reply { fields, ..Reply::text(200, "", CloseCause::Finished) }
}
