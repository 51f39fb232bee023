//! UDP flows that exist already: which of them are to be forgotten after which change (section 9 of
//! the behaviour contract), in both families. What becomes of new ones is the matter of `packets`.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::{
    NODE_IP, OTHER_NODE_IP, Twin, apply_slices, both, both_ranges, mk_node, mk_service,
    service_name, slice_name,
};
use nftproxy_core::apply::fake::FakeKernel;
use nftproxy_core::compile::StaleFlows;
use nftproxy_core::model::{Node, Service, State, TrafficPolicy, V4, V6};
use nftproxy_core::sync::Syncer;

/// An endpoint on this node.
const HERE: &str = "10.244.1.5";
/// An endpoint on another node.
const THERE: &str = "10.244.2.5";
const CLUSTER_IP: &str = "10.96.0.10";
const EXTERNAL_IP: &str = "198.51.100.1";
const LB_IP: &str = "203.0.113.1";
/// The destinations of [`web`].
const DESTINATIONS: [(&str, u16); 4] = [
    (CLUSTER_IP, 53),
    (EXTERNAL_IP, 53),
    (LB_IP, 53),
    (NODE_IP, 30053),
];

/// A UDP Service with every kind of address.
fn web() -> Service {
    Service {
        external_ips: both(EXTERNAL_IP).into(),
        load_balancer_ips: both(LB_IP).into(),
        ..mk_service("web", CLUSTER_IP, &["dns 53/udp 30053"])
    }
}

/// A cluster, and what a proxy says of flows after each sync.
struct Lab {
    state: State,
    node: Node,
    v4: Syncer<V4, FakeKernel<V4>>,
    v6: Syncer<V6, FakeKernel<V6>>,
    stale: Stale,
}

/// What the last sync said.
struct Stale {
    v4: BTreeMap<(IpAddr, u16), StaleFlows<V4>>,
    v6: BTreeMap<(IpAddr, u16), StaleFlows<V6>>,
}

impl Lab {
    /// With [`web`] and these endpoints, in step.
    fn new(endpoints: &[&str]) -> Self {
        let mut lab = Self {
            state: State::default(),
            node: mk_node(),
            v4: Syncer::new(FakeKernel::default()),
            v6: Syncer::new(FakeKernel::default()),
            stale: Stale {
                v4: BTreeMap::new(),
                v6: BTreeMap::new(),
            },
        };
        lab.state.apply_service(web());
        lab.endpoints(endpoints);
        lab.sync();
        lab
    }

    /// Replaces the endpoints.
    fn endpoints(&mut self, endpoints: &[&str]) {
        apply_slices(&mut self.state, "web", "web", &["dns 5353/udp"], endpoints);
    }

    fn sync(&mut self) {
        let dirty = self.state.take_dirty();
        self.v4.sync(&self.state, &self.node, &dirty).unwrap();
        self.v6.sync(&self.state, &self.node, &dirty).unwrap();
        self.stale = Stale {
            v4: by_destination(self.v4.take_leftovers(&both(NODE_IP)).flows),
            v6: by_destination(self.v6.take_leftovers(&both(NODE_IP)).flows),
        };
    }

    /// Whether the last sync has a flow forgotten.
    #[track_caller]
    fn forgets(&self, flow: Flow) -> bool {
        let v4 = is_forgotten(&self.stale.v4, &flow);
        let v6 = is_forgotten(&self.stale.v6, &flow);
        assert_eq!(v4, v6, "the families differ");
        v4
    }

