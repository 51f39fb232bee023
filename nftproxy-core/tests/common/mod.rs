//! What the tests share: addresses, builders, and the loader of scenarios. It knows no rules: what
//! is expected stands in the tests.
//!
//! Addresses mean the same in every test. They are written as IPv4; each has a [`Twin`] in IPv6,
//! `fd00::` with the IPv4 address in its last 32 bits, so that a case holds for both families.
//!
//! | range | who |
//! | --- | --- |
//! | 10.96.0.0/16 | ClusterIPs, the ServiceCIDR |
//! | 10.244.0.0/16 | pods; 10.244.1.x on this node, 10.244.2.x and up on others |
//! | 192.168.0.10, 192.168.0.20 | this node; 192.168.0.20 does not take NodePorts where that matters |
//! | 192.168.0.11 | another node |
//! | 198.51.100.x | external IPs |
//! | 203.0.113.x | load-balancer IPs |
//! | 192.0.2.x | clients outside the cluster |

#![allow(dead_code, reason = "no test file uses all of it")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use nftproxy_core::k8s;
use nftproxy_core::model::{
    ClusterIps, DetectLocal, Endpoint, EndpointSlice, Family, Hints, InterfaceName, Locality, Node,
    NodeHint, NodePortAddresses, PortName, Protocol, Service, ServiceName, ServicePort,
    SliceEndpoints, SliceName, SlicePort, State, V4, V6,
};
use serde::Deserialize;

/// This node's address that takes NodePorts.
pub(crate) const NODE_IP: &str = "192.168.0.10";
/// This node's other address.
pub(crate) const SECOND_NODE_IP: &str = "192.168.0.20";
/// Another node.
pub(crate) const OTHER_NODE_IP: &str = "192.168.0.11";

/// A family that has a counterpart for each IPv4 address.
pub(crate) trait Twin: Family {
    fn of(address: Ipv4Addr) -> Self::Address;

    fn parse(address: &str) -> Self::Address {
        Self::of(address.parse().unwrap())
    }

    /// Endpoints of a slice of this family.
    fn slice_endpoints(endpoints: Vec<Endpoint<Self>>) -> SliceEndpoints;
}

impl Twin for V4 {
    fn of(address: Ipv4Addr) -> Ipv4Addr {
        address
    }

    fn slice_endpoints(endpoints: Vec<Endpoint<V4>>) -> SliceEndpoints {
        SliceEndpoints::V4(endpoints.into())
    }
}

impl Twin for V6 {
    fn of(address: Ipv4Addr) -> Ipv6Addr {
        if address.is_loopback() {
            return Ipv6Addr::LOCALHOST;
        }
        let [a, b, c, d] = address.octets().map(u16::from);
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, a << 8 | b, c << 8 | d)
    }

    fn slice_endpoints(endpoints: Vec<Endpoint<V6>>) -> SliceEndpoints {
        SliceEndpoints::V6(endpoints.into())
    }
}

/// An address and its twin.
pub(crate) fn both(address: &str) -> [IpAddr; 2] {
    [V4::parse(address).into(), V6::parse(address).into()]
}

/// An IPv4 range and its twin.
pub(crate) fn both_ranges(range: &str) -> [IpNet; 2] {
    let range: IpNet = range.parse().unwrap();
    let [v4, v6] = both(&range.addr().to_string());
    [
        IpNet::new(v4, range.prefix_len()).unwrap(),
        IpNet::new(v6, range.prefix_len() + 96).unwrap(),
    ]
}

/// `192.168.0.x` of this node, and loopback.
pub(crate) fn is_local<F: Twin>(address: F::Address) -> bool {
    [NODE_IP, SECOND_NODE_IP, "127.0.0.1"]
        .into_iter()
        .any(|local| F::parse(local) == address)
}

pub(crate) fn port(number: u16) -> NonZeroU16 {
    number.try_into().unwrap()
}

/// `name` in namespace `default`.
pub(crate) fn service_name(name: &str) -> ServiceName {
    ServiceName::new("default", name).unwrap()
}

/// `name` in namespace `default`.
pub(crate) fn slice_name(name: &str) -> SliceName {
    SliceName::new("default", name).unwrap()
}

/// A dual-stack Service in namespace `default`, created at 0.
///
/// A port reads `http 80/tcp`, `80/udp` (unnamed) or `http 80/tcp 30080` (with a nodePort).
pub(crate) fn mk_service(name: &str, cluster_ip: &str, ports: &[&str]) -> Service {
    Service {
        cluster_ips: ClusterIps {
            v4: Some(V4::parse(cluster_ip)),
            v6: Some(V6::parse(cluster_ip)),
        },
        ports: ports.iter().map(|text| service_port(text)).collect(),
        ..Service::new(service_name(name))
    }
}

