//! The end of a node proxy, and its place taken by another, with connections open.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use node_support::load::Load;
use node_support::traffic::{connect, ping, time_to_end};
use node_support::{Bed, inside};

fn bed(deadline: &str) -> Bed {
    let mut bed = Bed::with(&["a", "b"], |node| node.set("CONNECTION_TERMINATION_DEADLINE", deadline));
    bed.pod("a", "client");
    bed.pod("b", "server");
    bed.ready();
    bed
}

/// Waits until nobody listens for tunnels to the pod.
fn until_deaf(bed: &Bed, pod: &str) {
    bed.until("the proxy takes no more connections", |bed| {
        bed.address(pod, 15008).into_iter().all(|to| connect(bed.network(pod), to).is_err())
    });
}

#[test]
fn connections_may_end_by_themselves_after_a_signal_and_then_the_process_does() {
    inside("connections_may_end_by_themselves_after_a_signal_and_then_the_process_does", || {
        let mut bed = bed("60s");
        let to = bed.pieces("server", 8080);
        let live = bed.connect("client", to.v4).unwrap();
        ping(&live).unwrap();
        bed.at("b").terminate();
        until_deaf(&bed, "server");
        for _ in 0..20 {
            ping(&live).unwrap();
        }
        drop(live);
        assert!(bed.at("b").until_ended().success());
    });
}

#[test]
fn what_is_left_at_the_deadline_is_cut() {
    inside("what_is_left_at_the_deadline_is_cut", || {
        let mut bed = bed("300ms");
        let to = bed.pieces("server", 8080);
        let live = [bed.connect("client", to.v4).unwrap(), bed.connect("client", to.v6).unwrap()];
        for socket in &live {
            ping(socket).unwrap();
        }
        bed.at("a").terminate();
        for socket in &live {
            time_to_end(socket);
        }
        assert!(bed.at("a").until_ended().success());
    });
}

#[test]
fn another_proxy_takes_over_while_the_old_one_drains() {
    inside("another_proxy_takes_over_while_the_old_one_drains", || {
        let mut bed = bed("60s");
        let to = bed.pieces("server", 8080);
        let live = bed.connect("client", to.v4).unwrap();
        ping(&live).unwrap();
        // As an upgrade does it: the new one runs beside the old one, under the same agent.
        let socket = bed.at("b").agent.path.clone();
        bed.node("b-next", |node| {
            node.set("NODE_NAME", "b");
            node.set("INPOD_UDS", socket.display());
        });
        bed.at("b-next").until_ready(true);
        bed.at("b").terminate();
        bed.until("only the new one listens", |bed| {
            let before = bed.nodes["b"].metric("corelane_streams_total", &["role=\"server\""]);
            let fresh =
                (0..8).all(|_| bed.connect("client", to.v6).is_ok_and(|socket| ping(&socket).is_ok()));
            fresh && bed.nodes["b"].metric("corelane_streams_total", &["role=\"server\""]) == before
        });
        assert!(bed.nodes["b-next"].metric("corelane_streams_total", &["role=\"server\""]) > 0);
        ping(&live).unwrap();
        drop(live);
        assert!(bed.at("b").until_ended().success());
        ping(&bed.connect("client", to.v4).unwrap()).unwrap();
    });
}

/// Has the kernel pass on handshakes of a listener that closes, or not, as in a container that may not tell it to.
fn pass_on_handshakes(bed: &Bed, passes_on: bool) {
    for pod in bed.pods.values() {
        let value = if passes_on { "1" } else { "0" };
        let written = pod.network.within(|| std::fs::write("/proc/sys/net/ipv4/tcp_migrate_req", value));
        written.unwrap().unwrap();
    }
}

/// Both nodes get a new proxy, one after the other, while clients come and go: nobody is refused, nobody is cut.
fn take_over_under_traffic(passes_on: bool) {
    let clients = ["client", "other", "third"];
    let mut bed = Bed::with(&["a", "b"], |node| node.set("CONNECTION_TERMINATION_DEADLINE", "10m"));
    for pod in clients {
        bed.pod("a", pod);
    }
    bed.pod("b", "server");
    bed.ready();
    let to = bed.pieces("server", 8080);
    let loads = clients.map(|client| Load::start(&bed, client, to));
    let more = |count| loads.iter().for_each(|load| load.more(count));
    more(50);
    for (old, new, name) in [("b", "b-next", "b"), ("a", "a-next", "a")] {
        let socket = bed.at(old).agent.path.clone();
        bed.node(new, |node| {
            node.set("NODE_NAME", name);
            node.set("INPOD_UDS", socket.display());
        });
        bed.at(new).until_ready(true);
        pass_on_handshakes(&bed, passes_on);
        more(50);
        bed.at(old).terminate();
        more(500);
    }
    let exchanges: usize = loads.into_iter().map(Load::stop).sum();
    println!("{exchanges} exchanges, none lost");
    for old in ["a", "b"] {
        assert!(bed.at(old).until_ended().success());
    }
}

#[test]
fn a_takeover_under_traffic_loses_nobody() {
    inside("a_takeover_under_traffic_loses_nobody", || take_over_under_traffic(true));
}

#[test]
fn a_takeover_under_traffic_loses_nobody_where_the_kernel_passes_nothing_on() {
    inside("a_takeover_under_traffic_loses_nobody_where_the_kernel_passes_nothing_on", || {
        take_over_under_traffic(false);
    });
}
