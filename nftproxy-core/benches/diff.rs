//! How long it takes to compare two rulesets, as a full sync does.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use nftproxy_core::diff::diff;

use common::{Cluster, observed};

const N_SERVICES: u32 = 10_000;
const N_ENDPOINTS: u32 = 5;

fn rulesets(criterion: &mut Criterion) {
    let mut cluster = Cluster::new(N_SERVICES, N_ENDPOINTS);
    let current = observed(cluster.ruleset());
    let mut group = criterion.benchmark_group("diff");
    group.sample_size(20);

    let equal = cluster.ruleset();
    group.bench_function("10000x5, equal", |bencher| {
        bencher.iter(|| diff(Some(&current), &equal));
    });

    for number in (0..N_SERVICES).step_by(100) {
        cluster.replace_endpoint(number, true);
    }
    let changed = cluster.ruleset();
    group.bench_function("10000x5, 1 % of the Services changed", |bencher| {
        bencher.iter(|| diff(Some(&current), &changed));
    });
}

criterion_group!(benches, rulesets);
criterion_main!(benches);
