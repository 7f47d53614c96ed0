//! Connections of captured pods: where they go, under which identity, who refuses them, and what cuts them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod session_support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use dataplane::access_log::{CloseCause, Direction};
use dataplane::session::NodeOptions;
use dataplane::worker::DriverChoice;
use session_support::raw::{RawClient, is_taken};
use session_support::{Bed, Pki, Setup, connect, exchange, inside, is_refused, is_reset, ping, pods, policy};
use tunnel::h2::Headers;
use xds::control::desired::ResourceKind;

/// Shorter than any test's patience, for what must be waited out.
const SHORT: Duration = Duration::from_millis(50);

const CLIENT: &str = "cluster.local/ns/app/sa/client";

fn each_driver(test: impl Fn(&Setup)) {
    for driver in [DriverChoice::IoUring, DriverChoice::Epoll] {
        test(&Setup { driver, ..Setup::default() });
    }
}

#[test]
fn pods_reach_each_other_through_hbone_with_source_address_and_half_close() {
    inside("pods_reach_each_other_through_hbone_with_source_address_and_half_close", || {
        each_driver(|setup| {
            let mut bed = Bed::with(&pods(), setup);
            bed.serve_echo("server", 8080);
            for (server, client) in [("10.244.1.2:8080", "10.244.1.1"), ("[fd00::1:2]:8080", "fd00::1:1")] {
                let to: SocketAddr = server.parse().unwrap();
                let socket = bed.connect("client", to).unwrap();
                let answer = exchange(&socket, b"hello").unwrap();
                assert_eq!(String::from_utf8(answer).unwrap(), format!("{client} hello"));

                let sent = bed.ended(Direction::Outbound, CloseCause::Finished);
                let taken = bed.ended(Direction::Inbound, CloseCause::Finished);
                for record in [&sent, &taken] {
                    assert_eq!(record.tls.unwrap().version_name(), "TLSv1.3");
                    assert_eq!(record.source.identity, Some(bed.identity("client")));
                    assert_eq!(record.destination.identity, Some(bed.identity("server")));
                    assert_eq!(record.source.address.unwrap().ip().to_string(), client);
                }
                let answered = client.len() as u64 + 6;
                assert_eq!((sent.bytes_sent, sent.bytes_received), (5, answered));
                assert_eq!((taken.bytes_sent, taken.bytes_received), (answered, 5));
            }
            bed.until_idle();
            for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
                let labels =
                    [reporter, "connection_security_policy=\"mutual_tls\"", "request_protocol=\"tcp\""];
                for name in ["opened", "closed"] {
                    let series = format!("istio_tcp_connections_{name}_total");
                    assert_eq!(bed.metric(&series, &labels), 2, "{series} {reporter}\n{}", bed.metrics());
                }
                assert_eq!(bed.metric("istio_tcp_received_bytes_total", &labels), 10);
            }
        });
    });
}

#[test]
fn a_server_that_speaks_first_is_heard_even_where_its_port_is_declared_as_http() {
    inside("a_server_that_speaks_first_is_heard_even_where_its_port_is_declared_as_http", || {
        each_driver(|setup| {
            let service = "---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: app }
spec: { selector: { app: server }, ports: [{ port: 80, targetPort: 8080, appProtocol: http }] }
";
            let bed = Bed::with(&(pods() + service), setup);
            let server = bed.serve("server", 8080, |mut socket, _| {
                let mut answer = [0; 4];
                socket.write_all(b"welcome").unwrap();
                socket.read_exact(&mut answer).unwrap();
                socket.write_all(&answer).unwrap();
            });
            // Through a tunnel and in plain text.
            for from in ["client", "plain"] {
                let mut socket = bed.connect(from, server).unwrap();
                let mut greeting = [0; 7];
                socket.read_exact(&mut greeting).unwrap();
                socket.write_all(b"ping").unwrap();
                let mut rest = Vec::new();
                socket.read_to_end(&mut rest).unwrap();
                assert_eq!((&greeting, rest.as_slice()), (b"welcome", b"ping".as_slice()));
            }
        });
    });
}

#[test]
fn plain_text_passes_to_and_from_pods_outside_the_mesh() {
    inside("plain_text_passes_to_and_from_pods_outside_the_mesh", || {
        each_driver(|setup| {
            let mut bed = Bed::with(&pods(), setup);
            let (plain, server) = (bed.serve_echo("plain", 8080), bed.serve_echo("server", 8080));
            for (from, to, ip, direction) in [
                ("client", plain, "10.244.1.1", Direction::Outbound),
                ("plain", server, "10.244.1.9", Direction::Inbound),
            ] {
                let answer = exchange(&bed.connect(from, to).unwrap(), b"hi").unwrap();
                assert_eq!(String::from_utf8(answer).unwrap(), format!("{ip} hi"));
                let record = bed.ended(direction, CloseCause::Finished);
                assert!(record.tls.is_none() && record.source.identity.is_none() == (from == "plain"));
            }
            let six = "[fd00::1:2]:8080".parse().unwrap();
            let answer = exchange(&bed.connect("plain", six).unwrap(), b"hi").unwrap();
            assert_eq!(String::from_utf8(answer).unwrap(), "fd00::1:9 hi");
        });
    });
}

