//! What a route does to a request before any backend is chosen: it holds it up, or answers in the backend's place.

use l7::fault::Drawn;
use l7::filter::Chain;
use l7::ir::{AbortWith, DirectResponse};
use l7::router::{MatchedRoute, RouteMatch, Router};

use super::route::{Caller, note};
use super::{Books, Received, Reply};
use crate::access_log::cause::CloseCause;
use crate::session::state::NodeState;

/// What is done to one request.
#[derive(Debug, Default)]
struct Done {
    drawn: Drawn,
    direct: Option<Reply>,
}

/// Holds a request up as its route says; an error is the route's own answer.
pub(in crate::session) async fn prepare(
    caller: &Caller,
    state: &NodeState,
    router: &Router,
    request: &Received,
    books: &mut Books<'_>,
) -> Result<(), Reply> {
    let found = request.view(|head| match router.route_from(head, caller.sender(state)) {
        RouteMatch::NotFound => None,
        RouteMatch::Matched(matched) => Some(of_rule(&matched, caller, books)),
    });
    // A head that cannot be read is refused afterwards.
    let Ok(Some(Done { drawn, direct })) = found else { return Ok(()) };
    if let Some(delay) = drawn.delay {
        monoio::time::sleep(delay).await;
    }
    match drawn.abort {
        Some(with) => Err(aborted(with)),
        None => direct.map_or(Ok(()), Err),
    }
}

fn of_rule(matched: &MatchedRoute<'_>, caller: &Caller, books: &mut Books<'_>) -> Done {
    let (node, rule) = (&caller.node, matched.rule);
    let drawn = rule.fault.as_ref().map(|fault| fault.draw(node.random(), node.random())).unwrap_or_default();
    let direct = rule
        .direct
        .as_ref()
        .map(|direct| answered(direct, &Chain::of_rule(rule.filters.as_ref(), matched.matched())));
    if drawn.abort.is_some() || direct.is_some() {
        note(matched, &mut books.facts);
    }
    Done { drawn, direct }
}

fn answered(direct: &DirectResponse, chain: &Chain) -> Reply {
    let fields = chain.response_fields(&[]);
    let fields = fields.iter().map(|it| (it.name.to_owned().into(), it.value.to_vec())).collect();
    Reply { status: direct.status, body: direct.body.to_string().into(), fields, cause: CloseCause::Finished }
}

/// A fault that was asked for. gRPC has its status in a response without body.
fn aborted(with: AbortWith) -> Reply {
    match with {
        AbortWith::Http(status) => Reply::text(status, "fault filter abort", CloseCause::FaultInjected),
        AbortWith::Grpc(code) => Reply::text(200, "", CloseCause::FaultInjected)
            .with("content-type", "application/grpc")
            .with("grpc-status", code.to_string())
            .with("grpc-message", "fault filter abort"),
    }
}
