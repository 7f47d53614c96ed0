//! Where a connection of a local workload goes: one pure decision, taken anew for each connection.
//!
//! In order: the proxy's own ports on loopback are refused; an address that belongs to a service goes to the
//! service's waypoint, or to an endpoint of the service; an address that belongs to a workload goes to the workload's
//! waypoint, or to the workload; any other address is passed through. An endpoint or a waypoint on another network is
//! reached through its network's gateway, and only where a service was addressed. Whatever cannot be decided safely is
//! refused, never passed through.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{
    GatewayAddress, GatewayDestination, Identity, IpFamilies, LoadBalancingMode, NamespacedHostname, Service,
    TunnelProtocol, Workload,
};

use super::chooser::Choosing;
use super::endpoint::{Choice, Endpoint, NoEndpoint, Purpose, Random, choose, standings};
use super::gateway::Far;
use super::{ServiceEntry, Snapshot};

pub use super::chooser::{Chooser, Load};
pub use super::endpoint::Unfit;

/// Where workloads take HBONE.
pub const HBONE_PORT: u16 = 15008;

/// Ports of the proxy itself inside a pod: a connection to one of them on loopback would go round in circles.
const OWN_PORTS: [u16; 4] = [15001, 15006, 15008, 15080];

/// Who connects.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    pub workload: &'a Workload,
    /// The source address of the connection.
    pub ip: IpAddr,
}

/// Whose address a destination is.
#[derive(Debug, Clone, Copy)]
pub enum Destination<'a> {
    Service {
        entry: &'a Arc<ServiceEntry>,
        /// A workload that has the same address: its waypoint then counts, not the service's.
        owner: Option<&'a Arc<Workload>>,
    },
    Workload(&'a Arc<Workload>),
    /// Nobody's in the mesh.
    Unknown,
}

/// The way of a connection.
#[derive(Debug, Clone)]
pub struct Route {
    pub transport: Transport,
    /// The service through which the destination was addressed.
    pub service: Option<Arc<ServiceEntry>>,
    /// The workload at the other end of this hop: the chosen endpoint, or an instance of the waypoint.
    pub workload: Option<Arc<Workload>>,
    pub kind: RouteKind,
}

/// An endpoint of a service, as far as it may be chosen.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub workload: Arc<Workload>,
    pub way: Result<Route, NotChosen>,
}

/// Why an endpoint is not gone to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotChosen {
    #[error(transparent)]
    Unfit(Unfit),
    #[error(transparent)]
    Refused(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// To the workload itself.
    Direct,
    /// To a waypoint, which decides the rest.
    Waypoint,
    /// To the address that the client asked for, unchanged.
    Passthrough,
}

/// What is dialled, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        to: Target,
    },
    /// HBONE over mTLS.
    Hbone {
        next_hop: SocketAddr,
        /// What the CONNECT asks for.
        authority: SocketAddr,
        /// Any one of these the other side must prove. Never empty.
        identities: Vec<Identity>,
    },
    /// To another network: HBONE to its gateway, and within that stream HBONE to the service behind it.
    DoubleHbone {
        /// The gateway.
        next_hop: SocketAddr,
        /// Any one of these the gateway must prove. Never empty.
        gateway_identities: Vec<Identity>,
        /// What both CONNECTs ask for: the service's host name and port.
        hostname: Arc<str>,
        port: u16,
        /// Any one of these whoever answers behind the gateway must prove. Never empty.
        identities: Vec<Identity>,
    },
}

/// An address, or a name that has yet to be resolved to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Address(SocketAddr),
    Name { hostname: Arc<str>, port: u16 },
}

/// Why a connection is closed instead of routed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0} is a port of the proxy itself; connect to the application's own port")]
    OwnPort(SocketAddr),
    #[error(
        "no healthy endpoint of service {service} serves port {port}; check the readiness of its pods and its ports"
    )]
    NoEndpoint { service: NamespacedHostname, port: u16 },
    #[error("waypoint {0} is not known (yet); check that its Gateway is programmed and has a Service")]
    UnknownWaypoint(String),
    #[error("workload {0} has no address of a family that the service offers")]
    NoAddress(Arc<str>),
    #[error(
        "what serves {0} is on another network, and no gateway of that network is named; check the \
             topology.istio.io/network labels and the east-west gateway there"
    )]
    NoNetworkGateway(NamespacedHostname),
    #[error(
        "network gateway {0} is not known (yet); check that the east-west gateway's Service has an address"
    )]
    UnknownNetworkGateway(String),
    #[error("{0} names no identity (subject_alt_names) that its instances on another network could prove")]
    NoIdentity(String),
    #[error("only traffic to a service crosses networks, and {0} is on another one; address a service")]
    NotAService(String),
    #[error("{what} is not supported by this version, and going round it would not be safe")]
    Unsupported { what: &'static str },
}

