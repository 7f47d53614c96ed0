//! Where captured connections go, on real sockets: waypoints, services without balancing, blocks of virtual addresses,
//! families, endpoints that take no connection, the choice by load.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::net::{IpAddr, SocketAddr};

use dataplane::access_log::{CloseCause, Direction};
use dataplane::session::{EndpointChoice, NodeOptions};
use model::{
    EndpointPort, GatewayAddress, GatewayDestination, HealthPolicy, IpFamilies, LoadBalancing,
    LoadBalancingMode, NamespacedHostname, NetworkAddress, ServiceVip, Services, WeightedWaypoint, Workload,
};
use session_support::hop::{Hop, Treatment, identities, name};
use session_support::{Bed, Setup, exchange, inside, is_refused, ping, pods};

const SERVICES: &str = "---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec: { clusterIP: 10.96.1.9, clusterIPs: [10.96.1.9, \"fd96::9\"], ipFamilyPolicy: PreferDualStack,
  selector: { app: server }, ports: [{ name: a, port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: waypoint, namespace: app }
spec: { clusterIP: 10.96.1.11, selector: { app: plain }, ports: [{ name: a, port: 15008, targetPort: 15008 }] }
";
const WEB: &str = "web.app.svc.cluster.local";
const WAYPOINT: &str = "waypoint.app.svc.cluster.local";
const VIP: &str = "10.96.1.9:80";

fn bed(setup: &Setup) -> Bed {
    Bed::with(&(pods() + SERVICES), setup)
}

fn by_name(hostname: &str) -> GatewayAddress {
    let key = NamespacedHostname::new("app", hostname);
    GatewayAddress { destination: GatewayDestination::Hostname(key), hbone_mtls_port: 15008 }
}

fn by_address(ip: &str) -> GatewayAddress {
    let address = NetworkAddress { network: name(""), ip: ip.parse::<IpAddr>().unwrap() };
    GatewayAddress { destination: GatewayDestination::Address(address), hbone_mtls_port: 15008 }
}

/// A waypoint of another make in the pod outside the mesh, which passes everything on to a port of a pod.
fn waypoint(bed: &Bed, to: &str) -> Hop {
    let credentials = bed.pki.issue("spiffe://cluster.local/ns/app/sa/plain");
    Hop::start(bed.network("plain"), 15008, &credentials, Treatment::PassOn(to.parse().unwrap()))
}

/// What a server that answers with its client's address says.
fn answer(bed: &Bed, from: &str, to: &str) -> String {
    let socket = bed.connect(from, to.parse().unwrap()).unwrap();
    String::from_utf8(exchange(&socket, b"x").unwrap()).unwrap()
}

#[test]
fn a_service_s_waypoint_is_told_the_address_that_was_dialled() {
    inside("a_service_s_waypoint_is_told_the_address_that_was_dialled", || {
        let mut bed = bed(&Setup::default());
        bed.serve_echo("plain", 8080);
        let hop = waypoint(&bed, "10.244.1.9:8080");
        for named in [by_name(WAYPOINT), by_address("10.96.1.11"), by_address("10.244.1.9")] {
            bed.change_service(WEB, |service| service.waypoint = Some(named));
            for to in [VIP, "[fd96::9]:80"] {
                assert!(answer(&bed, "client", to).ends_with(" x"));
                let asked = hop.asked();
                assert_eq!((asked.authority.as_str(), &asked.client), (to, &bed.identity("client")));
                assert_eq!(asked.header("x-forwarded-network"), None);
                let sent = bed.ended(Direction::Outbound, CloseCause::Finished);
                assert_eq!(sent.destination.identity, Some(identities(&["plain"]).remove(0)));
                assert_eq!(&*sent.service.unwrap().key.hostname, WEB);
            }
        }
        // Named by name, it is dialled in the client's family.
        bed.change_service(WEB, |service| service.waypoint = Some(by_name(WAYPOINT)));
        answer(&bed, "client", "[fd96::9]:80");
        let sent = bed.ended(Direction::Outbound, CloseCause::Finished);
        assert_eq!(sent.destination.address, Some("[fd00::1:9]:15008".parse().unwrap()));
        // One that nobody knows lets nothing past.
        bed.change_service(WEB, |service| service.waypoint = Some(by_name("nobody.app.svc.cluster.local")));
        assert!(is_refused(bed.network("client"), VIP.parse().unwrap()));
        bed.ended(Direction::Outbound, CloseCause::NoHealthyEndpoint);
    });
}

#[test]
fn a_workload_s_waypoint_stands_before_it_for_all_but_itself() {
    inside("a_workload_s_waypoint_stands_before_it_for_all_but_itself", || {
        let mut bed = bed(&Setup::default());
        bed.serve_echo("server", 8080);
        bed.serve_echo("plain", 8080);
        let hop = waypoint(&bed, "10.244.1.9:8080");
        bed.change_workload("server", |workload| workload.waypoint = Some(by_name(WAYPOINT)));
        assert_eq!(answer(&bed, "client", "10.244.1.2:8080"), "10.244.1.9 x");
        assert_eq!(hop.asked().authority, "10.244.1.2:8080");
        // A service of its own leads past it: it is for what is addressed to the workload.
        assert_eq!(answer(&bed, "client", VIP), "10.244.1.1 x");
        for waypoint in [by_address("10.244.1.3"), by_address("fd00::1:3")] {
            bed.change_workload("server", |workload| workload.waypoint = Some(waypoint));
            assert_eq!(answer(&bed, "other", "10.244.1.2:8080"), "10.244.1.3 x", "it is the waypoint");
        }
    });
}

#[test]
fn weighted_waypoints_share_the_connections_of_a_service() {
    inside("weighted_waypoints_share_the_connections_of_a_service", || {
        let mut bed = bed(&Setup::default());
        bed.serve_echo("plain", 8080);
        // This one is its own waypoint: its node's proxy hands it what is meant for the service.
        bed.serve_echo("other", 80);
        let _hop = waypoint(&bed, "10.244.1.9:8080");
        let mut shares = |weights: [u32; 2]| {
            let [plain, other] = weights;
            bed.change_service(WEB, |service| {
                service.waypoint = None;
                service.weighted_waypoints = vec![
                    WeightedWaypoint { destination: by_name(WAYPOINT), weight: plain },
                    WeightedWaypoint { destination: by_address("10.244.1.3"), weight: other },
                ];
            });
            let answers: Vec<_> = (0..64).map(|_| answer(&bed, "client", VIP)).collect();
            answers.iter().filter(|answer| *answer == "10.244.1.1 x").count()
        };
        assert_eq!(shares([1, 0]), 0);
        assert_eq!(shares([0, 1]), 64);
        // One in 2^63 that all go one way.
        assert!((1..64).contains(&shares([1, 1])));
    });
}

#[test]
fn a_service_without_balancing_is_dialled_where_the_client_asked_at_its_target_port() {
    inside("a_service_without_balancing_is_dialled_where_the_client_asked_at_its_target_port", || {
        let mut bed = bed(&Setup::default());
        let block =
            |ip: &str, prefix_len| ServiceVip { network: name(""), ip: ip.parse().unwrap(), prefix_len };
        bed.serve_echo("plain", 8080);
        bed.serve_echo("plain", 81);
        bed.change_service(WEB, |service| {
            service.vips = vec![block("10.244.1.8", 30), block("fd00::1:8", 125)];
            service.ports[0].target_port = 8080;
            service.load_balancing = Some(LoadBalancing {
                routing_preference: vec![],
                mode: LoadBalancingMode::Passthrough,
                health_policy: HealthPolicy::AllowAll,
            });
        });
        for to in ["10.244.1.9:80", "10.244.1.9:81", "[fd00::1:9]:80"] {
            assert!(answer(&bed, "client", to).ends_with(" x"), "{to}");
            let sent = bed.ended(Direction::Outbound, CloseCause::Finished);
            let port = if to.ends_with(":80") { 8080 } else { 81 };
            let dialled = SocketAddr::new(to.parse::<SocketAddr>().unwrap().ip(), port);
            assert_eq!(sent.destination.address, Some(dialled));
            assert_eq!(&*sent.service.unwrap().key.hostname, WEB);
            assert!(sent.tls.is_none());
        }
    });
}

#[test]
fn any_address_of_a_block_is_the_service_and_a_single_one_goes_before_it() {
    inside("any_address_of_a_block_is_the_service_and_a_single_one_goes_before_it", || {
        let mut bed = bed(&Setup::default());
        bed.serve_echo("server", 8080);
        bed.change_service(WEB, |service| {
            service.vips =
                vec![ServiceVip { network: name(""), ip: "10.96.0.0".parse().unwrap(), prefix_len: 16 }];
        });
        for to in ["10.96.200.1:80", "10.96.0.7:80"] {
            assert_eq!(answer(&bed, "client", to), "10.244.1.1 x");
        }
        // The waypoint's own address, which has no port 80.
        assert!(is_refused(bed.network("client"), "10.96.1.11:80".parse().unwrap()));
        bed.ended(Direction::Outbound, CloseCause::NoHealthyEndpoint);
    });
}

#[test]
fn the_family_is_the_service_s_then_the_client_s() {
    inside("the_family_is_the_service_s_then_the_client_s", || {
        let mut bed = bed(&Setup::default());
        bed.serve_echo("server", 8080);
        for (families, to, source) in [
            (IpFamilies::Automatic, VIP, "10.244.1.1 x"),
            (IpFamilies::Dual, "[fd96::9]:80", "fd00::1:1 x"),
            (IpFamilies::Ipv6Only, VIP, "fd00::1:1 x"),
            (IpFamilies::Ipv4Only, "[fd96::9]:80", "10.244.1.1 x"),
        ] {
            bed.change_service(WEB, |service| service.ip_families = families);
            assert_eq!(answer(&bed, "client", to), source, "{families:?} {to}");
        }
    });
}

/// Makes a workload an endpoint of the service `web`.
fn join(workload: &mut Workload) {
    join_at(workload, 8080);
}

fn join_at(workload: &mut Workload, target_port: u16) {
    let ports = vec![EndpointPort { service_port: 80, target_port }];
    workload.services.insert(NamespacedHostname::new("app", WEB), ports);
}

#[test]
fn an_endpoint_that_takes_no_connection_costs_nobody_theirs() {
    inside("an_endpoint_that_takes_no_connection_costs_nobody_theirs", || {
        let mut bed = bed(&Setup::default());
        bed.serve_echo("server", 8080);
        // Nobody listens there.
        bed.change_workload("plain", join);
        for _ in 0..32 {
            assert_eq!(answer(&bed, "client", VIP), "10.244.1.1 x");
            let sent = bed.ended(Direction::Outbound, CloseCause::Finished);
            assert_eq!(
                sent.destination.identity,
                Some(bed.identity("server")),
                "the books tell of who served"
            );
        }
        // An answer is an answer: one who refuses is not gone round.
        bed.change_workload("plain", |workload| workload.services = Services::default());
        bed.change_workload("server", |workload| join_at(workload, 8081));
        bed.change_workload("other", join);
        bed.serve_echo("other", 8080);
        let network = bed.network("client").clone();
        let refused = (0..64).filter(|_| is_refused(&network, VIP.parse().unwrap())).count();
        assert!((1..64).contains(&refused), "{refused}");
        bed.ended(Direction::Outbound, CloseCause::TunnelRefused);
        // The only one is tried once.
        bed.change_workload("server", |workload| workload.services = Services::default());
        bed.change_workload("other", |workload| workload.services = Services::default());
        bed.change_workload("plain", join);
        assert!(is_refused(&network, VIP.parse().unwrap()));
        bed.ended(Direction::Outbound, CloseCause::ConnectFailed);
    });
}

#[test]
fn connections_even_out_where_endpoints_are_chosen_by_load() {
    inside("connections_even_out_where_endpoints_are_chosen_by_load", || {
        let options = NodeOptions { endpoint_choice: EndpointChoice::LeastLoaded, ..NodeOptions::default() };
        let mut bed = bed(&Setup { workers: 1, options, ..Setup::default() });
        bed.change_workload("other", join);
        bed.serve_pieces("server", 8080);
        bed.serve_pieces("other", 8080);
        let open = |bed: &mut Bed, count| -> Vec<_> {
            let sockets = (0..count).map(|_| {
                let socket = bed.connect("client", VIP.parse().unwrap()).unwrap();
                ping(&socket).unwrap();
                socket
            });
            sockets.collect()
        };
        let held = open(&mut bed, 60);
        let counts = bed.ask(|node| {
            let outbound = node.connections().into_iter().filter(|it| it["direction"] == "outbound");
            outbound.filter(|it| it.to_string().contains("10.244.1.2:15008")).count()
        });
        // One more than twelve apart happens once in 3^12 times; by chance alone, every eighth time.
        assert!((24..=36).contains(&counts[0]), "{counts:?} of 60 at one of two");
        drop(held);
        bed.until_idle();
    });
}
