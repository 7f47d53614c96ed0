//! What other proxies send to a pod (port 15008): HBONE over mTLS, each CONNECT validated, authorized, handed on.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use model::Workload;
use tunnel::hbone::{
    Baggage, ConnectRequest, Destination, DestinationError, Forwarded, Host, accept, resolve,
};

use super::admission::{Admission, Arrival, admit};
use super::application::{dial_application, dial_application_tunnel};
use super::connection::Connection;
use super::http;
use super::lookup::Lookup;
use super::node::{Node, NodeOptions, Role, contexts_of, workload_of};
use super::pod::Pod;
use super::state::{NodeState, TlsContexts};
use super::waypoint;
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{Authority, Direction, Party};
use crate::link::CloseCause::TlsCertificateRevoked;
use crate::link::{Flow, Handler, IncomingRequest, Link, LinkEnd, ServerOptions, TunnelStream};
use crate::metrics::{Counter, Reporter};
use crate::net::Socket;

/// The answer to a request for which there is no room.
const STATUS_BUSY: u16 = 503;

pub(super) fn serve(node: Rc<Node>, pod: Rc<Pod>, socket: Socket, remote: SocketAddr) {
    let state = node.state();
    let workload = workload_of(&state, &pod.local);
    if let Some(contexts) = workload.and_then(|workload| contexts_of(&state, &workload)) {
        accept_tunnel(&node, &pod, socket, remote, &contexts);
    } else {
        let worker = node.worker.clone();
        worker.spawn(accept_early(node, pod, socket, remote));
    }
}

/// The pod is not known to the control plane yet, or its certificate is still to be issued.
async fn accept_early(node: Rc<Node>, pod: Rc<Pod>, socket: Socket, remote: SocketAddr) {
    let source = Party { address: Some(remote), workload: None, identity: None };
    let connection = Connection::begin(&node, &pod, Direction::Inbound, source);
    let contexts = connection.until_cut(async {
        let (_, workload) = node.workload(&pod.local).await.ok_or(CloseCause::UnknownWorkload)?;
        node.contexts(&workload).await.ok_or(CloseCause::CertificateMissing)
    });
    let refused = match contexts.await.and_then(|contexts| contexts) {
        Ok(contexts) => {
            connection.strike_out();
            return accept_tunnel(&node, &pod, socket, remote, &contexts);
        }
        Err(cause) => cause,
    };
    // Without a certificate there is nothing that could be said in TLS.
    socket.reset_on_close();
    connection.end(refused);
}

fn accept_tunnel(node: &Rc<Node>, pod: &Rc<Pod>, socket: Socket, remote: SocketAddr, contexts: &TlsContexts) {
    let NodeOptions { tunnels_of_client_max, handshakes_max, .. } = node.options;
    if let Err(limit) = node.arrivals.enter(remote.ip(), tunnels_of_client_max, handshakes_max) {
        node.metrics.limit_hit(limit);
        return socket.reset_on_close();
    }
    let worker = node.worker.clone();
    node.metrics.count(Counter::LinksAccepted);
    let (kept, settled) = (Cell::new(None), Cell::new(false));
    let gate = Rc::new(Gate { node: node.clone(), pod: pod.clone(), remote, kept, settled });
    let options = ServerOptions { http: node.options.http_server };
    match crate::link::serve(&worker, socket, remote, &contexts.server, &options, gate.clone()) {
        Ok(link) => {
            node.accepted_tunnels.set(node.accepted_tunnels.get() + 1);
            gate.kept.set(Some(pod.keep(link)));
        }
        Err(error) => {
            gate.leave();
            tracing::warn!(%error, %remote, "an accepted connection is given up");
        }
    }
}

/// Takes the requests of one tunnel connection.
struct Gate {
    node: Rc<Node>,
    pod: Rc<Pod>,
    remote: SocketAddr,
    /// Where the pod keeps the link.
    kept: Cell<Option<usize>>,
    /// The handshake is over.
    settled: Cell<bool>,
}

impl Gate {
    fn settle(&self) {
        if !self.settled.replace(true) {
            self.node.arrivals.settle();
        }
    }

    fn leave(&self) {
        self.settle();
        self.node.arrivals.leave(self.remote.ip());
    }
}

impl Handler for Gate {
    fn established(&self, _link: &Rc<Link>) {
        self.settle();
    }

