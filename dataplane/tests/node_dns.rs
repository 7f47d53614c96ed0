//! Names that pods of whole nodes ask for: the C library and a client of the test ask in captured pods, a name server of
//! the test knows what the mesh does not, and connections go where the answers say.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests fail the test

mod node_support;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, TXT};
use hickory_proto::rr::{RData, RecordType};
use node_support::names::{
    Asked, NameServer, Reply, addresses, ask_tcp, ask_udp, getent, question, resolved,
};
use node_support::resources::{NAMESPACE, bytes_of, hostname};
use node_support::{Bed, inside};
use xds::proto::workload::{NetworkAddress, Port, PortList, Workload};

/// What pods are told of. Nobody has these addresses: only the redirection answers.
const CLUSTER_DNS: &str = "10.96.0.10";
const CLUSTER_DNS_V6: &str = "fd00:10::10";
/// Where the proxy of the node `a` answers.
const DNS_PORT: u16 = 15054;
/// The first pod of the bed, in which the nodes' name server runs.
const NAME_SERVER: &str = "10.244.1.1";

/// The proxy of `a` answers its pods' queries at another port than usual; that of `b` does not.
fn bed() -> Bed {
    let mut bed = Bed::with(&["a", "b"], |node| {
        node.set_resolv_conf(&format!("nameserver {NAME_SERVER}\noptions timeout:5 attempts:1\n"));
        match &*node.name {
            "a" => {
                let config = format!("{{proxyMetadata: {{DNS_PROXY_ADDR: 'localhost:{DNS_PORT}'}}}}");
                node.set("PROXY_CONFIG", config);
                node.set("ISTIO_META_DNS_CAPTURE", true);
            }
            _ => node.set("ISTIO_META_DNS_CAPTURE", false),
        }
    });
    bed.plain_pod("plain");
    assert_eq!(bed.v4("plain").to_string(), NAME_SERVER);
    bed.pod("b", "server");
    bed.redirection.dns_port = Some(DNS_PORT);
    for pod in ["client", "neighbour"] {
        bed.pod("a", pod);
    }
    bed.ready();
    bed
}

