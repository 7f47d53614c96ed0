//! Floods and slow clients at a waypoint, with a certificate that it takes: of its tunnels, and of the HTTP/2 in their
//! streams. The flooder is stopped, memory stays, and neighbours go on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests fail the test

mod flood_support;
mod node_support;

use std::net::SocketAddr;

use flood_support::{Neighbour, Peer, block, floods, unended, withstand};
use node_support::pki::Pki;
use node_support::resources::identity;
use node_support::waypoint::{WAYPOINT, ask};
use node_support::{Bed, inside, traffic};
use xds::proto::workload::AppProtocol;

/// What one connection may cost, and some for the process around it.
const MEMORY_MAX: usize = 8 << 20;

const RULES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: app}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: app}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  rules: [{to: [{operation: {paths: ['/*'], notPaths: [/secret]}}]}]
";

/// GET of http://a/ and of http://a/secret, without touching the table.
const ALLOWED: &[u8] = b"\x82\x86\x84\x01\x01a";
const DENIED: &[u8] = b"\x82\x86\x04\x07/secret\x01\x01a";

/// Clients on node `a`, an application on node `b` behind a waypoint, and who dials that itself.
fn bed(idle_seconds: Option<u32>) -> (Bed, SocketAddr) {
    let mut bed = Bed::new(&["a", "b"]);
    for (node, pod) in [("a", "client"), ("a", "other"), ("b", "server")] {
        bed.pod(node, pod);
    }
    bed.place(None, "attacker");
    let web = bed.service("web", &["server"], 8080, false).v4;
    bed.http_echo("server", 8080);
    bed.waypoint(|node| {
        if let Some(seconds) = idle_seconds {
            node.set("CORELANE_IDLE_TIMEOUT", format!("{seconds}s"));
        }
    });
    bed.ready();
    bed.stand_before(&["web"], AppProtocol::Http11, RULES);
    (bed, web)
}

/// A tunnel to the waypoint with the client's certificate.
fn tunnel(bed: &Bed) -> Peer {
    let to = SocketAddr::new(bed.v4(WAYPOINT), 15008);
    let leaf = bed.control.authority.leaf(&identity("client"));
    let socket = traffic::connect(bed.network("attacker"), to).unwrap();
    Peer::tls(socket, Pki::client(leaf, &rustls::version::TLS13))
}

fn neighbour(bed: &Bed, web: SocketAddr) -> Neighbour {
    let socket = bed.connect("other", web).unwrap();
    socket.set_nodelay(true).unwrap();
    Neighbour::new(move || assert_eq!(ask(&socket, "GET", "/", &[]).unwrap().status, 200))
}

#[test]
fn floods_of_a_waypoints_tunnel_are_stopped() {
    inside("floods_of_a_waypoints_tunnel_are_stopped", || {
        let (bed, web) = bed(None);
        let head = block(&[(":method", "CONNECT"), (":authority", &web.to_string())]);
        let process = bed.nodes[WAYPOINT].process_id();
        withstand(neighbour(&bed, web), process, floods(&head), MEMORY_MAX, || tunnel(&bed));
        assert!(
            bed.nodes[WAYPOINT].metric("corelane_accepted_tunnels_ended_total", &["cause=\"http2_abuse\""])
                >= 10
        );
    });
}

#[test]
fn floods_of_requests_in_a_waypoints_tunnel_are_stopped() {
    inside("floods_of_requests_in_a_waypoints_tunnel_are_stopped", || {
        let (bed, web) = bed(None);
        let process = bed.nodes[WAYPOINT].process_id();
        // What is allowed is held on the way in and on the way out, too.
        for (head, memory_max) in [(DENIED, MEMORY_MAX), (ALLOWED, 2 * MEMORY_MAX)] {
            let connect = || Peer::clear(bed.connect("client", web).unwrap());
            withstand(neighbour(&bed, web), process, floods(head), memory_max, connect);
        }
    });
}

#[test]
fn slow_clients_of_a_waypoint_are_let_go() {
    inside("slow_clients_of_a_waypoint_are_let_go", || {
        let (bed, web) = bed(Some(12));
        let connect = || Peer::clear(bed.connect("client", web).unwrap());
        let head = block(&[(":method", "CONNECT"), (":authority", &web.to_string())]);
        let slow = [
            ("a header block of the tunnel", tunnel(&bed), unended(&head), Some(11)),
            ("a header block within it", connect(), unended(ALLOWED), Some(11)),
            ("a body of which nothing comes any more", connect(), flood_support::begun(ALLOWED, b"x"), None),
        ];
        let slow = slow.map(|(name, mut peer, bytes, code)| {
            let waiting = std::thread::spawn(move || {
                peer.send(&bytes);
                (peer.closed_with(), peer.ended)
            });
            (name, code, waiting)
        });
        for (name, code, waiting) in slow {
            assert_eq!(waiting.join().unwrap(), (code, true), "{name}");
        }
        let waypoint = &bed.nodes[WAYPOINT];
        for (metric, cause) in [
            ("corelane_accepted_tunnels_ended_total", "http2_timeout"),
            ("corelane_connections_ended_total", "request_timeout"),
            ("corelane_connections_ended_total", "idle_timeout"),
        ] {
            assert_eq!(
                waypoint.metric(metric, &[&format!("cause=\"{cause}\"")]),
                1,
                "{}",
                waypoint.metrics()
            );
        }
        assert_eq!(bed.http("other", web, "/", &[]).unwrap().status, 200);
    });
}
