//! The topologies: what stands between the load and the backend, and how it is started.

mod custom;
mod envoy;
mod haproxy;
mod list;
mod start;

use std::fs;
use std::path::PathBuf;

use super::churn::Changes;
use super::handshake::Tunnel;
use super::http::client::Target;
use super::mesh;
use super::programs::Programs;
use super::result::{Kind, Layer, Network, Topology};
use super::site::{Redirected, Site};
use super::work::Kind as Work;
use crate::Failure;
use crate::certificates::Certificates;
use crate::machine::Cores;
use crate::process::Process;
use custom::Custom;
use haproxy::Between;
use start::Start;

pub(super) use custom::read as read_custom;
pub(super) use envoy::changed_files;
pub(super) use list::all;

/// What a request meets at one hop beside the route that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::compare) enum Rules {
    One,
    /// A thousand routes and a hundred policies, of which the last ones fit.
    Many,
    /// As one, and the applications speak gRPC.
    Grpc,
    /// As one at first, and changed while it runs.
    Changing,
}

/// One arrangement.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) label: &'static str,
    pub(super) kind: Kind,
    pub(super) network: Network,
    pub(super) layer: Layer,
    pub(super) processes: Vec<String>,
    pub(super) description: &'static str,
    pub(super) refusal: Refusal,
    pub(super) starter: Starter,
}

/// What proves that the rules are in force: a request that they refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has no rules.
    Nothing,
    /// What no route takes.
    Route,
    /// What a route takes and no policy allows.
    Policy,
    /// It has policies only in its form with many rules.
    PolicyOfMany,
}

impl Refusal {
    /// Path and status.
    fn request(self, rules: Rules) -> Option<(&'static str, u16)> {
        match (self, rules) {
            (Self::Nothing, _) => None,
            (Self::Route, _) | (Self::PolicyOfMany, Rules::One | Rules::Grpc | Rules::Changing) => {
                Some(("/denied/", 404))
            }
            (Self::Policy, _) | (Self::PolicyOfMany, Rules::Many) => Some(("/v1/denied/", 403)),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Starter {
    Nothing,
    Relays,
    Sidecars {
        http2: bool,
        telemetry: bool,
    },
    EnvoyL4,
    EnvoyHbone,
    EnvoyWaypoint,
    EnvoyHop,
    Haproxy(Between),
    HaproxyHop,
    NginxHop,
    /// `corelane tunnel`, both roles.
    Tunnel {
        driver: &'static str,
        workers: usize,
        congestion: Option<&'static str>,
    },
    /// Whole node proxies: `corelane proxy`, or what takes its place.
    Nodes(Nodes),
    Custom(Custom),
}

impl Starter {
    /// Whether it can be told a thousand routes and a hundred policies.
    fn has_many_rules(&self) -> bool {
        match self {
            Self::Sidecars { .. } | Self::EnvoyHop | Self::HaproxyHop => true,
            Self::Haproxy(between) => *between != Between::Bytes,
            Self::Nodes(nodes) => nodes.mesh != NodeMesh::L4,
            _ => false,
        }
    }
}

impl Starter {
    /// Whether its server takes tunnels of whoever has a certificate of the run.
    fn takes_tunnels(&self) -> bool {
        matches!(self, Self::Tunnel { .. } | Self::EnvoyHbone)
    }

    /// Whether its routes and endpoints can change while it runs.
    fn can_change(&self) -> bool {
        match self {
            Self::Sidecars { .. } => true,
            Self::Nodes(nodes) => nodes.mesh == NodeMesh::L7,
            _ => false,
        }
    }

    /// Whether its proxies take HTTP/2 in the clear and give it to the server.
    fn speaks_grpc(&self) -> bool {
        match self {
            Self::Nothing | Self::Sidecars { http2: true, .. } => true,
            Self::Haproxy(between) => *between == Between::Http2,
            Self::Nodes(nodes) => nodes.mesh == NodeMesh::L7,
            _ => false,
        }
    }
}

/// How node proxies are started.
#[derive(Debug, Clone)]
pub(super) struct Nodes {
    pub(super) mesh: NodeMesh,
    pub(super) driver: &'static str,
    pub(super) workers: usize,
    /// What they log.
    pub(super) log: &'static str,
    /// What takes the place of `corelane`.
    pub(super) program: Option<PathBuf>,
}

/// A line for each connection, as a node has it by default.
pub(super) const WITH_ACCESS_LOG: &str = "info";
/// No line for each request: the other proxies of the comparison write none.
pub(super) const WITHOUT_ACCESS_LOG: &str = "info,access=warn";

/// [`super::mesh::Mesh`] without the number of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeMesh {
    L4,
    L7,
    Hop,
    Waypoint,
}

/// Bytes of memory that a process of ours may have, whatever is done with it.
pub(super) const MEMORY_MAX: u64 = 256 << 20;

/// What every start needs.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) certificates: Certificates,
    pub(super) programs: Programs,
    pub(super) cores: Cores,
    /// Configurations and logs.
    pub(super) folder: PathBuf,
}

/// A topology at work. Its processes end when it is dropped.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) processes: Vec<Process>,
    pub(super) backend: Process,
    pub(super) target: Target,
    /// Where tunnels are taken, if that is open to the load.
    pub(super) tunnel: Option<Tunnel>,
    /// How it is told of changes, if it was started to be.
    pub(super) changes: Option<Changes>,
    _mesh: Option<mesh::Running>,
    _redirected: Option<Redirected>,
}

impl Spec {
    /// Whether the work can be done with it.
    pub(super) fn suits(&self, work: Work) -> bool {
        match work {
            Work::RequestsManyRules => self.starter.has_many_rules(),
            Work::GrpcUnary | Work::GrpcStreams => self.starter.speaks_grpc(),
            Work::Handshakes => self.starter.takes_tunnels(),
            Work::Churn => self.starter.can_change(),
            Work::Flood | Work::Slow => {
                self.starter.takes_tunnels() || self.starter.speaks_grpc() && !self.processes.is_empty()
            }
            Work::Idle | Work::Overload => !self.processes.is_empty(),
            _ => true,
        }
    }

    pub(super) fn topology(&self) -> Topology {
        Topology {
            name: self.name.clone(),
            label: self.label.to_owned(),
            kind: self.kind,
            network: self.network,
            layer: self.layer,
            processes: self.processes.clone(),
            description: self.description.to_owned(),
        }
    }

    /// Starts everything and waits until a request is answered, and one that shall be refused is refused.
    pub(super) fn start(&self, setup: &Setup, site: &Site, rules: Rules) -> Result<Running, Failure> {
        // Its files carry its name; those of an earlier start are of no use any more.
        let folder = setup.folder.join(&self.name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let start = Start { spec: self, setup, site, rules, folder };
        let backend = start.backend()?;
        let mut running = start.proxies(backend)?;
        start.prove(&mut running).map_err(|error| start.explained(&error.to_string()))?;
        Ok(running)
    }
}
