//! Whether anybody else translates Service addresses.

use std::fs;

use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::host::Link;
use nftproxy_core::inspect::is_kube_proxys;
use nftproxy_core::neighbour::Neighbour;
use nftproxy_core::ruleset::Table;
use nftproxy_core::ruleset::name::ChainName;
use nftproxy_core::ruleset::schema::{Hook, PRIORITY_DSTNAT};

use super::finding::Finding;
use crate::error::chain;

const STOP_KUBE_PROXY: &str = "stop kube-proxy if it runs; `nftproxy run` removes its rules \
     after its first sync, and `nftproxy cleanup` at once";
/// The interface that has all ClusterIPs in its ipvs mode.
const KUBE_PROXY_INTERFACE: &str = "kube-ipvs0";

/// Looks at all tables of this network namespace, and at its interfaces.
pub(super) fn neighbours(links: &[Link]) -> Vec<Finding> {
    let tables = Netlink::open().and_then(|mut netlink| netlink.neighbours());
    let mut findings = match tables {
        Ok(tables) => judge(&tables),
        Err(error) => vec![Finding::note(
            "neighbours",
            format!("others' tables cannot be listed: {}", chain(&error)),
        )],
    };
    if links.iter().any(|link| link.name == KUBE_PROXY_INTERFACE) {
        findings.push(Finding::warning(
            "neighbours",
            format!(
                "there is an interface {KUBE_PROXY_INTERFACE}: kube-proxy in ipvs mode serves \
                 Services as well, or has left its addresses"
            ),
            STOP_KUBE_PROXY,
        ));
    }
    // iptables-legacy keeps its rules where nobody else sees them.
    let legacy = ["ip", "ip6"].into_iter().filter(|family| {
        let path = format!("/proc/net/{family}_tables_names");
        fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == "nat"))
    });
    findings.extend(legacy.map(|family| {
        Finding::note(
            "neighbours",
            format!(
                "{family}tables-legacy has a nat table, which may translate Service addresses; \
                 what it holds cannot be told from here"
            ),
        )
    }));
    if findings.is_empty() {
        let message = "nobody else translates destinations";
        findings.push(Finding::ok("neighbours", message));
    }
    findings
}

fn judge(tables: &[Neighbour]) -> Vec<Finding> {
    let ours = Table::default();
    let mut findings = Vec::new();
    for table in tables {
        let Neighbour {
            family,
            table: name,
            is_dormant,
            base_chains,
            ..
        } = table;
        let is_ours = matches!(*family, "ip" | "ip6") && name == ours.name();
        if is_ours || *is_dormant || !matches!(*family, "ip" | "ip6" | "inet") {
            continue;
        }
        if is_kube_proxys(table) {
            findings.push(Finding::warning(
                "neighbours",
                format!(
                    "table {family} {name} has kube-proxy's rules, which serve Services as well"
                ),
                STOP_KUBE_PROXY,
            ));
            continue;
        }
        if is_nftproxy(&table.chains) {
            findings.push(Finding::warning(
                "neighbours",
                format!(
                    "table {family} {name} has the rules of another nftproxy, which may serve the \
                     same Services"
                ),
                format!(
                    "unless it is meant to be, stop it, and remove its rules with `nft delete \
                     table {family} {name}`"
                ),
            ));
            continue;
        }
        let earlier: Vec<_> = base_chains
            .iter()
            .filter(|chain| {
                chain.chain_type == "nat"
                    && [Hook::Prerouting, Hook::Output]
                        .map(Hook::number)
                        .contains(&chain.hook)
                    && chain.priority <= PRIORITY_DSTNAT
            })
            .map(|chain| format!("{} (priority {})", chain.name, chain.priority))
            .collect();
        if !earlier.is_empty() {
            findings.push(Finding::note(
                "neighbours",
                format!(
                    "table {family} {name} may translate destinations before nftproxy does: chains {}",
                    earlier.join(", ")
                ),
            ));
        }
    }
    findings
}

/// Whether a table has the chains that every version of ours has.
fn is_nftproxy(chains: &[String]) -> bool {
    let ours = [
        ChainName::Services,
        ChainName::NodePorts,
        ChainName::Prerouting,
        ChainName::Output,
        ChainName::Postrouting,
    ];
    ours.iter()
        .all(|ours| chains.iter().any(|chain| *chain == ours.to_string()))
}

#[cfg(test)]
mod tests {
    use nftproxy_core::neighbour::BaseChain;

    use super::*;
    use crate::check::finding::Level;

    fn table(family: &'static str, name: &str, chains: &[&str]) -> Neighbour {
        Neighbour {
            family,
            table: name.into(),
            chains: chains.iter().map(|&chain| chain.to_owned()).collect(),
            ..Neighbour::default()
        }
    }

    fn levels(table: Neighbour) -> Vec<Level> {
        judge(&[table])
            .iter()
            .map(|finding| finding.level)
            .collect()
    }

    /// O-145: what was made by iptables over nftables is told of.
    #[test]
    fn kube_proxy_is_known_in_every_mode_that_leaves_nftables_rules() {
        assert_eq!(levels(table("ip", "kube-proxy", &[])), [Level::Warning]);
        let iptables = ["PREROUTING", "KUBE-SERVICES", "KUBE-SVC-X"];
        assert_eq!(levels(table("ip6", "nat", &iptables)), [Level::Warning]);
        assert_eq!(levels(table("ip", "nftproxy", &["services"])), []);
        assert_eq!(levels(table("ip", "nat", &["PREROUTING"])), []);
    }

    #[test]
    fn other_instances_are_told_of() {
        let chains = [
            "services",
            "node-ports",
            "prerouting",
            "output",
            "postrouting",
        ];
        assert_eq!(levels(table("ip", "my-cni", &chains)), [Level::Warning]);
        assert_eq!(levels(table("ip", "nftproxy", &chains)), []);
        assert_eq!(levels(table("ip", "filter", &chains[2..])), []);
    }

    #[test]
    fn who_comes_first_is_noted() {
        let with = |chain_type: &str, hook, priority| {
            let mut other = table("inet", "other", &["a"]);
            other.base_chains.push(BaseChain {
                name: "a".into(),
                chain_type: chain_type.into(),
                hook,
                priority,
                drops_by_default: false,
            });
            other
        };
        assert_eq!(levels(with("nat", 0, -100)), [Level::Note]);
        assert_eq!(levels(with("nat", 3, -150)), [Level::Note]);
        assert_eq!(levels(with("nat", 0, -99)), []);
        assert_eq!(levels(with("nat", 4, -100)), []);
        assert_eq!(levels(with("filter", 0, -150)), []);
        let asleep = Neighbour {
            is_dormant: true,
            ..with("nat", 0, -100)
        };
        assert_eq!(levels(asleep), []);
        // A table of our name in another family is none of ours.
        let namesake = Neighbour {
            table: Table::default().name().into(),
            ..with("nat", 0, -100)
        };
        assert_eq!(levels(namesake), [Level::Note]);
    }
}
