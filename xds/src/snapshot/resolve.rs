//! Where a connection of a local workload goes: one pure decision, taken anew for each connection.
//!
//! In order: the proxy's own ports on loopback are refused; an address that belongs to a service goes to the
//! service's waypoint, or to an endpoint of the service; an address that belongs to a workload goes to the workload's
//! waypoint, or to the workload; any other address is passed through. Whatever cannot be decided safely is refused,
//! never passed through.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{
    GatewayAddress, GatewayDestination, Identity, IpFamilies, LoadBalancingMode, NamespacedHostname, Service,
    TunnelProtocol, Workload,
};

use super::endpoint::{NoEndpoint, Random, choose};
use super::{ServiceEntry, Snapshot};

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
    #[error("workload {0} has no address")]
    NoAddress(Arc<str>),
    #[error("{what} is not supported by this version, and going round it would not be safe")]
    Unsupported { what: &'static str },
}

impl Snapshot {
    /// Decides the way of one connection to its original destination.
    pub fn resolve(&self, client: Client<'_>, to: SocketAddr, random: u64) -> Result<Route, Refusal> {
        let mut random = Random::new(random);
        match self.destination(client, to)? {
            Destination::Unknown => Ok(Route::passthrough(to, None)),
            Destination::Workload(workload) => self.to_workload(client, workload, to, &mut random),
            Destination::Service { entry, owner } => {
                if let Some(owner) = owner.filter(|owner| self.needs_waypoint(client, owner)) {
                    return self.to_workload(client, owner, to, &mut random);
                }
                let waypoint =
                    if owner.is_some() { None } else { pick_waypoint(&entry.service, &mut random) };
                if let Some(waypoint) = waypoint {
                    let mut route = self.to_waypoint(client, waypoint, to, &mut random)?;
                    route.service = Some(Arc::clone(entry));
                    return Ok(route);
                }
                if mode(&entry.service) == LoadBalancingMode::Passthrough {
                    return Ok(Route::passthrough(to, Some(Arc::clone(entry))));
                }
                to_endpoint(client, entry, to.port(), Some(to.ip()), &mut random)
            }
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

    /// The way to an endpoint of a service, past its waypoint: for a backend that an L7 route chose, and for the
    /// waypoint's own use.
    pub fn resolve_backend(
        &self,
        client: Client<'_>,
        service: &NamespacedHostname,
        port: u16,
        random: u64,
    ) -> Result<Route, Refusal> {
        let no_endpoint = || Refusal::NoEndpoint { service: service.clone(), port };
        let entry = self.services.get(service).ok_or_else(no_endpoint)?;
        to_endpoint(client, entry, port, None, &mut Random::new(random))
    }

    fn to_workload(
        &self,
        client: Client<'_>,
        workload: &Arc<Workload>,
        to: SocketAddr,
        random: &mut Random,
    ) -> Result<Route, Refusal> {
        if let Some(waypoint) = workload.waypoint.as_ref().filter(|_| self.needs_waypoint(client, workload)) {
            return self.to_waypoint(client, waypoint, to, random);
        }
        let transport = transport_to(workload, to.ip(), to.port(), &[]);
        Ok(Route { transport, service: None, workload: Some(Arc::clone(workload)), kind: RouteKind::Direct })
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

    /// HBONE to an instance of the waypoint, which is told the original destination.
    fn to_waypoint(
        &self,
        client: Client<'_>,
        waypoint: &GatewayAddress,
        to: SocketAddr,
        random: &mut Random,
    ) -> Result<Route, Refusal> {
        let instance = self.waypoint_instance(client, waypoint, random)?;
        let ip = pick_address(&instance.workload, None, IpFamilies::Automatic, client.ip)
            .ok_or_else(|| Refusal::NoAddress(Arc::clone(&instance.workload.uid)))?;
        let transport = Transport::Hbone {
            next_hop: SocketAddr::new(ip, instance.port),
            authority: to,
            identities: identities(&instance.workload, instance.subject_alt_names),
        };
        Ok(Route { transport, service: None, workload: Some(instance.workload), kind: RouteKind::Waypoint })
    }

    fn waypoint_instance(
        &self,
        client: Client<'_>,
        waypoint: &GatewayAddress,
        random: &mut Random,
    ) -> Result<WaypointInstance<'_>, Refusal> {
        let port = waypoint.hbone_mtls_port;
        let entry = match &waypoint.destination {
            GatewayDestination::Hostname(key) => self.services.get(key),
            GatewayDestination::Address(address) => {
                if let Some(workload) = self.workload_by_address(&address.network, address.ip) {
                    if workload.network != client.workload.network {
                        return Err(Refusal::Unsupported { what: "a waypoint on another network" });
                    }
                    let workload = Arc::clone(workload);
                    return Ok(WaypointInstance { workload, port, subject_alt_names: &[] });
                }
                let namespace = client.workload.identity.namespace();
                self.service_by_vip(&address.network, address.ip, namespace)
            }
        };
        let entry = entry.ok_or_else(|| Refusal::UnknownWaypoint(gateway_name(waypoint)))?;
        match choose(entry, port, client.workload, random) {
            Ok(choice) => Ok(WaypointInstance {
                workload: Arc::clone(&choice.endpoint.workload),
                port: choice.target_port,
                subject_alt_names: &entry.service.subject_alt_names,
            }),
            Err(NoEndpoint::OtherNetwork) => {
                Err(Refusal::Unsupported { what: "a waypoint on another network" })
            }
            Err(NoEndpoint::Unavailable) => Err(Refusal::NoEndpoint { service: entry.key().clone(), port }),
        }
    }
}

struct WaypointInstance<'a> {
    workload: Arc<Workload>,
    port: u16,
    subject_alt_names: &'a [Identity],
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

fn to_endpoint(
    client: Client<'_>,
    entry: &Arc<ServiceEntry>,
    port: u16,
    requested: Option<IpAddr>,
    random: &mut Random,
) -> Result<Route, Refusal> {
    let choice = choose(entry, port, client.workload, random).map_err(|error| match error {
        NoEndpoint::Unavailable => Refusal::NoEndpoint { service: entry.key().clone(), port },
        NoEndpoint::OtherNetwork => Refusal::Unsupported { what: "an endpoint on another network" },
    })?;
    let workload = &choice.endpoint.workload;
    let service = &entry.service;
    let transport = match pick_address(workload, requested, service.ip_families, client.ip) {
        Some(ip) => transport_to(workload, ip, choice.target_port, &service.subject_alt_names),
        None if workload.hostname.is_empty() => return Err(Refusal::NoAddress(Arc::clone(&workload.uid))),
        None => transport_to_name(workload, choice.target_port)?,
    };
    let (service, workload) = (Some(Arc::clone(entry)), Some(Arc::clone(workload)));
    Ok(Route { transport, service, workload, kind: RouteKind::Direct })
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

fn identities(workload: &Workload, subject_alt_names: &[Identity]) -> Vec<Identity> {
    let mut identities = Vec::with_capacity(1 + subject_alt_names.len());
    identities.push(workload.identity.clone());
    identities.extend(subject_alt_names.iter().filter(|it| **it != workload.identity).cloned());
    identities
}

/// The requested address if the workload has it; else one of a family that the service offers, of the client's family
/// where there is one.
fn pick_address(
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

fn gateway_name(gateway: &GatewayAddress) -> String {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => key.to_string(),
        GatewayDestination::Address(address) => address.to_string(),
    }
}
