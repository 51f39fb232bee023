//! Another proxy's table and memory become ours with the first sync.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use common::{mk_node, mk_service, mk_slice};
use nftproxy_core::apply::Kernel;
use nftproxy_core::apply::fake::FakeKernel;
use nftproxy_core::compile::{Learned, Remembered};
use nftproxy_core::diff::Delta;
use nftproxy_core::model::{State, TrafficPolicy, V4, V6};
use nftproxy_core::render;
use nftproxy_core::ruleset::Table;
use nftproxy_core::sync::{Report, Syncer};

const NODE_IP: [u8; 4] = [192, 168, 0, 10];
const NAME: &str = "kube-proxy";

/// A Service with affinity for two minutes: one endpoint here, one on another node.
fn state(policy: TrafficPolicy) -> State {
    let mut state = State::default();
    let mut service = mk_service("web", "10.96.0.10", &["http 80/tcp 30080", "dns 53/udp"]);
    service.session_affinity = NonZeroU32::new(120);
    service.external_traffic_policy = policy;
    state.apply_service(service);
    state.apply_slice(mk_slice::<V4>(
        "web-1",
        "web",
        &["http 8080/tcp", "dns 8053/udp"],
        &["10.244.1.5", "10.244.2.6"],
    ));
    state
}

fn learned(set: &str, clients: &[(u8, u64)]) -> Learned<V4> {
    let set = format!("affinity-ABCDEFGH-default/{set}");
    let mut learned = Learned::of_set(&set).unwrap();
    let clients = clients.iter();
    learned.clients = clients
        .map(|(client, seconds)| ([192, 0, 2, *client].into(), Duration::from_secs(*seconds)))
        .collect();
    learned
}

struct Fixture {
    state: State,
    syncer: Syncer<V4, FakeKernel<V4>>,
}

impl Fixture {
    fn new(policy: TrafficPolicy, memory: &[Learned<V4>]) -> Self {
        let mut kernel = FakeKernel::default();
        kernel.predecessors.insert(NAME.into(), memory.to_vec());
        kernel.predecessors.insert("other".into(), Vec::new());
        Self {
            state: state(policy),
            syncer: Syncer::new(kernel),
        }
    }

    fn sync(&mut self) -> Report {
        let dirty = self.state.take_dirty();
        self.syncer.sync(&self.state, &mk_node(), &dirty).unwrap()
    }

    fn take_over(&mut self) -> Report {
        let table = Table::new(NAME, 0).unwrap();
        self.syncer.take_over(table, vec![NODE_IP.into()]);
        self.sync()
    }

    /// What is remembered, as nft(8) writes it.
    fn memory(&mut self) -> BTreeSet<String> {
        let memory = self.syncer.kernel_mut().list_affinity().unwrap();
        memory.iter().map(|element| element.nft()).collect()
    }

