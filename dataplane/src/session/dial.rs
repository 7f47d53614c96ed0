//! Reaching the next hop of a decided route: a tunnel stream, or a plain socket.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use l7::ir::BackendTls;
use model::{Identity, Workload};
use tunnel::h2;
use tunnel::hbone;
use xds::snapshot::resolve::{Refusal, Route, Target, Transport};

use super::dns::ResolveError;
use super::node::{Node, Role, contexts_of};
use super::pod::Pod;
use super::state::{NodeState, TlsContexts};
use super::tls_stream::TlsStream;
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{Authority, Party, Record, TlsFacts};
use crate::link::{DialError, DialOptions, Link, PoolError, RequestError, TunnelStream};
use crate::metrics::{Counter, OnDemandLabels, Reporter, Subject};
use crate::net::{ConnectError, Socket, connect};

/// An open way to the next hop.
#[derive(Debug)]
pub(super) enum Wire {
    Tunnel(TunnelStream),
    Socket(Socket),
    /// TLS of the backend's own, within one of the others.
    Tls(TlsStream),
}

/// What is known of an upstream, for the books.
#[derive(Debug, Clone, Default)]
pub(super) struct UpstreamFacts {
    pub(super) destination: Party,
    pub(super) authority: Option<Authority>,
    pub(super) tls: Option<TlsFacts>,
    /// What is asked of the backend itself.
    pub(super) backend_tls: Option<Arc<BackendTls>>,
}

impl UpstreamFacts {
    /// Before anything is dialled: where it will go.
    pub(super) fn of_route(route: &Route) -> Self {
        let mut facts = Self::default();
        facts.destination.workload.clone_from(&route.workload);
        match &route.transport {
            Transport::Tcp { to: Target::Address(address) } => facts.destination.address = Some(*address),
            Transport::Tcp { to: Target::Name { .. } } => {}
            Transport::Hbone { next_hop, authority, .. } => {
                facts.destination.address = Some(*next_hop);
                facts.authority = Some(Authority::Address(*authority));
            }
            Transport::DoubleHbone { next_hop, hostname, port, .. } => {
                facts.destination.address = Some(*next_hop);
                facts.authority = Some(Authority::Hostname(Arc::clone(hostname), *port));
            }
        }
        facts
    }

    /// Who has proved to be at the other end.
    fn learn(&mut self, stream: &TunnelStream) {
        if let Some(peer) = stream.link().peer() {
            self.destination.identity = Some(peer.identity.clone());
            self.tls = Some(TlsFacts::from(peer.cipher));
        }
    }

    pub(super) fn describe(&self, record: &mut Record) {
        record.destination.clone_from(&self.destination);
        record.hbone_authority.clone_from(&self.authority);
        record.tls = self.tls;
    }
}

/// Who dials, and on whose behalf.
pub(super) struct Dialler<'a> {
    pub(super) node: &'a Rc<Node>,
    pub(super) pod: &'a Pod,
    pub(super) workload: &'a Arc<Workload>,
    /// The client's own address, told to the other side.
    pub(super) client: SocketAddr,
}

