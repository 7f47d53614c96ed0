//! At the server's proxy: each request is allowed or denied by the workload's policies.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use l7::authz::{DENIED_BODY, DENIED_STATUS, Denial, PolicySet, Verdict};
use l7::filter::Chain;
use l7::http1::{empty_headers, parse_request};
use l7::ir::{ConnectionAttributes, RequestHead};
use l7::jwt::{Authenticated, Rejection};
use l7::path::normalize;

use super::conversation::converse;
use super::{Director, Filtered, NORMALIZATION, Reply, Upstream, Wire};
use crate::access_log::cause::CloseCause;
use crate::access_log::record::HttpFacts;
use crate::net::Socket;
use crate::session::admission::Arrival;
use crate::session::application::dial_application;
use crate::session::connection::Connection;
use crate::session::node::{Node, workload_of};
use crate::session::pod::Pod;

/// The answer to a denied request, at whichever end it is denied.
pub(super) const DENIED: Reply =
    Reply { status: DENIED_STATUS, body: DENIED_BODY, cause: CloseCause::PolicyDenied };

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
    let idle = Some(Upstream::new(Wire::Socket(socket), None));
    let mut gate =
        Gate { connection: &connection, node, pod, arrival, target, idle, filtered: Filtered::default() };
    let cause = converse(&connection, &downstream, &mut gate).await;
    drop(gate);
    connection.end_silently(cause);
}

struct Gate<'a> {
    connection: &'a Connection,
    node: Rc<Node>,
    pod: Rc<Pod>,
    arrival: Arrival,
    target: SocketAddr,
    idle: Option<Upstream>,
    /// Of the request that was just decided.
    filtered: Filtered,
}

impl Director for Gate<'_> {
    type Choice = ();

    fn decide(&mut self, request: &RequestHead<'_>, raw: &Bytes, facts: &mut HttpFacts) -> Result<(), Reply> {
        let state = self.node.state();
        let Some(workload) = workload_of(&state, &self.pod.local) else {
            return Err(Reply { cause: CloseCause::UnknownWorkload, ..DENIED });
        };
        let policies = state.snapshot.policies_for(&workload);
        let attributes = self.arrival.attributes();
        let Authenticated { token, edits } =
            policies.tokens().authenticate(request, now()).map_err(|rejection| {
                self.filtered.challenge = Some(Rejection::challenge(request));
                let (status, body) = (rejection.status(), rejection.body());
                Reply { status, body, cause: CloseCause::TokenRefused }
            })?;
        self.filtered.chain = Chain::of_rule(edits.as_ref(), None);
        let request = RequestHead { token: token.as_ref(), ..*request };
        match policies.evaluate(&attributes, Some(&request)) {
            Verdict::Allow(rule) => {
                facts.policy = rule.map(|rule| policy_name(&rule.policy.namespace, &rule.policy.name));
                if let Some(authorized) = self.connection.shared.authorized.borrow_mut().as_mut() {
                    authorized.request = Some(raw.clone());
                }
                Ok(())
            }
            Verdict::Deny(denial) => {
                facts.policy = match denial {
                    Denial::Matched(rule) => Some(policy_name(&rule.policy.namespace, &rule.policy.name)),
                    Denial::NoAllowMatched | Denial::Closed(_) => None,
                };
                Err(DENIED)
            }
        }
    }

    fn filtered(&mut self) -> Filtered {
        std::mem::take(&mut self.filtered)
    }

    async fn upstream(&mut self, (): ()) -> Result<Upstream, Reply> {
        if let Some(idle) = self.idle.take().filter(|idle| idle.wire.is_quiet()) {
            return Ok(idle);
        }
        match dial_application(&self.node, &self.pod, &self.arrival, self.target).await {
            Ok(socket) => Ok(Upstream::new(Wire::Socket(socket), None)),
            Err(cause) => Err(Reply { status: 503, body: "upstream connect error", cause }),
        }
    }

    fn finished(&mut self, upstream: Option<Upstream>) {
        // A request that was denied has not touched the upstream of the one before.
        self.idle = upstream.or_else(|| self.idle.take());
        if let Some(authorized) = self.connection.shared.authorized.borrow_mut().as_mut() {
            authorized.request = None;
        }
    }
}

/// Whether a request that was allowed once is allowed still. `head` has been parsed before.
pub(in crate::session) fn is_still_allowed(
    policies: &PolicySet,
    connection: &ConnectionAttributes<'_>,
    head: &Bytes,
) -> bool {
    let mut storage = empty_headers();
    let Ok(request) = parse_request(head, &mut storage) else { return false };
    let Ok(target) = normalize(request.target, NORMALIZATION) else { return false };
    let mut view = RequestHead {
        method: request.method,
        authority: request.authority,
        path: &target.path,
        query: target.query,
        headers: request.headers,
        token: None,
    };
    let Ok(authenticated) = policies.tokens().authenticate(&view, now()) else { return false };
    view.token = authenticated.token.as_ref();
    policies.evaluate(connection, Some(&view)).is_allowed()
}

/// Seconds since the epoch, for the times in tokens. A clock before it makes every token one of the future.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn policy_name(namespace: &str, name: &str) -> Arc<str> {
    Arc::from(format!("{namespace}/{name}"))
}
