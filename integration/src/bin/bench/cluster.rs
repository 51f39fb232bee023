//! Synthetic clusters, and what happens in them.
//!
//! Everything is computed from numbers, so that each run sees the same cluster. Nothing here knows
//! what is measured. Start at [`Cluster::state`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use nftproxy_core::model::{
    Balancing, ClusterIps, DetectLocal, Endpoint, EndpointSlice, Family, Locality, Method, Node,
    PortName, Protocol, Service, ServiceName, ServicePort, SliceEndpoints, SliceName, SlicePort,
    State,
};

/// What Kubernetes puts into a slice at most.
pub(crate) const ENDPOINTS_PER_SLICE: u32 = 100;
/// Endpoints are spread over so many nodes; the first is this one.
pub(crate) const NODES: u32 = 100;

/// The range of all ClusterIPs.
pub(crate) const CLUSTER_IP_RANGE: &str = "10.64.0.0/10";
const CLUSTER_IPS: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
const ENDPOINTS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const LATER_ENDPOINTS: Ipv4Addr = Ipv4Addr::new(10, 192, 0, 0);
const CLUSTER_IPS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x64, 0, 0, 0, 0, 0);
const ENDPOINTS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x128, 0, 0, 0, 0, 0);
const PORT: NonZeroU16 = NonZeroU16::new(80).expect("it is not zero");
const TARGET_PORT: NonZeroU16 = NonZeroU16::new(8080).expect("it is not zero");

/// How large a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) services: u32,
    /// Of each Service.
    pub(crate) endpoints: u32,
}

impl Size {
    pub(crate) const fn new(services: u32, endpoints: u32) -> Self {
        Self {
            services,
            endpoints,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (services, endpoints) = (grouped(self.services), grouped(self.endpoints));
        write!(f, "{services} x {endpoints}")
    }
}

/// A number with commas between thousands.
pub(crate) fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (position, digit) in digits.char_indices() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Something that an API server tells.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Service(Service),
    ServiceDeleted(ServiceName),
    Slice(EndpointSlice),
    SliceDeleted(SliceName),
}

impl Event {
    /// Hands the event to the state, as the daemon does.
    pub(crate) fn apply(self, state: &mut State) {
        match self {
            Self::Service(service) => state.apply_service(service),
            Self::ServiceDeleted(name) => state.delete_service(&name),
            Self::Slice(slice) => state.apply_slice(slice),
            Self::SliceDeleted(name) => state.delete_slice(&name),
        }
    }
}

/// A cluster of equal Services, each with one port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cluster {
    pub(crate) size: Size,
    pub(crate) is_dual_stack: bool,
    pub(crate) protocol: Protocol,
    /// How endpoints are chosen.
    pub(crate) method: Method,
}

impl Cluster {
    /// A cluster with IPv4 and TCP only.
    pub(crate) fn new(size: Size) -> Self {
        Self {
            size,
            is_dual_stack: false,
            protocol: Protocol::Tcp,
            method: Method::Random,
        }
    }

    /// All of it.
    pub(crate) fn state(&self) -> State {
        let mut state = State::default();
        state.apply_service_cidr(
            "kubernetes",
            [CLUSTER_IP_RANGE, "fd00:10:64::/108"].map(|cidr| cidr.parse().expect("it is a range")),
        );
        for number in 0..self.size.services {
            for event in self.service_added(number) {
                event.apply(&mut state);
            }
        }
        state
    }

    /// The events by which a Service comes, with its slices. Numbers beyond the size are Services
    /// that the cluster does not have yet.
    pub(crate) fn service_added(&self, number: u32) -> Vec<Event> {
        let service = Event::Service(self.service(number));
        let slices = self.slices(number).into_iter().map(Event::Slice);
        [service].into_iter().chain(slices).collect()
    }

    /// The events by which it goes.
    pub(crate) fn service_deleted(&self, number: u32) -> Vec<Event> {
        let slices = self.slices(number).into_iter();
        let slices = slices.map(|slice| Event::SliceDeleted(slice.name));
        [Event::ServiceDeleted(service_name(number))]
            .into_iter()
            .chain(slices)
            .collect()
    }

    fn service(&self, number: u32) -> Service {
        Service {
            created: i64::from(number),
            cluster_ips: ClusterIps {
                v4: Some(destination(number).0),
                v6: self
                    .is_dual_stack
                    .then(|| offset_v6(CLUSTER_IPS_V6, number)),
            },
            ports: Box::new([ServicePort {
                name: PortName::new("http").expect("it is a legal name"),
                protocol: self.protocol,
                port: PORT,
                node_port: None,
            }]),
            balancing: (self.method != Method::Random)
                .then(|| Box::new(Balancing::new(self.method))),
            ..Service::new(service_name(number))
        }
    }

    fn slice(
        &self,
        number: u32,
        family: &str,
        part: u32,
        endpoints: SliceEndpoints,
    ) -> EndpointSlice {
        EndpointSlice {
            name: slice_name(number, family, part),
            service: service_name(number),
            ports: Box::new([SlicePort {
                name: PortName::new("http").expect("it is a legal name"),
                protocol: self.protocol,
                port: TARGET_PORT,
            }]),
            endpoints,
        }
    }

