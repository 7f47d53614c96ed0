//! Two networks, a whole node on each: services are reached through the gateway between them, in two tunnels, one
//! within the other, and nothing else is.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::net::SocketAddr;

use node_support::hop::{Hop, Treatment};
use node_support::resources::{
    bytes_of, gateway_at, gateway_of_service, hostname, identity, policy, principal,
};
use node_support::traffic::ping;
use node_support::{Bed, Both, PLAINTEXT, inside};
use serde_json::Value;
use xds::proto::security::Action;
use xds::proto::workload::NetworkAddress;

const NEAR: &str = "near";
const FAR: &str = "far";
/// Where the gateway takes HBONE; behind the first one it goes on in IPv4, behind the second in IPv6.
const PORTS: [u16; 2] = [15009, 15010];

/// `client` and `other` are near; `server`, which serves `web`, and `gateway` are far.
fn bed() -> (Bed, Both) {
    let mut bed = Bed::with(&[NEAR, FAR], |node| node.set("NETWORK", node.name.clone()));
    for (network, pod) in [(NEAR, "client"), (NEAR, "other"), (FAR, "server")] {
        bed.place(Some(network), pod);
        bed.change(pod, |workload| workload.network = network.into());
        bed.enroll(pod).unwrap();
    }
    bed.place(None, "gateway");
    bed.change("gateway", |workload| workload.network = FAR.into());
    let web = bed.service("web", &["server"], 8080, false);
    bed.change_service("web", |service| {
        let each = [NEAR, FAR].into_iter().flat_map(|network| web.into_iter().map(move |vip| (network, vip)));
        let address = |(network, vip): (&str, SocketAddr)| NetworkAddress {
            network: network.to_owned(),
            address: bytes_of(vip.ip()),
            length: None,
        };
        service.addresses = each.map(address).collect();
        service.subject_alt_names = vec![identity("server")];
    });
    bed.ready();
    (bed, web)
}

/// A gateway that passes what it takes on one port on to one address of the server.
fn gateway(bed: &Bed, port: u16, to: SocketAddr) -> Hop {
    let credentials = bed.control.authority.credentials(&identity("gateway"));
    Hop::start(bed.network("gateway"), port, &credentials, Treatment::PassOn(to))
}

/// What a node lists of its connections in one direction.
fn connections(bed: &Bed, node: &str, direction: &str) -> Vec<Value> {
    let dump = bed.nodes[node].config_dump();
    let pods = dump["workloadState"].as_object().unwrap().values();
    pods.flat_map(|pod| pod["connections"][direction].as_array().unwrap().clone()).collect()
}

#[test]
fn services_are_reached_on_another_network_through_its_gateway_and_nothing_else_is() {
    inside("services_are_reached_on_another_network_through_its_gateway_and_nothing_else_is", || {
        let (bed, web) = bed();
        bed.echo("server", 8080);
        let tunnels = bed.address("server", 15008);
        let hops = [gateway(&bed, PORTS[0], tunnels.v4), gateway(&bed, PORTS[1], tunnels.v6)];
        // The server is near until its gateway is known: nothing leads there.
        assert!(bed.request("client", web.v4).is_err());
        let tap = bed.tap();
        for (at, hop) in hops.iter().enumerate() {
            let ip = bed.get("gateway").ips[at];
            bed.change("server", |it| it.network_gateway = Some(gateway_at(FAR, ip, PORTS[at])));
            for vip in web {
                bed.until_answer("client", vip, &bed.answer("server", ip));
                let asked = hop.asked();
                assert_eq!(asked.authority, format!("{}:80", hostname("web")));
                assert_eq!(asked.client.uri(), identity("client"));
            }
        }
        assert_eq!(tap.count(PLAINTEXT), 0);

        // The policy of the far node is about who connects, not about the gateway.
        bed.apply([policy("allow", Action::Allow, &[&principal("client")])]);
        bed.until_refused("other", web.v4);
        assert!(bed.request("client", web.v4).is_ok());
        // The pod's own address is another place here: passed through, and over there a stranger's.
        for to in bed.address("server", 8080) {
            assert!(bed.request("client", to).is_err());
        }
        bed.control.remove(["app/allow"]);
        bed.settle();
        bed.until("the other is let in again", |bed| bed.request("other", web.v6).is_ok());

        let tap = bed.tap();
        // Only what the service calls its own may answer.
        bed.change_service("web", |service| service.subject_alt_names = vec![identity("other")]);
        bed.until_refused("client", web.v4);
        bed.nodes[NEAR]
            .until_logged(&["the peer proved another identity than the destination's", "web.app.svc"]);
        bed.change_service("web", |service| service.subject_alt_names = vec![identity("server")]);
        bed.until("it is reached again", |bed| bed.request("client", web.v4).is_ok());
        // A waypoint over there stands before services, never before pods.
        bed.change("other", |it| it.waypoint = Some(gateway_of_service("web", 80)));
        bed.echo("other", 8080);
        bed.until_refused("client", bed.address("other", 8080).v4);
        bed.change("other", |it| it.waypoint = None);
        bed.until("the pod is reached again", |bed| {
            bed.request("client", bed.address("other", 8080).v4).is_ok()
        });
        assert_eq!(tap.count(PLAINTEXT), 0);
    });
}

#[test]
fn connections_across_networks_are_listed_as_two_tunnels_and_end_with_their_gateway() {
    inside("connections_across_networks_are_listed_as_two_tunnels_and_end_with_their_gateway", || {
        let (bed, web) = bed();
        bed.pieces("server", 8080);
        let hop = gateway(&bed, PORTS[0], bed.address("server", 15008).v4);
        bed.change("server", |it| it.network_gateway = Some(gateway_at(FAR, bed.v4("gateway"), PORTS[0])));
        bed.until("the gateway is in use", |bed| {
            bed.connect("client", web.v4).is_ok_and(|socket| ping(&socket).is_ok())
        });
        let sockets: Vec<_> = [web.v4, web.v6].map(|vip| bed.connect("client", vip).unwrap()).into();
        for socket in &sockets {
            ping(socket).unwrap();
        }
        bed.until("both nodes list them", |bed| {
            connections(bed, NEAR, "outbound").len() == 2 && connections(bed, FAR, "inbound").len() == 2
        });
        for listed in connections(&bed, NEAR, "outbound") {
            assert_eq!(listed["protocol"], "DOUBLEHBONE", "{listed}");
            let to = SocketAddr::new(bed.v4("gateway"), PORTS[0]);
            assert_eq!(listed["actualDst"], to.to_string(), "{listed}");
        }
        for listed in connections(&bed, FAR, "inbound") {
            assert_eq!(listed["protocol"], "HBONE", "{listed}");
        }
        assert_eq!(
            bed.nodes[FAR].metric("istio_tcp_connections_opened_total", &["reporter=\"destination\""]),
            3
        );
        drop(hop);
        for socket in &sockets {
            assert!(ping(socket).is_err());
        }
        bed.until("nothing is left", |bed| {
            connections(bed, NEAR, "outbound").is_empty() && connections(bed, FAR, "inbound").is_empty()
        });
    });
}
