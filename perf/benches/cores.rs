//! The pure cores by the clock: router, policy, HPACK, record sealing, snapshot lookup, delta apply.
//!
//! `cargo bench --profile fast -p perf`; name a group to run it alone: `cargo bench --profile fast -p perf -- router`.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use l7::authz::PolicySet;
use l7::ir::{
    Action, Attribute, AuthorizationPolicy, Backend, BackendTarget, Clause, Condition, ConnectionAttributes,
    Header, HttpMatch, HttpRoute, HttpRule, Match, PathMatch, RequestHead, Rule, Test, ValueMatch, ValueTest,
};
use l7::router::Router;
use model::{Identity, NamespacedHostname};
use prost::Message;
use prost_types::Any;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls_pki_types::PrivateKeyDer;
use tunnel::h2::{Config, Connection, Event, Headers};
use tunnel::session::{Session, SessionEvent};
use tunnel::tls::{ClientContext, Credentials, CryptoPolicy, ServerContext};
use xds::delta::Sink;
use xds::proto::ADDRESS_TYPE;
use xds::proto::workload;
use xds::snapshot::Client;
use xds::store::Store;

criterion_group!(benches, router, policy, path, hpack, records, snapshot);
criterion_main!(benches);

// === Router ===

fn route(index: usize) -> Arc<HttpRoute> {
    let service = NamespacedHostname::new("app", "web.app.svc.cluster.local");
    let header = ValueMatch {
        name: Arc::from("x-tenant"),
        value: ValueTest::Exact(Arc::from(format!("tenant-{index}"))),
    };
    Arc::new(HttpRoute {
        kind: l7::ir::RouteKind::Http,
        namespace: Arc::from("app"),
        name: Arc::from(format!("route-{index}")),
        parent: service.clone(),
        parent_port: None,
        consumer_namespace: None,
        created: index as u64,
        hostnames: Vec::new(),
        rules: vec![HttpRule {
            matches: vec![HttpMatch {
                path: PathMatch::Prefix(Arc::from(format!("/svc/{index}/api"))),
                method: None,
                headers: vec![header],
                query: Vec::new(),
            }],
            backends: vec![Backend {
                target: BackendTarget::Service { service, port: 80 },
                subset: None,
                weight: 1,
                filters: None,
                tls: None,
                retry_budget: None,
            }],
            ..HttpRule::default()
        }],
        source: None,
    })
}

fn router(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("router");
    for count in [10, 100, 1_000, 10_000] {
        let router = Router::compile((0..count).map(route)).unwrap();
        let last = count - 1;
        let tenant = format!("tenant-{last}");
        let path = format!("/svc/{last}/api/users");
        let headers = [
            Header { name: "accept", value: b"*/*" },
            Header { name: "user-agent", value: b"bench" },
            Header { name: "X-Tenant", value: tenant.as_bytes() },
        ];
        let head = RequestHead {
            method: "GET",
            authority: "web",
            path: &path,
            query: None,
            headers: &headers,
            token: None,
        };
        assert!(matches!(router.route(&head), l7::router::RouteMatch::Matched(_)));
        group.bench_function(BenchmarkId::new("last of", count), |bencher| {
            bencher.iter(|| black_box(router.route(black_box(&head))));
        });
    }
    group.finish();
}

// === Policy ===

fn allow(index: usize) -> Arc<AuthorizationPolicy> {
    let condition = |attribute, test| Condition { attribute, any_of: vec![test], none_of: Vec::new() };
    let clause = |condition| Clause { matches: vec![Match { conditions: vec![condition] }] };
    let principal = Test::Exact(Arc::from(format!("cluster.local/ns/app/sa/client-{index}")));
    let template = Test::Template(Arc::from(format!("/svc/{index}/{{*}}/users/{{**}}")));
    Arc::new(AuthorizationPolicy {
        namespace: Arc::from("app"),
        name: Arc::from(format!("allow-{index}")),
        action: Action::Allow,
        dry_run: false,
        rules: vec![Rule {
            clauses: vec![
                clause(condition(Attribute::SourcePrincipal, principal)),
                clause(condition(Attribute::RequestPath, template)),
            ],
        }],
        source: None,
    })
}

fn policy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy");
    for count in [1, 100, 1_000] {
        let set = PolicySet::compile((0..count).map(allow)).unwrap();
        let last = count - 1;
        let identity = Identity::new("cluster.local", "app", &format!("client-{last}")).unwrap();
        let path = format!("/svc/{last}/v1/users/7");
        let head = RequestHead {
            method: "GET",
            authority: "web",
            path: &path,
            query: None,
            headers: &[],
            token: None,
        };
        let connection = ConnectionAttributes {
            source: Some(&identity),
            source_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            destination_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            destination_port: 8080,
            sni: None,
        };
        assert!(set.evaluate(&connection, Some(&head)).is_allowed());
        group.bench_function(BenchmarkId::new("last template of", count), |bencher| {
            bencher.iter(|| black_box(set.evaluate(black_box(&connection), Some(black_box(&head)))));
        });
    }
    group.finish();
}

