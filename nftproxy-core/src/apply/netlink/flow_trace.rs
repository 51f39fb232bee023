//! Has the kernel tell what becomes of the packets of one flow, rule by rule.
//!
//! A table of its own marks the packets that begin connections. The kernel deletes the table when
//! the socket that made it closes, whatever ends the process; kernels before 5.12 cannot, so what
//! one of them was left with goes at the next start. No other table is touched.
//!
//! Entry point: [`FlowTrace`].

mod step;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

pub use self::step::FlowStep;
use self::step::{be64, read_step};
use super::attribute::{begin_nest, end_nest, find, messages, put, put_str, string};
use super::constants::*;
use super::small::{SmallBatch, compare, expression, has_bit, load, number, value};
use super::{Netlink, ffi};
use crate::apply::{ApplyError, Operation, Verb};
use crate::model::{Family, IpFamily, Protocol, V4, V6};

const NFNLGRP_NFTRACE: i32 = 9;
const NFT_TABLE_F_OWNER: u32 = 0x2;
const NFTA_RULE_HANDLE: u16 = 3;

/// Where the chains that mark packets sit: right after connection tracking, before anybody else.
const PRIORITY: i32 = -199;
/// The tables' names start so, and go on with the number of the process.
const TABLE_PREFIX: &str = "nftproxy-trace-";
/// What may wait to be read, in bytes as the kernel counts them.
const QUEUE: usize = 8 * 1024 * 1024;
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The packets that are followed: the first ones of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Who connects; `None` for anybody.
    pub source: Option<IpAddr>,
    /// Where to.
    pub destination: IpAddr,
    /// By which protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

/// A flow that is being followed.
#[derive(Debug)]
pub struct FlowTrace {
    /// Its socket owns the table, where the kernel knows of owners.
    netlink: Netlink,
    events: Events,
    table: String,
    family: IpFamily,
    buffer: Vec<u8>,
}

struct Events(ffi::Socket);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Events").finish()
    }
}

impl FlowTrace {
    /// Starts to follow a flow, in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked, or lacks what it takes.
    pub fn start(flow: &Flow) -> Result<Self, ApplyError> {
        let family = IpFamily::of(flow.destination);
        let mut netlink = Netlink::open()?;
        netlink.remove_stale_traces()?;
        let socket = ffi::Socket::open().map_err(ApplyError::Open)?;
        let _ = setsockopt(&socket.descriptor(), sockopt::RcvBufForce, &QUEUE)
            .or_else(|_| setsockopt(&socket.descriptor(), sockopt::RcvBuf, &QUEUE));
        socket
            .set_option(NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTRACE)
            .map_err(ApplyError::Open)?;
        let table = format!("{TABLE_PREFIX}{}", std::process::id());
        let mut create = |flags| match family {
            IpFamily::V4 => netlink.send_trace::<V4>(&table, flags, flow),
            IpFamily::V6 => netlink.send_trace::<V6>(&table, flags, flow),
        };
        match create(NFT_TABLE_F_OWNER) {
            // Kernels before 5.12 know no owners.
            Err(ApplyError::Refused(refusal))
                if matches!(refusal.operation, Operation::Table(Verb::Add)) =>
            {
                create(0)?;
            }
            created => created?,
        }
        Ok(Self {
            netlink,
            events: Events(socket),
            table,
            family,
            buffer: vec![0; RECEIVE_BUFFER],
        })
    }

    /// Reads what has been told, without waiting; what concerns the tracing table itself is left
    /// out. `is_lost` becomes true if the kernel had more to say than it could keep.
    ///
    /// # Errors
    ///
    /// If nothing will be heard any more.
    pub fn read(&mut self, is_lost: &mut bool) -> io::Result<Vec<FlowStep>> {
        let mut steps = Vec::new();
        loop {
            let descriptor = self.events.0.descriptor().as_raw_fd();
            match recv(descriptor, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    let datagram = &self.buffer[..length];
                    let all = messages(datagram)
                        .filter_map(|message| read_step(message.message_type, message.body));
                    steps.extend(all.filter(|step| !is_trace(&step.table)));
                }
                Err(Errno::EAGAIN) => return Ok(steps),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => *is_lost = true,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Where the rules of a family's tables stand in their chains, by table, chain and handle, from
    /// 0.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn rule_numbers(&mut self) -> Result<BTreeMap<(String, String, u64), usize>, ApplyError> {
        match self.family {
            IpFamily::V4 => self.netlink.rule_numbers::<V4>(),
            IpFamily::V6 => self.netlink.rule_numbers::<V6>(),
        }
    }
}

impl AsFd for FlowTrace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.0.descriptor()
    }
}

impl Drop for FlowTrace {
    fn drop(&mut self) {
        // Where the kernel knows owners this only makes it certain that the table is gone by now.
        let _ = match self.family {
            IpFamily::V4 => self.netlink.delete_table::<V4>(&self.table),
            IpFamily::V6 => self.netlink.delete_table::<V6>(&self.table),
        };
    }
}

/// Whether a table is one of those that mark packets, of this process or another.
fn is_trace(table: &str) -> bool {
    table.starts_with(TABLE_PREFIX)
}

