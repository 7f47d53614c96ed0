//! Whether this workload may be asked for a destination, and which address and port that means here.

use std::net::{IpAddr, SocketAddr};

use model::ApplicationTunnel;

use super::{Authority, AuthorityError, Host};

/// Ports of the proxy itself. A tunnel to them would loop, or reach the proxy as if from inside the workload.
const RESERVED_PORTS: [u16; 4] = [15_001, 15_006, 15_008, 15_080];

/// Why a request was refused. Each has one status on the wire and one label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    #[error("the request is not a plain CONNECT")]
    NotConnect,
    #[error("the request names no destination: {0}")]
    Authority(#[from] AuthorityError),
    #[error("the destination {asked} is not served by the workload at {dialled}")]
    NotThisWorkload { asked: IpAddr, dialled: IpAddr },
    #[error("authorization policy denies the request")]
    Denied,
    #[error("port {0} belongs to the proxy itself")]
    ReservedPort(u16),
    #[error("no service of the name {0} is known")]
    UnknownHostname(Box<str>),
    #[error("the service {hostname} has no port {port}")]
    UnknownServicePort { hostname: Box<str>, port: u16 },
    #[error("the local workload is not known (yet)")]
    UnknownWorkload,
    #[error("the control plane has not told (yet) whose the destination is")]
    Unanswered,
    #[error("the application did not accept the connection: {0}")]
    Unreachable(String),
}

impl DestinationError {
    /// The status that the peer sees.
    pub const fn status(&self) -> u16 {
        match self {
            Self::NotConnect | Self::Authority(_) | Self::NotThisWorkload { .. } => 400,
            Self::Denied => 401,
            Self::ReservedPort(_)
            | Self::UnknownHostname(_)
            | Self::UnknownServicePort { .. }
            | Self::UnknownWorkload
            | Self::Unanswered
            | Self::Unreachable(_) => 503,
        }
    }

    /// The label of logs and metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NotConnect => "not_connect",
            Self::Authority(_) => "bad_authority",
            Self::NotThisWorkload { .. } => "not_this_workload",
            Self::Denied => "denied",
            Self::ReservedPort(_) => "reserved_port",
            Self::UnknownHostname(_) => "unknown_hostname",
            Self::UnknownServicePort { .. } => "unknown_service_port",
            Self::UnknownWorkload => "unknown_workload",
            Self::Unanswered => "unanswered",
            Self::Unreachable(_) => "unreachable",
        }
    }
}

/// What the configuration knows about a hostname's port, seen from the local workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostnamePort {
    UnknownHostname,
    UnknownPort,
    /// The local endpoint's own mapping of the service port, else the service's numeric target port.
    Target(u16),
}

/// What the decision must look up. Implemented over a configuration snapshot, for one local workload.
pub trait DestinationLookup {
    /// The local workload's application tunnel.
    fn application_tunnel(&self) -> Option<ApplicationTunnel>;
    /// The target port of a service port; services of the local workload's namespace are preferred.
    fn hostname_port(&self, hostname: &str, service_port: u16) -> HostnamePort;
    /// Whether `ip` belongs to a service or workload whose waypoint is the local workload.
    fn is_waypoint_of(&self, ip: IpAddr) -> bool;
}

/// Where an accepted request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Always at the address that the peer dialled: a request never chooses another host.
    pub target: SocketAddr,
    /// The port that policies see: before the application tunnel's own port is put in its place.
    pub service_target_port: u16,
    /// Set if the application is to be spoken to through its tunnel.
    pub application_tunnel: Option<ApplicationTunnel>,
}

