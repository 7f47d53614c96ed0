//! The server role of the tunnel: what is asked of it, what it answers, how it reaches applications.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dataplane::access_log::{CloseCause, Direction};
use dataplane::session::{Demander, NodeOptions};
use model::{
    ApplicationTunnel, ApplicationTunnelProtocol, EndpointPort, GatewayAddress, GatewayDestination,
    NamespacedHostname, NetworkAddress, Service,
};
use session_support::{Bed, PATIENCE, Setup, exchange, inside, is_refused, pods, policy};
use tunnel::h2::Headers;
use xds::control::desired::ResourceKind;
use xds::decode::Address;

const WEB: &str = "---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec: { clusterIP: 10.96.1.9, selector: { app: server }, ports: [{ name: a, port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Service
metadata: { name: far, namespace: app }
spec: { clusterIP: 10.96.1.10, selector: { app: other }, ports: [{ name: a, port: 80, targetPort: 8080 }] }
";
const WEB_HOST: &str = "web.app.svc.cluster.local";
const FAR_HOST: &str = "far.app.svc.cluster.local";

fn connect(authority: &str) -> Headers {
    Headers::connect(authority).unwrap()
}

fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| std::str::from_utf8(value).unwrap())
}

#[test]
fn an_accepted_request_learns_who_answers_unless_that_is_switched_off() {
    inside("an_accepted_request_learns_who_answers_unless_that_is_switched_off", || {
        for response_baggage in [true, false] {
            let options = NodeOptions { response_baggage, ..NodeOptions::default() };
            let bed = Bed::with(&pods(), &Setup { options, ..Setup::default() });
            bed.serve_echo("server", 8080);
            let answer = bed.raw(bed.ip("server")).exchange(connect("10.244.1.2:8080"), b"x");
            assert_eq!((answer.status, answer.body.as_slice()), (200, &b"10.244.1.9 x"[..]));
            let headers = answer.headers.unwrap();
            let baggage = header(&headers, "baggage");
            assert_eq!(baggage.is_some(), response_baggage);
            assert!(baggage.is_none_or(|text| text.contains("k8s.namespace.name=app")), "{baggage:?}");
        }
    });
}

#[test]
fn a_hostname_means_the_dialled_pod_at_the_port_that_it_has_for_the_service() {
    inside("a_hostname_means_the_dialled_pod_at_the_port_that_it_has_for_the_service", || {
        let mut bed = Bed::new(&(pods() + WEB));
        bed.serve_echo("server", 8080);
        bed.serve_echo("server", 9090);
        for ip in ["10.244.1.2", "fd00::1:2"] {
            let raw = bed.raw(ip.parse().unwrap());
            assert_eq!(raw.exchange(connect(&format!("{WEB_HOST}:80")), b"x").status, 200, "{ip}");
            // A service of others too: the target is the dialled pod all the same, at the service's own target port.
            assert_eq!(raw.exchange(connect(&format!("{FAR_HOST}:80")), b"x").status, 200, "{ip}");
            let refused = [format!("{WEB_HOST}:81"), "nobody.app.svc.cluster.local:80".to_owned()];
            assert_eq!(raw.ask(refused.iter().map(|it| connect(it)).collect()), [503, 503], "{ip}");
        }
        let record = bed.ended(Direction::Inbound, CloseCause::Finished);
        assert_eq!(&*record.service.unwrap().key.hostname, WEB_HOST);
        // The endpoint's own port for the service goes before the service's, and is the one that policies see.
        let rules = "[{ to: [{ operation: { ports: ['9090'] } }] }]";
        bed.apply(&(pods() + WEB + &policy("ports", "DENY", rules)));
        let raw = bed.raw(bed.ip("server"));
        assert_eq!(raw.exchange(connect(&format!("{WEB_HOST}:80")), b"x").status, 200);
        let key = NamespacedHostname { namespace: "app".into(), hostname: WEB_HOST.into() };
        bed.change_workload("server", |workload| {
            workload.services.insert(key.clone(), vec![EndpointPort { service_port: 80, target_port: 9090 }]);
        });
        assert_eq!(raw.ask(vec![connect(&format!("{WEB_HOST}:80"))]), [401]);
        // 0 is none of its own: the service's number stands.
        bed.change_workload("server", |workload| {
            workload.services.insert(key, vec![EndpointPort { service_port: 80, target_port: 0 }]);
        });
        assert_eq!(raw.exchange(connect(&format!("{WEB_HOST}:80")), b"x").status, 200);
    });
}