#[test]
fn a_strict_namespace_refuses_plain_text_and_takes_the_mesh() {
    inside("a_strict_namespace_refuses_plain_text_and_takes_the_mesh", || {
        let strict = "---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: app }
spec: { mtls: { mode: STRICT } }
";
        let mut bed = Bed::new(&(pods() + strict));
        let server = bed.serve_echo("server", 8080);
        assert!(is_refused(bed.network("plain"), server));
        let denied = bed.ended(Direction::Inbound, CloseCause::PolicyDenied);
        assert_eq!(denied.source.address.unwrap().ip(), bed.ip("plain"));
        assert!(exchange(&bed.connect("client", server).unwrap(), b"x").unwrap().ends_with(b" x"));
    });
}

#[test]
fn principals_are_allowed_and_denied() {
    inside("principals_are_allowed_and_denied", || {
        let rules = format!("[{{ from: [{{ source: {{ principals: [{CLIENT}] }} }}] }}]");
        let mut bed = Bed::new(&(pods() + &policy("only", "ALLOW", &rules)));
        let server = bed.serve_echo("server", 8080);
        assert!(exchange(&bed.connect("client", server).unwrap(), b"x").unwrap().ends_with(b" x"));
        for stranger in ["other", "plain"] {
            assert!(is_refused(bed.network(stranger), server));
            bed.ended(Direction::Inbound, CloseCause::PolicyDenied);
        }
        let told = bed.ended(Direction::Outbound, CloseCause::PolicyDenied);
        assert_eq!(told.source.identity, Some(bed.identity("other")));
        bed.until_idle();
        let denied = ["reporter=\"destination\"", "response_flags=\"DENY\""];
        assert_eq!(bed.metric("istio_tcp_connections_failed_total", &denied), 2, "{}", bed.metrics());

        bed.apply(&(pods() + &policy("only", "DENY", &rules)));
        assert!(is_refused(bed.network("client"), server));
        for neighbour in ["other", "plain"] {
            assert!(exchange(&bed.connect(neighbour, server).unwrap(), b"x").unwrap().ends_with(b" x"));
        }
    });
}

#[test]
fn a_changed_policy_cuts_live_connections_on_all_workers_and_no_others() {
    inside("a_changed_policy_cuts_live_connections_on_all_workers_and_no_others", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_pieces("server", 8080);
        let open = |bed: &Bed, pod: &str| {
            let socket = bed.connect(pod, server).unwrap();
            ping(&socket).unwrap();
            socket
        };
        let mut doomed: Vec<_> = (0..24).map(|_| open(&bed, "client")).collect();
        doomed.extend((0..8).map(|_| open(&bed, "plain")));
        let spared: Vec<_> = (0..4).map(|_| open(&bed, "other")).collect();
        let live = bed.ask(dataplane::session::Node::live_connections);
        assert!(live.iter().all(|live| *live > 0), "every worker has some of them: {live:?}");

        let rules = format!(
            "[{{ from: [{{ source: {{ principals: [{CLIENT}] }} }}] }}, {{ from: [{{ source: {{ ipBlocks: [10.244.1.9] }} }}] }}]"
        );
        bed.apply(&(pods() + &policy("deny", "DENY", &rules)));
        for socket in &doomed {
            assert!(is_reset(socket), "what was cut must not look whole");
        }
        for socket in &spared {
            ping(socket).unwrap();
        }
        let cut = bed.ended(Direction::Inbound, CloseCause::PolicyChanged);
        assert_eq!((cut.bytes_sent, cut.bytes_received), (4, 4));
    });
}

#[test]
fn a_policy_that_allows_leaves_live_connections_alone() {
    inside("a_policy_that_allows_leaves_live_connections_alone", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_pieces("server", 8080);
        let socket = bed.connect("client", server).unwrap();
        ping(&socket).unwrap();
        let rules = format!("[{{ from: [{{ source: {{ principals: [{CLIENT}] }} }}] }}]");
        bed.apply(&(pods() + &policy("allow", "ALLOW", &rules)));
        ping(&socket).unwrap();
    });
}