impl Dialler<'_> {
    /// Opens the route's transport. `facts` learn whom it reached.
    pub(super) async fn dial(
        &self,
        state: &NodeState,
        route: &Route,
        facts: &mut UpstreamFacts,
    ) -> Result<Wire, CloseCause> {
        if self.leads_back(route) {
            tracing::debug!(waypoint = %self.workload.uid, "an endpoint behind the waypoint is the waypoint itself");
            return Err(CloseCause::NoHealthyEndpoint);
        }
        match &route.transport {
            Transport::Tcp { to: Target::Address(to) } => self.plain(*to).await.map(Wire::Socket),
            Transport::Tcp { to: Target::Name { hostname, port } } => {
                let to = SocketAddr::new(self.resolve(hostname).await?, *port);
                facts.destination.address = Some(to);
                self.plain(to).await.map(Wire::Socket)
            }
            Transport::Hbone { next_hop, authority, identities } => {
                let authority = hbone::Authority::from_ip(*authority);
                let leg = Leg::new(self, state, route, &authority, identities).await?;
                let stream =
                    self.pooled(*next_hop, route.workload.as_ref(), &leg, &leg.headers(None)?).await?;
                facts.learn(&stream);
                Ok(Wire::Tunnel(stream))
            }
            Transport::DoubleHbone { next_hop, gateway_identities, hostname, port, identities } => {
                let authority = hbone::Authority::from_name(hostname, *port).map_err(|error| {
                    tracing::warn!(%hostname, %error, "a service whose name cannot be asked for");
                    CloseCause::NoHealthyEndpoint
                })?;
                let leg = Leg::new(self, state, route, &authority, gateway_identities).await?;
                let outer = self.pooled(*next_hop, None, &leg, &leg.headers(None)?).await?;
                let inner = leg.headers(Some(&self.workload.network))?;
                let stream = within(outer, &leg, identities, &inner).await.map_err(|error| {
                    tracing::debug!(%error, %authority, "no tunnel behind the gateway");
                    self.no_tunnel(&error)
                })?;
                self.node.refuse_revoked(stream.link())?;
                facts.learn(&stream);
                Ok(Wire::Tunnel(stream))
            }
        }
    }

    /// Whether a waypoint would dial itself, or another instance of itself: they share the account that is theirs alone.
    fn leads_back(&self, route: &Route) -> bool {
        let is_ours = |it: &Arc<Workload>| it.identity == self.workload.identity;
        self.node.options.role == Role::Waypoint && route.workload.as_ref().is_some_and(is_ours)
    }

    /// The same, and TLS within it where the backend expects that: there HTTP/2 is what the backend is asked for, or is
    /// not.
    pub(super) async fn dial_backend(
        &self,
        state: &NodeState,
        route: &Route,
        facts: &mut UpstreamFacts,
        wants_http2: bool,
    ) -> Result<Wire, CloseCause> {
        let carrier = self.dial(state, route, facts).await?;
        let Some(tls) = &facts.backend_tls else { return Ok(carrier) };
        let context = self.node.backend_contexts.of(tls, wants_http2).map_err(|error| {
            tracing::warn!(%error, hostname = %tls.hostname, "TLS to a backend is not possible");
            CloseCause::TlsFailed
        })?;
        let stream = TlsStream::connect(&self.node.worker, carrier, &context).await.map_err(|error| {
            tracing::debug!(%error, hostname = %tls.hostname, "no TLS to a backend");
            CloseCause::TlsFailed
        })?;
        Ok(Wire::Tls(stream))
    }

    async fn plain(&self, to: SocketAddr) -> Result<Socket, CloseCause> {
        if self.node.is_own_port(to.port()) && self.is_own_address(to) {
            return Err(CloseCause::ReservedPort);
        }
        let options = self.node.connect_options(&self.pod.local.network);
        connect(to, &options).await.map_err(|error| connect_cause(&error))
    }

    /// An address of a workload that is known by its host name.
    async fn resolve(&self, hostname: &Arc<str>) -> Result<IpAddr, CloseCause> {
        let source = Subject {
            workload: Some(Arc::clone(self.workload)),
            identity: Some(self.workload.identity.clone()),
        };
        self.node.metrics.on_demand_dns(&OnDemandLabels { source, hostname: Arc::clone(hostname) });
        self.node.address_of(hostname, self.client.ip()).await.map_err(|error| {
            tracing::debug!(%error, "no address to dial");
            match error {
                ResolveError::Busy => CloseCause::LimitReached,
                _ => CloseCause::NameUnresolved,
            }
        })
    }

    fn is_own_address(&self, to: SocketAddr) -> bool {
        to.ip().is_loopback() || self.workload.addresses.contains(&to.ip())
    }

    /// What a connection is told that got no tunnel.
    fn no_tunnel(&self, error: &PoolError) -> CloseCause {
        match pool_cause(error) {
            CloseCause::CertificateRevoked => self.node.note_revoked(Reporter::Source),
            other => other,
        }
    }

    /// A stream of a tunnel that this pod's connections share.
    async fn pooled(
        &self,
        next_hop: SocketAddr,
        next_workload: Option<&Arc<Workload>>,
        leg: &Leg<'_>,
        headers: &h2::Headers,
    ) -> Result<TunnelStream, CloseCause> {
        let options = DialOptions {
            to: next_hop,
            connect: self.node.connect_options(&self.pod.local.network),
            context: leg.contexts.client.clone(),
            expected: Arc::from(leg.identities),
            workload: next_workload.map(|workload| Arc::clone(&workload.uid)),
            http: self.node.options.http_client,
        };
        match self.pod.pool.open(&options, headers).await {
            Ok((stream, _answer)) => {
                self.node.refuse_revoked(stream.link())?;
                self.node.metrics.count(Counter::StreamsOpened);
                Ok(stream)
            }
            Err(error) => {
                tracing::debug!(%error, %next_hop, authority = %leg.authority, "no tunnel");
                Err(self.no_tunnel(&error))
            }
        }
    }
}

