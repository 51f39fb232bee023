//! The ways of all Services' connections, by who connects. Entry point: [`traffic()`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::explain::with_texts;
use super::services::{DestinationRow, ServiceRow, services, socket};
use super::{Desired, OfFamily};
use crate::listing::Listing;
use crate::model::{Detector, Family, IpFamily, Node, NodePortAddresses};
use crate::ruleset::element::Data;
use crate::ruleset::name::ChainName;
use crate::ruleset::schema::base_chain;
use crate::trace::{Outcome, Packet, Share, Step, TraceError, Tracer};

/// A Service port with the ways of its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceTraffic {
    /// The Service port.
    pub row: ServiceRow,
    /// One for each of its destinations, in their order.
    pub destinations: Vec<DestinationTraffic>,
}

/// The ways of connections to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DestinationTraffic {
    /// By the rules that were found; by those desired if no listing was given.
    pub ways: Vec<TrafficWay>,
    /// By the rules that are desired, if these differ.
    pub desired: Option<Vec<TrafficWay>>,
    /// Why the rules that were found cannot be followed.
    pub error: Option<TraceError>,
}

/// One way that leads on from a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficWay {
    /// Who comes this way.
    pub from: Vec<Client>,
    /// The chains on it, without those where every packet begins.
    pub chains: Vec<ChainName>,
    /// What it leads to, each with its part of all new connections of such a client.
    pub ends: Vec<(End, Share)>,
}

/// A class of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client {
    /// Who they are.
    pub source: Source,
    /// Whether endpoints see this host's address in place of theirs.
    pub masquerade: bool,
}

/// Who connects, as far as rules tell clients apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Pods; only where the proxy knows who is one.
    Pods,
    /// This host's own processes.
    Node,
    /// Everybody else; if there are source ranges, those who are not in them.
    Outside,
    /// Clients in the Service's source ranges.
    Allowed,
}

/// Where a way ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// At an endpoint.
    Endpoint(SocketAddr),
    /// Nothing translates the connection.
    Pass,
    /// Its packets are discarded.
    Drop,
    /// The client is told that nobody is there.
    Refuse,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pods => "pods",
            Self::Node => "this node",
            Self::Outside => "outside",
            Self::Allowed => "source ranges",
        })
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(at) => write!(f, "{at}"),
            Self::Pass => f.pad("left alone"),
            Self::Drop => f.pad("dropped"),
            Self::Refuse => f.pad("refused"),
        }
    }
}

/// Follows connections of each class of clients to each destination of each Service of a family,
/// through what was found, if there is a listing, and through what is desired.
///
/// `local` are this host's addresses.
pub fn traffic<F: OfFamily>(
    desired: Desired<'_>,
    listing: Option<&Listing>,
    local: &[IpAddr],
) -> Vec<ServiceTraffic> {
    let is_local = |address: F::Address| {
        let address: IpAddr = address.into();
        address.is_loopback() || local.contains(&address)
    };
    let observed = listing.and_then(F::of);
    let wanted = desired.compile::<F>(observed).ruleset;
    let found = listing.map(|_| match observed {
        Some(observed) => with_texts(&observed.ruleset),
        None => crate::ruleset::FamilyRuleset::empty(),
    });
    let mut by_wanted = Tracer::new(&wanted, &is_local).for_any_client();
    let mut by_found = found
        .as_ref()
        .map(|found| Tracer::new(found, &is_local).for_any_client());
    let endpoints: BTreeSet<IpAddr> = wanted
        .elements
        .iter()
        .filter_map(|element| match element.data() {
            Data::Endpoint(endpoint) => Some(endpoint.address.into()),
            _ => None,
        })
        .collect();
    let clients = Clients::<F>::new(desired.node, local, &endpoints);
    let mut destination = |at: &DestinationRow| {
        let Some(to) = at.address.ip.or(clients.node_port) else {
            return DestinationTraffic::default();
        };
        let packets = clients.packets(to, at);
        let Some(by_found) = &mut by_found else {
            return DestinationTraffic {
                ways: ways(&mut by_wanted, &packets).unwrap_or_default(),
                ..DestinationTraffic::default()
            };
        };
        let wanted = ways(&mut by_wanted, &packets).unwrap_or_default();
        match ways(by_found, &packets) {
            Ok(ways) => DestinationTraffic {
                desired: (ways != wanted).then_some(wanted),
                ways,
                error: None,
            },
            Err(error) => DestinationTraffic {
                desired: Some(wanted),
                ways: Vec::new(),
                error: Some(error),
            },
        }
    };
    services::<F>(desired)
        .into_iter()
        .map(|row| ServiceTraffic {
            destinations: row.destinations.iter().map(&mut destination).collect(),
            row,
        })
        .collect()
}

