//! What a packet costs under different rules, beside each other.
//!
//! Each set of rules has a [`Bed`] of its own, and all take turns in short rounds, so that whatever
//! disturbs the machine disturbs all of them. Entry point: [`measure`].

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::model::V4;
use nftproxy_core::sync::Syncer;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::bed::{Bed, NODE, NODE_MAC};
use crate::cluster::{
    ENDPOINT_PORT, FIRST_CLIENT, N_SERVICES, SERVICE_CIDR, SERVICE_PORT, cluster_ip, node, state,
};
use crate::frame;

const N_ROUNDS: usize = 15;
/// Packets in a round, few enough for the smallest connection tracking table.
const N_PACKETS: u32 = 20_000;
const N_CLIENTS: u32 = 250;
const FIRST_CLIENT_PORT: u16 = 10_000;

/// The rules that a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    /// None at all.
    None,
    /// Connection tracking is on, and no rule is ever asked.
    Conntrack,
    /// One rule that leads every Service to the same endpoint.
    StaticDnat,
    /// Those of nftproxy, for all Services.
    Nftproxy,
}

/// What packets are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Packets of one flow that was answered.
    Established,
    /// Each packet a new flow, all to one Service.
    New,
    /// Each packet a new flow, each to the next Service.
    NewSpread,
}

/// What a packet costs.
#[derive(Debug, Clone)]
pub(crate) struct Cost {
    /// What was sent.
    pub(crate) traffic: Traffic,
    /// Under which rules.
    pub(crate) rules: Rules,
    /// The median.
    pub(crate) median: Duration,
    /// What nine of ten packets exceed; far from the median, the machine was busy.
    pub(crate) tenth: Duration,
}

/// How two costs compare.
#[derive(Debug)]
pub(crate) struct Ratio {
    /// What is compared.
    pub(crate) name: String,
    /// Of the medians.
    pub(crate) value: f64,
    /// What it should not exceed.
    pub(crate) target: f64,
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no rules",
            Self::Conntrack => "conntrack alone",
            Self::StaticDnat => "one DNAT rule",
            Self::Nftproxy => "nftproxy",
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
    const ALL: [Self; 4] = [
        Self::None,
        Self::Conntrack,
        Self::StaticDnat,
        Self::Nftproxy,
    ];

    fn translate(self) -> bool {
        matches!(self, Self::StaticDnat | Self::Nftproxy)
    }

    fn load(self, bed: &Bed) -> Result<()> {
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
                        ip daddr {SERVICE_CIDR} udp dport {SERVICE_PORT} dnat to {}:{ENDPOINT_PORT}
                    }}
                }}",
                Ipv4Addr::from(FIRST_CLIENT - 1)
            ),
            Self::Nftproxy => return load_nftproxy(bed),
        };
        bed.node
            .exec_with_input(&["nft", "-f", "-"], &script)
            .map(drop)
    }
}

fn load_nftproxy(bed: &Bed) -> Result<()> {
    let mut state = state();
    let dirty = state.take_dirty();
    let netlink = bed.node.run(Netlink::open).context("open netlink")?;
    Syncer::<V4, _>::new(netlink)
        .sync(&state, &node(NODE), &dirty)
        .context("load the rules of nftproxy")?;
    Ok(())
}

impl Traffic {
    const ALL: [Self; 3] = [Self::Established, Self::New, Self::NewSpread];

    fn frames(self) -> Vec<Vec<u8>> {
        let frame = |index: u32| {
            let (flow, service) = match self {
                Self::Established => (0, N_SERVICES / 2),
                Self::New => (index, N_SERVICES / 2),
                // Neighbours in a map may share a cache line; a stride that has no common divisor
                // with the number of Services visits all of them, far apart.
                Self::NewSpread => (index, index.wrapping_mul(7919) % N_SERVICES),
            };
            let port = FIRST_CLIENT_PORT + (flow / N_CLIENTS) as u16;
            let client = Ipv4Addr::from(FIRST_CLIENT + flow % N_CLIENTS);
            frame::udp(
                NODE_MAC,
                SocketAddrV4::new(client, port),
                SocketAddrV4::new(cluster_ip(service), SERVICE_PORT.get()),
            )
        };
        (0..N_PACKETS).map(frame).collect()
    }
}

