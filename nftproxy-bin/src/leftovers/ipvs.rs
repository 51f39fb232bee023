//! What mode ipvs leaves behind: virtual servers, the link that has their addresses, and ipsets.
//!
//! Nothing is touched, and no module loaded, on a node that never ran it. Virtual servers of others
//! stay: only those whose address is on the link are kube-proxy's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, bail};
use nftproxy_core::host;
use nix::ifaddrs::getifaddrs;
use tracing::warn;

use super::program::run;

const LINK: &str = "kube-ipvs0";
/// kube-proxy's ipsets, without `KUBE-`, or `KUBE-6-` in IPv6.
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];
/// ipset names are no longer than this.
const SET_NAME_MAX: usize = 31;

/// Whether kube-proxy runs in mode ipvs here, or did.
pub(crate) fn is_there() -> bool {
    // `/sys/class/net` may be that of another network namespace.
    host::links().is_ok_and(|links| links.iter().any(|link| link.name == LINK))
}

/// Removes virtual servers and the link; how many there were.
pub(super) fn remove() -> anyhow::Result<usize> {
    if !is_there() {
        return Ok(0);
    }
    let addresses = addresses()?;
    let mut count = 0;
    let saved = run("ipvsadm", &["--save", "-n"], "");
    match saved.context("listing virtual servers")? {
        None => warn!(
            "ipvsadm is not installed here; virtual servers stay, without addresses to reach them by"
        ),
        Some(saved) => {
            for (kind, server) in virtual_servers(&saved) {
                if addresses.contains(&server.ip()) {
                    let server = server.to_string();
                    run("ipvsadm", &["--delete-service", kind, &server], "")?;
                    count += 1;
                }
            }
        }
    }
    let deleted = run("ip", &["link", "delete", LINK], "")?;
    if deleted.is_none() {
        bail!("the program ip is not installed here, and the link {LINK} stays");
    }
    Ok(count + 1)
}

/// The addresses on the link.
fn addresses() -> anyhow::Result<BTreeSet<IpAddr>> {
    let all = getifaddrs().context("listing addresses")?;
    let of_link = all.filter(|entry| entry.interface_name == LINK);
    let addresses = of_link.filter_map(|entry| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
    });
    Ok(addresses.collect())
}

/// The virtual servers that `ipvsadm --save` prints, each with the option for its protocol.
fn virtual_servers(saved: &str) -> Vec<(&str, SocketAddr)> {
    let lines = saved.lines().filter_map(|line| {
        let mut words = line.strip_prefix("-A ")?.split(' ');
        let kind = words.next()?;
        let server = words.next()?.parse().ok()?;
        matches!(kind, "-t" | "-u" | "--sctp-service").then_some((kind, server))
    });
    lines.collect()
}

/// Removes ipsets that nothing refers to any more; how many there were.
pub(super) fn remove_sets() -> anyhow::Result<usize> {
    // Asking would load the module.
    if !Path::new("/sys/module/ip_set").exists() {
        return Ok(0);
    }
    let Some(names) = run("ipset", &["list", "-n"], "")? else {
        warn!("ipset is not installed here; if kube-proxy ran in mode ipvs, its ipsets stay");
        return Ok(0);
    };
    let ours = set_names();
    let mut count = 0;
    for name in names.lines().filter(|name| ours.contains(*name)) {
        run("ipset", &["destroy", name], "")?;
        count += 1;
    }
    Ok(count)
}

fn set_names() -> BTreeSet<String> {
    let both = SETS
        .iter()
        .flat_map(|name| [format!("KUBE-{name}"), format!("KUBE-6-{name}")]);
    both.map(|mut name| {
        name.truncate(SET_NAME_MAX);
        name
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O-148
    #[test]
    fn virtual_servers_are_read_as_they_are_printed() {
        let saved = "-A -t 10.96.0.1:443 -s rr\n-a -t 10.96.0.1:443 -r 10.0.0.1:6443 -m -w 1\n\
                     -A -u [fd00::a]:53 -s rr\n-A -f 1 -s rr\n";
        assert_eq!(
            virtual_servers(saved),
            [
                ("-t", "10.96.0.1:443".parse().unwrap()),
                ("-u", "[fd00::a]:53".parse().unwrap()),
            ]
        );
    }

    /// O-149: IPv6 names are cut, and are removed all the same.
    #[test]
    fn sets_of_both_families_are_known() {
        let names = set_names();
        assert_eq!(names.len(), 34);
        assert!(names.contains("KUBE-LOAD-BALANCER-SOURCE-CIDR"));
        assert!(names.contains("KUBE-6-LOAD-BALANCER-SOURCE-CID"));
    }
}