/// One client of each class.
struct Clients<F: Family> {
    pod: Option<(F::Address, String)>,
    node: Option<F::Address>,
    /// Where NodePorts are reached.
    node_port: Option<IpAddr>,
    pods: Vec<IpNet>,
    local: Vec<IpAddr>,
}

/// An interface that no rule asks for: interfaces cannot have such a name.
const SOME_INTERFACE: &str = "(any)";

/// Addresses that documentation is made of, and one more should someone use all of these.
const OUTSIDE: [&str; 8] = [
    "198.51.100.1",
    "203.0.113.1",
    "192.0.2.1",
    "100.64.0.1",
    "2001:db8::1",
    "3fff::1",
    "2001:2::1",
    "2001:10::1",
];

impl<F: Family> Clients<F> {
    fn new(node: &Node, local: &[IpAddr], endpoints: &BTreeSet<IpAddr>) -> Self {
        let of_family = |ip: &&IpAddr| IpFamily::of(**ip) == F::FAMILY && !ip.is_loopback();
        let mut pods = Vec::new();
        let pod = match node.detector::<F>() {
            Detector::None => None,
            Detector::Prefixes(prefixes) => {
                let nets = prefixes.iter();
                pods.extend(nets.filter_map(|(first, len)| IpNet::new((*first).into(), *len).ok()));
                let pod = prefixes
                    .iter()
                    .find_map(|prefix| pod_in::<F>(*prefix, endpoints));
                pod.map(|pod| (pod, SOME_INTERFACE.to_owned()))
            }
            Detector::Interface(name) => outside::<F>(|_| true).map(|ip| (ip, name.to_string())),
            Detector::InterfacePrefix(name) => {
                outside::<F>(|_| true).map(|ip| (ip, name.to_string()))
            }
        };
        let first = local.iter().find(of_family).copied();
        let node_port = match node.node_port_addresses::<F>() {
            NodePortAddresses::All => first,
            NodePortAddresses::Only(ips) => ips.iter().find(of_family).copied(),
        };
        Self {
            pod,
            node: first.or(node_port).and_then(F::address),
            node_port,
            pods,
            local: local.to_vec(),
        }
    }

    fn packets(&self, to: IpAddr, at: &DestinationRow) -> Vec<(Source, Packet<F>)> {
        let packet = |source: F::Address, input_interface: Option<&str>| {
            Some(Packet {
                source,
                destination: F::address(to)?,
                protocol: at.address.protocol.number(),
                destination_port: at.address.port.get(),
                input_interface: input_interface.map(str::to_owned),
                mark: 0,
            })
        };
        let ranges: Vec<IpNet> = at
            .sources
            .iter()
            .filter_map(|range| range.parse().ok())
            .collect();
        let is_elsewhere = |ip: IpAddr| {
            !self.pods.iter().any(|net| net.contains(&ip)) && !self.local.contains(&ip)
        };
        let allowed = ranges.iter().filter_map(|range| {
            let ip = range.hosts().next()?;
            F::address(ip).filter(|_| is_elsewhere(ip))
        });
        let pod = self.pod.as_ref();
        let stranger =
            outside::<F>(|ip| is_elsewhere(ip) && !ranges.iter().any(|range| range.contains(&ip)));
        let all = [
            (
                Source::Pods,
                pod.and_then(|(ip, interface)| packet(*ip, Some(interface))),
            ),
            (Source::Node, self.node.and_then(|ip| packet(ip, None))),
            (
                Source::Outside,
                stranger.and_then(|ip| packet(ip, Some(SOME_INTERFACE))),
            ),
            (
                Source::Allowed,
                allowed
                    .take(1)
                    .find_map(|ip| packet(ip, Some(SOME_INTERFACE))),
            ),
        ];
        all.into_iter()
            .filter_map(|(source, packet)| Some((source, packet?)))
            .collect()
    }
}

