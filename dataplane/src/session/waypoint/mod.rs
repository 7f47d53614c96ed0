//! A waypoint: what node proxies send to the services and workloads that it stands before (port 15008).
//!
//! Each CONNECT names a destination, which must be behind this waypoint by the latest state; whatever else is asked for is
//! refused. A connection that carries HTTP is answered at once, and each of its requests is decided on its own: token,
//! policies, routes, endpoint ([`http`]). Any other connection is decided as a whole and passed on ([`tcp`]).
//!
//! Invariants:
//! - Policies see the identity that the tunnel's handshake has proved, and it is what is handed on.
//! - The next hop is an endpoint, never a waypoint, and never an instance of this one: no traffic turns in circles.
//! - What has not been told is not served: a destination without policies in the state is refused until they come.

mod front;
mod http;
mod tcp;

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::Workload;
use tunnel::h2::ErrorCode;
use tunnel::hbone::{Baggage, ConnectRequest, accept};
use tunnel::sniff::{Sniffed, sniff};

use self::front::{Found, Unserved};
use super::admission::Arrival;
use super::connection::{Authorized, Connection};
use super::http::{Caller, Goal, Wire, is_still_allowed as is_request_still_allowed};
use super::inbound::log_authority;
use super::node::{Node, workload_of};
use super::pod::Pod;
use super::state::NodeState;
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{Direction, HttpFacts, Party};
use crate::link::{IncomingRequest, TunnelStream};

pub(super) use self::front::Front;
pub(crate) use self::front::fronted;

/// Streams that a client may have open on one tunnel, as Istio's waypoints have it: with more it opens another tunnel,
/// which the kernel may give to another worker.
pub const STREAMS_MAX: u32 = 100;
/// Bytes that a stream may have sent and nobody taken; and all streams of a tunnel. Many clients share a tunnel, so what
/// its streams may hold together leaves room for more: those who do not read hold up nobody.
pub const STREAM_WINDOW: u32 = 512 << 10;
pub const CONNECTION_WINDOW: u32 = 64 << 20;

/// How long a request waits for the state to tell of its destination: the client's proxy may have heard of it first.
const FRONT_WAIT: Duration = Duration::from_secs(1);

/// How long a connection whose protocol is not declared may be silent before it counts as one that is not HTTP.
const SNIFF_WAIT: Duration = Duration::from_secs(5);

/// First bytes that are looked at.
const SNIFF_BYTES_MAX: usize = tunnel::sniff::REQUEST_LINE_BYTES_MAX;

/// The status of a request that cannot be read.
const STATUS_MALFORMED: u16 = 400;
/// The status of a connection that policy denies, as node proxies answer.
const STATUS_DENIED: u16 = 401;
/// The status where there is no way on.
const STATUS_UNREACHABLE: u16 = 503;

/// Serves one request of an accepted tunnel.
pub(super) async fn take(node: Rc<Node>, pod: Rc<Pod>, request: IncomingRequest, remote: SocketAddr) {
    let identity = Some(request.peer().identity.clone());
    let source = Party { address: Some(remote), workload: None, identity };
    let connection = Connection::begin(&node, &pod, Direction::Inbound, source);
    let ready = {
        let preparing = pin!(prepare(&connection, &node, &pod, request, remote));
        connection.until_cut(preparing).await
    };
    match ready.and_then(|ready| ready) {
        Err(cause) => connection.end(cause),
        Ok(Ready::Http { asked, stream }) => {
            if let Err(cause) = admitted(&connection, &asked, Reading::Requests) {
                mark_http(&connection);
                return connection.end(cause);
            }
            let Asked { front, arrival, own, goal, .. } = *asked;
            let caller = Caller { node, pod, workload: own, remote, goal, to: arrival.destination };
            let worker = connection.node.worker.clone();
            worker.spawn(http::serve(connection, caller, front, arrival, Wire::Tunnel(stream)));
        }
        Ok(Ready::Tcp { asked, downstream, upstream }) => {
            if let Err(cause) = admitted(&connection, &asked, Reading::Nothing) {
                downstream.reset(ErrorCode::CONNECT_ERROR);
                return connection.end(cause);
            }
            connection.established();
            // A task of its own, without the room that finding and dialling took.
            let worker = connection.node.worker.clone();
            worker.spawn(tcp::carry(connection, downstream, upstream));
        }
    }
}

/// A connection whose way is known.
enum Ready {
    Http { asked: Box<Asked>, stream: TunnelStream },
    Tcp { asked: Box<Asked>, downstream: TunnelStream, upstream: Wire },
}

/// What is read of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Requests,
    Nothing,
}