fn path(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for (name, path) in [("clean", "/v1/users/7/orders"), ("dotted", "/v1/./users/%37/../8")] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(l7::path::normalize(black_box(path), l7::path::Normalization::Base)));
        });
    }
    group.finish();
}

// === HTTP/2 ===

/// A client and a server engine that have exchanged their settings.
fn engines() -> (Connection, Connection) {
    let now = Instant::now();
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut client = Connection::new(Config::hbone_client(), now, &mut to_server);
    let mut server = Connection::new(Config::hbone_server(), now, &mut to_client);
    for _ in 0..2 {
        drain(&mut server, &std::mem::take(&mut to_server), &mut to_client);
        drain(&mut client, &std::mem::take(&mut to_client), &mut to_server);
    }
    (client, server)
}

fn drain(engine: &mut Connection, mut input: &[u8], out: &mut Vec<u8>) -> usize {
    let mut headers = 0;
    while let Some(event) = engine.next_event(&mut input, Instant::now(), out).unwrap() {
        headers += usize::from(matches!(event, Event::Headers { .. }));
    }
    headers
}

fn connect_request() -> Headers {
    let mut headers = Headers::connect("10.244.1.11:8080").unwrap();
    let baggage =
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=app,k8s.deployment.name=client,service.name=client";
    headers.push("baggage", baggage).unwrap();
    headers.push("forwarded", "for=\"10.244.1.10:40000\";host=echo.app.svc.cluster.local").unwrap();
    headers
}

/// A new stream: the head encoded by the client and decoded by the server, then both reset.
fn hpack(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hpack");
    let headers = connect_request();
    group.bench_function("CONNECT, encoded and decoded", |bencher| {
        let (mut client, mut server) = engines();
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        bencher.iter(|| {
            let stream = client.open(&headers, true, &mut to_server).unwrap();
            assert_eq!(drain(&mut server, &to_server, &mut to_client), 1);
            to_server.clear();
            server.respond(stream, &Headers::response(200).unwrap(), true, &mut to_client).unwrap();
            drain(&mut client, &to_client, &mut to_server);
            to_client.clear();
        });
    });
    group.finish();
}

// === TLS records ===

fn contexts() -> (ClientContext, ServerContext, Arc<[Identity]>) {
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let issue = |account: &str| {
        let mut leaf = CertificateParams::default();
        let uri = format!("spiffe://cluster.local/ns/app/sa/{account}");
        leaf.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let certificate = leaf.signed_by(&key, &root).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Credentials::from_der(vec![certificate], key, std::slice::from_ref(root.der())).unwrap()
    };
    let (client, server) = (issue("client"), issue("server"));
    let expected = Arc::from([server.identity().clone()]);
    let standard = CryptoPolicy::Standard;
    (ClientContext::new(&client, standard).unwrap(), ServerContext::new(&server, standard).unwrap(), expected)
}

/// Hands all output of one session to the other; counts payload bytes and gives their credit back.
fn deliver(from: &mut Session, to: &mut Session, buffer: &mut [u8]) -> usize {
    let mut payload = 0;
    loop {
        let start = to.prepare_input(buffer);
        let count = {
            let output = from.output();
            let count = output.len().min(buffer.len() - start);
            buffer[start..start + count].copy_from_slice(&output[..count]);
            count
        };
        if count == 0 {
            return payload;
        }
        from.consumed(count);
        let mut ingest = to.ingest(&mut buffer[..start + count], Instant::now());
        while let Some(event) = ingest.next().unwrap() {
            match event {
                SessionEvent::Http(Event::Data { stream, bytes, .. }) => {
                    payload += bytes.len();
                    ingest.session().release(stream, bytes.len());
                }
                SessionEvent::Http(Event::Headers { stream, .. }) => {
                    let answer = Headers::response(200).unwrap();
                    // Only the server is sent a request; the client gets its answer here.
                    let _ = ingest.session().respond(stream, &answer, false);
                }
                _ => {}
            }
        }
    }
}

