//! A control plane that restarts, cuts off, and sends garbage, under traffic: no request is lost, and the nodes hold what
//! it says soon after.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use node_support::load::Load;
use node_support::resources::{bytes_of, policy, principal};
use node_support::{Bed, inside};
use prost_types::Any;
use xds::proto::discovery::{DeltaDiscoveryResponse, Resource};
use xds::proto::security::Action;
use xds::proto::workload::{Address, Workload, address};
use xds::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

/// The time in which the nodes must hold what a control plane says that is there again.
const CONVERGED: Duration = Duration::from_secs(5);
const RECONNECTS: usize = 100;

fn bed() -> Bed {
    let mut bed = Bed::new(&["a", "b"]);
    bed.pod("a", "client");
    bed.pod("b", "server");
    bed.ready();
    bed
}

/// Load over the pod's addresses and a service's.
fn load(bed: &mut Bed) -> Load {
    let pod = bed.pieces("server", 8080);
    let service = bed.service("web", &["server"], 8080, false);
    bed.until("the service leads there", |bed| {
        service.into_iter().all(|to| {
            bed.connect("client", to).is_ok_and(|socket| node_support::traffic::ping(&socket).is_ok())
        })
    });
    let load = Load::start(bed, "client", pod.into_iter().chain(service));
    load.more(100);
    load
}

/// The names of the policies that a node holds.
fn policies(bed: &Bed, node: &str) -> BTreeSet<String> {
    let dump = bed.nodes[node].config_dump();
    let names = dump["policies"].as_array().unwrap().iter();
    names.map(|policy| policy["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn no_request_is_lost_over_a_hundred_reconnects_and_the_state_converges() {
    inside("no_request_is_lost_over_a_hundred_reconnects_and_the_state_converges", || {
        let mut bed = bed();
        let load = load(&mut bed);
        let mut slowest = Duration::ZERO;
        for round in 0..RECONNECTS {
            let opened = bed.control.streams_opened();
            // A policy of each round replaces that of the round before, while nobody is connected.
            let change = |bed: &Bed| {
                let name = format!("round-{round}");
                bed.control.put([policy(&name, Action::Allow, &[&principal("client")]).into()]);
                if round > 0 {
                    bed.control.remove([&*format!("app/round-{}", round - 1)]);
                }
            };
            let back = if round % 10 == 9 {
                bed.control.halt();
                change(&bed);
                bed.control.resume();
                Instant::now()
            } else {
                bed.control.cut_streams();
                change(&bed);
                Instant::now()
            };
            bed.until("both nodes are back", |bed| bed.control.streams_opened() >= opened + 2);
            bed.settle();
            slowest = slowest.max(back.elapsed());
            load.more(4);
        }
        assert!(slowest < CONVERGED, "{slowest:?}");
        let last = BTreeSet::from([format!("round-{}", RECONNECTS - 1)]);
        for node in ["a", "b"] {
            assert_eq!(policies(&bed, node), last);
            assert!(bed.nodes[node].is_ready());
        }
        assert!(load.stop() > RECONNECTS);
        // What the last policy says is in force.
        bed.apply([policy(&format!("round-{}", RECONNECTS - 1), Action::Allow, &[&principal("nobody")])]);
        bed.until("the client is kept out", |bed| {
            let socket = bed.connect("client", bed.address("server", 8080).v4);
            socket.is_err() || node_support::traffic::ping(&socket.unwrap()).is_err()
        });
    });
}

fn response(type_url: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { type_url: type_url.to_owned(), resources, ..DeltaDiscoveryResponse::default() }
}

fn resource(name: &str, type_url: &str, value: Vec<u8>) -> Resource {
    let resource = Some(Any { type_url: type_url.to_owned(), value });
    Resource { name: name.to_owned(), version: "1".to_owned(), resource, ..Resource::default() }
}

#[test]
fn garbage_from_the_control_plane_is_refused_and_what_was_good_stays() {
    inside("garbage_from_the_control_plane_is_refused_and_what_was_good_stays", || {
        let mut bed = bed();
        let load = load(&mut bed);
        bed.apply([policy("good", Action::Allow, &[&principal("client")])]);
        let server = bed.workload("server");
        let misshapen = Workload { addresses: vec![vec![1, 2, 3]], ..server.clone() };
        let address = |workload| Address { r#type: Some(address::Type::Workload(workload)) };
        let encode = |workload| prost::Message::encode_to_vec(&address(workload));
        let refused = [
            resource("app/good", AUTHORIZATION_TYPE, vec![0xff; 40]),
            resource(&server.uid, ADDRESS_TYPE, vec![0xff; 40]),
            resource(&server.uid, ADDRESS_TYPE, encode(misshapen)),
            resource(&server.uid, ADDRESS_TYPE, Vec::new()),
        ];
        for garbage in refused {
            let type_url = garbage.resource.as_ref().unwrap().type_url.clone();
            bed.control.inject(response(&type_url, vec![garbage.clone()]));
            bed.settle();
            let refusals = bed.control.refusals();
            assert_eq!(refusals.len(), 2, "each node refuses {garbage:?}: {refusals:?}");
            assert!(refusals.iter().all(|it| it.contains(&garbage.name)), "{refusals:?}");
        }
        // Neither is it refused what no client knows, nor does it do harm.
        bed.control.inject(response("type.googleapis.com/of.the.Future", Vec::new()));
        let removed_resources = vec!["nobody".to_owned(), String::new(), "a/b/c/d".to_owned()];
        let removal = DeltaDiscoveryResponse { removed_resources, ..response(ADDRESS_TYPE, Vec::new()) };
        bed.control.inject(removal);
        bed.settle();
        assert!(bed.control.refusals().is_empty());
        // A server that speaks no protocol at all.
        let nonsense = bed.control.talk_nonsense();
        bed.until("both nodes have met it often", |_| nonsense.answered() >= 8);
        drop(nonsense);
        load.more(20);
        bed.control.put([policy("after", Action::Allow, &[&principal("client")]).into()]);
        bed.control.resume();
        bed.settle();
        for node in ["a", "b"] {
            let expected: BTreeSet<_> = ["after", "good"].map(str::to_owned).into();
            bed.until("the newest policy is held", |bed| policies(bed, node) == expected);
            let dump = bed.nodes[node].config_dump();
            let held =
                dump["workloads"].as_array().unwrap().iter().find(|it| it["name"] == "server").unwrap();
            let ips: Vec<_> =
                held["workloadIps"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
            assert_eq!(ips, [bed.v4("server").to_string(), bed.v6("server").to_string()]);
        }
        load.stop();
        assert_eq!(server.addresses[0], bytes_of(bed.v4("server")));
    });
}

#[test]
fn a_node_starts_without_its_control_plane_and_serves_once_it_comes() {
    inside("a_node_starts_without_its_control_plane_and_serves_once_it_comes", || {
        let mut bed = bed();
        let server = bed.echo("server", 8080);
        bed.control.halt();
        bed.at("a").kill();
        bed.at("a").start();
        bed.at("a").until_logged(&["no connection to the control plane"]);
        assert!(!bed.nodes["a"].is_ready());
        // Redirected, and nobody listens: refused rather than passed on in plain text.
        let tap = bed.tap();
        assert!(bed.request("client", server.v4).is_err());
        assert_eq!(tap.count(node_support::PLAINTEXT), 0);
        bed.control.resume();
        bed.at("a").until_ready(true);
        assert_eq!(bed.until_answered("client", server.v6), bed.answer("server", bed.v6("client")));
    });
}
