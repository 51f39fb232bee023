//! UDP flows to an endpoint that is gone are forgotten, among many that are not.

use std::fs;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use integration::netns::Namespace;
use nftproxy_core::apply::netlink::conntrack::Conntrack;
use nftproxy_core::compile::{Keep, StaleFlows};
use nftproxy_core::model::{EndpointAddress, Protocol, V4};

use super::{Job, Scale};
use crate::cluster::grouped;
use crate::measure::{mean, ms, spread};
use crate::netlink::{Socket, conntrack, conntrack_dump, nest, put};
use crate::table::Row;

const GROUP: &str = "conntrack";
const FLOOR: &str = "one walk of the kernel's that finds nothing";

const N_GONE: [u32; 3] = [1, 4, 20];
/// Nobody sends here.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 65, 0, 0);
const N_DESTINATIONS: u32 = 100;
const N_ENDPOINTS: u32 = 5;
const DESTINATIONS: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
const ENDPOINTS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const CLIENTS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const PORT: NonZeroU16 = NonZeroU16::new(53).expect("it is not zero");
const CLIENT_PORT: u16 = 40_000;

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    // A table of the usual size with little in it, and one that is full.
    let sizes = scale.pick(vec![5_000], vec![5_000, 500_000]);
    let job = |n_entries| {
        let name = format!("{GROUP}, {} entries", grouped(n_entries));
        Job::new(name, move || rows(scale, n_entries))
    };
    sizes.into_iter().map(job).collect()
}

fn rows(scale: Scale, n_entries: u32) -> Result<Vec<Row>> {
    let namespace = Namespace::new("flows")?;
    let mut socket = namespace.run(Socket::open)?;
    let mut flows = namespace.run(Conntrack::open)?;
    // The first request loads the kernel's module, and with it the limit.
    socket.dump(&dump_of(DESTINATIONS))?;
    let _limit = Limit::at_least(n_entries + 10_000)?;
    add_flows(&mut socket, 0..n_entries)?;
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    let count = namespace.run(|| fs::read_to_string(path));
    let count = count.with_context(|| format!("reading {path}"))?;
    ensure!(
        count.trim() == n_entries.to_string(),
        "of {n_entries} entries there are {}",
        count.trim()
    );
    let row = |n_gone| row(scale, &mut socket, &mut flows, n_entries, n_gone);
    N_GONE.into_iter().map(row).collect()
}

/// An endpoint of so many destinations at once goes.
fn row(
    scale: Scale,
    socket: &mut Socket,
    flows: &mut Conntrack,
    n_entries: u32,
    n_gone: u32,
) -> Result<Row> {
    // The last endpoint of each destination goes in turn.
    let serving = (0..N_ENDPOINTS - 1).map(|number| EndpointAddress {
        address: offset(ENDPOINTS, number),
        port: PORT,
    });
    let serving: Box<[_]> = serving.collect();
    let times = scale.few().repeat(|n| {
        let first = n * n_gone;
        let destinations = first..first + n_gone;
        let stale = destinations.clone().map(|destination| StaleFlows::<V4> {
            address: offset(DESTINATIONS, destination % N_DESTINATIONS),
            port: PORT,
            keep: Keep {
                serving: serving.clone(),
                sources: None,
                answered_only: false,
            },
        });
        let stale: Vec<_> = stale.collect();
        let start = Instant::now();
        let found = flows.find_stale(&stale)?;
        let find = start.elapsed();
        let start = Instant::now();
        socket.dump(&dump_of(NOBODY))?;
        let floor = start.elapsed();
        let start = Instant::now();
        flows.delete(&found)?;
        let delete = start.elapsed();
        let expected = n_entries / N_DESTINATIONS / N_ENDPOINTS * n_gone;
        ensure!(
            found.len() == expected as usize,
            "{} flows are stale, not {expected}",
            found.len()
        );
        let is_gone = |flow: &u32| {
            let destination = flow % N_DESTINATIONS;
            destinations
                .clone()
                .any(|gone| gone % N_DESTINATIONS == destination)
                && endpoint_of(*flow) == N_ENDPOINTS - 1
        };
        add_flows(socket, (0..n_entries).filter(is_gone))?;
        Ok((find, delete, floor, found.len()))
    })?;

    let case = match n_gone {
        1 => format!("endpoint gone, {} entries", grouped(n_entries)),
        _ => format!("{n_gone} endpoints gone, {} entries", grouped(n_entries)),
    };
    let ours = spread(times.iter().map(|(find, delete, ..)| *find + *delete));
    let floor = spread(times.iter().map(|(_, _, floor, _)| *floor));
    Ok(Row::ms(GROUP, FLOOR, case, ours, floor)
        .with("find ms", mean(times.iter().map(|(find, ..)| ms(*find))))
        .with(
            "delete ms",
            mean(times.iter().map(|(_, delete, ..)| ms(*delete))),
        )
        .with("deleted", mean(times.iter().map(|(.., n)| *n as f64))))
}

