//! What the node agent orders over ZDS, carried out by a whole node proxy; an agent that goes away, and one that breaks
//! the protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use node_support::agent::AgentPod;
use node_support::traffic::{connect, ping, time_to_end};
use node_support::{Bed, NAMESPACE, inside};
use serde_json::{Value, json};

const TUNNEL: u16 = 15008;

fn bed(pods: &[&str]) -> Bed {
    let mut bed = Bed::new(&["a"]);
    for pod in pods {
        bed.pod("a", pod);
    }
    bed.ready();
    bed
}

/// Whether the proxy listens for tunnels in the pod's namespace.
fn is_served(bed: &Bed, pod: &str) -> bool {
    bed.address(pod, TUNNEL).into_iter().all(|to| connect(bed.network(pod), to).is_ok())
}

#[test]
fn pods_outlive_their_agent_and_the_next_snapshot_decides() {
    inside("pods_outlive_their_agent_and_the_next_snapshot_decides", || {
        let mut bed = bed(&["client", "server", "kept", "gone"]);
        let (server, gone) = (bed.pieces("server", 8080), bed.pieces("gone", 8080));
        let live = bed.connect("client", server.v4).unwrap();
        let doomed = bed.connect("client", gone.v6).unwrap();
        for socket in [&live, &doomed] {
            ping(socket).unwrap();
        }
        bed.at("a").agent.halt();
        bed.at("a").until_ready(false);
        // Nobody misses it.
        ping(&live).unwrap();
        ping(&bed.connect("client", server.v6).unwrap()).unwrap();
        let agent = &mut bed.at("a").agent;
        agent.forget("uid-gone");
        agent.lose_network("uid-kept");
        let before = agent.connections();
        agent.resume();
        agent.until_connected(before);
        assert!(agent.errors().is_empty());
        bed.at("a").until_ready(true);
        time_to_end(&doomed);
        assert!(!is_served(&bed, "gone"));
        assert!(is_served(&bed, "kept"));
        ping(&live).unwrap();
        let node = &bed.nodes["a"];
        assert_eq!(node.metric("workload_manager_active_proxy_count", &[]), 3);
        assert_eq!(node.metric("workload_manager_proxies_started_total", &[]), 4);
        assert_eq!(node.metric("workload_manager_proxies_stopped_total", &[]), 1);
    });
}

#[test]
fn a_deleted_pod_is_cut_at_once_and_may_come_back() {
    inside("a_deleted_pod_is_cut_at_once_and_may_come_back", || {
        let bed = bed(&["client", "server", "other"]);
        let (server, other) = (bed.pieces("server", 8080), bed.pieces("other", 8080));
        let doomed = [bed.connect("client", server.v4).unwrap(), bed.connect("server", other.v6).unwrap()];
        let spared = bed.connect("client", other.v4).unwrap();
        for socket in doomed.iter().chain([&spared]) {
            ping(socket).unwrap();
        }
        bed.agent("server").delete("uid-server").unwrap();
        // The answer comes when nothing of the pod is served any more.
        assert!(!is_served(&bed, "server"));
        for socket in &doomed {
            time_to_end(socket);
        }
        ping(&spared).unwrap();
        bed.enroll("server").unwrap();
        ping(&bed.connect("client", server.v4).unwrap()).unwrap();
        // Deleting what is not there is no error: the agent may repeat itself.
        bed.agent("server").delete("uid-nobody").unwrap();
    });
}

#[test]
fn a_pod_that_is_added_again_goes_on_unless_its_network_is_another() {
    inside("a_pod_that_is_added_again_goes_on_unless_its_network_is_another", || {
        let mut bed = bed(&["client", "server"]);
        let live = bed.connect("client", bed.pieces("server", 8080).v4).unwrap();
        ping(&live).unwrap();
        bed.enroll("server").unwrap();
        ping(&live).unwrap();
        bed.place(Some("a"), "elsewhere");
        let network = Some(bed.network("elsewhere").clone());
        bed.agent("server").add(AgentPod { network, ..bed.agent_pod("server") }).unwrap();
        time_to_end(&live);
        assert!(is_served(&bed, "elsewhere") && !is_served(&bed, "server"));
        assert_eq!(bed.nodes["a"].metric("workload_manager_active_proxy_count", &[]), 2);
    });
}

