//! What a waypoint does with a connection: one lookup, whichever control plane feeds it.
//!
//! istiod tells a waypoint by Envoy's resources, which are read into a [`WaypointConfig`]; it is then all that is asked.
//! [`Snapshot::served`] finds what is to be done with a connection, and [`Snapshot::resolve_backend`] the endpoint of a
//! backend that a route chose.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use equivalent::Equivalent;
use ipnet::IpNet;
use l7::authz::PolicySet;
use l7::ir::{Backend, TrafficSettings};
use l7::path::Normalization;
use l7::router::Router;
use model::NamespacedHostname;

use super::{Map, ServiceEntry, Snapshot};

/// What a client of a waypoint asks for: the authority of its CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked<'a> {
    Address(SocketAddr),
    Name { hostname: &'a str, port: u16 },
}

/// How a destination is served. With both `http` and `tcp` the first bytes of the connection decide; with neither it is
/// closed.
#[derive(Debug, Clone)]
pub struct Served {
    /// The service that was addressed; `None`: the address is a workload's own.
    pub service: Option<NamespacedHostname>,
    pub port: u16,
    pub http: Option<ServedHttp>,
    /// How a connection is served that does not carry HTTP.
    pub tcp: Option<ServedTcp>,
}

/// How a connection is served that is not read.
#[derive(Debug, Clone)]
pub struct ServedTcp {
    pub policies: Arc<PolicySet>,
    /// `None`: it goes to the service, or to the workload, as the traffic policy there says.
    pub way: Option<Arc<TcpWay>>,
}

/// Where a control plane that speaks Envoy's resources has connections go.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpWay {
    /// Each has its share; of those that are not valid it is closed. None: the service, or the workload.
    pub backends: Vec<Backend>,
    /// Where endpoints are chosen by hash, it is by that of the client's address; else by none.
    pub by_client: bool,
}

/// How the requests of a connection are served.
#[derive(Debug, Clone)]
pub struct ServedHttp {
    /// With what is to be done with their tokens.
    pub policies: Arc<PolicySet>,
    /// `None`: they go to the service, or to the workload, as they are.
    pub router: Option<Arc<Router>>,
    pub normalization: Normalization,
}

/// Everything that a control plane has told a waypoint by Envoy's resources. Immutable; parts that did not change are
/// shared with the one before.
#[derive(Clone, Default)]
pub struct WaypointConfig {
    /// By address and port of a service.
    pub(crate) by_address: Map<SocketAddr, Arc<Served>>,
    /// Blocks of addresses, the longest prefix first.
    pub(crate) by_block: Arc<[(IpNet, u16, Arc<Served>)]>,
    /// By `host:port`, in lower case.
    pub(crate) by_name: Map<Arc<str>, Arc<Served>>,
    /// Addresses of workloads, which are served on any port.
    pub(crate) workloads: Arc<[IpNet]>,
    pub(crate) direct: Option<Arc<Served>>,
    pub(crate) clusters: Map<ClusterKey, Arc<Cluster>>,
    /// What was not understood, and is refused or left out.
    pub(crate) problems: Arc<[String]>,
}

/// A port of a service, or of one of its subsets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClusterKey {
    pub(crate) hostname: Arc<str>,
    pub(crate) port: u16,
    /// Empty: the whole service.
    pub(crate) subset: Arc<str>,
}

/// Twin of [`ClusterKey`], see [`super::keys`].
#[derive(Hash)]
struct ClusterQuery<'a> {
    hostname: &'a str,
    port: u16,
    subset: &'a str,
}

impl Equivalent<ClusterKey> for ClusterQuery<'_> {
    fn equivalent(&self, key: &ClusterKey) -> bool {
        self.hostname == &*key.hostname && self.port == key.port && self.subset == &*key.subset
    }
}

/// The endpoints of a port of a service or of one of its subsets.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// One for each priority, the most wanted first; a later one serves only while those before have no endpoint.
    pub(crate) levels: Vec<Arc<ServiceEntry>>,
    pub(crate) settings: Arc<TrafficSettings>,
}

impl Snapshot {
    /// What Envoy's resources say, if that is what the control plane sends.
    pub fn waypoint_config(&self) -> Option<&Arc<WaypointConfig>> {
        self.waypoint.as_ref()
    }

    /// What a waypoint that is told by Envoy's resources does with a connection; `None`: the destination is not its
    /// business, and the connection is refused.
    pub fn served(&self, asked: Asked<'_>) -> Option<Served> {
        let config = self.waypoint.as_ref()?;
        match asked {
            Asked::Address(address) => config.by_address(address),
            Asked::Name { hostname, port } => config.by_name(hostname, port),
        }
    }
}

impl WaypointConfig {
    /// Everything that is served, with how it is addressed, in no particular order.
    pub(super) fn served(&self) -> impl Iterator<Item = (String, &Arc<Served>)> {
        let addresses = self.by_address.iter().map(|(address, served)| (address.to_string(), served));
        let blocks = self.by_block.iter().map(|(block, port, served)| (format!("{block}:{port}"), served));
        let names = self.by_name.iter().map(|(name, served)| (name.to_string(), served));
        let direct = self.direct.iter().map(|served| ("workloads".to_owned(), served));
        addresses.chain(blocks).chain(names).chain(direct)
    }

    fn by_address(&self, address: SocketAddr) -> Option<Served> {
        let (ip, port) = (address.ip().to_canonical(), address.port());
        if let Some(served) = self.by_address.get(&SocketAddr::new(ip, port)) {
            return Some(Served::clone(served));
        }
        let block = self.by_block.iter().find(|(block, own, _)| *own == port && block.contains(&ip));
        if let Some((_, _, served)) = block {
            return Some(Served::clone(served));
        }
        let direct = self.direct.as_ref().filter(|_| self.is_workload(ip))?;
        Some(Served { port, ..Served::clone(direct) })
    }

    fn by_name(&self, hostname: &str, port: u16) -> Option<Served> {
        let name = format!("{}:{port}", hostname.to_ascii_lowercase());
        self.by_name.get(&*name).map(|served| Served::clone(served))
    }

    fn is_workload(&self, ip: IpAddr) -> bool {
        self.workloads.iter().any(|block| block.contains(&ip))
    }

    /// The endpoints of a service's port, one entry for each priority.
    pub(crate) fn levels(&self, hostname: &str, port: u16, subset: Option<&str>) -> &[Arc<ServiceEntry>] {
        self.cluster(hostname, port, subset).map_or(&[], |cluster| &cluster.levels)
    }

    /// How the traffic to a service's port, or to a subset of its endpoints, is spread and bounded.
    pub fn settings(&self, hostname: &str, port: u16, subset: Option<&str>) -> Option<&Arc<TrafficSettings>> {
        self.cluster(hostname, port, subset).map(|cluster| &cluster.settings)
    }

    /// What was not understood, and is refused or left out, each with its place.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    fn cluster(&self, hostname: &str, port: u16, subset: Option<&str>) -> Option<&Arc<Cluster>> {
        self.clusters.get(&ClusterQuery { hostname, port, subset: subset.unwrap_or_default() })
    }
}

impl std::fmt::Debug for WaypointConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaypointConfig")
            .field("addresses", &self.by_address.len())
            .field("clusters", &self.clusters.len())
            .finish_non_exhaustive()
    }
}
