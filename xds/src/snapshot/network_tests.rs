//! Endpoints, waypoints and gateways on other networks.

use std::net::SocketAddr;

use model::{
    GatewayAddress, GatewayDestination, Identity, NamespacedHostname, NetworkAddress, Service, ServiceVip,
    TunnelProtocol, Workload,
};

use super::*;
use crate::store::fixtures::{
    ip, service, serving, snapshot, waypoint_address, waypoint_host, waypoint_instance, workload,
};

const GATEWAY: &str = "10.9.0.1";

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "app", account).unwrap()
}

fn gateway_at(address: &str) -> GatewayAddress {
    let address = NetworkAddress { network: "far".into(), ip: ip(address) };
    GatewayAddress { destination: GatewayDestination::Address(address), hbone_mtls_port: 15009 }
}

/// An endpoint of `app/web` that is known by its gateway only.
fn far(name: &str, gateway: Option<GatewayAddress>) -> Workload {
    let member = serving(workload(name, ""), &["app/web"]);
    Workload { network: "far".into(), network_gateway: gateway, ..member }
}

/// The east-west gateway as a workload of the other network.
fn gateway() -> Workload {
    Workload { network: "far".into(), ..workload("app/eastwest", GATEWAY) }
}

fn web() -> Service {
    Service { subject_alt_names: vec![identity("web")], ..service("app/web", &["10.1.0.1"]) }
}

fn resolve(snapshot: &Snapshot, to: &str) -> Result<Route, Refusal> {
    resolve_with(snapshot, to, 7)
}

fn resolve_with(snapshot: &Snapshot, to: &str, seed: u64) -> Result<Route, Refusal> {
    let me = workload("app/client", "10.0.0.9");
    snapshot.resolve(Client { workload: &me, ip: ip("10.0.0.9") }, to.parse().unwrap(), seed)
}

fn across(next_hop: &str, gateway: &[&str], port: u16, accounts: &[&str]) -> Transport {
    Transport::DoubleHbone {
        next_hop: next_hop.parse::<SocketAddr>().unwrap(),
        gateway_identities: gateway.iter().map(|it| identity(it)).collect(),
        hostname: "web".into(),
        port,
        identities: accounts.iter().map(|it| identity(it)).collect(),
    }
}

#[test]
fn an_endpoint_on_another_network_is_reached_through_its_gateway_by_the_service_s_name() {
    let snapshot = snapshot(vec![far("app/a", Some(gateway_at(GATEWAY))), gateway()], vec![web()]);
    let route = resolve(&snapshot, "10.1.0.1:80").unwrap();
    assert_eq!(route.transport, across("10.9.0.1:15009", &["eastwest"], 80, &["web"]));
    assert_eq!((&*route.workload.unwrap().name, route.kind), ("a", RouteKind::Direct));
    assert_eq!(&*route.service.unwrap().key().hostname, "web");
}

#[test]
fn an_address_on_another_network_is_never_dialled_itself() {
    let addressed = Workload { addresses: vec![ip("10.0.0.1")], ..far("app/a", Some(gateway_at(GATEWAY))) };
    let plain = Workload { tunnel_protocol: TunnelProtocol::None, ..addressed.clone() };
    for endpoint in [addressed, plain] {
        let snapshot = snapshot(vec![endpoint, gateway()], vec![web()]);
        let route = resolve(&snapshot, "10.1.0.1:80").unwrap();
        assert_eq!(route.transport, across("10.9.0.1:15009", &["eastwest"], 80, &["web"]));
    }
}