#[test]
fn tunnel_requests_are_validated() {
    inside("tunnel_requests_are_validated", || {
        let mut bed = Bed::new(&pods());
        bed.serve_echo("server", 8080);
        let raw = RawClient {
            from: bed.network("plain").clone(),
            credentials: bed.pki.issue("spiffe://cluster.local/ns/app/sa/raw"),
            to: SocketAddr::new(bed.ip("server"), 15008),
            expected: bed.identity("server"),
        };
        let mut requests: Vec<_> = [
            "10.244.1.3:8080",
            "10.244.1.2:15008",
            "10.244.1.2:15001",
            "10.244.1.2:15006",
            "10.244.1.2:1",
            "nonsense",
            "nowhere.app.svc.cluster.local:80",
            "10.244.1.2:8080",
        ]
        .map(|authority| Headers::connect(authority).unwrap())
        .into();
        requests.push(Headers::request("GET", "https", "10.244.1.2:8080", "/").unwrap());
        assert_eq!(raw.ask(requests), [400, 503, 503, 503, 503, 400, 503, 200, 400]);
        for cause in [CloseCause::WrongDestination, CloseCause::ReservedPort, CloseCause::ConnectFailed] {
            bed.ended(Direction::Inbound, cause);
        }
    });
}

#[test]
fn wrong_certificates_are_refused_and_neighbours_go_on() {
    inside("wrong_certificates_are_refused_and_neighbours_go_on", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_pieces("server", 8080);
        let neighbour = bed.connect("client", server).unwrap();
        ping(&neighbour).unwrap();
        let to = SocketAddr::new(bed.ip("server"), 15008);
        let (good, two) = ("spiffe://cluster.local/ns/app/sa/raw", "spiffe://cluster.local/ns/app/sa/two");
        let foreign = "spiffe://elsewhere.example/ns/app/sa/raw";
        let other_root = Pki::new("stranger");
        let show = |pki: &Pki, uris: &[&str], until| {
            let socket = connect(bed.network("plain"), to).unwrap();
            is_taken(pki.leaf(uris, until), socket)
        };
        assert!(show(&bed.pki, &[good], 2090));
        assert!(!show(&bed.pki, &[good], 2021), "expired");
        assert!(!show(&bed.pki, &[foreign], 2090), "other trust domain");
        assert!(!show(&bed.pki, &[], 2090), "no name");
        assert!(!show(&bed.pki, &[good, two], 2090), "two names");
        assert!(!show(&other_root, &[good], 2090), "unknown root");
        ping(&neighbour).unwrap();
        for _ in 0..5 {
            bed.ended(Direction::Inbound, CloseCause::TlsFailed);
        }
    });
}

#[test]
fn the_proxys_own_ports_are_not_to_be_reached() {
    inside("the_proxys_own_ports_are_not_to_be_reached", || {
        let mut bed = Bed::new(&pods());
        for own in
            ["10.244.1.1:15001", "127.0.0.1:15001", "127.0.0.1:15006", "[::1]:15001", "10.244.1.1:15006"]
        {
            assert!(is_refused(bed.network("client"), own.parse().unwrap()), "{own}");
        }
        for inside in ["10.244.1.2:15001", "10.244.1.2:15006"] {
            for from in ["client", "plain"] {
                assert!(is_refused(bed.network(from), inside.parse().unwrap()), "{inside} from {from}");
            }
        }
        bed.ended(Direction::Outbound, CloseCause::ReservedPort);
        bed.ended(Direction::Inbound, CloseCause::ReservedPort);
        bed.until_idle();
    });
}

#[test]
fn a_workload_that_names_a_missing_policy_is_denied() {
    inside("a_workload_that_names_a_missing_policy_is_denied", || {
        let rules = format!("[{{ from: [{{ source: {{ principals: [{CLIENT}] }} }}] }}]");
        let mut bed = Bed::new(&(pods() + &policy("only", "ALLOW", &rules)));
        let server = bed.serve_pieces("server", 8080);
        let socket = bed.connect("client", server).unwrap();
        ping(&socket).unwrap();
        bed.lose(ResourceKind::Authorization, "app/only");
        assert!(is_reset(&socket));
        assert!(is_refused(bed.network("client"), server));
    });
}

#[test]
fn a_pod_without_certificate_neither_dials_nor_accepts() {
    inside("a_pod_without_certificate_neither_dials_nor_accepts", || {
        let options = NodeOptions { workload_wait: SHORT, ..NodeOptions::default() };
        let mut bed = Bed::with(&pods(), &Setup { options, ..Setup::default() });
        let (server, plain) = (bed.serve_echo("server", 8080), bed.serve_echo("plain", 8080));
        let other = bed.serve_echo("other", 8080);
        let missing = bed.identity("server");
        std::sync::Arc::make_mut(&mut bed.state.credentials).remove(&missing);
        // Another snapshot, so that there is something to wait for.
        bed.apply(&(pods() + &policy("deny", "DENY", "[{ to: [{ operation: { ports: ['1'] } }] }]")));
        assert!(is_refused(bed.network("client"), server));
        assert!(is_refused(bed.network("server"), other));
        for direction in [Direction::Inbound, Direction::Outbound] {
            bed.ended(direction, CloseCause::CertificateMissing);
        }
        // Plain text needs none.
        assert!(exchange(&bed.connect("server", plain).unwrap(), b"x").unwrap().ends_with(b" x"));
    });
}

