//! Random clusters, as proptest strategies.
//!
//! Names and addresses come from small pools, so that Services often want the same address, share
//! endpoints, and slices move between Services.

use std::num::NonZeroU32;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

use nftproxy_core::model::{
    Balancing, DetectLocal, EndpointSlice, InterfaceName, Method, Node, Service, ServiceName,
    SliceName, State, TrafficPolicy, V4, V6,
};

use crate::common::{
    NODE_IP, OTHER_NODE_IP, SECOND_NODE_IP, both, both_ranges, mk_node, mk_service, mk_slice, only,
    service_name, slice_name,
};

const SERVICES: [&str; 5] = ["a", "b", "c", "d", "unknown"];
const SLICES: [&str; 7] = ["1", "2", "3", "4", "5", "6", "7"];
/// Addresses that Services have, of which some are ClusterIPs of one and external IPs of another.
pub(crate) const VIRTUAL_ADDRESSES: [&str; 6] = [
    "10.96.0.1",
    "10.96.0.2",
    "10.96.0.3",
    "198.51.100.1",
    "203.0.113.1",
    SECOND_NODE_IP,
];
/// The ports of a Service: names differ, and so do numbers of one protocol. Some are the number of
/// a NodePort.
const PORTS: [&[&str]; 10] = [
    &[],
    &["80/tcp"],
    &["80/udp"],
    &["30080/udp"],
    &["x 80/tcp"],
    &["x 80/udp", "y 30080/tcp"],
    &["x 80/tcp", "y 81/tcp"],
    &["x 81/tcp", "y 80/tcp"],
    &["x 80/tcp", "y 80/udp"],
    &["x 80/udp", "y 80/tcp", "z 81/tcp"],
];
const NODE_PORTS: [&str; 4] = ["", "", " 30080", " 30081"];
const SLICE_PORTS: [&str; 7] = [
    "8080/tcp",
    "8080/udp",
    "x 8080/tcp",
    "x 8081/tcp",
    "x 8080/udp",
    "y 8080/tcp",
    "y 8080/udp",
];
pub(crate) const ENDPOINTS: [&str; 7] = [
    "10.244.1.1",
    "10.244.1.2",
    "10.244.1.3",
    "10.244.2.1",
    "10.244.2.2",
    "10.244.3.1",
    NODE_IP,
];
const CONDITIONS: [&str; 8] = [
    "",
    "",
    "",
    "",
    " unready",
    " unready-but-serving",
    " terminating",
    " terminating-but-ready",
];
const HINTS: [&str; 6] = [
    "",
    "",
    " zone-a",
    " zone-b",
    " zone-a for-this-node",
    " zone-b for-another-node",
];

/// Source ranges of both families that hold each other, touch, or are everything by halves.
const SOURCE_RANGES: [[&str; 2]; 9] = [
    ["192.0.2.0/24", "fd00::c000:200/120"],
    ["192.0.2.0/25", "fd00::c000:200/121"],
    ["192.0.2.128/25", "fd00::c000:280/121"],
    ["192.0.2.1/32", "fd00::c000:201/128"],
    ["10.244.1.0/24", "fd00::af4:100/120"],
    ["192.168.0.0/28", "fd00::c0a8:0/124"],
    ["0.0.0.0/1", "::/1"],
    ["128.0.0.0/1", "8000::/1"],
    ["0.0.0.0/0", "::/0"],
];
const AFFINITY: [Option<NonZeroU32>; 4] = [None, None, NonZeroU32::new(90), NonZeroU32::new(10800)];

/// Something that happens to a cluster or to this node.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Service(Box<Service>),
    ServiceGone(ServiceName),
    Slice(EndpointSlice),
    SliceGone(SliceName),
    ServiceCidr(&'static str, Option<&'static str>),
    Node(Node),
}

impl Event {
    pub(crate) fn apply(&self, state: &mut State, node: &mut Node) {
        match self.clone() {
            Self::Service(service) => state.apply_service(*service),
            Self::ServiceGone(name) => state.delete_service(&name),
            Self::Slice(slice) => state.apply_slice(slice),
            Self::SliceGone(name) => state.delete_slice(&name),
            Self::ServiceCidr(name, Some(range)) => {
                state.apply_service_cidr(name, both_ranges(range));
            }
            Self::ServiceCidr(name, None) => state.delete_service_cidr(name),
            Self::Node(new) => *node = new,
        }
    }

