//! What a proxy has to know of the host it runs on: its addresses, when they change, whether it
//! speaks IPv6, and its interfaces.
//!
//! It reads, and changes nothing. An engine does not need it: it is told what its owner knows.

mod links;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

pub use links::{Link, links};

/// An interface that comes up gets several addresses; they are looked at together.
const SETTLE: Duration = Duration::from_millis(50);

/// The addresses on this host's interfaces, each once, in order, in the network namespace of this
/// thread: for [`Event::LocalAddressesChanged`](crate::engine::Event::LocalAddressesChanged) and
/// [`NodePortAddresses::within`](crate::model::NodePortAddresses::within).
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
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
/// outside, which is also what a kubelet reports. None of a family without a default route.
pub fn guess_node_ips() -> Vec<IpAddr> {
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

/// Whether the host speaks IPv6 at all, in the network namespace of this thread.
pub fn has_ipv6() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    Path::new("/proc/net/if_inet6").exists()
        && disabled.map_or(true, |disabled| disabled.trim() != "1")
}

/// Notices when addresses come to this host's interfaces or go, through rtnetlink.
///
/// Its descriptor can be read when there is something; [`AddressChanges::wait`] sleeps until then.
#[derive(Debug)]
pub struct AddressChanges {
    socket: OwnedFd,
}

impl AddressChanges {
    /// Starts noticing, in the network namespace of this thread. Read the addresses after this, so
    /// that no change is missed.
    ///
    /// # Errors
    ///
    /// If there is no socket to be had.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        let groups = (RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR) as u32;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { socket })
    }

    /// Waits for a change, and for 50 ms more, as changes come together. What has changed is not
    /// said, and some of it may have been lost on the way: all addresses are to be read again.
    ///
    /// # Errors
    ///
    /// If there will be no more to notice.
    pub fn wait(&self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        let mut receive = |flags| match recv(self.socket.as_raw_fd(), &mut buffer, flags) {
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => Ok(()),
            Err(errno) => Err(io::Error::from(errno)),
        };
        receive(MsgFlags::empty())?;
        std::thread::sleep(SETTLE);
        // Until there is nothing left, or something that the next call will tell.
        while receive(MsgFlags::MSG_DONTWAIT).is_ok() {}
        Ok(())
    }
}

impl AsFd for AddressChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