    fn request(&self, request: IncomingRequest) {
        if self.node.is_full() {
            return request.refuse(STATUS_BUSY);
        }
        self.node.metrics.count(Counter::StreamsAccepted);
        let (node, pod, remote) = (self.node.clone(), self.pod.clone(), self.remote);
        if node.options.role == Role::Waypoint {
            return self.node.worker.spawn(waypoint::take(node, pod, request, remote));
        }
        self.node.worker.spawn(async move {
            let source = Party {
                address: Some(remote),
                workload: None,
                identity: Some(request.peer().identity.clone()),
            };
            let connection = Connection::begin(&node, &pod, Direction::Inbound, source);
            let ready = {
                let preparing = pin!(prepare(&connection, &node, &pod, request, remote));
                connection.until_cut(preparing).await
            };
            match ready.and_then(|ready| ready) {
                Err(cause) => connection.end(cause),
                Ok(Ready { arrival, stream, application, target, admission: Admission::ByRequest }) => {
                    connection.established();
                    let worker = node.worker.clone();
                    let application = http::Application { node, pod, target, socket: application };
                    worker.spawn(http::serve(connection, arrival, http::Wire::Tunnel(stream), application));
                }
                Ok(Ready { stream, application, .. }) => {
                    connection.established();
                    // A task of its own, without the room that admission took.
                    node.worker.spawn(connection.carry(stream, application, Flow::Upstream));
                }
            }
        });
    }

    fn ended(&self, link: &Rc<Link>, end: &LinkEnd) {
        self.leave();
        self.node.metrics.tunnel_ended(end.cause);
        if let Some(key) = self.kept.take() {
            self.pod.forget(key);
            self.node.accepted_tunnels.set(self.node.accepted_tunnels.get().saturating_sub(1));
        }
        // A peer that never proved itself made no request: this is the only line that tells of it.
        if link.peer().is_none() {
            let source = Party { address: Some(self.remote), workload: None, identity: None };
            let connection = Connection::begin(&self.node, &self.pod, Direction::Inbound, source);
            connection.record.borrow_mut().destination.address = Some(link.local_address());
            tracing::warn!(remote = %self.remote, pod = %self.pod.local.uid, reason = %end, "a tunnel was not accepted");
            connection.end(match end.cause {
                TlsCertificateRevoked => self.node.note_revoked(Reporter::Destination),
                _ => CloseCause::TlsFailed,
            });
        }
    }
}

/// An accepted request, its stream, and the application behind it.
struct Ready {
    arrival: Arrival,
    stream: TunnelStream,
    application: Socket,
    target: SocketAddr,
    admission: Admission,
}

/// What a request says.
struct Asked {
    authority: tunnel::hbone::Authority,
    forwarded: Option<Forwarded>,
    /// The source's own description, if it is to be believed: it came through a gateway, so its address says nothing.
    described: Option<Baggage>,
}

impl Asked {
    fn read(request: &IncomingRequest, node: &Node, pod: &Pod) -> Result<Self, DestinationError> {
        let parsed = ConnectRequest::parse(request.headers())?;
        let own = workload_of(&node.state(), &pod.local).map(|workload| workload.network.clone());
        let foreign = parsed.network().is_some_and(|network| own.as_deref() != Some(network));
        let described = (foreign && node.options.response_baggage).then(|| parsed.baggage());
        Ok(Self { authority: parsed.authority().clone(), forwarded: parsed.forwarded(), described })
    }
}