impl Netlink {
    /// Deletes the tables of processes that are gone. Those that belong to a socket are not ours to
    /// delete, and need not be.
    fn remove_stale_traces(&mut self) -> Result<(), ApplyError> {
        for neighbour in self.neighbours()? {
            let process = neighbour.table.strip_prefix(TABLE_PREFIX);
            let is_stale = process
                .is_some_and(|process| !std::path::Path::new("/proc").join(process).exists());
            if is_stale {
                // Whatever keeps it from being deleted, it keeps nobody from tracing.
                let _ = match neighbour.family {
                    "ip" => self.delete_table::<V4>(&neighbour.table),
                    "ip6" => self.delete_table::<V6>(&neighbour.table),
                    _ => Ok(()),
                };
            }
        }
        Ok(())
    }

    /// Makes the table that marks packets.
    fn send_trace<F: Family>(
        &mut self,
        table: &str,
        flags: u32,
        flow: &Flow,
    ) -> Result<(), ApplyError> {
        let mut batch = SmallBatch::<F>::new();
        let create = NLM_F_CREATE | NLM_F_EXCL;
        batch.message(NFT_MSG_NEWTABLE, create, |out| {
            put_str(out, NFTA_TABLE_NAME, table);
            put(out, NFTA_TABLE_FLAGS, &flags.to_be_bytes());
        });
        for (chain, hook) in CHAINS {
            batch.message(NFT_MSG_NEWCHAIN, create, |out| {
                put_str(out, NFTA_CHAIN_TABLE, table);
                put_str(out, NFTA_CHAIN_NAME, chain);
                let nest = begin_nest(out, NFTA_CHAIN_HOOK);
                put(out, NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
                put(out, NFTA_HOOK_PRIORITY, &PRIORITY.to_be_bytes());
                end_nest(out, nest);
                put_str(out, NFTA_CHAIN_TYPE, "filter");
            });
        }
        for (at, (chain, _)) in CHAINS.iter().enumerate() {
            let ack = if at + 1 == CHAINS.len() { NLM_F_ACK } else { 0 };
            batch.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND | ack, |out| {
                put_str(out, NFTA_RULE_TABLE, table);
                put_str(out, NFTA_RULE_CHAIN, chain);
                let nest = begin_nest(out, NFTA_RULE_EXPRESSIONS);
                mark::<F>(out, flow);
                end_nest(out, nest);
            });
        }
        let operations = [
            Operation::Table(Verb::Add),
            Operation::Batch,
            Operation::Batch,
            Operation::Batch,
            Operation::Batch,
        ];
        self.send_small(batch, &operations)
    }

    fn rule_numbers<F: Family>(
        &mut self,
    ) -> Result<BTreeMap<(String, String, u64), usize>, ApplyError> {
        let mut numbers = BTreeMap::new();
        let mut counts = BTreeMap::<(String, String), usize>::new();
        self.dump::<F>(
            NFT_MSG_GETRULE,
            "rules",
            |_| {},
            |rule| {
                let table = find(rule, NFTA_RULE_TABLE).and_then(string);
                let chain = find(rule, NFTA_RULE_CHAIN).and_then(string);
                let handle = find(rule, NFTA_RULE_HANDLE).and_then(be64);
                let (Some(table), Some(chain), Some(handle)) = (table, chain, handle) else {
                    return;
                };
                let count = counts.entry((table.into(), chain.into())).or_default();
                numbers.insert((table.into(), chain.into(), handle), *count);
                *count += 1;
            },
        )?;
        Ok(numbers)
    }
}

/// Chains with the numbers of their hooks, `NF_INET_PRE_ROUTING` and `NF_INET_LOCAL_OUT`.
const CHAINS: [(&str, u32); 2] = [("prerouting", 0), ("output", 3)];

/// `ct state new ip saddr … ip daddr … meta l4proto … th dport … meta nftrace set 1`
fn mark<F: Family>(out: &mut Vec<u8>, flow: &Flow) {
    const REGISTER: u32 = 1;
    const NFT_META_NFTRACE: u32 = 12;
    /// `NF_CT_STATE_BIT(IP_CT_NEW)`
    const NEW: u32 = 1 << 3;
    let payload = |out: &mut Vec<u8>, base, offset, with: &[u8]| {
        load(out, REGISTER, base, offset, with.len() as u32);
        compare(out, REGISTER, NFT_CMP_EQ, with);
    };
    expression(out, "ct", |out| {
        number(out, 1, REGISTER);
        number(out, 2, 0);
    });
    has_bit(out, REGISTER, NEW);
    let ends = [
        (F::SADDR_OFFSET, flow.source),
        (F::DADDR_OFFSET, Some(flow.destination)),
    ];
    for (offset, ip) in ends {
        if let Some(address) = ip.and_then(F::address) {
            let mut bytes = Vec::new();
            F::write_address(address, &mut bytes);
            payload(out, NFT_PAYLOAD_NETWORK_HEADER, offset, &bytes);
        }
    }
    expression(out, "meta", |out| {
        number(out, 1, REGISTER);
        number(out, 2, NFT_META_L4PROTO);
    });
    compare(out, REGISTER, NFT_CMP_EQ, &[flow.protocol.number()]);
    payload(
        out,
        NFT_PAYLOAD_TRANSPORT_HEADER,
        2,
        &flow.port.to_be_bytes(),
    );
    expression(out, "immediate", |out| {
        number(out, 1, REGISTER);
        value(out, 2, &[1]);
    });
    expression(out, "meta", |out| {
        number(out, 2, NFT_META_NFTRACE);
        number(out, 3, REGISTER);
    });
}
