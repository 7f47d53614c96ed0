//! HTTP at the node: requests are read one by one, decided, and forwarded.
//!
//! - [`route`](mod@route): at the client's proxy, each request goes to the backend that the service's routes choose;
//! - [`authorize`](mod@authorize): at the server's proxy, each request is allowed or denied by the workload's policies.
//!
//! Both are a [`Director`] under the same loop ([`conversation`]), so a request is parsed, normalised and forwarded by
//! the same code wherever it is decided. The path that was matched is the path that is forwarded.

mod ask;
mod authorize;
mod authorizers;
mod body;
mod books;
mod consult;
mod conversation;
mod copies;
mod exchange;
mod head;
mod http2;
mod opening;
mod own_answer;
mod reader;
mod replay;
mod reply;
mod request;
mod response;
mod retrying;
mod route;
mod shelf;
mod side;
mod steered;
mod switch;
mod upstream;
mod way;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use l7::filter::Chain;
use l7::ir::{Filters, RequestHead};
use l7::outlier::Answer;
use l7::path::Normalization;
use model::AppProtocol;
use tunnel::sniff::{Sniffed, sniff};

use super::connection::Connection;
pub(super) use super::dial::Wire;
use crate::access_log::cause::CloseCause;
pub(super) use authorize::{Allowed, Application, Permit, is_still_allowed, permit, serve};
pub(super) use authorizers::Authorizers;
pub(super) use books::Books;
pub(super) use consult::Asker;
pub use copies::COPIES_MAX;
pub(super) use head::Received;
pub(super) use opening::Opening;
pub(super) use own_answer::prepare;
pub(super) use reply::Reply;
pub(super) use request::Failure;
pub(super) use route::{Caller, Goal, Steering, route};
pub(super) use shelf::Shelf;
pub(super) use upstream::{Upstream, protocol_to};
pub(super) use way::Way;

use copies::Copies;
use reader::Reader;
use retrying::Retrying;

/// How paths are normalised before they are matched and forwarded: Istio's default.
pub(crate) const NORMALIZATION: Normalization = Normalization::Base;

/// What carries a request, or shall carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// What is done to a request and to its response.
#[derive(Debug, Default)]
pub(super) struct Filtered {
    pub(super) chain: Chain,
    /// From the request's head to the end of the response, all tries together.
    pub(super) limit: Option<Duration>,
    /// The same for each try.
    pub(super) try_limit: Option<Duration>,
    pub(super) keep: Keep,
    /// What the route says of further tries.
    pub(super) retrying: Option<Retrying>,
    /// Who else gets the request.
    pub(super) copies: Option<Copies>,
}

/// Whether the body of a request is kept while it is forwarded, up to [`replay::REPLAY_BYTES_MAX`]. Where the content is
/// looked at anyway, as towards an upstream that speaks HTTP/2, it always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Keep {
    #[default]
    Nothing,
    /// The request may have to be sent again, or elsewhere as well.
    Body,
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

/// Decides what becomes of the requests of one downstream connection, which may run at the same time: what concerns one
/// of them alone belongs into its decision and its books.
pub(super) trait Director {
    /// Where a request goes, and from which state that was chosen.
    type Choice;

    /// How the path of the next request is normalised before it is matched and forwarded.
    fn normalization(&self) -> Normalization {
        NORMALIZATION
    }

    /// What the destination's port is declared to carry, as far as that is known.
    fn declared(&self) -> AppProtocol {
        AppProtocol::Unknown
    }

    /// Asks somebody else about a request before it is decided. What comes back is done to the request, and the decision
    /// is made about the outcome. A head that cannot be read is refused afterwards in any case.
    async fn consult(
        &self,
        request: &Received,
        opening: &mut Opening<'_>,
        books: &mut Books<'_>,
    ) -> Result<Option<Arc<Filters>>, Reply> {
        let _ = (request, opening, books);
        Ok(None)
    }

    /// Decides about one request from the state in force, and notes in the books why.
    fn decide(&self, request: &RequestHead<'_>, books: &mut Books<'_>) -> Decision<Self::Choice>;

