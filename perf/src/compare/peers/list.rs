//! All topologies that come with the program.

use super::super::result::{Kind, Layer, Network};
use super::haproxy::Between;
use super::{NodeMesh, Nodes, Refusal, Spec, Starter, WITH_ACCESS_LOG, WITHOUT_ACCESS_LOG};

/// The part of a [`Spec`] that does not depend on the network.
struct Base {
    name: &'static str,
    label: &'static str,
    kind: Kind,
    layer: Layer,
    processes: &'static [&'static str],
    description: &'static str,
    refusal: Refusal,
    starter: Starter,
}

impl Base {
    fn on(&self, network: Network, suffix: &str) -> Spec {
        Spec {
            name: format!("{}{suffix}", self.name),
            label: self.label,
            kind: self.kind,
            network,
            layer: self.layer,
            processes: self.processes.iter().map(|name| (*name).to_owned()).collect(),
            description: self.description,
            refusal: self.refusal,
            starter: self.starter.clone(),
        }
    }
}

/// In the order in which they are run and shown. Those in namespaces have a name that ends in `-ns`, or are ours.
pub(in crate::compare) fn all() -> Vec<Spec> {
    let anywhere: Vec<Base> =
        [floors(), envoy_sidecars(), envoys(), conventional()].into_iter().flatten().collect();
    let mut specs: Vec<Spec> = anywhere.iter().map(|base| base.on(Network::Loopback, "")).collect();
    specs.extend(tunnels().iter().map(|base| base.on(Network::Loopback, "")));
    specs.extend(anywhere.iter().map(|base| base.on(Network::Namespaces, "-ns")));
    specs.extend(nodes().iter().map(|base| base.on(Network::Namespaces, "")));
    specs
}

fn floors() -> Vec<Base> {
    let floor = |name, label, processes, description, layer, starter| Base {
        name,
        label,
        kind: Kind::Floor,
        layer,
        processes,
        description,
        refusal: Refusal::Nothing,
        starter,
    };
    vec![
        floor("none", "no proxy", &[], "The load talks to the backend.", Layer::None, Starter::Nothing),
        floor(
            "relay-pair",
            "two plain relays",
            &["client", "server"],
            "Two processes that copy bytes between sockets (tokio, one thread, 16 KiB at a time): what a pair costs without any protocol.",
            Layer::L4,
            Starter::Relays,
        ),
    ]
}

/// The two of a pair.
const PAIR: &[&str] = &["client", "server"];

fn peer(
    (name, label): (&'static str, &'static str),
    processes: &'static [&'static str],
    description: &'static str,
    (layer, refusal): (Layer, Refusal),
    starter: Starter,
) -> Base {
    let kind = Kind::Peer;
    Base { name, label, kind, layer, processes, description, refusal, starter }
}

fn envoy_sidecars() -> Vec<Base> {
    let sidecars = |http2, telemetry| Starter::Sidecars { http2, telemetry };
    vec![
        peer(
            ("envoy-sidecar", "Envoy sidecars"),
            PAIR,
            "As Istio sets sidecars up: HTTP routing, RBAC with methods, paths and a path template, mutual TLS with HTTP/1.1, Istio's four metrics with 25 tags at each. With many rules: 1,000 routes with a header each at the client and 100 policies of templates at the server.",
            (Layer::L7, Refusal::Policy),
            sidecars(false, true),
        ),
        peer(
            ("envoy-sidecar-h2", "Envoy sidecars, HTTP/2"),
            PAIR,
            "As envoy-sidecar, with HTTP/2 between the two.",
            (Layer::L7, Refusal::Policy),
            sidecars(true, true),
        ),
        peer(
            ("envoy-sidecar-plain-stats", "Envoy sidecars, no telemetry"),
            PAIR,
            "As envoy-sidecar, without Istio's metrics.",
            (Layer::L7, Refusal::Policy),
            sidecars(false, false),
        ),
    ]
}

fn envoys() -> Vec<Base> {
    vec![
        peer(
            ("envoy-l4", "Envoy, TCP"),
            PAIR,
            "tcp_proxy at both, a mutual TLS connection for each connection, RBAC of the identity.",
            (Layer::L4, Refusal::Nothing),
            Starter::EnvoyL4,
        ),
        peer(
            ("envoy-hbone", "Envoy, HBONE"),
            PAIR,
            "Envoy in ztunnel's place: each connection a CONNECT stream in pooled mutual TLS, RBAC of the identity.",
            (Layer::L4, Refusal::Nothing),
            Starter::EnvoyHbone,
        ),
        peer(
            ("envoy-waypoint", "Envoy, HBONE with waypoint"),
            &["client", "waypoint", "server"],
            "HBONE to a waypoint with routing, RBAC with a path template and Istio's metrics, HBONE to the server's side: three Envoys.",
            (Layer::L7, Refusal::Policy),
            Starter::EnvoyWaypoint,
        ),
        peer(
            ("envoy-hop", "Envoy, one HTTP hop"),
            &["proxy"],
            "One Envoy without TLS: HTTP routing and Istio's metrics. With many rules: 1,000 routes with a header each and 100 policies of templates.",
            (Layer::L7, Refusal::PolicyOfMany),
            Starter::EnvoyHop,
        ),
    ]
}