#[test]
fn connections_wait_for_the_certificate_and_ask_for_it() {
    inside("connections_wait_for_the_certificate_and_ask_for_it", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_echo("server", 8080);
        let other = bed.serve_echo("other", 8080);
        let missing = bed.identity("server");
        std::sync::Arc::make_mut(&mut bed.state.credentials).remove(&missing);
        bed.publish();
        // The one that is dialled, and the one that dials, are both the server's.
        let clients = [("client", server), ("server", other)].map(|(from, to)| {
            let network = bed.network(from).clone();
            std::thread::spawn(move || exchange(&connect(&network, to).unwrap(), b"late").unwrap())
        });
        bed.needed(&missing);
        bed.issue(&missing);
        bed.publish();
        for client in clients {
            assert!(client.join().unwrap().ends_with(b" late"));
        }
    });
}

#[test]
fn an_unknown_workload_is_refused_when_the_wait_is_over() {
    inside("an_unknown_workload_is_refused_when_the_wait_is_over", || {
        let options = NodeOptions { workload_wait: SHORT, ..NodeOptions::default() };
        let mut bed = Bed::with(&pods(), &Setup { options, ..Setup::default() });
        let (server, plain) = (bed.serve_echo("server", 8080), bed.serve_echo("plain", 8080));
        let uid = bed.local("client").uid;
        bed.lose(ResourceKind::Address, &uid);
        assert!(is_refused(bed.network("client"), plain));
        assert!(is_refused(bed.network("client"), server));
        assert!(is_refused(bed.network("plain"), SocketAddr::new(bed.ip("client"), 8080)));
        bed.ended(Direction::Outbound, CloseCause::UnknownWorkload);
        bed.ended(Direction::Inbound, CloseCause::UnknownWorkload);
        bed.until_idle();
    });
}

#[test]
fn a_connection_waits_for_its_workload_to_become_known() {
    inside("a_connection_waits_for_its_workload_to_become_known", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_echo("server", 8080);
        let uids = [bed.local("client").uid, bed.local("server").uid];
        for uid in &uids {
            bed.lose(ResourceKind::Address, uid);
        }
        let socket = bed.connect("client", server).unwrap();
        let accepted = |live: &[usize]| live.iter().sum::<usize>() == 1;
        bed.until("the connection waits", dataplane::session::Node::live_connections, accepted);
        bed.apply(&pods());
        assert!(exchange(&socket, b"x").unwrap().ends_with(b" x"));
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    inside("a_pod_reaches_itself_through_its_service", || {
        let service = "---
apiVersion: v1
kind: Service
metadata: { name: self, namespace: app }
spec: { clusterIP: 10.96.1.9, selector: { app: server }, ports: [{ port: 80, targetPort: 8080 }] }
";
        let mut bed = Bed::new(&(pods() + service));
        bed.serve_echo("server", 8080);
        let socket = bed.connect("server", "10.96.1.9:80".parse().unwrap()).unwrap();
        assert_eq!(exchange(&socket, b"me").unwrap(), b"10.244.1.2 me");
        let record = bed.ended(Direction::Outbound, CloseCause::Finished);
        assert_eq!(&*record.service.unwrap().key.hostname, "self.app.svc.cluster.local");
        assert_eq!(record.destination.identity, Some(bed.identity("server")));
        bed.until_idle();
    });
}

#[test]
fn noise_on_the_tunnel_port_ends_there() {
    inside("noise_on_the_tunnel_port_ends_there", || {
        let mut bed = Bed::new(&pods());
        let server = bed.serve_pieces("server", 8080);
        let neighbour = bed.connect("client", server).unwrap();
        ping(&neighbour).unwrap();
        let to = SocketAddr::new(bed.ip("server"), 15008);
        let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
        let noises: [&[u8]; 5] =
            [b"", b"\0", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", hello, &session_support::pattern(100_000)];
        for noise in noises {
            let socket = connect(bed.network("plain"), to).unwrap();
            // An alert at most comes back, or a reset.
            let answer = exchange(&socket, noise).unwrap_or_default();
            assert!(answer.len() < 64, "{answer:?}");
            ping(&neighbour).unwrap();
        }
        for _ in noises {
            bed.ended(Direction::Inbound, CloseCause::TlsFailed);
        }
    });
}
