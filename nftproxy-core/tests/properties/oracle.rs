//! What should become of a packet, by reading the behaviour contract literally: sections 3 to 5 and
//! 7, with the table of 4C as a `match`; and of what outlives the rules, by sections 6 and 9. It
//! shares no code with the compiler, and knows no nftables.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;

use nftproxy_core::model::{
    DetectLocal, Endpoint, EndpointAddress, Locality, Node, NodeHint, NodePortAddresses, Protocol,
    Service, ServicePort, State, TrafficPolicy,
};
use nftproxy_core::trace::{Outcome, Packet};

use crate::balancing::{chosen, weighted};
use crate::common::{Twin, is_local};

/// What is to become of something that outlives the rules it was made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It must be forgotten.
    Forgotten,
    /// It must not be forgotten.
    Kept,
    /// The contract leaves it open.
    Open,
}

/// By which of its addresses a Service port is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    ClusterIp,
    External,
    NodePort,
}

/// S-50: who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Pod,
    Host,
    Far,
}

/// All that may become of a packet whose sender is not known.
pub(crate) fn outcomes<F: Twin>(
    state: &State,
    node: &Node,
    packet: &Packet<F>,
) -> BTreeSet<Outcome<F>> {
    outcomes_for_known(state, node, packet, None)
}

/// All that may become of a packet, if its sender is remembered to have got this endpoint.
pub(crate) fn outcomes_for_known<F: Twin>(
    state: &State,
    node: &Node,
    packet: &Packet<F>,
    remembered: Option<EndpointAddress<F>>,
) -> BTreeSet<Outcome<F>> {
    let sender = sender(node, packet);
    // S-87: decided by the address alone.
    let to_cluster_ip = is_active_cluster_ip::<F>(state, packet.destination);
    let has_detector = !matches!(&node.detect_local, DetectLocal::Cidrs(cidrs) if cidrs.is_empty());
    let marked = to_cluster_ip && (node.masquerade_all || (has_detector && sender != Sender::Pod));

    let Some((kind, service, port)) = addressee(state, node, packet) else {
        // Without a mark, what nobody translated is not masqueraded.
        let marked = marked && node.masquerade_mark.is_some();
        return [hygiene(state, packet, to_cluster_ip, marked)].into();
    };
    if !is_allowed(node, service, kind, packet) {
        return [Outcome::Drop].into();
    }
    let (cluster, local) = new_connections::<F>(state, node, service, port);
    // An endpoint here that is hinted away from pods may be remembered for outside clients, which
    // cannot be told from pods, and must not lose it.
    let remembered = remembered.filter(|endpoint| {
        let is_local = policy(kind, service) == TrafficPolicy::Local && local.contains(endpoint);
        service.session_affinity.is_some() && (is_local || cluster.contains(endpoint))
    });
    let (endpoints, masquerade) = match (kind, policy(kind, service), sender) {
        _ if cluster.is_empty() => return [refusal(packet)].into(),
        (Kind::ClusterIp, TrafficPolicy::Cluster, _) => (cluster, marked),
        (Kind::ClusterIp, TrafficPolicy::Local, _) => (local, marked),
        (_, TrafficPolicy::Cluster, _) => (cluster, true),
        (_, TrafficPolicy::Local, Sender::Pod) => (cluster, marked),
        (_, TrafficPolicy::Local, Sender::Host) => (cluster, true),
        (_, TrafficPolicy::Local, Sender::Far) => (local, marked),
    };
    if endpoints.is_empty() {
        return [Outcome::Drop].into();
    }
    let endpoints = match remembered {
        Some(endpoint) => [endpoint].into(),
        None if node.hashes => chosen(service, &endpoints, packet.source),
        None => endpoints,
    };
    let hairpin = may_hairpin::<F>(state, node, packet.source);
    endpoints
        .into_iter()
        .map(|endpoint| Outcome::Endpoint {
            endpoint,
            masquerade: (masquerade || (hairpin && endpoint.address == packet.source))
                && is_routed_on(packet, endpoint.address),
        })
        .collect()
}

/// The timeout of session affinity that holds for a packet's destination.
pub(crate) fn affinity<F: Twin>(
    state: &State,
    node: &Node,
    packet: &Packet<F>,
) -> Option<NonZeroU32> {
    addressee(state, node, packet)?.1.session_affinity
}

