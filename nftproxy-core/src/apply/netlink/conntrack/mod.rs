//! Deletes connection tracking entries that lead flows astray.
//!
//! A flow that the kernel knows keeps going where it went, which for UDP may be for ever: the rules
//! see its first packet only. [`StaleFlows`] says which flows of a destination are to be forgotten,
//! so that their next packet meets the rules again.
//! Flows that nobody has answered, of whatever protocol, are forgotten by range.

mod walk;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

use super::attribute::{be32, begin_message, end_message, find, messages};
use super::constants::*;
use super::socket::{Connection, DUMP_INTERRUPTED, read_refusal};
use super::{namespace, nfproto};
use crate::apply::{ApplyError, Operation, Refusal};
use crate::compile::StaleFlows;
use crate::model::{Family, IpFamily};
use walk::Size;
use wire::{Filter, read_entry, write_filter};

/// How often a dump is tried again because the table changed meanwhile.
const DUMP_ATTEMPTS: usize = 10;
/// Deletions per datagram.
const DELETIONS_PER_DATAGRAM: usize = 256;

/// A connection to the kernel's connection tracking, in one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    connection: Connection,
    ipv6_filter: AddressFilter,
}

/// What the kernel makes of an IPv6 address that it is asked for.
///
/// Kernels from 5.8 on hand over all entries but those to it, at least up to 6.18. What comes back
/// tells, so that no list of kernels has to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AddressFilter {
    /// Nothing has come back yet.
    Unknown,
    /// Entries to it.
    Right,
    /// Others.
    Wrong,
}

impl AddressFilter {
    /// What is known after an answer with so many entries to the address, and to others; and
    /// whether that answer was all there is.
    fn learn(self, n_wanted: usize, n_others: usize) -> (Self, bool) {
        match (n_wanted, n_others) {
            (_, 1..) => (Self::Wrong, false),
            (1.., 0) => (Self::Right, true),
            (0, 0) => (self, self == Self::Right),
        }
    }
}

/// How full connection tracking is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Entries that there are.
    pub entries: u32,
    /// Entries that there may be, in all network namespaces; connections beyond are dropped. Kernels
    /// before 4.18 do not say.
    pub max: Option<u32>,
}

/// A flow that the kernel knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow<F: Family> {
    /// Address that its packets come from.
    pub source: F::Address,
    /// Whether anything came back.
    pub is_answered: bool,
    /// Address and port that its packets are sent to.
    pub destination: (F::Address, NonZeroU16),
    /// Address and port that answers come from: an endpoint, or the destination itself.
    pub reply_source: (F::Address, u16),
    /// The attributes that name it, as the kernel wrote them.
    identity: Vec<u8>,
}

impl<F: Family> Flow<F> {
    /// Whether it is one that must not stay.
    pub fn is_stale(&self, flows: &StaleFlows<F>) -> bool {
        flows.condemn(self.source, self.is_answered, self.reply_source)
    }
}

impl Conntrack {
    /// Opens a socket in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Open`] if there is none to be had; a retry does not help.
    pub fn open() -> Result<Self, ApplyError> {
        Self::open_in(None)
    }

    /// Opens a socket in a network namespace: that of the descriptor, else that of this thread.
    ///
    /// # Errors
    ///
    /// As [`Netlink::open_table`](super::Netlink::open_table).
    pub fn open_in(namespace: Option<BorrowedFd<'_>>) -> Result<Self, ApplyError> {
        Ok(Self {
            connection: namespace::within(namespace, Connection::open)?,
            ipv6_filter: AddressFilter::Unknown,
        })
    }

    /// Whether this kernel can be asked for the entries to one IPv6 address; `None` as long as no
    /// answer has told.
    pub fn filters_ipv6_addresses(&self) -> Option<bool> {
        match self.ipv6_filter {
            AddressFilter::Unknown => None,
            AddressFilter::Right => Some(true),
            AddressFilter::Wrong => Some(false),
        }
    }

    /// How full connection tracking is, in this network namespace.
    ///
    /// # Errors
    ///
    /// [`ApplyError::NoConntrack`] if this kernel cannot be asked for connections.
    pub fn usage(&mut self) -> Result<Usage, ApplyError> {
        let message_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS;
        let mut usage = Usage {
            entries: 0,
            max: None,
        };
        let what = "the state of connection tracking";
        self.connection.get(
            IpFamily::V4,
            message_type,
            what,
            |_| {},
            |stats| {
                let number = |attribute| find(stats, attribute).and_then(be32);
                usage = Usage {
                    entries: number(CTA_STATS_GLOBAL_ENTRIES).unwrap_or_default(),
                    max: number(CTA_STATS_GLOBAL_MAX_ENTRIES),
                };
            },
        )?;
        Ok(usage)
    }

