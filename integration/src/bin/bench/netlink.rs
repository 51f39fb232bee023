//! Netlink without the library under test: requests as bytes, answers received and thrown away.
//!
//! It is what floors are measured with, and what puts connection tracking entries in place.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nftproxy_core::model::{Family, IpFamily};
use nftproxy_core::ruleset::name::TABLE;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect, recv,
    send, setsockopt, socket, sockopt,
};

const HEADER_LEN: usize = 16;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NFNLGRP_NFTABLES: u32 = 7;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes of notifications that may wait.
const QUEUE: usize = 8 * 1024 * 1024;
/// As large as the kernel makes use of.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn open() -> Result<Self> {
        let socket = Self::unbound()?;
        connect(socket.descriptor.as_raw_fd(), &NetlinkAddr::new(0, 0))
            .context("connecting a netlink socket to the kernel")?;
        Ok(socket)
    }

    /// One that is told of all changes of nf_tables.
    pub(crate) fn listen() -> Result<Self> {
        let socket = Self::unbound()?;
        setsockopt(&socket.descriptor, sockopt::RcvBufForce, &QUEUE).context("asking for room")?;
        let groups = 1 << (NFNLGRP_NFTABLES - 1);
        bind(socket.descriptor.as_raw_fd(), &NetlinkAddr::new(0, groups))
            .context("joining the group of nf_tables")?;
        Ok(socket)
    }

    fn unbound() -> Result<Self> {
        let descriptor = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .context("opening a netlink socket")?;
        Ok(Self {
            descriptor,
            buffer: vec![0; RECEIVE_BUFFER],
        })
    }

    /// Has the kernel dump what a request asks for, and returns how many bytes that was.
    pub(crate) fn dump(&mut self, request: &[u8]) -> Result<usize> {
        self.send(request)?;
        let mut received = 0;
        loop {
            let length = recv(
                self.descriptor.as_raw_fd(),
                &mut self.buffer,
                MsgFlags::empty(),
            )
            .context("receiving a dump")?;
            received += length;
            match kinds(&self.buffer[..length]).last() {
                Some(NLMSG_DONE) => return Ok(received),
                Some(NLMSG_ERROR) => bail!("the kernel refused a dump: {}", self.error(length)),
                Some(_) => {}
                None => bail!("the kernel broke a dump off"),
            }
        }
    }

    /// Sends requests that are answered only if they fail.
    pub(crate) fn request(&mut self, requests: &[u8]) -> Result<()> {
        self.send(requests)?;
        match recv(
            self.descriptor.as_raw_fd(),
            &mut self.buffer,
            MsgFlags::MSG_DONTWAIT,
        ) {
            Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error).context("receiving answers"),
            Ok(length) => bail!("the kernel refused a request: {}", self.error(length)),
        }
    }

    /// Receives what there is, and returns how many bytes that was.
    pub(crate) fn receive_all(&mut self) -> Result<usize> {
        let mut received = 0;
        loop {
            let descriptor = self.descriptor.as_raw_fd();
            match recv(descriptor, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => received += length,
                Err(Errno::EAGAIN) => return Ok(received),
                Err(error) => return Err(error).context("receiving notifications"),
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        send(self.descriptor.as_raw_fd(), bytes, MsgFlags::empty())
            .with_context(|| format!("sending {} bytes to the kernel", bytes.len()))?;
        Ok(())
    }

    fn error(&self, length: usize) -> Errno {
        let number = self.buffer[..length].get(HEADER_LEN..HEADER_LEN + 4);
        let number = number.and_then(|bytes| bytes.try_into().ok());
        Errno::from_raw(-i32::from_ne_bytes(number.unwrap_or_default()))
    }
}

/// The types of the messages in a datagram. The end of a dump may share one with data.
fn kinds(mut bytes: &[u8]) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(kind)
    })
}

/// A request for all elements of a set in our table.
pub(crate) fn set_dump<F: Family>(set: &str) -> Vec<u8> {
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM;
    message(kind, NLM_F_DUMP, F::FAMILY, |out| {
        for (attribute, name) in [
            (NFTA_SET_ELEM_LIST_TABLE, TABLE),
            (NFTA_SET_ELEM_LIST_SET, set),
        ] {
            put(out, attribute, &[name.as_bytes(), b"\0"].concat());
        }
    })
}

/// A request to connection tracking, about IPv4.
pub(crate) fn conntrack(kind: u16, flags: u16, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    message(
        NFNL_SUBSYS_CTNETLINK << 8 | kind,
        flags,
        IpFamily::V4,
        write,
    )
}

/// [`conntrack`], for a dump.
pub(crate) fn conntrack_dump(kind: u16, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    conntrack(kind, NLM_F_DUMP, write)
}

fn message(kind: u16, flags: u16, family: IpFamily, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    let nfproto = match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    };
    out.extend_from_slice(&[nfproto, 0, 0, 0]);
    write(&mut out);
    let length = out.len() as u32;
    out[..4].copy_from_slice(&length.to_ne_bytes());
    out
}

/// Appends an attribute.
pub(crate) fn put(out: &mut Vec<u8>, attribute: u16, payload: &[u8]) {
    out.extend_from_slice(&(4 + payload.len() as u16).to_ne_bytes());
    out.extend_from_slice(&attribute.to_ne_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends an attribute that holds others.
pub(crate) fn nest(out: &mut Vec<u8>, attribute: u16, write: impl FnOnce(&mut Vec<u8>)) {
    const NLA_F_NESTED: u16 = 1 << 15;
    let mut inner = Vec::new();
    write(&mut inner);
    put(out, attribute | NLA_F_NESTED, &inner);
}