    fn other_tables(&self) -> Vec<&str> {
        let tables = self.syncer.kernel().predecessors.keys();
        tables.map(|name| &**name).collect()
    }
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// O-152: nothing of others is touched unless asked for.
#[test]
fn o_152_other_tables_are_left_alone_by_default() {
    let mut fixture = Fixture::new(TrafficPolicy::Cluster, &[]);
    assert_eq!(fixture.sync().taken_over, None);
    assert_eq!(fixture.other_tables(), [NAME, "other"]);
}

/// O-152: with the first sync the table goes, once, and its clients keep their endpoints at every
/// destination of the Service port. What is no endpoint, no Service or no name of one stays behind.
#[test]
fn o_152_clients_are_taken_over() {
    let memory = [
        learned("web/tcp/http__10.244.1.5/8080", &[(1, 60), (2, 999)]),
        learned("web/udp/dns__10.244.2.6/8053", &[(3, 5)]),
        learned("web/tcp/http__10.244.9.9/8080", &[(4, 60)]),
        learned("gone/tcp/http__10.244.1.5/8080", &[(5, 60)]),
        learned("web/udp/http__10.244.1.5/8080", &[(6, 60)]),
    ];
    let mut fixture = Fixture::new(TrafficPolicy::Cluster, &memory);
    let report = fixture.take_over();
    assert_eq!(report.taken_over, Some(5));
    assert_eq!(fixture.other_tables(), ["other"]);
    let expected = set(&[
        "192.0.2.1 . 10.96.0.10 . tcp . 80 : 10.244.1.5 . 8080",
        "192.0.2.1 . 192.168.0.10 . tcp . 30080 : 10.244.1.5 . 8080",
        "192.0.2.2 . 10.96.0.10 . tcp . 80 : 10.244.1.5 . 8080",
        "192.0.2.2 . 192.168.0.10 . tcp . 30080 : 10.244.1.5 . 8080",
        "192.0.2.3 . 10.96.0.10 . udp . 53 : 10.244.2.6 . 8053",
    ]);
    assert_eq!(fixture.memory(), expected);
    // Whoever makes it anew has to be told of, not fought.
    fixture
        .syncer
        .kernel_mut()
        .predecessors
        .insert(NAME.into(), Vec::new());
    fixture.syncer.distrust();
    assert_eq!(fixture.sync().taken_over, None);
    assert_eq!(fixture.memory(), expected);
}

/// Where only endpoints of this node may be had from outside, no others are remembered.
#[test]
fn policy_local_holds_for_what_is_taken_over() {
    let remote = learned("web/tcp/http__10.244.2.6/8080", &[(1, 60)]);
    let mut fixture = Fixture::new(TrafficPolicy::Local, &[remote]);
    fixture.take_over();
    let expected = set(&["192.0.2.1 . 10.96.0.10 . tcp . 80 : 10.244.2.6 . 8080"]);
    assert_eq!(fixture.memory(), expected);
}

/// A client with two endpoints gets the later one.
#[test]
fn the_latest_of_several_endpoints_counts() {
    let memory = [
        learned("web/udp/dns__10.244.1.5/8053", &[(1, 10)]),
        learned("web/udp/dns__10.244.2.6/8053", &[(1, 20)]),
        learned("web/udp/dns__10.244.1.5/8053", &[(1, 15)]),
    ];
    let mut fixture = Fixture::new(TrafficPolicy::Cluster, &memory);
    fixture.take_over();
    let expected = set(&["192.0.2.1 . 10.96.0.10 . udp . 53 : 10.244.2.6 . 8053"]);
    assert_eq!(fixture.memory(), expected);
}

/// A memory that the kernel refuses is given up, and the rest is not.
#[test]
fn a_refused_memory_holds_nothing_up() {
    const ENFILE: i32 = 23;
    let memory = [learned("web/udp/dns__10.244.1.5/8053", &[(1, 10)])];
    let mut fixture = Fixture::new(TrafficPolicy::Cluster, &memory);
    fixture.syncer.kernel_mut().fail_next(ENFILE);
    assert_eq!(fixture.take_over().taken_over, Some(0));
    assert_eq!(fixture.other_tables(), ["other"]);
    assert_eq!(fixture.memory(), set(&[]));
}

/// What a table of ours has remembered itself, since its rules were in force last, is not changed.
#[test]
fn what_is_remembered_already_stays() {
    let memory = [learned("web/udp/dns__10.244.1.5/8053", &[(1, 10), (2, 10)])];
    let mut fixture = Fixture::new(TrafficPolicy::Cluster, &memory);
    fixture.sync();
    let other = [learned("web/udp/dns__10.244.2.6/8053", &[(1, 10)])];
    let known = fixture.syncer.compilation().inherit(&other, &[]);
    let [known] = &known[..] else {
        panic!("{known:?}");
    };
    fixture.syncer.kernel_mut().learn(known.element.clone());
    fixture.syncer.distrust();
    assert_eq!(fixture.take_over().taken_over, Some(1));
    let expected = set(&[
        "192.0.2.1 . 10.96.0.10 . udp . 53 : 10.244.2.6 . 8053",
        "192.0.2.2 . 10.96.0.10 . udp . 53 : 10.244.1.5 . 8053",
    ]);
    assert_eq!(fixture.memory(), expected);
}

#[test]
fn names_of_sets_are_read_as_kube_proxy_writes_them() {
    let read = |name: &str| Learned::<V6>::of_set(name);
    let learned = read("affinity-5OJB2KTY-ns1/svc1/sctp/__fd00.1..2/80").unwrap();
    assert_eq!(learned.service.as_str(), "ns1/svc1");
    assert_eq!((&*learned.port, learned.endpoint.port.get()), ("", 80));
    assert_eq!(learned.endpoint.address.to_string(), "fd00:1::2");
    let long = "a".repeat(63);
    let cut = format!("affinity-5OJB2KTY-{long}/{long}/tcp/{long}__fd00.1.1.1.1.1...");
    for name in [
        "",
        "affinity-",
        "affinity-5OJB2KTY-",
        "nodeport-ips",
        "affinity-5OJB2KTY-ns1/svc1/tcp__fd00..1/80",
        "affinity-5OJB2KTY-ns1/svc1/tcp/p/q__fd00..1/80",
        "affinity-5OJB2KTY-ns1/svc1/icmp/p__fd00..1/80",
        "affinity-5OJB2KTY-ns1/svc1/tcp/p__fd00..1/0",
        "affinity-5OJB2KTY-ns1/svc1/tcp/p__10.0.0.1/80",
        "affinity-5OJB2KTY-ns1/svc1/tcp/p__fd00..1",
        &cut,
    ] {
        assert_eq!(read(name), None, "{name}");
    }
}

/// The script does what the batch does.
#[test]
fn a_takeover_can_be_read() {
    let mut fixture = Fixture::new(TrafficPolicy::Cluster, &[]);
    fixture.sync();
    let memory = [learned("web/udp/dns__10.244.1.5/8053", &[(1, 10)])];
    let remember: Vec<Remembered<V4>> = fixture.syncer.compilation().inherit(&memory, &[]);
    let delta = Delta {
        take_over: Some(Table::new(NAME, 0).unwrap()),
        remember,
        ..Delta::default()
    };
    assert!(!delta.is_empty());
    assert_eq!(delta.counts().added_elements, 1);
    assert_eq!(
        render::delta(&delta),
        "add table ip kube-proxy\ndelete table ip kube-proxy\n\
         add element ip nftproxy affinity { 192.0.2.1 . 10.96.0.10 . udp . 53 \
         timeout 120000ms expires 10000ms : 10.244.1.5 . 8053 }\n"
    );
}
