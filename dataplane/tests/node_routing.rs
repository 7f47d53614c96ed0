//! Where whole nodes lead the connections of their pods: waypoints, blocks of addresses, localities, health, nodes' own
//! networks, and destinations that the control plane is asked for first.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::thread;

use node_support::hop::{Hop, Treatment};
use node_support::resources::{bytes_of, gateway_at, gateway_of_service, identity};
use node_support::{Bed, PATIENCE, PLAINTEXT, inside, traffic};
use xds::proto::workload::load_balancing::{HealthPolicy, Mode, Scope};
use xds::proto::workload::{
    LoadBalancing, Locality, NetworkAddress, NetworkMode, TunnelProtocol, WeightedWaypoint, WorkloadStatus,
};

/// Proxies with one worker each: what one connection shows of a change holds for all that follow.
fn bed(prepare: impl Fn(&mut node_support::node::Node)) -> Bed {
    let mut bed = Bed::with(&["a", "b"], |node| {
        node.set("ZTUNNEL_WORKER_THREADS", 1);
        prepare(node);
    });
    for (node, pod) in [("a", "client"), ("a", "neighbour"), ("b", "server")] {
        bed.pod(node, pod);
    }
    bed.plain_pod("plain");
    bed.ready();
    for pod in ["neighbour", "server", "plain"] {
        bed.echo(pod, 8080);
    }
    bed
}

/// A waypoint of another make in the pod outside the mesh, which passes everything on to that pod's own server.
fn waypoint(bed: &Bed) -> Hop {
    let credentials = bed.control.authority.credentials(&identity("plain"));
    let to = Treatment::PassOn(bed.address("plain", 8080).v4);
    Hop::start(bed.network("plain"), 15008, &credentials, to)
}

/// Who answers so many requests of the client.
fn answering(bed: &Bed, to: SocketAddr, requests: usize) -> BTreeSet<String> {
    let answers = (0..requests).map(|_| bed.request("client", to).unwrap());
    answers.map(|answer| answer.split(' ').next().unwrap().to_owned()).collect()
}

/// Waits until requests are answered by these only.
fn until_answering(bed: &Bed, to: SocketAddr, pods: &[&str]) {
    let expected: BTreeSet<_> = pods.iter().map(|pod| (*pod).to_owned()).collect();
    bed.until(&format!("{to} is answered by {expected:?}"), |bed| {
        bed.request("client", to).is_ok() && answering(bed, to, 16 * pods.len()) == expected
    });
}

fn block(ip: IpAddr, length: u32) -> NetworkAddress {
    NetworkAddress { network: String::new(), address: bytes_of(ip), length: Some(length) }
}

#[test]
fn waypoints_of_services_and_of_pods_are_told_what_was_dialled() {
    inside("waypoints_of_services_and_of_pods_are_told_what_was_dialled", || {
        let mut bed = bed(|_| {});
        let hop = waypoint(&bed);
        let web = bed.service("web", &["server"], 8080, false);
        bed.service("waypoint", &["plain"], 15008, true);
        bed.change_service("waypoint", |service| service.ports[0].service_port = 15008);
        bed.change("plain", |workload| {
            for ports in workload.services.values_mut() {
                ports.ports[0].service_port = 15008;
            }
        });
        bed.until_answer("client", web.v4, &bed.answer("server", bed.v4("client")));
        let tap = bed.tap();
        let near = bed.v4("plain");
        for waypoint in [gateway_of_service("waypoint", 15008), gateway_at("", near, 15008)] {
            bed.change_service("web", |service| service.waypoint = Some(waypoint.clone()));
            for vip in web {
                // The waypoint speaks for whom it passes on.
                bed.until_answer("client", vip, &bed.answer("plain", near));
                let asked = hop.asked();
                assert_eq!((asked.authority, asked.client.uri()), (vip.to_string(), &*identity("client")));
            }
            bed.change_service("web", |service| service.waypoint = None);
            bed.until_answer("client", web.v4, &bed.answer("server", bed.v4("client")));
        }

        // Shares of two ways; one is a pod in the mesh, whose proxy hands it what is meant for the service.
        traffic::serve(bed.network("neighbour"), 80, |socket, peer| {
            traffic::answer_once("neighbour", socket, peer);
        });
        let weigh = |weights: [u32; 2], expected: &[&str]| {
            let ways = [near, bed.v4("neighbour")].into_iter().zip(weights);
            let weighted = ways.map(|(ip, weight)| {
                let destination = Some(gateway_at("", ip, 15008));
                WeightedWaypoint { destination, weight }
            });
            bed.change_service("web", |service| service.weighted_waypoints = weighted.collect());
            until_answering(&bed, web.v4, expected);
        };
        weigh([1, 0], &["plain"]);
        weigh([0, 1], &["neighbour"]);
        weigh([1, 1], &["plain", "neighbour"]);
        bed.change_service("web", |service| service.weighted_waypoints = Vec::new());
        until_answering(&bed, web.v4, &["server"]);
        assert_eq!(tap.count(PLAINTEXT), 0);

        // A pod's own waypoint is for what is addressed to the pod.
        while hop.try_asked().is_some() {}
        bed.change("server", |workload| workload.waypoint = Some(gateway_of_service("waypoint", 15008)));
        for to in bed.address("server", 8080) {
            bed.until_answer("client", to, &bed.answer("plain", near));
            assert_eq!(hop.asked().authority, to.to_string());
        }
        assert_eq!(answering(&bed, web.v4, 4), ["server".to_owned()].into());
        // One that nobody knows lets nothing past.
        bed.change("server", |workload| workload.waypoint = Some(gateway_of_service("nobody", 15008)));
        bed.until_refused("client", bed.address("server", 8080).v6);
    });
}

