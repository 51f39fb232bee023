//! The real kernel, over netlink: libmnl's socket, libnftnl's objects, no `nft` program.

mod attribute;
mod constants;
mod decode;
mod encode;
mod ffi;
mod userdata;

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use self::attribute::{
    HEADER_LEN, NFGENMSG_LEN, attributes, be32, begin_message, end_message, find, messages,
    put_str, string,
};
use self::constants::*;
use self::decode::{Decoder, decode_element, our_table};
use super::{ApplyError, Committed, Kernel};
use crate::diff::{Delta, Observed};
use crate::model::{Family, IpFamily};
use crate::ruleset::element::Element;
use crate::ruleset::name::{SetName, TABLE};
use crate::ruleset::schema::schema;

/// The kernel's dumps fill buffers of up to 32 KiB, and each buffer costs it a walk from the start
/// of the set; larger ones are not used.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// How often a listing is tried again because the ruleset changed meanwhile.
const LIST_ATTEMPTS: usize = 10;
/// Answers to a batch are there when it has been sent; this only guards against none at all.
const ANSWER_TIMEOUT_SECONDS: i64 = 10;
/// The error numbers that say so by name.
const DUMP_INTERRUPTED: i32 = Errno::EINTR as i32;

/// A connection to the kernel's nf_tables, in the network namespace of the thread that opened it.
pub struct Netlink {
    socket: ffi::Socket,
    buffer: Vec<u8>,
    sequence: u32,
    /// Whether elements can be deleted that may not exist.
    can_destroy: bool,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink")
            .field("fd", &self.socket.descriptor().as_raw_fd())
            .finish_non_exhaustive()
    }
}

fn nfproto(family: IpFamily) -> u16 {
    match family {
        IpFamily::V4 => NFPROTO_IPV4,
        IpFamily::V6 => NFPROTO_IPV6,
    }
}

/// The kernel that can delete elements which may not exist.
const KERNEL_WITH_DESTROY: (u32, u32) = (6, 3);