#[test]
fn a_denied_request_is_told_so_and_unknown_headers_do_not_matter() {
    inside("a_denied_request_is_told_so_and_unknown_headers_do_not_matter", || {
        let rules = "[{ from: [{ source: { principals: [cluster.local/ns/app/sa/raw] } }] }]";
        let mut bed = Bed::new(&(pods() + &policy("deny", "DENY", rules)));
        bed.serve_echo("server", 8080);
        let raw = bed.raw(bed.ip("server"));
        assert_eq!(raw.ask(vec![connect("10.244.1.2:8080")]), [401]);
        bed.ended(Direction::Inbound, CloseCause::PolicyDenied);
        bed.apply(&pods());
        let mut strange = connect("10.244.1.2:8080");
        strange.push("x-nobody-knows", "it").unwrap();
        strange.push("forwarded", "garbage;;=").unwrap();
        strange.push("traceparent", "garbage").unwrap();
        assert_eq!(raw.exchange(strange, b"x").status, 200);
    });
}

#[test]
fn a_source_behind_a_gateway_is_described_by_its_baggage_in_the_books_only() {
    inside("a_source_behind_a_gateway_is_described_by_its_baggage_in_the_books_only", || {
        let rules = "[{ from: [{ source: { namespaces: [elsewhere] } }] }]";
        let mut bed = Bed::new(&(pods() + &policy("deny", "DENY", rules)));
        bed.serve_echo("server", 8080);
        let raw = bed.raw(bed.ip("server"));
        let described = |network: Option<&str>| {
            let mut headers = connect("10.244.1.2:8080");
            headers.push("baggage", "k8s.namespace.name=elsewhere,k8s.deployment.name=shop").unwrap();
            if let Some(network) = network {
                headers.push("x-forwarded-network", network).unwrap();
            }
            headers
        };
        // The namespace that policy sees is the proven one.
        assert_eq!(raw.exchange(described(Some("far")), b"x").status, 200);
        let record = bed.ended(Direction::Inbound, CloseCause::Finished);
        let workload = record.source.workload.unwrap();
        assert_eq!((&*workload.namespace, &*workload.workload_name), ("elsewhere", "shop"));
        assert!(record.source.identity.unwrap().uri().ends_with("/sa/raw"));
        assert!(bed.metric("istio_tcp_connections_opened_total", &["source_workload=\"shop\""]) == 1);
        for own in [None, Some("")] {
            assert_eq!(raw.exchange(described(own), b"x").status, 200);
            let record = bed.ended(Direction::Inbound, CloseCause::Finished);
            assert!(record.source.workload.is_none(), "{own:?}");
        }
    });
}

/// A PROXY header as its specification (version 2, section 2.2) lays it out, read by hand.
struct Introduced {
    source: SocketAddr,
    destination: SocketAddr,
    extensions: Vec<(u8, Vec<u8>)>,
    payload: Vec<u8>,
}

