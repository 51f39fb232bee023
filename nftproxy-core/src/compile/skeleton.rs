//! The fixed chains of one family, and the body of a pick chain.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use crate::model::{Detector, Family, IpFamily, Node, NodePortAddresses, Protocol};
use crate::ruleset::expr::{Match, Reject, Statement, Verdict};
use crate::ruleset::name::{ChainName, Pick, SetName};
use crate::ruleset::{Rule, SetOptions, Skeleton};

/// Which optional chains there are. Connections pay for each, so they exist while something needs
/// them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Features {
    /// Some Service has source ranges.
    pub source_ranges: bool,
    /// The timeouts of session affinity that Services have, in seconds.
    pub affinity: BTreeSet<NonZeroU32>,
}

/// Builds the fixed chains from the node's settings and the ServiceCIDRs of the family.
pub fn skeleton<F: Family>(
    node: &Node,
    service_cidrs: &[(F::Address, u8)],
    features: &Features,
) -> Skeleton {
    let detector = node.detector::<F>();
    let mark = node.masquerade_mark;
    let jump = |chain| vec![Rule::new::<F>([Statement::Verdict(Verdict::Jump(chain))])];
    let chains = [
        (ChainName::Prerouting, destinations::<F>()),
        (ChainName::Output, destinations::<F>()),
        (ChainName::PreroutingGuard, jump(ChainName::Guard)),
        (ChainName::OutputGuard, jump(ChainName::Guard)),
        (
            ChainName::Postrouting,
            postrouting::<F>(mark, &features.affinity),
        ),
        (ChainName::Services, services(&detector, node)),
        (ChainName::NodePorts, node_ports::<F>()),
        (
            ChainName::External,
            cluster_policy::<F>(mark, SetName::External),
        ),
        (
            ChainName::ExternalNodePort,
            cluster_policy::<F>(mark, SetName::ExternalNodePorts),
        ),
        (
            ChainName::ExternalLocal,
            local_policy(
                &detector,
                ChainName::External,
                SetName::External,
                SetName::Local,
            ),
        ),
        (
            ChainName::ExternalLocalNodePort,
            local_policy(
                &detector,
                ChainName::ExternalNodePort,
                SetName::ExternalNodePorts,
                SetName::LocalNodePorts,
            ),
        ),
        (ChainName::Guard, guard::<F>(node, service_cidrs)),
        (ChainName::Refuse, refuse::<F>()),
    ];
    let mut chains = BTreeMap::from(chains);
    let Features {
        source_ranges,
        affinity,
    } = features;
    if *source_ranges {
        chains.insert(ChainName::PreroutingSourceRanges, other_sources::<F>(node));
        chains.insert(ChainName::OutputSourceRanges, other_sources::<F>(node));
    }
    if !affinity.is_empty() {
        chains.insert(ChainName::Remember, remember::<F>(node));
        chains.insert(ChainName::Input, vec![remember_if_translated::<F>()]);
    }
    for seconds in affinity {
        chains.insert(
            ChainName::RememberFor(*seconds),
            remember_for::<F>(*seconds),
        );
    }
    let mut sets = BTreeSet::new();
    if mark.is_none() {
        // What no mark asked for on the way in is found out on the way out.
        sets.extend(SetName::OPTIONAL);
        chains.extend(masquerade::<F>(&detector, node));
    }
    Skeleton {
        set_options: SetOptions {
            counts: node.counts,
        },
        sets,
        chains,
    }
}

