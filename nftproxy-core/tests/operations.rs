//! What changes cost: how many operations each makes the kernel do, whatever the size of the
//! cluster. A number here that grows with a Service or with the cluster is a defect.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{both, mk_endpoint, mk_node, mk_service, mk_slice, service_name, slice_name};
use nftproxy_core::apply::fake::FakeKernel;
use nftproxy_core::apply::{ApplyError, Committed, Kernel, Operation, Verb};
use nftproxy_core::compile::compile;
use nftproxy_core::diff::{Counts, Delta, Observed};
use nftproxy_core::model::{
    EndpointSlice, Node, Service, ServiceName, SliceEndpoints, State, TrafficPolicy, V4,
};
use nftproxy_core::ruleset::element::{Element, Key};
use nftproxy_core::ruleset::name::{COMMENT_MAX_LEN, ChainName, SetName};
use nftproxy_core::sync::Syncer;

/// Services × endpoints of the one that changes; the others have three.
const SIZES: [(usize, usize); 6] = [
    (10, 3),
    (10, 100),
    (10, 5000),
    (2000, 3),
    (2000, 100),
    (2000, 5000),
];

const NOTHING: Counts = Counts {
    chains: 0,
    rules: 0,
    deleted_elements: 0,
    added_elements: 0,
};

/// A cluster in step with its kernel, with a Service `web` of which the slice `web` has endpoints.
struct Lab {
    state: State,
    node: Node,
    syncer: Syncer<V4, FakeKernel<V4>>,
}

/// The n-th endpoint of a Service, on another node.
fn endpoint(n: usize) -> String {
    format!("10.244.{}.{}", 2 + n / 250, 1 + n % 250)
}

fn web_slice(endpoints: impl IntoIterator<Item = usize>) -> EndpointSlice {
    EndpointSlice {
        endpoints: SliceEndpoints::V4(
            endpoints
                .into_iter()
                .map(|n| mk_endpoint(&endpoint(n)))
                .collect(),
        ),
        ..mk_slice::<V4>("web", "web", &["8080/tcp"], &[])
    }
}

/// With a ClusterIP only.
fn web() -> Service {
    mk_service("web", "10.96.255.1", &["80/tcp"])
}

/// With one address of each kind, and endpoints for far clients apart.
fn web_everywhere() -> Service {
    Service {
        external_ips: both("198.51.100.1").into(),
        load_balancer_ips: both("203.0.113.1").into(),
        external_traffic_policy: TrafficPolicy::Local,
        ..mk_service("web", "10.96.255.1", &["80/tcp 30080"])
    }
}

impl Lab {
    fn new((services, endpoints): (usize, usize), web: Service) -> Self {
        let mut state = State::default();
        for n in 1..services {
            let name = format!("other-{n}");
            let cluster_ip = format!("10.96.{}.{}", n / 250, 1 + n % 250);
            state.apply_service(mk_service(&name, &cluster_ip, &["80/tcp"]));
            let addresses = [endpoint(n), endpoint(n + 1), endpoint(n + 2)];
            let addresses = addresses.each_ref().map(String::as_str);
            state.apply_slice(mk_slice::<V4>(&name, &name, &["8080/tcp"], &addresses));
        }
        state.apply_service(web);
        state.apply_slice(web_slice(0..endpoints));
        let mut lab = Self {
            state,
            node: mk_node(),
            syncer: Syncer::new(FakeKernel::default()),
        };
        lab.sync();
        // A pick chain more or less depends on what other Services have, so let them be there.
        for size in [endpoints - 1, endpoints, endpoints + 1, endpoints] {
            lab.state.apply_slice(web_slice(0..size));
            lab.sync();
        }
        assert_eq!(lab.syncer.kernel().lists, 1);
        lab
    }

    fn sync(&mut self) -> Counts {
        let dirty = self.state.take_dirty();
        let report = self.syncer.sync(&self.state, &self.node, &dirty).unwrap();
        report.counts
    }

    /// What a change costs; it must not list the kernel.
    fn cost_of(&mut self, change: impl FnOnce(&mut State)) -> Counts {
        let lists = self.syncer.kernel().lists;
        change(&mut self.state);
        let counts = self.sync();
        assert_eq!(
            self.syncer.kernel().lists,
            lists,
            "an ordinary sync lists nothing"
        );
        counts
    }
}

