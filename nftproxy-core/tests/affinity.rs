//! Session affinity: what is remembered, and when it is forgotten (S-95 to S-101).
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use common::{mk_node, mk_service, mk_slice};
use nftproxy_core::apply::fake::FakeKernel;
use nftproxy_core::compile::compile;
use nftproxy_core::diff::Counts;
use nftproxy_core::model::{
    EndpointAddress, Family, Node, Protocol, ServiceName, State, TrafficPolicy, V4,
};
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::ruleset::element::{Destination, Element, Key};
use nftproxy_core::ruleset::name::ChainName;
use nftproxy_core::sync::Syncer;
use nftproxy_core::trace::{Outcome, Packet, possible, trace};

const CLIENT: [u8; 4] = [192, 0, 2, 99];

fn state(endpoints: &[&str]) -> State {
    let mut state = State::default();
    let mut service = mk_service("web", "10.96.0.10", &["http 80/tcp 30080"]);
    service.session_affinity = NonZeroU32::new(120);
    state.apply_service(service);
    apply(&mut state, endpoints);
    state
}

fn apply(state: &mut State, endpoints: &[&str]) {
    state.apply_slice(mk_slice::<V4>(
        "web-1",
        "web",
        &["http 8080/tcp"],
        endpoints,
    ));
}

fn destination(address: [u8; 4], port: u16) -> Destination<V4> {
    Destination {
        address: Some(address.into()),
        protocol: Protocol::Tcp,
        port: port.try_into().unwrap(),
    }
}

fn remembered(to: Destination<V4>, endpoint: [u8; 4]) -> Element<V4> {
    let endpoint = EndpointAddress {
        address: endpoint.into(),
        port: 8080.try_into().unwrap(),
    };
    Element::remembered(CLIENT.into(), to, endpoint)
}

struct Fixture {
    state: State,
    node: Node,
    syncer: Syncer<V4, FakeKernel<V4>>,
}

impl Fixture {
    fn new(endpoints: &[&str]) -> Self {
        let syncer = Syncer::new(FakeKernel::default());
        let mut fixture = Self {
            state: state(endpoints),
            node: mk_node(),
            syncer,
        };
        fixture.sync();
        fixture
    }

    fn sync(&mut self) -> Counts {
        let dirty = self.state.take_dirty();
        self.syncer
            .sync(&self.state, &self.node, &dirty)
            .unwrap()
            .counts
    }

    fn learn(&mut self, element: Element<V4>) {
        self.syncer.kernel_mut().learn(element);
    }

    fn memory(&mut self) -> Vec<Element<V4>> {
        nftproxy_core::apply::Kernel::list_affinity(self.syncer.kernel_mut()).unwrap()
    }
}

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 10];
const NODE_IP: [u8; 4] = [192, 168, 0, 10];

/// S-98: with the endpoint goes what is remembered of it, in the same sync, and nothing else.
#[test]
fn s98_an_endpoint_that_goes_is_forgotten() {
    let mut fixture = Fixture::new(&["10.244.1.5", "10.244.1.6"]);
    let kept = remembered(destination(CLUSTER_IP, 80), [10, 244, 1, 5]);
    fixture.learn(kept.clone());
    fixture.learn(remembered(destination(NODE_IP, 30080), [10, 244, 1, 6]));
    apply(&mut fixture.state, &["10.244.1.5"]);
    fixture.sync();
    assert_eq!(fixture.memory(), [kept]);
}

/// S-99: an endpoint that stays selected by fallback is remembered.
#[test]
fn s99_a_fallback_keeps_its_memory() {
    let mut fixture = Fixture::new(&["10.244.1.5"]);
    let kept = remembered(destination(CLUSTER_IP, 80), [10, 244, 1, 5]);
    fixture.learn(kept.clone());
    apply(&mut fixture.state, &["10.244.1.5 terminating"]);
    fixture.sync();
    assert_eq!(fixture.memory(), [kept]);
}

/// S-100: None forgets.
#[test]
fn s100_switching_affinity_off_forgets() {
    let mut fixture = Fixture::new(&["10.244.1.5"]);
    fixture.learn(remembered(destination(CLUSTER_IP, 80), [10, 244, 1, 5]));
    fixture
        .state
        .apply_service(mk_service("web", "10.96.0.10", &["http 80/tcp 30080"]));
    fixture.sync();
    assert_eq!(fixture.memory(), []);
}

