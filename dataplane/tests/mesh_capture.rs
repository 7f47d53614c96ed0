//! Capture with real rules in real network namespaces: what is redirected, to where, with which original
//! destination; what is left alone; that leaving restores the pod.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod sandbox_support;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use dataplane::capture::{self, PROXY_MARK, Redirection};
use dataplane::mesh::fabric::Fabric;
use dataplane::net::{NetworkNamespace, canonical, original_destination};
use socket2::{Domain, Protocol, Socket, Type};

/// Both are inside blocks for documentation, so nothing answers there.
const ELSEWHERE: [&str; 2] = ["192.0.2.7:80", "[2001:db8::7]:80"];
const POD_IPS: [&str; 2] = ["10.244.0.5", "fd00::5"];
/// Of connections that must fail: nobody answers, so only time tells.
const REFUSAL_PATIENCE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(5);

struct Pod {
    fabric: Fabric,
    namespace: NetworkNamespace,
}

impl Pod {
    fn new() -> Self {
        let mut fabric = Fabric::new().unwrap();
        let ips: Vec<IpAddr> = POD_IPS.iter().map(|ip| ip.parse().unwrap()).collect();
        let namespace = fabric.add_pod(&Arc::from("pod"), &ips).unwrap().namespace.clone();
        Self { fabric, namespace }
    }

    fn listen(&self, port: u16) -> TcpListener {
        self.namespace.within(|| TcpListener::bind(("::", port))).unwrap().unwrap()
    }

    /// Connects from inside the pod.
    fn connect(&self, to: &str, mark: Option<u32>) -> io::Result<TcpStream> {
        connect(&self.namespace, to.parse().unwrap(), mark, PATIENCE)
    }

    /// Connects to the pod from the router.
    fn connect_in(&self, to: SocketAddr) -> io::Result<TcpStream> {
        connect(self.fabric.router(), to, None, PATIENCE)
    }
}

fn connect(
    from: &NetworkNamespace,
    to: SocketAddr,
    mark: Option<u32>,
    patience: Duration,
) -> io::Result<TcpStream> {
    from.within(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        socket.connect_timeout(&to.into(), patience)?;
        Ok(socket.into())
    })
    .unwrap()
}

fn accept(listener: &TcpListener, client: &TcpStream) -> TcpStream {
    let (stream, peer) = listener.accept().unwrap();
    assert_eq!(canonical(peer), client.local_addr().unwrap(), "the accepted connection is the client's");
    stream
}

fn pod_address(index: usize, port: u16) -> SocketAddr {
    SocketAddr::new(POD_IPS[index].parse().unwrap(), port)
}

#[test]
fn outbound_connections_arrive_with_their_original_destination() {
    sandbox_support::inside("outbound_connections_arrive_with_their_original_destination", || {
        let pod = Pod::new();
        capture::enroll(&pod.namespace, &Redirection::default()).unwrap();
        let proxy = pod.listen(15001);
        for destination in ELSEWHERE {
            let client = pod.connect(destination, None).unwrap();
            let captured = accept(&proxy, &client);
            assert_eq!(original_destination(&captured), Some(destination.parse().unwrap()));
        }
    });
}

#[test]
fn inbound_connections_arrive_with_their_original_destination() {
    sandbox_support::inside("inbound_connections_arrive_with_their_original_destination", || {
        let pod = Pod::new();
        capture::enroll(&pod.namespace, &Redirection::default()).unwrap();
        let proxy = pod.listen(15006);
        let tunnel = pod.listen(15008);
        for index in 0..POD_IPS.len() {
            let destination = pod_address(index, 8080);
            let client = pod.connect_in(destination).unwrap();
            assert_eq!(original_destination(accept(&proxy, &client)), Some(destination));
            let client = pod.connect_in(pod_address(index, 15008)).unwrap();
            accept(&tunnel, &client);
        }
    });
}

#[test]
fn the_proxys_own_connections_and_loopback_are_left_alone() {
    sandbox_support::inside("the_proxys_own_connections_and_loopback_are_left_alone", || {
        let pod = Pod::new();
        capture::enroll(&pod.namespace, &Redirection::default()).unwrap();
        let _proxies = [pod.listen(15001), pod.listen(15006)];
        let application = pod.listen(8080);
        for own in ["127.0.0.1:8080", "[::1]:8080", "10.244.0.5:8080", "[fd00::5]:8080"] {
            let client = pod.connect(own, None).unwrap();
            accept(&application, &client);
        }
        for destination in ELSEWHERE {
            let refused =
                connect(&pod.namespace, destination.parse().unwrap(), Some(PROXY_MARK), REFUSAL_PATIENCE);
            assert!(refused.is_err(), "a marked connection must go to {destination} itself, where nobody is");
        }
    });
}

/// The proxy dials the application under the client's address; the answers must come back to the proxy.
#[test]
fn connections_under_the_clients_address_are_led_back() {
    sandbox_support::inside("connections_under_the_clients_address_are_led_back", || {
        let pod = Pod::new();
        capture::enroll(&pod.namespace, &Redirection::default()).unwrap();
        let application = pod.listen(8080);
        for (index, client) in ["10.244.9.9:0", "[fd00::99]:0"].into_iter().enumerate() {
            let client: SocketAddr = client.parse().unwrap();
            let to = pod_address(index, 8080);
            let stream: TcpStream = pod
                .namespace
                .within(|| {
                    let socket =
                        Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
                    socket.set_mark(PROXY_MARK).unwrap();
                    if to.is_ipv4() {
                        socket.set_ip_transparent_v4(true).unwrap();
                    } else {
                        socket.set_ip_transparent_v6(true).unwrap();
                    }
                    socket.bind(&client.into()).unwrap();
                    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
                    socket.into()
                })
                .unwrap();
            let (_, peer) = application.accept().unwrap();
            assert_eq!(canonical(peer).ip(), client.ip());
            assert_eq!(stream.peer_addr().unwrap(), to);
        }
    });
}

#[test]
fn enrolling_and_leaving_are_idempotent_and_leaving_restores() {
    sandbox_support::inside("enrolling_and_leaving_are_idempotent_and_leaving_restores", || {
        let pod = Pod::new();
        capture::leave(&pod.namespace).unwrap();
        for _ in 0..2 {
            capture::enroll(&pod.namespace, &Redirection::default()).unwrap();
        }
        let outbound = pod.listen(15001);
        let client = pod.connect(ELSEWHERE[0], None).unwrap();
        accept(&outbound, &client);
        for _ in 0..2 {
            capture::leave(&pod.namespace).unwrap();
        }
        let application = pod.listen(8080);
        for index in 0..POD_IPS.len() {
            let client = pod.connect_in(pod_address(index, 8080)).unwrap();
            accept(&application, &client);
        }
        let elsewhere = connect(&pod.namespace, ELSEWHERE[0].parse().unwrap(), None, REFUSAL_PATIENCE);
        assert!(elsewhere.is_err(), "nothing redirects any more");
        let rules =
            capture::tool::run(capture::Tool::Nft, &["list", "ruleset"], "", Some(&pod.namespace)).unwrap();
        assert_eq!(rules.trim(), "");
        for family in ["-4", "-6"] {
            let arguments = [family, "rule", "show", "pref", "32764"];
            let rules = capture::tool::run(capture::Tool::Ip, &arguments, "", Some(&pod.namespace)).unwrap();
            assert_eq!(rules.trim(), "");
        }
        capture::enroll(&pod.namespace, &Redirection::default()).unwrap();
        let client = pod.connect(ELSEWHERE[1], None).unwrap();
        accept(&outbound, &client);
    });
}