impl Introduced {
    fn read(bytes: &[u8]) -> Self {
        assert_eq!(&bytes[..12], b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a");
        assert_eq!(bytes[12], 0x21, "version 2, PROXY");
        let length = usize::from(bytes[14]) * 256 + usize::from(bytes[15]);
        let (body, payload) = bytes[16..].split_at(length);
        let word = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        let (source, destination, mut rest): (IpAddr, IpAddr, _) = match bytes[13] {
            0x11 => {
                let ip = |at: usize| <[u8; 4]>::try_from(&body[at..at + 4]).unwrap().into();
                (ip(0), ip(4), 8)
            }
            0x21 => {
                let ip = |at: usize| <[u8; 16]>::try_from(&body[at..at + 16]).unwrap().into();
                (ip(0), ip(16), 32)
            }
            other => panic!("family {other}"),
        };
        let source = SocketAddr::new(source, word(rest));
        let destination = SocketAddr::new(destination, word(rest + 2));
        rest += 4;
        let mut extensions = Vec::new();
        while rest < length {
            let end = rest + 3 + usize::from(word(rest + 1));
            extensions.push((body[rest], body[rest + 3..end].to_vec()));
            rest = end;
        }
        assert_eq!(rest, length);
        Self { source, destination, extensions, payload: payload.to_vec() }
    }
}

/// Takes connections in a pod, at one address and port, and tells of each: who it came from, and all it brought.
fn taker(bed: &Bed, pod: &str, at: &str) -> Receiver<(SocketAddr, Vec<u8>)> {
    let listener = bed.network(pod).within(|| std::net::TcpListener::bind(at).unwrap()).unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let peer = socket.peer_addr().unwrap();
            let mut all = Vec::new();
            if socket.read_to_end(&mut all).is_ok() {
                let _ = socket.write_all(b"taken");
                tell.send((peer, all)).unwrap();
            }
        }
    });
    told
}

fn tunnel_of(port: u16) -> ApplicationTunnel {
    ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port }
}

#[test]
fn an_application_tunnel_introduces_the_client_on_loopback() {
    inside("an_application_tunnel_introduces_the_client_on_loopback", || {
        let mut bed = Bed::new(&(pods() + WEB));
        bed.change_workload("server", |workload| workload.application_tunnel = Some(tunnel_of(15_088)));
        let cases = [
            ("10.244.1.2", "127.0.0.1", "10.244.1.2:8080", "10.244.1.2:8080", "10.244.1.9"),
            // Any address is taken: the application behind the tunnel knows what to do with it.
            ("10.244.1.2", "127.0.0.1", "10.99.1.1:81", "10.99.1.1:81", "10.244.1.9"),
            ("10.244.1.2", "127.0.0.1", "web.app.svc.cluster.local:80", "10.96.1.9:80", "10.244.1.9"),
            ("fd00::1:2", "::1", "[fd00::77]:443", "[fd00::77]:443", "fd00::1:9"),
        ];
        let told = ["127.0.0.1", "::1"].map(|ip| {
            let at = SocketAddr::new(ip.parse().unwrap(), 15_088).to_string();
            (ip, taker(&bed, "server", &at))
        });
        for (dialled, loopback, authority, destination, source) in cases {
            let answer = bed.raw(dialled.parse().unwrap()).exchange(connect(authority), b"payload");
            assert_eq!((answer.status, answer.body.as_slice()), (200, &b"taken"[..]), "{authority}");
            let (_, told) = told.iter().find(|(ip, _)| *ip == loopback).unwrap();
            let (peer, bytes) = told.recv_timeout(PATIENCE).unwrap();
            let introduced = Introduced::read(&bytes);
            assert_eq!(peer.ip(), loopback.parse::<IpAddr>().unwrap());
            assert_eq!(introduced.source.ip(), source.parse::<IpAddr>().unwrap());
            assert_ne!(introduced.source.port(), 0);
            assert_eq!(introduced.destination, destination.parse().unwrap());
            let identity = b"spiffe://cluster.local/ns/app/sa/raw".to_vec();
            assert_eq!(introduced.extensions, [(0xD0, identity)]);
            assert_eq!(introduced.payload, b"payload");
        }
        // The proxy's own ports are refused whichever way they are named.
        let raw = bed.raw(bed.ip("server"));
        assert_eq!(raw.ask(vec![connect("10.99.1.1:15006"), connect("10.244.1.2:15008")]), [503, 503]);
    });
}

