//! What has to be asked for before a connection's way can be decided, where the state is held on demand only.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{GatewayAddress, GatewayDestination, NetworkAddress};

use super::Snapshot;
use super::gateway::gateway_name;
use super::resolve::{Client, Destination, Refusal};

/// The endpoints of one service on another network have the same gateway, so any choice shows which.
const SOME_CHOICE: u64 = 0;

impl Snapshot {
    /// Whether the control plane has answered for this key, be it that there is nothing.
    pub fn is_answered(&self, key: &str) -> bool {
        self.answered.contains_key(key)
    }

    /// The key of what is not held and was not answered for, but decides where this connection goes: the destination,
    /// else a waypoint or a network gateway on the way there. `None` once [`Snapshot::resolve`] has all that there is.
    pub fn unanswered(&self, client: Client<'_>, to: SocketAddr) -> Option<String> {
        let (entry, workload) = match self.destination(client, to).ok()? {
            Destination::Unknown => {
                let network = client.workload.network.clone();
                let address = NetworkAddress { network, ip: to.ip().to_canonical() };
                return Some(address.to_string()).filter(|key| !self.is_answered(key));
            }
            Destination::Service { entry, owner } => (Some(entry), owner),
            Destination::Workload(workload) => (None, Some(workload)),
        };
        // Any of the weighted ones may be picked.
        let weighted = entry.into_iter().flat_map(|it| &it.service.weighted_waypoints);
        let waypoints = weighted
            .map(|it| &it.destination)
            .chain(entry.and_then(|it| it.service.waypoint.as_ref()))
            .chain(workload.and_then(|it| it.waypoint.as_ref()));
        let missing = |it: &&GatewayAddress| !self.holds_gateway(it);
        let mut keys = waypoints.filter(missing).map(gateway_name).filter(|key| !self.is_answered(key));
        if let Some(key) = keys.next() {
            return Some(key);
        }
        match self.resolve(client, to, SOME_CHOICE) {
            Err(Refusal::UnknownNetworkGateway(key)) if !self.is_answered(&key) => Some(key),
            _ => None,
        }
    }

    /// The key of an address whose owner is not held and was not answered for.
    pub fn unanswered_address(&self, network: &Arc<str>, ip: IpAddr) -> Option<String> {
        if self.holds_address(network, ip) {
            return None;
        }
        let address = NetworkAddress { network: Arc::clone(network), ip: ip.to_canonical() };
        Some(address.to_string()).filter(|key| !self.is_answered(key))
    }

    fn holds_address(&self, network: &str, ip: IpAddr) -> bool {
        self.has_vip(network, ip) || self.workload_by_address(network, ip).is_some()
    }

    fn holds_gateway(&self, gateway: &GatewayAddress) -> bool {
        match &gateway.destination {
            GatewayDestination::Hostname(key) => self.services.contains_key(key),
            GatewayDestination::Address(it) => self.holds_address(&it.network, it.ip),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::delta::Sink;
    use crate::proto::ADDRESS_TYPE;
    use crate::store::fixtures::{ip, service, store, waypoint_host, workload};

    use super::*;

    #[test]
    fn the_destination_is_asked_for_first_and_its_waypoint_next() {
        let pod = workload("app/client", "10.0.0.1");
        let client = Client { workload: &pod, ip: ip("10.0.0.1") };
        let to = "10.1.0.1:80".parse().unwrap();
        let mut store = store(vec![pod.clone()], vec![]);
        let unanswered = |store: &mut crate::store::Store| store.state().unanswered(client, to);
        assert_eq!(unanswered(&mut store).as_deref(), Some("/10.1.0.1"));
        let mut web = service("app/web", &["10.1.0.1"]);
        web.waypoint = Some(waypoint_host("app/wp"));
        store.upsert_address(crate::decode::Address::Service(web));
        assert_eq!(unanswered(&mut store).as_deref(), Some("app/wp"));
        // The control plane says that there is none: then the refusal stands, and nothing more is asked.
        store.answered(ADDRESS_TYPE, "app/wp");
        assert_eq!(unanswered(&mut store), None);
        let refusal = store.state().resolve(client, to, 1).unwrap_err();
        assert_eq!(refusal, Refusal::UnknownWaypoint("app/wp".into()));
    }

    #[test]
    fn what_the_control_plane_does_not_know_is_passed_through_only_after_its_answer() {
        let pod = workload("app/client", "10.0.0.1");
        let client = Client { workload: &pod, ip: ip("10.0.0.1") };
        let to = "192.0.2.1:443".parse().unwrap();
        let mut store = store(vec![pod.clone()], vec![]);
        assert!(!store.snapshot().unwrap().is_answered("/192.0.2.1"));
        store.answered(ADDRESS_TYPE, "/192.0.2.1");
        let snapshot = store.snapshot().expect("an answer is a change");
        assert_eq!(snapshot.unanswered(client, to), None);
        store.answered(ADDRESS_TYPE, "/192.0.2.1");
        assert!(store.snapshot().is_none(), "the same answer again is none");
    }
}