fn elements(deleted_elements: usize, added_elements: usize) -> Counts {
    Counts {
        deleted_elements,
        added_elements,
        ..NOTHING
    }
}

/// S-174: the cost depends neither on the number of Services nor on that of endpoints.
#[test]
fn an_endpoint_more_or_less() {
    for size @ (_, endpoints) in SIZES {
        let mut lab = Lab::new(size, web());
        // The verdict that says among how many to pick is replaced, and a slot is added.
        let added = lab.cost_of(|state| state.apply_slice(web_slice(0..=endpoints)));
        assert_eq!(added, elements(1, 2), "{size:?}");
        // The same backwards.
        let last_removed = lab.cost_of(|state| state.apply_slice(web_slice(0..endpoints)));
        assert_eq!(last_removed, elements(2, 1), "{size:?}");
        // Besides, the last endpoint moves to the slot of the first: deleted twice, added once.
        let first_removed = lab.cost_of(|state| state.apply_slice(web_slice(1..endpoints)));
        assert_eq!(first_removed, elements(3, 2), "{size:?}");
    }
}

/// S-174
#[test]
fn an_endpoint_replaced() {
    for size @ (_, endpoints) in SIZES {
        let mut lab = Lab::new(size, web());
        // Just its slot.
        let replaced = lab.cost_of(|state| {
            state.apply_slice(web_slice((1..endpoints).chain([endpoints + 7])));
        });
        assert_eq!(replaced, elements(1, 1), "{size:?}");
    }
}

/// S-174
#[test]
fn an_endpoint_of_a_service_with_every_kind_of_address() {
    for size @ (_, endpoints) in SIZES {
        let mut lab = Lab::new(size, web_everywhere());
        // For each of four addresses, as above.
        let added = lab.cost_of(|state| state.apply_slice(web_slice(0..=endpoints)));
        assert_eq!(added, elements(4, 8), "{size:?}");
        let replaced = lab.cost_of(|state| state.apply_slice(web_slice(1..=endpoints + 1)));
        assert_eq!(replaced, elements(4, 4), "{size:?}");
    }
}

/// A map that is full is made anew, twice as large, which is so seldom that it hardly counts.
#[test]
fn full_maps_are_made_anew_and_remember_what_they_remembered() {
    let mut lab = Lab::new((1_000, 1), web());
    let sizes = |lab: &Lab| lab.syncer.kernel().sizes();
    let at_first = BTreeMap::from([
        (SetName::ClusterIps, 2_048),
        (SetName::Services, 2_048),
        (SetName::Endpoints, 4_096),
    ]);
    assert_eq!(sizes(&lab), at_first);
    let mut sent = Counts::default();
    for n in 0..4_000 {
        let name = format!("more-{n}");
        let cluster_ip = format!("10.97.{}.{}", n / 250, 1 + n % 250);
        let counts = lab.cost_of(|state| {
            state.apply_service(mk_service(&name, &cluster_ip, &["80/tcp"]));
            state.apply_slice(mk_slice::<V4>(&name, &name, &["8080/tcp"], &[&endpoint(n)]));
        });
        // Those that use the map have their rules anew.
        assert!(counts.rules < 10, "{counts:?}");
        sent.added_elements += counts.added_elements;
        sent.deleted_elements += counts.deleted_elements;
    }
    let at_last = BTreeMap::from([
        (SetName::ClusterIps, 8_192),
        (SetName::Services, 8_192),
        (SetName::Endpoints, 8_192),
    ]);
    assert_eq!(sizes(&lab), at_last);
    assert_eq!(sent.deleted_elements, 0);
    // Three for each Service, and twice as much again for what was sent once more.
    assert!(sent.added_elements < 3 * 3 * 4_000, "{sent:?}");
    let Lab {
        state,
        node,
        syncer,
    } = &lab;
    assert_eq!(
        syncer.kernel().ruleset().unwrap().elements,
        compile(state, node).v4.elements
    );
    assert_eq!(syncer.kernel().lists, 1);
}