/// The Service port that a packet is for, and whether it is so at its NodePort.
pub(crate) fn addressee_name<F: Twin>(
    state: &State,
    node: &Node,
    packet: &Packet<F>,
) -> Option<(String, bool)> {
    let (kind, service, port) = addressee(state, node, packet)?;
    let name = format!("{}:{}", service.name, port.name);
    Some((name, kind == Kind::NodePort))
}

/// S-98 to S-101: what becomes of the memory that the sender of a packet got an endpoint.
pub(crate) fn memory<F: Twin>(
    state: &State,
    node: &Node,
    packet: &Packet<F>,
    endpoint: EndpointAddress<F>,
) -> Fate {
    let Some((kind, service, port)) = addressee(state, node, packet) else {
        return Fate::Forgotten;
    };
    if service.session_affinity.is_none() {
        return Fate::Forgotten;
    }
    let (cluster, local) = new_connections::<F>(state, node, service, port);
    let (in_cluster, in_local) = (cluster.contains(&endpoint), local.contains(&endpoint));
    match (kind, policy(kind, service)) {
        (_, TrafficPolicy::Cluster) if in_cluster => Fate::Kept,
        (_, TrafficPolicy::Local) if in_local => Fate::Kept,
        // Pods and the host have it, far senders must not.
        (Kind::External | Kind::NodePort, TrafficPolicy::Local) if in_cluster => Fate::Open,
        _ => Fate::Forgotten,
    }
}

/// S-119 to S-124: what becomes of a UDP flow, of which `packet` is the first, whose answers come
/// from `reply_source`. Its destination is or was a Service's, or it was led nowhere.
pub(crate) fn flow<F: Twin>(
    state: &State,
    node: &Node,
    packet: &Packet<F>,
    is_answered: bool,
    reply_source: (F::Address, u16),
) -> Fate {
    let is_led = reply_source != (packet.destination, packet.destination_port);
    let is_astray = match addressee(state, node, packet) {
        // S-122 of a Service that is gone, S-123 of one that never was
        None => is_led,
        Some((kind, service, port)) => {
            let serving: BTreeSet<_> = endpoints_of::<F>(state, service, port)
                .into_iter()
                .filter(|(_, endpoint)| endpoint.serving)
                .map(|(at, _)| (at.address, at.port.get()))
                .collect();
            let may_come = is_answered || is_allowed(node, service, kind, packet);
            match serving.is_empty() {
                _ if !may_come => true,
                true => is_led,
                false => !serving.contains(&reply_source),
            }
        }
    };
    if is_astray {
        Fate::Forgotten
    } else {
        Fate::Kept
    }
}

/// What comes in for this host itself meets no postrouting hook.
fn is_routed_on<F: Twin>(packet: &Packet<F>, destination: F::Address) -> bool {
    packet.input_interface.is_none() || !is_local::<F>(destination)
}

fn sender<F: Twin>(node: &Node, packet: &Packet<F>) -> Sender {
    let interface = packet.input_interface.as_deref();
    let is_pod = match &node.detect_local {
        DetectLocal::Cidrs(cidrs) => cidrs
            .iter()
            .any(|cidr| cidr.contains(&Into::<IpAddr>::into(packet.source))),
        DetectLocal::BridgeInterface(name) => interface == Some(name.as_str()),
        DetectLocal::InterfaceNamePrefix(prefix) => {
            interface.is_some_and(|interface| interface.starts_with(prefix.as_str()))
        }
    };
    if is_pod {
        Sender::Pod
    } else if is_local::<F>(packet.source) {
        Sender::Host
    } else {
        Sender::Far
    }
}

fn policy(kind: Kind, service: &Service) -> TrafficPolicy {
    match kind {
        Kind::ClusterIp => service.internal_traffic_policy,
        Kind::External | Kind::NodePort => service.external_traffic_policy,
    }
}

