//! Reaching the next hop of a decided route: a tunnel stream, or a plain socket.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use model::{Identity, Workload};
use tunnel::h2;
use tunnel::hbone;
use tunnel::tls::CipherSuite;
use xds::snapshot::resolve::{Refusal, Route, Target, Transport};

use super::node::{Node, contexts_of};
use super::pod::Pod;
use super::state::NodeState;
use crate::access_log::cause::CloseCause;
use crate::access_log::record::{Authority, Party, Record, TlsFacts};
use crate::link::{DialError, DialOptions, PoolError, RequestError, TunnelStream};
use crate::metrics::Counter;
use crate::net::{ConnectError, Socket, connect};

/// TLS 1.3 (RFC 8446 section 4.1.2).
const TLS13: u16 = 0x0304;

/// An open way to the next hop.
#[derive(Debug)]
pub(super) enum Wire {
    Tunnel(TunnelStream),
    Socket(Socket),
}

/// What is known of an upstream, for the books.
#[derive(Debug, Clone, Default)]
pub(super) struct UpstreamFacts {
    pub(super) destination: Party,
    pub(super) authority: Option<Authority>,
    pub(super) tls: Option<TlsFacts>,
}

impl UpstreamFacts {
    /// Before anything is dialled: where it will go.
    pub(super) fn of_route(route: &Route) -> Self {
        let mut facts = Self { destination: Party::default(), authority: None, tls: None };
        facts.destination.workload.clone_from(&route.workload);
        match &route.transport {
            Transport::Tcp { to: Target::Address(address) } => facts.destination.address = Some(*address),
            Transport::Tcp { to: Target::Name { .. } } => {}
            Transport::Hbone { next_hop, authority, .. } => {
                facts.destination.address = Some(*next_hop);
                facts.authority = Some(Authority::Address(*authority));
            }
        }
        facts
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
        match &route.transport {
            Transport::Tcp { to: Target::Address(to) } => {
                if self.node.is_own_port(to.port()) && self.is_own_address(*to) {
                    return Err(CloseCause::ReservedPort);
                }
                let options = self.node.connect_options(&self.pod.local.network);
                connect(*to, &options).await.map(Wire::Socket).map_err(|error| connect_cause(&error))
            }
            Transport::Tcp { to: Target::Name { hostname, .. } } => {
                tracing::warn!(%hostname, "endpoints that are known by name only are not dialled by this version");
                Err(CloseCause::NoHealthyEndpoint)
            }
            Transport::Hbone { next_hop, authority, identities } => {
                let service = route.service.as_ref().map(|entry| &*entry.service.key.hostname);
                let stream = self.tunnel(state, *next_hop, *authority, identities, service).await?;
                if let Some(peer) = stream.link().peer() {
                    facts.destination.identity = Some(peer.identity.clone());
                    facts.tls = Some(TlsFacts { version: TLS13, cipher_suite: code_point(peer.cipher) });
                }
                Ok(Wire::Tunnel(stream))
            }
        }
    }

    fn is_own_address(&self, to: SocketAddr) -> bool {
        to.ip().is_loopback() || self.workload.addresses.contains(&to.ip())
    }

    async fn tunnel(
        &self,
        state: &NodeState,
        next_hop: SocketAddr,
        authority: SocketAddr,
        identities: &[Identity],
        service: Option<&str>,
    ) -> Result<TunnelStream, CloseCause> {
        let contexts = contexts_of(state, self.workload).ok_or(CloseCause::CertificateMissing)?;
        let options = DialOptions {
            to: next_hop,
            connect: self.node.connect_options(&self.pod.local.network),
            context: contexts.client.clone(),
            expected: Arc::from(identities),
            http: h2::Config::hbone_client(),
        };
        let baggage = self.pod.baggage_of(self.workload);
        let head = hbone::ConnectHead {
            authority: &hbone::Authority::from_ip(authority),
            baggage: &baggage,
            forwarded: Some(&hbone::Forwarded { client: self.client, host: service.map(Box::from) }),
            trace: Some(hbone::TraceParent::unsampled(
                u128::from(self.node.random()) << 64 | u128::from(self.node.random()),
                self.node.random(),
            )),
            network: None,
        };
        let headers = head.encode().map_err(|error| {
            tracing::error!(%error, "a tunnel request cannot be written");
            CloseCause::TunnelFailed
        })?;
        match self.pod.pool.open(&options, &headers).await {
            Ok((stream, _answer)) => {
                self.node.metrics.count(Counter::StreamsOpened);
                Ok(stream)
            }
            Err(error) => {
                tracing::debug!(%error, %next_hop, %authority, "no tunnel");
                Err(pool_cause(&error))
            }
        }
    }
}

/// The IANA code point.
pub(super) fn code_point(cipher: CipherSuite) -> u16 {
    match cipher {
        CipherSuite::Aes128GcmSha256 => 0x1301,
        CipherSuite::Aes256GcmSha384 => 0x1302,
    }
}

/// What a refusal of the routing decision is called in the books.
pub(super) fn refusal_cause(refusal: &Refusal) -> CloseCause {
    match refusal {
        Refusal::OwnPort(_) => CloseCause::ReservedPort,
        Refusal::NoEndpoint { .. }
        | Refusal::UnknownWaypoint(_)
        | Refusal::NoAddress(_)
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
        Some(Tunnel::TlsIdentityUnexpected | Tunnel::TlsTrustDomain) => CloseCause::IdentityMismatch,
        Some(cause) if cause.label().starts_with("tls_") => CloseCause::TlsFailed,
        _ => CloseCause::TunnelFailed,
    }
}