/// Its end is told as that of a request. Set no sooner, for it has the room of a whole request's facts.
fn mark_http(connection: &Connection) {
    connection.record.borrow_mut().http = Some(Box::<HttpFacts>::default());
}

/// Notes on which grounds a connection goes on. A state that came while its way was opened may have other ones.
fn admitted(connection: &Connection, asked: &Asked, reading: Reading) -> Result<(), CloseCause> {
    let reads_requests = reading == Reading::Requests;
    let authorized = Authorized::of_waypoint(&asked.arrival, asked.front.clone(), reads_requests);
    let node = &connection.node;
    let state = node.state();
    if !Arc::ptr_eq(&state, &asked.state) {
        let own = workload_of(&state, &connection.shared.pod).ok_or(CloseCause::UnknownWorkload)?;
        if !is_still_allowed(&state, &own, &connection.shared, &authorized, &asked.front) {
            return Err(CloseCause::PolicyChanged);
        }
    }
    connection.shared.authorized.replace(Some(authorized));
    node.registry.note_own_grounds(&connection.shared.pod);
    Ok(())
}

/// What a request asks for, and what was found.
struct Asked {
    front: Front,
    arrival: Arrival,
    state: Arc<NodeState>,
    own: Arc<Workload>,
    found: Found,
    goal: Goal,
}

async fn prepare(
    connection: &Connection,
    node: &Rc<Node>,
    pod: &Rc<Pod>,
    request: IncomingRequest,
    remote: SocketAddr,
) -> Result<Ready, CloseCause> {
    let asked = match ask(connection, node, pod, &request, remote).await {
        Ok(asked) => asked,
        Err((status, cause)) => {
            request.refuse(status);
            return Err(cause);
        }
    };
    let described = if node.options.response_baggage { pod.baggage_of(&asked.own) } else { Rc::default() };
    let answer = accept(&described).map_err(|_| CloseCause::TunnelFailed)?;
    let accept = |request: IncomingRequest| request.accept(&answer).map_err(|_| CloseCause::ClientReset);
    match (&asked.found.served.http, &asked.found.served.tcp) {
        (Some(_), None) => Ok(Ready::Http { asked: Box::new(asked), stream: accept(request)? }),
        (None, Some(served)) => {
            if !tcp::is_allowed(node, &served.policies, &asked.arrival) {
                request.refuse(STATUS_DENIED);
                return Err(CloseCause::PolicyDenied);
            }
            match tcp::reach(connection, node, pod, &asked, remote).await {
                Ok(upstream) => {
                    Ok(Ready::Tcp { asked: Box::new(asked), downstream: accept(request)?, upstream })
                }
                Err(cause) => {
                    request.refuse(STATUS_UNREACHABLE);
                    Err(cause)
                }
            }
        }
        (Some(_), Some(served)) => {
            let downstream = accept(request)?;
            if speaks_http(&downstream).await {
                return Ok(Ready::Http { asked: Box::new(asked), stream: downstream });
            }
            let opened = if tcp::is_allowed(node, &served.policies, &asked.arrival) {
                tcp::reach(connection, node, pod, &asked, remote).await
            } else {
                Err(CloseCause::PolicyDenied)
            };
            match opened {
                Ok(upstream) => Ok(Ready::Tcp { asked: Box::new(asked), downstream, upstream }),
                Err(cause) => {
                    // Dropped it would look like an ordinary end.
                    downstream.reset(ErrorCode::CONNECT_ERROR);
                    Err(cause)
                }
            }
        }
        (None, None) => {
            request.refuse(STATUS_UNREACHABLE);
            Err(CloseCause::NoHealthyEndpoint)
        }
    }
}

/// Reads the request and finds its destination; else the status that it is answered with, and why.
async fn ask(
    connection: &Connection,
    node: &Rc<Node>,
    pod: &Rc<Pod>,
    request: &IncomingRequest,
    remote: SocketAddr,
) -> Result<Asked, (u16, CloseCause)> {
    let peer = request.peer().identity.clone();
    let parsed = ConnectRequest::parse(request.headers()).map_err(|error| {
        tracing::debug!(%error, %remote, "a tunnel request is refused");
        (STATUS_MALFORMED, CloseCause::WrongDestination)
    })?;
    let authority = parsed.authority().clone();
    connection.describe_tunnel(request.peer().cipher, log_authority(&authority));
    let dialled = request.link().map(|link| link.local_address());
    connection.record.borrow_mut().destination.address = dialled;
    let known = node.workload(&pod.local).await;
    known.ok_or((STATUS_UNREACHABLE, CloseCause::UnknownWorkload))?;
    if let Some(link) = request.link() {
        node.refuse_revoked(link).map_err(|cause| (STATUS_UNREACHABLE, cause))?;
    }
    let front = Front { authority, namespace: peer.namespace().into() };
    let (state, own, found) = find(node, pod, &front).await.map_err(|unserved| {
        tracing::debug!(%unserved, %remote, "a tunnel request is refused");
        (unserved.status(), cause_of(&unserved))
    })?;
    let arrival = Arrival { source: Some(peer), source_address: remote, destination: found.address };
    let goal = match (&found.served.service, &found.workload) {
        (Some(service), _) => Goal::Service(service.clone()),
        (None, Some(workload)) => Goal::Workload(workload.clone()),
        (None, None) => return Err((STATUS_UNREACHABLE, CloseCause::NoHealthyEndpoint)),
    };
    describe(connection, node, &state, &own, &found, &parsed.baggage());
    connection.note_telemetry(&state.snapshot);
    Ok(Asked { front, arrival, state, own, found, goal })
}

