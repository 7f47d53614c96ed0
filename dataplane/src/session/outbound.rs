//! What a pod dials (port 15001): to the mesh through HBONE, elsewhere in plain text, by request where routes say so.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use model::AppProtocol;
use xds::snapshot::resolve::{Client, Destination, Refusal};
use xds::snapshot::{Route, ServiceEntry, Snapshot};

use super::connection::Connection;
use super::dial::{Dialler, UpstreamFacts, Wire, refusal_cause};
use super::http;
use super::node::{Node, workload_of};
use super::pod::Pod;
use super::state::NodeState;
use super::traffic::{Cluster, Hold};
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{Direction, Party};
use crate::link::{Flow, TunnelStream};
use crate::net::{self, RelayEnd, Socket, original_destination};

pub(super) fn serve(node: Rc<Node>, pod: Rc<Pod>, socket: Socket, remote: SocketAddr) {
    let worker = node.worker.clone();
    worker.spawn(open(node, pod, socket, remote));
}

/// Opens the way. What then carries the bytes is a task of its own: it may be idle for days and must not keep the room
/// that finding and dialling took.
async fn open(node: Rc<Node>, pod: Rc<Pod>, socket: Socket, remote: SocketAddr) {
    let source = Party { address: Some(remote), workload: None, identity: None };
    let connection = Connection::begin(&node, &pod, Direction::Outbound, source);
    let ready = {
        let preparing = pin!(prepare(&connection, &node, &pod, &socket, remote));
        connection.until_cut(preparing).await
    };
    match ready.and_then(|ready| ready) {
        Err(cause) => {
            socket.reset_on_close();
            connection.end(cause);
        }
        Ok(Ready::Tunnel(stream)) => {
            connection.established();
            node.worker.spawn(connection.carry(stream, socket, Flow::Downstream));
        }
        Ok(Ready::Plain(upstream)) => {
            connection.established();
            node.worker.spawn(carry_plain(connection, socket, upstream));
        }
        Ok(Ready::Http { caller, declared }) => {
            node.worker.spawn(carry_http(connection, *caller, declared, socket));
        }
    }
}

/// Relays between two plain sockets, and closes the books.
pub(super) async fn carry_plain(connection: Connection, socket: Socket, upstream: Socket) {
    let cause = relay_plain(&connection, &socket, &upstream).await;
    drop((socket, upstream));
    connection.end(cause);
}

/// Serves requests; on a port that is not declared what is no HTTP goes to the service as it comes.
async fn carry_http(connection: Connection, caller: http::Caller, declared: AppProtocol, socket: Socket) {
    let downstream = Wire::Socket(socket);
    let begun = if declared == AppProtocol::Unknown {
        match http::Begun::read(&connection, &downstream).await {
            Ok(begun) => Some(begun),
            Err(cause) => return give_up(connection, &downstream, cause),
        }
    } else {
        None
    };
    match (begun, downstream) {
        (Some(begun), Wire::Socket(socket)) if !begun.may_be_http() => {
            Box::pin(carry_other(connection, caller, socket, begun)).await;
        }
        (begun, downstream) => {
            let cause = http::route(&connection, caller, downstream, begun).await;
            connection.end_silently(cause);
        }
    }
}

fn give_up(connection: Connection, downstream: &Wire, cause: CloseCause) {
    if let Wire::Socket(socket) = downstream {
        socket.reset_on_close();
    }
    connection.end(cause);
}

