//! Where a topology stands: all on one loopback, or client and server in namespaces of their own.
//!
//! Either way the network belongs to the run alone, so ports are fixed and nothing of the machine's is touched.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use dataplane::capture::{Tool, tool};
use dataplane::mesh::fabric::Fabric;
use dataplane::net::NetworkNamespace;

use super::result::Network;
use crate::Failure;

/// The address of the service that clients in a namespace ask for.
pub(super) const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), 80);
pub(super) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1));
pub(super) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 2));
pub(super) const WAYPOINT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 3));
const NODES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2))];
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

pub(super) const BACKEND_PORT: u16 = 8080;
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
const TUNNEL_PORT: u16 = 15008;
const WAYPOINT_PORT: u16 = 15018;

/// A network and the addresses on it.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) network: Network,
    pub(super) client: NetworkNamespace,
    pub(super) server: NetworkNamespace,
    /// Where a waypoint stands.
    pub(super) waypoint: NetworkNamespace,
    /// Where node proxies live, which serve the pods from outside; none on loopback.
    pub(super) nodes: Vec<NetworkNamespace>,
    /// What keeps the namespaces joined.
    _fabric: Option<Fabric>,
}

/// Where a proxy listens, and where the one before it dials to reach it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Door {
    pub(super) listen: SocketAddr,
    pub(super) dial: SocketAddr,
}

impl Site {
    /// The loopback of this process's own network namespace.
    pub(super) fn loopback() -> Result<Self, Failure> {
        tool::run(Tool::Ip, &["-batch", "-"], "link set lo up\n", None)?;
        let home = NetworkNamespace::home()?;
        prepare(&home)?;
        let (network, nodes) = (Network::Loopback, Vec::new());
        let (client, server) = (home.clone(), home.clone());
        Ok(Self { network, client, server, waypoint: home, nodes, _fabric: None })
    }

    /// Client and server, each in a namespace, joined by a router.
    pub(super) fn namespaces() -> Result<Self, Failure> {
        let mut fabric = Fabric::new()?;
        let mut place = |name: &str, ip: IpAddr| -> Result<NetworkNamespace, Failure> {
            let namespace = fabric.add_pod(&Arc::from(name), &[ip])?.namespace.clone();
            prepare(&namespace)?;
            Ok(namespace)
        };
        let (client, server) = (place("client", CLIENT)?, place("server", SERVER)?);
        let waypoint = place("waypoint", WAYPOINT)?;
        let nodes = vec![place("node-a", NODES[0])?, place("node-b", NODES[1])?];
        let network = Network::Namespaces;
        Ok(Self { network, client, server, waypoint, nodes, _fabric: Some(fabric) })
    }

    fn choose(&self, loopback: SocketAddr, namespaces: SocketAddr) -> SocketAddr {
        match self.network {
            Network::Loopback => loopback,
            Network::Namespaces => namespaces,
        }
    }

    /// The client's proxy. In a namespace its connections to the service are redirected there.
    pub(super) fn outbound(&self) -> Door {
        let listen = SocketAddr::new(LOCAL, OUTBOUND_PORT);
        Door { listen, dial: self.choose(listen, SERVICE) }
    }

    /// The server's proxy. In a namespace what is meant for the backend is redirected there.
    pub(super) fn inbound(&self) -> Door {
        let local = SocketAddr::new(LOCAL, INBOUND_PORT);
        let any = SocketAddr::new(ANY, INBOUND_PORT);
        Door {
            listen: self.choose(local, any),
            dial: self.choose(local, SocketAddr::new(SERVER, BACKEND_PORT)),
        }
    }

    /// The server's proxy where tunnels arrive, which are not redirected.
    pub(super) fn tunnel(&self) -> Door {
        let local = SocketAddr::new(LOCAL, TUNNEL_PORT);
        let any = SocketAddr::new(ANY, TUNNEL_PORT);
        Door {
            listen: self.choose(local, any),
            dial: self.choose(local, SocketAddr::new(SERVER, TUNNEL_PORT)),
        }
    }