/// Some address of clients outside of clusters.
fn outside<F: Family>(is_good: impl Fn(IpAddr) -> bool) -> Option<F::Address> {
    let all = OUTSIDE.iter().filter_map(|text| text.parse().ok());
    all.filter(|ip| is_good(*ip)).find_map(F::address)
}

/// An address of a pod that is no endpoint, so that it does not meet itself; the highest is the one
/// that is least probably in use.
fn pod_in<F: Family>(
    (first, len): (F::Address, u8),
    endpoints: &BTreeSet<IpAddr>,
) -> Option<F::Address> {
    const TRIES: u128 = 4096;
    let last = match F::last_of_prefix(first, len).into() {
        IpAddr::V4(last) => u128::from(last.to_bits()),
        IpAddr::V6(last) => last.to_bits(),
    };
    let ip = |bits: u128| {
        Some(match F::FAMILY {
            IpFamily::V4 => IpAddr::V4(u32::try_from(bits).ok()?.into()),
            IpFamily::V6 => IpAddr::V6(bits.into()),
        })
    };
    let is_in =
        |address: &IpAddr| IpNet::new(first.into(), len).is_ok_and(|net| net.contains(address));
    // The last address of a prefix is a broadcast address in IPv4.
    (1..TRIES)
        .filter_map(|back| ip(last.checked_sub(back)?))
        .take_while(is_in)
        .find(|address| !endpoints.contains(address))
        .and_then(F::address)
        .or(Some(first))
}

fn ways<F: Family>(
    tracer: &mut Tracer<'_, F>,
    packets: &[(Source, Packet<F>)],
) -> Result<Vec<TrafficWay>, TraceError> {
    let mut all = Vec::<TrafficWay>::new();
    for (source, packet) in packets {
        let mut by_chains = BTreeMap::<Vec<ChainName>, (bool, Vec<(End, Share)>)>::new();
        for (outcome, (share, steps)) in tracer.ways(packet)? {
            let (end, masquerade) = match outcome {
                Outcome::Endpoint {
                    endpoint,
                    masquerade,
                } => (End::Endpoint(socket(endpoint)), masquerade),
                Outcome::Pass { masquerade } => (End::Pass, masquerade),
                Outcome::Drop => (End::Drop, false),
                Outcome::Refuse { .. } => (End::Refuse, false),
            };
            let (is_masqueraded, ends) = by_chains.entry(chains(&steps)).or_default();
            *is_masqueraded |= masquerade;
            ends.push((end, share));
        }
        for (chains, (masquerade, ends)) in by_chains {
            let client = Client {
                source: *source,
                masquerade,
            };
            match all
                .iter_mut()
                .find(|way| way.chains == chains && way.ends == ends)
            {
                Some(way) => way.from.push(client),
                None => all.push(TrafficWay {
                    from: vec![client],
                    chains,
                    ends,
                }),
            }
        }
    }
    Ok(all)
}

/// The chains that led to an end, without base chains and what follows the translation.
fn chains(steps: &[Step]) -> Vec<ChainName> {
    let mut chains = Vec::new();
    for step in steps {
        match step.chain {
            ChainName::Postrouting | ChainName::Input => break,
            // Source ranges are asked in base chains, and may be the end.
            ChainName::PreroutingSourceRanges | ChainName::OutputSourceRanges => {}
            chain if base_chain(chain).is_some() => continue,
            _ => {}
        }
        if chains.last() != Some(&step.chain) {
            chains.push(step.chain);
        }
    }
    chains
}
