//! External authorizers are asked about requests, from the pod that the requests are for: over the mesh, as the pod itself
//! would reach them.
//!
//! An authorizer that cannot be reached, does not answer in time or says nothing that can be used has not approved
//! anything. What becomes of the request then is for [`l7::check::rule`] to say.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use l7::authz::PolicySet;
use l7::check::{Answer, Approval, Denied, Shown, http_question, rule};
use l7::filter::Chain;
use l7::ir::{Authorizer, CheckProtocol, Filters, RequestHead};
use model::Workload;
use xds::ext_authz::{self, Circumstances, End};
use xds::snapshot::resolve::Client;

use super::ask::{Asked, Unanswered};
use super::authorize::DENIED;
use super::shelf::Kept;
use super::{Books, Opening, Protocol, Received, Reply, Upstream};
use crate::access_log::cause::CloseCause;
use crate::session::admission::Arrival;
use crate::session::dial::{Dialler, UpstreamFacts};
use crate::session::node::Node;
use crate::session::pod::Pod;
use crate::session::shadow::policy_name;
use crate::session::state::NodeState;

/// Connections that are taken for one question at most.
const TRIES_MAX: usize = 4;

/// Who asks, and from which state.
pub(in crate::session) struct Asker<'a> {
    pub(in crate::session) node: &'a Rc<Node>,
    pub(in crate::session) pod: &'a Pod,
    pub(in crate::session) state: &'a Arc<NodeState>,
    pub(in crate::session) workload: &'a Arc<Workload>,
    /// The pod's own address.
    pub(in crate::session) address: SocketAddr,
}

impl Asker<'_> {
    /// Has a request approved by everybody whom policies name; an error is the answer to it. What comes back is what they
    /// do to the request.
    pub(in crate::session) async fn approve(
        &self,
        policies: &PolicySet,
        arrival: &Arrival,
        request: &Received,
        opening: &mut Opening<'_>,
        books: &mut Books<'_>,
    ) -> Result<Option<Arc<Filters>>, Reply> {
        if !policies.asks_somebody() {
            return Ok(None);
        }
        let mut approval = Approval::default();
        for (authorizer, policy) in asks(policies, arrival, request) {
            books.facts.policy = Some(policy);
            // Nobody knows the provider, so nobody can let the request pass.
            let Some(authorizer) = authorizer else { return Err(DENIED) };
            let answer = self.ask(&authorizer, arrival, request, opening, &approval).await?;
            approval = approval.and(rule(&authorizer, answer).map_err(refused)?);
            books.approved_by.push(authorizer);
        }
        Ok(approval.into_filters())
    }

    /// Asks about a request as earlier authorizers have left it. An error is the answer to a request of which nobody can
    /// be shown as much as the authorizer wants.
    async fn ask(
        &self,
        authorizer: &Authorizer,
        arrival: &Arrival,
        request: &Received,
        opening: &mut Opening<'_>,
        earlier: &Approval,
    ) -> Result<Answer, Reply> {
        let body = match authorizer.body {
            Some(wanted) => opening.body(request, wanted).await?,
            None => None,
        };
        let limit = Duration::from_millis(authorizer.timeout_ms.get().into());
        let shown = body.as_ref().map(|(bytes, shown)| (&**bytes, *shown));
        let asking = self.ask_in_time(authorizer, arrival, request, shown, earlier);
        let answer = match monoio::time::timeout(limit, asking).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(reason)) => Answer::Failed(reason),
            Err(_) => Answer::Failed("the authorizer took too long"),
        };
        tracing::debug!(authorizer = %authorizer.name, service = %authorizer.service, ?answer, "nobody answered");
        Ok(answer)
    }

    async fn ask_in_time(
        &self,
        authorizer: &Authorizer,
        arrival: &Arrival,
        request: &Received,
        body: Option<(&[u8], Shown)>,
        earlier: &Approval,
    ) -> Result<Answer, &'static str> {
        const UNREADABLE: &str = "the request cannot be read";
        match &authorizer.protocol {
            CheckProtocol::Http(check) => {
                let question =
                    request.view(|head| as_left(head, earlier, |head| http_question(check, head, body)));
                let question = question.map_err(|_| UNREADABLE)?;
                self.asked(authorizer, Protocol::Http1, &Asked::Http { question, check }).await
            }
            CheckProtocol::Grpc => {
                let circumstances = self.circumstances(authorizer, arrival, request, body);
                let written = request.view(|head| {
                    as_left(head, earlier, |head| {
                        let names = head.headers.iter().map(|header| header.name.to_owned());
                        (ext_authz::question(head, &circumstances), names.collect())
                    })
                });
                let (payload, headers) = written.map_err(|_| UNREADABLE)?;
                let authority = format!("{}:{}", authorizer.service.hostname, authorizer.port);
                let timeout_ms = authorizer.timeout_ms.get();
                let asked = Asked::Grpc { payload, headers, authority, timeout_ms };
                self.asked(authorizer, Protocol::Http2, &asked).await
            }
        }
    }

    fn circumstances<'c>(
        &'c self,
        authorizer: &Authorizer,
        arrival: &'c Arrival,
        request: &Received,
        body: Option<(&'c [u8], Shown)>,
    ) -> Circumstances<'c> {
        Circumstances {
            source: End { address: arrival.source_address, identity: arrival.source.as_ref() },
            destination: End { address: arrival.destination, identity: Some(&self.workload.identity) },
            time: SystemTime::now(),
            id: self.node.random(),
            protocol: match request {
                Received::Http1 { .. } => "HTTP/1.1",
                Received::Http2(_) => "HTTP/2",
            },
            body,
            as_bytes: authorizer.body.is_some_and(|body| body.as_bytes),
        }
    }

    /// Asks on a connection that is there, or on a new one. One that was there may be at its end; then the question was
    /// not heard and another one is taken.
    async fn asked(
        &self,
        authorizer: &Authorizer,
        protocol: Protocol,
        asked: &Asked<'_>,
    ) -> Result<Answer, &'static str> {
        let kept = self.pod.authorizers.used(&self.node.worker);
        for _ in 0..TRIES_MAX {
            let is_new = Cell::new(false);
            let mut upstream = self.reach(authorizer, protocol, kept, &is_new).await?;
            match asked.over(&self.node.worker, &mut upstream.way).await {
                Ok((answer, lives)) => {
                    if lives && !self.node.worker.drain().is_open() {
                        kept.put_back(&self.node.worker, upstream);
                    }
                    return Ok(answer);
                }
                Err(Unanswered::Unheard) if !is_new.get() => {}
                Err(Unanswered::Unheard) => break,
                Err(Unanswered::Because(reason)) => return Err(reason),
            }
        }
        Err("there was no answer")
    }

    async fn reach(
        &self,
        authorizer: &Authorizer,
        protocol: Protocol,
        kept: &Kept,
        is_new: &Cell<bool>,
    ) -> Result<Upstream, &'static str> {
        let client = Client { workload: self.workload, ip: self.address.ip() };
        let (service, port) = (&authorizer.service, authorizer.port);
        let snapshot = &self.state.snapshot;
        let route = snapshot
            .resolve_backend(client, service, port, None, self.node.chooser())
            .map_err(|_| "the authorizer has no endpoint")?;
        let client = SocketAddr::new(self.address.ip(), 0);
        let dialler = Dialler { node: self.node, pod: self.pod, workload: self.workload, client };
        let wanted = UpstreamFacts::of_route(&route);
        let dial = async {
            is_new.set(true);
            let mut facts = wanted.clone();
            let wire = dialler.dial(self.state, &route, &mut facts).await;
            let unreachable = |cause| Reply::text(503, "the authorizer cannot be reached", cause);
            Ok((wire.map_err(unreachable)?, facts))
        };
        let reached = kept.reach(&self.node.worker, &wanted, protocol, None, None, dial).await;
        reached.map_err(|_| "the authorizer cannot be reached")
    }
}

