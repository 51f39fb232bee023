//! What else of the host counts: IP versions, forwarding, bridges, ports.

use std::fs;
use std::net::{SocketAddr, TcpListener};

use nftproxy_core::host::{self, Link};
use nftproxy_core::model::IpFamily;

use super::finding::Finding;
use crate::config::{DetectLocal, Settings};

/// Which families the host has; whether one that is wanted is missing.
pub(super) fn families(wanted: &[IpFamily]) -> (Vec<IpFamily>, Finding) {
    if host::has_ipv6() {
        let finding = Finding::ok("ipv6", "this host speaks IPv6");
        return (vec![IpFamily::V4, IpFamily::V6], finding);
    }
    let message = "this host has no IPv6, so there is no table ip6 nftproxy";
    let advice = "have it enabled (net.ipv6.conf.all.disable_ipv6, ipv6.disable= at boot)";
    let finding = match wanted {
        wanted if wanted.contains(&IpFamily::V6) => Finding::warning("ipv6", message, advice),
        _ => Finding::note("ipv6", message),
    };
    (vec![IpFamily::V4], finding)
}

/// This host's interfaces, or why they cannot be listed.
pub(super) fn links() -> Result<Vec<Link>, String> {
    host::links().map_err(|error| format!("the interfaces cannot be listed: {error}"))
}

/// Whether packets are passed on to endpoints on other hosts and in other network namespaces.
pub(super) fn forwarding(families: &[IpFamily], links: &[Link]) -> Vec<Finding> {
    let judge = |family: &IpFamily| {
        let name = match family {
            IpFamily::V4 => "net.ipv4.ip_forward",
            IpFamily::V6 => "net.ipv6.conf.all.forwarding",
        };
        match sysctl(name).as_deref() {
            Some("0") => Finding::warning(
                "forwarding",
                format!(
                    "{name} is 0: connections from elsewhere do not reach endpoints, pods' neither"
                ),
                format!("set {name}=1"),
            ),
            Some(_) => forwarding_of_each(*family, name, links),
            None => Finding::note("forwarding", format!("{name} cannot be read")),
        }
    };
    families.iter().map(judge).collect()
}

/// The same for what comes in by single interfaces, given that it is on for the host.
fn forwarding_of_each(family: IpFamily, name: &str, links: &[Link]) -> Finding {
    let version = match family {
        IpFamily::V4 => "ipv4",
        IpFamily::V6 => "ipv6",
    };
    let is_off = |link: &&Link| {
        // A dot may be part of an interface's name, as it is of VLANs'.
        let path = format!("/proc/sys/net/{version}/conf/{}/forwarding", link.name);
        let is_port = link.master.is_some();
        link.name != "lo" && !is_port && fs::read_to_string(path).is_ok_and(|on| on.trim() == "0")
    };
    let off: Vec<_> = links
        .iter()
        .filter(is_off)
        .map(|link| &*link.name)
        .collect();
    if off.is_empty() {
        return Finding::ok("forwarding", format!("{name} is on"));
    }
    Finding::warning(
        "forwarding",
        format!(
            "{name} is on, and net.{version}.conf.INTERFACE.forwarding is 0 for {}: connections \
             that come in there do not reach endpoints elsewhere",
            off.join(", ")
        ),
        "set it to 1 for interfaces by which clients or pods come",
    )
}

/// Whether what crosses a bridge between two pods is translated back on its way.
pub(super) fn bridges(
    links: &Result<Vec<Link>, String>,
    settings: &Settings,
    families: &[IpFamily],
) -> Vec<Finding> {
    let links = match links {
        Ok(links) => links,
        Err(error) => return vec![Finding::note("bridge", error.as_str())],
    };
    let bridges = bridges_with_pods(links, &settings.detect_local);
    if bridges.is_empty() {
        return vec![Finding::ok("bridge", "no pods are on a bridge")];
    }
    let bridges = bridges.join(", ");
    let judge = |family: &IpFamily| {
        let name = match family {
            IpFamily::V4 => "net.bridge.bridge-nf-call-iptables",
            IpFamily::V6 => "net.bridge.bridge-nf-call-ip6tables",
        };
        let problem = match sysctl(name).as_deref() {
            Some("0") => format!("{name} is 0"),
            Some(_) => {
                return Finding::ok("bridge", format!("{name} is on, for pods on {bridges}"));
            }
            None => "module br_netfilter is not loaded".into(),
        };
        Finding::warning(
            "bridge",
            format!(
                "{problem}: a pod on {bridges} cannot reach a Service by {family} if the endpoint \
                 is on the same bridge"
            ),
            format!("load br_netfilter and set {name}=1, unless the bridge isolates its ports"),
        )
    };
    families.iter().map(judge).collect()
}

/// The bridges that have ports, and the one that pods are told by.
fn bridges_with_pods(links: &[Link], detect_local: &DetectLocal) -> Vec<String> {
    let has_ports = |bridge: &Link| links.iter().any(|port| port.master == Some(bridge.index));
    let is_pods = |bridge: &Link| matches!(detect_local, DetectLocal::BridgeInterface(name) if name.as_str() == bridge.name);
    links
        .iter()
        .filter(|link| link.kind == "bridge" && (has_ports(link) || is_pods(link)))
        .map(|link| link.name.clone())
        .collect()
}

/// Whether the addresses of the health and metrics servers can be bound.
pub(super) fn ports(settings: &Settings) -> Vec<Finding> {
    let servers = [
        ("healthzBindAddress", settings.healthz_bind_address),
        ("metricsBindAddress", settings.metrics_bind_address),
    ];
    let judge = |(name, address): (&str, Option<SocketAddr>)| {
        let address = address?;
        Some(match TcpListener::bind(address) {
            Ok(_) => Finding::ok("ports", format!("{name} {address} is free")),
            Err(error) => {
                let message = format!("{name} {address} cannot be had: {error}");
                let advice = "stop who has it, kube-proxy perhaps, or configure another address";
                if settings.bind_address_hard_fail {
                    Finding::error("ports", message, advice)
                } else {
                    Finding::warning("ports", message, advice)
                }
            }
        })
    };
    servers.into_iter().filter_map(judge).collect()
}

/// The value of a sysctl in this network namespace; `None` if there is none.
fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_count_if_they_have_ports_or_are_configured() {
        let link = |index, name: &str, kind: &str, master| Link {
            index,
            name: name.into(),
            kind: kind.into(),
            master,
        };
        let links = [
            link(1, "docker0", "bridge", None),
            link(2, "cni0", "bridge", None),
            link(3, "veth1", "veth", Some(2)),
            link(4, "bond0", "bond", None),
            link(5, "eth0", "", Some(4)),
        ];
        let by_source = DetectLocal::NodeCidr;
        assert_eq!(bridges_with_pods(&links, &by_source), ["cni0"]);
        let by_bridge = DetectLocal::BridgeInterface("docker0".parse().unwrap());
        assert_eq!(bridges_with_pods(&links, &by_bridge), ["docker0", "cni0"]);
    }
}
