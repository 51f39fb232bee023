//! A netfilter netlink socket: requests out, datagrams and dumps in, error numbers explained.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::attribute::{HEADER_LEN, NFGENMSG_LEN, begin_message, end_message, messages};
use super::constants::*;
use super::{ffi, nfproto};
use crate::apply::{ApplyError, Operation, Refusal};
use crate::model::IpFamily;

/// The kernel's dumps fill buffers of up to 32 KiB, and each buffer costs it a walk from the start
/// of the set; larger ones are not used.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// What the kernel accounts for one answer: a page for the text, and its own bookkeeping.
const ANSWER_MAX_LEN: usize = 8 * 1024;
/// The names of so many objects fit into an attribute, whose length has 16 bits.
const ANSWERS_MAX: usize = 1000;
/// Room for that many answers.
const ANSWERS_BUFFER: usize = ANSWERS_MAX * ANSWER_MAX_LEN;
/// Answers to a batch are there when it has been sent; this only guards against none at all.
const ANSWER_TIMEOUT_SECONDS: i64 = 10;
/// What a dump fails with if things changed while it was made; it may be tried again.
pub(super) const DUMP_INTERRUPTED: i32 = Errno::EINTR as i32;

/// A socket in the network namespace of the thread that opened it.
pub(super) struct Connection {
    socket: ffi::Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fd = self.socket.descriptor().as_raw_fd();
        f.debug_struct("Connection")
            .field("fd", &fd)
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn open() -> Result<Self, ApplyError> {
        let socket = ffi::Socket::open().map_err(ApplyError::Open)?;
        // Errors with the name of what is wrong, and without a copy of the batch. Kernels that
        // lack an option do without.
        let _ = socket.set_option(NETLINK_EXT_ACK, 1);
        let _ = socket.set_option(NETLINK_CAP_ACK, 1);
        // Beyond net.core.rmem_max only the privileged way works; less room means more requests.
        let _ = setsockopt(&socket.descriptor(), sockopt::RcvBufForce, &ANSWERS_BUFFER);
        let timeout = TimeVal::seconds(ANSWER_TIMEOUT_SECONDS);
        setsockopt(&socket.descriptor(), sockopt::ReceiveTimeout, &timeout)
            .map_err(|errno| ApplyError::Open(errno.into()))?;
        Ok(Self {
            socket,
            buffer: vec![0; RECEIVE_BUFFER],
            sequence: 0,
        })
    }

    /// The number that the kernel knows the socket by.
    pub(super) fn port_id(&self) -> u32 {
        self.socket.port_id()
    }

    /// A sequence number for the next request.
    pub(super) fn next_sequence(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    /// Asks for all objects of a kind (subsystem and message) in the family, and calls `take` with
    /// the attributes of each.
    pub(super) fn dump(
        &mut self,
        family: IpFamily,
        message_type: u16,
        what: &str,
        restrict: impl FnOnce(&mut Vec<u8>),
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), ApplyError> {
        let of = (family, nfproto(family) as u8);
        self.ask(
            of,
            message_type,
            NLM_F_DUMP,
            what,
            restrict,
            |_, message| {
                take(message);
            },
        )
    }

    /// Asks for all objects of a kind in all families, and calls `take` with the family
    /// (`NFPROTO_…`) and the attributes of each.
    pub(super) fn dump_all(
        &mut self,
        message_type: u16,
        what: &str,
        take: impl FnMut(u8, &[u8]),
    ) -> Result<(), ApplyError> {
        let of = (IpFamily::V4, NFPROTO_UNSPEC);
        self.ask(of, message_type, NLM_F_DUMP, what, |_| {}, take)
    }

    /// Asks for all objects of a kind in a family by its number (`NFPROTO_…`), and calls `take` with
    /// the attributes of each.
    pub(super) fn dump_of(
        &mut self,
        family: u8,
        message_type: u16,
        what: &str,
        restrict: impl FnOnce(&mut Vec<u8>),
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), ApplyError> {
        let of = (IpFamily::V4, family);
        self.ask(
            of,
            message_type,
            NLM_F_DUMP,
            what,
            restrict,
            |_, message| {
                take(message);
            },
        )
    }

    /// Asks for the objects that `name` writes, at most [`Connection::answers_at_once`], and calls
    /// `take` with the attributes of each.
    pub(super) fn get(
        &mut self,
        family: IpFamily,
        message_type: u16,
        what: &str,
        name: impl FnOnce(&mut Vec<u8>),
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), ApplyError> {
        let of = (family, nfproto(family) as u8);
        self.ask(of, message_type, NLM_F_ACK, what, name, |_, message| {
            take(message);
        })
    }

    /// How many answers to one request the receive buffer takes, at least. They are all there
    /// before the first can be received.
    pub(super) fn answers_at_once(&self) -> usize {
        let size = getsockopt(&self.socket.descriptor(), sockopt::RcvBuf).unwrap_or_default();
        (size / ANSWER_MAX_LEN).clamp(1, ANSWERS_MAX)
    }

    /// Asks about a family, by its number, or about all.
    fn ask(
        &mut self,
        (family, number): (IpFamily, u8),
        message_type: u16,
        flags: u16,
        what: &str,
        write: impl FnOnce(&mut Vec<u8>),
        mut take: impl FnMut(u8, &[u8]),
    ) -> Result<(), ApplyError> {
        let is_nf_tables = message_type >> 8 == NFNL_SUBSYS_NFTABLES;
        let sequence = self.next_sequence();
        let mut request = Vec::new();
        let nfgenmsg = [number, 0, 0, 0];
        let flags = NLM_F_REQUEST | flags;
        let start = begin_message(&mut request, message_type, flags, sequence, nfgenmsg);
        write(&mut request);
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
                        if errno == 0 && flags & NLM_F_ACK != 0 {
                            return Ok(());
                        }
                        let error = refused(family, Operation::List(what.into()), None, errno);
                        return Err(match error {
                            ApplyError::Unsupported(_) if !is_nf_tables => ApplyError::NoConntrack,
                            error => error,
                        });
                    }
                    _ => {
                        if let Some((nfgenmsg, attributes)) =
                            message.body.split_at_checked(NFGENMSG_LEN)
                        {
                            take(nfgenmsg[0], attributes);
                        }
                    }
                }
            }
        }
    }

    /// Sends bytes as one datagram, however long.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
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
    pub(super) fn receive(&mut self, flags: MsgFlags) -> Result<Option<&[u8]>, ApplyError> {
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
}

/// The error number of an `NLMSG_ERROR`, and the length of the copy of the request that follows.
pub(super) fn read_refusal(body: &[u8]) -> Option<(i32, usize)> {
    let errno = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    // With NETLINK_CAP_ACK, just the header is copied.
    Some((-errno, HEADER_LEN))
}

pub(super) fn refused(
    family: IpFamily,
    operation: Operation,
    message: Option<String>,
    errno: i32,
) -> ApplyError {
    let is_whole = matches!(operation, Operation::Batch | Operation::List(_));
    match Errno::from_raw(errno) {
        Errno::EPERM | Errno::EACCES => ApplyError::NotPermitted,
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EINVAL
            if is_whole =>
        {
            ApplyError::Unsupported(family)
        }
        _ => ApplyError::Refused(Box::new(Refusal {
            family,
            table: None,
            operation,
            service_port: None,
            kernel_message: message.map(Into::into),
            culprit: None,
            source: io::Error::from_raw_os_error(errno),
        })),
    }
}
