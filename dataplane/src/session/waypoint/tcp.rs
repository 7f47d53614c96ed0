//! Connections that carry no HTTP: decided once, passed on as they are.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use l7::authz::PolicySet;
use l7::ir::BackendTarget;
use l7::router::{Picked, pick_backend};
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

/// Whose endpoints a connection may have.
struct Aim {
    goal: Goal,
    /// What was asked for, with the port of the service that it goes to.
    to: SocketAddr,
    subset: Option<Arc<str>>,
    by_client: bool,
}

impl Aim {
    /// Drawn once for a connection: a second try is one at the same backend.
    fn draw(node: &Node, asked: &Asked) -> Result<Self, CloseCause> {
        let to = asked.arrival.destination;
        let way = asked.found.served.tcp.as_ref().and_then(|served| served.way.as_ref());
        let by_client = way.is_none_or(|way| way.by_client);
        let Some(way) = way.filter(|way| !way.backends.is_empty()) else {
            return Ok(Self { goal: asked.goal.clone(), to, subset: None, by_client });
        };
        let Picked::Backend(backend) = pick_backend(&way.backends, node.random()) else {
            return Err(CloseCause::NoHealthyEndpoint);
        };
        match &backend.target {
            BackendTarget::Service { service, port } => Ok(Self {
                goal: Goal::Service(service.clone()),
                to: SocketAddr::new(to.ip(), *port),
                subset: backend.subset.clone(),
                by_client,
            }),
            BackendTarget::Invalid(reason) => {
                tracing::debug!(%reason, "a connection has nowhere to go");
                Err(CloseCause::NoHealthyEndpoint)
            }
        }
    }
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
    let aim = Aim::draw(node, asked)?;
    let cluster = match &aim.goal {
        Goal::Service(service) => {
            let (port, namespace) = (aim.to.port(), asked.own.identity.namespace());
            node.clusters.of(&asked.state, service, port, aim.subset.as_ref(), namespace)
        }
        Goal::Workload(_) => None,
    };
    let cluster = cluster.as_ref();
    let key = |it: &Cluster| aim.by_client.then(|| it.key_of_connection(client.ip)).flatten();
    let pick = cluster.map(|it| it.pick(&asked.state, key(it), aim.to.ip()));
    let chooser = || pick.as_ref().map_or_else(|| node.chooser(), |pick| pick.chooser(node));
    let chosen = |chooser| aim.goal.resolve(&asked.state, client, aim.to, aim.subset.as_deref(), chooser);
    let refused = |refusal: Refusal| {
        tracing::debug!(%refusal, "a connection has nowhere to go");
        refusal_cause(&refusal)
    };
    let first = chosen(chooser()).map_err(refused)?;
    let failed = match dial(connection, asked, &dialler, &first, cluster).await {
        Err(CloseCause::ConnectFailed) => first.workload,
        result => return result,
    };
    let Some(failed) = failed.filter(|_| matches!(aim.goal, Goal::Service(_))) else {
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