fn service_port(text: &str) -> ServicePort {
    let slash = text.find('/').unwrap();
    let (name, rest) = match text.find(' ') {
        Some(space) if space < slash => text.split_at(space),
        _ => ("", text),
    };
    let (number, rest) = rest.trim().split_once('/').unwrap();
    let (protocol, node_port) = rest.split_once(' ').unwrap_or((rest, ""));
    ServicePort {
        name: PortName::new(name).unwrap(),
        protocol: protocol_of(protocol),
        port: number.parse().unwrap(),
        node_port: (!node_port.is_empty()).then(|| node_port.parse().unwrap()),
    }
}

pub(crate) fn protocol_of(name: &str) -> Protocol {
    Protocol::from_kubernetes(&name.to_uppercase()).unwrap()
}

/// A slice of one family in namespace `default`.
///
/// A port reads `http 8080/tcp` or `8080/tcp`; for an endpoint see [`mk_endpoint`].
pub(crate) fn mk_slice<F: Twin>(
    name: &str,
    service: &str,
    ports: &[&str],
    endpoints: &[&str],
) -> EndpointSlice {
    let ports = ports.iter().map(|text| {
        let ServicePort {
            name,
            protocol,
            port,
            ..
        } = service_port(text);
        SlicePort {
            name,
            protocol,
            port,
        }
    });
    EndpointSlice {
        name: slice_name(name),
        service: service_name(service),
        ports: ports.collect(),
        endpoints: F::slice_endpoints(endpoints.iter().map(|text| mk_endpoint(text)).collect()),
    }
}

/// An endpoint: its address, then any of the words below. Without, it is ready, and local if its
/// address is of this node's pods or of this node.
pub(crate) fn mk_endpoint<F: Twin>(text: &str) -> Endpoint<F> {
    let mut words = text.split(' ');
    let address = words.next().unwrap();
    let mut endpoint = Endpoint {
        address: F::parse(address),
        ready: true,
        serving: true,
        terminating: false,
        locality: if address.starts_with("10.244.1.") || address == NODE_IP {
            Locality::Local
        } else {
            Locality::Remote
        },
        hints: None,
    };
    let mut hints = Hints {
        zones: [].into(),
        node: NodeHint::None,
    };
    for word in words {
        match word {
            "no-node" => endpoint.locality = Locality::Unknown,
            "unready" => (endpoint.ready, endpoint.serving) = (false, false),
            "unready-but-serving" => endpoint.ready = false,
            "terminating" => (endpoint.ready, endpoint.terminating) = (false, true),
            "terminating-but-ready" => endpoint.terminating = true,
            "for-this-node" => hints.node = NodeHint::ThisNode,
            "for-another-node" => hints.node = NodeHint::OtherNodes,
            zone if zone.starts_with("zone-") => {
                hints.zones = hints.zones.iter().cloned().chain([zone.into()]).collect();
            }
            other => panic!("an endpoint cannot be {other:?}"),
        }
    }
    if !hints.zones.is_empty() || hints.node != NodeHint::None {
        endpoint.hints = Some(Arc::new(hints));
    }
    endpoint
}

/// Applies a slice of each family.
pub(crate) fn apply_slices(
    state: &mut State,
    name: &str,
    service: &str,
    ports: &[&str],
    endpoints: &[&str],
) {
    let v4 = mk_slice::<V4>(&format!("{name}-v4"), service, ports, endpoints);
    let v6 = mk_slice::<V6>(&format!("{name}-v6"), service, ports, endpoints);
    state.apply_slice(v4);
    state.apply_slice(v6);
}

/// This node: pods told by their addresses, in zone `zone-a`.
pub(crate) fn mk_node() -> Node {
    Node {
        zone: Some("zone-a".into()),
        detect_local: DetectLocal::Cidrs(both_ranges("10.244.0.0/16").into()),
        ..Node::default()
    }
}

/// The NodePort addresses of both families.
pub(crate) fn only(addresses: &[&str]) -> (NodePortAddresses, NodePortAddresses) {
    let of = |index: usize| {
        let addresses = addresses.iter().map(|address| both(address)[index]);
        NodePortAddresses::Only(addresses.collect())
    };
    (of(0), of(1))
}

/// A cluster read from a file.
pub(crate) struct Scenario {
    pub(crate) state: State,
    pub(crate) node: Node,
    /// What of it could not be used.
    pub(crate) problems: Vec<k8s::Problem>,
}