    /// As [`Event::apply`], but of the node changes only what no configuration fixes.
    pub(crate) fn apply_while_running(&self, state: &mut State, node: &mut Node) {
        let mut changed = node.clone();
        self.apply(state, &mut changed);
        (node.zone, node.ips) = (changed.zone, changed.ips);
    }
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let service_gone =
        select(&SERVICES[..]).prop_map(|name| Event::ServiceGone(service_name(name)));
    let slice_gone = (select(&SLICES[..]), any::<bool>())
        .prop_map(|(name, v4)| Event::SliceGone(slice_name_of(name, v4)));
    let ranges = select(&["10.96.0.0/16", "10.96.0.0/17", "10.97.0.0/16"][..]);
    let service_cidr = (select(&["first", "second"][..]), option::of(ranges))
        .prop_map(|(name, range)| Event::ServiceCidr(name, range));
    prop_oneof![
        6 => service().prop_map(|service| Event::Service(Box::new(service))),
        2 => service_gone,
        8 => slice().prop_map(Event::Slice),
        3 => slice_gone,
        1 => service_cidr,
        1 => node().prop_map(Event::Node),
    ]
}

/// A cluster, and a node in it.
pub(crate) fn cluster() -> impl Strategy<Value = (Vec<Event>, Node)> {
    (vec(event(), 0..40), node())
}

/// So many endpoints for each Service that few of the others change much.
pub(crate) fn many_endpoints() -> Vec<Event> {
    let addresses: Vec<_> = (1..=200).map(|last| format!("10.244.9.{last}")).collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    let slice = |service: &&str| {
        let mut slice = mk_slice::<V4>("any", service, &SLICE_PORTS, &addresses);
        slice.name = slice_name(&format!("many-{service}"));
        Event::Slice(slice)
    };
    SERVICES.iter().map(slice).collect()
}

/// What a cluster has become.
pub(crate) fn state_of(events: &[Event]) -> State {
    let mut state = State::default();
    let mut ignored = Node::default();
    for event in events {
        event.apply(&mut state, &mut ignored);
    }
    state
}

fn service() -> impl Strategy<Value = Service> {
    let policy = || select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..]);
    let node_ports = vec(select(&NODE_PORTS[..]), 3);
    let addresses = || subsequence(&VIRTUAL_ADDRESSES[1..], 0..=2);
    (
        (
            select(&SERVICES[..4]),
            select(&VIRTUAL_ADDRESSES[..3]),
            0..3_i64,
        ),
        (select(&PORTS[..]), node_ports),
        (addresses(), addresses(), source_ranges()),
        (policy(), policy(), select(&AFFINITY[..])),
        (
            balancing(),
            select(&[(true, true), (true, true), (true, false), (false, true)][..]),
        ),
    )
        .prop_map(
            |(
                (name, cluster_ip, created),
                (ports, node_ports),
                (external, ingress, source_ranges),
                (internal_policy, external_policy, affinity),
                (balancing, families),
            )| {
                let ports: Vec<_> = ports
                    .iter()
                    .zip(node_ports)
                    .map(|(port, node_port)| format!("{port}{node_port}"))
                    .collect();
                let ports: Vec<_> = ports.iter().map(String::as_str).collect();
                let mut service = mk_service(name, cluster_ip, &ports);
                service.created = created;
                service.external_ips = external.into_iter().flat_map(both).collect();
                service.load_balancer_ips = ingress.into_iter().flat_map(both).collect();
                service.source_ranges = source_ranges;
                service.internal_traffic_policy = internal_policy;
                service.external_traffic_policy = external_policy;
                service.session_affinity = affinity;
                service.balancing = balancing;
                service.cluster_ips.v4 = service.cluster_ips.v4.filter(|_| families.0);
                service.cluster_ips.v6 = service.cluster_ips.v6.filter(|_| families.1);
                service
            },
        )
}

