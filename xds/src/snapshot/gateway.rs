//! Waypoints, and the gateways of other networks: who they are and how they are reached.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{GatewayAddress, GatewayDestination, Identity, IpFamilies, Workload};

use super::chooser::Choosing;
use super::endpoint::{Purpose, choose};
use super::resolve::{identities, no_endpoint, pick_address};
use super::{Client, Refusal, Route, RouteKind, ServiceEntry, Snapshot, Transport};

impl Snapshot {
    /// HBONE to an instance of the waypoint, which is told the original destination.
    pub(super) fn to_waypoint(
        &self,
        client: Client<'_>,
        waypoint: &GatewayAddress,
        to: SocketAddr,
        service: Option<&Arc<ServiceEntry>>,
        choosing: &mut Choosing<'_>,
    ) -> Result<Route, Refusal> {
        let unknown = || Refusal::UnknownWaypoint(gateway_name(waypoint));
        let instance = self.instance(client, waypoint, Purpose::Waypoint, choosing)?.ok_or_else(unknown)?;
        if instance.workload.network != client.workload.network {
            let entry = service.ok_or_else(|| Refusal::NotAService(gateway_name(waypoint)))?;
            let far =
                Far { workload: &instance.workload, service: instance.service, kind: RouteKind::Waypoint };
            return self.across(client, entry, to.port(), &far, choosing);
        }
        let transport = Transport::Hbone {
            next_hop: instance.address(client)?,
            authority: to,
            identities: instance.identities(),
        };
        let (service, workload) = (service.cloned(), Some(instance.workload));
        Ok(Route { transport, service, workload, kind: RouteKind::Waypoint })
    }

    /// Through the gateway of another network to what serves the service there.
    pub(super) fn across(
        &self,
        client: Client<'_>,
        entry: &Arc<ServiceEntry>,
        port: u16,
        far: &Far<'_>,
        choosing: &mut Choosing<'_>,
    ) -> Result<Route, Refusal> {
        let gateway = far.workload.network_gateway.as_ref();
        let gateway = gateway.ok_or_else(|| Refusal::NoNetworkGateway(entry.key().clone()))?;
        // Whoever answers there was chosen there: only the service can say who that may be.
        let identities = far.service.map_or(&[][..], |service| &service.service.subject_alt_names);
        if identities.is_empty() {
            let nameless =
                far.service.map_or(far.workload.uid.to_string(), |service| service.key().to_string());
            return Err(Refusal::NoIdentity(nameless));
        }
        let unknown = || Refusal::UnknownNetworkGateway(gateway_name(gateway));
        let instance = self.instance(client, gateway, Purpose::Gateway, choosing)?.ok_or_else(unknown)?;
        let transport = Transport::DoubleHbone {
            next_hop: instance.address(client)?,
            gateway_identities: instance.identities(),
            hostname: Arc::clone(&entry.key().hostname),
            port,
            identities: identities.to_vec(),
        };
        let (service, workload) = (Some(Arc::clone(entry)), Some(Arc::clone(far.workload)));
        Ok(Route { transport, service, workload, kind: far.kind })
    }

    /// An instance of a waypoint or of a network gateway: an endpoint of its service, or the workload that is one;
    /// `None` if it is neither.
    fn instance(
        &self,
        client: Client<'_>,
        gateway: &GatewayAddress,
        purpose: Purpose,
        choosing: &mut Choosing<'_>,
    ) -> Result<Option<Instance<'_>>, Refusal> {
        let port = gateway.hbone_mtls_port;
        let (entry, requested) = match &gateway.destination {
            GatewayDestination::Hostname(key) => (self.services.get(key), None),
            GatewayDestination::Address(address) => {
                let namespace = client.workload.identity.namespace();
                (self.service_by_vip(&address.network, address.ip, namespace), Some(address))
            }
        };
        let Some(entry) = entry else {
            let workload = requested.and_then(|it| self.workload_by_address(&it.network, it.ip));
            return Ok(workload.map(|workload| Instance {
                workload: Arc::clone(workload),
                requested: requested.map(|it| it.ip),
                port,
                service: None,
            }));
        };
        let choice = choose(entry, port, purpose, client.workload, choosing)
            .map_err(|error| no_endpoint(error, entry, port))?;
        Ok(Some(Instance {
            workload: Arc::clone(&choice.endpoint.workload),
            requested: requested.map(|it| it.ip),
            port: choice.target_port,
            service: Some(entry),
        }))
    }
}

/// One that carries traffic on behalf of others.
struct Instance<'a> {
    workload: Arc<Workload>,
    /// The address by which it was named.
    requested: Option<IpAddr>,
    port: u16,
    service: Option<&'a Arc<ServiceEntry>>,
}

impl Instance<'_> {
    fn address(&self, client: Client<'_>) -> Result<SocketAddr, Refusal> {
        let families = self.service.map_or(IpFamilies::Automatic, |entry| entry.service.ip_families);
        pick_address(&self.workload, self.requested, families, client.ip)
            .map(|ip| SocketAddr::new(ip, self.port))
            .ok_or_else(|| Refusal::NoAddress(Arc::clone(&self.workload.uid)))
    }

    fn identities(&self) -> Vec<Identity> {
        let names = self.service.map_or(&[][..], |entry| &entry.service.subject_alt_names);
        identities(&self.workload, names)
    }
}

/// What is to be reached on another network.
pub(super) struct Far<'a> {
    pub(super) workload: &'a Arc<Workload>,
    /// The service whose instance answers there: the destination, or its waypoint.
    pub(super) service: Option<&'a Arc<ServiceEntry>>,
    pub(super) kind: RouteKind,
}

/// As the control plane names it.
pub(super) fn gateway_name(gateway: &GatewayAddress) -> String {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => key.to_string(),
        GatewayDestination::Address(address) => address.to_string(),
    }
}
