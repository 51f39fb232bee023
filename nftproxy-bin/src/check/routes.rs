//! Whether the kernel drops packets that come in where it would not send the answer: reverse-path
//! filtering (RFC 3704), which there is for IPv4 only.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;

use super::finding::Finding;

/// `rp_filter` of a strict interface.
const STRICT: u8 = 1;
/// `RTF_UP` of `linux/route.h`.
const RTF_UP: u32 = 1;

/// A route of the main table, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Route {
    interface: String,
    /// Address and prefix length.
    net: (Ipv4Addr, u32),
    metric: u32,
}

/// Looks for interfaces that are strict though the way back leads elsewhere.
pub(super) fn reverse_path() -> Finding {
    let text = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let all = rp_filter("all").unwrap_or_default();
    let strict = |interface: &str| {
        // The kernel takes the larger one of the two.
        rp_filter(interface).unwrap_or_default().max(all) == STRICT
    };
    let problems = asymmetric(&routes(&text), strict);
    if problems.is_empty() {
        return Finding::ok(
            "rp_filter",
            "no interface drops packets for where they come from",
        );
    }
    Finding::warning(
        "rp_filter",
        problems.join(", "),
        "set net.ipv4.conf.INTERFACE.rp_filter=2 there, and net.ipv4.conf.all.rp_filter to 0 or 2",
    )
}

fn rp_filter(interface: &str) -> Option<u8> {
    // A dot may be part of an interface's name, as it is of VLANs'.
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Reads `/proc/net/route`. Lines that cannot be read are left out.
fn routes(text: &str) -> Vec<Route> {
    let route = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let hex = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok();
        // Addresses are printed as the number that their bytes are in memory.
        let address = |index: usize| Some(Ipv4Addr::from(hex(index)?.to_ne_bytes()));
        let mask = u32::from(address(7)?);
        (hex(3)? & RTF_UP != 0).then_some(())?;
        Some(Route {
            interface: (*fields.first()?).to_owned(),
            net: (address(1)?, mask.count_ones()),
            metric: fields.get(6)?.parse().ok()?,
        })
    };
    text.lines().skip(1).filter_map(route).collect()
}

/// Of several ways to the same net the kernel takes one, and strict interfaces on the others drop
/// what comes from there.
fn asymmetric(routes: &[Route], is_strict: impl Fn(&str) -> bool) -> Vec<String> {
    let mut best: BTreeMap<(Ipv4Addr, u32), &Route> = BTreeMap::new();
    for route in routes {
        let entry = best.entry(route.net).or_insert(route);
        if route.metric < entry.metric {
            *entry = route;
        }
    }
    let problem = |route: &Route| {
        let way_back = &best.get(&route.net)?.interface;
        if *way_back == route.interface || !is_strict(&route.interface) {
            return None;
        }
        let from = match route.net {
            (_, 0) => "anywhere".to_owned(),
            (address, length) => format!("{address}/{length}"),
        };
        Some(format!(
            "rp_filter of {interface} is strict, so what comes in there from {from} is dropped, as \
             the way back is {way_back}",
            interface = route.interface,
        ))
    };
    let mut problems: Vec<_> = routes.iter().filter_map(problem).collect();
    problems.sort();
    problems.dedup();
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel prints it: two default routes, one net, one route that is down.
    const TABLE: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth1\t00000000\t010A000A\t0003\t0\t0\t200\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
eth2\t000200C0\t00000000\t0000\t0\t0\t50\t00FFFFFF\t0\t0\t0
nonsense
";

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_are_read() {
        let route = |interface: &str, net: [u8; 4], length, metric| Route {
            interface: interface.into(),
            net: (net.into(), length),
            metric,
        };
        assert_eq!(
            routes(TABLE),
            [
                route("eth0", [0, 0, 0, 0], 0, 100),
                route("eth1", [0, 0, 0, 0], 0, 200),
                route("eth0", [192, 0, 2, 0], 24, 100),
            ]
        );
        assert_eq!(routes(""), []);
    }

    #[test]
    fn only_strict_interfaces_beside_the_way_back_are_told_of() {
        let routes = routes(TABLE);
        assert_eq!(asymmetric(&routes, |_| false), [""; 0]);
        assert_eq!(
            asymmetric(&routes, |interface| interface == "eth0"),
            [""; 0]
        );
        let problems = asymmetric(&routes, |_| true);
        assert_eq!(
            problems,
            [
                "rp_filter of eth1 is strict, so what comes in there from anywhere is dropped, as the \
              way back is eth0"
            ]
        );
    }
}