impl Snapshot {
    /// Decides the way of one connection to its original destination.
    pub fn resolve<'c>(
        &self,
        client: Client<'_>,
        to: SocketAddr,
        chooser: impl Into<Chooser<'c>>,
    ) -> Result<Route, Refusal> {
        let choosing = &mut chooser.into().start();
        match self.destination(client, to)? {
            Destination::Unknown => Ok(Route::passthrough(to, None)),
            Destination::Workload(workload) => self.to_workload(client, workload, to, choosing),
            Destination::Service { owner: Some(owner), .. } if self.needs_waypoint(client, owner) => {
                self.to_workload(client, owner, to, choosing)
            }
            Destination::Service { entry, owner } => {
                let waypoint = pick_waypoint(&entry.service, &mut choosing.random);
                if let Some(waypoint) = waypoint.filter(|_| owner.is_none()) {
                    return self.to_waypoint(client, waypoint, to, Some(entry), choosing);
                }
                if mode(&entry.service) == LoadBalancingMode::Passthrough {
                    return Ok(Route::passthrough(
                        passed_through(&entry.service, to),
                        Some(Arc::clone(entry)),
                    ));
                }
                self.to_endpoint(client, entry, to.port(), Some(to.ip()), choosing)
            }
        }
    }

    /// Whether the connection goes to a waypoint, which then does all that is to be done with requests.
    pub fn is_behind_waypoint(&self, client: Client<'_>, destination: &Destination<'_>) -> bool {
        match destination {
            Destination::Unknown => false,
            Destination::Workload(owner) | Destination::Service { owner: Some(owner), .. } => {
                self.needs_waypoint(client, owner)
            }
            Destination::Service { entry, owner: None } => has_waypoint(&entry.service),
        }
    }

    /// Whose address it is, without deciding the rest. [`Snapshot::resolve`] begins with it.
    pub fn destination(&self, client: Client<'_>, to: SocketAddr) -> Result<Destination<'_>, Refusal> {
        if to.ip().to_canonical().is_loopback() && OWN_PORTS.contains(&to.port()) {
            return Err(Refusal::OwnPort(to));
        }
        let (network, ip) = (&*client.workload.network, to.ip().to_canonical());
        let owner = self.workload_by_address(network, ip);
        let service = self.service_by_vip(network, ip, client.workload.identity.namespace());
        Ok(match (service, owner) {
            (Some(entry), owner) => Destination::Service { entry, owner },
            (None, Some(workload)) => Destination::Workload(workload),
            (None, None) => Destination::Unknown,
        })
    }

    /// The way to an endpoint of a service, or of one of its subsets, past its waypoint: for a backend that an L7 route
    /// chose, and for the waypoint's own use.
    pub fn resolve_backend<'c>(
        &self,
        client: Client<'_>,
        service: &NamespacedHostname,
        port: u16,
        subset: Option<&str>,
        chooser: impl Into<Chooser<'c>>,
    ) -> Result<Route, Refusal> {
        let mut refusal = Refusal::NoEndpoint { service: service.clone(), port };
        let mut chooser: Chooser<'_> = chooser.into();
        let Some(config) = &self.waypoint else {
            let entry = self.services.get(service).ok_or(refusal)?;
            if let Some(subset) = subset {
                chooser = self.within(chooser, service, client.workload.identity.namespace(), subset);
            }
            return self.to_endpoint(client, entry, port, None, &mut chooser.start());
        };
        let choosing = &mut chooser.start();
        for level in config.levels(&service.hostname, port, subset) {
            match self.to_endpoint(client, level, port, None, choosing) {
                Ok(route) => return Ok(route),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// The way to an address of a workload, past its waypoint: for the waypoint's own use.
    pub fn resolve_fronted(
        &self,
        client: Client<'_>,
        workload: &Arc<Workload>,
        to: SocketAddr,
    ) -> Result<Route, Refusal> {
        if workload.network != client.workload.network {
            return Err(Refusal::NotAService(workload.uid.to_string()));
        }
        let transport = transport_to(workload, to.ip(), to.port(), &[]);
        Ok(Route { transport, service: None, workload: Some(Arc::clone(workload)), kind: RouteKind::Direct })
    }

    /// Every endpoint of a service port with the way to it, or why it is not chosen: what [`Snapshot::resolve_backend`]
    /// chooses from, in no particular order. `requested` is the address that the client dialled, if it did.
    pub fn candidates(
        &self,
        client: Client<'_>,
        service: &NamespacedHostname,
        port: u16,
        requested: Option<IpAddr>,
    ) -> Vec<Candidate> {
        let Some(entry) = self.services.get(service) else { return Vec::new() };
        let way = |(endpoint, standing): (&Endpoint, Result<u16, Unfit>)| {
            let choosing = &mut Choosing::at_random();
            let way = standing.map_err(NotChosen::Unfit).and_then(|target_port| {
                let choice = Choice { endpoint, target_port };
                self.to_chosen(client, entry, port, requested, choice, choosing).map_err(NotChosen::Refused)
            });
            Candidate { workload: Arc::clone(&endpoint.workload), way }
        };
        standings(entry, port, client.workload).into_iter().map(way).collect()
    }

    fn to_workload(
        &self,
        client: Client<'_>,
        workload: &Arc<Workload>,
        to: SocketAddr,
        choosing: &mut Choosing<'_>,
    ) -> Result<Route, Refusal> {
        if let Some(waypoint) = workload.waypoint.as_ref().filter(|_| self.needs_waypoint(client, workload)) {
            return self.to_waypoint(client, waypoint, to, None, choosing);
        }
        let transport = transport_to(workload, to.ip(), to.port(), &[]);
        Ok(Route { transport, service: None, workload: Some(Arc::clone(workload)), kind: RouteKind::Direct })
    }

    fn to_endpoint(
        &self,
        client: Client<'_>,
        entry: &Arc<ServiceEntry>,
        port: u16,
        requested: Option<IpAddr>,
        choosing: &mut Choosing<'_>,
    ) -> Result<Route, Refusal> {
        let chosen = choose(entry, port, Purpose::Destination, client.workload, choosing);
        let choice = chosen.map_err(|error| no_endpoint(error, entry, port))?;
        self.to_chosen(client, entry, port, requested, choice, choosing)
    }

    fn to_chosen(
        &self,
        client: Client<'_>,
        entry: &Arc<ServiceEntry>,
        port: u16,
        requested: Option<IpAddr>,
        choice: Choice<'_>,
        choosing: &mut Choosing<'_>,
    ) -> Result<Route, Refusal> {
        let (workload, service) = (&choice.endpoint.workload, &entry.service);
        if workload.network != client.workload.network {
            let far = Far { workload, service: Some(entry), kind: RouteKind::Direct };
            return self.across(client, entry, port, &far, choosing);
        }
        let transport = match pick_address(workload, requested, service.ip_families, client.ip) {
            Some(ip) => transport_to(workload, ip, choice.target_port, &service.subject_alt_names),
            None if workload.hostname.is_empty() => {
                return Err(Refusal::NoAddress(Arc::clone(&workload.uid)));
            }
            None => transport_to_name(workload, choice.target_port)?,
        };
        let (service, workload) = (Some(Arc::clone(entry)), Some(Arc::clone(workload)));
        Ok(Route { transport, service, workload, kind: RouteKind::Direct })
    }

    /// True unless the workload has no waypoint, or the client is an instance of that waypoint: a member of the
    /// waypoint's service (or the very workload), speaking from its own address.
    fn needs_waypoint(&self, client: Client<'_>, workload: &Workload) -> bool {
        let Some(waypoint) = &workload.waypoint else { return false };
        let serves = |key| client.workload.services.contains_key(key);
        let is_waypoint = match &waypoint.destination {
            GatewayDestination::Hostname(key) => serves(key),
            GatewayDestination::Address(address) => {
                let (network, ip) = (&*address.network, address.ip);
                match self.workload_by_address(network, ip) {
                    Some(workload) => workload.uid == client.workload.uid,
                    None => self
                        .service_by_vip(network, ip, client.workload.identity.namespace())
                        .is_some_and(|entry| serves(entry.key())),
                }
            }
        };
        !(is_waypoint && client.workload.addresses.contains(&client.ip.to_canonical()))
    }
}

impl Route {
    fn passthrough(to: SocketAddr, service: Option<Arc<ServiceEntry>>) -> Self {
        let transport = Transport::Tcp { to: Target::Address(to) };
        Self { transport, service, workload: None, kind: RouteKind::Passthrough }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { hostname, port } => write!(f, "{hostname}:{port}"),
        }
    }
}

/// One of the weighted waypoints, else the only one.
fn pick_waypoint<'a>(service: &'a Service, random: &mut Random) -> Option<&'a GatewayAddress> {
    let sum = service.weighted_waypoints.iter().map(|it| u64::from(it.weight)).sum();
    if sum == 0 {
        return service.waypoint.as_ref();
    }
    let mut left = random.below(sum);
    for candidate in &service.weighted_waypoints {
        let weight = u64::from(candidate.weight);
        if left < weight {
            return Some(&candidate.destination);
        }
        left -= weight;
    }
    service.waypoint.as_ref()
}