#[test]
fn a_gateway_known_by_name_is_an_endpoint_of_its_service() {
    let named = GatewayAddress {
        destination: GatewayDestination::Hostname(NamespacedHostname::new("app", "ew")),
        hbone_mtls_port: 15008,
    };
    let instance = |name: &str, address: &str| Workload {
        network: "far".into(),
        ..waypoint_instance(name, address, "app/ew")
    };
    let mut eastwest = service("app/ew", &[]);
    eastwest.subject_alt_names = vec![identity("ew-extra")];
    eastwest.ports[0].service_port = 15008;
    let mut dual = instance("app/ew-1", "10.9.0.2");
    dual.addresses.push(ip("fd09::2"));
    let workloads = vec![far("app/a", Some(named)), instance("app/ew-0", "10.9.0.1"), dual];
    let snapshot = snapshot(workloads, vec![web(), eastwest]);
    let one = across("10.9.0.1:15008", &["ew-0", "ew-extra"], 80, &["web"]);
    let other = across("10.9.0.2:15008", &["ew-1", "ew-extra"], 80, &["web"]);
    let mut seen = [false; 2];
    for seed in 0..64 {
        let transport = resolve_with(&snapshot, "10.1.0.1:80", seed).unwrap().transport;
        assert!(transport == one || transport == other, "{transport:?}");
        seen[usize::from(transport == other)] = true;
    }
    assert_eq!(seen, [true; 2]);
    // A client that came by IPv6 goes on by IPv6 where the gateway has it.
    let me = workload("app/client", "fd00::9");
    let hops = (0..64).map(|seed| {
        let me = Client { workload: &me, ip: ip("fd00::9") };
        match snapshot.resolve(me, "10.1.0.1:80".parse().unwrap(), seed).unwrap().transport {
            Transport::DoubleHbone { next_hop, .. } => next_hop.ip(),
            other => panic!("{other:?}"),
        }
    });
    let hops: std::collections::BTreeSet<_> = hops.collect();
    assert_eq!(hops.into_iter().collect::<Vec<_>>(), [ip("10.9.0.1"), ip("fd09::2")]);
}

#[test]
fn without_a_gateway_or_an_identity_nothing_crosses() {
    let refusal = |endpoint: Workload, web: Service, others: Vec<Workload>| {
        let workloads = [vec![endpoint], others].concat();
        resolve(&snapshot(workloads, vec![web]), "10.1.0.1:80").unwrap_err()
    };
    let gateway_named = || far("app/a", Some(gateway_at(GATEWAY)));
    assert_eq!(refusal(far("app/a", None), web(), vec![gateway()]), Refusal::NoNetworkGateway(web().key));
    let addressed = Workload { addresses: vec![ip("10.0.0.1")], ..far("app/a", None) };
    assert_eq!(refusal(addressed, web(), vec![gateway()]), Refusal::NoNetworkGateway(web().key));
    assert_eq!(
        refusal(gateway_named(), web(), vec![]),
        Refusal::UnknownNetworkGateway("far/10.9.0.1".into())
    );
    let nameless = service("app/web", &["10.1.0.1"]);
    assert_eq!(refusal(gateway_named(), nameless, vec![gateway()]), Refusal::NoIdentity("app/web".into()));
    // An endpoint of the client's own network that has no address is no endpoint, gateway or not.
    let near = Workload { network: "".into(), ..gateway_named() };
    let refused = refusal(near, web(), vec![gateway()]);
    assert!(matches!(refused, Refusal::NoEndpoint { .. }), "{refused:?}");
}

#[test]
fn near_and_far_share_by_capacity_unless_the_network_is_preferred() {
    use model::{HealthPolicy, LoadBalancing, LoadBalancingMode, RoutingScope};
    let near = serving(workload("app/near", "10.0.0.2"), &["app/web"]);
    let many = Workload { capacity: 3, ..far("app/far", Some(gateway_at(GATEWAY))) };
    let lost = far("app/lost", None);
    let shares = |mode, scopes: &[RoutingScope]| {
        let balancing = LoadBalancing {
            routing_preference: scopes.to_vec(),
            mode,
            health_policy: HealthPolicy::OnlyHealthy,
        };
        let web = Service { load_balancing: Some(balancing), ..web() };
        let workloads = vec![near.clone(), many.clone(), lost.clone(), gateway()];
        let snapshot = snapshot(workloads, vec![web]);
        (0..1000)
            .filter(|seed| {
                let route = resolve_with(&snapshot, "10.1.0.1:80", *seed).unwrap();
                assert_ne!(&*route.workload.as_ref().unwrap().name, "lost");
                &*route.workload.unwrap().name == "near"
            })
            .count()
    };
    assert!((200..300).contains(&shares(LoadBalancingMode::Unspecified, &[])));
    let preferred = [RoutingScope::Network, RoutingScope::Region, RoutingScope::Zone];
    for scopes in [&preferred[..], &preferred[..1]] {
        assert_eq!(shares(LoadBalancingMode::Failover, scopes), 1000, "{scopes:?}");
        assert_eq!(shares(LoadBalancingMode::Strict, scopes), 1000, "{scopes:?}");
    }
}

