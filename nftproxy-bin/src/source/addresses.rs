//! The addresses on this host's interfaces, and when they change, through rtnetlink.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::sync::mpsc::Sender;
use tracing::warn;

use super::Event;

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

/// The addresses on this host's interfaces, each once, in order.
pub(crate) fn interface_ips() -> io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address
            .as_sockaddr_in()
            .map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| {
            address
                .as_sockaddr_in6()
                .map(|address| IpAddr::V6(address.ip()))
        })
    });
    Ok(addresses.collect::<BTreeSet<_>>().into_iter().collect())
}

/// Addresses that stand for the node where no Node object says: those it would use to talk to the
/// outside, which is also what a kubelet reports.
pub(crate) fn guess_node_ips() -> Vec<IpAddr> {
    // Any address behind the default route will do; these are for documentation.
    let outside: [(IpAddr, IpAddr); 2] = [
        (
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(192, 0, 2, 1).into(),
        ),
        (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        ),
    ];
    let source = |(any, target): (IpAddr, IpAddr)| {
        // Connecting a UDP socket asks the routing table, and sends nothing.
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((target, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    outside
        .into_iter()
        .filter_map(source)
        .filter(|ip| !ip.is_loopback())
        .collect()
}