#[test]
fn endpoints_are_chosen_by_health_and_locality() {
    inside("endpoints_are_chosen_by_health_and_locality", || {
        let mut bed = bed(|_| {});
        let web = bed.service("web", &["neighbour", "server"], 8080, false).v6;
        until_answering(&bed, web, &["neighbour", "server"]);
        let health = |bed: &Bed, pod: &str, status: WorkloadStatus| {
            bed.change(pod, |workload| workload.status = status.into());
        };
        health(&bed, "neighbour", WorkloadStatus::Unhealthy);
        until_answering(&bed, web, &["server"]);
        let balance = |bed: &Bed, mode: Mode, policy: HealthPolicy| {
            bed.change_service("web", |service| {
                service.load_balancing = Some(LoadBalancing {
                    routing_preference: vec![Scope::Region.into(), Scope::Zone.into()],
                    mode: mode.into(),
                    health_policy: policy.into(),
                });
            });
        };
        for (pod, zone) in [("client", "1"), ("neighbour", "1"), ("server", "2")] {
            let (region, zone) = ("r".to_owned(), zone.to_owned());
            let locality = Locality { region, zone, ..Locality::default() };
            bed.change(pod, |workload| workload.locality = Some(locality));
        }
        balance(&bed, Mode::Failover, HealthPolicy::AllowAll);
        until_answering(&bed, web, &["neighbour"]);
        balance(&bed, Mode::Failover, HealthPolicy::OnlyHealthy);
        until_answering(&bed, web, &["server"]);
        balance(&bed, Mode::Strict, HealthPolicy::OnlyHealthy);
        bed.until_refused("client", web);
        bed.nodes["a"].until_logged(&["no healthy upstream", &format!("dst.addr={web}")]);
        health(&bed, "neighbour", WorkloadStatus::Healthy);
        until_answering(&bed, web, &["neighbour"]);
        // Its zone is lost.
        bed.change("client", |workload| workload.locality = None);
        bed.until_refused("client", web);
        balance(&bed, Mode::Failover, HealthPolicy::OnlyHealthy);
        until_answering(&bed, web, &["neighbour", "server"]);
    });
}

