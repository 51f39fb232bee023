//! Notices when addresses come to this host's interfaces or go, through rtnetlink.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::sync::mpsc::Sender;
use tracing::warn;

use crate::event::Event;

/// An interface that comes up gets several addresses; they are looked at together.
const SETTLE: Duration = Duration::from_millis(50);

/// Starts a thread that sends [`Event::AddressesChanged`] for each change, until the receiver is
/// gone. It sleeps in the kernel meanwhile.
pub(crate) fn watch(events: Sender<Event>) -> io::Result<()> {
    let socket = open()?;
    let follow = move || {
        while wait_for_change(&socket) {
            if events.blocking_send(Event::AddressesChanged).is_err() {
                return;
            }
        }
        warn!("changes of this host's addresses are no longer noticed");
    };
    std::thread::Builder::new()
        .name("addresses".into())
        .spawn(follow)
        .map(drop)
}

fn open() -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkRoute;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    let groups = (RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR) as u32;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// Waits for messages and for a moment of quiet. What they say does not matter, nor whether some
/// were lost: all addresses are read again. Returns false if there will be no more.
fn wait_for_change(socket: &OwnedFd) -> bool {
    let mut buffer = [0; 8192];
    let mut receive = |flags| match recv(socket.as_raw_fd(), &mut buffer, flags) {
        Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => true,
        Err(_) => false,
    };
    if !receive(MsgFlags::empty()) {
        return false;
    }
    std::thread::sleep(SETTLE);
    while receive(MsgFlags::MSG_DONTWAIT) {}
    true
}
