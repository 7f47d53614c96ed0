//! What other proxies send to a pod (port 15008): HBONE over mTLS, each CONNECT validated, authorized, handed on.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use l7::authz::{ConnectionVerdict, PolicySet};
use l7::ir::ConnectionAttributes;
use model::{AppProtocol, ApplicationTunnel, ApplicationTunnelProtocol, Identity, Workload};
use tunnel::hbone::{
    Baggage, ConnectRequest, Destination, DestinationError, DestinationLookup, Host, HostnamePort, accept,
    resolve,
};
use tunnel::proxy_protocol::ProxyHeader;

use super::connection::{Authorized, Connection};
use super::dial::{code_point, connect_cause};
use super::http;
use super::node::{Node, contexts_of, workload_of};
use super::pod::Pod;
use super::state::{NodeState, TlsContexts};
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{Authority, Direction, HttpFacts, Party};
use crate::link::{Flow, Handler, IncomingRequest, Link, LinkEnd, ServerOptions, TunnelStream};
use crate::metrics::Counter;
use crate::net::{ConnectOptions, Socket, connect};

/// The answer to a request for which there is no room.
const STATUS_BUSY: u16 = 503;

pub(super) fn serve(node: Rc<Node>, pod: Rc<Pod>, socket: Socket, remote: SocketAddr) {
    let state = node.state();
    if let Some(workload) = workload_of(&state, &pod.local) {
        accept_tunnel(node, pod, socket, remote, contexts_of(&state, &workload));
    } else {
        let worker = node.worker.clone();
        worker.spawn(accept_early(node, pod, socket, remote));
    }
}

/// The pod is not known to the control plane yet, so nobody knows which certificate is its own.
async fn accept_early(node: Rc<Node>, pod: Rc<Pod>, socket: Socket, remote: SocketAddr) {
    let source = Party { address: Some(remote), workload: None, identity: None };
    let connection = Connection::begin(&node, &pod, Direction::Inbound, source);
    let refused = match connection.until_cut(node.workload(&pod.local)).await {
        Ok(Some((state, workload))) => {
            connection.strike_out();
            return accept_tunnel(node, pod, socket, remote, contexts_of(&state, &workload));
        }
        Ok(None) => CloseCause::UnknownWorkload,
        Err(cause) => cause,
    };
    socket.reset_on_close();
    connection.end(refused);
}

fn accept_tunnel(
    node: Rc<Node>,
    pod: Rc<Pod>,
    socket: Socket,
    remote: SocketAddr,
    contexts: Option<Arc<TlsContexts>>,
) {
    let Some(contexts) = contexts else {
        // Without a certificate there is nothing that could be said in TLS.
        let source = Party { address: Some(remote), workload: None, identity: None };
        socket.reset_on_close();
        return Connection::begin(&node, &pod, Direction::Inbound, source)
            .end(CloseCause::CertificateMissing);
    };
    let worker = node.worker.clone();
    node.metrics.count(Counter::LinksAccepted);
    let gate = Rc::new(Gate { node: node.clone(), pod: pod.clone(), remote, kept: Cell::new(None) });
    let options = ServerOptions::default();
    match crate::link::serve(&worker, socket, remote, &contexts.server, &options, gate.clone()) {
        Ok(link) => {
            node.accepted_tunnels.set(node.accepted_tunnels.get() + 1);
            gate.kept.set(Some(pod.keep(link)));
        }
        Err(error) => tracing::warn!(%error, %remote, "an accepted connection is given up"),
    }
}

/// Takes the requests of one tunnel connection.
struct Gate {
    node: Rc<Node>,
    pod: Rc<Pod>,
    remote: SocketAddr,
    /// Where the pod keeps the link.
    kept: Cell<Option<usize>>,
}

impl Handler for Gate {
    fn request(&self, request: IncomingRequest) {
        if self.node.is_full() {
            return request.refuse(STATUS_BUSY);
        }
        self.node.metrics.count(Counter::StreamsAccepted);
        let (node, pod, remote) = (self.node.clone(), self.pod.clone(), self.remote);
        self.node.worker.spawn(async move {
            let source = Party {
                address: Some(remote),
                workload: None,
                identity: Some(request.peer().identity.clone()),
            };
            let connection = Connection::begin(&node, &pod, Direction::Inbound, source);
            let ready = connection.until_cut(prepare(&connection, &node, &pod, request, remote)).await;
            match ready.and_then(|ready| ready) {
                Err(cause) => connection.end(cause),
                Ok(Ready { arrival, stream, application, target, admission: Admission::ByRequest }) => {
                    connection.established();
                    mark_http(&connection);
                    let application = http::Application { node, pod, target, socket: application };
                    let cause =
                        http::authorize(&connection, arrival, &http::Wire::Tunnel(stream), application).await;
                    connection.end_silently(cause);
                }
                Ok(Ready { stream, application, .. }) => {
                    connection.established();
                    let cause = connection.relay(stream, application, Flow::Upstream).await;
                    connection.end(cause);
                }
            }
        });
    }

