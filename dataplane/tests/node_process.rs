//! `corelane proxy` as a process: how it starts, what it says of itself, whose workloads it serves, how it ends.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::process::{Command, Output};

use model::Identity;
use node_support::node::Node;
use node_support::raw::RawClient;
use node_support::resources::{bytes_of, identity};
use node_support::traffic::{answer_once, connect, ping, serve};
use node_support::{Bed, inside};
use serde_json::Value;
use tunnel::h2::Headers;
use xds::proto::workload::{TunnelProtocol, Workload};

const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;

/// Starts the program with nothing but these variables and waits for its end.
fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelane"));
    command.args(arguments).env_clear().envs(variables.iter().copied()).current_dir(folder.path());
    command.output().unwrap()
}

fn readiness(bed: &Bed, node: &str) -> String {
    bed.nodes[node].ask("GET", READINESS, "/healthz/ready").map_or_else(|_| String::new(), |(_, body)| body)
}

fn until_readiness(bed: &Bed, node: &str, says: &str) {
    bed.until(says, |bed| readiness(bed, node) == says);
}

/// Identity and state of each certificate.
fn certificates(bed: &Bed, node: &str) -> Vec<(String, String)> {
    let dump = bed.nodes[node].config_dump();
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
    let entries = dump["certificates"].as_array().unwrap();
    entries.iter().map(|it| (text(it, "identity"), text(it, "state"))).collect()
}

/// A workload at a node's own address.
fn at_node(bed: &Bed, node: &str, namespace: &str, name: &str, account: &str) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}"),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        addresses: bed.nodes[node].ips.iter().map(|ip| bytes_of(*ip)).collect(),
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        trust_domain: "cluster.local".to_owned(),
        node: node.to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        ..Workload::default()
    }
}

/// A client of a node's own tunnel port, in a pod outside the mesh.
fn client_of(bed: &Bed, node: &str, expected: &str) -> RawClient {
    RawClient {
        from: bed.network("plain").clone(),
        credentials: bed.control.authority.credentials(&identity("plain")),
        to: (bed.nodes[node].ips[0], 15008).into(),
        expected: expected.parse::<Identity>().unwrap(),
    }
}

#[test]
fn what_cannot_be_used_is_named_before_anything_starts() {
    for (variable, value, says) in [
        ("PACKET_MARK", "0x539", "PACKET_MARK=\"0x539\" cannot be used: it must be a whole number"),
        ("PROXY_MODE", "dedicated", "PROXY_WORKLOAD_INFO is not set"),
        ("CORELANE_DRIVERS", "epoll", "there is no variable CORELANE_DRIVERS"),
    ] {
        let output = start(&["proxy", "ztunnel"], &[(variable, value)]);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(complaint.contains(says), "{complaint}");
    }
    let version = start(&["version"], &[]);
    assert!(version.status.success() && version.stdout.starts_with(b"corelane "));
}

#[test]
fn certificates_follow_the_workloads_of_the_node_and_readiness_names_what_is_missing() {
    inside("certificates_follow_the_workloads_of_the_node_and_readiness_names_what_is_missing", || {
        let mut bed = Bed::with(&["a"], |node| node.set("INPOD_UDS", "/nowhere/agent.sock"));
        until_readiness(&bed, "a", "not ready, pending: workload proxy manager\n");
        // No pod has come, but the control plane says that this one will.
        bed.place(Some("a"), "client");
        bed.place(Some("elsewhere"), "far");
        bed.apply([bed.workload("client"), bed.workload("far")]);
        let issued = |bed: &Bed| certificates(bed, "a") == [(identity("client"), "Available".to_owned())];
        bed.until("the certificate is there", issued);
        let dump = bed.nodes["a"].config_dump();
        let config = &dump["config"];
        assert_eq!(config["xdsAddress"], "https://10.99.0.100:15012");
        assert_eq!(config["altXdsHostname"], "istiod.istio-system.svc");
        assert_eq!((&config["localNode"], &config["proxyMode"]), (&"a".into(), &"Shared".into()));
        assert_eq!(config["inpodUds"], "/nowhere/agent.sock");
        assert_eq!(config["numWorkerThreads"], 2);
        assert_eq!(config["selfTerminationDeadline"]["secs"], 5);
        assert!(dump["version"]["version"].is_string() && dump["stagedServices"].is_object());
        assert!(dump["staticConfig"]["workloads"].is_array());
        // The node's own pages: admin for the node alone.
        let from = bed.network("client");
        for (port, is_open) in [(ADMIN, false), (METRICS, true), (READINESS, true)] {
            for ip in &bed.nodes["a"].ips {
                assert_eq!(connect(from, (*ip, port).into()).is_ok(), is_open, "{ip}:{port}");
            }
        }
        // Without its workload nobody needs it.
        bed.control.remove([&*bed.workload("client").uid]);
        bed.until("the certificate is forgotten", |bed| certificates(bed, "a").is_empty());
        bed.at("a").terminate();
        assert!(bed.at("a").until_ended().success());
    });
}

