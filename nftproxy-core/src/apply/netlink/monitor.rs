//! Hears of what others do to our tables.
//!
//! The kernel tells whoever listens of each change that is committed, one message an object, and at
//! the end of the batch (`NEWGEN`) who it was. Most of that is not about us and costs a glance at
//! each message's header. What we commit ourselves is told by the number of our sockets; before a
//! large batch of ours we stop listening, and see from the generation whether anybody else was there
//! meanwhile ([`Subscription::hush`]).
//!
//! Entry points: [`Monitor`], and [`Reader`] for the bytes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use super::attribute::{NFGENMSG_LEN, attributes, be32, find, messages, string};
use super::constants::*;
use super::{Netlink, ffi, namespace};
use crate::apply::ApplyError;
use crate::apply::incident::{Change, Culprit, Incident, Object, Scope};
use crate::model::IpFamily;
use crate::ruleset::Table;
use crate::ruleset::name::SetName;

/// The kernel fills buffers of a few pages with notifications.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// What may wait to be read, in bytes as the kernel counts them. More is lost, which is noticed.
const QUEUE: usize = 8 * 1024 * 1024;

/// A socket that hears of all changes of nf_tables in one network namespace, and picks out those of
/// one table by others.
#[derive(Debug)]
pub struct Monitor {
    subscription: Arc<Subscription>,
    reader: Reader,
    buffer: Vec<u8>,
}

/// What decides whether the kernel has notifications for us; shared with those who commit.
pub(super) struct Subscription {
    socket: ffi::Socket,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fd = self.socket.descriptor().as_raw_fd();
        f.debug_struct("Subscription")
            .field("fd", &fd)
            .finish_non_exhaustive()
    }
}

impl Subscription {
    /// Does something without listening. What was told before stays to be read.
    pub(super) fn hush<R>(&self, work: impl FnOnce() -> R) -> io::Result<R> {
        self.socket
            .set_option(NETLINK_DROP_MEMBERSHIP, NFNLGRP_NFTABLES)?;
        let result = work();
        self.socket
            .set_option(NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)?;
        Ok(result)
    }
}