#[test]
fn the_first_and_the_last_endpoint() {
    let mut lab = Lab::new((10, 3), web());
    // Three slots go, the verdict is replaced, and a refusal comes.
    let last_removed = lab.cost_of(|state| state.apply_slice(web_slice([])));
    assert_eq!(last_removed, elements(4, 2));
    // A slot comes, the verdict is replaced, the refusal goes, and the chain that picks one of one
    // is new.
    let first_added = lab.cost_of(|state| state.apply_slice(web_slice([0])));
    let expected = Counts {
        chains: 1,
        rules: 1,
        ..elements(2, 2)
    };
    assert_eq!(first_added, expected);
}

/// S-20: whatever changed since the last sync goes to the kernel in one transaction.
#[test]
fn s20_a_sync_is_one_transaction() {
    let mut lab = Lab::new((10, 3), web());
    let commits = lab.syncer.kernel().commits.len();
    lab.node.masquerade_all = true;
    lab.cost_of(|state| {
        state.delete_service(&service_name("other-1"));
        state.apply_service(web_everywhere());
        state.apply_slice(web_slice([7, 8]));
        state.apply_service_cidr("kubernetes", common::both_ranges("10.96.0.0/16"));
    });
    assert_eq!(lab.syncer.kernel().commits.len(), commits + 1);
}

/// O-154: a new table with source ranges is complete before packets meet it, as the kernel shows
/// ranges last.
#[test]
fn base_chains_come_after_source_ranges() {
    let mut lab = Lab::new((10, 3), web());
    let restricted = Service {
        source_ranges: Box::new(["192.0.2.0/24".parse().unwrap()]),
        ..web_everywhere()
    };
    lab.cost_of(|state| state.apply_service(restricted));
    lab.syncer.kernel_mut().flush();
    lab.syncer.distrust();
    let commits = lab.syncer.kernel().commits.len();
    lab.sync();
    let [table, hooks] = &lab.syncer.kernel().commits[commits..] else {
        panic!("{:?}", lab.syncer.kernel().commits);
    };
    assert!(table.added_elements > 0 && table.rules > 0, "{table:?}");
    assert!(hooks.added_elements == 0 && hooks.chains > 0, "{hooks:?}");
}

#[test]
fn an_endpoint_on_this_node() {
    let mut lab = Lab::new((10, 3), web());
    let here = |endpoint: &str| mk_slice::<V4>("here", "web", &["8080/tcp"], &[endpoint]);
    // Besides verdict and slot, it is now one that may reach itself.
    let added = lab.cost_of(|state| state.apply_slice(here("10.244.1.5")));
    assert_eq!(added, elements(1, 3));
    let replaced = lab.cost_of(|state| state.apply_slice(here("10.244.1.6")));
    assert_eq!(replaced, elements(2, 2));
}

#[test]
fn all_endpoints_roll() {
    let size @ (_, endpoints) = (2000, 100);
    let mut lab = Lab::new(size, web());
    let mut total = 0;
    for gone in 0..endpoints {
        // One more comes, then the oldest goes, as in a rolling update.
        let current = gone..=gone + endpoints;
        total += lab
            .cost_of(|state| state.apply_slice(web_slice(current)))
            .elements();
        let current = gone + 1..=gone + endpoints;
        total += lab
            .cost_of(|state| state.apply_slice(web_slice(current)))
            .elements();
    }
    // The one that came has the last slot, and moves to the slot of the one that goes: 3 + 5.
    assert_eq!(total, 8 * endpoints);
}

/// S-174: the cost is that of its own endpoints.
#[test]
fn a_service_more_or_less() {
    for size @ (_, endpoints) in SIZES {
        let mut lab = Lab::new(size, web());
        // Verdict, ClusterIP and slots.
        let deleted = lab.cost_of(|state| state.delete_service(&service_name("web")));
        assert_eq!(deleted, elements(2 + endpoints, 0), "{size:?}");
        let added = lab.cost_of(|state| state.apply_service(web()));
        assert_eq!(added, elements(0, 2 + endpoints), "{size:?}");
    }
}

#[test]
fn an_address_or_port_more() {
    let mut lab = Lab::new((2000, 100), web());
    // A verdict for the address, one for picking, and slots; the chains for NodePorts are others.
    let external_ip = lab.cost_of(|state| {
        state.apply_service(Service {
            external_ips: both("198.51.100.1").into(),
            ..web()
        });
    });
    assert_eq!(external_ip, elements(0, 102));
    let policy = lab.cost_of(|state| {
        state.apply_service(Service {
            external_ips: both("198.51.100.1").into(),
            external_traffic_policy: TrafficPolicy::Local,
            ..web()
        });
    });
    // The policy, and a drop for want of endpoints on this node.
    assert_eq!(policy, elements(0, 2));
}