/// S-54, S-55, S-15: whom the packet is for.
fn addressee<'a, F: Twin>(
    state: &'a State,
    node: &Node,
    packet: &Packet<F>,
) -> Option<(Kind, &'a Service, &'a ServicePort)> {
    let protocol = Protocol::from_number(packet.protocol)?;
    let ports = || {
        state
            .services()
            .filter(|service| service.cluster_ip::<F>().is_some())
            .flat_map(|service| service.ports.iter().map(move |port| (service, port)))
            .filter(|(_, port)| port.protocol == protocol)
    };
    let claims_address = |service: &Service| {
        let is_it = |ip: &IpAddr| F::address(*ip) == Some(packet.destination);
        if service.cluster_ip::<F>() == Some(packet.destination) {
            Some(Kind::ClusterIp)
        } else if service.external_ips.iter().any(is_it)
            || service.load_balancer_ips.iter().any(is_it)
        {
            Some(Kind::External)
        } else {
            None
        }
    };
    let first = |claims: &mut dyn Iterator<Item = (Kind, &'a Service, &'a ServicePort)>| {
        claims
            .min_by_key(|(kind, service, port)| (*kind, service.created, &service.name, &port.name))
    };
    let mut by_address = ports()
        .filter(|(_, port)| port.port.get() == packet.destination_port)
        .filter_map(|(service, port)| Some((claims_address(service)?, service, port)));
    let takes_node_ports = match node.node_port_addresses::<F>() {
        NodePortAddresses::All => is_local::<F>(packet.destination),
        NodePortAddresses::Only(ips) => ips.contains(&packet.destination.into()),
    } && packet.destination != F::parse("127.0.0.1");
    let mut by_node_port = ports()
        .filter(|(_, port)| {
            takes_node_ports
                && port.node_port.map(|port| port.get()) == Some(packet.destination_port)
        })
        .map(|(service, port)| (Kind::NodePort, service, port));
    first(&mut by_address).or_else(|| first(&mut by_node_port))
}

/// S-69, S-103 to S-107, S-17: whether a Service's source ranges let a packet in.
fn is_allowed<F: Twin>(node: &Node, service: &Service, kind: Kind, packet: &Packet<F>) -> bool {
    let (source, destination): (IpAddr, IpAddr) = (packet.source.into(), packet.destination.into());
    let mut ranges = service
        .source_ranges
        .iter()
        .filter(|range| range.addr().is_ipv4() == source.is_ipv4())
        .peekable();
    let is_filtered = kind != Kind::NodePort && service.load_balancer_ips.contains(&destination);
    if !is_filtered || ranges.peek().is_none() {
        return true;
    }
    // S-105
    let is_own_address = service.load_balancer_ips.contains(&source);
    ranges.any(|range| {
        range.contains(&source) || (is_own_address && node.ips.iter().any(|ip| range.contains(ip)))
    })
}

/// S-110
fn is_active_cluster_ip<F: Twin>(state: &State, address: F::Address) -> bool {
    state
        .services()
        .any(|service| service.cluster_ip::<F>() == Some(address) && !service.ports.is_empty())
}

/// S-111 to S-113, and S-72
fn hygiene<F: Twin>(
    state: &State,
    packet: &Packet<F>,
    to_cluster_ip: bool,
    marked: bool,
) -> Outcome<F> {
    let in_service_cidr = || {
        let address: IpAddr = packet.destination.into();
        state.service_cidrs::<F>().iter().any(|(start, length)| {
            ipnet::IpNet::new((*start).into(), *length)
                .unwrap()
                .contains(&address)
        })
    };
    if is_local::<F>(packet.destination) {
        Outcome::Pass {
            masquerade: marked && is_routed_on(packet, packet.destination),
        }
    } else if to_cluster_ip {
        refusal(packet)
    } else if in_service_cidr() {
        Outcome::Drop
    } else {
        Outcome::Pass { masquerade: false }
    }
}

/// S-79
fn refusal<F: Twin>(packet: &Packet<F>) -> Outcome<F> {
    Outcome::Refuse {
        reset: packet.protocol == Protocol::Tcp.number(),
    }
}

