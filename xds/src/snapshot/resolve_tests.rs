//! One test for each row of the routing decision, and of the choice of an endpoint.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use model::{
    ApplicationTunnel, ApplicationTunnelProtocol, GatewayAddress, HealthPolicy, LoadBalancing,
    LoadBalancingMode, Locality, RoutingScope, Service, ServicePort, WeightedWaypoint, Workload,
};

use super::*;
use crate::snapshot::{Among, Balancer};
use crate::store::fixtures::{
    ip, service, serving, snapshot, waypoint_address, waypoint_host, waypoint_instance, workload,
};

fn client() -> Workload {
    workload("app/client", "10.0.0.9")
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn resolve(snapshot: &Snapshot, to: &str) -> Result<Route, Refusal> {
    resolve_as(snapshot, &client(), to, 7)
}

fn resolve_as(snapshot: &Snapshot, workload: &Workload, to: &str, random: u64) -> Result<Route, Refusal> {
    let ip = workload.addresses.first().copied().unwrap_or(ip("10.0.0.9"));
    snapshot.resolve(Client { workload, ip }, at(to), random)
}

fn tcp(to: &str) -> Transport {
    Transport::Tcp { to: Target::Address(at(to)) }
}

fn hbone(next_hop: &str, authority: &str, accounts: &[&str]) -> Transport {
    let identity = |account: &&str| model::Identity::new("cluster.local", "app", account).unwrap();
    Transport::Hbone {
        next_hop: at(next_hop),
        authority: at(authority),
        identities: accounts.iter().map(identity).collect(),
    }
}

fn plain(workload: Workload) -> Workload {
    Workload { tunnel_protocol: model::TunnelProtocol::None, ..workload }
}

#[test]
fn the_ports_of_the_proxy_on_loopback_are_refused_and_others_are_not() {
    let snapshot = snapshot(vec![client()], vec![]);
    for to in ["127.0.0.1:15001", "127.8.8.8:15006", "[::1]:15008", "[::ffff:127.0.0.1]:15080"] {
        assert_eq!(resolve(&snapshot, to).unwrap_err(), Refusal::OwnPort(at(to)));
    }
    assert_eq!(resolve(&snapshot, "127.0.0.1:80").unwrap().transport, tcp("127.0.0.1:80"));
    assert_eq!(resolve(&snapshot, "10.9.9.9:15008").unwrap().transport, tcp("10.9.9.9:15008"));
}

#[test]
fn an_unknown_address_is_passed_through() {
    let route = resolve(&snapshot(vec![client()], vec![]), "1.2.3.4:443").unwrap();
    assert_eq!((route.transport, route.kind), (tcp("1.2.3.4:443"), RouteKind::Passthrough));
    assert!(route.service.is_none() && route.workload.is_none());
}

#[test]
fn a_service_goes_to_an_endpoint_at_its_target_port_by_hbone() {
    let web = service("app/web", &["10.1.0.1"]);
    let snapshot = snapshot(vec![serving(workload("app/a", "10.0.0.1"), &["app/web"])], vec![web]);
    let route = resolve(&snapshot, "10.1.0.1:80").unwrap();
    assert_eq!(route.transport, hbone("10.0.0.1:15008", "10.0.0.1:8080", &["a"]));
    assert_eq!(route.kind, RouteKind::Direct);
    assert_eq!(&*route.service.unwrap().key().hostname, "web");
    assert_eq!(&*route.workload.unwrap().name, "a");
}

#[test]
fn an_endpoint_outside_the_mesh_is_dialled_in_the_clear() {
    let endpoint = plain(serving(workload("app/a", "10.0.0.1"), &["app/web"]));
    let snapshot = snapshot(vec![endpoint], vec![service("app/web", &["10.1.0.1"])]);
    assert_eq!(resolve(&snapshot, "10.1.0.1:80").unwrap().transport, tcp("10.0.0.1:8080"));
}

#[test]
fn the_alternative_names_of_a_service_are_accepted_beside_the_endpoint_s_own() {
    let mut web = service("app/web", &["10.1.0.1"]);
    web.subject_alt_names =
        ["a", "extra"].map(|it| model::Identity::new("cluster.local", "app", it).unwrap()).into();
    let snapshot = snapshot(vec![serving(workload("app/a", "10.0.0.1"), &["app/web"])], vec![web]);
    let route = resolve(&snapshot, "10.1.0.1:80").unwrap();
    assert_eq!(route.transport, hbone("10.0.0.1:15008", "10.0.0.1:8080", &["a", "extra"]));
}

#[test]
fn a_service_without_usable_endpoint_is_refused() {
    let web = || service("app/web", &["10.1.0.1"]);
    let member = |name: &str| serving(workload(name, "10.0.0.1"), &["app/web"]);
    let refusal = |port| Refusal::NoEndpoint { service: web().key, port };
    let unhealthy = Workload { health: model::Health::Unhealthy, ..member("app/a") };
    let nowhere = Workload { addresses: vec![], ..member("app/a") };
    let idle = Workload { capacity: 0, ..member("app/a") };
    for endpoint in [unhealthy, nowhere, idle, workload("app/a", "10.0.0.1")] {
        let snapshot = snapshot(vec![endpoint], vec![web()]);
        assert_eq!(resolve(&snapshot, "10.1.0.1:80").unwrap_err(), refusal(80));
    }
    let snapshot = snapshot(vec![member("app/a")], vec![web()]);
    assert_eq!(resolve(&snapshot, "10.1.0.1:81").unwrap_err(), refusal(81), "a port that nobody serves");
}

#[test]
fn unhealthy_endpoints_serve_where_the_service_allows_all() {
    let mut web = service("app/web", &["10.1.0.1"]);
    web.load_balancing = Some(balancing(LoadBalancingMode::Unspecified, &[]));
    web.load_balancing.as_mut().unwrap().health_policy = HealthPolicy::AllowAll;
    let member = serving(workload("app/a", "10.0.0.1"), &["app/web"]);
    let snapshot = snapshot(vec![Workload { health: model::Health::Unhealthy, ..member }], vec![web]);
    assert!(resolve(&snapshot, "10.1.0.1:80").is_ok());
}

#[test]
fn a_service_port_with_a_target_serves_endpoints_that_name_none() {
    let mut web = service("app/web", &["10.1.0.1"]);
    web.ports = vec![ServicePort { service_port: 90, target_port: 9090, app_protocol: AppProtocol::Unknown }];
    let snapshot = snapshot(vec![serving(workload("app/a", "10.0.0.1"), &["app/web"])], vec![web]);
    let route = resolve(&snapshot, "10.1.0.1:90").unwrap();
    assert_eq!(route.transport, hbone("10.0.0.1:15008", "10.0.0.1:9090", &["a"]));
}

#[test]
fn an_endpoint_s_own_port_goes_first_and_only_ports_of_the_service_are_served() {
    let mut web = service("app/web", &["10.1.0.1"]);
    web.ports[0].target_port = 9090;
    let member = || serving(workload("app/a", "10.0.0.1"), &["app/web"]);
    let route = resolve(&snapshot(vec![member()], vec![web.clone()]), "10.1.0.1:80").unwrap();
    assert_eq!(route.transport, hbone("10.0.0.1:15008", "10.0.0.1:8080", &["a"]));
    web.ports[0].service_port = 90;
    let refusal = resolve(&snapshot(vec![member()], vec![web]), "10.1.0.1:80").unwrap_err();
    assert!(matches!(refusal, Refusal::NoEndpoint { port: 80, .. }), "{refusal:?}");
}

#[test]
fn passthrough_mode_keeps_the_original_destination() {
    let mut external = service("app/external", &["1.2.3.4"]);
    external.load_balancing = Some(balancing(LoadBalancingMode::Passthrough, &[]));
    let snapshot = snapshot(vec![], vec![external]);
    let route = resolve(&snapshot, "1.2.3.4:80").unwrap();
    assert_eq!((route.transport, route.kind), (tcp("1.2.3.4:80"), RouteKind::Passthrough));
    assert!(route.service.is_some());
}

#[test]
fn passthrough_mode_goes_to_the_target_port_where_the_service_has_one() {
    let mut external = service("app/external", &["1.2.3.4", "10.3.0.0/16"]);
    external.load_balancing = Some(balancing(LoadBalancingMode::Passthrough, &[]));
    external.load_balancing.as_mut().unwrap().health_policy = HealthPolicy::AllowAll;
    external.ports[0].target_port = 8181;
    let snapshot = snapshot(vec![], vec![external]);
    for (to, dialled) in
        [("1.2.3.4:80", "1.2.3.4:8181"), ("1.2.3.4:81", "1.2.3.4:81"), ("10.3.9.9:80", "10.3.9.9:8181")]
    {
        let route = resolve(&snapshot, to).unwrap();
        assert_eq!((route.transport, route.kind), (tcp(dialled), RouteKind::Passthrough), "{to}");
    }
}

/// A mesh with a waypoint `app/wp` at VIP 10.1.0.9, with one instance at 10.0.0.5.
fn with_waypoint(workloads: Vec<Workload>, services: Vec<Service>) -> Arc<Snapshot> {
    let mut gateway = service("app/wp", &["10.1.0.9"]);
    gateway.ports =
        vec![ServicePort { service_port: 15008, target_port: 15008, app_protocol: AppProtocol::Unknown }];
    let mut workloads = workloads;
    workloads.push(waypoint_instance("app/wp-0", "10.0.0.5", "app/wp"));
    snapshot(workloads, [services, vec![gateway]].concat())
}

use model::AppProtocol;

#[test]
fn a_service_with_a_waypoint_goes_to_it_with_the_original_destination() {
    for waypoint in [waypoint_host("app/wp"), waypoint_address("10.1.0.9"), waypoint_address("10.0.0.5")] {
        let web = Service { waypoint: Some(waypoint), ..service("app/web", &["10.1.0.1"]) };
        let snapshot = with_waypoint(vec![serving(workload("app/a", "10.0.0.1"), &["app/web"])], vec![web]);
        let route = resolve(&snapshot, "10.1.0.1:80").unwrap();
        assert_eq!(route.transport, hbone("10.0.0.5:15008", "10.1.0.1:80", &["wp-0"]));
        assert_eq!(route.kind, RouteKind::Waypoint);
        assert_eq!(&*route.service.unwrap().key().hostname, "web");
    }
}

#[test]
fn a_waypoint_that_is_not_known_refuses_and_never_lets_past() {
    let past = |waypoint: GatewayAddress| {
        let web = Service { waypoint: Some(waypoint), ..service("app/web", &["10.1.0.1"]) };
        let endpoint = serving(workload("app/a", "10.0.0.1"), &["app/web"]);
        resolve(&snapshot(vec![endpoint], vec![web]), "10.1.0.1:80").unwrap_err()
    };
    assert_eq!(past(waypoint_host("app/none")), Refusal::UnknownWaypoint("app/none".into()));
    assert_eq!(past(waypoint_address("10.7.7.7")), Refusal::UnknownWaypoint("/10.7.7.7".into()));
    // Known, but without an instance.
    let web = Service { waypoint: Some(waypoint_host("app/wp")), ..service("app/web", &["10.1.0.1"]) };
    let snapshot = snapshot(vec![], vec![web, service("app/wp", &[])]);
    let refusal = resolve(&snapshot, "10.1.0.1:80").unwrap_err();
    assert!(matches!(refusal, Refusal::NoEndpoint { port: 15008, .. }), "{refusal:?}");
}

#[test]
fn weighted_waypoints_share_by_weight_and_replace_the_single_one() {
    let weighted = |waypoint, weight| WeightedWaypoint { destination: waypoint, weight };
    let mut web = service("app/web", &["10.1.0.1"]);
    web.waypoint = Some(waypoint_host("app/none"));
    web.weighted_waypoints =
        vec![weighted(waypoint_host("app/wp"), 3), weighted(waypoint_address("10.0.0.6"), 1)];
    let snapshot = with_waypoint(vec![workload("app/other-wp", "10.0.0.6")], vec![web]);
    let mut counts = BTreeMap::<String, u32>::new();
    for random in 0..4000 {
        let route = resolve_as(&snapshot, &client(), "10.1.0.1:80", random).unwrap();
        *counts.entry(route.workload.unwrap().name.to_string()).or_default() += 1;
    }
    assert!((2850..3150).contains(&counts["wp-0"]), "{counts:?}");
    assert_eq!(counts["wp-0"] + counts["other-wp"], 4000);
}

#[test]
fn a_workload_is_dialled_at_its_address_or_through_its_waypoint() {
    let direct = with_waypoint(vec![workload("app/a", "10.0.0.1")], vec![]);
    let route = resolve(&direct, "10.0.0.1:99").unwrap();
    assert_eq!(route.transport, hbone("10.0.0.1:15008", "10.0.0.1:99", &["a"]));
    let behind = Workload { waypoint: Some(waypoint_host("app/wp")), ..workload("app/a", "10.0.0.1") };
    let behind = with_waypoint(vec![behind], vec![]);
    let route = resolve(&behind, "10.0.0.1:99").unwrap();
    assert_eq!(route.transport, hbone("10.0.0.5:15008", "10.0.0.1:99", &["wp-0"]));
    assert_eq!(route.kind, RouteKind::Waypoint);
}

#[test]
fn the_waypoint_itself_reaches_its_workload_and_nobody_who_only_shares_a_trait_does() {
    for waypoint in [waypoint_host("app/wp"), waypoint_address("10.1.0.9"), waypoint_address("10.0.0.5")] {
        let behind = Workload { waypoint: Some(waypoint), ..workload("app/a", "10.0.0.1") };
        let snapshot = with_waypoint(vec![behind], vec![]);
        let instance = waypoint_instance("app/wp-0", "10.0.0.5", "app/wp");
        let route = resolve_as(&snapshot, &instance, "10.0.0.1:99", 1).unwrap();
        assert_eq!(route.kind, RouteKind::Direct);
        let (to, elsewhere) = (at("10.0.0.1:99"), ip("10.0.0.66"));
        let route = snapshot.resolve(Client { workload: &instance, ip: elsewhere }, to, 1).unwrap();
        assert_eq!(route.kind, RouteKind::Waypoint, "the address must be its own as well");
        let impostor = workload("app/impostor", "10.0.0.77");
        assert_eq!(resolve_as(&snapshot, &impostor, "10.0.0.1:99", 1).unwrap().kind, RouteKind::Waypoint);
    }
}

#[test]
fn an_address_of_a_workload_and_a_service_takes_the_workload_s_waypoint() {
    let web = Service { waypoint: Some(waypoint_host("app/none")), ..service("app/web", &["10.0.0.1"]) };
    let member = serving(workload("app/a", "10.0.0.1"), &["app/web"]);
    let behind = Workload { waypoint: Some(waypoint_host("app/wp")), ..member.clone() };
    let route = resolve(&with_waypoint(vec![behind], vec![web.clone()]), "10.0.0.1:80").unwrap();
    assert_eq!(route.transport, hbone("10.0.0.5:15008", "10.0.0.1:80", &["wp-0"]));
    let route = resolve(&with_waypoint(vec![member], vec![web]), "10.0.0.1:80").unwrap();
    assert_eq!(route.transport, hbone("10.0.0.1:15008", "10.0.0.1:8080", &["a"]));
}

#[test]
fn an_endpoint_known_by_name_only_is_left_to_be_resolved() {
    let named = Workload { hostname: "db.example".into(), ..serving(workload("app/a", ""), &["app/web"]) };
    let web = || service("app/web", &["10.1.0.1"]);
    let route = resolve(&snapshot(vec![plain(named.clone())], vec![web()]), "10.1.0.1:80").unwrap();
    let to = Target::Name { hostname: "db.example".into(), port: 8080 };
    assert_eq!(route.transport, Transport::Tcp { to });
    let refusal = resolve(&snapshot(vec![named], vec![web()]), "10.1.0.1:80").unwrap_err();
    assert!(matches!(refusal, Refusal::Unsupported { .. }));
}

#[test]
fn of_several_addresses_the_asked_one_then_the_client_s_family_within_the_service_s() {
    let mut dual = serving(workload("app/a", "fd00::1"), &["app/web"]);
    dual.addresses.push(ip("10.0.0.1"));
    let next_hop = |families, to: &str, client: &str| {
        let web = Service { ip_families: families, ..service("app/web", &["10.1.0.1", "fd00::1"]) };
        let snapshot = snapshot(vec![dual.clone()], vec![web]);
        let route = resolve_as(&snapshot, &workload("app/client", client), to, 1).unwrap();
        let Transport::Hbone { next_hop, .. } = route.transport else { panic!("must be HBONE") };
        next_hop.ip()
    };
    use model::IpFamilies::{Automatic, Dual, Ipv6Only};
    assert_eq!(next_hop(Automatic, "10.1.0.1:80", "10.0.0.9"), ip("10.0.0.1"));
    assert_eq!(next_hop(Dual, "10.1.0.1:80", "fd00::9"), ip("fd00::1"));
    assert_eq!(next_hop(Ipv6Only, "10.1.0.1:80", "10.0.0.9"), ip("fd00::1"));
    assert_eq!(next_hop(Automatic, "[fd00::1]:80", "10.0.0.9"), ip("fd00::1"), "the very one asked for");
}

fn balancing(mode: LoadBalancingMode, scopes: &[RoutingScope]) -> LoadBalancing {
    LoadBalancing { routing_preference: scopes.to_vec(), mode, health_policy: HealthPolicy::OnlyHealthy }
}

fn in_zone(workload: Workload, region: &str, zone: &str, node: &str) -> Workload {
    let locality = Locality { region: region.into(), zone: zone.into(), subzone: "".into() };
    Workload { locality, node: node.into(), ..workload }
}

/// Who is chosen, over many random numbers, by a client in region r, zone z, on node n.
fn chosen(balancing: LoadBalancing, endpoints: &[(&str, &str, &str, &str)]) -> Vec<String> {
    let web = Service { load_balancing: Some(balancing), ..service("app/web", &["10.1.0.1"]) };
    let members = endpoints.iter().enumerate().map(|(index, (name, region, zone, node))| {
        let member = workload(&format!("app/{name}"), &format!("10.0.1.{index}"));
        in_zone(serving(member, &["app/web"]), region, zone, node)
    });
    let snapshot = snapshot(members.collect(), vec![web]);
    let client = in_zone(client(), "r", "z", "n");
    let mut names: Vec<_> = (0..64)
        .filter_map(|random| resolve_as(&snapshot, &client, "10.1.0.1:80", random).ok())
        .map(|route| route.workload.unwrap().name.to_string())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn failover_takes_the_best_locality_and_strict_all_of_it_or_nothing() {
    use LoadBalancingMode::{Failover, Strict};
    use RoutingScope::{Network, Node, Region, Zone};
    let all = [
        ("far", "q", "z", "m"),
        ("region", "r", "y", "m"),
        ("zone", "r", "z", "m"),
        ("zone2", "r", "z", "m"),
    ];
    assert_eq!(chosen(balancing(Failover, &[Region, Zone]), &all), ["zone", "zone2"]);
    assert_eq!(chosen(balancing(Failover, &[Region, Zone, Node]), &all), ["zone", "zone2"]);
    assert_eq!(chosen(balancing(Failover, &[Network, Region, Zone]), &all), ["zone", "zone2"]);
    assert_eq!(chosen(balancing(Failover, &[Region, Zone]), &all[..2]), ["region"]);
    assert_eq!(chosen(balancing(Failover, &[Region, Zone]), &all[..1]), ["far"]);
    // A later match counts nothing after an earlier mismatch.
    assert_eq!(
        chosen(balancing(Failover, &[Region, Zone]), &[all[0], ("none", "q", "q", "m")]),
        ["far", "none"]
    );
    assert_eq!(chosen(balancing(Strict, &[Region]), &all), ["region", "zone", "zone2"]);
    assert_eq!(chosen(balancing(Strict, &[Node]), &all), [""; 0]);
    assert_eq!(chosen(balancing(Strict, &[Node]), &[("here", "q", "q", "n"), all[2]]), ["here"]);
    assert_eq!(chosen(balancing(LoadBalancingMode::Unspecified, &[Node]), &all).len(), 4);
}

fn shares(capacities: &[u32], balancing: Option<LoadBalancing>) -> Vec<f64> {
    let web = Service { load_balancing: balancing, ..service("app/web", &["10.1.0.1"]) };
    let members = capacities.iter().enumerate().map(|(index, capacity)| {
        let member = serving(workload(&format!("app/{index}"), &format!("10.0.1.{index}")), &["app/web"]);
        Workload { capacity: *capacity, ..member }
    });
    let snapshot = snapshot(members.collect(), vec![web]);
    let mut counts = vec![0.0; capacities.len()];
    let rounds = 20_000_u32;
    for random in 0..u64::from(rounds) {
        let route = resolve_as(&snapshot, &client(), "10.1.0.1:80", random).unwrap();
        counts[route.workload.unwrap().name.parse::<usize>().unwrap()] += 1.0 / f64::from(rounds);
    }
    counts
}

#[test]
fn the_choice_is_random_weighted_by_capacity_by_probing_as_by_looking_at_all() {
    let ranked = || Some(balancing(LoadBalancingMode::Failover, &[RoutingScope::Region]));
    for balancing in [None, ranked()] {
        for (capacities, want) in [
            (vec![1, 1, 1, 1], vec![0.25; 4]),
            (vec![6, 3, 0, 1], vec![0.6, 0.3, 0.0, 0.1]),
            // So uneven that probing mostly fails.
            (vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1], vec![0., 0., 0., 0., 0., 0., 0., 0., 0., 0.75, 0.25]),
        ] {
            for (got, want) in shares(&capacities, balancing.clone()).iter().zip(&want) {
                assert!((got - want).abs() < 0.02, "{capacities:?}: {got} instead of {want}");
            }
        }
    }
}

#[test]
fn a_backend_of_a_route_is_reached_past_its_waypoint_and_a_missing_one_is_refused() {
    let v1 = Service { waypoint: Some(waypoint_host("app/none")), ..service("app/v1", &[]) };
    let snapshot = snapshot(vec![serving(workload("app/a", "10.0.0.1"), &["app/v1"])], vec![v1]);
    let me = client();
    let me = Client { workload: &me, ip: ip("10.0.0.9") };
    let key = |host: &str| NamespacedHostname::new("app", host);
    let route = snapshot.resolve_backend(me, &key("v1"), 80, None, 1).unwrap();
    assert_eq!(route.transport, hbone("10.0.0.1:15008", "10.0.0.1:8080", &["a"]));
    assert!(snapshot.resolve_backend(me, &key("v2"), 80, None, 1).is_err());
}

#[test]
fn a_waypoint_behind_an_application_tunnel_need_not_declare_the_port() {
    let web = Service { waypoint: Some(waypoint_host("app/wp")), ..service("app/web", &["10.1.0.1"]) };
    let gateway = || service("app/wp", &[]);
    let instance = |application_tunnel| Workload {
        application_tunnel,
        ..serving(workload("app/wp-0", "10.0.0.5"), &["app/wp"])
    };
    let tunnel = ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port: 15088 };
    let sandwich = snapshot(vec![instance(Some(tunnel))], vec![web.clone(), gateway()]);
    let route = resolve(&sandwich, "10.1.0.1:80").unwrap();
    assert_eq!(route.transport, hbone("10.0.0.5:15008", "10.1.0.1:80", &["wp-0"]));
    assert!(resolve(&snapshot(vec![instance(None)], vec![web, gateway()]), "10.1.0.1:80").is_err());
}

