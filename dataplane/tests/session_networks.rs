//! Traffic to other networks, through their gateways: two tunnels, one within the other, on real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::net::{IpAddr, SocketAddr};

use dataplane::access_log::{CloseCause, Direction};
use dataplane::session::Node;
use dataplane::worker::DriverChoice;
use model::{GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress};
use session_support::hop::{Hop, Treatment, identities, name};
use session_support::{Bed, Setup, exchange, inside, is_refused, pattern, ping, pods, policy};

/// The service whose endpoint is on another network, the gateway's own, and a waypoint's.
const SERVICES: &str = "---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec: { clusterIP: 10.96.1.9, clusterIPs: [10.96.1.9, \"fd96::9\"], ipFamilyPolicy: PreferDualStack,
  selector: { app: server }, ports: [{ name: a, port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: eastwest, namespace: app }
spec: { clusterIP: None, selector: { app: plain }, ports: [{ name: a, port: 15009, targetPort: 15009 }] }
---
apiVersion: v1
kind: Service
metadata: { name: waypoint, namespace: app }
spec: { clusterIP: 10.96.1.11, selector: { app: other }, ports: [{ name: a, port: 15008, targetPort: 15008 }] }
";
const WEB: &str = "web.app.svc.cluster.local";
const EASTWEST: &str = "eastwest.app.svc.cluster.local";
const WAYPOINT: &str = "waypoint.app.svc.cluster.local";
const VIP: &str = "10.96.1.9:80";
const FAR: &str = "far";
/// Where the gateway takes HBONE.
const PORT: u16 = 15009;

fn by_address(ip: &str) -> GatewayAddress {
    let address = NetworkAddress { network: name(FAR), ip: ip.parse::<IpAddr>().unwrap() };
    GatewayAddress { destination: GatewayDestination::Address(address), hbone_mtls_port: PORT }
}

fn by_name(hostname: &str) -> GatewayAddress {
    let key = NamespacedHostname::new("app", hostname);
    GatewayAddress { destination: GatewayDestination::Hostname(key), hbone_mtls_port: PORT }
}

/// A bed whose pods `server` (which serves `web`) and `plain` (the gateway) are on another network than the client.
fn two_networks(setup: &Setup, gateway: &GatewayAddress, more: &str) -> Bed {
    let mut bed = Bed::with(&(pods() + SERVICES + more), setup);
    bed.change_workload("server", |workload| {
        workload.network = name(FAR);
        workload.network_gateway = Some(gateway.clone());
    });
    bed.change_workload("plain", |workload| workload.network = name(FAR));
    bed.change_service(WEB, |service| service.subject_alt_names = identities(&["server"]));
    bed
}

/// The gateway, in the pod outside the mesh, with an account of the namespace `app`.
fn gateway(bed: &Bed, account: &str, to: &str) -> Hop {
    let credentials = bed.pki.issue(&format!("spiffe://cluster.local/ns/app/sa/{account}"));
    let to = SocketAddr::new(to.parse().unwrap(), 15008);
    Hop::start(bed.network("plain"), PORT, &credentials, Treatment::PassOn(to))
}

fn one_worker() -> Setup {
    Setup { workers: 1, ..Setup::default() }
}

#[test]
fn a_service_on_another_network_is_reached_through_its_gateway_with_two_proofs() {
    inside("a_service_on_another_network_is_reached_through_its_gateway_with_two_proofs", || {
        let rules = "[{ from: [{ source: { principals: [cluster.local/ns/app/sa/client] } }] }]";
        let only_client = policy("only", "ALLOW", rules);
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let setup = Setup { driver, ..Setup::default() };
            for (address, behind, vip) in [
                ("10.244.1.9", "10.244.1.2", VIP),
                ("fd00::1:9", "fd00::1:2", "[fd96::9]:80"),
                // Another family behind the gateway than before it.
                ("10.244.1.9", "fd00::1:2", VIP),
            ] {
                let mut bed = two_networks(&setup, &by_address(address), &only_client);
                bed.serve_echo("server", 8080);
                let hop = gateway(&bed, "plain", behind);
                let bytes = pattern(3_000_000);
                let answer = exchange(&bed.connect("client", vip.parse().unwrap()).unwrap(), &bytes).unwrap();
                let source = if behind.contains(':') { "fd00::1:9 " } else { "10.244.1.9 " };
                assert!(answer.strip_prefix(source.as_bytes()) == Some(&bytes[..]), "{address} {behind}");

                let asked = hop.asked();
                assert_eq!(asked.authority, format!("{WEB}:80"));
                assert_eq!(asked.client, bed.identity("client"));
                assert_eq!(asked.header("x-forwarded-network"), None, "of the inner request only");
                assert!(asked.header("forwarded").unwrap().contains(WEB));

                let sent = bed.ended(Direction::Outbound, CloseCause::Finished);
                assert_eq!(sent.destination.identity, Some(bed.identity("server")));
                assert_eq!(sent.destination.address.unwrap().ip().to_string(), address);
                assert_eq!(sent.destination.address.unwrap().port(), PORT);
                assert_eq!(&*sent.service.unwrap().key.hostname, WEB);
                let taken = bed.ended(Direction::Inbound, CloseCause::Finished);
                assert_eq!(taken.source.identity, Some(bed.identity("client")));
                // The connection came from the gateway, but the books name the client.
                assert_eq!(taken.source.address.unwrap().ip().to_string(), source.trim());
                assert_eq!(&*taken.source.workload.unwrap().namespace, "app");
                assert_eq!(&*taken.service.unwrap().key.hostname, WEB);
                bed.until_idle();
            }
        }
    });
}