fn kernel_is_at_least(wanted: (u32, u32)) -> bool {
    let Ok(name) = nix::sys::utsname::uname() else {
        return false;
    };
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= wanted,
        _ => false,
    }
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
        let socket = ffi::Socket::open().map_err(ApplyError::Open)?;
        // Errors with the name of what is wrong, and without a copy of the batch. Kernels that
        // lack an option do without.
        let _ = socket.enable(NETLINK_EXT_ACK);
        let _ = socket.enable(NETLINK_CAP_ACK);
        let timeout = TimeVal::seconds(ANSWER_TIMEOUT_SECONDS);
        setsockopt(&socket.descriptor(), sockopt::ReceiveTimeout, &timeout)
            .map_err(|errno| ApplyError::Open(errno.into()))?;
        Ok(Self {
            socket,
            buffer: vec![0; RECEIVE_BUFFER],
            sequence: 0,
            can_destroy: kernel_is_at_least(KERNEL_WITH_DESTROY),
        })
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
        self.sequence += 1;
        let sequence = self.sequence;
        let mut request = Vec::new();
        let message_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN;
        let start = begin_message(&mut request, message_type, NLM_F_REQUEST, sequence, [0; 4]);
        end_message(&mut request, start);
        self.send(&request)?;
        let bytes = self.receive(MsgFlags::empty())?.unwrap_or_default();
        let answer = messages(bytes)
            .find(|message| message.sequence == sequence)
            .and_then(|message| be32(find(message.body.get(NFGENMSG_LEN..)?, NFTA_GEN_ID)?));
        Ok(answer)
    }

    /// Asks for all objects of a kind in the family, and calls `take` with the attributes of each.
    fn dump<F: Family>(
        &mut self,
        message_type: u16,
        what: &str,
        restrict: impl Fn(&mut Vec<u8>),
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), ApplyError> {
        self.sequence += 1;
        let sequence = self.sequence;
        let mut request = Vec::new();
        let nfgenmsg = [nfproto(F::FAMILY) as u8, 0, 0, 0];
        let message_type = NFNL_SUBSYS_NFTABLES << 8 | message_type;
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        let start = begin_message(&mut request, message_type, flags, sequence, nfgenmsg);
        restrict(&mut request);
        end_message(&mut request, start);
        self.send(&request)?;
        let mut interrupted = false;
        loop {
            let bytes = self.receive(MsgFlags::empty())?.unwrap_or_default();
            if bytes.is_empty() {
                return Err(ApplyError::Malformed {
                    request: format!("a request for {what}"),
                });
            }
            for message in messages(bytes).filter(|message| message.sequence == sequence) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.message_type {
                    NLMSG_DONE if interrupted => {
                        return Err(ApplyError::Receive(io::Error::from_raw_os_error(
                            DUMP_INTERRUPTED,
                        )));
                    }
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let errno = read_refusal(message.body).map_or(0, |(errno, _)| errno);
                        return Err(refused(F::FAMILY, format!("listing {what}"), None, errno));
                    }
                    _ => take(message.body.get(NFGENMSG_LEN..).unwrap_or_default()),
                }
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
        let error = |source| ApplyError::Send {
            bytes: bytes.len(),
            source,
        };
        match self.socket.send(bytes) {
            Ok(()) => Ok(()),
            // Larger than the send buffer, which the kernel accounts for as a whole.
            Err(source) if source.raw_os_error() == Some(Errno::EMSGSIZE as i32) => {
                self.raise_send_buffer(bytes.len() * 2 + 4096)
                    .map_err(error)?;
                self.socket.send(bytes).map_err(error)
            }
            Err(source) => Err(error(source)),
        }
    }

    fn raise_send_buffer(&self, size: usize) -> io::Result<()> {
        let descriptor = self.socket.descriptor();
        // Beyond net.core.wmem_max only the privileged way works, and that needs CAP_NET_ADMIN in
        // the initial user namespace.
        setsockopt(&descriptor, sockopt::SndBufForce, &size)
            .or_else(|_| setsockopt(&descriptor, sockopt::SndBuf, &size))
            .map_err(io::Error::from)
    }

    /// Receives one datagram; `None` if there is none, when asked not to wait.
    fn receive(&mut self, flags: MsgFlags) -> Result<Option<&[u8]>, ApplyError> {
        loop {
            match recv(
                self.socket.descriptor().as_raw_fd(),
                &mut self.buffer,
                flags,
            ) {
                Ok(length) => return Ok(Some(&self.buffer[..length])),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if flags.contains(MsgFlags::MSG_DONTWAIT) => return Ok(None),
                Err(errno) => return Err(ApplyError::Receive(errno.into())),
            }
        }
    }

    /// Reads all answers to a batch. The kernel has handled it by the time it is sent.
    fn answers(&mut self, acknowledged: u32) -> Result<Vec<Refusal>, ApplyError> {
        let mut refusals = Vec::new();
        let mut flags = MsgFlags::empty();
        let mut is_acknowledged = false;
        while let Some(bytes) = self.receive(flags)? {
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

    fn send_batch<F: Family>(&mut self, delta: &Delta<F>) -> Result<Committed, ApplyError> {
        let batch = encode::batch(delta, self.can_destroy);
        self.send(&batch.bytes)?;
        let refusals = self.answers(batch.acknowledged)?;
        match refusals.into_iter().next() {
            None => Ok(Committed {
                bytes: batch.bytes.len(),
                messages: batch.messages(),
            }),
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
        self.send_batch(delta)
    }
}

/// The error number of an `NLMSG_ERROR`, and the length of the copy of the request that follows.
fn read_refusal(body: &[u8]) -> Option<(i32, usize)> {
    let errno = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    // With NETLINK_CAP_ACK, just the header is copied.
    Some((-errno, HEADER_LEN))
}

fn refused(family: IpFamily, operation: String, message: Option<String>, errno: i32) -> ApplyError {
    let whole_batch = operation.starts_with("the batch") || operation.starts_with("listing");
    match Errno::from_raw(errno) {
        Errno::EPERM | Errno::EACCES => ApplyError::NotPermitted,
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EINVAL
            if whole_batch =>
        {
            ApplyError::Unsupported(family)
        }
        code => {
            let missing_expression = (code == Errno::ENOENT && operation.contains("rule"))
                .then(|| "this kernel may lack an expression that the rule needs".to_owned());
            let source = io::Error::from_raw_os_error(errno);
            ApplyError::Refused {
                family,
                operation,
                hint: message.or(missing_expression),
                source,
            }
        }
    }
}