#[test]
fn a_pod_whose_ports_are_taken_is_an_error_and_is_tried_again() {
    inside("a_pod_whose_ports_are_taken_is_an_error_and_is_tried_again", || {
        let mut bed = bed(&["client"]);
        bed.place(Some("a"), "late");
        let squatter = bed.network("late").within(|| TcpListener::bind(("::", TUNNEL))).unwrap().unwrap();
        let error = bed.agent("late").add(bed.agent_pod("late")).unwrap_err();
        assert!(error.contains("uid-late") && error.contains("in use"), "{error}");
        bed.at("a").until_ready(false);
        assert_eq!(bed.nodes["a"].metric("workload_manager_pending_proxy_count", &[]), 1);
        drop(squatter);
        bed.at("a").until_ready(true);
        assert!(is_served(&bed, "late"));
        assert_eq!(bed.nodes["a"].metric("workload_manager_pending_proxy_count", &[]), 0);
        // What is deleted while it fails is not tried again.
        bed.place(Some("a"), "never");
        let squatter = bed.network("never").within(|| TcpListener::bind(("::", TUNNEL))).unwrap().unwrap();
        bed.agent("never").add(bed.agent_pod("never")).unwrap_err();
        bed.at("a").until_ready(false);
        bed.agent("never").delete("uid-never").unwrap();
        assert!(bed.nodes["a"].is_ready());
        drop(squatter);
    });
}

#[test]
fn an_agent_that_breaks_the_protocol_ends_the_proxy_with_a_message() {
    inside("an_agent_that_breaks_the_protocol_ends_the_proxy_with_a_message", || {
        let mut bed = bed(&["client"]);
        let answer = bed.agent("client").send_raw(b"\x1a\x00");
        assert!(String::from_utf8_lossy(&answer).contains("second snapshot_sent"), "{answer:?}");
        let status = bed.at("a").until_ended();
        assert!(!status.success(), "{status}");
        let line = bed.nodes["a"].until_logged(&["breaks the protocol", "agent.sock"]);
        assert!(line.contains("second snapshot_sent"), "{line}");
    });
}

/// An agent that shares no code with us.
struct ForeignAgent {
    process: Child,
    observations: BufReader<ChildStdout>,
}

impl ForeignAgent {
    fn start(socket: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/node_agent.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(socket).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("python3 is there");
        let observations = BufReader::new(process.stdout.take().unwrap());
        let mut agent = Self { process, observations };
        assert_eq!(agent.observes()["listening"], socket.to_str().unwrap());
        agent
    }

    fn observes(&mut self) -> Value {
        let mut line = String::new();
        self.observations.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn order(&mut self, line: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Gives an order that the proxy must carry out.
    fn succeeds(&mut self, line: &str) {
        self.order(line);
        assert_eq!(self.observes(), json!({ "ack": "" }), "{line}");
    }
}

impl Drop for ForeignAgent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

#[test]
fn an_agent_that_shares_no_code_with_us_is_obeyed() {
    inside("an_agent_that_shares_no_code_with_us_is_obeyed", || {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("foreign.sock");
        let mut agent = ForeignAgent::start(&socket);
        let mut bed = Bed::with(&["a"], |node| node.set("INPOD_UDS", socket.display()));
        let pods = ["client", "server", "other"];
        let process = std::process::id();
        let adds = pods.map(|pod| {
            let namespace = bed.place(Some("a"), pod).network.as_fd().as_raw_fd();
            bed.capture(pod);
            format!("add uid-{pod} {NAMESPACE} {pod} {pod} /proc/{process}/fd/{namespace}")
        });
        bed.apply(pods.map(|pod| bed.workload(pod)));
        assert_eq!(agent.observes(), json!({ "hello": 1 }));
        for add in &adds {
            agent.succeeds(add);
        }
        assert!(!bed.nodes["a"].is_ready());
        agent.succeeds("snapshot");
        bed.ready();
        let to = bed.pieces("server", 8080);
        let live = bed.connect("client", to.v4).unwrap();
        ping(&live).unwrap();
        // The proxy comes again by itself; what is kept goes on, what is not named leaves.
        agent.order("hang-up");
        assert_eq!(agent.observes(), json!({ "hello": 1 }));
        agent.succeeds("keep uid-client");
        agent.succeeds(&adds[1]);
        agent.succeeds("snapshot");
        ping(&live).unwrap();
        bed.until("the unnamed pod is not served", |bed| !is_served(bed, "other"));
        agent.succeeds("delete uid-server");
        assert!(!is_served(&bed, "server"));
        time_to_end(&live);
        agent.succeeds("delete uid-nobody");
    });
}
