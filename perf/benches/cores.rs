//! The pure cores by the clock: router, policy, HTTP framing, record sealing, snapshot lookup, delta apply.
//!
//! `cargo bench --profile fast -p perf`; name a group to run it alone: `cargo bench --profile fast -p perf -- router`.

#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use perf::cores::WORKS;

criterion_group!(benches, cores);
criterion_main!(benches);

fn cores(criterion: &mut Criterion) {
    for work in WORKS {
        let (group, function) = work.name.split_once('/').unwrap_or(("", work.name));
        let mut group = criterion.benchmark_group(group);
        if let Some(bytes) = work.bytes {
            group.throughput(Throughput::Bytes(bytes));
        }
        group.bench_function(function, |bencher| {
            // Built only for what is run.
            let mut step = work.prepare();
            bencher.iter(&mut step);
        });
        group.finish();
    }
}
