//! Names that pods ask for, on sockets: the C library and a client of the test ask in captured pods, a name server of
//! the test knows what the mesh does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dataplane::access_log::{CloseCause, Direction};
use dataplane::capture::{Tool, tool};
use dataplane::net::NetworkNamespace;
use dataplane::session::{DNS_PORT, DnsOptions, NodeOptions};
use dataplane::worker::DriverChoice;
use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, TXT};
use hickory_proto::rr::{RData, RecordType};
use session_support::names::{
    Asked, NameServer, Reply, addresses, ask_tcp, ask_udp, getent, question, resolved,
};
use session_support::{Bed, PATIENCE, Setup, exchange, inside, pods};

/// The name server that pods are told of. Nobody has these addresses: only the redirection answers.
const CLUSTER_DNS: &str = "10.96.0.10";
const CLUSTER_DNS_V6: &str = "fd00:10::10";

/// The pod outside the mesh, in which the node's name server runs.
const NODE_DNS: &str = "nameserver 10.244.1.9\noptions timeout:1 attempts:1\n";

fn yaml() -> String {
    pods()
        + "---
apiVersion: v1
kind: Service
metadata: { name: echo, namespace: app }
spec:
  selector: { app: server }
  clusterIPs: [10.96.0.1, \"fd00:10::1\"]
  clusterIP: 10.96.0.1
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  ports: [{ port: 80, targetPort: 8080 }]
---
apiVersion: v1
kind: Service
metadata: { name: headless, namespace: app }
spec:
  selector: { app: other }
  clusterIP: None
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  ports: [{ port: 80, targetPort: 8080 }]
"
}

fn setup(driver: DriverChoice, resolv_conf: &str) -> Setup {
    let options = NodeOptions { dns: Some(DnsOptions::default()), ..NodeOptions::default() };
    Setup { driver, options, resolv_conf: resolv_conf.to_owned(), ..Setup::default() }
}

fn bed() -> Bed {
    Bed::with(&yaml(), &setup(DriverChoice::Auto, NODE_DNS))
}

/// What the node's name server knows.
fn outside(asked: &Asked) -> Reply {
    match (&*asked.name, asked.kind) {
        ("www.example.org.", RecordType::A) => Reply::Records(vec![RData::A(A::new(192, 0, 2, 1))]),
        ("www.example.org.", RecordType::AAAA) => {
            Reply::Records(vec![RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))])
        }
        ("www.example.org.", RecordType::TXT) => {
            Reply::Records(vec![RData::TXT(TXT::new(vec!["a text".to_owned()]))])
        }
        ("big.example.org.", RecordType::A) => {
            Reply::Records((0..100).map(|last| RData::A(A::new(192, 0, 2, last))).collect())
        }
        ("broken.example.org.", _) => Reply::Code(ResponseCode::ServFail),
        ("silent.example.org.", _) => Reply::Silence,
        ("forged.example.org.", _) => Reply::Forged,
        ("www.example.org.", _) => Reply::Records(Vec::new()),
        _ => Reply::Code(ResponseCode::NXDomain),
    }
}

fn server(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 53)
}

fn resolv_conf(address: &str, more: &str) -> String {
    format!(
        "nameserver {address}\nsearch app.svc.cluster.local svc.cluster.local cluster.local\n\
         options ndots:5 timeout:10 attempts:1{more}\n"
    )
}

#[test]
fn the_c_library_resolves_services_in_a_captured_pod() {
    inside("the_c_library_resolves_services_in_a_captured_pod", || {
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let bed = Bed::with(&yaml(), &setup(driver, NODE_DNS));
            let pod = bed.network("client");
            for (address, more) in [
                (CLUSTER_DNS, ""),
                (CLUSTER_DNS_V6, ""),
                (CLUSTER_DNS, " use-vc"),
                (CLUSTER_DNS_V6, " use-vc"),
            ] {
                let conf = resolv_conf(address, more);
                for name in ["echo", "echo.app", "echo.app.svc", "echo.app.svc.cluster.local"] {
                    assert_eq!(
                        resolved(&getent(pod, &conf, "ahostsv4", name)),
                        ["10.96.0.1"],
                        "{name}{more}"
                    );
                }
                assert_eq!(resolved(&getent(pod, &conf, "ahosts", "echo")), ["10.96.0.1", "fd00:10::1"]);
                let endpoints = resolved(&getent(pod, &conf, "ahosts", "headless"));
                assert_eq!(endpoints, ["10.244.1.3", "fd00::1:3"]);
            }
            let counted = |protocol| bed.metric("istio_dns_requests_total", &[protocol]);
            assert!(counted("request_protocol=\"udp\"") >= 14 && counted("request_protocol=\"tcp\"") >= 14);
            assert_eq!(bed.metric("istio_dns_upstream_requests_total", &[]), 0);
        }
    });
}