    /// Which flows to these endpoints the last sync has forgotten, the same for every destination.
    #[track_caller]
    fn forgotten(&self, endpoints: &[&'static str]) -> Vec<&'static str> {
        let at = |destination| {
            let is_forgotten = |endpoint: &&'static str| {
                self.forgets(Flow {
                    to: destination,
                    led_to: Some((endpoint, 5353)),
                    ..Flow::default()
                })
            };
            let endpoints = endpoints.iter().copied();
            endpoints.filter(is_forgotten).collect::<Vec<_>>()
        };
        let forgotten = at(DESTINATIONS[0]);
        for destination in DESTINATIONS {
            assert_eq!(at(destination), forgotten, "{destination:?}");
        }
        forgotten
    }

    /// Whether flows that nobody led anywhere are forgotten, the same for every destination.
    #[track_caller]
    fn forgets_untranslated(&self) -> bool {
        let at = |destination| {
            self.forgets(Flow {
                to: destination,
                ..Flow::default()
            })
        };
        let forgets = at(DESTINATIONS[0]);
        for destination in DESTINATIONS {
            assert_eq!(at(destination), forgets, "{destination:?}");
        }
        forgets
    }
}

fn by_destination<F: Twin>(stale: Vec<StaleFlows<F>>) -> BTreeMap<(IpAddr, u16), StaleFlows<F>> {
    stale
        .into_iter()
        .map(|flows| ((flows.address.into(), flows.port.get()), flows))
        .collect()
}

/// A UDP flow.
#[derive(Clone, Copy)]
struct Flow {
    from: &'static str,
    to: (&'static str, u16),
    /// `None`: nobody led it anywhere.
    led_to: Option<(&'static str, u16)>,
    is_answered: bool,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            from: "192.0.2.1",
            to: DESTINATIONS[0],
            led_to: None,
            is_answered: false,
        }
    }
}

fn is_forgotten<F: Twin>(stale: &BTreeMap<(IpAddr, u16), StaleFlows<F>>, flow: &Flow) -> bool {
    let at = |(address, port)| (F::parse(address), port);
    let (address, port) = at(flow.to);
    let reply_source = at(flow.led_to.unwrap_or(flow.to));
    stale
        .get(&(address.into(), port))
        .is_some_and(|flows| flows.condemn(F::parse(flow.from), flow.is_answered, reply_source))
}

/// S-120: flows to an endpoint that is gone are forgotten, at each destination; S-121: those to the
/// others are not.
#[test]
fn s120_s121_endpoints_come_and_go() {
    let mut lab = Lab::new(&[HERE, THERE]);
    lab.endpoints(&[HERE]);
    lab.sync();
    assert_eq!(lab.forgotten(&[HERE, THERE]), [THERE]);
    lab.endpoints(&[HERE, "10.244.2.6"]);
    lab.sync();
    assert_eq!(lab.forgotten(&[HERE, "10.244.2.6"]), [""; 0]);
}

/// S-120: the same address with another port is another endpoint.
#[test]
fn s120_the_target_port_changes() {
    let mut lab = Lab::new(&[HERE]);
    apply_slices(&mut lab.state, "web", "web", &["dns 5354/udp"], &[HERE]);
    lab.sync();
    assert_eq!(lab.forgotten(&[HERE]), [HERE]);
}

/// S-120: the first endpoint has flows forgotten that began before it, and led nowhere.
#[test]
fn s120_untranslated_flows_are_forgotten_with_the_first_endpoint() {
    let mut lab = Lab::new(&[]);
    assert!(!lab.forgets_untranslated());
    lab.endpoints(&[THERE]);
    lab.sync();
    assert!(lab.forgets_untranslated());
}

/// S-119, S-121: an endpoint serves whether it is ready or terminates, wherever it is, and whatever
/// policies and hints say.
#[test]
fn s119_s121_an_endpoint_that_serves_keeps_its_flows() {
    let mut lab = Lab::new(&[HERE, THERE]);
    for conditions in [
        "10.244.2.5 unready-but-serving",
        "10.244.2.5 terminating",
        "10.244.2.5 terminating-but-ready",
        "10.244.2.5 zone-b",
        "10.244.2.5 for-another-node",
        "10.244.2.5 no-node",
    ] {
        lab.endpoints(&["10.244.1.5 zone-a for-this-node", conditions]);
        lab.sync();
        assert_eq!(lab.forgotten(&[HERE, THERE]), [""; 0], "{conditions}");
    }
    lab.endpoints(&[HERE, "10.244.2.5 unready"]);
    lab.sync();
    assert_eq!(lab.forgotten(&[HERE, THERE]), [THERE]);

    let mut lab = Lab::new(&[HERE, THERE]);
    lab.state.apply_service(Service {
        internal_traffic_policy: TrafficPolicy::Local,
        external_traffic_policy: TrafficPolicy::Local,
        ..web()
    });
    lab.sync();
    assert_eq!(lab.forgotten(&[HERE, THERE]), [""; 0]);
}

/// S-118, S-121: the first sync after a start judges all flows, and keeps those that lead well.
#[test]
fn s118_s121_a_restart() {
    let mut lab = Lab::new(&[HERE]);
    lab.v4 = Syncer::new(lab.v4.kernel().clone());
    lab.v6 = Syncer::new(lab.v6.kernel().clone());
    lab.sync();
    assert_eq!(lab.forgotten(&[HERE, THERE]), [THERE]);
    assert!(lab.forgets_untranslated());
}

/// S-118: what does not concern a Service says nothing about its flows.
#[test]
fn s118_other_changes_judge_nothing() {
    let mut lab = Lab::new(&[HERE]);
    lab.state
        .apply_service(mk_service("other", "10.96.0.11", &["53/udp"]));
    lab.sync();
    assert_eq!(lab.forgotten(&[HERE, THERE]), [""; 0]);
    lab.sync();
    assert!(lab.stale.v4.is_empty() && lab.stale.v6.is_empty());
}

/// S-122: with the last endpoint, or the Service, go flows that were led to an endpoint; those that
/// were not are left alone.
#[test]
fn s122_the_last_endpoint_or_the_service_goes() {
    let mut lab = Lab::new(&[HERE]);
    lab.endpoints(&[]);
    lab.sync();
    assert_eq!(lab.forgotten(&[HERE]), [HERE]);
    assert!(!lab.forgets_untranslated());

    let mut lab = Lab::new(&[HERE]);
    lab.state.delete_service(&service_name("web"));
    lab.sync();
    assert_eq!(lab.forgotten(&[HERE]), [HERE]);
    assert!(!lab.forgets_untranslated());
}

/// S-122: what a sync that failed would have kept does not matter any more once the Service is gone.
#[test]
fn s122_a_sync_fails_before_the_service_goes() {
    let mut lab = Lab::new(&[HERE]);
    lab.endpoints(&[HERE, THERE]);
    let dirty = lab.state.take_dirty();
    // A full one, as an ordinary one would be made up for at once.
    lab.v4.distrust();
    lab.v4.kernel_mut().fail_next(16);
    lab.v4.sync(&lab.state, &lab.node, &dirty).unwrap_err();
    lab.v6.distrust();
    lab.v6.kernel_mut().fail_next(16);
    lab.v6.sync(&lab.state, &lab.node, &dirty).unwrap_err();
    lab.state.delete_service(&service_name("web"));
    lab.sync();
    assert_eq!(lab.forgotten(&[HERE]), [HERE]);
}

/// S-123: a NodePort is one at accepted addresses of this node only, and not where the address and
/// port are another Service's own.
#[test]
fn s123_a_node_port_is_at_addresses_of_this_node() {
    let mut lab = Lab::new(&[HERE]);
    lab.state.apply_service(Service {
        external_ips: both(NODE_IP).into(),
        ..mk_service("own", "10.96.0.11", &["30054/udp"])
    });
    apply_slices(&mut lab.state, "own", "own", &["5353/udp"], &[THERE]);
    lab.state.apply_service(Service {
        ports: mk_service("web", CLUSTER_IP, &["dns 53/udp 30054"]).ports,
        ..web()
    });
    lab.sync();
    let forgets = |to, led_to| {
        lab.forgets(Flow {
            to,
            led_to,
            ..Flow::default()
        })
    };
    for address in [OTHER_NODE_IP, "192.0.2.9", "127.0.0.1", THERE] {
        assert!(!forgets((address, 30054), None), "{address}");
    }
    assert!(!forgets((NODE_IP, 30054), Some((THERE, 5353))));
    assert!(forgets((NODE_IP, 30054), Some((HERE, 5353))));
}

/// S-124: a destination more has flows forgotten that led nowhere; one less, those that were led.
#[test]
fn s124_destinations_come_and_go() {
    let mut lab = Lab::new(&[HERE]);
    lab.state
        .apply_service(mk_service("web", CLUSTER_IP, &["dns 53/udp"]));
    lab.sync();
    for to in DESTINATIONS {
        let is_gone = to.0 != CLUSTER_IP;
        let led = Flow {
            to,
            led_to: Some((HERE, 5353)),
            ..Flow::default()
        };
        assert_eq!(lab.forgets(led), is_gone, "{to:?}");
    }
    lab.state.apply_service(web());
    lab.sync();
    assert!(lab.forgets_untranslated());
    assert_eq!(lab.forgotten(&[HERE]), [""; 0]);

    // Another port.
    lab.state
        .apply_service(mk_service("web", CLUSTER_IP, &["dns 54/udp"]));
    lab.sync();
    let to_old_port = Flow {
        led_to: Some((HERE, 5353)),
        ..Flow::default()
    };
    let to_new_port = Flow {
        to: (CLUSTER_IP, 54),
        ..Flow::default()
    };
    assert!(lab.forgets(to_old_port) && lab.forgets(to_new_port));
}

/// S-108, S-124: tightened source ranges have one-way flows from elsewhere forgotten, at the
/// load-balancer address alone; flows that were answered are connections, and stay.
#[test]
fn s108_s124_source_ranges() {
    let mut lab = Lab::new(&[HERE]);
    lab.state.apply_service(Service {
        source_ranges: both_ranges("192.0.2.0/25").into(),
        ..web()
    });
    lab.sync();
    let forgets = |from, address, is_answered| {
        lab.forgets(Flow {
            from,
            to: (address, 53),
            led_to: Some((HERE, 5353)),
            is_answered,
        })
    };
    assert!(forgets("192.0.2.200", LB_IP, false));
    assert!(!forgets("192.0.2.200", LB_IP, true));
    assert!(!forgets("192.0.2.1", LB_IP, false));
    assert!(!forgets("192.0.2.200", EXTERNAL_IP, false));
    assert!(!forgets("192.0.2.200", CLUSTER_IP, false));
}

/// S-117: nothing is said about the flows of other protocols.
#[test]
fn s117_udp_only() {
    let mut state = State::default();
    state.apply_service(mk_service(
        "web",
        CLUSTER_IP,
        &["t 53/tcp 30053", "s 53/sctp 30053"],
    ));
    let ports = ["t 5353/tcp", "s 5353/sctp"];
    apply_slices(&mut state, "web", "web", &ports, &[HERE]);
    let mut syncer = Syncer::new(FakeKernel::<V4>::default());
    let node = mk_node();
    syncer.sync(&state, &node, &BTreeSet::new()).unwrap();
    assert_eq!(syncer.take_leftovers(&both(NODE_IP)).flows, []);
    state.delete_slice(&slice_name("web-v4"));
    let dirty = state.take_dirty();
    syncer.sync(&state, &node, &dirty).unwrap();
    assert_eq!(syncer.take_leftovers(&both(NODE_IP)).flows, []);
}