    fn ended(&self, link: &Rc<Link>, end: &LinkEnd) {
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
            connection.end(CloseCause::TlsFailed);
        }
    }
}

/// An arrived connection as policies see it.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    /// Proved by mTLS; `None` for plain text.
    pub(super) source: Option<Identity>,
    pub(super) source_address: SocketAddr,
    /// The pod's own address and the port that policies see.
    pub(super) destination: SocketAddr,
}

impl Arrival {
    pub(super) fn attributes(&self) -> ConnectionAttributes<'_> {
        ConnectionAttributes {
            source: self.source.as_ref(),
            source_ip: self.source_address.ip(),
            destination_ip: self.destination.ip(),
            destination_port: self.destination.port(),
            sni: None,
        }
    }
}

/// What policy says before the first byte is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Admitted,
    /// Each request is decided on its own.
    ByRequest,
}

/// An accepted request, its stream, and the application behind it.
struct Ready {
    arrival: Arrival,
    stream: TunnelStream,
    application: Socket,
    target: SocketAddr,
    admission: Admission,
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
    let parsed = ConnectRequest::parse(request.headers())
        .map(|parsed| (parsed.authority().clone(), parsed.forwarded()));
    let (authority, forwarded) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return refuse(request, &error, CloseCause::WrongDestination),
    };
    connection.describe_tunnel(code_point(cipher), log_authority(&authority));
    connection.record.borrow_mut().destination.address =
        Some(SocketAddr::new(dialled, node.options.ports.inbound_hbone));

    let Some((state, workload)) = node.workload(&pod.local).await else {
        return refuse(request, &DestinationError::UnknownWorkload, CloseCause::UnknownWorkload);
    };
    describe_parties(connection, &state, &workload, remote, forwarded.and_then(|it| it.host).as_deref());
    let lookup = Lookup { state: &state, workload: &workload };
    let destination = match resolve(&authority, dialled, &lookup) {
        Ok(destination) => destination,
        Err(error) => {
            let cause = destination_cause(&error);
            return refuse(request, &error, cause);
        }
    };
    let seen = SocketAddr::new(destination.target.ip(), destination.service_target_port);
    let arrival = Arrival { source: Some(peer), source_address: remote, destination: seen };
    let admission = match admit(connection, &state, &workload, &arrival) {
        Ok(admission) => admission,
        Err(cause) => return refuse(request, &DestinationError::Denied, cause),
    };
    let application = match open_application(node, pod, &arrival, &destination).await {
        Ok(application) => application,
        Err(cause) => {
            let error = DestinationError::Unreachable(cause.label().to_owned());
            return refuse(request, &error, cause);
        }
    };
    let answer = accept(&Baggage::of_workload(&workload).encode()).map_err(|_| CloseCause::TunnelFailed)?;
    let stream = request.accept(&answer).map_err(|_| CloseCause::ClientReset)?;
    Ok(Ready { arrival, stream, application, target: destination.target, admission })
}

/// Fills in who talks to whom. The source workload is looked up by its address: only its proven identity counts for
/// policy.
fn describe_parties(
    connection: &Connection,
    state: &NodeState,
    workload: &Arc<Workload>,
    remote: SocketAddr,
    service: Option<&str>,
) {
    let mut record = connection.record.borrow_mut();
    let owner = state.snapshot.workload_by_address(&workload.network, remote.ip());
    // Behind a gateway or after a renumbering the address may be another's.
    record.source.workload =
        owner.filter(|owner| record.source.identity.as_ref() == Some(&owner.identity)).cloned();
    record.destination.workload = Some(workload.clone());
    record.destination.identity = Some(workload.identity.clone());
    record.service = service
        .and_then(|hostname| state.snapshot.service_by_host(hostname, workload.identity.namespace()))
        .map(|entry| entry.service.clone());
}

/// Asks policy, and notes the question for the day that the policies change.
pub(super) fn admit(
    connection: &Connection,
    state: &NodeState,
    workload: &Workload,
    arrival: &Arrival,
) -> Result<Admission, CloseCause> {
    let policies = state.snapshot.policies_for(workload);
    let admission =
        judge(state, workload, &policies, &arrival.attributes()).ok_or(CloseCause::PolicyDenied)?;
    connection.shared.authorized.replace(Some(Authorized {
        source: arrival.source.clone(),
        source_ip: arrival.source_address.ip(),
        destination_ip: arrival.destination.ip(),
        destination_port: arrival.destination.port(),
        reads_requests: admission == Admission::ByRequest,
        request: None,
    }));
    Ok(admission)
}

/// What policy says of a connection; `None` denies it.
pub(super) fn judge(
    state: &NodeState,
    workload: &Workload,
    policies: &PolicySet,
    connection: &ConnectionAttributes<'_>,
) -> Option<Admission> {
    match policies.evaluate_connection(connection) {
        ConnectionVerdict::Allow(_) => Some(Admission::Admitted),
        ConnectionVerdict::Deny(denial) => {
            tracing::debug!(?denial, "denied");
            None
        }
        // Declared not to be HTTP: what only requests have is absent.
        ConnectionVerdict::NeedsRequest if is_opaque(state, workload, connection.destination_port) => {
            policies.evaluate(connection, None).is_allowed().then_some(Admission::Admitted)
        }
        ConnectionVerdict::NeedsRequest => Some(Admission::ByRequest),
    }
}

