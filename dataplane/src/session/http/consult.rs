//! External authorizers are asked about requests, from the pod that the requests are for: over the mesh, as the pod itself
//! would reach them.
//!
//! An authorizer that cannot be reached, does not answer in time or says nothing that can be used has not approved
//! anything. What becomes of the request then is for [`l7::check::rule`] to say.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use l7::authz::PolicySet;
use l7::check::{Answer, Approval, BODY_BYTES_MAX, Denied, Question, http_answer, http_question, rule};
use l7::filter::Chain;
use l7::http1::{Body, BodyFraming, empty_headers, parse_response};
use l7::ir::{Authorizer, CheckProtocol, Filters, HttpCheck, RequestHead};
use model::Workload;
use xds::snapshot::resolve::Client;

use super::authorize::{DENIED, policy_name};
use super::reader::Reader;
use super::{Books, Received, Reply, Wire};
use crate::access_log::cause::CloseCause;
use crate::session::admission::Arrival;
use crate::session::dial::{Dialler, UpstreamFacts};
use crate::session::node::Node;
use crate::session::pod::Pod;
use crate::session::state::NodeState;

/// Interim responses to one question.
const INTERIM_MAX: usize = 16;

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
            let answer = self.ask(&authorizer, request, &approval).await;
            approval = approval.and(rule(&authorizer, answer).map_err(refused)?);
            books.approved_by.push(authorizer);
        }
        Ok(approval.into_filters())
    }

    /// Asks about a request as earlier authorizers have left it.
    async fn ask(&self, authorizer: &Authorizer, request: &Received, earlier: &Approval) -> Answer {
        if authorizer.body.is_some() {
            return unasked();
        }
        let limit = Duration::from_millis(authorizer.timeout_ms.get().into());
        let answered = match &authorizer.protocol {
            CheckProtocol::Http(check) => {
                monoio::time::timeout(limit, self.ask_http(authorizer, check, request, earlier)).await
            }
            CheckProtocol::Grpc => return unasked(),
        };
        let answer = match answered {
            Ok(Ok(answer)) => return answer,
            Ok(Err(reason)) => Answer::Failed(reason),
            Err(_) => Answer::Failed("the authorizer took too long"),
        };
        tracing::debug!(authorizer = %authorizer.name, service = %authorizer.service, ?answer, "nobody answered");
        answer
    }

    async fn ask_http(
        &self,
        authorizer: &Authorizer,
        check: &HttpCheck,
        request: &Received,
        earlier: &Approval,
    ) -> Result<Answer, &'static str> {
        let question = request.view(|head| as_left(head, earlier, |head| http_question(check, head, None)));
        let question = question.map_err(|_| "the request cannot be read")?;
        let wire = self.reach(authorizer).await?;
        let answer = exchange(self.node, &wire, &question, check).await;
        if answer.is_err() {
            wire.reset();
        }
        answer
    }

    async fn reach(&self, authorizer: &Authorizer) -> Result<Wire, &'static str> {
        let client = Client { workload: self.workload, ip: self.address.ip() };
        let (service, port) = (&authorizer.service, authorizer.port);
        let snapshot = &self.state.snapshot;
        let route = snapshot
            .resolve_backend(client, service, port, None, self.node.chooser())
            .map_err(|_| "the authorizer has no endpoint")?;
        let client = SocketAddr::new(self.address.ip(), 0);
        let dialler = Dialler { node: self.node, pod: self.pod, workload: self.workload, client };
        let mut facts = UpstreamFacts::of_route(&route);
        dialler.dial(self.state, &route, &mut facts).await.map_err(|_| "the authorizer cannot be reached")
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

/// Of an authorizer that wants to be asked in a way that is not spoken here. It denies even where the authorizer would fail
/// open: nobody has tried to ask it.
fn unasked() -> Answer {
    let failed = Some("authorizers are not asked over gRPC, nor about bodies");
    Answer::Denied(Denied { status: l7::authz::DENIED_STATUS, failed, ..Denied::default() })
}

/// Shows the request with what earlier authorizers have added to it.
fn as_left<R>(head: &RequestHead<'_>, earlier: &Approval, show: impl FnOnce(&RequestHead<'_>) -> R) -> R {
    let Some(edits) = earlier.clone().into_filters() else { return show(head) };
    let chain = Chain::of_rule(Some(&edits), None);
    let fields = chain.request_fields(head.headers);
    let headers: Vec<_> = fields.iter().collect();
    show(&RequestHead { headers: &headers, ..*head })
}

/// One question and its answer, on a connection of their own.
async fn exchange(
    node: &Node,
    wire: &Wire,
    question: &Question,
    check: &HttpCheck,
) -> Result<Answer, &'static str> {
    wire.write_all(&question.to_http1()).await.map_err(|_| "the question could not be sent")?;
    let mut reader = Reader::default();
    for _ in 0..=INTERIM_MAX {
        let head = reader.head(&node.worker, wire).await.ok().flatten().ok_or("there was no answer")?;
        let shown = seen(&head, &question.method)?;
        if !(100..200).contains(&shown.status) {
            let body = body(node, wire, &mut reader, shown.framing).await?;
            return answer(&head, &question.method, check, &body);
        }
    }
    Err("the answer never began")
}

struct Seen {
    status: u16,
    framing: BodyFraming,
}

fn seen(head: &Bytes, method: &str) -> Result<Seen, &'static str> {
    let mut storage = empty_headers();
    let response = parse_response(head, method, &mut storage).map_err(|_| "the answer is malformed")?;
    Ok(Seen { status: response.status, framing: response.body })
}

fn answer(head: &Bytes, method: &str, check: &HttpCheck, body: &[u8]) -> Result<Answer, &'static str> {
    let mut storage = empty_headers();
    let response = parse_response(head, method, &mut storage).map_err(|_| "the answer is malformed")?;
    Ok(http_answer(check, response.status, response.headers, body))
}

/// The whole body of an answer; one that is too long is none.
async fn body(
    node: &Node,
    wire: &Wire,
    reader: &mut Reader,
    framing: BodyFraming,
) -> Result<Vec<u8>, &'static str> {
    const BROKEN: &str = "the answer broke off";
    let mut body = Body::new(framing);
    let mut content = Vec::new();
    while !body.is_done() {
        if reader.is_empty() && reader.fill(&node.worker, wire).await.map_err(|_| BROKEN)? == 0 {
            body.close().map_err(|_| BROKEN)?;
            break;
        }
        let piece = body.step(reader.bytes()).map_err(|_| "the answer is malformed")?;
        let run = reader.bytes().get(piece.consumed - piece.payload..piece.consumed).unwrap_or_default();
        if content.len() + run.len() > BODY_BYTES_MAX {
            return Err("the answer is too long");
        }
        content.extend_from_slice(run);
        reader.advance(piece.consumed);
    }
    Ok(content)
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
