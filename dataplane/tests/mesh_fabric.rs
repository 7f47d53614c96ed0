//! The network between pods: reachability, Services for pods outside the mesh, servers in pods, and that the network
//! around the sandbox stays as it was.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod sandbox_support;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dataplane::mesh::client::PodConnection;
use dataplane::mesh::fabric::{Fabric, FabricError};
use dataplane::mesh::pattern::Pattern;
use dataplane::mesh::service_proxy::VirtualPort;
use dataplane::mesh::workload::{Checksum, Echo, PodLabel, Workloads};
use http::{Method, StatusCode};

const SERVICE: &str = "10.96.0.1:80";

struct World {
    fabric: Fabric,
    workloads: Workloads,
    runtime: tokio::runtime::Runtime,
}

fn ips(index: u8) -> Vec<IpAddr> {
    vec![IpAddr::from([10, 244, 0, index]), format!("fd00::{index}").parse().unwrap()]
}

fn uid(index: u8) -> Arc<str> {
    format!("pod-{index}").into()
}

impl World {
    /// Pods 1 to `pods`, each with a server on port 8080.
    fn new(pods: u8) -> Self {
        let mut world = Self {
            fabric: Fabric::new().unwrap(),
            workloads: Workloads::start().unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        };
        for index in 1..=pods {
            world.add(index);
        }
        world
    }

    fn add(&mut self, index: u8) {
        let namespace = self.fabric.add_pod(&uid(index), &ips(index)).unwrap().namespace.clone();
        let label = PodLabel { namespace: "test".into(), pod: uid(index), node: "node".into() };
        self.workloads.serve(&uid(index), label, &namespace, &[8080]).unwrap();
    }

    fn connect(&self, from: u8, to: SocketAddr) -> Result<PodConnection, String> {
        let pod = self.fabric.pod(&uid(from)).unwrap();
        self.runtime.block_on(PodConnection::open(&pod.namespace, to, "test")).map_err(|e| e.to_string())
    }

    fn echo(&self, connection: &mut PodConnection, path: &str) -> Echo {
        let answer =
            self.runtime.block_on(connection.request(Method::GET, path, &[("x-test", "a")])).unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        serde_json::from_slice(&answer.body).unwrap()
    }
}

#[test]
fn pods_reach_each_other_by_both_families_under_their_own_address() {
    sandbox_support::inside("pods_reach_each_other_by_both_families_under_their_own_address", || {
        let world = World::new(3);
        for from in 1..=3 {
            for to in 1..=3 {
                for (mine, ip) in ips(from).into_iter().zip(ips(to)) {
                    let mut connection = world.connect(from, SocketAddr::new(ip, 8080)).unwrap();
                    let echo = world.echo(&mut connection, "/v1?q=1");
                    assert_eq!(echo.label.pod, uid(to));
                    assert_eq!(echo.remote, SocketAddr::new(mine, connection.local().port()));
                    assert_eq!((echo.method.as_str(), echo.path.as_str()), ("GET", "/v1?q=1"));
                    assert_eq!(echo.headers["x-test"], "a");
                }
            }
        }
    });
}

#[test]
fn a_service_address_leads_to_its_endpoints_even_to_oneself() {
    sandbox_support::inside("a_service_address_leads_to_its_endpoints_even_to_oneself", || {
        let mut world = World::new(3);
        let service: SocketAddr = SERVICE.parse().unwrap();
        let endpoint = |index: u8| SocketAddr::new(ips(index)[0], 8080);
        let lead_to = |world: &mut World, endpoints: Vec<SocketAddr>| {
            world.fabric.set_virtual_ports(vec![VirtualPort { address: service, endpoints }]).unwrap();
        };
        lead_to(&mut world, vec![endpoint(2)]);
        let mut connection = world.connect(1, service).unwrap();
        assert_eq!(world.echo(&mut connection, "/").label.pod, uid(2));
        let mut to_itself = world.connect(2, service).unwrap();
        assert_eq!(world.echo(&mut to_itself, "/").label.pod, uid(2));
        lead_to(&mut world, vec![endpoint(3)]);
        let mut connection = world.connect(1, service).unwrap();
        assert_eq!(world.echo(&mut connection, "/").label.pod, uid(3));
        lead_to(&mut world, Vec::new());
        let refusal = world.connect(1, service).unwrap_err();
        assert!(refusal.contains("refused"), "{refusal}");
    });
}

