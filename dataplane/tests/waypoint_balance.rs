//! Traffic policies at a waypoint: told by our own control plane, and by the resources of an unmodified istiod.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use node_support::istiod::{cluster, listener, routes, service_address};
use node_support::waypoint::{Answer, ask, read_head};
use node_support::{Bed, inside, traffic};
use xds::proto::waypoint::cluster::LbPolicy;
use xds::proto::waypoint::{Cluster, HashPolicy, OutlierDetection, hash_policy, route};
use xds::proto::workload::AppProtocol;

const SERVERS: [&str; 2] = ["server", "second"];

/// Clients on node `a`, two servers on node `b`.
fn bed() -> Bed {
    let mut bed = Bed::new(&["a", "b"]);
    for (node, pod) in [("a", "client"), ("b", "server"), ("b", "second")] {
        bed.pod(node, pod);
    }
    for pod in SERVERS {
        traffic::serve(bed.network(pod), 8080, move |socket, _| answer(pod, &socket));
    }
    bed
}

/// Answers requests with the server's name; those for `/fail/NAME` fail at that server.
fn answer(name: &str, mut socket: &TcpStream) {
    while let Ok(Some(head)) = read_head(socket) {
        let fails = head.contains(&format!("/fail/{name} "));
        let status = if fails { "503 Bad" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{name}", name.len());
        if socket.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn get(socket: &TcpStream, path: &str, user: &str) -> Answer {
    let fields = [("x-user", user)];
    ask(socket, "GET", path, if user.is_empty() { &[] } else { &fields }).unwrap()
}

/// Users have homes, whichever connection they come by, and not all the same.
fn are_hashed(bed: &Bed, to: SocketAddr) {
    let mut homes: BTreeMap<String, String> = BTreeMap::new();
    for round in 0..3 {
        let socket = bed.connect("client", to).unwrap();
        for user in (0..24).map(|number| format!("user-{number}")) {
            let answer = get(&socket, "/", &user);
            assert_eq!(answer.status, 200, "{answer:?}");
            let home = homes.entry(user.clone()).or_insert_with(|| answer.body.clone());
            assert_eq!(*home, answer.body, "{user}, round {round}");
        }
    }
    assert_eq!(homes.values().collect::<BTreeSet<_>>().len(), 2, "{homes:?}");
}

/// What fails twice at `second` is served by the other alone, and some of it before.
fn second_is_left_out(bed: &Bed, to: SocketAddr) {
    let socket = bed.connect("client", to).unwrap();
    let failed = (0..40).filter(|_| get(&socket, "/fail/second", "").status == 503).count();
    assert_eq!(failed, 2);
    assert!((0..20).all(|_| get(&socket, "/", "").body == "server"));
}

fn rule(policy: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web, namespace: app}}
spec: {{host: web, trafficPolicy: {{{policy}}}}}
---
"
    )
}

#[test]
fn a_waypoint_spreads_requests_as_the_rule_says() {
    inside("a_waypoint_spreads_requests_as_the_rule_says", || {
        let mut bed = bed();
        let web = bed.service("web", &SERVERS, 8080, false);
        let raw = bed.service("raw", &SERVERS, 8080, false);
        bed.waypoint(|_| {});
        bed.ready();
        let hashed = rule("loadBalancer: {consistentHash: {httpHeaderName: x-user}}");
        bed.stand_before(&["web"], AppProtocol::Http11, &hashed);
        are_hashed(&bed, web.v4);

        let in_turn = "loadBalancer: {simple: ROUND_ROBIN}";
        bed.enforce(&["web"], &rule(in_turn));
        let socket = bed.connect("client", web.v4).unwrap();
        let told: Vec<_> = (0..8).map(|_| get(&socket, "/", "").body).collect();
        assert!(told.windows(2).all(|pair| pair[0] != pair[1]), "{told:?}");

        let outliers =
            "outlierDetection: {consecutive5xxErrors: 2, maxEjectionPercent: 50, baseEjectionTime: 3m}";
        bed.enforce(&["web"], &rule(&format!("{in_turn}, {outliers}")));
        second_is_left_out(&bed, web.v4);

        // Connections without requests, of which each of two workers may have one.
        let bounded = format!("{in_turn}, connectionPool: {{tcp: {{maxConnections: 2}}}}");
        bed.stand_before(&["raw"], AppProtocol::Tcp, &rule(&bounded).replace("host: web", "host: raw"));
        let mut held = Vec::new();
        let mut told = Vec::new();
        for _ in 0..6 {
            // What is refused may be reset before it is looked at.
            let Ok(mut socket) = bed.connect("client", raw.v4) else { continue };
            let mut bytes = [0; 256];
            let sent = socket.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| socket.read(&mut bytes));
            if let Ok(count @ 1..) = sent {
                told.push(String::from_utf8_lossy(&bytes[..count]).rsplit('\n').next().unwrap().to_owned());
                held.push(socket);
            }
        }
        assert!((1..=2).contains(&told.len()), "{told:?}");
        drop(held);
    });
}

#[test]
fn a_waypoint_spreads_requests_as_istiod_says() {
    inside("a_waypoint_spreads_requests_as_istiod_says", || {
        let mut bed = bed();
        let header = hash_policy::Header { header_name: "x-user".into() };
        let by_user = HashPolicy { specifier: Some(hash_policy::Specifier::Header(header)) };
        let listener = listener(|manager| {
            let Some(route::Action::Route(action)) = &mut routes(manager)[0].action else { panic!() };
            action.hash_policy = vec![by_user];
        });
        let maglev = |cluster: &mut Cluster| cluster.lb_policy = LbPolicy::Maglev.into();
        bed.waypoint_under_istiod(SERVERS, [cluster(maglev), listener]);
        are_hashed(&bed, service_address());
        let ring = |cluster: &mut Cluster| cluster.lb_policy = LbPolicy::RingHash.into();
        bed.apply([cluster(ring)]);
        are_hashed(&bed, service_address());

        let outliers = |cluster: &mut Cluster| {
            cluster.lb_policy = LbPolicy::RoundRobin.into();
            cluster.outlier_detection = Some(OutlierDetection {
                consecutive_5xx: Some(2),
                max_ejection_percent: Some(50),
                ..OutlierDetection::default()
            });
        };
        bed.apply([cluster(outliers)]);
        second_is_left_out(&bed, service_address());
    });
}