/// Routes say nothing of bytes that are no requests.
async fn carry_other(connection: Connection, caller: http::Caller, socket: Socket, begun: http::Begun) {
    let http::Caller { node, pod, remote, to, .. } = &caller;
    let state = node.state();
    let workload = workload_of(&state, &pod.local).unwrap_or_else(|| caller.workload.clone());
    let dialler = Dialler { node, pod, workload: &workload, client: *remote };
    let opened = {
        let opening = pin!(async {
            let upstream = reach(&connection, &state, &dialler, *to).await?;
            upstream.write_all(begun.bytes()).await.map_err(|_| CloseCause::ServerReset)?;
            Ok(upstream)
        });
        connection.until_cut(opening).await
    };
    let counters = &connection.shared.counters;
    counters.sent.set(counters.sent.get() + begun.bytes().len() as u64);
    drop(begun);
    match opened.and_then(|opened| opened) {
        Ok(Wire::Tunnel(stream)) => {
            connection.established();
            connection.carry(stream, socket, Flow::Downstream).await;
        }
        Ok(Wire::Socket(upstream)) => {
            connection.established();
            carry_plain(connection, socket, upstream).await;
        }
        // Of a backend that a route of requests names; nothing here asks for one.
        Ok(Wire::Tls(_)) => {
            socket.reset_on_close();
            connection.end(CloseCause::TlsFailed);
        }
        Err(cause) => {
            socket.reset_on_close();
            connection.end(cause);
        }
    }
}

/// A captured connection whose way is decided and open.
enum Ready {
    Tunnel(TunnelStream),
    Plain(Socket),
    /// Each request finds its own way.
    Http {
        caller: Box<http::Caller>,
        declared: AppProtocol,
    },
}

async fn prepare(
    connection: &Connection,
    node: &Rc<Node>,
    pod: &Rc<Pod>,
    socket: &Socket,
    remote: SocketAddr,
) -> Result<Ready, CloseCause> {
    let to = original_destination(socket)
        .or_else(|| socket.local_address().ok())
        .ok_or(CloseCause::ConnectFailed)?;
    connection.record.borrow_mut().destination.address = Some(to);
    connection.shared.wanted.set(Some(to));
    // A connection that was not redirected was made to the proxy itself, and passing it on would come back here.
    if node.is_own_port(to.port()) && socket.local_address().is_ok_and(|local| local == to) {
        return Err(CloseCause::ReservedPort);
    }
    let (state, workload) = node.answered(&pod.local, remote, to).await?;
    {
        let mut record = connection.record.borrow_mut();
        record.source.workload = Some(workload.clone());
        record.source.identity = Some(workload.identity.clone());
    }
    connection.note_telemetry(&state.snapshot);
    let client = Client { workload: &workload, ip: remote.ip() };
    let destination = state.snapshot.destination(client, to).map_err(|refusal| refused(&refusal))?;
    if let Some(entry) = governed(&state.snapshot, client, &destination, to.port()) {
        connection.record.borrow_mut().service = Some(entry.service.clone());
        let goal = http::Goal::Service(entry.key().clone());
        let (node, pod) = (node.clone(), pod.clone());
        let declared = entry.service.port(to.port()).map(|port| port.app_protocol).unwrap_or_default();
        let caller = Box::new(http::Caller { node, pod, workload, remote, goal, to });
        return Ok(Ready::Http { caller, declared });
    }
    let dialler = Dialler { node, pod, workload: &workload, client: remote };
    match reach(connection, &state, &dialler, to).await? {
        Wire::Tunnel(stream) => Ok(Ready::Tunnel(stream)),
        Wire::Socket(upstream) => Ok(Ready::Plain(upstream)),
        // Of a backend that a route names; nothing here asks for one.
        Wire::Tls(_) => Err(CloseCause::TlsFailed),
    }
}

/// Decides the way and opens it. An endpoint that takes no connection is told from one that breaks one off: nothing has
/// been sent to it, so another one is tried, once.
async fn reach(
    connection: &Connection,
    state: &NodeState,
    dialler: &Dialler<'_>,
    to: SocketAddr,
) -> Result<Wire, CloseCause> {
    let (node, snapshot) = (dialler.node, &state.snapshot);
    let client = Client { workload: dialler.workload, ip: dialler.client.ip() };
    let cluster = cluster_of(node, state, client, to);
    let cluster = cluster.as_ref();
    let pick = cluster.map(|it| it.pick(state, it.key_of_connection(client.ip), to.ip()));
    let chooser = || pick.as_ref().map_or_else(|| node.chooser(), |pick| pick.chooser(node));
    let route = snapshot.resolve(client, to, chooser()).map_err(|refusal| refused(&refusal))?;
    let failed = match dial(connection, state, dialler, &route, cluster).await {
        Err(CloseCause::ConnectFailed) => route.workload,
        result => return result,
    };
    let Some(failed) = failed else { return Err(CloseCause::ConnectFailed) };
    match snapshot.resolve(client, to, chooser().avoiding(std::slice::from_ref(&failed))) {
        Ok(other) if other.workload.as_ref().is_some_and(|it| it.uid != failed.uid) => {
            tracing::debug!(endpoint = %failed.uid, "takes no connection; another one is tried");
            dial(connection, state, dialler, &other, cluster).await
        }
        _ => Err(CloseCause::ConnectFailed),
    }
}

