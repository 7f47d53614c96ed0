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

/// Clients, services and changed pods take turns: where one key lies in a map is the chance of that map's hash seed.
const IN_TURN: usize = 50;

/// A connection to a service among so many workloads.
pub(super) fn resolve(pods: usize) -> Step {
    let state = store(pods).snapshot().expect("a snapshot");
    let clients: Vec<_> = (0..IN_TURN)
        .map(|pod| {
            let uid = format!("Kubernetes//Pod/app/pod-{pod}");
            let client = state.workload_by_uid(&uid).expect("the pod is there").clone();
            (client, IpAddr::V4(address(256 + pod)))
        })
        .collect();
    let services = (pods / PODS_OF_A_SERVICE) as u64;
    let mut random = 1_u64;
    let mut turns = (0..IN_TURN).cycle();
    Box::new(move || {
        random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        let [_, b, c, d] = u32::try_from((random >> 32) % services).expect("few enough").to_be_bytes();
        let to: SocketAddr = ([11, b, c, d], 80).into();
        let (workload, ip) = &clients[turns.next().expect("it never ends")];
        let client = Client { workload, ip: *ip };
        assert!(black_box(state.resolve(client, black_box(to), random)).is_ok());
    })
}

/// A change of one workload among so many: decoded, applied, published.
pub(super) fn delta(pods: usize) -> Step {
    let mut store = store(pods);
    let services = pods / PODS_OF_A_SERVICE;
    // Every pod's second version has what is another pod's, so that every delta changes something.
    let changes: Vec<_> = [services, 0]
        .into_iter()
        .flat_map(|distance| (0..IN_TURN).map(move |index| (index, index + distance)))
        .map(|(index, like)| (pod(index, services).0, pod_like(index, like, services)))
        .collect();
    let mut turns = (0..changes.len()).cycle();
    Box::new(move || {
        let (name, body) = &changes[turns.next().expect("it never ends")];
        store.upsert(ADDRESS_TYPE, name, body).expect("sound input");
        drop(black_box(store.snapshot()));
    })
}

/// The pod at `index` with all else as the pod `like` has it.
fn pod_like(index: usize, like: usize, services: usize) -> Any {
    let (_, body) = pod(like, services);
    let mut address = workload::Address::decode(&*body.value).expect("our own encoding");
    if let Some(workload::address::Type::Workload(workload)) = &mut address.r#type {
        workload.uid = pod(index, services).0;
    }
    Any { type_url: ADDRESS_TYPE.into(), value: address.encode_to_vec() }
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