/// S-19, S-39
#[test]
fn what_changes_no_rule_sends_nothing() {
    let mut lab = Lab::new((2000, 100), web());
    // Another order, a slice without endpoints, one of another port, one of an unknown Service.
    let unknown = mk_slice::<V4>("lost", "lost", &["8080/tcp"], &["10.244.1.5"]);
    let changes: [EndpointSlice; 6] = [
        web_slice((0..100).rev()),
        web_slice((0..100).chain([5, 6, 7])),
        mk_slice::<V4>("empty", "web", &["8080/tcp"], &[]),
        mk_slice::<V4>("other", "web", &["https 8080/tcp"], &["10.244.1.5"]),
        mk_slice::<V4>("unready", "web", &["8080/tcp"], &["10.244.1.5 unready"]),
        unknown,
    ];
    for slice in changes {
        let name = slice.name.clone();
        let counts = lab.cost_of(|state| state.apply_slice(slice));
        assert_eq!(counts, NOTHING, "{name}");
    }
    for name in ["empty", "other", "unready", "lost"] {
        let counts = lab.cost_of(|state| state.delete_slice(&slice_name(name)));
        assert_eq!(counts, NOTHING, "{name}");
    }
    // Endpoints that move to another slice of the Service.
    let moved = lab.cost_of(|state| {
        state.apply_slice(web_slice(0..50));
        state.apply_slice(EndpointSlice {
            name: slice_name("web-2"),
            ..web_slice(50..100)
        });
    });
    assert_eq!(moved, NOTHING);
}

#[test]
fn the_node_changes_rules_or_addresses_alone() {
    let mut lab = Lab::new((2000, 100), web());
    // The rule that lets ClusterIPs in.
    lab.node.masquerade_all = true;
    let counts = lab.cost_of(|_| {});
    assert_eq!((counts.elements(), counts.chains), (0, 0));
    // The two rules that match NodePorts stand in chains of 4 rules each; and there is an address.
    lab.node.node_port_addresses_v4 = common::only(&[common::NODE_IP]).0;
    let counts = lab.cost_of(|_| {});
    assert_eq!((counts.elements(), counts.rules), (1, 8));
    // A ServiceCIDR is a fifth rule of the second chain.
    let counts = lab.cost_of(|state| {
        state.apply_service_cidr("kubernetes", common::both_ranges("10.96.0.0/16"));
    });
    assert_eq!((counts.elements(), counts.rules), (0, 5));
}

/// One that others emptied gets its rules back though nothing needs it, as it may be needed again
/// before it goes as unused.
#[test]
fn unused_picks_that_were_emptied_are_mended_and_go() {
    let mut lab = Lab::new((10, 100), web());
    let picks = lab.syncer.kernel_mut().ruleset().unwrap().picks;
    for pick in &picks {
        let chain = ChainName::Pick(*pick);
        lab.syncer.kernel_mut().flush_chain(chain);
    }
    assert_eq!(
        lab.syncer.kernel_mut().ruleset().unwrap().picks,
        BTreeSet::new()
    );
    lab.syncer.distrust();
    let nothing = BTreeSet::new();
    lab.syncer.sync(&lab.state, &lab.node, &nothing).unwrap();
    assert_eq!(lab.syncer.kernel_mut().ruleset().unwrap().picks, picks);
    assert_eq!(lab.syncer.delete_unused_chains().unwrap(), 2);
}

/// O-105
#[test]
fn unused_picks_go_in_a_batch_of_their_own() {
    let mut lab = Lab::new((10, 100), web());
    // Of the setup, those for 99 and for 101.
    assert_eq!(lab.syncer.delete_unused_chains().unwrap(), 2);
    assert_eq!(lab.syncer.delete_unused_chains().unwrap(), 0);
    let counts = lab.cost_of(|state| state.apply_slice(web_slice(0..=100)));
    let expected = Counts {
        chains: 1,
        rules: 1,
        ..elements(1, 2)
    };
    assert_eq!(counts, expected);
}