/// What governs the traffic of a client to a service. A waypoint does that itself.
fn cluster_of(node: &Node, state: &NodeState, client: Client<'_>, to: SocketAddr) -> Option<Rc<Cluster>> {
    let destination = state.snapshot.destination(client, to).ok()?;
    let Destination::Service { entry, .. } = destination else { return None };
    if state.snapshot.is_behind_waypoint(client, &destination) {
        return None;
    }
    node.clusters.of(state, entry.key(), to.port(), None, client.workload.identity.namespace())
}

async fn dial(
    connection: &Connection,
    state: &NodeState,
    dialler: &Dialler<'_>,
    route: &Route,
    cluster: Option<&Rc<Cluster>>,
) -> Result<Wire, CloseCause> {
    connection.hold.replace(dialler.node.loaded(route).map(|load| Box::new(Hold::load(load))));
    connection.record.borrow_mut().service = route.service.as_ref().map(|entry| entry.service.clone());
    let mut facts = UpstreamFacts::of_route(route);
    facts.describe(&mut connection.record.borrow_mut());
    let wire = match cluster {
        None => dialler.dial(state, route, &mut facts).await?,
        Some(cluster) => {
            let dialled = pin!(dialler.dial(state, route, &mut facts));
            let (wire, hold) = cluster.open(state, route.workload.as_ref(), dialled).await?;
            connection.hold.replace(Some(Box::new(hold)));
            wire
        }
    };
    facts.describe(&mut connection.record.borrow_mut());
    Ok(wire)
}

/// Relays between two plain sockets until the end; a cut resets both.
async fn relay_plain(connection: &Connection, downstream: &Socket, upstream: &Socket) -> CloseCause {
    let relay = pin!(net::relay(&connection.node.worker, downstream, upstream, &connection.shared.counters));
    match connection.until_cut(relay).await {
        Ok(RelayEnd::Complete) => CloseCause::Finished,
        Ok(RelayEnd::Downstream(_)) => CloseCause::ClientReset,
        Ok(RelayEnd::Upstream(_)) => CloseCause::ServerReset,
        Err(cause) => {
            downstream.reset_on_close();
            upstream.reset_on_close();
            cause
        }
    }
}

/// The addressed service, if requests to it find their ways one by one: by its routes, or by its traffic policy. A waypoint
/// does that itself.
pub(crate) fn governed<'a>(
    snapshot: &Snapshot,
    client: Client<'_>,
    destination: &Destination<'a>,
    port: u16,
) -> Option<&'a Arc<ServiceEntry>> {
    let Destination::Service { entry, .. } = destination else { return None };
    let declared = entry.service.port(port)?.app_protocol;
    if snapshot.is_behind_waypoint(client, destination)
        || matches!(declared, AppProtocol::Tcp | AppProtocol::Tls)
    {
        return None;
    }
    let (key, namespace) = (entry.key(), client.workload.identity.namespace());
    let is_http = declared != AppProtocol::Unknown;
    let is_governed = snapshot.routes_for(key, port, namespace).is_some()
        // Nobody waits for the first bytes of what may be any protocol, to spread it.
        || (is_http && snapshot.traffic_to(key, port, None, namespace).is_some());
    is_governed.then_some(*entry)
}

fn refused(refusal: &Refusal) -> CloseCause {
    tracing::debug!(%refusal, "a captured connection is refused");
    refusal_cause(refusal)
}