/// What the nodes' name server knows.
fn outside(asked: &Asked) -> Reply {
    let near = || "fd00:244::1".parse().unwrap();
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
        ("db.example.net.", RecordType::A) => Reply::Records(vec![RData::A(A::new(10, 244, 1, 1))]),
        ("db.example.net.", RecordType::AAAA) => Reply::Records(vec![RData::AAAA(AAAA(near()))]),
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

/// The addresses that the C library finds in a pod.
fn resolve(bed: &Bed, pod: &str, name: &str) -> Vec<String> {
    resolved(&getent(bed.network(pod), &resolv_conf(CLUSTER_DNS, ""), "ahosts", name))
}

fn count(bed: &Bed, metric: &str, labels: &[&str]) -> u64 {
    bed.nodes["a"].metric(metric, labels)
}

#[test]
fn pods_resolve_services_and_connect_to_what_they_found() {
    inside("pods_resolve_services_and_connect_to_what_they_found", || {
        let mut bed = bed();
        let upstream = NameServer::start(bed.network("plain"), outside);
        bed.echo("server", 8080);
        bed.echo("neighbour", 8080);
        let web = bed.service("web", &["server"], 8080, false);
        bed.service("headless", &["neighbour"], 8080, true);
        let vips: Vec<_> = web.into_iter().map(|vip| vip.ip().to_string()).collect();
        let endpoints: Vec<_> = bed.get("neighbour").ips.iter().map(ToString::to_string).collect();
        bed.until("the services are known", |bed| resolve(bed, "client", "headless") == endpoints);
        // Until then the name server was asked.
        let (asked, forwarded) =
            (upstream.asked().len(), count(&bed, "istio_dns_upstream_requests_total", &[]));
        for (address, more) in
            [(CLUSTER_DNS, ""), (CLUSTER_DNS_V6, ""), (CLUSTER_DNS, " use-vc"), (CLUSTER_DNS_V6, " use-vc")]
        {
            let conf = resolv_conf(address, more);
            for name in ["web", "web.app", "web.app.svc", "web.app.svc.cluster.local"] {
                let found = resolved(&getent(bed.network("client"), &conf, "ahosts", name));
                assert_eq!(found, vips, "{name} at {address}{more}");
            }
        }
        assert_eq!(upstream.asked().len(), asked);
        assert_eq!(count(&bed, "istio_dns_upstream_requests_total", &[]), forwarded);
        for protocol in ["udp", "tcp"] {
            let labels =
                [&*format!("request_protocol=\"{protocol}\""), "source_canonical_service=\"client\""];
            let requests = count(&bed, "istio_dns_requests_total", &labels);
            assert!(requests >= 16, "{protocol}: {}", bed.nodes["a"].metrics());
        }
        for (vip, from) in vips.iter().zip(bed.get("client").ips) {
            let to = SocketAddr::new(vip.parse().unwrap(), 80);
            assert_eq!(bed.request("client", to).unwrap(), bed.answer("server", from));
        }
        for to in bed.address("neighbour", 8080) {
            assert!(bed.request("client", to).unwrap().starts_with("neighbour "));
        }

        // The service moves, and a pod comes.
        let address = bytes_of([10, 96, 7, 7].into());
        bed.change_service("web", |it| it.addresses = vec![NetworkAddress { address, ..Default::default() }]);
        bed.until("the new address is told", |bed| resolve(bed, "client", "web") == ["10.96.7.7"]);
        bed.pod("a", "late");
        bed.until("the new pod is answered", |bed| resolve(bed, "late", "web.app") == ["10.96.7.7"]);
        // Without its control plane a node goes on with what it has.
        bed.control.halt();
        assert_eq!(resolve(&bed, "client", "web"), ["10.96.7.7"]);
        assert_eq!(resolve(&bed, "late", "headless"), endpoints);
    });
}

#[test]
fn other_names_are_asked_of_the_nodes_servers_by_pods_and_by_the_proxy() {
    inside("other_names_are_asked_of_the_nodes_servers_by_pods_and_by_the_proxy", || {
        let mut bed = bed();
        let upstream = NameServer::start(bed.network("plain"), outside);
        let pod = bed.network("client").clone();
        assert_eq!(resolve(&bed, "client", "www.example.org."), ["192.0.2.1", "2001:db8::1"]);
        let missing = getent(&pod, &resolv_conf(CLUSTER_DNS, ""), "ahosts", "missing");
        assert_eq!(missing.status.code(), Some(2));
        let missing =
            ask_udp(&pod, server(CLUSTER_DNS_V6), &question("missing.example.org.", RecordType::A, 9));
        assert_eq!((missing.metadata.response_code, missing.metadata.id), (ResponseCode::NXDomain, 9));
        let big = question("big.example.org.", RecordType::A, 5);
        let cut = ask_udp(&pod, server(CLUSTER_DNS), &big);
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        for address in [CLUSTER_DNS, CLUSTER_DNS_V6] {
            let socket = bed.connect("client", server(address)).unwrap();
            let text = question("www.example.org.", RecordType::TXT, 10);
            let answers = ask_tcp(&socket, &[text, big.clone()]);
            assert_eq!([answers[0].answers.len(), answers[1].answers.len()], [1, 100]);
        }
        let asked = upstream.asked();
        assert!(asked.iter().all(|it| it.from == bed.v4("client")), "{asked:?}");
        // A long answer is fetched anew over TCP for the same request.
        let requests = asked.iter().filter(|it| !it.tcp).count() as u64;
        assert_eq!(count(&bed, "istio_dns_upstream_requests_total", &[]), requests);
        assert_eq!(count(&bed, "istio_dns_upstream_failures_total", &[]), 0);

        // Where it is switched off, nobody stands between a pod and its name server.
        let answer = ask_udp(
            bed.network("server"),
            SocketAddr::new(bed.v4("plain"), 53),
            &question("www.example.org.", RecordType::A, 1),
        );
        assert_eq!(addresses(&answer), ["192.0.2.1"]);
        assert_eq!(upstream.asked().last().unwrap().from, bed.v4("server"));
        for (pod, listens) in [("client", true), ("server", false)] {
            for address in ["127.0.0.1", "::1"] {
                let at = SocketAddr::new(address.parse().unwrap(), DNS_PORT);
                assert_eq!(bed.connect(pod, at).is_ok(), listens, "{pod} {address}");
            }
        }

        // A service whose only workload is known by name: the proxy asks, in its own network.
        bed.echo("plain", 5432);
        let vips = bed.service("db", &[], 5432, false);
        let known_as = |hostname_of_it: &str| {
            let port = Port { service_port: 80, target_port: 5432, app_protocol: 0 };
            let key = format!("{NAMESPACE}/{}", hostname("db"));
            Workload {
                uid: "Kubernetes/networking.istio.io/ServiceEntry/app/db/far".to_owned(),
                name: "db".to_owned(),
                namespace: NAMESPACE.to_owned(),
                hostname: hostname_of_it.to_owned(),
                services: BTreeMap::from([(key, PortList { ports: vec![port] })]),
                ..Workload::default()
            }
        };
        bed.apply([known_as("db.example.net")]);
        for (vip, from) in vips.into_iter().zip(bed.get("client").ips) {
            bed.until_answer("client", vip, &bed.answer("plain", from));
        }
        let is_proxys = |it: &Asked| it.name == "db.example.net." && it.from == bed.nodes["a"].ips[0];
        assert!(upstream.asked().iter().any(is_proxys), "{:?}", upstream.asked());
        assert!(count(&bed, "istio_on_demand_dns_total", &["hostname=\"db.example.net\""]) >= 2);
        bed.apply([known_as("gone.example.net")]);
        bed.until_refused("client", vips.v4);
        bed.nodes["a"].until_logged(&["the host name of the upstream has no address", "db.app.svc"]);
    });
}