#[test]
fn a_waypoint_is_dialled_at_the_very_address_that_names_it_or_in_its_service_s_family() {
    let mut instance = workload("app/wp-0", "10.0.0.5");
    instance.addresses.push(ip("fd00::5"));
    instance.services = waypoint_instance("app/wp-0", "10.0.0.5", "app/wp").services;
    let mut gateway = service("app/wp", &[]);
    gateway.ports[0].service_port = 15008;
    let next_hop = |waypoint, families, client: &str| {
        let web = Service { waypoint: Some(waypoint), ..service("app/web", &["10.1.0.1"]) };
        let gateway = Service { ip_families: families, ..gateway.clone() };
        let snapshot = snapshot(vec![instance.clone()], vec![web, gateway]);
        let route = resolve_as(&snapshot, &workload("app/client", client), "10.1.0.1:80", 1).unwrap();
        let Transport::Hbone { next_hop, .. } = route.transport else { panic!("must be HBONE") };
        next_hop.ip()
    };
    use model::IpFamilies::{Automatic, Ipv4Only};
    assert_eq!(next_hop(waypoint_address("10.0.0.5"), Automatic, "fd00::9"), ip("10.0.0.5"));
    assert_eq!(next_hop(waypoint_host("app/wp"), Automatic, "fd00::9"), ip("fd00::5"));
    assert_eq!(next_hop(waypoint_host("app/wp"), Ipv4Only, "fd00::9"), ip("10.0.0.5"));
}

