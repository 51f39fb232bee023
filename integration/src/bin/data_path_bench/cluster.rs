//! The Services and endpoints whose data path is measured. It knows no packets.
//!
//! Entry point: [`state`].

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use nftproxy_core::model::{
    ClusterIps, DetectLocal, Endpoint, EndpointSlice, Locality, Node, NodePortAddresses, Protocol,
    Service, ServiceName, ServicePort, SliceEndpoints, SliceName, SlicePort, State, TrafficPolicy,
};

/// How many Services there are.
pub(crate) const N_SERVICES: u32 = 10_000;
const N_ENDPOINTS: u32 = 5;
/// The port of each Service.
pub(crate) const SERVICE_PORT: NonZeroU16 = NonZeroU16::new(80).expect("80 is not 0");
/// The port of each endpoint.
pub(crate) const ENDPOINT_PORT: NonZeroU16 = NonZeroU16::new(8080).expect("8080 is not 0");
/// The range of the ClusterIPs.
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The range of all pods: endpoints and clients.
const POD_CIDR: &str = "10.244.0.0/15";
const FIRST_ENDPOINT: u32 = 0x0af4_0000;
/// The first address of pods that are clients: above those of all endpoints.
pub(crate) const FIRST_CLIENT: u32 = 0x0af5_0000;

/// The ClusterIP of the Service with this number.
pub(crate) fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0001 + number)
}

/// Services of one UDP port, with endpoints on other nodes.
pub(crate) fn state() -> State {
    let mut state = State::default();
    state.apply_service_cidr(
        "kubernetes",
        [SERVICE_CIDR.parse().expect("the constant is a prefix")],
    );
    for number in 0..N_SERVICES {
        let name = ServiceName::new("bench", &format!("service-{number}"));
        state.apply_service(Service {
            name: name.clone(),
            created: 0,
            cluster_ips: ClusterIps {
                v4: Some(cluster_ip(number)),
                v6: None,
            },
            external_ips: Box::default(),
            load_balancer_ips: Box::default(),
            source_ranges: Box::default(),
            internal_traffic_policy: TrafficPolicy::Cluster,
            external_traffic_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            session_affinity: None,
            ports: Box::new([ServicePort {
                name: "udp".into(),
                protocol: Protocol::Udp,
                port: SERVICE_PORT,
                node_port: None,
            }]),
        });
        let first = FIRST_ENDPOINT + number * N_ENDPOINTS;
        let endpoints = (first..first + N_ENDPOINTS).map(|address| Endpoint {
            address: Ipv4Addr::from(address),
            ready: true,
            serving: true,
            terminating: false,
            locality: Locality::Remote,
            hints: None,
        });
        state.apply_slice(EndpointSlice {
            name: SliceName::new("bench", &format!("service-{number}-1")),
            service: name,
            ports: Box::new([SlicePort {
                name: "udp".into(),
                protocol: Protocol::Udp,
                port: ENDPOINT_PORT,
            }]),
            endpoints: SliceEndpoints::V4(endpoints.collect()),
        });
    }
    state
}

/// A node that tells pods by their address, and takes NodePorts at `address`.
pub(crate) fn node(address: Ipv4Addr) -> Node {
    Node {
        detect_local: DetectLocal::Cidrs(vec![POD_CIDR.parse().expect("the constant is a prefix")]),
        node_port_addresses_v4: NodePortAddresses::Only([address.into()].into()),
        ..Node::default()
    }
}