#[test]
fn blocks_of_addresses_services_without_balancing_and_networks_of_nodes() {
    inside("blocks_of_addresses_services_without_balancing_and_networks_of_nodes", || {
        let mut bed = bed(|_| {});
        let web = bed.service("web", &["server"], 8080, false);
        bed.change_service("web", |service| {
            service.addresses =
                vec![block([10, 97, 0, 0].into(), 16), block("fd00:97::".parse().unwrap(), 64)];
        });
        for (to, from) in ["10.97.200.1:80", "[fd00:97::77]:80"].into_iter().zip(bed.get("client").ips) {
            bed.until_answer("client", to.parse().unwrap(), &bed.answer("server", from));
        }
        assert_ne!(web.v4.ip(), IpAddr::from([10, 97, 200, 1]));

        // Without balancing: where the client asked, at the target port, in plain text.
        bed.change_service("web", |service| {
            let ips = bed.get("plain").ips;
            service.addresses = vec![block(ips[0], 30), block(ips[1], 126)];
            service.load_balancing =
                Some(LoadBalancing { mode: Mode::Passthrough.into(), ..LoadBalancing::default() });
        });
        for (to, from) in bed.address("plain", 80).into_iter().zip(bed.get("client").ips) {
            bed.until_answer("client", to, &bed.answer("plain", from));
        }

        // A pod in its node's network is an endpoint, and never found by the address that it shares with the node.
        let ips: [IpAddr; 2] = bed.nodes["b"].ips.clone().try_into().unwrap();
        traffic::serve(&bed.nodes["b"].network, 9090, |socket, peer| {
            traffic::answer_once("host", socket, peer);
        });
        bed.place(Some("b"), "host");
        bed.change("host", |workload| {
            workload.addresses = ips.map(bytes_of).to_vec();
            workload.network_mode = NetworkMode::HostNetwork.into();
        });
        let host = bed.service("host", &["host"], 9090, false);
        for (ip, from) in ips.into_iter().zip(bed.get("client").ips) {
            // As one in the mesh it would be dialled through a tunnel, which nobody takes there.
            let answer = bed.request("client", SocketAddr::new(ip, 9090)).unwrap();
            assert_eq!(answer, format!("host {from} {}", String::from_utf8_lossy(PLAINTEXT)));
        }
        bed.until_refused("client", host.v4);
        bed.change("host", |workload| workload.tunnel_protocol = TunnelProtocol::None.into());
        for (vip, from) in host.into_iter().zip(bed.get("client").ips) {
            bed.until_answer("client", vip, &bed.answer("host", from));
        }
    });
}

#[test]
fn on_demand_a_first_connection_waits_until_the_control_plane_has_said_where_it_goes() {
    inside("on_demand_a_first_connection_waits_until_the_control_plane_has_said_where_it_goes", || {
        let mut bed = bed(|node| {
            node.set("XDS_ON_DEMAND", true);
            node.set("ISTIO_META_DNS_CAPTURE", false);
        });
        let web = bed.service("web", &["server"], 8080, false);
        let names = |bed: &Bed, kind: &str| -> BTreeSet<String> {
            let dump = bed.nodes["a"].config_dump();
            dump[kind].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
        };
        // What runs on the node comes unasked, and nothing else.
        assert_eq!(names(&bed, "workloads"), ["client", "neighbour"].map(str::to_owned).into());
        assert!(names(&bed, "services").is_empty());

        let tap = bed.tap();
        bed.control.set_silent(true);
        let (tell, answers) = mpsc::channel();
        let plain = bed.address("plain", 8080);
        let first: Vec<_> = [web.v4, web.v6, plain.v4].map(|to| (to, bed.network("client").clone())).into();
        for (to, network) in first {
            let tell = tell.clone();
            thread::spawn(move || {
                let answer = traffic::connect(&network, to).and_then(|it| traffic::exchange(&it, PLAINTEXT));
                tell.send((to, answer.map(|it| String::from_utf8(it).unwrap()))).unwrap();
            });
        }
        for to in [web.v4, web.v6, plain.v4] {
            let key = format!("/{}", to.ip());
            bed.until(&format!("{key} is asked for"), |bed| bed.control.asked().contains(&key));
        }
        assert!(answers.try_recv().is_err(), "all wait");
        assert_eq!(tap.count(PLAINTEXT), 0);
        bed.control.set_silent(false);
        for _ in 0..3 {
            let (to, answer) = answers.recv_timeout(PATIENCE).unwrap();
            let (pod, from) = if to == plain.v4 { ("plain", "client") } else { ("server", "client") };
            let from = if to.is_ipv4() { bed.v4(from) } else { bed.v6(from) };
            assert_eq!(answer.unwrap(), bed.answer(pod, from));
        }
        assert!(names(&bed, "workloads").contains("server"));
        assert_eq!(names(&bed, "services"), ["web".to_owned()].into());

        // What nobody knows is passed through once that has been said, and what is known is not asked for again.
        bed.place(None, "stranger");
        let stranger = bed.echo("stranger", 8080);
        for _ in 0..2 {
            assert!(bed.request("client", stranger.v4).is_ok());
            assert!(bed.request("client", web.v4).is_ok());
        }
        let asked = bed.control.asked();
        for ip in [stranger.v4.ip(), web.v4.ip()] {
            assert_eq!(asked.iter().filter(|it| **it == format!("/{ip}")).count(), 1, "{asked:?}");
        }
        // After the control plane was away, questions go on.
        bed.control.halt();
        bed.control.resume();
        bed.settle();
        let late = bed.service("late", &["neighbour"], 8080, false);
        assert_eq!(bed.request("client", late.v4).unwrap(), bed.answer("neighbour", bed.v4("client")));
    });
}