#[test]
fn other_names_are_asked_of_the_nodes_servers_from_the_pods_network() {
    inside("other_names_are_asked_of_the_nodes_servers_from_the_pods_network", || {
        let bed = bed();
        let upstream = NameServer::start(bed.network("plain"), outside);
        let pod = bed.network("client");
        let conf = resolv_conf(CLUSTER_DNS, "");
        let found = resolved(&getent(pod, &conf, "ahosts", "www.example.org."));
        assert_eq!(found, ["192.0.2.1", "2001:db8::1"]);
        assert!(upstream.asked().iter().all(|asked| asked.from == bed.ip("client") && !asked.tcp));
        // The C library's search goes through NXDOMAIN to the end.
        assert_eq!(getent(pod, &conf, "ahosts", "missing").status.code(), Some(2));
        let missing = ask_udp(pod, server(CLUSTER_DNS), &question("missing.example.org.", RecordType::A, 9));
        assert_eq!((missing.metadata.response_code, missing.metadata.id), (ResponseCode::NXDomain, 9));
        let text = ask_udp(pod, server(CLUSTER_DNS_V6), &question("www.example.org.", RecordType::TXT, 10));
        assert_eq!((text.answers.len(), text.metadata.id), (1, 10));
        // A name of the mesh is asked of nobody.
        ask_udp(pod, server(CLUSTER_DNS), &question("echo.app.svc.cluster.local.", RecordType::A, 11));
        assert!(upstream.asked().iter().all(|asked| !asked.name.starts_with("echo")));
        let forwarded = upstream.asked().len() as u64;
        assert_eq!(bed.metric("istio_dns_upstream_requests_total", &[]), forwarded);
        assert_eq!(bed.metric("istio_dns_upstream_failures_total", &[]), 0);
        assert_eq!(bed.metric("istio_dns_upstream_request_duration_seconds_count", &[]), forwarded);
    });
}

#[test]
fn every_query_upstream_has_an_id_of_its_own() {
    inside("every_query_upstream_has_an_id_of_its_own", || {
        let bed = bed();
        let upstream = NameServer::start(bed.network("plain"), outside);
        for _ in 0..8 {
            ask_udp(
                bed.network("client"),
                server(CLUSTER_DNS),
                &question("www.example.org.", RecordType::A, 7),
            );
        }
        let ids: std::collections::BTreeSet<_> = upstream.asked().iter().map(|asked| asked.id).collect();
        assert!(ids.len() > 4, "{ids:?}");
    });
}

#[test]
fn a_long_answer_is_fetched_over_tcp_and_cut_for_who_takes_no_more() {
    inside("a_long_answer_is_fetched_over_tcp_and_cut_for_who_takes_no_more", || {
        let bed = bed();
        let upstream = NameServer::start(bed.network("plain"), outside);
        let pod = bed.network("client");
        let query = question("big.example.org.", RecordType::A, 5);
        let cut = ask_udp(pod, server(CLUSTER_DNS), &query);
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let socket = bed.connect("client", server(CLUSTER_DNS)).unwrap();
        let whole = ask_tcp(&socket, std::slice::from_ref(&query)).remove(0);
        assert!(!whole.metadata.truncation);
        assert_eq!((whole.answers.len(), whole.metadata.id), (100, 5));
        assert!(upstream.asked().iter().any(|asked| asked.tcp));
        let mut large = query;
        let mut edns = Edns::new();
        edns.set_max_payload(4_096);
        large.set_edns(edns);
        assert_eq!(ask_udp(pod, server(CLUSTER_DNS), &large).answers.len(), 100);
        // The C library finds its own way.
        let found = resolved(&getent(pod, &resolv_conf(CLUSTER_DNS, ""), "ahostsv4", "big.example.org."));
        assert_eq!(found.len(), 100);
    });
}