async fn prepare(
    connection: &Connection,
    node: &Rc<Node>,
    pod: &Rc<Pod>,
    request: IncomingRequest,
    remote: SocketAddr,
) -> Result<Ready, CloseCause> {
    let (dialled, cipher, peer) = match request.link() {
        Some(link) => (link.local_address().ip(), request.peer().cipher, request.peer().identity.clone()),
        None => return Err(CloseCause::TunnelFailed),
    };
    let refuse = |request: IncomingRequest, error: &DestinationError, cause: CloseCause| {
        tracing::debug!(%error, %remote, "a tunnel request is refused");
        request.refuse(error.status());
        Err(cause)
    };
    let asked = match Asked::read(&request, node, pod) {
        Ok(asked) => asked,
        Err(error) => return refuse(request, &error, CloseCause::WrongDestination),
    };
    connection.describe_tunnel(cipher, log_authority(&asked.authority));
    connection.record.borrow_mut().destination.address =
        Some(SocketAddr::new(dialled, node.options.ports.inbound_hbone));

    let (state, workload) = match node.answered_to_peer(&pod.local, &asked.authority, dialled).await {
        Ok(known) => known,
        Err(cause @ CloseCause::UnknownWorkload) => {
            return refuse(request, &DestinationError::UnknownWorkload, cause);
        }
        Err(cause) => return refuse(request, &DestinationError::Unanswered, cause),
    };
    if let Some(link) = request.link() {
        node.refuse_revoked(link)?;
    }
    describe_parties(connection, &state, &workload, remote, &asked);
    connection.note_telemetry(&state.snapshot);
    let lookup = Lookup { state: &state, workload: &workload };
    let destination = match destination(node, &lookup, &asked.authority, dialled) {
        Ok(destination) => destination,
        Err(error) => return refuse(request, &error, destination_cause(&error)),
    };
    let seen = SocketAddr::new(destination.target.ip(), destination.service_target_port);
    let arrival = Arrival { source: Some(peer), source_address: remote, destination: seen };
    let admission = match admit(connection, &state, &workload, &arrival) {
        Ok(admission) => admission,
        Err(cause) => return refuse(request, &DestinationError::Denied, cause),
    };
    let speaks_first = admission == Admission::ByRequest || lookup.client_begins(seen.port());
    let opened = match destination.application_tunnel {
        None => dial_application(node, pod, &arrival, destination.target, speaks_first).await,
        Some(tunnel) => {
            let meant = lookup.address_of(&asked.authority).unwrap_or(destination.target);
            dial_application_tunnel(node, pod, &arrival, tunnel, destination.target, meant, speaks_first)
                .await
        }
    };
    let application = match opened {
        Ok(application) => application,
        Err(cause) => {
            let error = DestinationError::Unreachable(cause.label().to_owned());
            return refuse(request, &error, cause);
        }
    };
    let described = if node.options.response_baggage { pod.baggage_of(&workload) } else { Rc::default() };
    let answer = accept(&described).map_err(|_| CloseCause::TunnelFailed)?;
    let stream = request.accept(&answer).map_err(|_| CloseCause::ClientReset)?;
    Ok(Ready { arrival, stream, application, target: destination.target, admission })
}

/// Where a request goes. The proxy's own ports are refused wherever they have been moved to.
fn destination(
    node: &Node,
    lookup: &Lookup<'_>,
    authority: &tunnel::hbone::Authority,
    dialled: std::net::IpAddr,
) -> Result<Destination, DestinationError> {
    let destination = resolve(authority, dialled, lookup)?;
    for port in [destination.target.port(), destination.service_target_port] {
        if node.is_own_port(port) {
            return Err(DestinationError::ReservedPort(port));
        }
    }
    Ok(destination)
}

/// Fills in who talks to whom, for the books: policy counts only the proven identity.
fn describe_parties(
    connection: &Connection,
    state: &NodeState,
    workload: &Arc<Workload>,
    remote: SocketAddr,
    asked: &Asked,
) {
    let mut record = connection.record.borrow_mut();
    let identity = record.source.identity.clone();
    record.source.workload = if let (Some(baggage), Some(identity)) = (&asked.described, &identity) {
        Some(Arc::new(baggage.to_workload(identity)))
    } else {
        // After a renumbering the address may be another's.
        let owner = state.snapshot.workload_by_address(&workload.network, remote.ip());
        owner.filter(|owner| identity.as_ref() == Some(&owner.identity)).cloned()
    };
    record.destination.workload = Some(workload.clone());
    record.destination.identity = Some(workload.identity.clone());
    // A client that dialled a service says so; one on another network names it in the authority itself.
    let named = match &asked.authority.host {
        Host::Name(name) => Some(&**name),
        Host::Ip(_) => asked.forwarded.as_ref().and_then(|forwarded| forwarded.host.as_deref()),
    };
    record.service = named
        .and_then(|hostname| state.snapshot.service_by_host(hostname, workload.identity.namespace()))
        .map(|entry| entry.service.clone());
}

pub(super) fn log_authority(authority: &tunnel::hbone::Authority) -> Authority {
    match &authority.host {
        Host::Ip(ip) => Authority::Address(SocketAddr::new(*ip, authority.port)),
        Host::Name(name) => Authority::Hostname(Arc::from(&**name), authority.port),
    }
}

fn destination_cause(error: &DestinationError) -> CloseCause {
    match error {
        DestinationError::ReservedPort(_) => CloseCause::ReservedPort,
        DestinationError::UnknownHostname(_) | DestinationError::UnknownServicePort { .. } => {
            CloseCause::NoHealthyEndpoint
        }
        DestinationError::Denied => CloseCause::PolicyDenied,
        DestinationError::UnknownWorkload => CloseCause::UnknownWorkload,
        DestinationError::Unanswered => CloseCause::UnknownDestination,
        DestinationError::Unreachable(_) => CloseCause::ConnectFailed,
        DestinationError::NotConnect
        | DestinationError::Authority(_)
        | DestinationError::NotThisWorkload { .. } => CloseCause::WrongDestination,
    }
}
