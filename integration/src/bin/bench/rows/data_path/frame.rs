//! Ethernet frames with a UDP datagram in them, byte by byte. It sends none.
//!
//! Entry points: [`udp`] and [`reply`].

use std::net::SocketAddrV4;
use std::ops::Range;

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

const ETHERNET_LEN: usize = 14;
const IP_LEN: usize = 20;
const UDP_LEN: usize = 8;
/// With this payload a frame has 60 bytes, the least that Ethernet sends.
const PAYLOAD: [u8; 18] = [0; 18];
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const PROTOCOL_UDP: u8 = 17;
const TTL: u8 = 64;

const MACS: [Range<usize>; 2] = [0..6, 6..12];
const ADDRESSES: [Range<usize>; 2] = [26..30, 30..34];
const PORTS: [Range<usize>; 2] = [34..36, 36..38];

/// A frame to `mac` with a datagram and valid checksums: without them it would not be tracked.
pub(super) fn udp(mac: Mac, source: SocketAddrV4, destination: SocketAddrV4) -> Vec<u8> {
    let udp_len = (UDP_LEN + PAYLOAD.len()) as u16;
    let addresses = [source.ip().octets(), destination.ip().octets()].concat();

    let mut ip = vec![0x45, 0];
    ip.extend((IP_LEN as u16 + udp_len).to_be_bytes());
    ip.extend([0, 0, 0, 0, TTL, PROTOCOL_UDP, 0, 0]);
    ip.extend(&addresses);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);

    let mut udp = Vec::new();
    udp.extend(source.port().to_be_bytes());
    udp.extend(destination.port().to_be_bytes());
    udp.extend(udp_len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(PAYLOAD);
    let mut pseudo_header = addresses;
    pseudo_header.extend([0, PROTOCOL_UDP]);
    pseudo_header.extend(udp_len.to_be_bytes());
    let sum = checksum(&[&pseudo_header[..], &udp].concat());
    udp[6..8].copy_from_slice(&sum);

    [&mac[..], &[0; 6], &ETHERTYPE_IPV4, &ip, &udp].concat()
}

/// The reply to a frame that [`udp`] made, as it arrived, sent to `mac`. Sums do not depend on the
/// order of what they sum up, so its checksums stay.
pub(super) fn reply(frame: &[u8], mac: Mac) -> Vec<u8> {
    let mut reply = frame.to_vec();
    for [a, b] in [ADDRESSES, PORTS] {
        reply[a.clone()].copy_from_slice(&frame[b.clone()]);
        reply[b].copy_from_slice(&frame[a]);
    }
    let [to, _] = MACS;
    reply[to].copy_from_slice(&mac);
    reply
}

/// Whether these bytes are a frame that [`udp`] made, translated or not.
pub(super) fn is_udp(frame: &[u8]) -> bool {
    frame.len() == ETHERNET_LEN + IP_LEN + UDP_LEN + PAYLOAD.len()
        && frame[12..14] == ETHERTYPE_IPV4
        && frame[23] == PROTOCOL_UDP
}

/// The bytes of a frame's destination address.
pub(super) fn destination(frame: &[u8]) -> &[u8] {
    let [_, destination] = ADDRESSES;
    &frame[destination]
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0;
    for pair in bytes.chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