#[test]
fn a_server_that_fails_is_followed_by_the_next() {
    inside("a_server_that_fails_is_followed_by_the_next", || {
        // Nobody has the first address; at the second no server runs; the third knows.
        let servers = "nameserver 10.244.1.77\nnameserver 10.244.1.3\nnameserver fd00::1:9\noptions timeout:1 attempts:1\n";
        let bed = Bed::with(&yaml(), &setup(DriverChoice::Auto, servers));
        let upstream = NameServer::start(bed.network("plain"), outside);
        let pod = bed.network("client");
        let answer = ask_udp(pod, server(CLUSTER_DNS), &question("www.example.org.", RecordType::A, 1));
        assert_eq!(addresses(&answer), ["192.0.2.1"]);
        assert!(upstream.asked()[0].from.is_ipv6());
        for name in ["broken.example.org.", "silent.example.org.", "forged.example.org."] {
            let answer = ask_udp(pod, server(CLUSTER_DNS), &question(name, RecordType::A, 2));
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "{name}");
        }
        assert_eq!(bed.metric("istio_dns_upstream_failures_total", &[]), 3);
        // What the mesh knows needs no server.
        let answer = ask_udp(pod, server(CLUSTER_DNS), &question("echo.", RecordType::A, 3));
        assert_eq!(addresses(&answer), ["10.96.0.1"]);
    });
}

#[test]
fn without_any_server_other_names_fail_at_once() {
    inside("without_any_server_other_names_fail_at_once", || {
        let bed = Bed::with(&yaml(), &setup(DriverChoice::Auto, ""));
        let answer = ask_udp(
            bed.network("client"),
            server(CLUSTER_DNS),
            &question("www.example.org.", RecordType::A, 1),
        );
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    });
}

#[test]
fn many_queries_of_one_connection_are_answered_in_order() {
    inside("many_queries_of_one_connection_are_answered_in_order", || {
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let bed = Bed::with(&yaml(), &setup(driver, NODE_DNS));
            let _upstream = NameServer::start(bed.network("plain"), outside);
            let socket = bed.connect("client", server(CLUSTER_DNS_V6)).unwrap();
            let names = ["echo.", "www.example.org.", "headless."];
            let queries: Vec<Message> = (0..90_u16)
                .map(|id| question(names[usize::from(id) % names.len()], RecordType::A, id))
                .collect();
            let expected = ["10.96.0.1", "192.0.2.1", "10.244.1.3"];
            for (id, answer) in ask_tcp(&socket, &queries).iter().enumerate() {
                assert_eq!(usize::from(answer.metadata.id), id);
                assert_eq!(addresses(answer), [expected[id % expected.len()]]);
            }
        }
    });
}