/// The sets C and L of section 3.
fn select_endpoints<F: Twin>(
    state: &State,
    node: &Node,
    service: &Service,
    port: &ServicePort,
) -> (BTreeSet<EndpointAddress<F>>, BTreeSet<EndpointAddress<F>>) {
    let endpoints = endpoints_of::<F>(state, service, port);
    let such = |is_such: &dyn Fn(&Endpoint<F>) -> bool| -> BTreeSet<_> {
        let such = endpoints.iter().filter(|(_, endpoint)| is_such(endpoint));
        such.map(|(at, _)| *at).collect()
    };
    let is_here = |endpoint: &Endpoint<F>| endpoint.locality == Locality::Local;
    let is_terminating = |endpoint: &Endpoint<F>| endpoint.serving && endpoint.terminating;
    // S-42
    let mut local = such(&|endpoint| endpoint.ready && is_here(endpoint));
    if local.is_empty() {
        local = such(&|endpoint| is_terminating(endpoint) && is_here(endpoint));
    }
    // S-41
    let ready = such(&|endpoint| endpoint.ready);
    if ready.is_empty() {
        return (such(&is_terminating), local);
    }
    let node_hint = |endpoint: &Endpoint<F>| {
        endpoint
            .hints
            .as_ref()
            .map_or(NodeHint::None, |hints| hints.node)
    };
    let for_this_node =
        such(&|endpoint| endpoint.ready && node_hint(endpoint) == NodeHint::ThisNode);
    let all_hint_nodes =
        such(&|endpoint| endpoint.ready && node_hint(endpoint) == NodeHint::None).is_empty();
    if all_hint_nodes && !for_this_node.is_empty() {
        return (for_this_node, local);
    }
    let zones = |endpoint: &Endpoint<F>| {
        endpoint
            .hints
            .as_ref()
            .map_or(Vec::new(), |hints| hints.zones.to_vec())
    };
    let for_this_zone = such(&|endpoint| {
        endpoint.ready
            && zones(endpoint)
                .iter()
                .any(|zone| Some(&**zone) == node.zone.as_deref())
    });
    let all_hint_zones = such(&|endpoint| endpoint.ready && zones(endpoint).is_empty()).is_empty();
    if all_hint_zones && !for_this_zone.is_empty() {
        return (for_this_zone, local);
    }
    (ready, local)
}

/// The same without those that weights keep new connections from.
fn new_connections<F: Twin>(
    state: &State,
    node: &Node,
    service: &Service,
    port: &ServicePort,
) -> (BTreeSet<EndpointAddress<F>>, BTreeSet<EndpointAddress<F>>) {
    let (cluster, local) = select_endpoints::<F>(state, node, service, port);
    let of = |endpoints| {
        weighted(service, endpoints)
            .into_iter()
            .map(|(at, _)| at)
            .collect()
    };
    (of(&cluster), of(&local))
}

/// S-25 to S-30: the union of the slices, the best copy of each endpoint.
fn endpoints_of<'a, F: Twin>(
    state: &'a State,
    service: &Service,
    port: &ServicePort,
) -> Vec<(EndpointAddress<F>, &'a Endpoint<F>)> {
    let mut all: Vec<(EndpointAddress<F>, &Endpoint<F>)> = Vec::new();
    for slice in state.slices(&service.name) {
        for slice_port in &slice.ports {
            if (&slice_port.name, slice_port.protocol) != (&port.name, port.protocol) {
                continue;
            }
            for endpoint in F::endpoints(&slice.endpoints).unwrap_or_default() {
                let at = EndpointAddress {
                    address: endpoint.address,
                    port: slice_port.port,
                };
                let merit = |endpoint: &Endpoint<F>| {
                    (!endpoint.terminating, endpoint.ready, endpoint.serving)
                };
                match all.iter_mut().find(|(other, _)| *other == at) {
                    Some((_, best)) if merit(best) < merit(endpoint) => *best = endpoint,
                    Some(_) => {}
                    None => all.push((at, endpoint)),
                }
            }
        }
    }
    all
}

/// S-90, S-91: whether a connection from here to itself must be masqueraded. An endpoint that is
/// known to be elsewhere cannot reach itself by way of this node.
fn may_hairpin<F: Twin>(state: &State, node: &Node, address: F::Address) -> bool {
    let services = state
        .services()
        .filter(|service| service.cluster_ip::<F>().is_some());
    services
        .flat_map(|service| service.ports.iter().map(move |port| (service, port)))
        .any(|(service, port)| {
            let (cluster, local) = select_endpoints::<F>(state, node, service, port);
            endpoints_of::<F>(state, service, port)
                .iter()
                .any(|(at, endpoint)| {
                    at.address == address
                        && endpoint.locality != Locality::Remote
                        && (cluster.contains(at) || local.contains(at))
                })
        })
}