#[test]
fn tunnels_to_a_gateway_are_shared_and_the_ones_within_are_not() {
    inside("tunnels_to_a_gateway_are_shared_and_the_ones_within_are_not", || {
        let bed = two_networks(&one_worker(), &by_address("10.244.1.9"), "");
        bed.serve_pieces("server", 8080);
        let hop = gateway(&bed, "plain", "10.244.1.2");
        let sockets: Vec<_> = (0..8).map(|_| bed.connect("client", VIP.parse().unwrap()).unwrap()).collect();
        for socket in &sockets {
            ping(socket).unwrap();
            assert_eq!(hop.asked().tunnels, 1);
        }
        let listed: Vec<_> = bed.ask(Node::connections).into_iter().flatten().collect();
        let protocols = |direction: &str, protocol: &str| {
            listed.iter().filter(|it| it["direction"] == direction && it["protocol"] == protocol).count()
        };
        assert_eq!((protocols("outbound", "DOUBLEHBONE"), protocols("inbound", "HBONE")), (8, 8));
        let tunnels = bed.ask(Node::accepted_tunnels);
        assert_eq!(tunnels.iter().sum::<usize>(), sockets.len(), "each proves itself to the server");
        drop(sockets);
        bed.until_idle();
        bed.until("the tunnels within are gone", Node::accepted_tunnels, |open| open == [0]);
    });
}

#[test]
fn a_gateway_known_by_its_service_is_one_of_its_endpoints() {
    inside("a_gateway_known_by_its_service_is_one_of_its_endpoints", || {
        let mut bed = two_networks(&one_worker(), &by_name(EASTWEST), "");
        bed.serve_echo("server", 8080);
        let hop = gateway(&bed, "extra", "10.244.1.2");
        let network = bed.network("client").clone();
        assert!(
            is_refused(&network, VIP.parse().unwrap()),
            "neither the workload nor its service says `extra`"
        );
        bed.ended(Direction::Outbound, CloseCause::IdentityMismatch);
        bed.change_service(EASTWEST, |service| service.subject_alt_names = identities(&["extra"]));
        let answer = exchange(&bed.connect("client", VIP.parse().unwrap()).unwrap(), b"x").unwrap();
        assert_eq!(answer, b"10.244.1.9 x");
        assert_eq!(hop.asked().authority, format!("{WEB}:80"));
    });
}

