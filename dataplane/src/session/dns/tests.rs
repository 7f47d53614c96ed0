//! What the mesh answers, rule by rule, from bytes to bytes.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as WireQuestion, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use model::Workload;
use prost::Message as _;
use xds::decode::{self, Interner};
use xds::proto::workload as wire;
use xds::snapshot::Snapshot;
use xds::store::Store;

use super::DnsOptions;
use super::answer::Question;
use super::message::{Query, Unusable};
use super::names::cluster_search_domains;
use crate::metrics::DnsProtocol as Protocol;

fn bytes(ip: &str) -> Vec<u8> {
    match ip.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn pod(name: &str, ips: &[&str], service: &str) -> wire::Workload {
    let mut workload = wire::Workload {
        uid: format!("Kubernetes//Pod/app/{name}"),
        name: name.to_owned(),
        namespace: "app".to_owned(),
        addresses: ips.iter().map(|ip| bytes(ip)).collect(),
        ..wire::Workload::default()
    };
    workload.services.insert(service.to_owned(), wire::PortList::default());
    workload
}

fn vip(network: &str, ip: &str) -> wire::NetworkAddress {
    wire::NetworkAddress { network: network.to_owned(), address: bytes(ip), length: None }
}

/// `NAMESPACE/HOST` at virtual addresses.
fn service(key: &str, vips: &[&str]) -> wire::Service {
    let (namespace, hostname) = key.split_once('/').unwrap();
    wire::Service {
        name: hostname.to_owned(),
        namespace: namespace.to_owned(),
        hostname: hostname.to_owned(),
        addresses: vips.iter().map(|ip| vip("", ip)).collect(),
        ..wire::Service::default()
    }
}

/// As the control plane sends it, with a client in namespace `app`.
fn snapshot(pods: Vec<wire::Workload>, services: Vec<wire::Service>) -> Arc<Snapshot> {
    let mut store = Store::new();
    let mut take = |name: String, address: wire::address::Type| {
        let bytes = wire::Address { r#type: Some(address) }.encode_to_vec();
        store.upsert_address(decode::address(&name, &bytes, &mut Interner::new()).unwrap());
    };
    for pod in pods.into_iter().chain([pod("client", &["10.0.0.1"], "app/nothing")]) {
        take(pod.uid.clone(), wire::address::Type::Workload(pod));
    }
    for service in services {
        let name = format!("{}/{}", service.namespace, service.hostname);
        take(name, wire::address::Type::Service(service));
    }
    store.snapshot().unwrap()
}

fn ask(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(WireQuestion::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// A client in namespace `app` and what it can learn.
struct Case {
    snapshot: Arc<Snapshot>,
    options: DnsOptions,
    ipv6: bool,
    client: Arc<Workload>,
}

impl Case {
    fn new(pods: Vec<wire::Workload>, services: Vec<wire::Service>) -> Self {
        let snapshot = snapshot(pods, services);
        let client = snapshot.workload_by_uid("Kubernetes//Pod/app/client").unwrap().clone();
        Self { snapshot, options: DnsOptions::default(), ipv6: true, client }
    }

    /// The reply to a message; `None` where other servers are asked.
    fn reply(&self, message: &Message, protocol: Protocol, random: u64) -> Option<Message> {
        let query = Query::read(&message.to_vec().unwrap(), protocol).unwrap();
        let search = cluster_search_domains("app", &self.options.cluster_domain);
        let question = Question {
            host: query.host.as_deref()?,
            family: query.family()?,
            client: &self.client,
            snapshot: &self.snapshot,
            options: &self.options,
            search: &search,
            ipv6: self.ipv6,
            random,
        };
        Some(Message::from_vec(&query.answer(&question.answer()?)).unwrap())
    }

    /// What is told of the name: each record as `OWNER=VALUE`, sorted after the alias; `None` where others are asked.
    fn records(&self, name: &str, kind: RecordType) -> Option<Vec<String>> {
        let reply = self.reply(&ask(name, kind), Protocol::Udp, 1)?;
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.metadata.authoritative && reply.metadata.recursion_desired);
        assert_eq!((reply.metadata.id, reply.metadata.message_type), (77, MessageType::Response));
        let text = |record: &hickory_proto::rr::Record| {
            assert_eq!(record.ttl, 30);
            let value = match &record.data {
                RData::A(ip) => ip.to_string(),
                RData::AAAA(ip) => ip.to_string(),
                RData::CNAME(target) => format!("alias {}", target.0),
                other => panic!("{other:?}"),
            };
            format!("{}={value}", record.name)
        };
        let mut records: Vec<_> = reply.answers.iter().map(text).collect();
        let aliases = records.iter().take_while(|record| record.contains("=alias")).count();
        records[aliases..].sort();
        Some(records)
    }

    fn check(&self, name: &str, kind: RecordType, expected: &[&str]) {
        assert_eq!(
            self.records(name, kind),
            Some(expected.iter().map(ToString::to_string).collect()),
            "{name}"
        );
    }

    fn is_forwarded(&self, name: &str) -> bool {
        self.records(name, RecordType::A).is_none()
    }
}

const ECHO: &str = "app/echo.app.svc.cluster.local";

#[test]
fn a_service_is_known_under_all_its_names() {
    let case = Case::new(
        Vec::new(),
        vec![
            service(ECHO, &["10.96.0.1", "fd00::1"]),
            service("other/web.other.svc.cluster.local", &["10.96.0.2"]),
        ],
    );
    for name in ["echo.", "echo.app.", "echo.app.svc.", "echo.app.svc.cluster.local."] {
        case.check(name, RecordType::A, &[&format!("{name}=10.96.0.1")]);
        case.check(name, RecordType::AAAA, &[&format!("{name}=fd00::1")]);
    }
    case.check("web.other.", RecordType::A, &["web.other.=10.96.0.2"]);
    assert!(case.is_forwarded("web."), "a short name is one of the client's own namespace");
    assert!(case.is_forwarded("echo.app.svc.cluster.locale."));
    assert!(case.is_forwarded("."));
}

#[test]
fn names_are_compared_without_case_and_answered_as_asked() {
    let case = Case::new(Vec::new(), vec![service(ECHO, &["10.96.0.1"])]);
    case.check("Echo.APP.svc.cluster.local.", RecordType::A, &["Echo.APP.svc.cluster.local.=10.96.0.1"]);
}

#[test]
fn a_name_with_a_search_domain_too_many_is_an_alias() {
    let case = Case::new(
        Vec::new(),
        vec![service(ECHO, &["10.96.0.1"]), service("app/www.example.com", &["240.240.0.1"])],
    );
    let asked = "www.example.com.app.svc.cluster.local.";
    case.check(
        asked,
        RecordType::A,
        &[&format!("{asked}=alias www.example.com."), "www.example.com.=240.240.0.1"],
    );
    let asked = "echo.app.app.svc.cluster.local.";
    case.check(asked, RecordType::A, &[&format!("{asked}=alias echo.app."), "echo.app.=10.96.0.1"]);
    // No address of the family: no alias either.
    case.check(asked, RecordType::AAAA, &[]);
}

#[test]
fn wildcards_answer_for_what_no_exact_name_does() {
    let case = Case::new(
        Vec::new(),
        vec![
            service("app/*.example.com", &["240.240.0.1"]),
            service("app/*.b.example.com", &["240.240.0.2"]),
            service("app/a.b.example.com", &["240.240.0.3"]),
        ],
    );
    case.check("x.example.com.", RecordType::A, &["x.example.com.=240.240.0.1"]);
    case.check("x.b.example.com.", RecordType::A, &["x.b.example.com.=240.240.0.2"]);
    case.check("a.b.example.com.", RecordType::A, &["a.b.example.com.=240.240.0.3"]);
    assert!(case.is_forwarded("example.com."));
    // No alias to what only a wildcard covers.
    let asked = "x.example.com.app.svc.cluster.local.";
    case.check(asked, RecordType::A, &[&format!("{asked}=240.240.0.1")]);
}

#[test]
fn of_several_namespaces_the_clients_own_then_the_preferred_the_canonical_and_the_first_answer() {
    let host = |namespace: &str, last: u8| {
        service(&format!("{namespace}/www.example.com"), &[&format!("240.240.0.{last}")])
    };
    let mut canonical = host("c", 3);
    canonical.canonical = true;
    let all = vec![host("a", 1), host("b", 2), canonical, host("app", 4)];
    let answer = |services: &[wire::Service], preferred: Option<&str>| {
        let mut case = Case::new(Vec::new(), services.to_vec());
        case.options.preferred_namespace = preferred.map(Arc::from);
        case.records("www.example.com.", RecordType::A).unwrap().remove(0)
    };
    assert_eq!(answer(&all, Some("b")), "www.example.com.=240.240.0.4");
    assert_eq!(answer(&all[..3], Some("b")), "www.example.com.=240.240.0.2");
    assert_eq!(answer(&all[..3], None), "www.example.com.=240.240.0.3");
    assert_eq!(answer(&all[..2], None), "www.example.com.=240.240.0.1");
}

#[test]
fn a_service_for_its_namespace_only_is_known_to_nobody_else() {
    let mut private = service("other/www.example.com", &["240.240.0.1"]);
    private.visibility = wire::Visibility::Namespace.into();
    let mut own = service("app/own.example.com", &["240.240.0.2"]);
    own.visibility = wire::Visibility::Namespace.into();
    let case = Case::new(Vec::new(), vec![private, own]);
    assert!(case.is_forwarded("www.example.com."));
    assert!(!case.is_forwarded("own.example.com."));
}

#[test]
fn a_known_name_without_that_family_is_an_empty_answer() {
    let case = Case::new(Vec::new(), vec![service(ECHO, &["10.96.0.1"])]);
    case.check("echo.app.svc.cluster.local.", RecordType::AAAA, &[]);
}

#[test]
fn ipv6_addresses_are_not_told_where_ipv6_is_off() {
    let mut case = Case::new(Vec::new(), vec![service(ECHO, &["10.96.0.1", "fd00::1"])]);
    case.ipv6 = false;
    case.check("echo.", RecordType::AAAA, &[]);
    case.check("echo.", RecordType::A, &["echo.=10.96.0.1"]);
}

#[test]
fn only_addresses_of_the_clients_network_are_told() {
    let mut far = service(ECHO, &["10.96.0.1"]);
    far.addresses.push(vip("remote", "10.97.0.1"));
    let case = Case::new(Vec::new(), vec![far]);
    case.check("echo.", RecordType::A, &["echo.=10.96.0.1"]);
}

#[test]
fn a_headless_service_is_its_healthy_endpoints() {
    let pods = || {
        let mut unready = pod("p3", &["10.0.0.13"], ECHO);
        unready.status = wire::WorkloadStatus::Unhealthy.into();
        vec![pod("p1", &["10.0.0.11", "fd00::11"], ECHO), pod("p2", &["10.0.0.12"], ECHO), unready]
    };
    let headless = service(ECHO, &[]);
    let case = Case::new(pods(), vec![headless.clone()]);
    case.check("echo.", RecordType::A, &["echo.=10.0.0.11", "echo.=10.0.0.12"]);
    case.check("echo.", RecordType::AAAA, &["echo.=fd00::11"]);
    // One family only, whatever the pods have.
    let mut one_family = headless.clone();
    one_family.ip_families = wire::IpFamilies::Ipv4Only.into();
    Case::new(pods(), vec![one_family]).check("echo.", RecordType::AAAA, &[]);
    // Published before they are ready.
    let mut early = headless;
    early.load_balancing = Some(wire::LoadBalancing {
        health_policy: wire::load_balancing::HealthPolicy::AllowAll.into(),
        ..wire::LoadBalancing::default()
    });
    let case = Case::new(pods(), vec![early]);
    case.check("echo.", RecordType::A, &["echo.=10.0.0.11", "echo.=10.0.0.12", "echo.=10.0.0.13"]);
    // Without any endpoint it is known all the same.
    Case::new(Vec::new(), vec![service(ECHO, &[])]).check("echo.", RecordType::A, &[]);
}

#[test]
fn a_host_outside_the_cluster_without_an_address_is_left_to_others() {
    let mut block = service("app/block.example.com", &["10.0.0.0"]);
    block.addresses[0].length = Some(8);
    let member = pod("p1", &["10.0.0.11"], "app/www.example.com");
    let case = Case::new(vec![member], vec![service("app/www.example.com", &[]), block]);
    assert!(case.is_forwarded("www.example.com."));
    assert!(case.is_forwarded("block.example.com."));
}

#[test]
fn another_cluster_domain_is_the_clusters() {
    let mut case = Case::new(Vec::new(), vec![service("app/echo.app.svc.corp.example", &[])]);
    assert!(case.is_forwarded("echo.app."));
    case.options.cluster_domain = Arc::from("corp.example");
    case.check("echo.app.", RecordType::A, &[]);
}

#[test]
fn addresses_come_in_random_order() {
    let vips: Vec<String> = (1..=8).map(|last| format!("10.96.0.{last}")).collect();
    let vips: Vec<&str> = vips.iter().map(String::as_str).collect();
    let case = Case::new(Vec::new(), vec![service(ECHO, &vips)]);
    let first = |random| -> IpAddr {
        let reply = case.reply(&ask("echo.", RecordType::A), Protocol::Udp, random).unwrap();
        assert_eq!(reply.answers.len(), 8);
        reply.answers[0].data.ip_addr().unwrap()
    };
    let seen: std::collections::BTreeSet<_> = (0..64).map(first).collect();
    assert!(seen.len() > 4, "{seen:?}");
}

#[test]
fn other_questions_are_left_to_others() {
    let case = Case::new(Vec::new(), vec![service(ECHO, &["10.96.0.1"])]);
    for kind in
        [RecordType::SRV, RecordType::TXT, RecordType::MX, RecordType::ANY, RecordType::Unknown(65_000)]
    {
        assert!(case.reply(&ask("echo.", kind), Protocol::Udp, 1).is_none(), "{kind}");
    }
    let mut chaos = ask("echo.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert!(case.reply(&chaos, Protocol::Udp, 1).is_none());
}

#[test]
fn an_answer_fits_its_transport_or_says_that_it_was_cut() {
    let vips: Vec<String> = (0..200).map(|last| format!("10.96.0.{last}")).collect();
    let vips: Vec<&str> = vips.iter().map(String::as_str).collect();
    let case = Case::new(Vec::new(), vec![service(ECHO, &vips)]);
    let reply = |message: &Message, protocol| {
        let reply = case.reply(message, protocol, 1).unwrap();
        let bytes = reply.to_vec().unwrap().len();
        (reply.answers.len(), reply.metadata.truncation, bytes, reply.edns.is_some())
    };
    let plain = ask("echo.", RecordType::A);
    let (count, truncated, bytes, edns) = reply(&plain, Protocol::Udp);
    assert!(truncated && !edns && bytes <= 512 && count > 20, "{count} records in {bytes} bytes");
    let mut large = plain.clone();
    large.set_edns({
        let mut edns = Edns::new();
        edns.set_max_payload(1_232);
        edns
    });
    let (count, truncated, bytes, edns) = reply(&large, Protocol::Udp);
    assert!(truncated && edns && bytes <= 1_232 && count > 60, "{count} records in {bytes} bytes");
    if let Some(edns) = &mut large.edns {
        edns.set_max_payload(4_096);
    }
    assert!(matches!(reply(&large, Protocol::Udp), (200, false, _, true)));
    assert!(matches!(reply(&plain, Protocol::Tcp), (200, false, _, false)));
}

#[test]
fn another_servers_answer_is_passed_on_under_the_clients_id_or_cut() {
    let query =
        Query::read(&ask("www.example.com.", RecordType::TXT).to_vec().unwrap(), Protocol::Udp).unwrap();
    let mut answer = ask("www.example.com.", RecordType::TXT);
    answer.metadata.id = 4_711;
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.response_code = ResponseCode::NXDomain;
    let passed = Message::from_vec(&query.relay(answer.to_vec().unwrap())).unwrap();
    answer.metadata.id = 77;
    assert_eq!(passed, answer);
    let cut = Message::from_vec(&query.relay(vec![0; 513])).unwrap();
    assert!(cut.metadata.truncation && cut.metadata.id == 77 && cut.answers.is_empty());
}

#[test]
fn what_is_no_plain_query_is_refused_or_ignored() {
    let bytes = ask("echo.", RecordType::A).to_vec().unwrap();
    let read = |bytes: &[u8]| Query::read(bytes, Protocol::Udp).map(|_| ()).unwrap_err();
    let refusal = |bytes: &[u8]| match read(bytes) {
        Unusable::Refused(reply) => Message::from_vec(&reply).unwrap().metadata,
        Unusable::Ignored => panic!("ignored"),
    };
    assert_eq!(read(&bytes[..11]), Unusable::Ignored);
    let mut response = bytes.clone();
    response[2] |= 0x80;
    assert_eq!(read(&response), Unusable::Ignored, "an answer to it could be answered again");
    assert_eq!(read(&[0; 4_097]), Unusable::Ignored);
    let mut notify = bytes.clone();
    notify[2] |= 4 << 3;
    assert_eq!(refusal(&notify).response_code, ResponseCode::NotImp);
    let mut many = bytes.clone();
    many[4] = 255;
    let metadata = refusal(&many);
    assert_eq!((metadata.response_code, metadata.id), (ResponseCode::FormErr, 77));
    assert_eq!(refusal(&bytes[..bytes.len() - 1]).response_code, ResponseCode::FormErr);
    let mut new_edns = ask("echo.", RecordType::A);
    new_edns.set_edns({
        let mut edns = Edns::new();
        edns.set_version(1);
        edns
    });
    // The same number as BADSIG, which is how the parser calls it.
    assert_eq!(u16::from(refusal(&new_edns.to_vec().unwrap()).response_code), 16);
}