fn records(criterion: &mut Criterion) {
    let (client_context, server_context, expected) = contexts();
    let mut buffer = vec![0; 512 * 1024];
    let mut group = criterion.benchmark_group("records");
    group.bench_function("handshake, both ends", |bencher| {
        bencher.iter_batched(
            || (),
            |()| {
                let now = Instant::now();
                let mut client =
                    Session::client(&client_context, &expected, Config::hbone_client(), now).unwrap();
                let mut server = Session::server(&server_context, Config::hbone_server(), now).unwrap();
                for _ in 0..3 {
                    deliver(&mut client, &mut server, &mut buffer);
                    deliver(&mut server, &mut client, &mut buffer);
                }
                assert!(client.peer().is_some() && server.peer().is_some());
            },
            BatchSize::SmallInput,
        );
    });
    let now = Instant::now();
    let mut client = Session::client(&client_context, &expected, Config::hbone_client(), now).unwrap();
    let mut server = Session::server(&server_context, Config::hbone_server(), now).unwrap();
    for _ in 0..3 {
        deliver(&mut client, &mut server, &mut buffer);
        deliver(&mut server, &mut client, &mut buffer);
    }
    let stream = client.open(&connect_request(), false).unwrap();
    for size in [64_usize, 1024, 16 * 1024, 256 * 1024] {
        let payload = vec![7; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("framed, sealed, opened", size), |bencher| {
            bencher.iter(|| {
                assert_eq!(client.send_data(stream, &payload, false).unwrap(), size);
                assert_eq!(deliver(&mut client, &mut server, &mut buffer), size);
                deliver(&mut server, &mut client, &mut buffer);
            });
        });
    }
    group.finish();
}

// === Snapshot and delta ===

fn address(octets: usize) -> Ipv4Addr {
    let [_, b, c, d] = u32::try_from(octets).unwrap().to_be_bytes();
    Ipv4Addr::new(10, b, c, d)
}

fn pod(index: usize, services: usize) -> (String, Any) {
    let uid = format!("Kubernetes//Pod/app/pod-{index}");
    let service = format!("app/svc-{}.app.svc.cluster.local", index % services);
    let port = workload::Port { service_port: 80, target_port: 8080, ..Default::default() };
    let pod = workload::Workload {
        uid: uid.clone(),
        name: format!("pod-{index}"),
        namespace: "app".into(),
        addresses: vec![address(index + 256).octets().to_vec()],
        tunnel_protocol: workload::TunnelProtocol::Hbone.into(),
        node: format!("node-{}", index % 100),
        service_account: format!("account-{}", index % services),
        services: [(service, workload::PortList { ports: vec![port] })].into(),
        ..Default::default()
    };
    let body = workload::Address { r#type: Some(workload::address::Type::Workload(pod)) };
    (uid, Any { type_url: ADDRESS_TYPE.into(), value: body.encode_to_vec() })
}

fn service(index: usize) -> (String, Any) {
    let hostname = format!("svc-{index}.app.svc.cluster.local");
    let [_, b, c, d] = u32::try_from(index).unwrap().to_be_bytes();
    let service = workload::Service {
        name: format!("svc-{index}"),
        namespace: "app".into(),
        hostname: hostname.clone(),
        addresses: vec![workload::NetworkAddress { address: vec![11, b, c, d], ..Default::default() }],
        ports: vec![workload::Port { service_port: 80, target_port: 8080, ..Default::default() }],
        ..Default::default()
    };
    let body = workload::Address { r#type: Some(workload::address::Type::Service(service)) };
    (format!("app/{hostname}"), Any { type_url: ADDRESS_TYPE.into(), value: body.encode_to_vec() })
}

fn snapshot(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("snapshot");
    for pods in [1_000, 100_000] {
        let services = pods / 20;
        let mut store = Store::new();
        for (name, body) in (0..services).map(service).chain((0..pods).map(|index| pod(index, services))) {
            store.upsert(ADDRESS_TYPE, &name, &body).unwrap();
        }
        let state = store.snapshot().unwrap();
        let client = state.workload_by_uid("Kubernetes//Pod/app/pod-1").unwrap().clone();
        let to: SocketAddr = "11.0.0.7:80".parse().unwrap();
        let source = IpAddr::V4(address(257));
        assert!(state.resolve(Client { workload: &client, ip: source }, to, 1).is_ok());
        group.bench_function(BenchmarkId::new("resolve among", pods), |bencher| {
            let mut random = 1_u64;
            bencher.iter(|| {
                random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
                black_box(state.resolve(Client { workload: &client, ip: source }, black_box(to), random))
            });
        });
        // Two versions that take turns, so that every delta changes something.
        let (name, one) = pod(7, services);
        let (_, other) = pod(7 + services, services);
        let mut other = workload::Address::decode(&*other.value).unwrap();
        if let Some(workload::address::Type::Workload(other)) = &mut other.r#type {
            other.uid.clone_from(&name);
        }
        let other = Any { type_url: ADDRESS_TYPE.into(), value: other.encode_to_vec() };
        group.bench_function(BenchmarkId::new("one delta applied among", pods), |bencher| {
            let mut turn = false;
            bencher.iter(|| {
                turn = !turn;
                store.upsert(ADDRESS_TYPE, &name, if turn { &other } else { &one }).unwrap();
                black_box(store.snapshot())
            });
        });
    }
    group.finish();
}
