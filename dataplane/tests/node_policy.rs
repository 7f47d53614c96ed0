//! Policies and certificates as the control plane changes them under a running node proxy.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use node_support::resources::{identity, policy, principal};
use node_support::traffic::{ping, time_to_end};
use node_support::{Bed, inside};
use xds::proto::security::Action;

/// The time in which a policy must be in force on every worker.
const IN_FORCE: Duration = Duration::from_secs(1);

fn bed() -> Bed {
    let mut bed = Bed::new(&["a", "b"]);
    for (node, pod) in [("a", "client"), ("a", "other"), ("b", "server")] {
        bed.pod(node, pod);
    }
    bed.plain_pod("plain");
    bed.ready();
    bed
}

/// Connections from each client, over both families and so over several workers.
fn open(bed: &Bed, clients: &[&str], count: usize) -> Vec<TcpStream> {
    let to = bed.address("server", 8080);
    let mut sockets = Vec::new();
    for client in clients {
        for to in to.into_iter().cycle().take(count) {
            let socket = bed.connect(client, to).unwrap();
            ping(&socket).unwrap();
            sockets.push(socket);
        }
    }
    sockets
}

/// How many workers of the node accepted tunnels.
fn workers_in_use(bed: &Bed, node: &str) -> usize {
    let text = bed.nodes[node].metrics();
    let links = text.lines().filter(|line| {
        line.starts_with("corelane_links_total") && line.contains("role=\"server\"") && !line.ends_with(" 0")
    });
    links.count()
}

/// Denies a client with so many open connections, and again, until one round was as fast as promised: the machine may be
/// busy. Nobody else may notice.
fn assert_denial_cuts(streams: usize) {
    let bed = bed();
    bed.pieces("server", 8080);
    let deny = || policy("deny", Action::Deny, &[&principal("client")]);
    let spared = open(&bed, &["other"], 4);
    let mut fastest = Duration::MAX;
    let mut was_spread = false;
    for _ in 0..5 {
        let doomed = open(&bed, &["client"], streams);
        was_spread |= workers_in_use(&bed, "b") > 1;
        let pushed = Instant::now();
        bed.control.put([deny().into()]);
        for socket in &doomed {
            time_to_end(socket);
        }
        fastest = fastest.min(pushed.elapsed());
        assert!(bed.request("client", bed.address("server", 8080).v4).is_err());
        bed.control.remove(["app/deny"]);
        bed.settle();
        bed.until("the client is let in again", |bed| {
            let to = bed.address("server", 8080);
            bed.connect("client", to.v6).is_ok_and(|socket| ping(&socket).is_ok())
        });
        if fastest < IN_FORCE && was_spread {
            break;
        }
    }
    println!("{streams} connections were cut {fastest:?} after the policy was pushed");
    assert!(fastest < IN_FORCE, "{fastest:?}");
    assert!(was_spread, "all tunnels met on one worker");
    for socket in &spared {
        ping(socket).unwrap();
    }
}

#[test]
fn a_new_policy_cuts_what_it_denies_on_every_worker_and_nothing_else() {
    inside("a_new_policy_cuts_what_it_denies_on_every_worker_and_nothing_else", || assert_denial_cuts(16));
}

#[test]
fn a_new_policy_cuts_a_thousand_streams_at_once() {
    inside("a_new_policy_cuts_a_thousand_streams_at_once", || assert_denial_cuts(1_000));
}

#[test]
fn an_allow_policy_lets_in_whom_it_names_and_nobody_without_identity() {
    inside("an_allow_policy_lets_in_whom_it_names_and_nobody_without_identity", || {
        let bed = bed();
        let to = bed.echo("server", 8080);
        for client in ["client", "other", "plain"] {
            bed.until_answered(client, to.v4);
        }
        bed.apply([policy("allow", Action::Allow, &[&principal("client")])]);
        for to in to {
            bed.until("the policy is in force", |bed| bed.request("other", to).is_err());
            assert!(bed.request("client", to).is_ok());
            assert!(bed.request("plain", to).is_err());
        }
        // A namespace's policy is about its pods only, wherever their traffic comes from.
        let outside = bed.echo("plain", 8080);
        assert!(bed.request("other", outside.v4).is_ok());
    });
}

#[test]
fn certificates_are_fetched_for_the_nodes_workloads_before_their_pods_come_and_forgotten_after() {
    inside(
        "certificates_are_fetched_for_the_nodes_workloads_before_their_pods_come_and_forgotten_after",
        || {
            let mut bed = bed();
            let authority = bed.control.authority.clone();
            bed.place(Some("a"), "soon");
            bed.apply([bed.workload("soon")]);
            authority.until_issued(&identity("soon"));
            // One node each, and one certificate for both families of one pod.
            for pod in ["client", "server", "soon"] {
                assert_eq!(authority.issued().iter().filter(|it| **it == identity(pod)).count(), 1, "{pod}");
            }
            bed.enroll("soon").unwrap();
            let to = bed.echo("soon", 8080);
            assert_eq!(bed.until_answered("client", to.v6), bed.answer("soon", bed.v6("client")));
            assert_eq!(authority.issued().iter().filter(|it| **it == identity("soon")).count(), 1);
            bed.delete("soon");
            bed.until("the certificate is forgotten", |bed| {
                let dump = bed.nodes["a"].config_dump();
                let all = dump["certificates"].as_array().unwrap();
                all.iter().all(|it| it["identity"] != identity("soon"))
            });
            assert!(bed.request("client", bed.address("server", 8080).v4).is_err(), "nobody listens");
        },
    );
}

#[test]
fn a_pod_without_certificate_is_silent_until_it_gets_one() {
    inside("a_pod_without_certificate_is_silent_until_it_gets_one", || {
        let mut bed = bed();
        bed.control.authority.refuse(&identity("new"));
        bed.pod("a", "new");
        let to = bed.echo("server", 8080);
        let tap = bed.tap();
        assert!(bed.request("new", to.v4).is_err());
        assert_eq!(tap.count(node_support::PLAINTEXT), 0);
        bed.control.authority.allow(&identity("new"));
        assert_eq!(bed.until_answered("new", to.v4), bed.answer("server", bed.v4("new")));
    });
}
