//! The real kernel, over netlink: libmnl's socket, libnftnl's objects, no `nft` program.

pub(crate) mod attribute;
pub mod conntrack;
mod constants;
mod counters;
mod decode;
mod details;
mod encode;
mod ffi;
mod flow_trace;
#[cfg(fuzzing)]
pub mod fuzz;
mod gone;
mod hold;
mod list;
mod monitor;
mod namespace;
mod neighbours;
mod part;
mod predecessor;
mod probe;
mod remove;
mod small;
mod socket;
mod userdata;

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};
use std::time::Instant;

use nix::sys::socket::MsgFlags;

use self::attribute::{attributes, find, messages, string};
use self::constants::*;
pub use self::encode::Batch;
pub use self::flow_trace::{Flow, FlowStep, FlowTrace};
pub use self::gone::GoneTable;
use self::monitor::Subscription;
pub use self::monitor::{Monitor, Reader};
pub use self::part::Part;
pub use self::probe::Lack;
use self::socket::{Connection, read_refusal, refused};
use super::{ApplyError, Committed, Kernel, Scope};
use crate::compile::{Learned, Remembered};
use crate::diff::{Delta, Observed};
use crate::model::{Family, IpFamily};
use crate::ruleset::Table;
use crate::ruleset::element::Element;

/// A connection to the kernel's nf_tables, for one table of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    connection: Connection,
    table: Arc<Table>,
    /// Whether elements can be deleted that may not exist, once it has been tried.
    can_destroy: Option<bool>,
    /// Whether the table is to be held by this socket.
    holds: bool,
    /// Whoever listens to what is committed, and need not hear what we do.
    subscription: Weak<Subscription>,
}

/// From so many operations on, a batch is not worth being told of: that costs the kernel a message
/// for each.
const HUSHED_FROM: usize = 1000;

fn nfproto(family: IpFamily) -> u16 {
    match family {
        IpFamily::V4 => NFPROTO_IPV4,
        IpFamily::V6 => NFPROTO_IPV6,
    }
}

/// Gives memory back to the system that only a large sync needed. The C library keeps it otherwise;
/// with another allocator this does nothing.
///
/// It takes about a millisecond for each 10 MB of heap.
pub fn trim_heap() {
    ffi::trim_heap();
}

/// Has all threads that start from now on share one heap, so that what one frees another can use:
/// events come from one thread and are stored by another. With another C library than that of GNU
/// this does nothing.
pub fn share_heap() {
    ffi::share_heap();
}

/// An `NLMSG_ERROR`.
struct Refusal {
    sequence: u32,
    errno: i32,
    message: Option<String>,
    offset: Option<usize>,
}

impl Netlink {
    /// Opens a socket for the default table, in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Open`] if there is none to be had; a retry does not help.
    pub fn open() -> Result<Self, ApplyError> {
        Self::open_table(Table::default(), None)
    }

    /// Opens a socket for a table, in a network namespace: that of the descriptor (`/run/netns/…`,
    /// `/proc/PID/ns/net`), else that of this thread.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Open`] if there is none to be had, [`ApplyError::Namespace`] if the namespace
    /// cannot be entered; a retry does not help.
    pub fn open_table(table: Table, namespace: Option<BorrowedFd<'_>>) -> Result<Self, ApplyError> {
        Ok(Self {
            connection: namespace::within(namespace, Connection::open)?,
            table: Arc::new(table),
            can_destroy: None,
            holds: false,
            subscription: Weak::new(),
        })
    }

    /// The table that is listed and changed.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Checks that the kernel has nf_tables for the family, and that we may use it.
    ///
    /// It costs the same however much the table holds.
    ///
    /// # Errors
    ///
    /// As [`Kernel::list`].
    pub fn check<F: Family>(&mut self) -> Result<(), ApplyError> {
        self.dump::<F>(NFT_MSG_GETTABLE, "table", |_| {}, |_| {})
    }

    /// Asks for all nf_tables objects of a kind in the family.
    fn dump<F: Family>(
        &mut self,
        message_type: u16,
        what: &str,
        restrict: impl Fn(&mut Vec<u8>),
        take: impl FnMut(&[u8]),
    ) -> Result<(), ApplyError> {
        let message_type = NFNL_SUBSYS_NFTABLES << 8 | message_type;
        self.connection
            .dump(F::FAMILY, message_type, what, restrict, take)
            .map_err(|error| self.of_table(error))
    }

    /// An error with the table that it is about.
    fn of_table(&self, mut error: ApplyError) -> ApplyError {
        if let ApplyError::Refused(refusal) = &mut error {
            refusal.table = Some(self.table.name().into());
        }
        error
    }