/// The destination by the latest state; a state that tells of it is waited for.
async fn find(
    node: &Node,
    pod: &Pod,
    front: &Front,
) -> Result<(Arc<NodeState>, Arc<Workload>, Found), Unserved> {
    let deadline = Instant::now() + FRONT_WAIT;
    loop {
        let superseded = node.superseded();
        let state = node.state();
        let unserved = match workload_of(&state, &pod.local) {
            Some(own) => match front.find(&state, &own) {
                Ok(found) => return Ok((state, own, found)),
                Err(unserved) => unserved,
            },
            None => Unserved::NotTold(front.authority.clone()),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if monoio::time::timeout(left, superseded.wait()).await.is_err() {
            return Err(unserved);
        }
    }
}

/// Fills in who talks to whom, for the books.
fn describe(
    connection: &Connection,
    node: &Node,
    state: &NodeState,
    own: &Workload,
    found: &Found,
    baggage: &Baggage,
) {
    let mut record = connection.record.borrow_mut();
    let identity = record.source.identity.clone();
    let address = record.source.address.map(|address| address.ip());
    let owner = address.and_then(|ip| state.snapshot.workload_by_address(&own.network, ip));
    // After a renumbering the address may be another's; then what the source says of itself is the better hint.
    let owner = owner.filter(|owner| identity.as_ref() == Some(&owner.identity)).cloned();
    let described = || identity.as_ref().map(|identity| Arc::new(baggage.to_workload(identity)));
    record.source.workload = owner.or_else(|| described().filter(|_| node.options.response_baggage));
    record.destination.workload.clone_from(&found.workload);
    let key = found.served.service.as_ref();
    let entry = key.and_then(|key| state.snapshot.service(&key.namespace, &key.hostname));
    record.service = entry.map(|entry| entry.service.clone());
}

/// Whether the first bytes of a connection are HTTP.
async fn speaks_http(stream: &TunnelStream) -> bool {
    let looking = async {
        let mut seen = 0;
        loop {
            let (sniffed, count) = stream.peek(|bytes| (sniff(bytes), bytes.len()));
            match sniffed {
                Sniffed::Http1 | Sniffed::Http2 => return true,
                Sniffed::Tls | Sniffed::Unknown => return false,
                // The same bytes once more: nothing else will come.
                Sniffed::NeedMore if count > 0 && count == seen => return false,
                Sniffed::NeedMore if count > SNIFF_BYTES_MAX => return false,
                Sniffed::NeedMore => {}
            }
            seen = count;
            stream.received_more_than(count).await;
            if stream.peek(<[u8]>::len) == count {
                return false;
            }
        }
    };
    monoio::time::timeout(SNIFF_WAIT, looking).await.unwrap_or(false)
}

/// Whether what was admitted would be admitted still.
pub(super) fn is_still_allowed(
    state: &NodeState,
    own: &Workload,
    connection: &super::connection::Shared,
    authorized: &Authorized,
    front: &Front,
) -> bool {
    let Ok(found) = front.find(state, own) else { return false };
    let attributes = authorized.attributes();
    if authorized.reads_requests {
        let Some(http) = &found.served.http else { return false };
        connection.cut_requests(CloseCause::PolicyChanged, |head| {
            is_request_still_allowed(&http.policies, &attributes, head)
        });
        return true;
    }
    found.served.tcp.is_some_and(|served| served.policies.evaluate(&attributes, None).is_allowed())
}

fn cause_of(unserved: &Unserved) -> CloseCause {
    match unserved {
        Unserved::NotBehindUs(_) => CloseCause::WrongDestination,
        Unserved::NoPort { .. } => CloseCause::NoHealthyEndpoint,
        Unserved::NotTold(_) => CloseCause::UnknownDestination,
    }
}