    /// Opens, or takes from those that are open, an upstream of a choice, and describes it in the books. Called once for
    /// each try at a request.
    async fn upstream(&self, choice: &mut Self::Choice, books: &mut Books<'_>) -> Result<Upstream, Reply>;

    /// Told how each try ended, for whoever keeps count of an endpoint's failures.
    fn note(&self, choice: &Self::Choice, answer: Answer) {
        let _ = (choice, answer);
    }

    /// Takes back an upstream that can carry another request.
    fn keep(&self, upstream: Upstream);

    /// Whether a request whose last try has failed is tried again, and after which pause. `tries` counts those made. Asked
    /// only as long as nothing of a response has been passed on. A body that went on as it came, from HTTP/1.1 to HTTP/1.1,
    /// cannot be sent again; any other is kept up to 64 KiB.
    fn again(&self, filtered: &Filtered, failure: Failure, tries: u32) -> Option<Duration> {
        match &filtered.retrying {
            Some(retrying) => retrying.again(failure, tries),
            None => request::again_if_refused(failure, tries),
        }
    }
}

/// Serves the requests of a downstream connection, in the protocol that its first bytes show.
pub(super) async fn converse<D: Director>(
    connection: &Connection,
    downstream: Wire,
    director: &D,
) -> CloseCause {
    let mut reader = Reader::default();
    let wants_http2 = is_http2(director.declared());
    let begun = {
        let worker = &connection.node.worker;
        // Of its own, for as long as it takes: the connection must not keep the room.
        let reading = Box::pin(async {
            if wants_http2 {
                reader.first_line(worker, &downstream).await
            } else {
                reader.preface(worker, &downstream).await
            }
        });
        let begun = pin!(worker.unless_draining(reading));
        connection.until_cut(begun).await
    };
    // What has failed or drained so far is found out by whoever goes on.
    drop(begun);
    converse_from(connection, downstream, Begun { reader }, director).await
}

fn is_http2(declared: AppProtocol) -> bool {
    matches!(declared, AppProtocol::Http2 | AppProtocol::Grpc)
}

/// The first bytes of a connection.
#[derive(Debug)]
pub(super) struct Begun {
    reader: Reader,
}

impl Begun {
    /// Waits until they show whether the connection carries HTTP. One that ends or fails before may.
    pub(super) async fn read(connection: &Connection, downstream: &Wire) -> Result<Self, CloseCause> {
        let mut reader = Reader::default();
        {
            let worker = &connection.node.worker;
            // Of its own, for as long as it takes: the connection must not keep the room.
            let begun = pin!(worker.unless_draining(Box::pin(reader.first_line(worker, downstream))));
            let _begun = connection.until_cut(begun).await?;
        }
        Ok(Self { reader })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.reader.bytes()
    }

    /// Whether they may be HTTP, well-formed or not: what is not well-formed is refused and not passed on unread.
    pub(super) fn may_be_http(&self) -> bool {
        may_be_http(self.bytes())
    }
}

fn may_be_http(bytes: &[u8]) -> bool {
    match sniff(bytes) {
        Sniffed::Http1 | Sniffed::Http2 => true,
        Sniffed::Tls => false,
        Sniffed::NeedMore | Sniffed::Unknown => {
            bytes.is_empty() || names_method(bytes) || memmem(bytes, b" HTTP/")
        }
    }
}

fn memmem(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// Whether the bytes begin with a method of RFC 9110 or RFC 5789.
fn names_method(bytes: &[u8]) -> bool {
    const METHODS: [&[u8]; 9] =
        [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH "];
    let bytes = bytes.trim_ascii_start();
    METHODS.iter().any(|method| bytes.starts_with(method))
}

async fn converse_from<D: Director>(
    connection: &Connection,
    downstream: Wire,
    Begun { reader }: Begun,
    director: &D,
) -> CloseCause {
    let sniffed = sniff(reader.bytes());
    // Where HTTP/2 is expected, what is HTTP of no version is told so in the words of HTTP/2 (RFC 9113 section 3.4).
    let is_bad_preface = matches!(sniffed, Sniffed::Tls | Sniffed::Unknown)
        && is_http2(director.declared())
        && !may_be_http(reader.bytes());
    if sniffed == Sniffed::Http2 || is_bad_preface {
        Box::pin(http2::converse(connection, downstream, reader.bytes(), director)).await
    } else {
        conversation::converse(connection, &downstream, reader, director).await
    }
}