    /// Reads all answers to a batch. The kernel has handled it by the time it is sent.
    fn answers(&mut self, acknowledged: u32) -> Result<Vec<Refusal>, ApplyError> {
        let mut refusals = Vec::new();
        let mut flags = MsgFlags::empty();
        let mut is_acknowledged = false;
        while let Some(bytes) = self.connection.receive(flags)? {
            for message in messages(bytes).filter(|message| message.message_type == NLMSG_ERROR) {
                let Some((errno, original_length)) = read_refusal(message.body) else {
                    continue;
                };
                if errno == 0 {
                    is_acknowledged |= message.sequence == acknowledged;
                    continue;
                }
                let tlvs = if message.flags & NLM_F_ACK_TLVS == 0 {
                    &[][..]
                } else {
                    message.body.get(4 + original_length..).unwrap_or_default()
                };
                refusals.push(Refusal {
                    sequence: message.sequence,
                    errno,
                    message: find(tlvs, NLMSGERR_ATTR_MSG)
                        .and_then(string)
                        .map(Into::into),
                    // In host byte order, unlike what nf_tables itself sends.
                    offset: attributes(tlvs)
                        .find(|(attribute, _)| *attribute == NLMSGERR_ATTR_OFFS)
                        .and_then(|(_, offset)| {
                            Some(u32::from_ne_bytes(offset.try_into().ok()?) as usize)
                        }),
                });
            }
            flags = MsgFlags::MSG_DONTWAIT;
        }
        if refusals.is_empty() && !is_acknowledged {
            return Err(ApplyError::Malformed {
                request: "a batch".into(),
            });
        }
        Ok(refusals)
    }

    /// Encodes a delta for this kernel, as far as it is known.
    pub fn encode<F: Family>(&self, delta: &Delta<F>) -> Batch {
        let can_destroy = self.can_destroy == Some(true);
        encode::batch(delta, &self.table, can_destroy, self.holds)
    }

    /// Sends a batch that a delta was encoded as, as [`Kernel::commit`] does: if it is large, without
    /// having the kernel tell us of it. Returns whether somebody else may have committed meanwhile, of
    /// which nothing will be heard.
    ///
    /// # Errors
    ///
    /// As [`Kernel::commit`].
    pub fn send_unheard<F: Family>(
        &mut self,
        batch: &Batch,
        delta: &Delta<F>,
    ) -> Result<bool, ApplyError> {
        if delta.counts().operations() <= HUSHED_FROM && delta.take_over.is_none() {
            self.send(batch, delta)?;
            return Ok(false);
        }
        let Some(subscription) = self.subscription.upgrade() else {
            self.send(batch, delta)?;
            return Ok(false);
        };
        let before = self.ask_generation()?;
        let sent = subscription
            .hush(|| self.send(batch, delta))
            .map_err(ApplyError::Receive)?;
        sent?;
        let after = self.ask_generation()?;
        Ok(before.map(|before| before.wrapping_add(1)) != after)
    }

    /// Sends the batch that a delta was encoded as, which the kernel applies wholly or not at all.
    ///
    /// # Errors
    ///
    /// As [`Kernel::commit`].
    pub fn send<F: Family>(&mut self, batch: &Batch, delta: &Delta<F>) -> Result<(), ApplyError> {
        self.connection.send(&batch.bytes)?;
        let refusals = self.answers(batch.acknowledged)?;
        match refusals.into_iter().next() {
            None => Ok(()),
            Some(refusal) => {
                let Refusal {
                    sequence,
                    errno,
                    message,
                    offset,
                } = refusal;
                let operation = batch.explain(delta, sequence, offset);
                let mut error = refused(F::FAMILY, operation, message, errno);
                if let ApplyError::Refused(refusal) = &mut error {
                    refusal.culprit = batch.culprit(sequence, offset);
                }
                Err(self.of_table(error))
            }
        }
    }
}

impl<F: Family> Kernel<F> for Netlink {
    fn list(&mut self) -> Result<Option<Observed<F>>, ApplyError> {
        self.list_table(&Scope::Everything)
    }

    fn list_part(&mut self, scope: &Scope) -> Result<Option<Observed<F>>, ApplyError> {
        self.list_table(scope)
    }

    fn list_affinity(&mut self) -> Result<Vec<Element<F>>, ApplyError> {
        self.list_learned()
    }

    fn list_memory(&mut self) -> Result<Vec<Remembered<F>>, ApplyError> {
        self.list_remembered()
    }

    fn list_predecessor(&mut self, table: &Table) -> Result<Option<Vec<Learned<F>>>, ApplyError> {
        self.list_predecessors_memory(table)
    }

    fn holds(&self) -> bool {
        self.holds
    }

    fn generation(&mut self) -> Result<Option<u32>, ApplyError> {
        self.ask_generation()
    }

    fn commit(&mut self, delta: &Delta<F>) -> Result<Committed, ApplyError> {
        if delta.is_empty() {
            return Ok(Committed::default());
        }
        if !delta.forget.is_empty() {
            self.can_destroy()?;
        }
        let start = Instant::now();
        let batch = self.encode(delta);
        let encode = start.elapsed();
        let is_overheard = self.send_unheard(&batch, delta)?;
        Ok(Committed {
            bytes: batch.bytes.len(),
            messages: batch.messages(),
            encode,
            kernel: start.elapsed() - encode,
            is_overheard,
        })
    }
}