#[test]
fn nothing_crosses_without_proof_of_both_ends() {
    inside("nothing_crosses_without_proof_of_both_ends", || {
        let mut bed = two_networks(&one_worker(), &by_address("10.244.1.9"), "");
        bed.serve_echo("server", 8080);
        let hop = gateway(&bed, "plain", "10.244.1.2");
        let network = bed.network("client").clone();
        let vip = VIP.parse().unwrap();
        assert!(!is_refused(&network, vip));
        hop.asked();
        bed.ended(Direction::Outbound, CloseCause::Finished);
        for (names, cause) in [
            // Only the service can say who may answer there, and the endpoint that was thought of is not asked.
            (identities(&["other"]), CloseCause::IdentityMismatch),
            (vec![], CloseCause::NoHealthyEndpoint),
        ] {
            bed.change_service(WEB, |service| service.subject_alt_names = names);
            assert!(is_refused(&network, vip));
            bed.ended(Direction::Outbound, cause);
        }
        bed.change_service(WEB, |service| service.subject_alt_names = identities(&["server"]));
        bed.change_workload("server", |workload| workload.network_gateway = Some(by_address("10.244.1.3")));
        assert!(is_refused(&network, vip), "a gateway that nobody knows");
        bed.ended(Direction::Outbound, CloseCause::NoHealthyEndpoint);
        bed.change_workload("server", |workload| workload.network_gateway = None);
        assert!(is_refused(&network, vip));
        bed.ended(Direction::Outbound, CloseCause::NoHealthyEndpoint);
        bed.until_idle();
    });
}

#[test]
fn refusals_on_either_leg_reach_the_client_as_what_they_are() {
    inside("refusals_on_either_leg_reach_the_client_as_what_they_are", || {
        let rules = "[{ from: [{ source: { principals: [cluster.local/ns/app/sa/client] } }] }]";
        let deny = policy("deny", "DENY", rules);
        let mut bed = two_networks(&one_worker(), &by_address("10.244.1.9"), &deny);
        bed.serve_echo("server", 8080);
        let network = bed.network("client").clone();
        let hop = gateway(&bed, "plain", "10.244.1.2");
        assert!(is_refused(&network, VIP.parse().unwrap()));
        bed.ended(Direction::Outbound, CloseCause::PolicyDenied);
        bed.ended(Direction::Inbound, CloseCause::PolicyDenied);
        drop(hop);
        let credentials = bed.pki.issue("spiffe://cluster.local/ns/app/sa/plain");
        let hop = Hop::start(bed.network("plain"), PORT, &credentials, Treatment::Refuse(503));
        assert!(is_refused(&network, VIP.parse().unwrap()));
        bed.ended(Direction::Outbound, CloseCause::TunnelRefused);
        drop(hop);
        assert!(is_refused(&network, VIP.parse().unwrap()));
        bed.ended(Direction::Outbound, CloseCause::ConnectFailed);
        bed.until_idle();
    });
}

#[test]
fn a_waypoint_on_another_network_is_asked_for_the_service_by_name() {
    inside("a_waypoint_on_another_network_is_asked_for_the_service_by_name", || {
        let mut bed = two_networks(&one_worker(), &by_address("10.244.1.9"), "");
        // The endpoint is near again: only the waypoint is far, and nothing goes past it.
        bed.change_workload("server", |workload| workload.network = name(""));
        bed.change_workload("other", |workload| {
            workload.network = name(FAR);
            workload.network_gateway = Some(by_address("10.244.1.9"));
        });
        let waypoint = GatewayAddress { hbone_mtls_port: 15008, ..by_name(WAYPOINT) };
        bed.change_service(WEB, |service| service.waypoint = Some(waypoint));
        bed.serve_echo("other", 8080);
        let network = bed.network("client").clone();
        assert!(is_refused(&network, VIP.parse().unwrap()), "the waypoint's service names no identity");
        bed.change_service(WAYPOINT, |service| service.subject_alt_names = identities(&["other"]));
        let hop = gateway(&bed, "plain", "10.244.1.3");
        let answer = exchange(&bed.connect("client", VIP.parse().unwrap()).unwrap(), b"x").unwrap();
        assert_eq!(answer, b"10.244.1.9 x");
        assert_eq!(hop.asked().authority, format!("{WEB}:80"));
        let sent = bed.ended(Direction::Outbound, CloseCause::Finished);
        assert_eq!(sent.destination.identity, Some(bed.identity("other")));
    });
}