/// Decides about a request for `authority` that arrived at the local address `dialled`.
pub fn resolve(
    authority: &Authority,
    dialled: IpAddr,
    lookup: &impl DestinationLookup,
) -> Result<Destination, DestinationError> {
    let dialled = dialled.to_canonical();
    let application_tunnel = lookup.application_tunnel();
    let port = match &authority.host {
        Host::Name(name) => match lookup.hostname_port(name, authority.port) {
            HostnamePort::Target(port) => port,
            HostnamePort::UnknownHostname => return Err(DestinationError::UnknownHostname(name.clone())),
            HostnamePort::UnknownPort => {
                return Err(DestinationError::UnknownServicePort {
                    hostname: name.clone(),
                    port: authority.port,
                });
            }
        },
        Host::Ip(ip) => {
            let served = *ip == dialled || application_tunnel.is_some() || lookup.is_waypoint_of(*ip);
            if !served {
                return Err(DestinationError::NotThisWorkload { asked: *ip, dialled });
            }
            authority.port
        }
    };
    let target_port = match &application_tunnel {
        Some(tunnel) if tunnel.port != 0 => tunnel.port,
        _ => port,
    };
    // Both: policies must not be asked about a port that could never be meant either.
    for port in [port, target_port] {
        if RESERVED_PORTS.contains(&port) || port == 0 {
            return Err(DestinationError::ReservedPort(port));
        }
    }
    let target = SocketAddr::new(dialled, target_port);
    Ok(Destination { target, service_target_port: port, application_tunnel })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ApplicationTunnelProtocol;

    #[derive(Default)]
    struct Mesh {
        tunnel: Option<ApplicationTunnel>,
        waypoint_of: Option<IpAddr>,
    }

    impl DestinationLookup for Mesh {
        fn application_tunnel(&self) -> Option<ApplicationTunnel> {
            self.tunnel
        }

        fn hostname_port(&self, hostname: &str, service_port: u16) -> HostnamePort {
            match (hostname, service_port) {
                ("web.app", 80) => HostnamePort::Target(8080),
                ("web.app", 81) => HostnamePort::Target(15_008),
                ("web.app", _) => HostnamePort::UnknownPort,
                _ => HostnamePort::UnknownHostname,
            }
        }

        fn is_waypoint_of(&self, ip: IpAddr) -> bool {
            self.waypoint_of == Some(ip)
        }
    }

    fn ask(authority: &str, mesh: &Mesh) -> Result<String, (u16, &'static str)> {
        let dialled = "::ffff:10.0.0.1".parse().unwrap();
        resolve(&authority.parse().unwrap(), dialled, mesh)
            .map(|destination| destination.target.to_string())
            .map_err(|error| (error.status(), error.label()))
    }

    #[test]
    fn own_address_and_known_hostnames_are_served() {
        let mesh = Mesh::default();
        assert_eq!(ask("10.0.0.1:9000", &mesh).as_deref(), Ok("10.0.0.1:9000"));
        assert_eq!(ask("[::ffff:10.0.0.1]:9000", &mesh).as_deref(), Ok("10.0.0.1:9000"));
        assert_eq!(ask("web.app:80", &mesh).as_deref(), Ok("10.0.0.1:8080"));
    }

    #[test]
    fn each_refusal_has_its_status() {
        let mesh = Mesh::default();
        assert_eq!(ask("10.0.0.2:80", &mesh), Err((400, "not_this_workload")));
        assert_eq!(ask("127.0.0.1:80", &mesh), Err((400, "not_this_workload")));
        assert_eq!(ask("other.app:80", &mesh), Err((503, "unknown_hostname")));
        assert_eq!(ask("web.app:99", &mesh), Err((503, "unknown_service_port")));
        assert_eq!(ask("web.app:81", &mesh), Err((503, "reserved_port")));
        for port in RESERVED_PORTS {
            assert_eq!(ask(&format!("10.0.0.1:{port}"), &mesh), Err((503, "reserved_port")));
        }
        assert_eq!(DestinationError::Denied.status(), 401);
    }

    #[test]
    fn a_waypoint_serves_the_addresses_of_its_services_at_its_own_address() {
        let mesh = Mesh { waypoint_of: Some("10.9.9.9".parse().unwrap()), tunnel: None };
        assert_eq!(ask("10.9.9.9:80", &mesh).as_deref(), Ok("10.0.0.1:80"));
        assert_eq!(ask("10.9.9.8:80", &mesh), Err((400, "not_this_workload")));
    }

    #[test]
    fn an_application_tunnel_takes_any_address_and_sets_the_port() {
        let tunnel = |port| Some(ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port });
        let mesh = Mesh { tunnel: tunnel(15_088), waypoint_of: None };
        assert_eq!(ask("10.9.9.9:80", &mesh).as_deref(), Ok("10.0.0.1:15088"));
        assert_eq!(ask("10.9.9.9:15001", &mesh), Err((503, "reserved_port")));
        let mesh = Mesh { tunnel: tunnel(0), waypoint_of: None };
        assert_eq!(ask("10.9.9.9:80", &mesh).as_deref(), Ok("10.0.0.1:80"));
        let mesh = Mesh { tunnel: tunnel(15_008), waypoint_of: None };
        assert_eq!(ask("10.9.9.9:80", &mesh), Err((503, "reserved_port")));
    }
}