#[test]
fn what_goes_to_a_waypoint_is_known_beforehand() {
    let weighted = |weight| vec![WeightedWaypoint { destination: waypoint_host("app/wp"), weight }];
    let plain = service("app/web", &["10.1.0.1"]);
    let direct = Service { waypoint: Some(waypoint_host("app/wp")), ..plain.clone() };
    let shared = Service { weighted_waypoints: weighted(1), ..plain.clone() };
    let weightless = Service { weighted_waypoints: weighted(0), ..plain.clone() };
    for (web, expected) in [(plain, false), (direct.clone(), true), (shared, true), (weightless, false)] {
        let member = serving(workload("app/a", "10.0.0.1"), &["app/web"]);
        let snapshot = with_waypoint(vec![member], vec![web]);
        let me = client();
        let me = Client { workload: &me, ip: ip("10.0.0.9") };
        let destination = snapshot.destination(me, at("10.1.0.1:80")).unwrap();
        assert_eq!(snapshot.is_behind_waypoint(me, &destination), expected);
        let route = snapshot.resolve(me, at("10.1.0.1:80"), 1).unwrap();
        assert_eq!(route.kind == RouteKind::Waypoint, expected);
    }
    // A workload that owns the address counts alone.
    let owned = Service { vips: service("app/web", &["10.0.0.1"]).vips, ..direct };
    let member = serving(workload("app/a", "10.0.0.1"), &["app/web"]);
    let snapshot = with_waypoint(vec![member], vec![owned]);
    let me = client();
    let me = Client { workload: &me, ip: ip("10.0.0.9") };
    let destination = snapshot.destination(me, at("10.0.0.1:80")).unwrap();
    assert!(!snapshot.is_behind_waypoint(me, &destination));
}

