//! The snapshot, as the validation of a CONNECT asks it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{ApplicationTunnel, GatewayAddress, GatewayDestination, Workload};
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
        let snapshot = &self.state.snapshot;
        let workload = snapshot.workload_by_address(&self.workload.network, ip);
        let service = snapshot.service_by_vip(&self.workload.network, ip, self.workload.identity.namespace());
        workload.and_then(|it| it.waypoint.as_ref()).is_some_and(|waypoint| self.is_us(waypoint))
            || service.is_some_and(|entry| {
                let weighted = entry.service.weighted_waypoints.iter().map(|it| &it.destination);
                entry.service.waypoint.iter().chain(weighted).any(|waypoint| self.is_us(waypoint))
            })
    }
}
