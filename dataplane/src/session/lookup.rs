//! The snapshot, as the validation of a CONNECT asks it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{
    AppProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, NamespacedHostname, Workload,
};
use tunnel::hbone::{Authority, DestinationLookup, Host, HostnamePort};
use xds::snapshot::ServiceEntry;

use super::state::NodeState;

/// What is known from the point of view of one local workload.
pub(super) struct Lookup<'a> {
    pub(super) state: &'a NodeState,
    pub(super) workload: &'a Workload,
}

impl Lookup<'_> {
    /// The service of that name; one of the workload's own namespace is preferred.
    pub(super) fn service(&self, hostname: &str) -> Option<&Arc<ServiceEntry>> {
        self.state.snapshot.service_by_host(hostname, self.workload.identity.namespace())
    }

    /// What the client meant by `authority`, as an address: for a hostname a VIP of the service, of the workload's own
    /// network if there is one, and of IPv4 if there is one. `None` where the service has none.
    pub(super) fn address_of(&self, authority: &Authority) -> Option<SocketAddr> {
        let ip = match &authority.host {
            Host::Ip(ip) => *ip,
            Host::Name(name) => {
                let entry = self.service(name)?;
                let vips = entry.service.vips.iter();
                vips.min_by_key(|vip| (vip.network != self.workload.network, vip.ip.is_ipv6()))?.ip
            }
        };
        Some(SocketAddr::new(ip, authority.port))
    }

    /// What the services that a workload stands behind say of its port; unknown where they do not agree.
    pub(super) fn declared(&self, workload: &Workload, port: u16) -> AppProtocol {
        let mut declared = workload.services.iter().flat_map(|(key, ports)| {
            let entry = self.state.snapshot.service(&key.namespace, &key.hostname);
            let ports = ports.iter().filter(|it| it.target_port == port);
            ports.filter_map(move |it| entry?.service.port(it.service_port)).map(|it| it.app_protocol)
        });
        let Some(first) = declared.next() else { return AppProtocol::Unknown };
        if declared.all(|other| other == first) { first } else { AppProtocol::Unknown }
    }

    /// Whether what listens on a port of the workload says nothing before its client has: by what it is declared to speak.
    /// Without a declaration it may be a protocol in which the server begins.
    pub(super) fn client_begins(&self, port: u16) -> bool {
        use AppProtocol::{Grpc, Http2, Http11, Tls};
        matches!(self.declared(self.workload, port), Http11 | Http2 | Grpc | Tls)
    }

    /// The key of what is not held and was not answered for, but decides what `authority` means at the address
    /// `dialled`. `None` once the validation of the request has all that there is.
    pub(super) fn unanswered(&self, authority: &Authority, dialled: IpAddr) -> Option<String> {
        match &authority.host {
            Host::Name(name) => self.unanswered_name(name),
            Host::Ip(ip) if *ip == dialled.to_canonical() || self.workload.application_tunnel.is_some() => {
                None
            }
            Host::Ip(ip) => self.unanswered_address(*ip),
        }
    }

    /// Services are asked for by namespace and name, and a request tells the name alone: those that the workload
    /// belongs to are looked for first, then its namespace, then the one that a cluster's name has in it.
    fn unanswered_name(&self, hostname: &str) -> Option<String> {
        let own = self.workload.services.keys().filter(|key| *key.hostname == *hostname).cloned();
        let mut labels = hostname.split('.').skip(1);
        let told = labels.next().filter(|_| labels.next() == Some("svc"));
        let likely = [Some(self.workload.identity.namespace()), told].into_iter().flatten();
        let candidates = own.chain(likely.map(|namespace| NamespacedHostname::new(namespace, hostname)));
        for key in candidates {
            let snapshot = &self.state.snapshot;
            if snapshot.service(&key.namespace, &key.hostname).is_some() {
                return None;
            }
            let name = key.to_string();
            if !snapshot.is_answered(&name) {
                return Some(name);
            }
        }
        None
    }

    /// Whose the address is, then who its waypoint is, where that is told by the address of a service.
    fn unanswered_address(&self, ip: IpAddr) -> Option<String> {
        let snapshot = &self.state.snapshot;
        if let Some(key) = snapshot.unanswered_address(&self.workload.network, ip) {
            return Some(key);
        }
        if self.waypoints_of(ip).any(|waypoint| self.is_us(waypoint)) {
            return None;
        }
        self.waypoints_of(ip).find_map(|waypoint| match &waypoint.destination {
            // Whether this workload belongs to that service is known from the workload.
            GatewayDestination::Hostname(_) => None,
            GatewayDestination::Address(it) => snapshot.unanswered_address(&it.network, it.ip),
        })
    }

    /// The waypoints of what has this address.
    fn waypoints_of(&self, ip: IpAddr) -> impl Iterator<Item = &GatewayAddress> {
        let (snapshot, network) = (&self.state.snapshot, &self.workload.network);
        let workload = snapshot.workload_by_address(network, ip);
        let service = snapshot.service_by_vip(network, ip, self.workload.identity.namespace());
        let service = service.map(|entry| &entry.service);
        let weighted = service.into_iter().flat_map(|it| &it.weighted_waypoints).map(|it| &it.destination);
        let single = workload.and_then(|it| it.waypoint.as_ref()).into_iter();
        single.chain(service.and_then(|it| it.waypoint.as_ref())).chain(weighted)
    }

    /// Whether this workload is the waypoint that is named, if one is.
    pub(super) fn fronts(&self, waypoint: Option<&GatewayAddress>) -> bool {
        waypoint.is_some_and(|waypoint| self.is_us(waypoint))
    }

    /// Whether a waypoint is this workload: by a service that it belongs to, or by its address.
    fn is_us(&self, waypoint: &GatewayAddress) -> bool {
        match &waypoint.destination {
            GatewayDestination::Hostname(key) => self.workload.services.contains_key(key),
            GatewayDestination::Address(address) => {
                let own =
                    address.network == self.workload.network && self.workload.addresses.contains(&address.ip);
                let namespace = self.workload.identity.namespace();
                own || self
                    .state
                    .snapshot
                    .service_by_vip(&address.network, address.ip, namespace)
                    .is_some_and(|entry| self.workload.services.contains_key(entry.key()))
            }
        }
    }
}

impl DestinationLookup for Lookup<'_> {
    fn application_tunnel(&self) -> Option<ApplicationTunnel> {
        self.workload.application_tunnel
    }

    fn hostname_port(&self, hostname: &str, service_port: u16) -> HostnamePort {
        let Some(entry) = self.service(hostname) else { return HostnamePort::UnknownHostname };
        let own = self.workload.services.get(entry.key()).into_iter().flatten();
        let own = own.filter(|port| port.service_port == service_port).map(|port| port.target_port);
        let services = entry.service.port(service_port).map(|port| port.target_port);
        // 0 is the absence of a number: the endpoint has none of its own, or the service's port has a name.
        own.chain(services).find(|port| *port != 0).map_or(HostnamePort::UnknownPort, HostnamePort::Target)
    }

    fn is_waypoint_of(&self, ip: IpAddr) -> bool {
        self.waypoints_of(ip).any(|waypoint| self.is_us(waypoint))
    }
}