fn mode(service: &Service) -> LoadBalancingMode {
    service.load_balancing.as_ref().map_or(LoadBalancingMode::Unspecified, |it| it.mode)
}

pub(super) fn no_endpoint(error: NoEndpoint, entry: &ServiceEntry, port: u16) -> Refusal {
    match error {
        NoEndpoint::Unavailable => Refusal::NoEndpoint { service: entry.key().clone(), port },
        NoEndpoint::OtherNetwork => Refusal::NoNetworkGateway(entry.key().clone()),
    }
}

/// Where a service without balancing is dialled: the address asked for, at the target port if the service has one.
fn passed_through(service: &Service, to: SocketAddr) -> SocketAddr {
    let target = service.port(to.port()).map(|port| port.target_port).filter(|port| *port != 0);
    SocketAddr::new(to.ip(), target.unwrap_or(to.port()))
}

fn has_waypoint(service: &Service) -> bool {
    service.waypoint.is_some() || service.weighted_waypoints.iter().any(|it| it.weight > 0)
}

fn transport_to(workload: &Workload, ip: IpAddr, port: u16, subject_alt_names: &[Identity]) -> Transport {
    let target = SocketAddr::new(ip, port);
    match workload.tunnel_protocol {
        TunnelProtocol::None => Transport::Tcp { to: Target::Address(target) },
        TunnelProtocol::Hbone => Transport::Hbone {
            next_hop: SocketAddr::new(ip, HBONE_PORT),
            authority: target,
            identities: identities(workload, subject_alt_names),
        },
    }
}