/// The body of a pick chain.
///
/// ```nft
/// dnat ip addr . port to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints
/// ```
///
/// Where the client decides, it is this, in a chain like `hash-pick-3`:
///
/// ```nft
/// dnat ip addr . port to ip daddr . meta l4proto . th dport . jhash ip saddr mod 3 seed 0x6e667470 map @endpoints
/// ```
///
/// A sticky one leads to the plain one if nothing is remembered:
///
/// ```nft
/// dnat ip addr . port to ip saddr . ip daddr . meta l4proto . th dport map @affinity
/// goto pick-3
/// ```
pub fn pick<F: Family>(pick: Pick) -> Vec<Rule> {
    let Pick {
        map,
        draw,
        n,
        sticky,
    } = pick;
    if sticky {
        let plain = ChainName::Pick(Pick {
            sticky: false,
            ..pick
        });
        return vec![
            Rule::new::<F>([Statement::DnatToRemembered]),
            Rule::new::<F>([Statement::Verdict(Verdict::Goto(plain))]),
        ];
    }
    vec![Rule::new::<F>([Statement::DnatToSlot {
        map: map.set(),
        draw,
        n: n.get(),
    }])]
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Finds out whether a connection that has just been translated was sent to where clients keep
/// their endpoint. By now its destination is the endpoint, so it is asked where it went at first.
/// What went to a ClusterIP, or to where no NodePort is, is not taken for a NodePort's.
///
/// ```nft
/// meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst vmap @sticky
/// ct original ip daddr != @node-port-ips return
/// meta l4proto tcp meta l4proto . ct original proto-dst vmap @sticky-node-ports
/// ```
fn remember<F: Family>(node: &Node) -> Vec<Rule> {
    let of =
        |set| PROTOCOLS.map(|protocol| Rule::new::<F>([Statement::VmapOriginal(set, protocol)]));
    let mut rules = Vec::from(of(SetName::Sticky));
    rules.push(not_to_node_port::<F>(node));
    rules.extend(of(SetName::StickyNodePorts));
    rules
}

/// Leaves out what was not sent to a NodePort in the first place.
///
/// ```nft
/// ct original ip daddr != @node-port-ips return
/// ```
fn not_to_node_port<F: Family>(node: &Node) -> Rule {
    let elsewhere = match node.node_port_addresses::<F>() {
        NodePortAddresses::Only(_) => Statement::OriginalNotIn(SetName::NodePortIps),
        NodePortAddresses::All => Statement::OriginalIn(SetName::ClusterIps),
    };
    Rule::new::<F>([elsewhere, Statement::Verdict(Verdict::Return)])
}

/// ```nft
/// tcp dport != 0 update @affinity { ip saddr . ct original ip daddr . meta l4proto . ct original proto-dst timeout 10800s : ip daddr . tcp dport }
/// ```
fn remember_for<F: Family>(seconds: NonZeroU32) -> Vec<Rule> {
    PROTOCOLS
        .map(|protocol| Rule::new::<F>([Statement::Remember(protocol, seconds)]))
        .into()
}

/// ```nft
/// ct status dnat jump remember
/// ```
fn remember_if_translated<F: Family>() -> Rule {
    let jump = Statement::Verdict(Verdict::Jump(ChainName::Remember));
    Rule::new::<F>([Statement::IsDnat, jump])
}

/// The range lookup is the dearer one, so only connections to restricted destinations make it.
///
/// ```nft
/// ip daddr . meta l4proto . th dport @restricted ip daddr . meta l4proto . th dport . ip saddr != @allowed-sources drop
/// ```
fn other_sources<F: Family>(node: &Node) -> Vec<Rule> {
    let matches = [
        Statement::In(SetName::Restricted),
        Statement::NotIn(SetName::AllowedSources),
    ];
    vec![Rule::new::<F>(
        matches.into_iter().chain(ending(node, Verdict::Drop)),
    )]
}

/// The end of a rule that lets no connection through, which is counted if any are.
///
/// ```nft
/// counter drop
/// ```
fn ending<F: Family>(node: &Node, verdict: Verdict) -> impl Iterator<Item = Statement<F>> {
    let counter = node.counts.then_some(Statement::Counter);
    counter.into_iter().chain([Statement::Verdict(verdict)])
}

/// Only what is external comes back from `services`. It goes on by rules of its own, as elements
/// that lead to a chain with a large verdict map make older kernels check all of that map for each.
///
/// ```nft
/// jump services
/// ip daddr . meta l4proto . th dport @external-local goto external-local
/// goto external
/// ```
fn destinations<F: Family>() -> Vec<Rule> {
    let jump = Rule::new::<F>([Statement::Verdict(Verdict::Jump(ChainName::Services))]);
    let external = by_policy::<F>(
        SetName::ExternalLocal,
        ChainName::ExternalLocal,
        ChainName::External,
    );
    [jump].into_iter().chain(external).collect()
}

/// ```nft
/// meta l4proto . th dport @external-local-node-ports goto external-local-node-port
/// goto external-node-port
/// ```
fn node_ports<F: Family>() -> Vec<Rule> {
    by_policy::<F>(
        SetName::ExternalLocalNodePorts,
        ChainName::ExternalLocalNodePort,
        ChainName::ExternalNodePort,
    )
    .into()
}

/// Leads what is external on: what the set holds to one chain, and all else to another.
fn by_policy<F: Family>(set: SetName, local: ChainName, cluster: ChainName) -> [Rule; 2] {
    let goto = |chain| Statement::Verdict(Verdict::Goto(chain));
    [
        Rule::new::<F>([Statement::In(set), goto(local)]),
        Rule::new::<F>([goto(cluster)]),
    ]
}

/// ```nft
/// ip saddr != 10.244.0.0/16 ip daddr @cluster-ips meta mark set meta mark | 0x4000
/// ip daddr . meta l4proto . th dport vmap @services
/// ip daddr @node-port-ips meta l4proto . th dport @node-ports goto node-ports
/// accept
/// ```
fn services<F: Family>(detector: &Detector<F>, node: &Node) -> Vec<Rule> {
    let mut rules = Vec::new();
    // Masquerading of ClusterIP traffic depends on the address alone, not on the port. What pods
    // send, which is most of it, is spared the lookup.
    let outsiders = outsiders(detector, node);
    if let (Some(outsiders), Some(mark)) = (outsiders, node.masquerade_mark) {
        let to_cluster_ip = [Statement::In(SetName::ClusterIps)];
        let set_mark = [Statement::SetMark(mark)];
        rules.push(Rule::new(
            outsiders.into_iter().chain(to_cluster_ip).chain(set_mark),
        ));
    }
    rules.push(Rule::new::<F>([Statement::Vmap(SetName::Services)]));
    let known = [
        Statement::In(SetName::NodePorts),
        Statement::Verdict(Verdict::Goto(ChainName::NodePorts)),
    ];
    rules.push(Rule::new(to_node_port::<F>(node).into_iter().chain(known)));
    rules.push(Rule::new::<F>([Statement::Verdict(Verdict::Accept)]));
    rules
}

/// Matches the clients whose connections to ClusterIPs are masqueraded; `None` if there are none.
fn outsiders<F: Family>(detector: &Detector<F>, node: &Node) -> Option<Vec<Statement<F>>> {
    if node.masquerade_all {
        Some(Vec::new())
    } else {
        not_pod(detector)
    }
}

/// ```nft
/// meta mark set meta mark | 0x4000
/// ip daddr . meta l4proto . th dport vmap @external
/// ```
fn cluster_policy<F: Family>(mark: Option<u32>, picks: SetName) -> Vec<Rule> {
    let set_mark = mark.map(|mark| Rule::new::<F>([Statement::SetMark(mark)]));
    let pick = Rule::new::<F>([Statement::Vmap(picks)]);
    set_mark.into_iter().chain([pick]).collect()
}

/// What takes the place of the mark: chains that ask where a connection was sent to at first.
///
/// ```nft
/// chain masquerading
/// ip saddr != 10.244.0.0/16 ct original ip daddr @cluster-ips masquerade fully-random
/// meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst vmap @masqueraded
/// ct original ip daddr != @node-port-ips return
/// meta l4proto tcp meta l4proto . ct original proto-dst vmap @masqueraded-node-ports
/// chain masquerade-external
/// masquerade fully-random
/// chain masquerade-external-local
/// ip saddr 10.244.0.0/16 return
/// fib saddr type local masquerade fully-random
/// ```
fn masquerade<F: Family>(
    detector: &Detector<F>,
    node: &Node,
) -> impl Iterator<Item = (ChainName, Vec<Rule>)> {
    let to_cluster_ip = || Statement::OriginalIn(SetName::ClusterIps);
    let of =
        |set| PROTOCOLS.map(|protocol| Rule::new::<F>([Statement::VmapOriginal(set, protocol)]));
    let mut by_destination: Vec<_> = outsiders(detector, node)
        .into_iter()
        .map(|outsiders| {
            Rule::new(
                outsiders
                    .into_iter()
                    .chain([to_cluster_ip(), Statement::Masquerade]),
            )
        })
        .collect();
    by_destination.extend(of(SetName::Masqueraded));
    by_destination.push(not_to_node_port::<F>(node));
    by_destination.extend(of(SetName::MasqueradedNodePorts));

    let mut own_processes: Vec<_> = pod(detector)
        .into_iter()
        .map(|is_pod| {
            Rule::new(
                is_pod
                    .into_iter()
                    .chain([Statement::Verdict(Verdict::Return)]),
            )
        })
        .collect();
    own_processes.push(Rule::new::<F>([
        Statement::SaddrIsLocal,
        Statement::Masquerade,
    ]));
    [
        (ChainName::Masquerading, by_destination),
        (
            ChainName::MasqueradeExternal,
            vec![Rule::new::<F>([Statement::Masquerade])],
        ),
        (ChainName::MasqueradeExternalLocal, own_processes),
    ]
    .into_iter()
}

/// Pods of this node and its own processes reach all endpoints, whatever the policy; for others
/// there are only those on this node.
///
/// ```nft
/// ip saddr 10.244.0.0/16 ip daddr . meta l4proto . th dport vmap @external
/// fib saddr type local goto external
/// ip daddr . meta l4proto . th dport vmap @local
/// ```
fn local_policy<F: Family>(
    detector: &Detector<F>,
    masquerading: ChainName,
    cluster_picks: SetName,
    local_picks: SetName,
) -> Vec<Rule> {
    let mut rules: Vec<_> = pod(detector)
        .into_iter()
        .map(|is_pod| Rule::new(is_pod.into_iter().chain([Statement::Vmap(cluster_picks)])))
        .collect();
    rules.push(Rule::new::<F>([
        Statement::SaddrIsLocal,
        Statement::Verdict(Verdict::Goto(masquerading)),
    ]));
    rules.push(Rule::new::<F>([Statement::Vmap(local_picks)]));
    rules
}

/// What becomes of connections that nobody has translated.
///
/// ```nft
/// ip daddr . meta l4proto . th dport vmap @unavailable
/// ip daddr @node-port-ips meta l4proto . th dport vmap @unavailable-node-ports
/// fib daddr type local return
/// ip daddr @cluster-ips goto refuse
/// ip daddr 10.96.0.0/16 drop
/// ```
fn guard<F: Family>(node: &Node, service_cidrs: &[(F::Address, u8)]) -> Vec<Rule> {
    let unavailable = Statement::Vmap(SetName::UnavailableNodePorts);
    let mut rules = vec![
        Rule::new::<F>([Statement::Vmap(SetName::Unavailable)]),
        Rule::new(to_node_port::<F>(node).into_iter().chain([unavailable])),
        // An address of this host has listeners of its own: NodeLocal DNSCache puts ClusterIPs there.
        Rule::new::<F>([Statement::DaddrIsLocal, Statement::Verdict(Verdict::Return)]),
        Rule::new::<F>(
            [Statement::In(SetName::ClusterIps)]
                .into_iter()
                .chain(ending(node, Verdict::Goto(ChainName::Refuse))),
        ),
    ];
    rules.extend(service_cidrs.iter().map(|prefix| {
        let in_prefix = prefix_match(*prefix, false, Statement::Daddr);
        Rule::new::<F>(in_prefix.into_iter().chain(ending(node, Verdict::Drop)))
    }));
    rules
}

/// The kernel limits the rate of ICMP errors, and clients that get none wait for their timeout;
/// it does not limit resets.
///
/// ```nft
/// meta l4proto tcp reject with tcp reset
/// reject
/// ```
fn refuse<F: Family>() -> Vec<Rule> {
    vec![
        Rule::new::<F>([
            Statement::L4Proto(Protocol::Tcp),
            Statement::Reject(Reject::TcpReset),
        ]),
        Rule::new::<F>([Statement::Reject(Reject::PortUnreachable)]),
    ]
}

/// The masquerade rules also keep connection tracking switched on in this network namespace,
/// without which nat chains see no packet at all.
///
/// ```nft
/// meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade fully-random
/// ct status dnat ip saddr . ip daddr @hairpin masquerade fully-random
/// ```
///
/// Without a mark, `ct status dnat jump masquerading` is in the place of the first.
fn postrouting<F: Family>(mark: Option<u32>, affinity: &BTreeSet<NonZeroU32>) -> Vec<Rule> {
    let mut rules = Vec::new();
    if !affinity.is_empty() {
        // Before the source is translated: clients are known by the address they came with.
        rules.push(remember_if_translated::<F>());
    }
    rules.extend([
        match mark {
            Some(mark) => Rule::new::<F>([
                Statement::HasMark(mark),
                Statement::ClearMark(mark),
                Statement::Masquerade,
            ]),
            None => Rule::new::<F>([
                Statement::IsDnat,
                Statement::Verdict(Verdict::Jump(ChainName::Masquerading)),
            ]),
        },
        Rule::new::<F>([
            Statement::IsDnat,
            Statement::In(SetName::Hairpin),
            Statement::Masquerade,
        ]),
    ]);
    rules
}

/// Matches the addresses that accept NodePorts.
fn to_node_port<F: Family>(node: &Node) -> Vec<Statement<F>> {
    match node.node_port_addresses::<F>() {
        NodePortAddresses::Only(_) => vec![Statement::In(SetName::NodePortIps)],
        NodePortAddresses::All => {
            let loopback = match F::FAMILY {
                IpFamily::V4 => F::address([127, 0, 0, 0].into()).map(|address| (address, 8)),
                IpFamily::V6 => {
                    F::address(std::net::Ipv6Addr::LOCALHOST.into()).map(|address| (address, 128))
                }
            };
            let not_loopback = loopback.map(|value| {
                Statement::Daddr(Match {
                    value,
                    negate: true,
                })
            });
            [Statement::DaddrIsLocal]
                .into_iter()
                .chain(not_loopback)
                .collect()
        }
    }
}

/// Matches of which one holds for each packet from a pod.
fn pod<F: Family>(detector: &Detector<F>) -> Vec<Vec<Statement<F>>> {
    match detector {
        Detector::None => Vec::new(),
        Detector::Prefixes(prefixes) => prefixes
            .iter()
            .map(|prefix| prefix_match(*prefix, false, Statement::Saddr))
            .collect(),
        Detector::Interface(name) => {
            vec![vec![Statement::Iifname(Match {
                value: name.clone(),
                negate: false,
            })]]
        }
        Detector::InterfacePrefix(prefix) => {
            vec![vec![Statement::IifnamePrefix(Match {
                value: prefix.clone(),
                negate: false,
            })]]
        }
    }
}

/// Matches that all hold for each packet that is not from a pod; `None` if that cannot be told,
/// or is no packet at all.
fn not_pod<F: Family>(detector: &Detector<F>) -> Option<Vec<Statement<F>>> {
    match detector {
        Detector::None => None,
        Detector::Prefixes(prefixes) if prefixes.iter().any(|(_, len)| *len == 0) => None,
        Detector::Prefixes(prefixes) => Some(
            prefixes
                .iter()
                .flat_map(|prefix| prefix_match(*prefix, true, Statement::Saddr))
                .collect(),
        ),
        Detector::Interface(name) => Some(vec![Statement::Iifname(Match {
            value: name.clone(),
            negate: true,
        })]),
        Detector::InterfacePrefix(prefix) => Some(vec![Statement::IifnamePrefix(Match {
            value: prefix.clone(),
            negate: true,
        })]),
    }
}

/// Matches a prefix; the prefix of length 0 holds everything and needs no match.
fn prefix_match<F: Family>(
    prefix: (F::Address, u8),
    negate: bool,
    statement: impl Fn(Match<(F::Address, u8)>) -> Statement<F>,
) -> Vec<Statement<F>> {
    if prefix.1 == 0 {
        Vec::new()
    } else {
        vec![statement(Match {
            value: prefix,
            negate,
        })]
    }
}