#[test]
fn a_waypoint_on_another_network_is_reached_through_its_gateway_by_the_service_s_name() {
    let mut waypoint = service("app/wp", &[]);
    waypoint.subject_alt_names = vec![identity("waypoint")];
    waypoint.ports[0].service_port = 15008;
    let instance = Workload {
        network: "far".into(),
        network_gateway: Some(gateway_at(GATEWAY)),
        addresses: vec![],
        ..waypoint_instance("app/wp-0", "10.0.0.5", "app/wp")
    };
    let web = Service { waypoint: Some(waypoint_host("app/wp")), ..web() };
    let near = serving(workload("app/near", "10.0.0.2"), &["app/web"]);
    let mesh = |waypoint: Service| {
        snapshot(vec![near.clone(), instance.clone(), gateway()], vec![web.clone(), waypoint])
    };
    let route = resolve(&mesh(waypoint.clone()), "10.1.0.1:80").unwrap();
    assert_eq!(route.transport, across("10.9.0.1:15009", &["eastwest"], 80, &["waypoint"]));
    assert_eq!((&*route.workload.unwrap().name, route.kind), ("wp-0", RouteKind::Waypoint));
    assert_eq!(&*route.service.unwrap().key().hostname, "web");
    // The service's own names do not make its endpoints the waypoint.
    let nameless = Service { subject_alt_names: vec![], ..waypoint };
    assert_eq!(resolve(&mesh(nameless), "10.1.0.1:80").unwrap_err(), Refusal::NoIdentity("app/wp".into()));
}

#[test]
fn only_what_is_addressed_to_a_service_crosses_networks() {
    let mut waypoint = service("app/wp", &[]);
    waypoint.subject_alt_names = vec![identity("waypoint")];
    waypoint.ports[0].service_port = 15008;
    let instance = Workload {
        network: "far".into(),
        network_gateway: Some(gateway_at(GATEWAY)),
        ..waypoint_instance("app/wp-0", "10.0.0.5", "app/wp")
    };
    let behind = Workload { waypoint: Some(waypoint_host("app/wp")), ..workload("app/a", "10.0.0.1") };
    let snapshot = snapshot(vec![behind, instance, gateway()], vec![waypoint]);
    let refused = resolve(&snapshot, "10.0.0.1:80").unwrap_err();
    assert_eq!(refused, Refusal::NotAService("app/wp".into()));
    // The same address on another network is another place: this one is nobody's.
    assert_eq!(resolve(&snapshot, "10.0.0.5:80").unwrap().kind, RouteKind::Passthrough);
}

#[test]
fn a_waypoint_is_looked_for_among_the_services_first() {
    // One address, both a service's and a workload's.
    let mut waypoint = service("app/wp", &[]);
    waypoint.vips = vec![ServiceVip::single("", ip("10.0.0.7"))];
    waypoint.ports[0].service_port = 15008;
    let instance = waypoint_instance("app/wp-0", "10.0.0.5", "app/wp");
    let web = Service { waypoint: Some(waypoint_address("10.0.0.7")), ..web() };
    let other = workload("app/other", "10.0.0.7");
    let route = resolve(&snapshot(vec![instance, other], vec![web, waypoint]), "10.1.0.1:80").unwrap();
    assert_eq!(&*route.workload.unwrap().name, "wp-0");
}