    /// The waypoint, which no connection is redirected to.
    pub(super) fn waypoint_door(&self) -> Door {
        let local = SocketAddr::new(LOCAL, WAYPOINT_PORT);
        let any = SocketAddr::new(ANY, WAYPOINT_PORT);
        Door {
            listen: self.choose(local, any),
            dial: self.choose(local, SocketAddr::new(WAYPOINT, WAYPOINT_PORT)),
        }
    }

    /// The backend as a proxy beside it dials it.
    pub(super) fn backend(&self) -> Door {
        let local = SocketAddr::new(LOCAL, BACKEND_PORT);
        Door { listen: self.choose(local, SocketAddr::new(ANY, BACKEND_PORT)), dial: local }
    }

    /// The backend as the client's side reaches it.
    pub(super) fn backend_afar(&self) -> SocketAddr {
        self.choose(SocketAddr::new(LOCAL, BACKEND_PORT), SocketAddr::new(SERVER, BACKEND_PORT))
    }

    /// Redirects as Istio does for sidecars, until the guard goes. Does nothing on loopback.
    pub(super) fn redirect(&self, inbound: bool) -> Result<Redirected, Failure> {
        if self.network == Network::Loopback {
            return Ok(Redirected(Vec::new()));
        }
        let table = |hook: &str, matches: String, port: u16| {
            format!(
                "table ip {TABLE} {{
  chain lead {{
    type nat hook {hook} priority -100; policy accept;
    {matches} redirect to :{port}
  }}
}}
"
            )
        };
        let service = format!("ip daddr {} tcp dport {}", SERVICE.ip(), SERVICE.port());
        let outbound = table("output", service, OUTBOUND_PORT);
        // Where nothing is to be redirected the rule matches nothing, but connections are tracked alike.
        let port = if inbound { BACKEND_PORT } else { 1 };
        let inbound = table("prerouting", format!("iifname \"eth0\" tcp dport {port}"), INBOUND_PORT);
        let mut redirected = Redirected(Vec::new());
        for (place, script) in [(&self.client, outbound), (&self.server, inbound)] {
            tool::run(Tool::Nft, &["-f", "-"], &script, Some(place))?;
            redirected.0.push(place.clone());
        }
        Ok(redirected)
    }

    /// Congestion control of sockets that set none.
    pub(super) fn congestion(&self) -> String {
        let read = || fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
        self.client.within(read).ok().and_then(Result::ok).unwrap_or_default().trim().to_owned()
    }

    /// Sets it.
    pub(super) fn set_congestion(&self, name: &str) -> Result<(), Failure> {
        for place in [&self.client, &self.server, &self.waypoint].into_iter().chain(&self.nodes) {
            set(place, "net/ipv4/tcp_congestion_control", name)?;
        }
        Ok(())
    }
}

const TABLE: &str = "perf_compare";

/// Redirection in force.
#[derive(Debug)]
pub(super) struct Redirected(Vec<NetworkNamespace>);

impl Drop for Redirected {
    fn drop(&mut self) {
        for place in &self.0 {
            // The namespace goes with the run at the latest.
            let _ = tool::run(Tool::Nft, &["-f", "-"], &format!("delete table ip {TABLE}"), Some(place));
        }
    }
}

/// Room for many connections, also where each request has its own.
fn prepare(place: &NetworkNamespace) -> Result<(), Failure> {
    set(place, "net/ipv4/ip_local_port_range", "20000 65535")?;
    set(place, "net/ipv4/tcp_tw_reuse", "1")?;
    // Where connections are tracked, those that have ended would fill the table before it forgets them. A kernel that
    // cannot track has no such setting.
    let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait";
    drop(place.within(|| fs::write(path, "1"))?);
    set(place, "net/core/somaxconn", "4096")
}

fn set(place: &NetworkNamespace, path: &str, value: &str) -> Result<(), Failure> {
    let path = format!("/proc/sys/{path}");
    let written = place.within(|| fs::write(&path, value))?;
    written.map_err(|error| format!("the kernel setting {path} cannot be set to {value}: {error}").into())
}
