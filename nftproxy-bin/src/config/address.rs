//! Addresses and networks in the spellings kube-proxy accepts.
//!
//! Go's Kubernetes helpers read IPv4 octets with leading zeros (`010.0.0.1` is `10.0.0.1`) and
//! networks with host bits set (`10.1.2.3/8` is `10.0.0.0/8`); the standard library refuses the
//! first, so this file reads both. Knows nothing of the settings that hold them.
//! Entry points: [`parse_ip`], [`parse_cidr`], [`parse_socket_address`].

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Reads an IP address; an IPv4-mapped IPv6 address counts as IPv4.
pub(crate) fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let parsed = if text.contains(':') {
        text.parse()
    } else {
        text.split('.')
            .map(without_leading_zeros)
            .collect::<Vec<_>>()
            .join(".")
            .parse()
    };
    parsed
        .map(|ip: IpAddr| ip.to_canonical())
        .map_err(|_| "not a valid textual representation of an IP address".to_owned())
}

fn without_leading_zeros(octet: &str) -> &str {
    match octet.trim_start_matches('0') {
        "" if !octet.is_empty() => "0",
        trimmed => trimmed,
    }
}

/// Reads a network in CIDR notation and clears its host bits.
pub(crate) fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let invalid = || "must be a valid CIDR".to_owned();
    let (address, length) = text.split_once('/').ok_or_else(invalid)?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    let address = parse_ip(address).map_err(|_| invalid())?;
    let length = length.parse().map_err(|_| invalid())?;
    Ok(IpNet::new(address, length).map_err(|_| invalid())?.trunc())
}

/// Reads `IP:port`, with brackets around an IPv6 address; port 0 is refused.
pub(crate) fn parse_socket_address(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = text.rsplit_once(':').ok_or("must be IP:port")?;
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']').ok_or("must be IP:port")?,
        None if host.contains(':') => return Err("must be IP:port".to_owned()),
        None => host,
    };
    let ip = parse_ip(host).map_err(|_| "must be a valid IP")?;
    match port.parse() {
        Ok(port) if port != 0 => Ok(SocketAddr::new(ip, port)),
        _ => Err("must be a valid port".to_owned()),
    }
}

/// Adds `port` to a bare IP address; anything else is returned as it is, for validation to judge.
pub(crate) fn append_port_if_needed(address: &str, port: u16) -> String {
    match parse_ip(address) {
        Ok(_) if address.contains(':') => format!("[{address}]:{port}"),
        Ok(_) => format!("{address}:{port}"),
        Err(_) => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o_27_addresses_tolerate_leading_zeros() {
        for (text, expected) in [
            ("010.0.000.001", "10.0.0.1"),
            ("0.0.0.0", "0.0.0.0"),
            ("::", "::"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(parse_ip(text).unwrap().to_string(), expected, "{text}");
        }
        for text in [
            "",
            "10.0.0",
            "10.0.0.",
            "10.0.0.256",
            "fe80::1%eth0",
            "localhost",
            " ::1",
        ] {
            assert!(parse_ip(text).is_err(), "{text:?} was read");
        }
    }

    #[test]
    fn o_47_networks_lose_their_host_bits() {
        for (text, expected) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("fd00::1/64", "fd00::/64"),
            ("010.0.0.0/08", "10.0.0.0/8"),
        ] {
            assert_eq!(parse_cidr(text).unwrap().to_string(), expected, "{text}");
        }
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            " 10.0.0.0/8",
        ] {
            assert!(parse_cidr(text).is_err(), "{text:?} was read");
        }
    }

    #[test]
    fn o_28_socket_addresses_need_an_ip_and_a_port() {
        for (text, expected) in [
            ("0.0.0.0:10256", "0.0.0.0:10256"),
            ("[::1]:10249", "[::1]:10249"),
        ] {
            assert_eq!(
                parse_socket_address(text).unwrap().to_string(),
                expected,
                "{text}"
            );
        }
        for (text, reason) in [
            ("10.0.0.1", "must be IP:port"),
            ("::1:80", "must be IP:port"),
            ("[::1:80", "must be IP:port"),
            ("node:80", "must be a valid IP"),
            ("10.0.0.1:0", "must be a valid port"),
            ("10.0.0.1:65536", "must be a valid port"),
            ("10.0.0.1:http", "must be a valid port"),
        ] {
            assert_eq!(parse_socket_address(text), Err(reason.to_owned()), "{text}");
        }
    }

    #[test]
    fn o_28_a_bare_address_gets_the_port() {
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1:10256"),
            ("::1", "[::1]:10256"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("", ""),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(append_port_if_needed(text, 10256), expected, "{text}");
        }
    }
}
