//! Connections that carry no HTTP: decided once, passed on as they are.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;

use l7::authz::PolicySet;
use tunnel::h2::ErrorCode;
use xds::snapshot::Route;
use xds::snapshot::resolve::{Client, Refusal};

use super::Asked;
use crate::access_log::cause::CloseCause;
use crate::link::{Flow, JoinEnd, TunnelStream};
use crate::session::admission::Arrival;
use crate::session::connection::Connection;
use crate::session::dial::{Dialler, UpstreamFacts, Wire, refusal_cause};
use crate::session::http::Goal;
use crate::session::node::Node;
use crate::session::pod::Pod;
use crate::session::shadow::observe;
use crate::session::traffic::{Cluster, Hold};

/// What only requests have is absent.
pub(super) fn is_allowed(node: &Node, policies: &PolicySet, arrival: &Arrival) -> bool {
    observe(&node.metrics, policies, &arrival.attributes(), None);
    policies.evaluate(&arrival.attributes(), None).is_allowed()
}

/// Opens the way to an endpoint. One that takes no connection is told from one that breaks one off: nothing has been sent
/// to it, so another one is tried, once.
pub(super) async fn reach(
    connection: &Connection,
    node: &Rc<Node>,
    pod: &Rc<Pod>,
    asked: &Asked,
    remote: SocketAddr,
) -> Result<Wire, CloseCause> {
    let dialler = Dialler { node, pod, workload: &asked.own, client: remote };
    let client = Client { workload: &asked.own, ip: remote.ip() };
    let cluster = match &asked.goal {
        Goal::Service(service) => {
            let (port, namespace) = (asked.arrival.destination.port(), asked.own.identity.namespace());
            node.clusters.of(&asked.state, service, port, None, namespace)
        }
        Goal::Workload(_) => None,
    };
    let cluster = cluster.as_ref();
    let requested = asked.arrival.destination.ip();
    let pick = cluster.map(|it| it.pick(&asked.state, it.key_of_connection(client.ip), requested));
    let chooser = || pick.as_ref().map_or_else(|| node.chooser(), |pick| pick.chooser(node));
    let chosen = |chooser| asked.goal.resolve(&asked.state, client, asked.arrival.destination, None, chooser);
    let refused = |refusal: Refusal| {
        tracing::debug!(%refusal, "a connection has nowhere to go");
        refusal_cause(&refusal)
    };
    let first = chosen(chooser()).map_err(refused)?;
    let failed = match dial(connection, asked, &dialler, &first, cluster).await {
        Err(CloseCause::ConnectFailed) => first.workload,
        result => return result,
    };
    let Some(failed) = failed.filter(|_| matches!(asked.goal, Goal::Service(_))) else {
        return Err(CloseCause::ConnectFailed);
    };
    match chosen(chooser().avoiding(std::slice::from_ref(&failed))) {
        Ok(other) if other.workload.as_ref().is_some_and(|it| it.uid != failed.uid) => {
            dial(connection, asked, &dialler, &other, cluster).await
        }
        _ => Err(CloseCause::ConnectFailed),
    }
}

async fn dial(
    connection: &Connection,
    asked: &Asked,
    dialler: &Dialler<'_>,
    route: &Route,
    cluster: Option<&Rc<Cluster>>,
) -> Result<Wire, CloseCause> {
    connection.hold.replace(dialler.node.loaded(route).map(|load| Box::new(Hold::load(load))));
    let mut facts = UpstreamFacts::of_route(route);
    let wire = match cluster {
        None => dialler.dial(&asked.state, route, &mut facts).await?,
        Some(cluster) => {
            let dialled = pin!(dialler.dial(&asked.state, route, &mut facts));
            let (wire, hold) = cluster.open(&asked.state, route.workload.as_ref(), dialled).await?;
            connection.hold.replace(Some(Box::new(hold)));
            wire
        }
    };
    connection.record.borrow_mut().destination.clone_from(&facts.destination);
    Ok(wire)
}

/// Passes bytes on to the end, and closes the books.
pub(super) async fn carry(connection: Connection, downstream: TunnelStream, upstream: Wire) {
    match upstream {
        Wire::Socket(socket) => connection.carry(downstream, socket, Flow::Upstream).await,
        Wire::Tunnel(upstream) => {
            let cause = join(&connection, downstream, upstream).await;
            connection.end(cause);
        }
        // Of a backend that a route of requests names; nothing here asks for one.
        Wire::Tls(_) => connection.end(CloseCause::TlsFailed),
    }
}

/// A cut resets both, so that neither side takes what it got for the whole.
async fn join(connection: &Connection, downstream: TunnelStream, upstream: TunnelStream) -> CloseCause {
    let cutters = [downstream.cutter(), upstream.cutter()];
    let mut joined = pin!(downstream.join(upstream, &connection.shared.counters));
    match connection.until_cut(joined.as_mut()).await {
        Ok(JoinEnd::Complete) => CloseCause::Finished,
        Ok(JoinEnd::Downstream(_)) => CloseCause::ClientReset,
        Ok(JoinEnd::Upstream(_)) => CloseCause::ServerReset,
        Err(cause) => {
            for cutter in cutters {
                cutter.cut(ErrorCode::CONNECT_ERROR);
            }
            joined.await;
            cause
        }
    }
}
