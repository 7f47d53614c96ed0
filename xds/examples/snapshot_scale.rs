//! What a large mesh costs: `cargo run --release -p xds --example snapshot_scale [WORKLOADS] [SERVICES]`.
//!
//! The discovery client takes a generated mesh as one response, then single deltas, and prints times and bytes a
//! workload as they were asked for of the allocator: client, store and newest snapshot together. The time of one delta
//! may grow with the depth of the tables and with cache misses, not with what exists.

// A measurement that cannot go on says so and stops.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use prost::Message;
use prost_types::Any;
use xds::delta::{Client, Outcome, Subscription};
use xds::proto::discovery::{DeltaDiscoveryResponse, Node, Resource};
use xds::proto::{ADDRESS_TYPE, workload as wire};
use xds::store::Store;

/// Counts live bytes as they were asked for.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code)] // Only a global allocator can count what every part of the program holds.
// SAFETY: passes everything on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn workload(index: usize, services: usize, revision: &str) -> (String, Any) {
    let namespace = format!("namespace-{}", index % services % 200);
    let name = format!("deployment-{}-7c9f8d6b5-{index:05}", index % services);
    let uid = format!("Kubernetes//Pod/{namespace}/{name}");
    let service = format!("{namespace}/service-{}.{namespace}.svc.cluster.local", index % services);
    let port = wire::Port { service_port: 80, target_port: 8080, app_protocol: 0 };
    let [_, high, middle, low] = u32::try_from(index).unwrap().to_be_bytes();
    let workload = wire::Workload {
        uid: uid.clone(),
        name,
        namespace,
        addresses: vec![vec![10, high, middle, low]],
        tunnel_protocol: 1,
        service_account: format!("account-{}", index % services),
        node: format!("node-{}", index % 500),
        canonical_name: format!("deployment-{}", index % services),
        canonical_revision: revision.to_owned(),
        workload_name: format!("deployment-{}", index % services),
        cluster_id: "Kubernetes".into(),
        services: [(service, wire::PortList { ports: vec![port] })].into(),
        locality: Some(wire::Locality { region: "eu".into(), zone: "a".into(), subzone: String::new() }),
        ..wire::Workload::default()
    };
    (uid, wrapped(wire::address::Type::Workload(workload)))
}

fn service(index: usize) -> (String, Any) {
    let namespace = format!("namespace-{}", index % 200);
    let hostname = format!("service-{index}.{namespace}.svc.cluster.local");
    let [_, _, high, low] = u32::try_from(index).unwrap().to_be_bytes();
    let name = format!("{namespace}/{hostname}");
    let service = wire::Service {
        name: format!("service-{index}"),
        namespace,
        hostname,
        addresses: vec![wire::NetworkAddress { address: vec![10, 96, high, low], ..Default::default() }],
        ports: vec![wire::Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        ..wire::Service::default()
    };
    (name, wrapped(wire::address::Type::Service(service)))
}

/// A response that holds these resources, each in a version as istiod writes it.
fn response(resources: impl IntoIterator<Item = (String, Any)>, version: u64) -> DeltaDiscoveryResponse {
    let resource = |(name, body)| Resource {
        name,
        version: format!("{:016x}", version.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        resource: Some(body),
        ..Resource::default()
    };
    DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.to_owned(),
        resources: resources.into_iter().map(resource).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn apply(client: &mut Client, store: &mut Store, response: &DeltaDiscoveryResponse) {
    let (_, outcome) = client.response(response, store);
    assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
}

fn wrapped(kind: wire::address::Type) -> Any {
    let value = wire::Address { r#type: Some(kind) }.encode_to_vec();
    Any { type_url: ADDRESS_TYPE.to_owned(), value }
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|it| it.parse::<usize>().unwrap());
    let workloads = arguments.next().unwrap_or(100_000);
    let services = arguments.next().unwrap_or(5_000);
    let everything =
        (0..services).map(service).chain((0..workloads).map(|index| workload(index, services, "v1")));
    let everything = response(everything, 1);

    let before = LIVE.load(Ordering::Relaxed);
    let start = Instant::now();
    let mut store = Store::new();
    let mut client = Client::new(Node::default(), vec![Subscription::wildcard(ADDRESS_TYPE)], start);
    client.connecting();
    client.opened();
    apply(&mut client, &mut store, &everything);
    let mut snapshot = store.snapshot().unwrap();
    let first = start.elapsed();
    let bytes = LIVE.load(Ordering::Relaxed) - before;
    println!("{workloads} workloads, {services} services");
    println!("first snapshot       {:8.1} ms", first.as_secs_f64() * 1e3);
    println!("memory               {:8.0} bytes a workload", bytes as f64 / workloads as f64);

    let mut times = Vec::new();
    for index in 0..2000 {
        let delta = response([workload(index * 7919 % workloads, services, "v2")], 2);
        let start = Instant::now();
        apply(&mut client, &mut store, &delta);
        if let Some(next) = store.snapshot() {
            // The last holder of the older one pays for what only that one held.
            snapshot = next;
        }
        times.push(start.elapsed());
    }
    times.sort();
    println!("one delta, median    {:8.1} us", times[times.len() / 2].as_secs_f64() * 1e6);
    println!("one delta, 99 %      {:8.1} us", times[times.len() * 99 / 100].as_secs_f64() * 1e6);
    println!("generation           {:8}", snapshot.generation());
}
