//! HTTP at the node: requests are read one by one, decided, and forwarded.
//!
//! - [`route`](mod@route): at the client's proxy, each request goes to the backend that the service's routes choose;
//! - [`authorize`](mod@authorize): at the server's proxy, each request is allowed or denied by the workload's policies.
//!
//! Both are a [`Director`] under the same loop ([`conversation`]), so a request is parsed, normalised and forwarded by
//! the same code wherever it is decided. The path that was matched is the path that is forwarded.

mod authorize;
mod books;
mod conversation;
mod exchange;
mod head;
mod reader;
mod reply;
mod route;

use std::sync::Arc;
use std::time::Duration;

use l7::filter::Chain;
use l7::ir::{Filters, RequestHead};

use super::dial::UpstreamFacts;
pub(super) use super::dial::Wire;
use super::load::LoadGuard;
pub(super) use authorize::{Application, Permit, is_still_allowed, permit, serve};
pub(super) use books::Books;
pub(super) use conversation::converse;
pub(super) use head::Received;
pub(super) use reply::Reply;
pub(super) use route::{Caller, Goal, Steering, Way, route};

use reader::Reader;

/// How paths are normalised before they are matched and forwarded: Istio's default.
pub(crate) const NORMALIZATION: l7::path::Normalization = l7::path::Normalization::Base;

/// What is done to a request and to its response.
#[derive(Debug, Default)]
pub(super) struct Filtered {
    pub(super) chain: Chain,
    /// From the request's head to the end of the response.
    pub(super) limit: Option<Duration>,
}

/// What becomes of a request: where it goes, or the answer in the upstream's place.
#[derive(Debug)]
pub(super) struct Decision<C> {
    pub(super) verdict: Result<C, Reply>,
    pub(super) filtered: Filtered,
}

impl<C> Decision<C> {
    /// It goes to `choice`.
    pub(super) fn forward(choice: C, filtered: Filtered) -> Self {
        Self { verdict: Ok(choice), filtered }
    }

    /// It goes nowhere.
    pub(super) fn answer(reply: Reply) -> Self {
        Self { verdict: Err(reply), filtered: Filtered::default() }
    }
}

/// An upstream that carries one request at a time.
#[derive(Debug)]
pub(super) struct Upstream {
    wire: Wire,
    reader: Reader,
    /// A request is on its way. Dropped meanwhile, the upstream must see a reset and not an end.
    busy: bool,
    /// Whom it reaches, where the director has more than one.
    facts: Option<Box<UpstreamFacts>>,
    /// Counts at the endpoint where endpoints are chosen by load.
    _load: Option<LoadGuard>,
}

impl Upstream {
    pub(super) fn new(wire: Wire, facts: Option<Box<UpstreamFacts>>, load: Option<LoadGuard>) -> Self {
        Self { wire, reader: Reader::default(), busy: false, facts, _load: load }
    }

    /// Whether it may be used again: nothing has arrived, neither bytes nor an end.
    pub(super) fn is_quiet(&self) -> bool {
        self.wire.is_quiet()
    }

    /// Whom it reaches, as it was told to [`Upstream::new`].
    pub(super) fn facts(&self) -> Option<&UpstreamFacts> {
        self.facts.as_deref()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if self.busy {
            self.wire.reset();
        }
    }
}

/// Decides what becomes of the requests of one downstream connection, which may run at the same time: what concerns one
/// of them alone belongs into its decision and its books.
pub(super) trait Director {
    /// Where a request goes, and from which state that was chosen.
    type Choice;

    /// Asks somebody else about a request before it is decided. What comes back is done to the request, and the decision
    /// is made about the outcome. A head that cannot be read is refused afterwards in any case.
    async fn consult(
        &self,
        request: &Received,
        books: &mut Books<'_>,
    ) -> Result<Option<Arc<Filters>>, Reply> {
        let _ = (request, books);
        Ok(None)
    }

    /// Decides about one request from the state in force, and notes in the books why.
    fn decide(&self, request: &RequestHead<'_>, books: &mut Books<'_>) -> Decision<Self::Choice>;

    /// Opens, or takes from those that are open, an upstream of a choice, and describes it in the books. Called once for
    /// each try at a request.
    async fn upstream(&self, choice: &mut Self::Choice, books: &mut Books<'_>) -> Result<Upstream, Reply>;

    /// Takes back an upstream that can carry another request.
    fn keep(&self, upstream: Upstream);
}