/// Whom a request must be approved by, with the names of the policies that say so. None for a head that cannot be read,
/// which is refused afterwards.
fn asks(
    policies: &PolicySet,
    arrival: &Arrival,
    request: &Received,
) -> Vec<(Option<Arc<Authorizer>>, Arc<str>)> {
    let attributes = arrival.attributes();
    let asks = request.view(|head| {
        let asks = policies.asks(&attributes, head).map(|ask| {
            let policy = ask.rule.policy;
            (ask.authorizer.cloned(), policy_name(&policy.namespace, &policy.name))
        });
        asks.collect()
    });
    asks.unwrap_or_default()
}

/// Shows the request with what earlier authorizers have added to it.
fn as_left<R>(head: &RequestHead<'_>, earlier: &Approval, show: impl FnOnce(&RequestHead<'_>) -> R) -> R {
    let Some(edits) = earlier.clone().into_filters() else { return show(head) };
    let chain = Chain::of_rule(Some(&edits), None);
    let fields = chain.request_fields(head.headers);
    let headers: Vec<_> = fields.iter().collect();
    let query = chain.query(head.query);
    show(&RequestHead { headers: &headers, query: query.as_deref(), ..*head })
}

/// The response to a request that an authorizer does not let pass.
fn refused(denied: Denied) -> Reply {
    let Denied { status, headers, body, failed } = denied;
    if let Some(reason) = failed {
        tracing::debug!(reason, "a request is denied, for nobody has approved it");
    }
    let body = match (body.is_empty(), failed) {
        (true, Some(_)) => l7::authz::DENIED_BODY.into(),
        _ => String::from_utf8_lossy(&body).into_owned().into(),
    };
    let field =
        |header: l7::ir::HeaderValue| (header.name.to_string().into(), header.value.as_bytes().to_vec());
    Reply { status, body, fields: headers.into_iter().map(field).collect(), cause: CloseCause::PolicyDenied }
}