fn transport_to_name(workload: &Workload, port: u16) -> Result<Transport, Refusal> {
    match workload.tunnel_protocol {
        TunnelProtocol::None => {
            Ok(Transport::Tcp { to: Target::Name { hostname: Arc::clone(&workload.hostname), port } })
        }
        TunnelProtocol::Hbone => {
            Err(Refusal::Unsupported { what: "HBONE to a workload that has a host name and no address" })
        }
    }
}

pub(super) fn identities(workload: &Workload, subject_alt_names: &[Identity]) -> Vec<Identity> {
    let mut identities = Vec::with_capacity(1 + subject_alt_names.len());
    identities.push(workload.identity.clone());
    identities.extend(subject_alt_names.iter().filter(|it| **it != workload.identity).cloned());
    identities
}

/// The requested address if the workload has it; else one of a family that the service offers, of the client's family
/// where there is one.
pub(super) fn pick_address(
    workload: &Workload,
    requested: Option<IpAddr>,
    families: IpFamilies,
    client_ip: IpAddr,
) -> Option<IpAddr> {
    if let Some(ip) = requested.filter(|ip| workload.addresses.contains(ip)) {
        return Some(ip);
    }
    let offered = |ip: &&IpAddr| match families {
        IpFamilies::Ipv4Only => ip.is_ipv4(),
        IpFamilies::Ipv6Only => ip.is_ipv6(),
        IpFamilies::Automatic | IpFamilies::Dual => true,
    };
    let client_is_ipv4 = client_ip.to_canonical().is_ipv4();
    let candidates = || workload.addresses.iter().filter(offered);
    candidates().find(|ip| ip.is_ipv4() == client_is_ipv4).or_else(|| candidates().next()).copied()
}
