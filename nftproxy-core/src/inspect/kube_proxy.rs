//! What kube-proxy leaves in a kernel, in each of its modes, by name. Entry points: [`CHAINS`],
//! [`PREFIXES`], and [`outside_of_nftables`] for what no listing of nf_tables shows.

use super::finding::{Finding, Kind, Severity};
use crate::model::IpFamily;

/// Its table in nftables mode.
pub const TABLE: &str = "kube-proxy";

/// Its chains in its modes iptables and ipvs, by table, without those for each Service. The
/// kubelet's are not among them.
pub const CHAINS: [(&str, &[&str]); 3] = [
    (
        "nat",
        &[
            "KUBE-SERVICES",
            "KUBE-NODEPORTS",
            "KUBE-POSTROUTING",
            "KUBE-MARK-MASQ",
            "KUBE-PROXY-CANARY",
            "KUBE-NODE-PORT",
            "KUBE-LOAD-BALANCER",
        ],
    ),
    (
        "filter",
        &[
            "KUBE-SERVICES",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FORWARD",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-FIREWALL",
            "KUBE-PROXY-CANARY",
            "KUBE-NODE-PORT",
            "KUBE-SOURCE-RANGES-FIREWALL",
            "KUBE-IPVS-FILTER",
            "KUBE-IPVS-OUT-FILTER",
        ],
    ),
    ("mangle", &["KUBE-PROXY-CANARY"]),
];

/// What the names of chains for each Service start with, in table `nat`.
pub const PREFIXES: [&str; 5] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-FW-",
    "KUBE-EXT-",
    "KUBE-SEP-",
];

/// Those of [`CHAINS`] that lead to Services.
const SERVING: [&str; 4] = [
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
];

/// Whether a chain of this name serves Services.
pub(super) fn serves(chain: &str) -> bool {
    SERVING.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// What may serve Services on this host though no listing of nf_tables shows it: virtual servers
/// of ipvs, as `/proc/net/ip_vs` has them, and tables of the legacy iptables, as
/// `/proc/net/ip_tables_names` and `/proc/net/ip6_tables_names` have them. A file that does not
/// exist is empty; `None` stands for one that cannot be read.
pub fn outside_of_nftables(
    ipvs: Option<&str>,
    legacy: [(IpFamily, Option<&str>); 2],
) -> Vec<Finding> {
    let finding = |severity, kind, family, object: &str, message: String, effect: &str| Finding {
        severity,
        kind,
        family,
        service_port: None,
        object: object.into(),
        message,
        effect: effect.into(),
    };
    let mut findings = Vec::new();
    let protocols = ["TCP ", "UDP ", "SCTP ", "FWM "];
    let is_server = |line: &&str| protocols.iter().any(|start| line.starts_with(start));
    match ipvs.map(|text| text.lines().filter(is_server).count()) {
        Some(0) => {}
        Some(n) => findings.push(finding(
            Severity::Warning,
            Kind::KubeProxy,
            None,
            "ipvs",
            format!("it has {n} virtual servers"),
            "it decides over connections to their addresses; if they are kube-proxy's, `nftproxy cleanup` removes them",
        )),
        None => findings.push(finding(
            Severity::Note,
            Kind::KubeProxy,
            None,
            "ipvs",
            "it cannot be told whether it has virtual servers".into(),
            "",
        )),
    }
    for (family, names) in legacy {
        let tables = names.map(|names| names.split_whitespace().collect::<Vec<_>>().join(", "));
        let message = match tables {
            Some(tables) if tables.is_empty() => continue,
            Some(tables) => format!("it has the tables {tables}, whose rules cannot be seen here"),
            None => "it cannot be told whether it has tables".into(),
        };
        let (object, effect) = match family {
            IpFamily::V4 => (
                "iptables-legacy",
                "`iptables-legacy-save` shows them; `nftproxy cleanup` removes those of kube-proxy",
            ),
            IpFamily::V6 => (
                "ip6tables-legacy",
                "`ip6tables-legacy-save` shows them; `nftproxy cleanup` removes those of kube-proxy",
            ),
        };
        findings.push(finding(
            Severity::Note,
            Kind::KubeProxy,
            Some(family),
            object,
            message,
            effect,
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serves_is_among_what_is_removed() {
        for name in SERVING {
            assert!(
                CHAINS.iter().any(|(_, chains)| chains.contains(&name)),
                "{name}"
            );
        }
        assert!(serves("KUBE-SVC-ABC") && !serves("KUBE-PROXY-CANARY"));
        assert!(!serves("KUBE-KUBELET-CANARY"));
    }

    #[test]
    fn what_no_listing_shows_is_told() {
        let legacy = |v4, v6| [(IpFamily::V4, v4), (IpFamily::V6, v6)];
        assert_eq!(
            outside_of_nftables(Some(""), legacy(Some(""), Some(""))),
            []
        );
        let ipvs = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port Scheduler Flags\n  \
            -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
            TCP  0A600001:01BB rr \n  \
            -> AC120002:192B      Masq    1      0          0         \n\
            UDP  [fd0000100096000000000000000000000a]:0035 rr \n";
        let found = outside_of_nftables(Some(ipvs), legacy(Some("nat\nfilter\n"), None));
        let lines: Vec<_> = found
            .iter()
            .map(|finding| {
                format!(
                    "{} {}: {}",
                    finding.severity, finding.object, finding.message
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                "warning ipvs: it has 2 virtual servers",
                "note iptables-legacy: it has the tables nat, filter, whose rules cannot be seen here",
                "note ip6tables-legacy: it cannot be told whether it has tables",
            ]
        );
    }
}
