//! This host's interfaces, as far as it matters who is on a bridge.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::apply::netlink::attribute::{
    attributes, begin_message, end_message, find, messages, string,
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_GETLINK: u16 = 18;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 0x301;
/// `struct ifinfomsg`
const IFINFOMSG_LEN: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What kind of virtual interface it is: `bridge`, `veth`, …; empty for a device.
    pub kind: String,
    /// The number of the bridge or bond that it is a port of.
    pub master: Option<u32>,
}

/// The interfaces of the network namespace of this thread.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn links() -> io::Result<Vec<Link>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let mut request = Vec::new();
    let start = begin_message(&mut request, RTM_GETLINK, DUMP, 1, [0; 4]);
    request.resize(request.len() + IFINFOMSG_LEN - 4, 0);
    end_message(&mut request, start);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;

    let mut links = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for message in messages(&buffer[..length]) {
            match message.message_type {
                NLMSG_DONE => return Ok(links),
                NLMSG_ERROR => {
                    let errno = message
                        .body
                        .first_chunk()
                        .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                    return Err(io::Error::from_raw_os_error(-errno));
                }
                _ => links.extend(link(message.body)),
            }
        }
    }
}

fn link(body: &[u8]) -> Option<Link> {
    let (info, rest) = body.split_at_checked(IFINFOMSG_LEN)?;
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_ne_bytes);
    let kind = attributes(rest)
        .find(|(attribute, _)| *attribute == IFLA_LINKINFO)
        .and_then(|(_, info)| string(find(info, IFLA_INFO_KIND)?));
    Some(Link {
        index: number(&info[4..8])?,
        name: find(rest, IFLA_IFNAME).and_then(string)?.into(),
        kind: kind.unwrap_or_default().into(),
        master: find(rest, IFLA_MASTER).and_then(number),
    })
}