/// A document `kind: NodeConfig` of a scenario; without one, the defaults of the fields hold.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeConfig {
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default = "default_name")]
    name: String,
    zone: Option<String>,
    #[serde(default)]
    pod_cidrs: Vec<IpNetText>,
    bridge_interface: Option<String>,
    interface_name_prefix: Option<String>,
    node_port_addresses: Option<Vec<IpAddr>>,
    #[serde(default)]
    masquerade_all: bool,
    /// A file with more objects, relative to the scenario.
    include: Option<PathBuf>,
}

fn default_name() -> String {
    "node-1".into()
}

/// A CIDR in a [`NodeConfig`].
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct IpNetText(IpNet);

impl TryFrom<String> for IpNetText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        k8s::parse_cidr(&text)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a CIDR"))
    }
}

impl NodeConfig {
    fn node(&self) -> Node {
        let detect_local = match (&self.bridge_interface, &self.interface_name_prefix) {
            (Some(name), _) => DetectLocal::BridgeInterface(InterfaceName::new(name).unwrap()),
            (None, Some(prefix)) => {
                DetectLocal::InterfaceNamePrefix(InterfaceName::new(prefix).unwrap())
            }
            (None, None) => DetectLocal::Cidrs(self.pod_cidrs.iter().map(|net| net.0).collect()),
        };
        let addresses_of = |v4: bool| match &self.node_port_addresses {
            None => NodePortAddresses::All,
            Some(ips) => NodePortAddresses::Only(
                ips.iter()
                    .copied()
                    .filter(|ip| ip.is_ipv4() == v4)
                    .collect(),
            ),
        };
        Node {
            zone: self.zone.clone(),
            detect_local,
            node_port_addresses_v4: addresses_of(true),
            node_port_addresses_v6: addresses_of(false),
            masquerade_all: self.masquerade_all,
            ..Node::default()
        }
    }
}

/// The documents of a YAML file of Kubernetes objects, lists taken apart.
pub(crate) fn read_documents(path: &Path) -> Vec<serde_norway::Value> {
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("reading {}: {error}", path.display()));
    serde_norway::Deserializer::from_str(&text)
        .map(|document| serde_norway::Value::deserialize(document).unwrap())
        .flat_map(|document| match document.get("items") {
            Some(items) => items.as_sequence().unwrap().clone(),
            None => vec![document],
        })
        .collect()
}

/// Reads a scenario: Services, EndpointSlices, ServiceCIDRs and a `NodeConfig`. `reorder` may
/// change the order in which the objects arrive.
pub(crate) fn load_scenario(
    path: &Path,
    reorder: impl FnOnce(&mut Vec<serde_norway::Value>),
) -> Scenario {
    let is_config = |document: &serde_norway::Value| kind_of(document) == "NodeConfig";
    let (configs, mut objects): (Vec<_>, Vec<_>) =
        read_documents(path).into_iter().partition(is_config);
    let config = configs.into_iter().next().unwrap_or_else(|| {
        panic!("{} has no NodeConfig", path.display());
    });
    let config: NodeConfig = serde_norway::from_value(config).unwrap();
    if let Some(include) = &config.include {
        objects.extend(read_documents(&path.with_file_name(include)));
    }
    reorder(&mut objects);

    let mut scenario = Scenario {
        state: State::default(),
        node: config.node(),
        problems: Vec::new(),
    };
    for object in objects {
        scenario.apply(object, &config.name);
    }
    scenario
}

fn kind_of(document: &serde_norway::Value) -> &str {
    document.get("kind").and_then(|kind| kind.as_str()).unwrap()
}

impl Scenario {
    fn apply(&mut self, object: serde_norway::Value, node_name: &str) {
        let Self {
            state, problems, ..
        } = self;
        match kind_of(&object) {
            "Service" => {
                let object = serde_norway::from_value(object).unwrap();
                if let Some(service) = k8s::service(&object, problems) {
                    state.apply_service(service);
                }
            }
            "EndpointSlice" => {
                let object = serde_norway::from_value(object).unwrap();
                if let Some(slice) = k8s::endpoint_slice(&object, node_name, problems) {
                    state.apply_slice(slice);
                }
            }
            "ServiceCIDR" => {
                let object: k8s_openapi::api::networking::v1::ServiceCIDR =
                    serde_norway::from_value(object).unwrap();
                let name = object.metadata.name.clone().unwrap_or_default();
                state.apply_service_cidr(&name, k8s::service_cidrs(&object, problems));
            }
            // Recorded clusters hold more than proxies read.
            _ => {}
        }
    }
}