#[test]
fn a_wrong_token_is_told_and_the_next_one_is_taken() {
    inside("a_wrong_token_is_told_and_the_next_one_is_taken", || {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, "of somebody else").unwrap();
        let mut bed = Bed::with(&["a"], |node| node.set("AUTH_TOKEN", token.display()));
        bed.at("a").until_logged(&[
            "no connection to the control plane",
            "does not accept the token in",
            "no such token",
        ]);
        until_readiness(&bed, "a", "not ready, pending: proxy, state manager, workload proxy manager\n");
        std::fs::write(&token, node_support::control::TOKEN).unwrap();
        bed.at("a").until_ready(true);
    });
}

#[test]
fn the_proxys_own_metrics_come_over_a_tunnel() {
    inside("the_proxys_own_metrics_come_over_a_tunnel", || {
        let mut bed = Bed::with(&["a"], |node| node.set("SERVICE_ACCOUNT", "ztunnel"));
        bed.plain_pod("plain");
        bed.apply([at_node(&bed, "a", "istio-system", "proxy-a", "ztunnel")]);
        bed.at("a").until_ready(true);
        let ip = bed.nodes["a"].ips[0];
        bed.until("the tunnel port is open", |bed| connect(bed.network("plain"), (ip, 15008).into()).is_ok());
        let client = client_of(&bed, "a", "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
        let request = Headers::connect(format!("{ip}:{METRICS}")).unwrap();
        let page = client.exchange(request, b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let text = String::from_utf8_lossy(&page.body);
        assert!(page.status == 200 && text.contains("istio_build"), "{} {text}", page.status);
        // It is no captured pod.
        for port in [15001, 15006] {
            assert!(connect(bed.network("plain"), (ip, port).into()).is_err(), "{port}");
        }
        assert_eq!(client.ask(vec![Headers::connect(format!("{ip}:15001")).unwrap()]), [503]);
    });
}

#[test]
fn a_dedicated_proxy_serves_the_workload_that_it_runs_beside() {
    inside("a_dedicated_proxy_serves_the_workload_that_it_runs_beside", || {
        let dedicated = |node: &mut Node| {
            node.set("PROXY_MODE", "dedicated");
            node.set("PROXY_WORKLOAD_INFO", "app/solo/solo");
            node.set("INPOD_UDS", "/nowhere/agent.sock");
            // Without redirection rules answers to a client's own address would not come back.
            node.set("ENABLE_ORIG_SRC", "false");
        };
        let mut bed = Bed::with(&["a"], dedicated);
        bed.plain_pod("plain");
        bed.apply([at_node(&bed, "a", "app", "solo", "solo")]);
        bed.at("a").until_ready(true);
        serve(&bed.nodes["a"].network, 8080, |socket, peer| answer_once("solo", socket, peer));
        let ip = bed.nodes["a"].ips[0];
        let client = client_of(&bed, "a", &identity("solo"));
        let answer = client.exchange(Headers::connect(format!("{ip}:8080")).unwrap(), b"hello");
        assert_eq!(String::from_utf8_lossy(&answer.body), format!("solo {ip} hello"));
        let dump = bed.nodes["a"].config_dump();
        assert_eq!(dump["config"]["proxyMode"], "Dedicated");
        assert_eq!(dump["config"]["packetMark"], Value::Null);
    });
}

#[test]
fn who_asks_twice_does_not_wait_for_the_deadline() {
    inside("who_asks_twice_does_not_wait_for_the_deadline", || {
        let mut bed = Bed::with(&["a"], |node| node.set("CONNECTION_TERMINATION_DEADLINE", "10m"));
        bed.pod("a", "client");
        bed.pod("a", "server");
        bed.ready();
        let to = bed.pieces("server", 8080);
        let live = bed.connect("client", to.v4).unwrap();
        ping(&live).unwrap();
        bed.at("a").terminate();
        bed.at("a").until_logged(&["draining"]);
        ping(&live).unwrap();
        bed.at("a").terminate();
        assert!(bed.at("a").until_ended().success());
    });
}
