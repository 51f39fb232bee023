//! How long it takes to get from the state to elements: for everything, and for one change.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

mod common;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use nftproxy_core::compile::Compilation;

use common::Cluster;

const N_SERVICES: u32 = 10_000;
const N_ENDPOINTS: u32 = 5;

fn whole(criterion: &mut Criterion) {
    let cluster = Cluster::new(N_SERVICES, N_ENDPOINTS);
    criterion
        .benchmark_group("compile")
        .sample_size(10)
        .bench_function("10000x5 from nothing", |bencher| {
            bencher.iter(|| cluster.ruleset());
        });
}

fn one_endpoint(criterion: &mut Criterion) {
    let mut cluster = Cluster::new(N_SERVICES, N_ENDPOINTS);
    let mut compilation = Compilation::default();
    cluster.update(&mut compilation);
    let mut forth = false;
    criterion.benchmark_group("compile").bench_function(
        "10000x5, one endpoint replaced",
        |bencher| {
            bencher.iter(|| {
                forth = !forth;
                cluster.replace_endpoint(N_SERVICES / 2, forth);
                black_box(cluster.update(&mut compilation))
            });
        },
    );
}

criterion_group!(benches, whole, one_endpoint);
criterion_main!(benches);