/// S-100: a restart keeps what may be kept, and sends nothing if nothing changed.
#[test]
fn s100_a_restart_keeps_the_memory() {
    let mut fixture = Fixture::new(&["10.244.1.5", "10.244.1.6"]);
    let kept = remembered(destination(CLUSTER_IP, 80), [10, 244, 1, 5]);
    let stale = remembered(destination(CLUSTER_IP, 80), [10, 244, 1, 9]);
    fixture.learn(kept.clone());
    let mut restarted = Syncer::new(fixture.syncer.kernel().clone());
    let report = restarted
        .sync(&fixture.state, &fixture.node, &BTreeSet::new())
        .unwrap();
    assert_eq!((report.full, report.counts), (true, Counts::default()));

    // What went while nobody looked is forgotten.
    restarted.kernel_mut().learn(Element::remembered(
        [192, 0, 2, 98].into(),
        destination(CLUSTER_IP, 80),
        EndpointAddress {
            address: [10, 244, 1, 9].into(),
            port: 8080.try_into().unwrap(),
        },
    ));
    let mut again = Syncer::new(restarted.kernel().clone());
    again
        .sync(&fixture.state, &fixture.node, &BTreeSet::new())
        .unwrap();
    let memory = nftproxy_core::apply::Kernel::list_affinity(again.kernel_mut()).unwrap();
    assert_eq!(memory, [kept]);
    assert_ne!(memory, [stale]);
}

/// S-101: under policy Local nobody is led to a remembered endpoint of another node.
#[test]
fn s101_policy_local_forgets_remote_endpoints() {
    let mut fixture = Fixture::new(&["10.244.1.5", "10.244.2.6"]);
    let to_node = |endpoint| remembered(destination(NODE_IP, 30080), endpoint);
    fixture.learn(to_node([10, 244, 2, 6]));
    let mut service = mk_service("web", "10.96.0.10", &["http 80/tcp 30080"]);
    service.session_affinity = NonZeroU32::new(120);
    service.external_traffic_policy = TrafficPolicy::Local;
    fixture.state.apply_service(service);
    fixture.sync();
    assert_eq!(fixture.memory(), []);
}

/// The listing of all that is remembered is the dear part: it happens only when an endpoint of a
/// Service with affinity goes.
#[test]
fn other_changes_list_nothing() {
    let mut fixture = Fixture::new(&["10.244.1.5", "10.244.1.6"]);
    let stale = remembered(destination([10, 96, 0, 77], 80), [10, 244, 1, 9]);
    // Something that a listing would remove.
    fixture.learn(stale.clone());
    apply(
        &mut fixture.state,
        &["10.244.1.5", "10.244.1.6", "10.244.1.7"],
    );
    fixture.sync();
    fixture
        .state
        .apply_service(mk_service("other", "10.96.0.11", &["http 80/tcp"]));
    fixture.sync();
    assert_eq!(fixture.memory(), [stale]);
}

/// Each timeout in use has a chain, and there is none while nobody has affinity.
#[test]
fn chains_for_affinity_exist_while_they_are_needed() {
    let with = compile(&state(&["10.244.1.5"]), &mk_node()).v4;
    let timeout = ChainName::RememberFor(120.try_into().unwrap());
    for chain in [ChainName::Input, ChainName::Remember, timeout] {
        assert!(with.skeleton.chains.contains_key(&chain), "{chain}");
    }
    let mut plain = State::default();
    plain.apply_service(mk_service("web", "10.96.0.10", &["http 80/tcp 30080"]));
    let without = compile(&plain, &mk_node()).v4;
    for chain in [ChainName::Input, ChainName::Remember, timeout] {
        assert!(!without.skeleton.chains.contains_key(&chain), "{chain}");
    }
}

/// S-96, S-100: a connection to an address of a Service without affinity is not remembered, though
/// its port is the number of another's NodePort with affinity.
#[test]
fn s96_an_address_is_not_taken_for_a_node_port() {
    let mut state = state(&["10.244.1.5"]);
    state.apply_service(mk_service("other", "10.96.0.11", &["30080/tcp"]));
    let slice = mk_slice::<V4>("other", "other", &["8080/tcp"], &["10.244.1.5"]);
    state.apply_slice(slice);
    let packet = Packet::<V4> {
        source: CLIENT.into(),
        destination: [10, 96, 0, 11].into(),
        protocol: Protocol::Tcp.number(),
        destination_port: 30080,
        input_interface: Some("eth0".into()),
        mark: 0,
    };
    let outcomes = trace(&compile(&state, &mk_node()).v4, &packet, &|_| false).unwrap();
    let remembers = |chain| matches!(chain, ChainName::RememberFor(_));
    for step in outcomes.values().flatten() {
        assert!(!remembers(step.chain), "{step}");
    }
}