/// Measures each kind of traffic under each set of rules.
///
/// # Errors
///
/// Fails without the right to create network namespaces, without `ip`, `nft` or `conntrack`, and if
/// packets do not go where they should.
pub(crate) fn measure() -> Result<Vec<Cost>> {
    let mut beds = Vec::new();
    for rules in Rules::ALL {
        let bed = Bed::new().with_context(|| format!("build a bed for {rules}"))?;
        rules
            .load(&bed)
            .with_context(|| format!("load rules: {rules}"))?;
        beds.push((rules, bed));
    }
    let traffics = Traffic::ALL.map(|traffic| (traffic, traffic.frames()));
    stay_on_one_cpu()?;

    let mut costs = Vec::new();
    for (traffic, frames) in &traffics {
        let mut samples = vec![Vec::new(); beds.len()];
        for _ in 0..N_ROUNDS {
            for ((rules, bed), samples) in beds.iter().zip(&mut samples) {
                let round = round(bed, *rules, *traffic, frames)
                    .with_context(|| format!("measure {traffic}, {rules}"))?;
                samples.extend(round);
            }
        }
        for ((rules, _), mut samples) in beds.iter().zip(samples) {
            samples.sort();
            costs.push(Cost {
                traffic: *traffic,
                rules: *rules,
                median: samples[samples.len() / 2],
                tenth: samples[samples.len() / 10],
            });
        }
    }
    Ok(costs)
}

/// The figures that have a target.
pub(crate) fn ratios(costs: &[Cost]) -> Vec<Ratio> {
    let median = |traffic, rules| {
        costs
            .iter()
            .find(|cost| cost.traffic == traffic && cost.rules == rules)
            .map(|cost| cost.median.as_secs_f64())
    };
    [
        (Traffic::Established, Rules::Conntrack, 1.0),
        (Traffic::Established, Rules::StaticDnat, 1.0),
        (Traffic::New, Rules::StaticDnat, 1.15),
        (Traffic::NewSpread, Rules::StaticDnat, 1.15),
    ]
    .into_iter()
    .filter_map(|(traffic, base, target)| {
        Some(Ratio {
            name: format!("{traffic}, to {base}"),
            value: median(traffic, Rules::Nftproxy)? / median(traffic, base)?,
            target,
        })
    })
    .collect()
}

/// What packets cost in one round.
fn round(bed: &Bed, rules: Rules, traffic: Traffic, frames: &[Vec<u8>]) -> Result<Vec<Duration>> {
    if rules != Rules::None {
        bed.flush_flows()?;
    }
    if traffic == Traffic::Established {
        let got = bed.establish(&frames[0])?;
        let is_translated = frame::destination(&got) != frame::destination(&frames[0]);
        ensure!(
            is_translated == rules.translate(),
            "the packet's destination has changed: {is_translated}"
        );
    }
    let costs = bed.send(frames)?;
    let expected = match (rules, traffic) {
        (Rules::None, _) => 0,
        (_, Traffic::Established) => 1,
        (_, Traffic::New | Traffic::NewSpread) => frames.len(),
    };
    let flows = bed.flows()?;
    ensure!(
        flows == expected,
        "{flows} flows are tracked, not {expected}"
    );
    Ok(costs)
}

/// Keeps this thread on one CPU, so that what it sends is forwarded there and nowhere else.
fn stay_on_one_cpu() -> Result<()> {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).context("ask for the CPUs")?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .context("find a CPU to run on")?;
    let mut one = CpuSet::new();
    one.set(last).context("choose a CPU")?;
    sched_setaffinity(this_thread, &one).context("stay on one CPU")
}