fn endpoint_of(flow: u32) -> u32 {
    flow / N_DESTINATIONS % N_ENDPOINTS
}

fn offset(base: Ipv4Addr, by: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits() + by)
}

/// The limit of entries, which is one for all network namespaces; put back at the end.
struct Limit {
    before: Option<String>,
}

impl Limit {
    const PATH: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

    fn at_least(wanted: u32) -> Result<Self> {
        let before =
            fs::read_to_string(Self::PATH).with_context(|| format!("reading {}", Self::PATH))?;
        if before
            .trim()
            .parse::<u32>()
            .is_ok_and(|limit| limit == 0 || limit >= wanted)
        {
            return Ok(Self { before: None });
        }
        fs::write(Self::PATH, wanted.to_string())
            .with_context(|| format!("raising {} to {wanted}", Self::PATH))?;
        Ok(Self {
            before: Some(before),
        })
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(Self::PATH, before)
        {
            eprintln!("{} stays raised: {error}", Self::PATH);
        }
    }
}

const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;
const NLM_F_CREATE: u16 = 0x400;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_TIMEOUT: u16 = 7;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// Destination address, protocol, destination port.
const FILTERED: u32 = 1 << 1 | 1 << 3 | 1 << 5;
/// `IPS_SEEN_REPLY`, `IPS_ASSURED`, `IPS_CONFIRMED`
const STATUS: u32 = 1 << 1 | 1 << 2 | 1 << 3;
const TIMEOUT_SECONDS: u32 = 3600;
/// Well below the usual send buffer.
const DATAGRAM: usize = 64 * 1024;

/// Adds entries, many to a datagram.
fn add_flows(socket: &mut Socket, flows: impl Iterator<Item = u32>) -> Result<()> {
    let mut requests = Vec::new();
    for flow in flows {
        requests.extend(new_flow(flow));
        if requests.len() > DATAGRAM {
            socket.request(&requests)?;
            requests.clear();
        }
    }
    socket.request(&requests).context("adding entries")
}

fn new_flow(flow: u32) -> Vec<u8> {
    let client = (offset(CLIENTS, flow), CLIENT_PORT);
    let destination = (offset(DESTINATIONS, flow % N_DESTINATIONS), PORT.get());
    let endpoint = (offset(ENDPOINTS, endpoint_of(flow)), PORT.get());
    conntrack(IPCTNL_MSG_CT_NEW, NLM_F_CREATE, |out| {
        nest(out, CTA_TUPLE_ORIG, |out| tuple(out, client, destination));
        nest(out, CTA_TUPLE_REPLY, |out| tuple(out, endpoint, client));
        put(out, CTA_STATUS, &STATUS.to_be_bytes());
        put(out, CTA_TIMEOUT, &TIMEOUT_SECONDS.to_be_bytes());
    })
}

fn tuple(out: &mut Vec<u8>, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) {
    nest(out, CTA_TUPLE_IP, |out| {
        put(out, CTA_IP_V4_SRC, &source.0.octets());
        put(out, CTA_IP_V4_DST, &destination.0.octets());
    });
    nest(out, CTA_TUPLE_PROTO, |out| {
        put(out, CTA_PROTO_NUM, &[Protocol::Udp.number()]);
        put(out, CTA_PROTO_SRC_PORT, &source.1.to_be_bytes());
        put(out, CTA_PROTO_DST_PORT, &destination.1.to_be_bytes());
    });
}

/// What the product asks the kernel for to find the flows to a destination.
fn dump_of(address: Ipv4Addr) -> Vec<u8> {
    conntrack_dump(IPCTNL_MSG_CT_GET, |out| {
        nest(out, CTA_TUPLE_ORIG, |out| {
            nest(out, CTA_TUPLE_IP, |out| {
                put(out, CTA_IP_V4_DST, &address.octets())
            });
            nest(out, CTA_TUPLE_PROTO, |out| {
                put(out, CTA_PROTO_NUM, &[Protocol::Udp.number()]);
                put(out, CTA_PROTO_DST_PORT, &PORT.get().to_be_bytes());
            });
        });
        nest(out, CTA_FILTER, |out| {
            put(out, CTA_FILTER_ORIG_FLAGS, &FILTERED.to_ne_bytes());
        });
    })
}