/// S-100: chains that an earlier process left are no obstacle to affinity that comes again.
#[test]
fn s100_affinity_comes_again_after_a_restart() {
    let mut fixture = Fixture::new(&["10.244.1.5"]);
    let with = fixture.state.services().next().unwrap().clone();
    let without = mk_service("web", "10.96.0.10", &["http 80/tcp 30080"]);
    fixture.state.apply_service(without);
    fixture.sync();
    fixture.syncer = Syncer::new(fixture.syncer.kernel().clone());
    fixture.sync();
    fixture.state.apply_service(with);
    let dirty = fixture.state.take_dirty();
    let report = fixture
        .syncer
        .sync(&fixture.state, &fixture.node, &dirty)
        .unwrap();
    assert!(!report.full, "the kernel refused something");
}

/// S-97, S-101: a remembered endpoint is the only one; without, all are possible.
#[test]
fn a_remembered_endpoint_is_the_only_one() {
    let mut ruleset = compile(&state(&["10.244.1.5", "10.244.1.6"]), &mk_node()).v4;
    let packet = Packet::<V4> {
        source: CLIENT.into(),
        destination: CLUSTER_IP.into(),
        protocol: Protocol::Tcp.number(),
        destination_port: 80,
        input_interface: Some("eth0".into()),
        mark: 0,
    };
    let endpoints = |ruleset: &FamilyRuleset<V4>| -> BTreeSet<_> {
        let outcomes = trace(ruleset, &packet, &|_| false).unwrap();
        let endpoint = |outcome: &Outcome<V4>| match outcome {
            Outcome::Endpoint { endpoint, .. } => Some(endpoint.address),
            _ => None,
        };
        possible(&outcomes).iter().filter_map(endpoint).collect()
    };
    assert_eq!(endpoints(&ruleset).len(), 2);
    ruleset
        .elements
        .insert(remembered(destination(CLUSTER_IP, 80), [10, 244, 1, 6]));
    assert_eq!(endpoints(&ruleset), [[10, 244, 1, 6].into()].into());
}

/// What the kernel holds reads back as what a rule wrote.
#[test]
fn remembered_elements_read_back() {
    let element = remembered(destination(NODE_IP, 30080), [10, 244, 1, 6]);
    let mut key = Vec::new();
    element.write_key(&mut key);
    assert_eq!(key.len(), 16);
    let mut data = Vec::new();
    V4::write_address([10, 244, 1, 6].into(), &mut data);
    data.extend([0x1f, 0x90, 0, 0]);
    let data = nftproxy_core::ruleset::element::RawData::Value(&data);
    let read = Element::<V4>::read(element.set(), &key, None, data, None).unwrap();
    assert_eq!(read, element);
    assert!(matches!(read.key(), Key::Client(..)));
}

/// S-95: a load-balancer IP that is an address of the node is no NodePort, even at the number of
/// one that has affinity; whichever of the two comes or goes first.
#[test]
fn s95_an_address_beside_a_sticky_node_port_is_not_remembered() {
    let beside = |fixture: &Fixture| {
        let ruleset = compile(&fixture.state, &fixture.node).v4;
        let mine = Element::not_sticky(destination(NODE_IP, 30080));
        let is_there = ruleset.elements.contains(&mine);
        let observed = fixture.syncer.kernel().ruleset().unwrap();
        assert_eq!(observed.elements.contains(&mine), is_there);
        is_there
    };
    let plain = |name| {
        let mut service = mk_service(name, "10.96.0.11", &["http 30080/tcp"]);
        service.load_balancer_ips = [NODE_IP.into()].into();
        service
    };
    let mut fixture = Fixture::new(&["10.244.1.5"]);
    assert!(!beside(&fixture));
    fixture.state.apply_service(plain("plain"));
    fixture.sync();
    assert!(beside(&fixture));

    // The NodePort goes to a Service without affinity, and comes back with it.
    let sticky = fixture
        .state
        .service(&ServiceName::new("default", "web").unwrap())
        .unwrap()
        .clone();
    let mut without = sticky.clone();
    without.session_affinity = None;
    for (service, expected) in [(without, false), (sticky, true)] {
        fixture.state.apply_service(service);
        fixture.sync();
        assert_eq!(beside(&fixture), expected);
    }
    // Both change in one sync.
    fixture
        .state
        .delete_service(&ServiceName::new("default", "web").unwrap());
    fixture
        .state
        .delete_service(&ServiceName::new("default", "plain").unwrap());
    fixture.state.apply_service(plain("other"));
    fixture.sync();
    assert!(!beside(&fixture));
}