#[test]
fn a_host_network_endpoint_serves_its_service_and_owns_no_address() {
    let member = plain(serving(workload("app/a", "10.0.0.1"), &["app/web"]));
    let member = Workload { network_mode: model::NetworkMode::HostNetwork, ..member };
    let snapshot = snapshot(vec![member], vec![service("app/web", &["10.1.0.1"])]);
    assert_eq!(resolve(&snapshot, "10.1.0.1:80").unwrap().transport, tcp("10.0.0.1:8080"));
    let route = resolve(&snapshot, "10.0.0.1:8080").unwrap();
    assert_eq!(route.kind, RouteKind::Passthrough);
}

struct Loads(BTreeMap<&'static str, u32>);

impl Load for Loads {
    fn connections(&self, workload: &Workload) -> u32 {
        self.0.get(&*workload.name).copied().unwrap_or(0)
    }
}

#[test]
fn of_two_drawn_the_one_with_less_to_do_for_its_capacity_is_taken() {
    let member = |name: &str, address: &str, capacity| Workload {
        capacity,
        ..serving(workload(name, address), &["app/web"])
    };
    let members = vec![member("app/busy", "10.0.0.1", 1), member("app/idle", "10.0.0.2", 1)];
    let mesh = snapshot(members, vec![service("app/web", &["10.1.0.1"])]);
    let share = |mesh: &Snapshot, loads: &Loads, name: &str| {
        let me = client();
        let me = Client { workload: &me, ip: ip("10.0.0.9") };
        let taken = (0..2000_u64).filter(|seed| {
            let chooser = Chooser::least_loaded(*seed, loads);
            let route = mesh.resolve(me, at("10.1.0.1:80"), chooser).unwrap();
            &*route.workload.unwrap().name == name
        });
        f64::from(u32::try_from(taken.count()).unwrap()) / 2000.0
    };
    // Only where both draws hit the busy one is it taken.
    let busy = Loads(BTreeMap::from([("busy", 10)]));
    assert!((share(&mesh, &busy, "busy") - 0.25).abs() < 0.04);
    assert!((share(&mesh, &Loads(BTreeMap::new()), "busy") - 0.5).abs() < 0.04);
    // Twice the connections of one with half the capacity is as much to do.
    let members = vec![member("app/big", "10.0.0.1", 2), member("app/small", "10.0.0.2", 1)];
    let mesh = snapshot(members, vec![service("app/web", &["10.1.0.1"])]);
    let even = Loads(BTreeMap::from([("big", 3), ("small", 1)]));
    assert!((share(&mesh, &even, "big") - 2.0 / 3.0).abs() < 0.04);
}

#[test]
fn an_endpoint_that_is_avoided_is_not_taken_and_the_last_one_leaves_none() {
    let member = |name: &str, address: &str| serving(workload(name, address), &["app/web"]);
    let bad = member("app/bad", "10.0.0.1");
    let me = client();
    let me = Client { workload: &me, ip: ip("10.0.0.9") };
    let web = || vec![service("app/web", &["10.1.0.1"])];
    let two = snapshot(vec![bad.clone(), member("app/good", "10.0.0.2")], web());
    let bad = [Arc::new(bad)];
    for seed in 0..64 {
        let chooser = Chooser::random(seed).avoiding(&bad);
        let route = two.resolve(me, at("10.1.0.1:80"), chooser).unwrap();
        assert_eq!(&*route.workload.unwrap().name, "good");
    }
    let one = snapshot(vec![bad[0].as_ref().clone()], web());
    assert!(one.resolve(me, at("10.1.0.1:80"), Chooser::random(1).avoiding(&bad)).is_err());
}

/// Leaves these out, and takes the last of those that may be taken.
struct LastOf<'a>(&'a [&'a str]);

impl Balancer for LastOf<'_> {
    fn is_out(&self, workload: &Workload) -> bool {
        self.0.contains(&&*workload.name)
    }

    fn pick(&self, among: &Among<'_, '_>) -> Option<usize> {
        let count = among.entry().endpoints.len();
        let open = (0..count).filter(|index| among.is_open(*index));
        open.max_by_key(|index| among.workload(*index).map(|workload| workload.name.clone()))
    }
}

#[test]
fn a_balancer_takes_one_of_those_that_it_does_not_leave_out() {
    let member = |name: &str, address: &str| serving(workload(name, address), &["app/web"]);
    let members = vec![member("app/a", "10.0.0.1"), member("app/b", "10.0.0.2"), member("app/c", "10.0.0.3")];
    let mesh = snapshot(members, vec![service("app/web", &["10.1.0.1"])]);
    let me = client();
    let me = Client { workload: &me, ip: ip("10.0.0.9") };
    let taken = |out: &[&str], prefer: &str| {
        let balancer = LastOf(out);
        let chooser = Chooser::random(3).balanced(&balancer).preferring(prefer);
        let route = mesh.resolve(me, at("10.1.0.1:80"), chooser);
        route.map(|route| route.workload.unwrap().name.to_string()).ok()
    };
    assert_eq!(taken(&[], "").as_deref(), Some("c"));
    assert_eq!(taken(&["c"], "").as_deref(), Some("b"));
    assert_eq!(taken(&["a", "b"], "").as_deref(), Some("c"));
    assert_eq!(taken(&["a", "b", "c"], ""), None, "nobody is left");
    // Nor does a session lead to one that is out.
    let (uid, wanted) = (workload("app/a", "10.0.0.1").uid, Some("a".to_owned()));
    assert_eq!((taken(&[], &uid), taken(&["a"], &uid)), (wanted, Some("c".to_owned())));
}

#[test]
fn where_all_near_endpoints_are_out_those_further_away_serve() {
    let member = |name: &str, address: &str, zone: &str| Workload {
        locality: Locality { zone: zone.into(), ..Locality::default() },
        ..serving(workload(name, address), &["app/web"])
    };
    let members = vec![member("app/near", "10.0.0.1", "z"), member("app/far", "10.0.0.2", "y")];
    let mut web = service("app/web", &["10.1.0.1"]);
    web.load_balancing = Some(LoadBalancing {
        routing_preference: vec![RoutingScope::Zone],
        mode: LoadBalancingMode::Failover,
        health_policy: HealthPolicy::default(),
    });
    let mesh = snapshot(members, vec![web]);
    let me = Workload { locality: Locality { zone: "z".into(), ..Locality::default() }, ..client() };
    let me = Client { workload: &me, ip: ip("10.0.0.9") };
    for (out, taken) in [(&[][..], "near"), (&["near"], "far"), (&["far"], "near")] {
        let balancer = LastOf(out);
        let route = mesh.resolve(me, at("10.1.0.1:80"), Chooser::random(3).balanced(&balancer)).unwrap();
        assert_eq!(&*route.workload.unwrap().name, taken, "without {out:?}");
    }
}