#[test]
fn bulk_and_many_requests_keep_every_byte() {
    sandbox_support::inside("bulk_and_many_requests_keep_every_byte", || {
        let world = World::new(2);
        let to = SocketAddr::new(ips(2)[0], 8080);
        let mut connection = world.connect(1, to).unwrap();
        let length = 3_000_001;
        let received = world.runtime.block_on(connection.download("/v1/bytes/3000001")).unwrap();
        assert_eq!((received.status, received.bytes), (StatusCode::OK, length));
        assert_eq!(received.sha256, Pattern::new(length, length).checksum());
        let sent = Pattern::new(9, length);
        let answer = world.runtime.block_on(connection.upload("/v1/checksum", sent.clone())).unwrap();
        let checksum: Checksum = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((checksum.bytes, checksum.sha256), (length, sent.checksum()));
        for _ in 0..100 {
            assert_eq!(world.echo(&mut connection, "/").port, 8080);
        }
    });
}

#[test]
fn pods_come_go_and_change_without_leaving_anything() {
    sandbox_support::inside("pods_come_go_and_change_without_leaving_anything", || {
        let mut world = World::new(2);
        let taken = world.fabric.add_pod(&uid(9), &ips(1)).unwrap_err();
        assert!(matches!(taken, FabricError::AddressTaken { .. }), "{taken}");
        assert!(matches!(world.fabric.add_pod(&uid(9), &[]).unwrap_err(), FabricError::NoAddress(_)));
        world.workloads.stop(&uid(2)).unwrap();
        world.fabric.remove_pod(&uid(2)).unwrap();
        world.fabric.remove_pod(&uid(2)).unwrap();
        // The address is free again, also for another pod.
        world.fabric.add_pod(&uid(7), &ips(2)).unwrap();
        world.fabric.remove_pod(&uid(7)).unwrap();
        world.add(2);
        let mut connection = world.connect(1, SocketAddr::new(ips(2)[0], 8080)).unwrap();
        assert_eq!(world.echo(&mut connection, "/").label.pod, uid(2));
        // A pod whose address changes is reached under the new one only.
        world.workloads.stop(&uid(2)).unwrap();
        let namespace = world.fabric.add_pod(&uid(2), &ips(5)).unwrap().namespace.clone();
        let label = PodLabel { namespace: "test".into(), pod: uid(2), node: "node".into() };
        world.workloads.serve(&uid(2), label, &namespace, &[8080]).unwrap();
        let mut connection = world.connect(1, SocketAddr::new(ips(5)[0], 8080)).unwrap();
        assert_eq!(world.echo(&mut connection, "/").label.pod, uid(2));
        let links = dataplane::capture::tool::run(
            dataplane::capture::Tool::Ip,
            &["-o", "link", "show", "type", "veth"],
            "",
            Some(world.fabric.router()),
        );
        assert_eq!(links.unwrap().lines().count(), 2);
    });
}

#[test]
fn the_network_around_is_not_touched() {
    let state = || {
        ["/proc/net/dev", "/proc/net/route", "/proc/net/if_inet6"].map(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            // Counters move; names and routes must not.
            text.lines().map(|l| l.split_whitespace().next().unwrap_or("").to_owned()).collect::<Vec<_>>()
        })
    };
    let before = state();
    sandbox_support::inside("the_network_around_is_not_touched", || {
        let world = World::new(2);
        world.connect(1, SocketAddr::new(ips(2)[0], 8080)).unwrap();
    });
    assert_eq!(state(), before);
}