/// O-102
#[test]
fn a_failure_makes_the_next_sync_full() {
    let mut lab = Lab::new((10, 3), web());
    lab.syncer.kernel_mut().fail_next(16);
    lab.state.apply_slice(web_slice(0..4));
    let dirty = lab.state.take_dirty();
    let report = lab.syncer.sync(&lab.state, &lab.node, &dirty).unwrap();
    assert!(report.full);
    assert_eq!(report.counts, elements(1, 2));
    assert_eq!(lab.cost_of(|_| {}), NOTHING);
}

#[test]
fn a_restart_sends_nothing() {
    let mut lab = Lab::new((10, 100), web());
    // Slots out of order.
    lab.cost_of(|state| state.apply_slice(web_slice((3..100).chain([200]))));
    restart(&mut lab);
}

#[test]
fn a_restart_sends_nothing_under_policy_local() {
    let mut lab = Lab::new(
        (10, 3),
        Service {
            internal_traffic_policy: TrafficPolicy::Local,
            ..web()
        },
    );
    let here = |endpoints: &[&str]| mk_slice::<V4>("here", "web", &["8080/tcp"], endpoints);
    lab.cost_of(|state| state.apply_slice(here(&["10.244.1.1", "10.244.1.2", "10.244.1.3"])));
    lab.cost_of(|state| state.apply_slice(here(&["10.244.1.2", "10.244.1.3"])));
    restart(&mut lab);
}

#[track_caller]
fn restart(lab: &mut Lab) {
    let kernel = std::mem::take(lab.syncer.kernel_mut());
    lab.syncer = Syncer::new(kernel);
    assert_eq!(lab.sync(), NOTHING);
}

/// A kernel that cannot be listed but the first time.
#[derive(Default)]
struct Unlistable {
    kernel: FakeKernel<V4>,
    is_broken: bool,
}

impl Kernel<V4> for Unlistable {
    fn list(&mut self) -> Result<Option<Observed<V4>>, ApplyError> {
        if self.is_broken {
            return Err(ApplyError::Unstable);
        }
        self.kernel.list()
    }

    fn list_affinity(&mut self) -> Result<Vec<Element<V4>>, ApplyError> {
        self.kernel.list_affinity()
    }

    fn commit(&mut self, delta: &Delta<V4>) -> Result<Committed, ApplyError> {
        self.kernel.commit(delta)
    }
}

#[test]
fn a_failed_listing_forgets_nothing() {
    let (mut state, node) = (State::default(), mk_node());
    let mut syncer = Syncer::new(Unlistable::default());
    syncer.sync(&state, &node, &BTreeSet::new()).unwrap();

    syncer.distrust();
    syncer.kernel_mut().is_broken = true;
    state.apply_service(web());
    let dirty = state.take_dirty();
    syncer.sync(&state, &node, &dirty).unwrap_err();
    syncer.kernel_mut().is_broken = false;
    let report = syncer.sync(&state, &node, &BTreeSet::new()).unwrap();
    // The ClusterIP, the refusal, and that no NodePort has the address.
    assert_eq!(report.counts, elements(0, 3));
}

/// What is refused beyond all patience is an error that says whose it is, in fields.
#[test]
fn a_refusal_names_the_service_port_and_the_element() {
    let (mut state, node) = (State::default(), mk_node());
    state.apply_service(web());
    state.apply_slice(web_slice(0..30));
    let desired = compile(&state, &node).v4;
    let mut syncer = Syncer::new(FakeKernel::<V4>::default());
    let slots = desired
        .elements
        .iter()
        .filter(|element| matches!(element.key(), Key::Slot(..)));
    let unacceptable = &mut syncer.kernel_mut().unacceptable;
    unacceptable.extend(slots.map(Element::identity));
    let dirty = state.take_dirty();
    let error = syncer.sync(&state, &node, &dirty).unwrap_err();
    let refusal = error.refusal().unwrap();
    let port = refusal.service_port.as_ref().unwrap();
    assert_eq!(port.service.parts(), ("default", "web"));
    assert_eq!(port.namespace(), "default");
    assert_eq!(refusal.errno(), 22);
    let Operation::Element {
        verb: Verb::Add,
        set: SetName::Endpoints,
        element,
    } = &refusal.operation
    else {
        panic!("{refusal:?}")
    };
    assert!(element.starts_with("10.96."), "{element}");
    let text = error.to_string();
    assert!(
        text.ends_with(&format!("for service port {port}")),
        "{text}"
    );
}