    /// Finds the flows that are stale.
    ///
    /// Rules may change while this looks: before [`Conntrack::delete`], judge once more by what
    /// holds then.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked; it may be tried again.
    pub fn find_stale<F: Family>(
        &mut self,
        stale: &[StaleFlows<F>],
    ) -> Result<Vec<Flow<F>>, ApplyError> {
        let by_destination: BTreeMap<_, _> = stale
            .iter()
            .map(|flows| ((flows.address, flows.port), flows))
            .collect();
        let mut found = Vec::new();
        let mut judge = |flow: Flow<F>| {
            let flows = by_destination.get(&flow.destination);
            if flows.is_some_and(|flows| flow.is_stale(flows)) {
                found.push(flow);
            }
        };
        if by_destination.len() > 1 {
            let size = Size::new(self.usage()?.entries);
            if size.is_one_walk_cheaper(by_destination.len()) {
                self.dump(one_walk(by_destination.keys().copied()), &mut judge)?;
                return Ok(found);
            }
        }
        // Ports of which all entries have been seen, whatever their address.
        let mut seen = BTreeSet::new();
        for (address, port) in by_destination.keys() {
            if seen.contains(port) || self.dump_destination(*address, *port, &mut judge)? {
                continue;
            }
            self.dump::<F>(Filter::Destination(None, *port), &mut judge)?;
            seen.insert(*port);
        }
        Ok(found)
    }

    /// Calls `take` with each UDP entry to an address and port. Returns whether it could: where the
    /// kernel cannot be asked for the address, it has to be asked for the port alone.
    fn dump_destination<F: Family>(
        &mut self,
        address: F::Address,
        port: NonZeroU16,
        take: &mut impl FnMut(Flow<F>),
    ) -> Result<bool, ApplyError> {
        let is_v4 = F::FAMILY == IpFamily::V4;
        if !is_v4 && self.ipv6_filter == AddressFilter::Wrong {
            return Ok(false);
        }
        let mut wanted = Vec::new();
        let mut n_others = 0;
        self.dump::<F>(Filter::Destination(Some(address), port), &mut |flow| {
            if flow.destination.0 == address {
                wanted.push(flow);
            } else {
                n_others += 1;
            }
        })?;
        let (learned, is_complete) = self.ipv6_filter.learn(wanted.len(), n_others);
        if !is_v4 {
            self.ipv6_filter = learned;
            if !is_complete {
                return Ok(false);
            }
        }
        wanted.into_iter().for_each(take);
        Ok(true)
    }

    /// Finds the flows of TCP, UDP and SCTP into these ranges (address, prefix length) that nobody
    /// has ever answered or translated. Packets of such a flow never meet the rules again; once it is
    /// deleted, they do: a client of TCP that has heard nothing sends its first packet again and
    /// again.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked; it may be tried again.
    pub fn find_one_way<F: Family>(
        &mut self,
        ranges: &[(F::Address, u8)],
    ) -> Result<Vec<Flow<F>>, ApplyError> {
        let ranges = Ranges::<F>::new(ranges);
        let mut found = Vec::new();
        self.dump::<F>(Filter::Unanswered, &mut |flow: Flow<F>| {
            let (address, port) = flow.destination;
            let is_untranslated = flow.reply_source == (address, port.get());
            if !flow.is_answered && is_untranslated && ranges.contain(address) {
                found.push(flow);
            }
        })?;
        Ok(found)
    }

    /// Deletes the entries of flows. One that is gone already is no error.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; some may be deleted then.
    pub fn delete<F: Family>(&mut self, flows: &[Flow<F>]) -> Result<(), ApplyError> {
        flows
            .chunks(DELETIONS_PER_DATAGRAM)
            .try_for_each(|chunk| self.delete_some(chunk))
    }

    /// Calls `take` with each entry that the filter lets through; others may come as well, or
    /// twice.
    fn dump<F: Family>(
        &mut self,
        filter: Filter<F>,
        take: &mut impl FnMut(Flow<F>),
    ) -> Result<(), ApplyError> {
        let message_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
        for _ in 0..DUMP_ATTEMPTS {
            let restrict = |out: &mut Vec<u8>| write_filter::<F>(filter, out);
            let result = self.connection.dump(
                F::FAMILY,
                message_type,
                "connection tracking entries",
                restrict,
                |message| {
                    let entry = read_entry::<F>(message, filter.protocols());
                    entry.into_iter().for_each(&mut *take);
                },
            );
            match result {
                Err(ApplyError::Receive(error))
                    if error.raw_os_error() == Some(DUMP_INTERRUPTED) => {}
                result => return result,
            }
        }
        Err(ApplyError::Unstable)
    }