#[test]
fn what_is_no_query_gets_no_hold_of_the_server() {
    inside("what_is_no_query_gets_no_hold_of_the_server", || {
        let bed = bed();
        let pod = bed.network("client");
        // An answer is not answered; a query behind it is.
        let mut answer = question("echo.", RecordType::A, 1);
        answer.metadata.message_type = hickory_proto::op::MessageType::Response;
        let socket = pod.within(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.connect(server(CLUSTER_DNS)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for bytes in [&answer.to_vec().unwrap()[..], b"", b"x", &[0; 5_000]] {
            socket.send(bytes).unwrap();
        }
        socket.send(&question("echo.", RecordType::A, 2).to_vec().unwrap()).unwrap();
        let mut buffer = [0; 512];
        let count = socket.recv(&mut buffer).unwrap();
        assert_eq!(Message::from_vec(&buffer[..count]).unwrap().metadata.id, 2);
        // A message of TCP that is too long, or no query, ends the connection.
        for bytes in [&[0xff, 0xff, 0, 0][..], &[0, 1, 0]] {
            let mut socket = bed.connect("client", server(CLUSTER_DNS)).unwrap();
            socket.write_all(bytes).unwrap();
            let mut rest = Vec::new();
            // Bytes that were not read make the end a reset.
            let _ = socket.read_to_end(&mut rest);
            assert!(rest.is_empty());
        }
    });
}

#[test]
fn connections_beyond_the_bound_are_reset_and_counted() {
    inside("connections_beyond_the_bound_are_reset_and_counted", || {
        let bed = bed();
        let open: Vec<_> = (0..200).filter_map(|_| bed.connect("client", server(CLUSTER_DNS)).ok()).collect();
        let deadline = Instant::now() + PATIENCE;
        while bed.metric("corelane_limit_hits_total", &["limit=\"dns_connections\""]) == 0 {
            assert!(Instant::now() < deadline, "the bound is not there");
            std::thread::yield_now();
        }
        drop(open);
        // There is room again once they are closed.
        loop {
            assert!(Instant::now() < deadline, "the places are not given back");
            let Ok(mut socket) = bed.connect("client", server(CLUSTER_DNS)) else { continue };
            let query = question("echo.", RecordType::A, 3).to_vec().unwrap();
            let length = u16::try_from(query.len()).unwrap().to_be_bytes();
            let mut first = [0; 2];
            if socket.write_all(&[&length[..], &query].concat()).is_ok()
                && socket.read_exact(&mut first).is_ok()
            {
                return;
            }
        }
    });
}

#[test]
fn queries_that_wait_beyond_the_bound_fail_at_once_and_the_rest_goes_on() {
    inside("queries_that_wait_beyond_the_bound_fail_at_once_and_the_rest_goes_on", || {
        let bed =
            Bed::with(&yaml(), &setup(DriverChoice::Auto, "nameserver 10.244.1.9\noptions timeout:10\n"));
        let _upstream = NameServer::start(bed.network("plain"), outside);
        let socket =
            bed.network("client").within(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.connect(server(CLUSTER_DNS)).unwrap();
        // One port is one worker's. Datagrams that come faster than they are taken are lost, so they go out little by
        // little.
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut answer = [0; 512];
        let mut id = 0;
        let deadline = Instant::now() + PATIENCE;
        let refused = loop {
            for _ in 0..8 {
                id += 1;
                let query = question("silent.example.org.", RecordType::A, id);
                socket.send(&query.to_vec().unwrap()).unwrap();
            }
            if let Ok(count) = socket.recv(&mut answer) {
                break Message::from_vec(&answer[..count]).unwrap();
            }
            assert!(Instant::now() < deadline, "the bound is not there");
        };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(refused.metadata.response_code, ResponseCode::ServFail);
        assert!(bed.metric("corelane_limit_hits_total", &["limit=\"dns_queries\""]) > 0);
        // What the mesh knows waits for nobody.
        socket.send(&question("echo.", RecordType::A, 65_000).to_vec().unwrap()).unwrap();
        loop {
            let count = socket.recv(&mut answer).unwrap();
            let message = Message::from_vec(&answer[..count]).unwrap();
            if message.metadata.id == 65_000 {
                return assert_eq!(addresses(&message), ["10.96.0.1"]);
            }
        }
    });
}

#[test]
fn a_drain_lets_a_waiting_query_have_its_answer() {
    inside("a_drain_lets_a_waiting_query_have_its_answer", || {
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let mut bed = Bed::with(&yaml(), &setup(driver, "nameserver 10.244.1.9\noptions timeout:10\n"));
            let (release, released) = std::sync::mpsc::channel::<()>();
            let released = std::sync::Mutex::new(released);
            let upstream = NameServer::start(bed.network("plain"), move |asked| {
                released.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                outside(asked)
            });
            let pod = bed.network("client").clone();
            let asking = std::thread::spawn(move || {
                ask_udp(&pod, server(CLUSTER_DNS), &question("www.example.org.", RecordType::A, 1))
            });
            let deadline = Instant::now() + PATIENCE;
            while upstream.asked().is_empty() {
                assert!(Instant::now() < deadline, "the query has not arrived");
                std::thread::yield_now();
            }
            bed.drain(PATIENCE);
            // Nobody is served any more, and the waiting one still is.
            while bed.connect("client", server(CLUSTER_DNS)).is_ok() {
                assert!(Instant::now() < deadline, "the listeners stay open");
                std::thread::yield_now();
            }
            release.send(()).unwrap();
            assert_eq!(addresses(&asking.join().unwrap()), ["192.0.2.1"]);
            bed.join();
        }
    });
}

#[test]
fn a_pod_that_nobody_knows_learns_nothing() {
    inside("a_pod_that_nobody_knows_learns_nothing", || {
        let mut setup = setup(DriverChoice::Auto, NODE_DNS);
        setup.options.workload_wait = Duration::from_millis(100);
        let mut bed = Bed::with(&yaml(), &setup);
        bed.lose(xds::control::desired::ResourceKind::Address, "Kubernetes//Pod/app/client");
        let query = question("echo.app.svc.cluster.local.", RecordType::A, 1);
        let answer = ask_udp(bed.network("client"), server(CLUSTER_DNS), &query);
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert!(answer.answers.is_empty());
    });
}

#[test]
fn a_pod_that_leaves_takes_its_name_server_with_it() {
    inside("a_pod_that_leaves_takes_its_name_server_with_it", || {
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let mut bed =
                Bed::with(&yaml(), &setup(driver, "nameserver 10.244.1.9\noptions timeout:10 attempts:5\n"));
            let upstream = NameServer::start(bed.network("plain"), outside);
            bed.remove("client");
            let before = bed.descriptors();
            bed.add("client");
            let socket = bed.connect("client", server(CLUSTER_DNS)).unwrap();
            ask_tcp(&socket, &[question("echo.", RecordType::A, 1)]);
            // One query is still waiting for its answer.
            let query = question("silent.example.org.", RecordType::A, 2).to_vec().unwrap();
            let waiting =
                bed.network("client").within(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
            waiting.send_to(&query, server(CLUSTER_DNS)).unwrap();
            let deadline = Instant::now() + PATIENCE;
            while upstream.asked().is_empty() {
                assert!(Instant::now() < deadline, "the query has not arrived");
                std::thread::yield_now();
            }
            bed.remove("client");
            drop((socket, waiting));
            bed.until_descriptors(before);
            let proxy = SocketAddr::new("127.0.0.1".parse().unwrap(), DNS_PORT);
            assert!(bed.connect("client", proxy).is_err());
        }
    });
}

#[test]
fn without_the_option_names_are_left_alone() {
    inside("without_the_option_names_are_left_alone", || {
        let bed = Bed::new(&yaml());
        let _upstream = NameServer::start(bed.network("plain"), outside);
        let plain = SocketAddr::new(bed.ip("plain"), 53);
        let answer = ask_udp(bed.network("client"), plain, &question("www.example.org.", RecordType::A, 1));
        assert_eq!(addresses(&answer), ["192.0.2.1"]);
        assert!(bed.connect("client", SocketAddr::new("127.0.0.1".parse().unwrap(), DNS_PORT)).is_err());
    });
}

/// A service whose endpoint is known by name only.
fn entry() -> String {
    yaml()
        + "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: far, namespace: app }
spec:
  hosts: [db.example.com]
  addresses: [240.0.0.7, \"fd00:99::7\"]
  ports: [{ number: 5432, name: tcp, protocol: TCP }]
  resolution: DNS
  endpoints: [{ address: db.example.net }]
"
}

fn loopback_up() -> NetworkNamespace {
    tool::run(Tool::Ip, &["link", "set", "lo", "up"], "", None).unwrap();
    NetworkNamespace::current().unwrap()
}

#[test]
fn a_workload_that_is_known_by_name_is_dialled_at_its_address() {
    inside("a_workload_that_is_known_by_name_is_dialled_at_its_address", || {
        for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
            let bed = Bed::with(&entry(), &setup(driver, "nameserver ::1\noptions timeout:1 attempts:1\n"));
            let upstream = (driver == DriverChoice::IoUring).then(|| {
                NameServer::start(&loopback_up(), |asked| match (&*asked.name, asked.kind) {
                    ("db.example.net.", RecordType::A) => {
                        Reply::Records(vec![RData::A(A::new(10, 244, 1, 9))])
                    }
                    ("db.example.net.", RecordType::AAAA) => {
                        Reply::Records(vec![RData::AAAA("fd00::1:9".parse().unwrap())])
                    }
                    _ => Reply::Code(ResponseCode::NXDomain),
                })
            });
            bed.serve_echo("plain", 5432);
            for (vip, source) in [("240.0.0.7", "10.244.1.1"), ("fd00:99::7", "fd00::1:1")] {
                for _ in 0..4 {
                    let socket = bed.connect("client", SocketAddr::new(vip.parse().unwrap(), 5432)).unwrap();
                    let answer = exchange(&socket, b"hello").unwrap();
                    assert_eq!(String::from_utf8(answer).unwrap(), format!("{source} hello"));
                }
            }
            assert_eq!(bed.metric("istio_on_demand_dns_total", &["hostname=\"db.example.net\""]), 8);
            if let Some(upstream) = upstream {
                // Each worker asks once for each family and keeps what it was told.
                assert!(upstream.asked().len() <= 4, "{:?}", upstream.asked());
            }
        }
    });
}

#[test]
fn a_name_that_no_server_knows_closes_the_connection_with_its_cause() {
    inside("a_name_that_no_server_knows_closes_the_connection_with_its_cause", || {
        let mut bed = Bed::with(&entry(), &setup(DriverChoice::Auto, "nameserver 127.0.0.1\n"));
        let upstream = NameServer::start(&loopback_up(), |_| Reply::Code(ResponseCode::NXDomain));
        let to = SocketAddr::new("240.0.0.7".parse().unwrap(), 5432);
        assert!(session_support::is_refused(bed.network("client"), to));
        let record = bed.ended(Direction::Outbound, CloseCause::NameUnresolved);
        assert_eq!(record.service.unwrap().key.hostname.as_ref(), "db.example.com");
        assert!(!upstream.asked().is_empty());
    });
}
