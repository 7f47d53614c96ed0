//! HTTP/1.1 at the node: requests are read one by one, decided, and forwarded.
//!
//! - [`route`](mod@route): at the client's proxy, each request goes to the backend that the service's routes choose;
//! - [`authorize`](mod@authorize): at the server's proxy, each request is allowed or denied by the workload's policies.
//!
//! Both are a [`Director`] under the same loop ([`conversation`]), so a request is parsed, normalised and forwarded by
//! the same code wherever it is decided. The path that was matched is the path that is forwarded.

mod authorize;
mod conversation;
mod exchange;
mod reader;
mod route;

use std::time::Duration;

use bytes::Bytes;
use l7::filter::Chain;
use l7::ir::RequestHead;

pub(super) use super::dial::Wire;
use super::load::LoadGuard;
use crate::access_log::cause::CloseCause;
use crate::access_log::record::HttpFacts;
pub(super) use authorize::{Application, is_still_allowed, serve};
pub(super) use route::{Caller, route};

use reader::Reader;

/// How paths are normalised before they are matched and forwarded: Istio's default.
const NORMALIZATION: l7::path::Normalization = l7::path::Normalization::Base;

/// An answer of the proxy's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reply {
    status: u16,
    body: &'static str,
    cause: CloseCause,
}

/// What a route makes of a request and of its response.
#[derive(Debug, Default)]
struct Filtered {
    chain: Chain,
    /// Of the redirect that answers the request.
    location: Option<String>,
    /// `www-authenticate` of the answer to a request whose token is refused.
    challenge: Option<String>,
    /// From the request's head to the end of the response.
    limit: Option<Duration>,
}

/// An upstream that carries one request at a time.
#[derive(Debug)]
struct Upstream {
    wire: Wire,
    reader: Reader,
    /// A request is on its way. Dropped meanwhile, the upstream must see a reset and not an end.
    busy: bool,
    /// Counts at the endpoint where endpoints are chosen by load.
    _load: Option<LoadGuard>,
}

impl Upstream {
    fn new(wire: Wire, load: Option<LoadGuard>) -> Self {
        Self { wire, reader: Reader::default(), busy: false, _load: load }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if self.busy {
            self.wire.reset();
        }
    }
}

/// Decides what becomes of requests.
trait Director {
    /// Where a request goes.
    type Choice;

    /// Decides about one request, and notes in `facts` why. `raw` is the head as it was received.
    fn decide(
        &mut self,
        request: &RequestHead<'_>,
        raw: &Bytes,
        facts: &mut HttpFacts,
    ) -> Result<Self::Choice, Reply>;

    /// The filters for the request that was just decided.
    fn filtered(&mut self) -> Filtered {
        Filtered::default()
    }

    /// Opens, or takes from those that are open, the upstream of a choice, and describes it in the books.
    async fn upstream(&mut self, choice: Self::Choice) -> Result<Upstream, Reply>;

    /// The request is over. The upstream comes back if it can carry another.
    fn finished(&mut self, upstream: Option<Upstream>);
}