#[test]
fn an_application_tunnel_without_a_port_takes_the_resolved_one_and_may_be_off_loopback() {
    inside("an_application_tunnel_without_a_port_takes_the_resolved_one_and_may_be_off_loopback", || {
        let options = NodeOptions { localhost_application_tunnel: false, ..NodeOptions::default() };
        let mut bed = Bed::with(&(pods() + WEB), &Setup { options, ..Setup::default() });
        bed.change_workload("server", |workload| workload.application_tunnel = Some(tunnel_of(0)));
        let told = taker(&bed, "server", "10.244.1.2:8080");
        let raw = bed.raw(bed.ip("server"));
        assert_eq!(raw.exchange(connect(&format!("{WEB_HOST}:80")), b"").status, 200);
        let (peer, bytes) = told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(peer.ip(), bed.ip("plain"));
        assert_eq!(Introduced::read(&bytes).destination, "10.96.1.9:80".parse().unwrap());
    });
}

#[test]
fn a_sandwiched_waypoint_takes_the_addresses_of_those_it_serves_and_no_others() {
    inside("a_sandwiched_waypoint_takes_the_addresses_of_those_it_serves_and_no_others", || {
        let mut bed = Bed::new(&(pods() + WEB));
        bed.serve_echo("server", 80);
        let raw = bed.raw(bed.ip("server"));
        let far = connect("10.96.1.10:80");
        assert_eq!(raw.ask(vec![far.clone(), connect("10.244.1.3:80")]), [400, 400]);
        let key = NamespacedHostname { namespace: "app".into(), hostname: WEB_HOST.into() };
        let address = |ip: &str| NetworkAddress { network: "".into(), ip: ip.parse().unwrap() };
        // The waypoint is named by its service, by the address of its service, or by its own address.
        for destination in [
            GatewayDestination::Hostname(key),
            GatewayDestination::Address(address("10.96.1.9")),
            GatewayDestination::Address(address("10.244.1.2")),
        ] {
            let waypoint = GatewayAddress { destination, hbone_mtls_port: 15_008 };
            bed.change_service(FAR_HOST, |service| service.waypoint = Some(waypoint.clone()));
            assert_eq!(raw.exchange(far.clone(), b"x").status, 200, "{waypoint:?}");
            assert_eq!(raw.ask(vec![connect("10.244.1.3:80"), connect("10.96.1.11:80")]), [400, 400]);
        }
        // Traffic addressed to a workload has a waypoint of its own.
        bed.change_service(FAR_HOST, |service| service.waypoint = None);
        let destination = GatewayDestination::Address(address("10.244.1.2"));
        let waypoint = GatewayAddress { destination, hbone_mtls_port: 15_008 };
        bed.change_workload("other", |workload| workload.waypoint = Some(waypoint));
        assert_eq!(raw.ask(vec![far]), [400]);
        assert_eq!(raw.exchange(connect("10.244.1.3:80"), b"x").status, 200);
        // Somebody else's waypoint is not ours.
        let destination = GatewayDestination::Address(address("10.244.1.1"));
        let waypoint = GatewayAddress { destination, hbone_mtls_port: 15_008 };
        bed.change_workload("other", |workload| workload.waypoint = Some(waypoint));
        assert_eq!(raw.ask(vec![connect("10.244.1.3:80")]), [400]);
    });
}