    fn delete_some<F: Family>(&mut self, flows: &[Flow<F>]) -> Result<(), ApplyError> {
        let mut request = Vec::new();
        for Flow { identity, .. } in flows {
            let nfgenmsg = [nfproto(F::FAMILY) as u8, 0, 0, 0];
            let message_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE;
            let sequence = self.connection.next_sequence();
            let start = begin_message(
                &mut request,
                message_type,
                NLM_F_REQUEST,
                sequence,
                nfgenmsg,
            );
            request.extend_from_slice(identity);
            end_message(&mut request, start);
        }
        self.connection.send(&request)?;
        while let Some(bytes) = self.connection.receive(MsgFlags::MSG_DONTWAIT)? {
            let errors = messages(bytes).filter(|message| message.message_type == NLMSG_ERROR);
            for (errno, _) in errors.filter_map(|message| read_refusal(message.body)) {
                if errno != 0 && errno != Errno::ENOENT as i32 {
                    return Err(ApplyError::Refused(Box::new(Refusal {
                        family: F::FAMILY,
                        table: None,
                        operation: Operation::Flow,
                        service_port: None,
                        kernel_message: None,
                        culprit: None,
                        source: std::io::Error::from_raw_os_error(errno),
                    })));
                }
            }
        }
        Ok(())
    }
}

/// Addresses that many are looked up in: first and last of each range, disjoint, in order.
struct Ranges<F: Family>(Vec<(F::Address, F::Address)>);

impl<F: Family> Ranges<F> {
    /// Of prefixes (address, length), in any order.
    fn new(prefixes: &[(F::Address, u8)]) -> Self {
        let whole = |(first, len): &(_, _)| (*first, F::last_of_prefix(*first, *len));
        let mut ranges: Vec<_> = prefixes.iter().map(whole).collect();
        // Prefixes are disjoint, or one is within the other, which comes later then.
        ranges.sort_by_key(|(first, last)| (*first, std::cmp::Reverse(*last)));
        ranges.dedup_by(|inner, outer| inner.1 <= outer.1);
        Self(ranges)
    }

    fn contain(&self, address: F::Address) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= address);
        let before = after.checked_sub(1).map(|at| self.0[at]);
        before.is_some_and(|(_, last)| address <= last)
    }
}

/// The filter that lets the entries to all of these destinations through.
fn one_walk<F: Family>(destinations: impl Iterator<Item = (F::Address, NonZeroU16)>) -> Filter<F> {
    let ports: BTreeSet<_> = destinations.map(|(_, port)| port).collect();
    match ports.first() {
        Some(port) if ports.len() == 1 => Filter::Destination(None, *port),
        _ => Filter::None,
    }
}

/// Reads an entry, for fuzzing only.
#[cfg(fuzzing)]
pub(super) fn read_any<F: Family>(message: &[u8]) {
    drop(read_entry::<F>(
        message,
        Filter::<F>::Unanswered.protocols(),
    ));
}

#[cfg(test)]
mod tests {
    use super::AddressFilter::{self, Right, Unknown, Wrong};
    use super::Ranges;
    use crate::model::V4;

    #[test]
    fn ranges_may_be_within_others() {
        let prefixes = [
            ([10, 97, 0, 0].into(), 16),
            ([10, 96, 1, 0].into(), 24),
            ([10, 96, 0, 0].into(), 16),
            ([192, 0, 2, 1].into(), 32),
        ];
        let ranges = Ranges::<V4>::new(&prefixes);
        assert_eq!(ranges.0.len(), 3);
        for inside in [
            [10, 96, 0, 0],
            [10, 96, 255, 255],
            [10, 97, 1, 1],
            [192, 0, 2, 1],
        ] {
            assert!(ranges.contain(inside.into()), "{inside:?}");
        }
        for outside in [
            [0, 0, 0, 0],
            [10, 95, 255, 255],
            [10, 98, 0, 0],
            [192, 0, 2, 2],
        ] {
            assert!(!ranges.contain(outside.into()), "{outside:?}");
        }
        assert!(!Ranges::<V4>::new(&[]).contain([10, 96, 0, 0].into()));
    }

    #[test]
    fn an_address_filter_is_known_by_what_comes_back() {
        // Nothing proves nothing: there may be no entry, or none but those asked for.
        assert_eq!(Unknown.learn(0, 0), (Unknown, false));
        assert_eq!(Unknown.learn(2, 0), (Right, true));
        assert_eq!(Unknown.learn(0, 3), (Wrong, false));
        // Kernels before 5.8 do not filter at all.
        assert_eq!(Unknown.learn(1, 3), (Wrong, false));
        assert_eq!(Right.learn(0, 0), (Right, true));
        for state in [Unknown, Right, Wrong] {
            let (after, is_complete): (AddressFilter, _) = state.learn(0, 1);
            assert_eq!((after, is_complete), (Wrong, false));
        }
    }
}
