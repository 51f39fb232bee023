//! What a packet costs under different rules, beside each other.
//!
//! Each set of rules has a [`Forwarder`] of its own, and all take turns in short rounds, so that
//! whatever disturbs the machine disturbs all of them.

mod forwarder;
mod frame;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use forwarder::{CLIENT_RANGE, Forwarder, NODE, NODE_MAC};
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::model::{DetectLocal, Node, NodePortAddresses, Protocol, V4};
use nftproxy_core::sync::Syncer;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::{Job, Scale};
use crate::cluster::{CLUSTER_IP_RANGE, Cluster, Size, destination};
use crate::measure::spread_of;
use crate::table::{Row, Spread};

const GROUP: &str = "data path";
const FLOOR: &str = "one rule that leads every Service to the same endpoint";

const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 245, 0, 0);
const N_CLIENTS: u32 = 250;
const FIRST_CLIENT_PORT: u16 = 10_000;

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    let size = scale.medium();
    let name = format!("{GROUP}, {size}");
    vec![Job::new(name, move || rows(scale, size))]
}

fn rows(scale: Scale, size: Size) -> Result<Vec<Row>> {
    let mut beds = Vec::new();
    for rules in Rules::ALL {
        let forwarder = Forwarder::new()?;
        rules
            .load(&forwarder, size)
            .with_context(|| format!("loading rules: {rules}"))?;
        beds.push((rules, forwarder));
    }
    stay_on_one_cpu()?;
    Traffic::ALL
        .into_iter()
        .map(|traffic| row(scale, size, traffic, &beds))
        .collect()
}

fn row(scale: Scale, size: Size, traffic: Traffic, beds: &[(Rules, Forwarder)]) -> Result<Row> {
    // Few enough for the smallest connection tracking table.
    let frames = traffic.frames(size, scale.pick(1_000, 20_000));
    let mut samples = vec![Vec::new(); beds.len()];
    for _ in 0..scale.pick(2, 15) {
        for ((rules, forwarder), samples) in beds.iter().zip(&mut samples) {
            let round = round(forwarder, *rules, traffic, &frames)
                .with_context(|| format!("measuring {traffic}, {rules}"))?;
            samples.extend(round);
        }
    }
    let spreads: Vec<Spread> = samples.into_iter().map(spread_of).collect();
    let [none, conntrack, static_dnat, nftproxy, counting, telling] = spreads[..] else {
        unreachable!("there is a forwarder for each set of rules");
    };
    let case = format!("{traffic}, {size}");
    Ok(Row::new(GROUP, "ns per packet", case, nftproxy)
        .over(FLOOR, static_dnat)
        .with("conntrack alone", conntrack.p50)
        .with("ratio to it", nftproxy.p50 / conntrack.p50)
        .with("counting", counting.p50)
        .with("counting to not", counting.p50 / nftproxy.p50)
        .with("telling", telling.p50)
        .with("telling to not", telling.p50 / nftproxy.p50)
        .with("no rules", none.p50))
}

/// The rules that a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// None at all.
    None,
    /// Connection tracking is on, and no rule is ever asked.
    Conntrack,
    /// One rule that leads every Service to the same endpoint.
    StaticDnat,
    /// Those of nftproxy, for all Services.
    Nftproxy,
    /// The same, with counters.
    Counting,
    /// The same as nftproxy's, while clients are told of endpoints that are gone.
    Telling,
}

/// What packets are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Traffic {
    /// Packets of one flow that was answered.
    Established,
    /// Each packet a new flow, all to one Service.
    New,
    /// Each packet a new flow, each to the next Service.
    NewSpread,
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no rules",
            Self::Conntrack => "conntrack alone",
            Self::StaticDnat => "one DNAT rule",
            Self::Nftproxy => "nftproxy",
            Self::Counting => "nftproxy that counts",
            Self::Telling => "nftproxy that tells of endpoints that are gone",
        })
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Established => "established",
            Self::New => "new, one Service",
            Self::NewSpread => "new, all Services",
        })
    }
}

impl Rules {
    const ALL: [Self; 6] = [
        Self::None,
        Self::Conntrack,
        Self::StaticDnat,
        Self::Nftproxy,
        Self::Counting,
        Self::Telling,
    ];

    fn translate(self) -> bool {
        !matches!(self, Self::None | Self::Conntrack)
    }

