//! Large meshes: resolving a connection, applying a delta.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use prost::Message;
use prost_types::Any;
use xds::delta::Sink;
use xds::proto::ADDRESS_TYPE;
use xds::proto::workload;
use xds::snapshot::Client;
use xds::store::Store;

use super::{Step, black_box};

/// A connection to a service among so many workloads.
pub(super) fn resolve(pods: usize) -> Step {
    let state = store(pods).snapshot().expect("a snapshot");
    let client = state.workload_by_uid("Kubernetes//Pod/app/pod-1").expect("the pod is there").clone();
    let to: SocketAddr = ([11, 0, 0, 7], 80).into();
    let source = IpAddr::V4(address(257));
    let mut random = 1_u64;
    Box::new(move || {
        random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        let client = Client { workload: &client, ip: source };
        assert!(black_box(state.resolve(client, black_box(to), random)).is_ok());
    })
}

/// A change of one workload among so many: decoded, applied, published.
pub(super) fn delta(pods: usize) -> Step {
    let mut store = store(pods);
    // Two versions that take turns, so that every delta changes something.
    let (name, one) = pod(7, pods / PODS_OF_A_SERVICE);
    let (_, other) = pod(7 + pods / PODS_OF_A_SERVICE, pods / PODS_OF_A_SERVICE);
    let mut other = workload::Address::decode(&*other.value).expect("our own encoding");
    if let Some(workload::address::Type::Workload(other)) = &mut other.r#type {
        other.uid.clone_from(&name);
    }
    let other = Any { type_url: ADDRESS_TYPE.into(), value: other.encode_to_vec() };
    let mut turn = false;
    Box::new(move || {
        turn = !turn;
        store.upsert(ADDRESS_TYPE, &name, if turn { &other } else { &one }).expect("sound input");
        drop(black_box(store.snapshot()));
    })
}

const PODS_OF_A_SERVICE: usize = 20;

fn store(pods: usize) -> Store {
    let services = pods / PODS_OF_A_SERVICE;
    let mut store = Store::new();
    for (name, body) in (0..services).map(service).chain((0..pods).map(|index| pod(index, services))) {
        store.upsert(ADDRESS_TYPE, &name, &body).expect("sound input");
    }
    store
}

fn address(octets: usize) -> Ipv4Addr {
    let [_, b, c, d] = u32::try_from(octets).expect("few enough").to_be_bytes();
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
    let [_, b, c, d] = u32::try_from(index).expect("few enough").to_be_bytes();
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