/// S-172: what the kernel refuses hurts nobody but its own Service, which is named.
#[test]
fn s172_an_element_that_the_kernel_refuses_is_left_out() {
    let (mut state, node) = (State::default(), mk_node());
    state.apply_service(web());
    state.apply_slice(web_slice(0..3));
    let desired = compile(&state, &node).v4;
    let is_slot = |element: &&Element<V4>| matches!(element.key(), Key::Slot(_, 1));
    let culprit = desired.elements.iter().find(is_slot).unwrap();
    let mut syncer = Syncer::new(FakeKernel::<V4>::default());
    syncer.kernel_mut().unacceptable.insert(culprit.identity());
    let dirty = state.take_dirty();
    let report = syncer.sync(&state, &node, &dirty).unwrap();
    let notes: Vec<_> = report.appeared.iter().map(ToString::to_string).collect();
    let expected = format!(
        "service port default/web is not complete: the kernel refuses {{ {} }} of endpoints: ",
        culprit.nft()
    );
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].starts_with(&expected), "{notes:?}");
    let mut held = desired.clone();
    held.elements.remove(culprit);
    assert_eq!(syncer.kernel().ruleset(), Some(held));

    // Others are synced as ever, and the Service can still change and go.
    state.apply_service(mk_service("other", "10.96.0.99", &["80/tcp"]));
    let dirty = state.take_dirty();
    let report = syncer.sync(&state, &node, &dirty).unwrap();
    assert!(!report.full);
    state.delete_service(&web().name);
    let dirty = state.take_dirty();
    syncer.sync(&state, &node, &dirty).unwrap();
    let held = syncer.kernel().ruleset().unwrap();
    assert_eq!(held.elements, compile(&state, &node).v4.elements);
}

/// S-172: where the kernel refuses whatever it is given, the sync fails rather than try for ever.
#[test]
fn s172_a_kernel_that_refuses_everything_is_an_error() {
    let (mut state, node) = (State::default(), mk_node());
    state.apply_service(web());
    state.apply_slice(web_slice(0..100));
    let dirty = state.take_dirty();
    let mut syncer = Syncer::new(FakeKernel::<V4>::default());
    let elements = compile(&state, &node).v4.elements;
    syncer.kernel_mut().unacceptable = elements.iter().map(Element::identity).collect();
    let error = syncer.sync(&state, &node, &dirty).unwrap_err();
    assert!(error.is_retryable());
    assert!(syncer.kernel().lists < 50);
    syncer.kernel_mut().unacceptable.clear();
    syncer.sync(&state, &node, &BTreeSet::new()).unwrap();
    let held = syncer.kernel().ruleset().unwrap();
    assert_eq!(held.elements, elements);
}

/// S-18: the API server refuses two ports with the same name, or the same number and protocol, but
/// files may hold them.
#[test]
fn ports_that_are_alike_stop_nothing() {
    let mut lab = Lab::new((10, 3), web());
    let mut twice = web();
    twice.ports = twice.ports.iter().chain(&twice.ports).cloned().collect();
    let counts = lab.cost_of(|state| state.apply_service(twice));
    assert_eq!(counts, NOTHING);
}

/// S-18: the longest legal names fill a comment, so that all ports of a Service have the same.
#[test]
fn ports_are_told_apart_whatever_their_comments() {
    let mut lab = Lab::new((10, 3), web());
    let longest = ServiceName::new(&"n".repeat(63), &"s".repeat(63)).unwrap();
    assert_eq!(format!("{longest}:").len(), COMMENT_MAX_LEN);
    let ports = ["a 80/tcp", "b 81/tcp", "c 82/tcp"];
    let service = Service {
        name: longest.clone(),
        ..mk_service("any", "10.96.255.2", &ports)
    };
    let slice = |endpoint: &str| EndpointSlice {
        service: longest.clone(),
        ..mk_slice::<V4>(
            "long",
            "any",
            &["a 8080/tcp", "b 8081/tcp", "c 8082/tcp"],
            &[endpoint],
        )
    };
    lab.cost_of(|state| {
        state.apply_service(service);
        state.apply_slice(slice("10.244.2.1"));
    });
    let replaced = lab.cost_of(|state| state.apply_slice(slice("10.244.2.2")));
    assert_eq!(replaced, elements(3, 3));
}