fn conventional() -> Vec<Base> {
    vec![
        peer(
            ("haproxy-sidecar", "HAProxy pair"),
            PAIR,
            "HTTP rules at both, a policy of methods, paths and a regular expression at the server, mutual TLS with HTTP/1.1; no telemetry. With many rules: 1,000 use_backend rules with a header each at the client and 100 ACLs of regular expressions at the server.",
            (Layer::L7, Refusal::Policy),
            Starter::Haproxy(Between::Http1),
        ),
        peer(
            ("haproxy-sidecar-h2", "HAProxy pair, HTTP/2"),
            PAIR,
            "As haproxy-sidecar, with HTTP/2 between the two.",
            (Layer::L7, Refusal::Policy),
            Starter::Haproxy(Between::Http2),
        ),
        peer(
            ("haproxy-l4", "HAProxy pair, TCP"),
            PAIR,
            "TCP mode, a mutual TLS connection for each connection.",
            (Layer::L4, Refusal::Nothing),
            Starter::Haproxy(Between::Bytes),
        ),
        peer(
            ("haproxy-hop", "HAProxy, one HTTP hop"),
            &["proxy"],
            "One HAProxy without TLS and telemetry. With many rules: 1,000 use_backend rules with a header each and 100 ACLs of regular expressions.",
            (Layer::L7, Refusal::PolicyOfMany),
            Starter::HaproxyHop,
        ),
        peer(
            ("nginx-hop", "nginx, one HTTP hop"),
            &["proxy"],
            "One nginx without TLS and telemetry.",
            (Layer::L7, Refusal::Route),
            Starter::NginxHop,
        ),
    ]
}

fn tunnels() -> Vec<Base> {
    let tunnel = |name, label, description, driver, workers, congestion| Base {
        name,
        label,
        kind: Kind::Ours,
        layer: Layer::L4,
        processes: &["client", "server"],
        description,
        refusal: Refusal::Nothing,
        starter: Starter::Tunnel { driver, workers, congestion },
    };
    vec![
        tunnel(
            "corelane-l4",
            "Corelane, L4",
            "`corelane tunnel client` and `server`: each connection a CONNECT stream in pooled mutual TLS (HBONE); congestion control of the host, as all others.",
            "io_uring",
            1,
            None,
        ),
        tunnel(
            "corelane-l4-reno",
            "Corelane, L4, reno",
            "As corelane-l4, with `--congestion reno`, as we advise between processes of one machine.",
            "io_uring",
            1,
            Some("reno"),
        ),
        tunnel(
            "corelane-l4-epoll",
            "Corelane, L4, epoll",
            "As corelane-l4, waiting with epoll.",
            "epoll",
            1,
            None,
        ),
        tunnel(
            "corelane-l4-2-workers",
            "Corelane, L4, two workers",
            "As corelane-l4, two workers in each process, on the one CPU of the proxies.",
            "io_uring",
            2,
            None,
        ),
    ]
}

/// One arrangement of node proxies.
fn node(
    name: &'static str,
    label: &'static str,
    description: &'static str,
    (mesh, driver, workers, log): (NodeMesh, &'static str, usize, &'static str),
) -> Base {
    let (layer, refusal) = match mesh {
        NodeMesh::L4 => (Layer::L4, Refusal::Nothing),
        NodeMesh::L7 | NodeMesh::Waypoint => (Layer::L7, Refusal::Policy),
        NodeMesh::Hop => (Layer::L7, Refusal::Route),
    };
    Base {
        name,
        label,
        kind: Kind::Ours,
        layer,
        processes: match mesh {
            NodeMesh::Hop => &["proxy"],
            NodeMesh::Waypoint => &["client", "waypoint", "server"],
            NodeMesh::L4 | NodeMesh::L7 => PAIR,
        },
        description,
        refusal,
        starter: Starter::Nodes(Nodes { mesh, driver, workers, log, program: None }),
    }
}

fn nodes() -> Vec<Base> {
    let (quiet, logging) = (WITHOUT_ACCESS_LOG, WITH_ACCESS_LOG);
    vec![
        node(
            "corelane-node-l4",
            "Corelane nodes, L4",
            "Two whole `corelane proxy` processes with control plane and node agent: HBONE, an identity policy, all metrics, a line in the access log for each connection.",
            (NodeMesh::L4, "io_uring", 1, logging),
        ),
        node(
            "corelane-l7",
            "Corelane nodes, L7",
            "Two whole `corelane proxy` processes: each request routed at the client's node and decided at the server's by a policy of methods, paths and a path template, HBONE between, Istio's metrics; no access log, as the others. With many rules: 1,000 routes with a header each and 100 policies of templates.",
            (NodeMesh::L7, "io_uring", 1, quiet),
        ),
        node(
            "corelane-l7-log",
            "Corelane nodes, L7, access log",
            "As corelane-l7, with a line in the access log of each node for each request, written to a file.",
            (NodeMesh::L7, "io_uring", 1, logging),
        ),
        node(
            "corelane-l7-epoll",
            "Corelane nodes, L7, epoll",
            "As corelane-l7, waiting with epoll.",
            (NodeMesh::L7, "epoll", 1, quiet),
        ),
        node(
            "corelane-l7-2-workers",
            "Corelane nodes, L7, two workers",
            "As corelane-l7, two workers in each process, on the one CPU of the proxies.",
            (NodeMesh::L7, "io_uring", 2, quiet),
        ),
        node(
            "corelane-waypoint",
            "Corelane, HBONE with waypoint",
            "Two whole `corelane proxy` processes and `corelane waypoint` between them: HBONE to the waypoint, each request decided there by a policy of methods, paths and a path template and routed, HBONE to the server's node; Istio's metrics, no access log. With many rules: 1,000 routes with a header each and 100 policies of templates.",
            (NodeMesh::Waypoint, "io_uring", 1, quiet),
        ),
        node(
            "corelane-hop",
            "Corelane node, one HTTP hop",
            "One whole `corelane proxy` process at the client: each request routed to a server outside the mesh, in plain text; Istio's metrics, no access log. With many rules: 1,000 routes with a header each.",
            (NodeMesh::Hop, "io_uring", 1, quiet),
        ),
    ]
}
