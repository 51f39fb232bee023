//! How long it takes to write a delta down as netlink messages. Nothing is sent.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::diff::Delta;
use nftproxy_core::model::V4;

use common::Cluster;

const N_ELEMENTS: usize = 50_000;

fn elements(criterion: &mut Criterion) {
    let netlink = Netlink::open().expect("opening a netlink socket takes no privilege");
    let mut elements = Cluster::new(10_000, 5).creation().add_elements;
    elements.truncate(N_ELEMENTS);
    let delta: Delta<V4> = Delta {
        add_elements: elements,
        ..Delta::default()
    };
    let mut group = criterion.benchmark_group("encode");
    group.sample_size(20);
    group.throughput(Throughput::Elements(N_ELEMENTS as u64));
    group.bench_function("50000 elements", |bencher| {
        bencher.iter(|| netlink.encode(&delta));
    });
}

criterion_group!(benches, elements);
criterion_main!(benches);
