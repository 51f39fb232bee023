//! The real kernel, over netlink: libmnl's socket, libnftnl's objects, no `nft` program.

mod attribute;
pub mod conntrack;
mod constants;
mod decode;
mod encode;
mod ffi;
mod socket;
mod userdata;

use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

use self::attribute::{
    NFGENMSG_LEN, attributes, be32, begin_message, end_message, find, messages, put_str, string,
};
use self::constants::*;
use self::decode::{Decoder, decode_element, our_table};
pub use self::encode::Batch;
use self::socket::{Connection, DUMP_INTERRUPTED, read_refusal, refused};
use super::{ApplyError, Committed, Kernel};
use crate::diff::{Delta, Observed};
use crate::model::{Family, IpFamily};
use crate::ruleset::element::Element;
use crate::ruleset::name::{SetName, TABLE};
use crate::ruleset::schema::schema;

/// How often a listing is tried again because the ruleset changed meanwhile.
const LIST_ATTEMPTS: usize = 10;
/// A connection to the kernel's nf_tables, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    connection: Connection,
    /// Whether elements can be deleted that may not exist.
    can_destroy: bool,
}

fn nfproto(family: IpFamily) -> u16 {
    match family {
        IpFamily::V4 => NFPROTO_IPV4,
        IpFamily::V6 => NFPROTO_IPV6,
    }
}

/// The kernel that can delete elements which may not exist.
const KERNEL_WITH_DESTROY: (u32, u32) = (6, 3);

/// The major and minor version in a kernel's release, as `uname` has it: `6.1.0-13-amd64`.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kernel_is_at_least(wanted: (u32, u32)) -> bool {
    let Ok(name) = nix::sys::utsname::uname() else {
        return false;
    };
    kernel_version(&name.release().to_string_lossy()).is_some_and(|version| version >= wanted)
}

/// An `NLMSG_ERROR`.
struct Refusal {
    sequence: u32,
    errno: i32,
    message: Option<String>,
    offset: Option<usize>,
}

impl Netlink {
    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Open`] if there is none to be had; a retry does not help.
    pub fn open() -> Result<Self, ApplyError> {
        Ok(Self {
            connection: Connection::open()?,
            can_destroy: kernel_is_at_least(KERNEL_WITH_DESTROY),
        })
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

    fn try_list<F: Family>(&mut self) -> Result<Option<Observed<F>>, ApplyError> {
        let mut flags = None;
        self.dump::<F>(
            NFT_MSG_GETTABLE,
            "table",
            |_| {},
            |message| {
                flags = flags.or(our_table(message));
            },
        )?;
        let Some(flags) = flags else { return Ok(None) };

        let mut decoder = Decoder::default();
        if flags != 0 {
            decoder.foreign(format!("table flags {flags:#x}"));
        }
        self.dump::<F>(
            NFT_MSG_GETCHAIN,
            "chain",
            |_| {},
            |message| decoder.chain(message),
        )?;
        let table = |out: &mut Vec<u8>| put_str(out, NFTA_RULE_TABLE, TABLE);
        self.dump::<F>(NFT_MSG_GETRULE, "rule", table, |message| {
            decoder.rule(message)
        })?;
        let mut sets = Vec::new();
        let table = |out: &mut Vec<u8>| put_str(out, NFTA_SET_TABLE, TABLE);
        self.dump::<F>(NFT_MSG_GETSET, "set", table, |message| {
            sets.extend(decoder.set(message))
        })?;
        // What rules have learned is no part of the ruleset.
        sets.retain(|set| !schema(*set).is_dynamic());
        for set in sets {
            let of_set = |out: &mut Vec<u8>| {
                put_str(out, NFTA_SET_ELEM_LIST_TABLE, TABLE);
                put_str(out, NFTA_SET_ELEM_LIST_SET, set.as_str());
            };
            self.dump::<F>(NFT_MSG_GETSETELEM, set.as_str(), of_set, |message| {
                decoder.elements(set, message);
            })?;
        }
        Ok(Some(decoder.finish()))
    }

    /// The ruleset's generation: it changes with each commit of anybody.
    fn generation(&mut self) -> Result<Option<u32>, ApplyError> {
        let sequence = self.connection.next_sequence();
        let mut request = Vec::new();
        let message_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN;
        let start = begin_message(&mut request, message_type, NLM_F_REQUEST, sequence, [0; 4]);
        end_message(&mut request, start);
        self.connection.send(&request)?;
        let bytes = self
            .connection
            .receive(MsgFlags::empty())?
            .unwrap_or_default();
        let answer = messages(bytes)
            .find(|message| message.sequence == sequence)
            .and_then(|message| be32(find(message.body.get(NFGENMSG_LEN..)?, NFTA_GEN_ID)?));
        Ok(answer)
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

    /// Encodes a delta for this kernel.
    pub fn encode<F: Family>(&self, delta: &Delta<F>) -> Batch {
        encode::batch(delta, self.can_destroy)
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
                let operation = batch.explain(delta, refusal.sequence, refusal.offset);
                Err(refused(
                    F::FAMILY,
                    operation,
                    refusal.message,
                    refusal.errno,
                ))
            }
        }
    }
}

impl<F: Family> Kernel<F> for Netlink {
    fn list(&mut self) -> Result<Option<Observed<F>>, ApplyError> {
        for _ in 0..LIST_ATTEMPTS {
            let before = self.generation()?;
            match self.try_list() {
                Err(ApplyError::Receive(error))
                    if error.raw_os_error() == Some(DUMP_INTERRUPTED) => {}
                // An object went away between two dumps.
                Err(ApplyError::Refused { source, .. })
                    if source.raw_os_error() == Some(Errno::ENOENT as i32) => {}
                Ok(observed) if self.generation()? == before => return Ok(observed),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApplyError::Unstable)
    }

    fn list_affinity(&mut self) -> Result<Vec<Element<F>>, ApplyError> {
        let set = SetName::Affinity;
        let of_set = |out: &mut Vec<u8>| {
            put_str(out, NFTA_SET_ELEM_LIST_TABLE, TABLE);
            put_str(out, NFTA_SET_ELEM_LIST_SET, set.as_str());
        };
        for _ in 0..LIST_ATTEMPTS {
            let mut elements = Vec::new();
            let dump = self.dump::<F>(NFT_MSG_GETSETELEM, set.as_str(), of_set, |message| {
                let list = find(message, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                let decoded =
                    attributes(list).filter_map(|(_, element)| decode_element(set, element));
                elements.extend(decoded);
            });
            match dump {
                Ok(()) => return Ok(elements),
                Err(ApplyError::Receive(error))
                    if error.raw_os_error() == Some(DUMP_INTERRUPTED) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApplyError::Unstable)
    }

    fn commit(&mut self, delta: &Delta<F>) -> Result<Committed, ApplyError> {
        if delta.is_empty() {
            return Ok(Committed::default());
        }
        let start = Instant::now();
        let batch = self.encode(delta);
        let encode = start.elapsed();
        self.send(&batch, delta)?;
        Ok(Committed {
            bytes: batch.bytes.len(),
            messages: batch.messages(),
            encode,
            kernel: start.elapsed() - encode,
        })
    }
}
