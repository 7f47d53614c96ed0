//! Traffic between whole nodes: local and across, captured and not, by pod, service and headless service, in IPv4 and
//! IPv6; and that none of it crosses the wire in plain text that should not.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::collections::BTreeSet;

use node_support::{Bed, PLAINTEXT, inside};

/// Two nodes; a client with a neighbour, a server across, a pod outside the mesh.
fn bed() -> Bed {
    let mut bed = Bed::new(&["a", "b"]);
    for (node, pod) in [("a", "client"), ("a", "neighbour"), ("b", "server")] {
        bed.pod(node, pod);
    }
    bed.plain_pod("plain");
    bed.ready();
    bed
}

#[test]
fn pods_reach_each_other_on_one_node_and_across_without_plain_text_on_the_wire() {
    inside("pods_reach_each_other_on_one_node_and_across_without_plain_text_on_the_wire", || {
        let bed = bed();
        let servers = ["neighbour", "server"].map(|pod| (pod, bed.echo(pod, 8080)));
        let tap = bed.tap();
        for (pod, to) in servers {
            let from = [bed.v4("client"), bed.v6("client")];
            for (to, from) in to.into_iter().zip(from) {
                assert_eq!(bed.request("client", to).unwrap(), bed.answer(pod, from));
            }
        }
        assert_eq!(tap.count(PLAINTEXT), 0);
        for (node, role, count) in [("a", "client", 4), ("a", "server", 2), ("b", "server", 2)] {
            let labels = [format!("role=\"{role}\"")];
            let labels: Vec<_> = labels.iter().map(String::as_str).collect();
            let streams = bed.nodes[node].metric("corelane_streams_total", &labels);
            assert_eq!(streams, count, "{node} {role}");
        }
    });
}

#[test]
fn pods_outside_the_mesh_are_reached_and_reach_in_plain_text() {
    inside("pods_outside_the_mesh_are_reached_and_reach_in_plain_text", || {
        let bed = bed();
        for (client, server) in [("client", "plain"), ("plain", "server")] {
            let to = bed.echo(server, 8080);
            let tap = bed.tap();
            for (to, from) in to.into_iter().zip([bed.v4(client), bed.v6(client)]) {
                assert_eq!(bed.request(client, to).unwrap(), bed.answer(server, from));
            }
            assert!(tap.count(PLAINTEXT) > 0);
        }
    });
}

#[test]
fn services_lead_to_all_their_pods_by_their_addresses_and_headless_ones_by_the_pods() {
    inside("services_lead_to_all_their_pods_by_their_addresses_and_headless_ones_by_the_pods", || {
        let mut bed = bed();
        for pod in ["neighbour", "server"] {
            bed.echo(pod, 8080);
        }
        let service = bed.service("web", &["neighbour", "server"], 8080, false);
        let tap = bed.tap();
        for to in service {
            bed.until_answered("client", to);
            let mut seen = BTreeSet::new();
            // Each is as likely as the other.
            while seen.len() < 2 {
                let answer = bed.request("client", to).unwrap();
                seen.insert(answer.split(' ').next().unwrap().to_owned());
            }
        }
        bed.service("headless", &["server"], 8080, true);
        for to in bed.address("server", 8080) {
            assert!(bed.request("client", to).unwrap().starts_with("server "));
        }
        assert_eq!(tap.count(PLAINTEXT), 0);
    });
}

#[test]
fn an_address_that_nobody_knows_is_passed_through() {
    inside("an_address_that_nobody_knows_is_passed_through", || {
        let mut bed = bed();
        bed.place(None, "stranger");
        let to = bed.echo("stranger", 8080);
        for (to, from) in to.into_iter().zip([bed.v4("client"), bed.v6("client")]) {
            assert_eq!(bed.request("client", to).unwrap(), bed.answer("stranger", from));
        }
    });
}