/// Most Services have none. Tables of Maglev's are large, so there are few.
fn balancing() -> impl Strategy<Value = Option<Box<Balancing>>> {
    let methods = prop_oneof![
        4 => Just(Method::Random),
        4 => Just(Method::SourceHash),
        1 => Just(Method::Maglev),
    ];
    let weighted = (
        methods,
        subsequence(&ENDPOINTS[..], 0..=4),
        vec(select(&[0, 0, 1, 2, 3, 6][..]), 4),
    );
    let some = weighted.prop_map(|(method, addresses, weights)| {
        let weights = addresses.into_iter().zip(weights);
        let mut weights: Vec<_> = weights
            .flat_map(|(address, weight)| both(address).map(|address| (address, weight)))
            .collect();
        weights.sort();
        Some(Box::new(Balancing {
            method,
            weights: weights.into(),
        }))
    });
    prop_oneof![2 => Just(None), 1 => some]
}

/// Most Services have none; those of others are of one family or of both, in any order, and some
/// twice.
fn source_ranges() -> impl Strategy<Value = Box<[IpNet]>> {
    let families = subsequence(vec![0, 1], 1..=2);
    let narrow = vec(select(&SOURCE_RANGES[..6]), 1..5);
    let any = vec(select(&SOURCE_RANGES[..]), 1..5);
    let ranges = prop_oneof![3 => Just(Vec::new()), 3 => narrow, 1 => any];
    (ranges, families).prop_map(|(ranges, families)| {
        let texts = ranges
            .iter()
            .flat_map(|range| families.iter().map(|family| range[*family]));
        texts.map(|text| text.parse().unwrap()).collect()
    })
}

/// Slices of the two families have names of their own, as a slice's family cannot change.
fn slice_name_of(name: &str, v4: bool) -> SliceName {
    slice_name(&format!("{name}-{}", if v4 { "v4" } else { "v6" }))
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let endpoint = (
        select(&ENDPOINTS[..]),
        select(&CONDITIONS[..]),
        select(&HINTS[..]),
        prop_oneof![4 => Just(""), 1 => Just(" no-node")],
    )
        .prop_map(|(address, conditions, hints, node)| {
            format!("{address}{conditions}{hints}{node}")
        });
    (
        select(&SLICES[..]),
        any::<bool>(),
        select(&SERVICES[..]),
        subsequence(&SLICE_PORTS[..], 1..=3),
        vec(endpoint, 0..6),
    )
        .prop_map(|(name, v4, service, ports, endpoints)| {
            let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
            let mut slice = if v4 {
                mk_slice::<V4>("any", service, &ports, &endpoints)
            } else {
                mk_slice::<V6>("any", service, &ports, &endpoints)
            };
            slice.name = slice_name_of(name, v4);
            slice
        })
}

pub(crate) fn node() -> impl Strategy<Value = Node> {
    let zone = select(&[None, Some("zone-a"), Some("zone-b")][..]);
    let addresses = option::of(subsequence(
        &[NODE_IP, SECOND_NODE_IP, "127.0.0.1"][..],
        0..=3,
    ));
    let detectors = [
        DetectLocal::Cidrs(Vec::new()),
        DetectLocal::Cidrs(both_ranges("10.244.0.0/16").into()),
        DetectLocal::Cidrs(both_ranges("10.244.1.0/24").into()),
        DetectLocal::BridgeInterface(InterfaceName::new("veth1").unwrap()),
        DetectLocal::InterfaceNamePrefix(InterfaceName::new("veth").unwrap()),
    ];
    let ips = subsequence(&[NODE_IP, OTHER_NODE_IP][..], 0..=1);
    let mark = option::weighted(0.7, Just(1 << 14));
    let all = any::<bool>();
    let hashes = prop::bool::weighted(0.8);
    (zone, ips, addresses, any::<Index>(), (all, hashes), mark).prop_map(
        move |(zone, ips, addresses, detector, (masquerade_all, hashes), masquerade_mark)| {
            let mut node = Node {
                zone: zone.map(Into::into),
                ips: ips.into_iter().flat_map(both).collect(),
                detect_local: detector.get(&detectors).clone(),
                masquerade_all,
                masquerade_mark,
                hashes,
                ..mk_node()
            };
            if let Some(addresses) = addresses {
                (node.node_port_addresses_v4, node.node_port_addresses_v6) = only(&addresses);
            }
            node
        },
    )
}