impl Monitor {
    /// Starts to listen for changes of a table, in a network namespace: that of the descriptor,
    /// else that of this thread.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Open`] if there is no socket to be had, [`ApplyError::Namespace`] if the
    /// namespace cannot be entered.
    pub fn open(table: &Table, namespace: Option<BorrowedFd<'_>>) -> Result<Self, ApplyError> {
        namespace::within(namespace, || {
            let socket = ffi::Socket::open().map_err(ApplyError::Open)?;
            // Beyond net.core.rmem_max only the privileged way works; less room means that more
            // gets lost, which is noticed.
            let _ = setsockopt(&socket.descriptor(), sockopt::RcvBufForce, &QUEUE)
                .or_else(|_| setsockopt(&socket.descriptor(), sockopt::RcvBuf, &QUEUE));
            socket
                .set_option(NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
                .map_err(ApplyError::Open)?;
            Ok(Self {
                subscription: Arc::new(Subscription { socket }),
                reader: Reader::new(table),
                buffer: vec![0; RECEIVE_BUFFER],
            })
        })
    }

    /// From now on, what this connection commits is known to be our own, as long as the monitor
    /// lives. To be called before it commits anything.
    pub fn know(&mut self, netlink: &mut Netlink) {
        self.reader.ours.insert(netlink.connection.port_id());
        netlink.subscription = Arc::downgrade(&self.subscription);
    }

    /// Reads what has been told, without waiting.
    ///
    /// # Errors
    ///
    /// If nothing will be heard any more.
    pub fn read(&mut self) -> io::Result<Vec<Incident>> {
        let mut incidents = Vec::new();
        loop {
            let descriptor = self.subscription.socket.descriptor().as_raw_fd();
            match recv(descriptor, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => self.reader.take(&self.buffer[..length], &mut incidents),
                Err(Errno::EAGAIN) => return Ok(incidents),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => self.reader.lost(&mut incidents),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits until there is something to read, or `stop` can be read from. Returns whether the
    /// former is so.
    ///
    /// # Errors
    ///
    /// If the descriptors cannot be waited for.
    pub fn wait(&self, stop: BorrowedFd<'_>) -> io::Result<bool> {
        loop {
            let mut descriptors = [
                PollFd::new(self.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop, PollFlags::POLLIN),
            ];
            match poll(&mut descriptors, PollTimeout::NONE) {
                Ok(_) => return Ok(!descriptors[1].any().unwrap_or_default()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.subscription.socket.descriptor()
    }
}

/// Makes incidents of notifications.
#[derive(Debug)]
pub struct Reader {
    table: String,
    /// Numbers of sockets of our own.
    ours: BTreeSet<u32>,
    /// What the batch whose notifications are being read did to our tables.
    v4: Option<Incident>,
    v6: Option<Incident>,
}

impl Reader {
    /// One that looks for changes of a table, in both families.
    pub fn new(table: &Table) -> Self {
        Self {
            table: table.name().into(),
            ours: BTreeSet::new(),
            v4: None,
            v6: None,
        }
    }

    /// Reads one datagram, and adds what is complete to `incidents`.
    pub fn take(&mut self, datagram: &[u8], incidents: &mut Vec<Incident>) {
        for message in messages(datagram) {
            if self.ours.contains(&message.port_id)
                || message.message_type >> 8 != NFNL_SUBSYS_NFTABLES
            {
                continue;
            }
            let Some((nfgenmsg, attributes)) = message.body.split_at_checked(NFGENMSG_LEN) else {
                continue;
            };
            let kind = message.message_type & 0xff;
            if kind == NFT_MSG_NEWGEN {
                self.end_batch(attributes, incidents);
                continue;
            }
            let incident = match u16::from(nfgenmsg[0]) {
                NFPROTO_IPV4 => (&mut self.v4, IpFamily::V4),
                NFPROTO_IPV6 => (&mut self.v6, IpFamily::V6),
                _ => continue,
            };
            // The first attribute of all kinds of objects is the table's name.
            if find(attributes, 1).and_then(string) == Some(self.table.as_str()) {
                let (incident, family) = incident;
                let incident = incident.get_or_insert_with(|| Incident::new(family));
                note(incident, kind, attributes);
            }
        }
    }

    /// Notifications were lost.
    fn lost(&mut self, incidents: &mut Vec<Incident>) {
        for (open, family) in [(&mut self.v4, IpFamily::V4), (&mut self.v6, IpFamily::V6)] {
            let mut incident = Incident::unknown(family);
            if let Some(open) = open.take() {
                incident.merge(open);
            }
            incidents.push(incident);
        }
    }

    fn end_batch(&mut self, attributes: &[u8], incidents: &mut Vec<Incident>) {
        let culprit = find(attributes, NFTA_GEN_PROC_PID)
            .and_then(be32)
            .zip(find(attributes, NFTA_GEN_PROC_NAME).and_then(string))
            .map(|(pid, name)| Culprit {
                pid,
                name: name.into(),
            });
        for mut incident in [self.v4.take(), self.v6.take()].into_iter().flatten() {
            culprit.iter().cloned().for_each(|who| incident.blame(who));
            incidents.push(incident);
        }
    }
}

/// Notes what a message says of our table.
fn note(incident: &mut Incident, kind: u16, attributes: &[u8]) {
    let name = |attribute| {
        let name = find(attributes, attribute).and_then(string);
        name.unwrap_or_default().to_owned()
    };
    let mut count = 1;
    let object = match kind {
        NFT_MSG_NEWTABLE | NFT_MSG_DELTABLE | NFT_MSG_DESTROYTABLE => Object::Table,
        NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN | NFT_MSG_DESTROYCHAIN => {
            Object::Chain(name(NFTA_CHAIN_NAME))
        }
        NFT_MSG_NEWRULE | NFT_MSG_DELRULE | NFT_MSG_DESTROYRULE => {
            Object::Rule(name(NFTA_RULE_CHAIN))
        }
        NFT_MSG_NEWSET | NFT_MSG_DELSET | NFT_MSG_DESTROYSET => Object::Set(name(NFTA_SET_NAME)),
        NFT_MSG_NEWSETELEM | NFT_MSG_DELSETELEM | NFT_MSG_DESTROYSETELEM => {
            let set = name(NFTA_SET_ELEM_LIST_SET);
            count = note_elements(incident, &set, attributes);
            Object::Element(set)
        }
        _ => Object::Other,
    };
    match &object {
        // With its sets went their elements, of which nothing is said.
        Object::Table => incident.scope = Scope::Everything,
        Object::Set(set) => {
            if let Some(set) = SetName::parse(set) {
                incident.scope.add_set(set);
            }
        }
        _ => {}
    }
    let is_addition = matches!(
        kind,
        NFT_MSG_NEWTABLE
            | NFT_MSG_NEWCHAIN
            | NFT_MSG_NEWRULE
            | NFT_MSG_NEWSET
            | NFT_MSG_NEWSETELEM
            | NFT_MSG_NEWOBJ
            | NFT_MSG_NEWFLOWTABLE
    );
    let change = Change {
        is_addition,
        object,
    };
    incident.add(change, count);
}

/// Adds the elements of a message to what has to be looked at; how many there are.
fn note_elements(incident: &mut Incident, set: &str, message: &[u8]) -> usize {
    let elements = find(message, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    let mut count = 0;
    for (_, element) in attributes(elements) {
        count += 1;
        let Some(set) = SetName::parse(set) else {
            continue;
        };
        let key = find(element, NFTA_SET_ELEM_KEY).and_then(|key| find(key, NFTA_DATA_VALUE));
        match key {
            Some(key) => incident.scope.add_key(set, key),
            None => incident.scope.add_set(set),
        }
    }
    count
}
