//! Whole proxies that live by files or for one pod: revocation lists, a mesh written by hand, the state of the last
//! run, a pod's own proxy.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::net::{SocketAddr, TcpStream};

use node_support::resources::{hostname, identity, policy, principal};
use node_support::traffic::{ping, time_to_end};
use node_support::{Bed, PLAINTEXT, inside};
use xds::proto::security::Action;

/// Where a proxy keeps its last state.
const STATE: &str = "state/state";

/// Two nodes; a client and another on one, a server on the other.
fn bed(prepare: impl Fn(&mut node_support::node::Node)) -> Bed {
    let mut bed = Bed::with(&["a", "b"], prepare);
    for (node, pod) in [("a", "client"), ("b", "server"), ("a", "other")] {
        bed.pod(node, pod);
    }
    bed.ready();
    bed
}

fn open(bed: &Bed, client: &str) -> Vec<TcpStream> {
    let sockets: Vec<_> =
        bed.address("server", 8080).into_iter().map(|to| bed.connect(client, to).unwrap()).collect();
    for socket in &sockets {
        ping(socket).unwrap();
    }
    sockets
}

#[test]
fn a_new_revocation_list_cuts_live_tunnels_and_a_broken_one_changes_nothing() {
    inside("a_new_revocation_list_cuts_live_tunnels_and_a_broken_one_changes_nothing", || {
        let bed = bed(|node| node.set("CRL_PATH", "crl.pem"));
        bed.pieces("server", 8080);
        let (doomed, spared) = (open(&bed, "client"), open(&bed, "other"));
        let write = |list: &str| {
            for node in bed.nodes.values() {
                node.write("crl.pem", list);
            }
        };
        let authority = &bed.control.authority;
        write(&authority.revocation_list(&[&identity("client")]));
        for socket in &doomed {
            time_to_end(socket);
        }
        let is_refused = |client: &str| {
            let socket = bed.connect(client, bed.address("server", 8080).v4);
            socket.is_err() || ping(&socket.unwrap()).is_err()
        };
        assert!(is_refused("client"));
        assert!(
            bed.nodes["b"].metric("istio_crl_policy_rejections_total", &["reporter=\"destination\""]) > 0
        );
        write("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
        bed.nodes["b"].until_logged(&["the revocation lists", "cannot be used"]);
        assert!(is_refused("client"));
        for socket in &spared {
            ping(socket).unwrap();
        }
        write(&authority.revocation_list(&[]));
        bed.until("the client is let in again", |_| !is_refused("client"));
    });
}

const MESH: &str = "
workloads:
- { uid: one, name: client, namespace: app, serviceAccount: client, workloadIps: [10.244.1.1, 'fd00:244::1'],
    protocol: HBONE, node: a }
- { uid: two, name: server, namespace: app, serviceAccount: server, workloadIps: [10.244.1.2, 'fd00:244::2'],
    protocol: HBONE, node: b, services: { app/web.app.svc.cluster.local: { 80: 8080 } } }
- { uid: three, name: other, namespace: app, serviceAccount: other, workloadIps: [10.244.1.3, 'fd00:244::3'],
    protocol: HBONE, node: a }
services:
- { name: web, namespace: app, hostname: web.app.svc.cluster.local, vips: [/10.96.0.77, '/fd00:96::77'],
    ports: { 80: 8080 } }
policies:
- { name: deny-other, namespace: app, scope: Namespace, action: Deny,
    rules: [[[{ principals: [Exact: cluster.local/ns/app/sa/other] }]]] }
";

#[test]
fn a_mesh_that_is_written_by_hand_needs_no_control_plane() {
    inside("a_mesh_that_is_written_by_hand_needs_no_control_plane", || {
        let mut bed = bed(|node| {
            node.write("mesh.yaml", MESH);
            node.set("LOCAL_XDS_PATH", "mesh.yaml");
            node.set("XDS_ADDRESS", "");
        });
        assert_eq!(bed.v4("other").to_string(), "10.244.1.3");
        bed.echo("server", 8080);
        let tap = bed.tap();
        let vips: [SocketAddr; 2] = ["10.96.0.77:80", "[fd00:96::77]:80"].map(|vip| vip.parse().unwrap());
        for (to, from) in
            vips.into_iter().chain(bed.address("server", 8080)).zip(bed.get("client").ips.repeat(2))
        {
            assert_eq!(bed.request("client", to).unwrap(), bed.answer("server", from));
            assert!(bed.request("other", to).is_err(), "the policy is in force");
        }
        assert_eq!(tap.count(PLAINTEXT), 0);
        assert_eq!(bed.control.streams_opened(), 0);
        assert_eq!(bed.nodes["a"].config_dump()["workloads"].as_array().unwrap().len(), 3);
        let written = bed.nodes["a"].config_dump()["staticConfig"].clone();
        let count = |kind: &str| written[kind].as_array().unwrap().len();
        assert_eq!((count("workloads"), count("services"), count("policies")), (3, 1, 1));
        // A slip is named, and nothing runs with half of what was meant.
        bed.at("a").kill();
        bed.at("a").write("mesh.yaml", MESH.replace("action: Deny", "action: Denie"));
        bed.at("a").start();
        assert_eq!(bed.at("a").until_ended().code(), Some(1));
        bed.nodes["a"].until_logged(&["LOCAL_XDS_PATH", "mesh.yaml", "Denie"]);
    });
}

#[test]
fn a_proxy_of_one_pod_serves_it_as_a_node_s_proxy_does() {
    inside("a_proxy_of_one_pod_serves_it_as_a_node_s_proxy_does", || {
        let mut bed = bed(|_| {});
        bed.dedicated("alone");
        bed.plain_pod("plain");
        bed.ready();
        let (server, alone) = (bed.echo("server", 8080), bed.echo("alone", 8080));
        let tap = bed.tap();
        for (client, server, to) in [("alone", "server", server), ("client", "alone", alone)] {
            for (to, from) in to.into_iter().zip(bed.get(client).ips) {
                bed.until_answer(client, to, &bed.answer(server, from));
            }
        }
        assert_eq!(tap.count(PLAINTEXT), 0);
        let plain = bed.echo("plain", 8080);
        assert!(bed.request("alone", plain.v4).is_ok() && bed.request("plain", alone.v6).is_ok());
        bed.apply([policy("allow", Action::Allow, &[&principal("client")])]);
        bed.until_refused("plain", alone.v4);
        bed.until_refused("other", alone.v6);
        assert!(bed.request("client", alone.v6).is_ok());
        bed.at("alone").terminate();
        assert!(bed.at("alone").until_ended().success());
        assert!(bed.request("client", alone.v4).is_err());
    });
}

#[test]
fn the_state_of_the_last_run_serves_until_the_control_plane_answers() {
    inside("the_state_of_the_last_run_serves_until_the_control_plane_answers", || {
        let mut bed = bed(|node| node.set("CORELANE_STATE_DIR", "state"));
        bed.echo("server", 8080);
        bed.echo("other", 8080);
        let web = bed.service("web", &["server"], 8080, false);
        bed.apply([policy("kept", Action::Deny, &[&principal("server")])]);
        bed.until("the last state is on disk", |bed| {
            bed.nodes.values().all(|node| {
                let file = std::fs::read(node.path(STATE)).unwrap_or_default();
                let holds = |text: &str| file.windows(text.len()).any(|it| it == text.as_bytes());
                holds(&hostname("web")) && holds("app/kept")
            })
        });
        let restart = |bed: &mut Bed| {
            for node in ["a", "b"] {
                bed.at(node).kill();
                bed.at(node).start();
            }
        };
        let readiness = |bed: &Bed| bed.nodes["a"].ask("GET", 15021, "/healthz/ready").unwrap().1;

        // It signs certificates, and says nothing of the mesh.
        bed.control.set_silent(true);
        restart(&mut bed);
        for node in ["a", "b"] {
            bed.at(node).until_ready(true);
            assert_eq!(bed.nodes[node].metric("corelane_state_stale", &[]), 1);
            assert!(bed.nodes[node].config_dump()["staleSince"].is_string());
        }
        assert!(readiness(&bed).contains("the control plane has not answered"), "{}", readiness(&bed));
        let tap = bed.tap();
        for (vip, from) in web.into_iter().zip(bed.get("client").ips) {
            bed.until_answer("client", vip, &bed.answer("server", from));
        }
        assert!(bed.request("server", bed.address("other", 8080).v4).is_err(), "the policy is in force");
        assert_eq!(tap.count(PLAINTEXT), 0);

        // What changed meanwhile is in force once it answers, and what is gone is gone.
        bed.control.remove(["app/kept"]);
        bed.control.put([policy("new", Action::Deny, &[&principal("client")]).into()]);
        bed.control.set_silent(false);
        bed.settle();
        bed.until_refused("client", web.v4);
        bed.until("the server is let in", |bed| bed.request("server", bed.address("other", 8080).v6).is_ok());
        bed.until("the state is its own", |bed| bed.nodes["a"].metric("corelane_state_stale", &[]) == 0);
        assert!(!readiness(&bed).contains("the control plane has not answered"));

        // A damaged file is not believed in any part.
        for node in ["a", "b"] {
            let mut bytes = std::fs::read(bed.nodes[node].path(STATE)).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            bed.at(node).kill();
            bed.at(node).write(STATE, bytes);
        }
        bed.control.set_silent(true);
        for node in ["a", "b"] {
            bed.at(node).start();
            bed.nodes[node].until_logged(&["there is no state on disk to start from"]);
            assert!(!bed.nodes[node].is_ready());
        }
        bed.control.set_silent(false);
        bed.ready();
    });
}
