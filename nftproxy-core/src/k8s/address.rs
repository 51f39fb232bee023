//! Addresses and ranges as Kubernetes writes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Reads an IP address as Kubernetes does: leading zeros are decimal, and an IPv4-mapped IPv6
/// address counts as IPv4.
///
/// ```
/// # use nftproxy_core::k8s::parse_ip;
/// assert_eq!(parse_ip("172.30.0.041"), Some([172, 30, 0, 41].into()));
/// assert_eq!(parse_ip("::ffff:10.0.0.1"), Some([10, 0, 0, 1].into()));
/// assert_eq!(parse_ip("10.0.0.256"), None);
/// ```
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let address: Ipv6Addr = text.parse().ok()?;
        return Some(
            address
                .to_ipv4_mapped()
                .map_or(IpAddr::V6(address), IpAddr::V4),
        );
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?;
    }
    parts
        .next()
        .is_none()
        .then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// Reads a CIDR as Kubernetes does: leniently as [`parse_ip`], host bits cleared.
///
/// ```
/// # use nftproxy_core::k8s::parse_cidr;
/// assert_eq!(parse_cidr("203.0.113.007/025").unwrap().to_string(), "203.0.113.0/25");
/// assert_eq!(parse_cidr("203.0.113.0"), None);
/// ```
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length: u8 = decimal(length)?;
    // An IPv4-mapped range counts its bits from the start of the IPv6 address.
    let length = match (parse_ip(address)?, address.contains(':')) {
        (IpAddr::V4(_), true) => length.checked_sub(96)?,
        _ => length,
    };
    Some(IpNet::new(parse_ip(address)?, length).ok()?.trunc())
}

fn decimal(text: &str) -> Option<u8> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// What the API server refuses of an address that packets are to be sent to: they would never leave
/// a host, or its link.
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    let (is_link_local, is_link_local_multicast) = match address {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (
            ip.is_unicast_link_local(),
            ip.is_multicast() && ip.segments()[0] & 0xf == 2,
        ),
    };
    Some(match address {
        ip if ip.is_unspecified() => "unspecified",
        ip if ip.is_loopback() => "a loopback address",
        _ if is_link_local => "link-local",
        _ if is_link_local_multicast => "link-local multicast",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_those_of_the_api_server() {
        for (text, expected) in [
            ("10.0.0.1", None),
            ("198.51.100.1", None),
            ("239.0.0.1", None),
            ("2001:db8::1", None),
            ("fd00::1", None),
            ("ff05::1", None),
            ("0.0.0.0", Some("unspecified")),
            ("::", Some("unspecified")),
            ("127.1.2.3", Some("a loopback address")),
            ("::1", Some("a loopback address")),
            ("169.254.1.1", Some("link-local")),
            ("fe80::1", Some("link-local")),
            ("224.0.0.7", Some("link-local multicast")),
            ("ff02::1", Some("link-local multicast")),
        ] {
            assert_eq!(special(text.parse().unwrap()), expected, "{text}");
        }
    }
}