/// Whether a service declares the port as something that is not HTTP.
fn is_opaque(state: &NodeState, workload: &Workload, target_port: u16) -> bool {
    workload.services.iter().any(|(key, ports)| {
        let Some(entry) = state.snapshot.service(&key.namespace, &key.hostname) else { return false };
        ports.iter().filter(|port| port.target_port == target_port).any(|port| {
            let declared = entry.service.port(port.service_port).map(|it| it.app_protocol);
            matches!(declared, Some(AppProtocol::Tcp | AppProtocol::Tls))
        })
    })
}

/// From here on requests have lines of their own.
pub(super) fn mark_http(connection: &Connection) {
    connection.record.borrow_mut().http = Some(Box::<HttpFacts>::default());
}

async fn open_application(
    node: &Rc<Node>,
    pod: &Rc<Pod>,
    arrival: &Arrival,
    destination: &Destination,
) -> Result<Socket, CloseCause> {
    let Some(tunnel) = destination.application_tunnel else {
        return dial_application(node, pod, arrival, destination.target).await;
    };
    let loopback = match destination.target.ip() {
        IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
    };
    let to = SocketAddr::new(loopback, destination.target.port());
    let options = node.connect_options(&pod.local.network);
    let application = connect(to, &options).await.map_err(|error| connect_cause(&error))?;
    if tunnel.protocol == ApplicationTunnelProtocol::Proxy {
        let header = ProxyHeader {
            source: arrival.source_address,
            destination: arrival.destination,
            identity: arrival.source.as_ref().map(|identity| Box::from(identity.uri())),
        };
        application.write_all(&header.encode()).await.map_err(|_| CloseCause::ServerReset)?;
    }
    Ok(application)
}

/// Connects to the application, wearing the client's address unless that is the pod's own.
pub(super) async fn dial_application(
    node: &Rc<Node>,
    pod: &Rc<Pod>,
    arrival: &Arrival,
    to: SocketAddr,
) -> Result<Socket, CloseCause> {
    let client = arrival.source_address.ip();
    let wears = node.options.keeps_source_address && client != to.ip() && client.is_ipv4() == to.is_ipv4();
    let source = wears.then(|| SocketAddr::new(client, 0));
    let options = ConnectOptions { source, ..node.connect_options(&pod.local.network) };
    connect(to, &options).await.map_err(|error| {
        tracing::debug!(%error, %to, "the application did not accept");
        connect_cause(&error)
    })
}

fn log_authority(authority: &tunnel::hbone::Authority) -> Authority {
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
        DestinationError::Unreachable(_) => CloseCause::ConnectFailed,
        DestinationError::NotConnect
        | DestinationError::Authority(_)
        | DestinationError::NotThisWorkload { .. } => CloseCause::WrongDestination,
    }
}

/// The snapshot, as the validation of a CONNECT asks it.
struct Lookup<'a> {
    state: &'a NodeState,
    workload: &'a Workload,
}

impl DestinationLookup for Lookup<'_> {
    fn application_tunnel(&self) -> Option<ApplicationTunnel> {
        self.workload.application_tunnel
    }

    fn hostname_port(&self, hostname: &str, service_port: u16) -> HostnamePort {
        let Some(entry) = self.state.snapshot.service_by_host(hostname, self.workload.identity.namespace())
        else {
            return HostnamePort::UnknownHostname;
        };
        let own = self.workload.services.get(entry.key()).into_iter().flatten();
        let own = own.filter(|port| port.service_port == service_port).map(|port| port.target_port).next();
        let target = own.or_else(|| entry.service.port(service_port).map(|port| port.target_port));
        target.filter(|port| *port != 0).map_or(HostnamePort::UnknownPort, HostnamePort::Target)
    }

    fn is_waypoint_of(&self, ip: IpAddr) -> bool {
        let snapshot = &self.state.snapshot;
        let is_us = |waypoint: &model::GatewayAddress| match &waypoint.destination {
            model::GatewayDestination::Hostname(key) => self.workload.services.contains_key(key),
            model::GatewayDestination::Address(address) => self.workload.addresses.contains(&address.ip),
        };
        let workload = snapshot.workload_by_address(&self.workload.network, ip);
        let service = snapshot.service_by_vip(&self.workload.network, ip, self.workload.identity.namespace());
        workload.and_then(|it| it.waypoint.as_ref()).is_some_and(is_us)
            || service.is_some_and(|entry| {
                entry.service.waypoint.as_ref().is_some_and(is_us)
                    || entry.service.weighted_waypoints.iter().any(|it| is_us(&it.destination))
            })
    }
}