    fn slices(&self, number: u32) -> Vec<EndpointSlice> {
        let all: Vec<_> = (0..self.size.endpoints).collect();
        let mut slices = Vec::new();
        for (part, endpoints) in (0..).zip(all.chunks(ENDPOINTS_PER_SLICE as usize)) {
            let ids = endpoints
                .iter()
                .map(|endpoint| number * self.size.endpoints + endpoint);
            let v4 = ids
                .clone()
                .map(|id| endpoint(id, offset(ENDPOINTS, id)))
                .collect();
            slices.push(self.slice(number, "v4", part, SliceEndpoints::V4(v4)));
            if self.is_dual_stack {
                let v6 = ids
                    .map(|id| endpoint(id, offset_v6(ENDPOINTS_V6, id)))
                    .collect();
                slices.push(self.slice(number, "v6", part, SliceEndpoints::V6(v6)));
            }
        }
        slices
    }

    /// The Service and the endpoint in it that change number `n` is about: another one each time,
    /// and never on this node, where one more element depends on it.
    fn pick(&self, n: u32) -> (u32, u32) {
        let Size {
            services,
            endpoints,
        } = self.size;
        // A prime, so that the sequence visits all, in no order that favours any.
        let id = n.wrapping_mul(7919) % (services * endpoints);
        let id = if is_local(id) { id + 1 } else { id };
        (id / endpoints, id % endpoints)
    }

    /// An endpoint is replaced by one with an address that was never there.
    pub(crate) fn endpoint_replaced(&self, state: &State, n: u32) -> Event {
        let (service, endpoint) = self.pick(n);
        self.replaced(state, service, endpoint, n)
    }

    /// The given endpoint of a Service gets the `n`th of the addresses that were never there.
    pub(crate) fn replaced(&self, state: &State, service: u32, endpoint: u32, n: u32) -> Event {
        let mut slice = slice_of(state, service, endpoint);
        at(&mut slice, endpoint).address = offset(LATER_ENDPOINTS, n);
        Event::Slice(slice)
    }

    /// An endpoint goes; the other event brings it back.
    pub(crate) fn endpoint_removed(&self, state: &State, n: u32) -> (Event, Event) {
        let (service, endpoint) = self.pick(n);
        self.removed(state, service, endpoint)
    }

    /// The given endpoint of a Service goes; the other event brings it back.
    pub(crate) fn removed(&self, state: &State, service: u32, endpoint: u32) -> (Event, Event) {
        let with = slice_of(state, service, endpoint);
        let SliceEndpoints::V4(endpoints) = &with.endpoints else {
            unreachable!("these clusters are IPv4 only");
        };
        let mut left = endpoints.to_vec();
        left.remove((endpoint % ENDPOINTS_PER_SLICE) as usize);
        let without = EndpointSlice {
            endpoints: SliceEndpoints::V4(left.into()),
            ..with.clone()
        };
        (Event::Slice(without), Event::Slice(with))
    }

    /// All endpoints of a node become ready or not.
    pub(crate) fn node_ready(&self, state: &State, node: u32, is_ready: bool) -> Vec<Event> {
        let all = self.size.services * self.size.endpoints;
        let mut slices = BTreeMap::new();
        for id in (node % NODES..all).step_by(NODES as usize) {
            let (service, endpoint) = (id / self.size.endpoints, id % self.size.endpoints);
            let slice = slices
                .entry((service, endpoint / ENDPOINTS_PER_SLICE))
                .or_insert_with(|| slice_of(state, service, endpoint));
            let endpoint = at(slice, endpoint);
            (endpoint.ready, endpoint.serving) = (is_ready, is_ready);
        }
        slices.into_values().map(Event::Slice).collect()
    }
}

/// The node that rules are made for.
pub(crate) fn node() -> Node {
    Node {
        detect_local: DetectLocal::Cidrs(vec![
            "10.128.0.0/24".parse().expect("it is a range"),
            "fd00:10:128::/64".parse().expect("it is a range"),
        ]),
        ..Node::default()
    }
}

/// The ClusterIP and port of a Service.
pub(crate) fn destination(number: u32) -> (Ipv4Addr, NonZeroU16) {
    (offset(CLUSTER_IPS, number), PORT)
}

fn service_name(number: u32) -> ServiceName {
    ServiceName::new(
        &format!("team-{}", number % 100),
        &format!("service-{number}"),
    )
    .expect("it is a legal name")
}

fn slice_name(number: u32, family: &str, part: u32) -> SliceName {
    SliceName::new(
        &format!("team-{}", number % 100),
        &format!("service-{number}-{family}-{part}"),
    )
    .expect("it is a legal name")
}

/// Whether an endpoint is on this node.
fn is_local(id: u32) -> bool {
    id.is_multiple_of(NODES)
}

fn endpoint<F: Family>(id: u32, address: F::Address) -> Endpoint<F> {
    Endpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        locality: if is_local(id) {
            Locality::Local
        } else {
            Locality::Remote
        },
        hints: None,
    }
}

/// The slice, as it is now, that an IPv4 endpoint is in.
fn slice_of(state: &State, service: u32, endpoint: u32) -> EndpointSlice {
    let name = slice_name(service, "v4", endpoint / ENDPOINTS_PER_SLICE);
    let service = service_name(service);
    let mut slices = state.slices(&service).iter();
    let known = slices.find(|slice| slice.name == name);
    let known = known.expect("the cluster has the Service and the endpoint");
    EndpointSlice::clone(known)
}

fn at(slice: &mut EndpointSlice, endpoint: u32) -> &mut Endpoint<nftproxy_core::model::V4> {
    let SliceEndpoints::V4(endpoints) = &mut slice.endpoints else {
        unreachable!("it was found by its IPv4 name");
    };
    &mut endpoints[(endpoint % ENDPOINTS_PER_SLICE) as usize]
}

fn offset(base: Ipv4Addr, by: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits() + by)
}

fn offset_v6(base: Ipv6Addr, by: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(base.to_bits() + u128::from(by))
}
