//! What must not get through a node proxy: its own ports, other pods' addresses, foreign identities.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::io::{Read, Write};
use std::net::SocketAddr;

use node_support::raw::{RawClient, is_taken};
use node_support::resources::identity;
use node_support::traffic::connect;
use node_support::{Bed, inside};
use tunnel::h2::Headers;

const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const TUNNEL: u16 = 15008;

fn bed() -> Bed {
    let mut bed = Bed::new(&["a", "b"]);
    for (node, pod) in [("a", "client"), ("b", "neighbour"), ("b", "server")] {
        bed.pod(node, pod);
    }
    bed.plain_pod("plain");
    bed.ready();
    bed
}

/// Content type of a TLS alert.
const ALERT: u8 = 21;

/// Whether a connection brings nothing back but, at most, a TLS alert.
fn is_refused(bed: &Bed, from: &str, to: SocketAddr) -> bool {
    let Ok(mut socket) = bed.connect(from, to) else { return true };
    let mut said = Vec::new();
    // Either may fail when the other side breaks off.
    let _ = socket.write_all(b"GET / HTTP/1.0\r\n\r\n");
    let _ = socket.read_to_end(&mut said);
    said.is_empty() || said.first() == Some(&ALERT)
}

#[test]
fn the_proxys_own_ports_lead_nowhere() {
    inside("the_proxys_own_ports_lead_nowhere", || {
        let bed = bed();
        let server = bed.echo("server", 8080);
        for port in [OUTBOUND, INBOUND, TUNNEL] {
            for to in bed.address("server", port) {
                assert!(is_refused(&bed, "client", to), "captured client to {to}");
                assert!(is_refused(&bed, "plain", to), "plain client to {to}");
            }
            // From inside, as an application of the pod might try.
            for ip in ["127.0.0.1", "::1"] {
                let to = SocketAddr::new(ip.parse().unwrap(), port);
                assert!(is_refused(&bed, "server", to), "the pod itself to {to}");
            }
        }
        // The node's own pages are for the node.
        for (port, is_open) in [(15000, false), (15020, true), (15021, true)] {
            for ip in bed.nodes["b"].ips.clone() {
                let to = SocketAddr::new(ip, port);
                for from in ["client", "plain"] {
                    assert_eq!(!is_refused(&bed, from, to), is_open, "{from} to {to}");
                }
            }
        }
        assert!(bed.request("client", server.v4).is_ok());
    });
}

#[test]
fn a_tunnel_leads_only_to_the_pod_that_was_dialled() {
    inside("a_tunnel_leads_only_to_the_pod_that_was_dialled", || {
        let mut bed = bed();
        for pod in ["server", "neighbour"] {
            bed.echo(pod, 8080);
        }
        bed.place(None, "attacker");
        for ip in [bed.v4("server"), bed.v6("server")] {
            let raw = RawClient {
                from: bed.network("attacker").clone(),
                credentials: bed.control.authority.credentials(&identity("client")),
                to: SocketAddr::new(ip, TUNNEL),
                expected: identity("server").parse().unwrap(),
            };
            let at = |ip, port| SocketAddr::new(ip, port).to_string();
            let cases = [
                (at(ip, 8080), 200),
                (at(bed.v4("neighbour"), 8080), 400),
                (at(bed.v6("neighbour"), 8080), 400),
                (at(bed.v4("plain"), 8080), 400),
                (at(bed.nodes["b"].ips[0], 15000), 400),
                ("127.0.0.1:8080".to_owned(), 400),
                ("127.0.0.1:15000".to_owned(), 400),
                ("[::1]:15000".to_owned(), 400),
                (at(ip, OUTBOUND), 503),
                (at(ip, INBOUND), 503),
                (at(ip, TUNNEL), 503),
                (at(ip, 1), 503),
                ("nonsense".to_owned(), 400),
                ("unknown.app.svc.cluster.local:80".to_owned(), 503),
                (at(ip, 8080), 200),
            ];
            let requests = cases.iter().map(|(authority, _)| Headers::connect(authority).unwrap());
            let answers = raw.ask(requests.collect());
            for ((authority, status), answer) in cases.iter().zip(answers) {
                assert_eq!(answer, *status, "{authority}");
            }
        }
    });
}

#[test]
fn a_certificate_of_another_trust_domain_or_authority_is_not_taken() {
    inside("a_certificate_of_another_trust_domain_or_authority_is_not_taken", || {
        let mut bed = bed();
        bed.place(None, "attacker");
        let show = |leaf| {
            let to = bed.address("server", TUNNEL).v4;
            is_taken(leaf, connect(bed.network("attacker"), to).unwrap())
        };
        assert!(show(bed.control.authority.leaf(&identity("client"))));
        assert!(!show(bed.control.authority.leaf("spiffe://other.example/ns/app/sa/client")));
        let foreign = node_support::pki::Pki::new("cluster.local");
        assert!(!show(foreign.leaf(&[&identity("client")], 2090)));
    });
}

#[test]
fn pods_of_another_trust_domain_do_not_reach_each_other() {
    inside("pods_of_another_trust_domain_do_not_reach_each_other", || {
        let mut bed = bed();
        bed.place(Some("a"), "foreigner");
        let mut foreign = bed.workload("foreigner");
        foreign.trust_domain = "other.example".to_owned();
        bed.apply([foreign]);
        bed.enroll("foreigner").unwrap();
        bed.control.authority.until_issued("spiffe://other.example/ns/app/sa/foreigner");
        let (server, foreigner) = (bed.echo("server", 8080), bed.echo("foreigner", 8080));
        let tap = bed.tap();
        for to in server {
            assert!(bed.request("foreigner", to).is_err());
        }
        for to in foreigner {
            assert!(bed.request("client", to).is_err());
        }
        assert_eq!(tap.count(node_support::PLAINTEXT), 0);
        assert!(bed.request("client", server.v4).is_ok());
    });
}