/// What the node asks the control plane for next.
fn next_key(queue: &mut tokio::sync::mpsc::Receiver<String>) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match queue.try_recv() {
            Ok(key) => return key,
            Err(_) => assert!(Instant::now() < deadline, "nothing was asked for"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn on_demand_a_request_waits_until_it_is_known_whose_its_destination_is() {
    inside("on_demand_a_request_waits_until_it_is_known_whose_its_destination_is", || {
        let (demander, mut queue) = Demander::new();
        let options = NodeOptions { demander: Some(demander), ..NodeOptions::default() };
        let mut bed = Bed::with(&(pods() + WEB), &Setup { options, ..Setup::default() });
        bed.serve_echo("server", 8080);
        bed.serve_echo("server", 80);
        let service = |bed: &Bed, hostname: &str| {
            let entry = bed.state.snapshot.service_by_host(hostname, "app").unwrap();
            Service::clone(&entry.service)
        };
        let (web, mut far) = (service(&bed, WEB_HOST), service(&bed, FAR_HOST));
        for hostname in [WEB_HOST, FAR_HOST] {
            bed.lose(ResourceKind::Address, &format!("app/{hostname}"));
        }
        let waiting = |bed: &Bed, authority: &str| {
            let (raw, request) = (bed.raw(bed.ip("server")), connect(authority));
            std::thread::spawn(move || raw.exchange(request, b"x").status)
        };
        // What is asked of the pod itself needs no answer.
        assert_eq!(waiting(&bed, "10.244.1.2:8080").join().unwrap(), 200);
        assert!(queue.try_recv().is_err());
        let request = waiting(&bed, &format!("{WEB_HOST}:80"));
        assert_eq!(next_key(&mut queue), format!("app/{WEB_HOST}"));
        bed.hold(Address::Service(web.clone()));
        assert_eq!(request.join().unwrap(), 200);
        // A name tells where else the service may be; what does not exist is asked for once.
        let request = waiting(&bed, "db.shop.svc.cluster.local:80");
        for key in ["app/db.shop.svc.cluster.local", "shop/db.shop.svc.cluster.local"] {
            assert_eq!(next_key(&mut queue), key);
            bed.answer_absent(key);
        }
        assert_eq!(request.join().unwrap(), 503);
        assert_eq!(waiting(&bed, "db.shop.svc.cluster.local:80").join().unwrap(), 503);
        assert!(queue.try_recv().is_err());
        // As a waypoint that is told by its service's address: whose the address is, then whose that one is.
        bed.lose(ResourceKind::Address, &format!("app/{WEB_HOST}"));
        let address = NetworkAddress { network: "".into(), ip: "10.96.1.9".parse().unwrap() };
        let destination = GatewayDestination::Address(address);
        far.waypoint = Some(GatewayAddress { destination, hbone_mtls_port: 15_008 });
        let request = waiting(&bed, "10.96.1.10:80");
        assert_eq!(next_key(&mut queue), "/10.96.1.10");
        bed.hold(Address::Service(far));
        assert_eq!(next_key(&mut queue), "/10.96.1.9");
        bed.hold(Address::Service(web));
        assert_eq!(request.join().unwrap(), 200);
        // Nobody's address is not this pod's.
        let request = waiting(&bed, "10.96.1.11:80");
        assert_eq!(next_key(&mut queue), "/10.96.1.11");
        bed.answer_absent("/10.96.1.11");
        assert_eq!(request.join().unwrap(), 400);
        assert!(queue.try_recv().is_err());
    });
}

#[test]
fn on_demand_a_request_without_an_answer_is_refused_in_time() {
    inside("on_demand_a_request_without_an_answer_is_refused_in_time", || {
        let (demander, mut queue) = Demander::new();
        let demand_wait = Duration::from_millis(50);
        let options = NodeOptions { demander: Some(demander), demand_wait, ..NodeOptions::default() };
        let mut bed = Bed::with(&pods(), &Setup { options, ..Setup::default() });
        let raw = bed.raw(bed.ip("server"));
        assert_eq!(raw.ask(vec![connect(&format!("{WEB_HOST}:80"))]), [503]);
        bed.ended(Direction::Inbound, CloseCause::UnknownDestination);
        assert_eq!(raw.ask(vec![connect("10.96.1.9:80")]), [503]);
        bed.ended(Direction::Inbound, CloseCause::UnknownDestination);
        // The end of the queue is gone, as at the end of the process: there is no room for a question.
        assert_eq!(next_key(&mut queue), format!("app/{WEB_HOST}"));
        drop(queue);
        assert_eq!(raw.ask(vec![connect("10.96.1.10:80")]), [503]);
        bed.ended(Direction::Inbound, CloseCause::LimitReached);
    });
}

#[test]
fn applications_see_the_proxy_where_the_clients_address_is_not_to_be_worn() {
    inside("applications_see_the_proxy_where_the_clients_address_is_not_to_be_worn", || {
        let options = NodeOptions { keeps_source_address: false, ..NodeOptions::default() };
        let bed = Bed::with(&pods(), &Setup { options, ..Setup::default() });
        bed.serve_echo("server", 8080);
        for (server, own) in [("10.244.1.2:8080", "10.244.1.2"), ("[fd00::1:2]:8080", "fd00::1:2")] {
            for from in ["client", "plain"] {
                let answer = exchange(&bed.connect(from, server.parse().unwrap()).unwrap(), b"x").unwrap();
                assert_eq!(String::from_utf8(answer).unwrap(), format!("{own} x"), "{from}");
            }
        }
    });
}

#[test]
fn without_the_capability_the_address_is_given_up_and_not_the_connection() {
    fn drop_net_admin() {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        let mut held = capabilities(None).unwrap();
        held.effective.remove(CapabilitySet::NET_ADMIN);
        held.permitted.remove(CapabilitySet::NET_ADMIN);
        // Either capability lets a socket be transparent.
        held.effective.remove(CapabilitySet::NET_RAW);
        held.permitted.remove(CapabilitySet::NET_RAW);
        set_capabilities(None, held).unwrap();
    }
    inside("without_the_capability_the_address_is_given_up_and_not_the_connection", || {
        let options = NodeOptions { packet_mark: None, ..NodeOptions::default() };
        let setup = Setup { options, prepare: drop_net_admin, ..Setup::default() };
        let bed = Bed::with(&pods(), &setup);
        bed.serve_echo("server", 8080);
        let raw = bed.raw(bed.ip("server"));
        for _ in 0..2 {
            assert_eq!(raw.exchange(connect("10.244.1.2:8080"), b"x").body, b"10.244.1.2 x");
        }
    });
}

/// The lines that the process logs from now on.
fn logged() -> impl Fn() -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let format = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::INFO);
    format.with_writer(move || writer.clone()).init();
    move || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn dry_run_policies_only_tell_what_they_would_do() {
    inside("dry_run_policies_only_tell_what_they_would_do", || {
        let logged = logged();
        let options = NodeOptions { policy_decisions_at_info: true, ..NodeOptions::default() };
        let named = |name: &str, action: &str, from: &str| {
            policy(name, action, &format!("[{{ from: [{{ source: {{ principals: [{from}] }} }}] }}]"))
        };
        let dry = named("dry", "DENY", "cluster.local/ns/app/sa/client")
            .replace("namespace: app }", "namespace: app, annotations: { istio.io/dry-run: 'true' } }");
        let enforced = named("only", "DENY", "cluster.local/ns/app/sa/other");
        let bed = Bed::with(&(pods() + &dry + &enforced), &Setup { options, ..Setup::default() });
        let server = bed.serve_echo("server", 8080);
        assert!(exchange(&bed.connect("client", server).unwrap(), b"x").unwrap().ends_with(b" x"));
        assert!(is_refused(bed.network("other"), server));
        let log = logged();
        let line = |text: &str| log.lines().any(|line| line.contains("policy:") && line.contains(text));
        assert!(line("decision=\"would be denied\" by=\"app/dry rule 0\" dry_run=true"), "{log}");
        assert!(line("decision=\"denied\" by=\"app/only rule 0\" dry_run=false"), "{log}");
    });
}
