//! Pods that come and go over ZDS in numbers: what a node proxy used for them is given back.
//!
//! `CORELANE_TEST_PODS=1000 cargo test -p dataplane --test node_churn` takes so many at a time.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::time::Instant;

use dataplane::mesh::sandbox::new_network_namespace;
use dataplane::net::NetworkNamespace;
use node_support::agent::AgentPod;
use node_support::traffic::{connect, ping};
use node_support::{Bed, PATIENCE, inside};
use xds::proto::workload::Workload;
use xds::proto::zds::WorkloadInfo;

const PODS: usize = 200;
/// Pods that also have traffic.
const BUSY: usize = 8;
/// Rounds before the first measurement: what is made on first use has been made by then.
const WARM_UP: usize = 1;
/// All of them.
const ROUNDS: usize = 3;
/// Descriptors that are no pod's: spare pipes, a connection of the moment to the authority or to the pages. One that a
/// pod left behind would be hundreds.
const DESCRIPTOR_SLACK: usize = 8;
/// Memory that the allocator may keep beyond what it had kept before, as a part of that.
const MEMORY_SLACK_PERCENT: usize = 15;

/// What a node proxy uses, and how many series of connections it shows.
type Use = (node_support::node::Usage, usize);

fn usage(bed: &Bed) -> Use {
    let node = &bed.nodes["a"];
    let metrics = node.metrics();
    let series = metrics.lines().filter(|line| line.starts_with("istio_tcp_") && line.contains("workload"));
    (node.usage(), series.count())
}

/// A pod that comes and goes: the same network each time, another name.
struct Visitor<'a> {
    name: String,
    network: &'a NetworkNamespace,
}

impl Visitor<'_> {
    fn agent_pod(&self) -> AgentPod {
        let info = WorkloadInfo {
            name: self.name.clone(),
            namespace: node_support::NAMESPACE.to_owned(),
            service_account: self.name.clone(),
        };
        AgentPod { uid: format!("uid-{}", self.name), info, network: Some(self.network.clone()) }
    }

    fn workload(&self, of: &Workload) -> Workload {
        let uid = format!("Kubernetes//Pod/{}/{}", node_support::NAMESPACE, self.name);
        let name = self.name.clone();
        let (workload_name, canonical_name, service_account) = (name.clone(), name.clone(), name.clone());
        Workload { uid, name, workload_name, canonical_name, service_account, ..of.clone() }
    }
}

/// One round: all pods come, some have traffic, all go.
fn round(bed: &Bed, number: usize, networks: &[NetworkNamespace]) {
    let visitors: Vec<_> = networks
        .iter()
        .enumerate()
        .map(|(index, network)| Visitor { name: format!("visitor-{number}-{index}"), network })
        .collect();
    let workloads = visitors.iter().enumerate().map(|(index, visitor)| {
        let template = if index < BUSY { bed.workload(&format!("busy-{index}")) } else { nowhere(bed) };
        visitor.workload(&template)
    });
    let workloads: Vec<_> = workloads.collect();
    bed.apply(workloads.clone());
    let agent = &bed.nodes["a"].agent;
    for visitor in &visitors {
        agent.add(visitor.agent_pod()).unwrap();
    }
    let server = bed.address("server", 8080);
    for index in 0..BUSY {
        let name = format!("busy-{index}");
        for to in server {
            bed.until("the visitor is served", |bed| {
                bed.connect(&name, to).is_ok_and(|socket| ping(&socket).is_ok())
            });
        }
        // And something towards it, from a client that stays.
        let to = bed.address(&name, 9090).v4;
        bed.until("the visitor serves", |bed| bed.connect("client", to).is_ok_and(|it| ping(&it).is_ok()));
    }
    // Every listener is there.
    for visitor in visitors.iter().skip(BUSY).step_by(50) {
        assert!(connect(visitor.network, ([127, 0, 0, 1], 15008).into()).is_ok());
    }
    for visitor in &visitors {
        agent.delete(&visitor.agent_pod().uid).unwrap();
    }
    bed.control.remove(workloads.iter().map(|workload| &*workload.uid));
    bed.settle();
}

/// A workload that nobody can reach.
fn nowhere(bed: &Bed) -> Workload {
    Workload { addresses: Vec::new(), ..bed.workload("busy-0") }
}

#[test]
fn pods_that_come_and_go_leave_nothing_behind() {
    inside("pods_that_come_and_go_leave_nothing_behind", || {
        let pods = std::env::var("CORELANE_TEST_PODS").map_or(PODS, |text| text.parse().unwrap());
        let mut bed = Bed::new(&["a", "b"]);
        bed.pod("a", "client");
        bed.pod("b", "server");
        for index in 0..BUSY {
            let name = format!("busy-{index}");
            bed.place(Some("a"), &name);
            bed.capture(&name);
            bed.pieces(&name, 9090);
        }
        for node in bed.nodes.values_mut() {
            node.until_ready(true);
        }
        bed.pieces("server", 8080);
        let mut networks: Vec<_> =
            (0..BUSY).map(|index| bed.network(&format!("busy-{index}")).clone()).collect();
        networks.extend((BUSY..pods).map(|_| with_loopback()));
        let started = Instant::now();
        for number in 0..WARM_UP {
            round(&bed, number, &networks);
        }
        let before = until_idle(&bed, None);
        for number in WARM_UP..ROUNDS {
            round(&bed, number, &networks);
        }
        let after = until_idle(&bed, Some(before));
        let cycles = pods * ROUNDS;
        println!("{cycles} pods came and went in {:?}: {before:?}, then {after:?}", started.elapsed());
        let allowed = before.0.resident_kib * (100 + MEMORY_SLACK_PERCENT) / 100;
        assert!(after.0.resident_kib <= allowed, "{before:?}, then {after:?}");
        let node = &bed.nodes["a"];
        assert_eq!(node.metric("workload_manager_active_proxy_count", &[]), 1);
        let (started, stopped) =
            ("workload_manager_proxies_started_total", "workload_manager_proxies_stopped_total");
        assert_eq!(node.metric(started, &[]), u64::try_from(cycles).unwrap() + 1);
        assert_eq!(node.metric(stopped, &[]), u64::try_from(cycles).unwrap());
        let certificates = node.config_dump()["certificates"].as_array().unwrap().len();
        assert!(certificates <= 2, "{certificates}");
    });
}

/// What is used once it is no more than `before`, where there was one, or stands still.
fn until_idle(bed: &Bed, before: Option<Use>) -> Use {
    let deadline = Instant::now() + PATIENCE;
    let mut last = usage(bed);
    loop {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = usage(bed);
        let counts = |(usage, series): Use| (usage.descriptors, series);
        let is_still = counts(now) == counts(last);
        let is_enough = before.is_none_or(|before| {
            now.0.descriptors <= before.0.descriptors + DESCRIPTOR_SLACK && now.1 <= before.1
        });
        if is_still && is_enough {
            return now;
        }
        assert!(Instant::now() < deadline, "{before:?}, then {now:?}");
        last = now;
    }
}

fn with_loopback() -> NetworkNamespace {
    use dataplane::capture::{Tool, tool};
    let network = new_network_namespace().unwrap();
    tool::run(Tool::Ip, &["-batch", "-"], "link set lo up\n", Some(&network)).unwrap();
    network
}