    fn load(self, forwarder: &Forwarder, size: Size) -> Result<()> {
        let script = match self {
            Self::None => return Ok(()),
            Self::Conntrack => "table ip bench {
                chain unused { ct state invalid; }
            }"
            .to_owned(),
            Self::StaticDnat => format!(
                "table ip bench {{
                    chain prerouting {{
                        type nat hook prerouting priority -100;
                        ip daddr {CLUSTER_IP_RANGE} udp dport {} dnat to 10.128.0.1:8080
                    }}
                }}",
                destination(0).1,
            ),
            Self::Nftproxy => return load_nftproxy(forwarder, size, false),
            Self::Counting => return load_nftproxy(forwarder, size, true),
            Self::Telling => {
                load_nftproxy(forwarder, size, false)?;
                telling()
            }
        };
        forwarder
            .node
            .exec_with_input(&["nft", "-f", "-"], &script)
            .map(drop)
    }
}

/// The table beside the proxy's that tells clients of endpoints that are gone. Packets are of UDP here,
/// so it does not begin by asking for TCP: what comes after that is what it costs.
fn telling() -> String {
    let gone: Vec<_> = (0..1_000_u32)
        .map(|n| format!("{} . udp . 8080", Ipv4Addr::from_bits(0x0af0_0000 + n)))
        .collect();
    format!(
        "table ip nftproxy-gone {{
            set gone {{
                type ipv4_addr . inet_proto . inet_service; flags timeout
                elements = {{ {} }}
            }}
            chain forward {{
                type filter hook forward priority 0;
                ct status dnat ct direction original ip daddr . meta l4proto . th dport @gone drop
            }}
        }}",
        gone.join(", ")
    )
}

fn load_nftproxy(forwarder: &Forwarder, size: Size, counts: bool) -> Result<()> {
    let cluster = Cluster {
        protocol: Protocol::Udp,
        ..Cluster::new(size)
    };
    let mut state = cluster.state();
    let dirty = state.take_dirty();
    // Clients are pods, so that nothing is masqueraded.
    let node = Node {
        detect_local: DetectLocal::Cidrs(vec![CLIENT_RANGE.parse().context("reading a range")?]),
        node_port_addresses_v4: NodePortAddresses::Only([NODE.into()].into()),
        counts,
        ..Node::default()
    };
    let netlink = forwarder.node.run(Netlink::open)?;
    Syncer::<V4, _>::new(netlink).sync(&state, &node, &dirty)?;
    Ok(())
}

impl Traffic {
    const ALL: [Self; 3] = [Self::Established, Self::New, Self::NewSpread];

    fn frames(self, size: Size, n_packets: u32) -> Vec<Vec<u8>> {
        let frame = |index: u32| {
            let (flow, service) = match self {
                Self::Established => (0, size.services / 2),
                Self::New => (index, size.services / 2),
                // Neighbours in a map may share a cache line; a stride that has no common divisor
                // with the number of Services visits all of them, far apart.
                Self::NewSpread => (index, index.wrapping_mul(7919) % size.services),
            };
            let port = FIRST_CLIENT_PORT + (flow / N_CLIENTS) as u16;
            let client = Ipv4Addr::from_bits(CLIENTS.to_bits() + flow % N_CLIENTS);
            let (address, service_port) = destination(service);
            frame::udp(
                NODE_MAC,
                SocketAddrV4::new(client, port),
                SocketAddrV4::new(address, service_port.get()),
            )
        };
        (0..n_packets).map(frame).collect()
    }
}

/// Nanoseconds per packet in one round, a figure for each burst.
fn round(
    forwarder: &Forwarder,
    rules: Rules,
    traffic: Traffic,
    frames: &[Vec<u8>],
) -> Result<Vec<f64>> {
    if rules != Rules::None {
        forwarder.flush_flows()?;
    }
    if traffic == Traffic::Established {
        let got = forwarder.establish(&frames[0])?;
        let is_translated = frame::destination(&got) != frame::destination(&frames[0]);
        ensure!(
            is_translated == rules.translate(),
            "the packet's destination has changed: {is_translated}"
        );
    }
    let times = forwarder.send(frames)?;
    let expected = match (rules, traffic) {
        (Rules::None, _) => 0,
        (_, Traffic::Established) => 1,
        (_, Traffic::New | Traffic::NewSpread) => frames.len(),
    };
    let flows = forwarder.flows()?;
    ensure!(
        flows == expected,
        "{flows} flows are tracked, not {expected}"
    );
    Ok(times.iter().map(|time| time.as_secs_f64() * 1e9).collect())
}

/// Keeps this thread on one CPU, so that what it sends is forwarded there and nowhere else.
fn stay_on_one_cpu() -> Result<()> {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).context("asking for the CPUs")?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .context("finding a CPU to run on")?;
    let mut one = CpuSet::new();
    one.set(last).context("choosing a CPU")?;
    sched_setaffinity(this_thread, &one).context("staying on one CPU")
}