/// A tunnel of its own within a stream to the gateway of another network: what is behind the gateway proves itself to us,
/// and the gateway sees nothing.
async fn within(
    outer: TunnelStream,
    leg: &Leg<'_>,
    identities: &[Identity],
    headers: &h2::Headers,
) -> Result<TunnelStream, PoolError> {
    let link = Link::within(outer, &leg.contexts.client, &Arc::from(identities)).await;
    let link = link.map_err(|error| PoolError::Dial(Rc::new(error)))?;
    let (stream, _answer) =
        link.request(headers).await.map_err(|error| PoolError::Request(Rc::new(error)))?;
    Ok(stream)
}

/// What one connection says of itself on its tunnels.
struct Leg<'a> {
    contexts: Arc<TlsContexts>,
    authority: &'a hbone::Authority,
    identities: &'a [Identity],
    baggage: Rc<str>,
    forwarded: hbone::Forwarded,
    trace: hbone::TraceParent,
}

impl<'a> Leg<'a> {
    async fn new(
        dialler: &Dialler<'_>,
        state: &NodeState,
        route: &Route,
        authority: &'a hbone::Authority,
        identities: &'a [Identity],
    ) -> Result<Self, CloseCause> {
        let node = dialler.node;
        let contexts = match contexts_of(state, dialler.workload) {
            Some(contexts) => contexts,
            None => node.contexts(dialler.workload).await.ok_or(CloseCause::CertificateMissing)?,
        };
        let service = route.service.as_ref().map(|entry| Box::from(&*entry.service.key.hostname));
        Ok(Self {
            contexts,
            authority,
            identities,
            baggage: dialler.pod.baggage_of(dialler.workload),
            forwarded: hbone::Forwarded { client: dialler.client, host: service },
            trace: hbone::TraceParent::unsampled(
                u128::from(node.random()) << 64 | u128::from(node.random()),
                node.random(),
            ),
        })
    }

    /// The request; `network` goes to the far side of a gateway only.
    fn headers(&self, network: Option<&str>) -> Result<h2::Headers, CloseCause> {
        let head = hbone::ConnectHead {
            authority: self.authority,
            baggage: &self.baggage,
            forwarded: Some(&self.forwarded),
            trace: Some(self.trace),
            network,
        };
        head.encode().map_err(|error| {
            tracing::error!(%error, "a tunnel request cannot be written");
            CloseCause::TunnelFailed
        })
    }
}

/// What a refusal of the routing decision is called in the books.
pub(super) fn refusal_cause(refusal: &Refusal) -> CloseCause {
    match refusal {
        Refusal::OwnPort(_) => CloseCause::ReservedPort,
        Refusal::NoEndpoint { .. }
        | Refusal::UnknownWaypoint(_)
        | Refusal::NoAddress(_)
        | Refusal::NoNetworkGateway(_)
        | Refusal::UnknownNetworkGateway(_)
        | Refusal::NoIdentity(_)
        | Refusal::NotAService(_)
        | Refusal::Unsupported { .. } => CloseCause::NoHealthyEndpoint,
    }
}

pub(super) fn connect_cause(error: &ConnectError) -> CloseCause {
    match error {
        ConnectError::TimedOut { .. } => CloseCause::ConnectTimedOut,
        _ => CloseCause::ConnectFailed,
    }
}

fn pool_cause(error: &PoolError) -> CloseCause {
    use crate::link::CloseCause as Tunnel;
    match error {
        PoolError::TooManyWaiting(_) => return CloseCause::LimitReached,
        PoolError::NoStreams(_) => return CloseCause::TunnelFailed,
        PoolError::Dial(error) => {
            if let DialError::Connect(error) = &**error {
                return connect_cause(error);
            }
        }
        PoolError::Request(error) => {
            if let RequestError::Refused { status, .. } = &**error {
                return if *status == 401 { CloseCause::PolicyDenied } else { CloseCause::TunnelRefused };
            }
        }
    }
    match error.close_cause() {
        Some(Tunnel::TlsCertificateRevoked) => CloseCause::CertificateRevoked,
        Some(Tunnel::TlsIdentityUnexpected | Tunnel::TlsTrustDomain) => CloseCause::IdentityMismatch,
        Some(cause) if cause.label().starts_with("tls_") => CloseCause::TlsFailed,
        _ => CloseCause::TunnelFailed,
    }
}
