//! What a request costs in the books: finding its series and counting it.
//!
//! `cargo bench --profile fast -p perf --bench requests`

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use dataplane::metrics::{
    ConnectionSecurity, Reporter, RequestCounts, RequestKey, RequestOutcome, SubjectRef, metrics,
};
use model::{Service, Workload};
use prost::Message;
use prost_types::Any;
use xds::delta::Sink;
use xds::proto::{ADDRESS_TYPE, workload};
use xds::snapshot::Snapshot;
use xds::store::Store;

criterion_group!(benches, count);
criterion_main!(benches);

const HOSTNAME: &str = "web.app.svc.cluster.local";

/// A service with so many pods; the first of them is the client.
fn snapshot(pods: usize) -> Arc<Snapshot> {
    let mut store = Store::new();
    let mut add = |name: &str, body| {
        let address = workload::Address { r#type: Some(body) };
        let any = Any { type_url: ADDRESS_TYPE.into(), value: address.encode_to_vec() };
        store.upsert(ADDRESS_TYPE, name, &any).unwrap();
    };
    let service = workload::Service {
        name: "web".into(),
        namespace: "app".into(),
        hostname: HOSTNAME.into(),
        ..Default::default()
    };
    add(&format!("app/{HOSTNAME}"), workload::address::Type::Service(service));
    for index in 0..pods {
        let uid = uid(index);
        let pod = workload::Workload {
            uid: uid.clone(),
            name: format!("pod-{index}"),
            namespace: "app".into(),
            addresses: vec![vec![10, 0, u8::try_from(index).unwrap(), 1]],
            canonical_name: "web".into(),
            service_account: format!("account-{index}"),
            ..Default::default()
        };
        add(&uid, workload::address::Type::Workload(pod));
    }
    store.snapshot().unwrap()
}

fn uid(index: usize) -> String {
    format!("Kubernetes//Pod/app/pod-{index}")
}

fn key<'a>(
    client: &'a Arc<Workload>,
    server: &'a Arc<Workload>,
    service: &'a Arc<Service>,
) -> RequestKey<'a> {
    let subject = |it: &'a Arc<Workload>| SubjectRef { workload: Some(it), identity: Some(&it.identity) };
    RequestKey {
        reporter: Reporter::Source,
        source: subject(client),
        destination: subject(server),
        service: Some(service),
        security: ConnectionSecurity::MutualTls,
        outcome: RequestOutcome { status: 200, ..RequestOutcome::default() },
    }
}

/// Requests of one client to so many backends in turn.
fn count(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("requests");
    for backends in [1, 16, 128] {
        let state = snapshot(backends + 1);
        let workloads: Vec<_> =
            (0..=backends).map(|it| state.workload_by_uid(&uid(it)).unwrap().clone()).collect();
        let service = state.service("app", HOSTNAME).unwrap().service.clone();
        let (client, servers) = workloads.split_first().unwrap();
        let (workers, all) = metrics(1);
        let counts = RequestCounts {
            duration: Duration::from_micros(1_700),
            request_bytes: 420,
            response_bytes: 3_100,
            ..RequestCounts::default()
        };
        group.bench_function(BenchmarkId::new("one counted among backends", backends), |bencher| {
            let mut turn = servers.iter().cycle();
            bencher.iter(|| {
                let server = turn.next().unwrap();
                workers[0].request_ended(&key(client, server, &service), black_box(&counts));
            });
        });
        all.update();
    }
    group.finish();
}
