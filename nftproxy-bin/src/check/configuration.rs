//! Settings that are valid each for itself, and do not fit together, or not this node.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use nftproxy_core::model::{IpFamily, NodeInfo};

use super::family_of;
use super::finding::Finding;
use crate::config::{DetectLocal, NodePortAddresses, Settings};

/// kube-proxy's words for what it goes on with.
pub(crate) const INCOMPLETE: &str = "Kube-proxy configuration may be incomplete or incorrect";

const UNSET: &str = "nodePortAddresses is unset; NodePort connections will be accepted on all local \
                     IPs. Consider using `--nodeport-addresses primary`";

/// The settings whose families have to agree with each other, and with the node's.
#[derive(Debug, Clone)]
pub(crate) struct Families {
    bind_address: IpAddr,
    detect_local: DetectLocal,
    cluster_cidrs: Vec<IpNet>,
    node_port_addresses: NodePortAddresses,
    exclude_cidrs: Vec<IpNet>,
    listeners: [(&'static str, Option<SocketAddr>); 2],
    /// Those that this host has rules for.
    supported: Vec<IpFamily>,
}

/// Why the proxy would be of no use, in kube-proxy's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("no support for primary IP family {:?}", .0.to_string())]
    Unsupported(IpFamily),
    #[error("kube-proxy configuration is incorrect: {}", list(.0))]
    Incorrect(Vec<String>),
}

/// As Go writes several errors.
pub(crate) fn list(problems: &[String]) -> String {
    match problems {
        [problem] => problem.clone(),
        problems => format!("[{}]", problems.join(", ")),
    }
}

impl Families {
    pub(crate) fn new(settings: &Settings, supported: &[IpFamily]) -> Self {
        let exclude_cidrs = &settings.effective.ipvs.exclude_cidrs;
        Self {
            bind_address: settings.bind_address,
            detect_local: settings.detect_local.clone(),
            cluster_cidrs: settings.cluster_cidrs.clone(),
            node_port_addresses: settings.node_port_addresses.clone(),
            exclude_cidrs: exclude_cidrs
                .iter()
                .filter_map(|cidr| cidr.parse().ok())
                .collect(),
            listeners: [
                ("healthzBindAddress", settings.healthz_bind_address),
                ("metricsBindAddress", settings.metrics_bind_address),
            ],
            supported: supported.to_vec(),
        }
    }

    /// Whether both families have rules.
    pub(crate) fn is_dual_stack(&self) -> bool {
        self.supported.len() > 1
    }

    /// The family of the address it is bound to, if that is a certain one; else of the node's first.
    pub(crate) fn primary(&self, node: &NodeInfo) -> IpFamily {
        if !self.bind_address.is_unspecified() {
            return IpFamily::of(self.bind_address);
        }
        node.ips
            .first()
            .map_or(IpFamily::V4, |ip| IpFamily::of(*ip))
    }

    /// What does not fit together, and does not matter enough to end for.
    ///
    /// # Errors
    ///
    /// If the proxy would be of no use.
    pub(crate) fn judge(&self, node: &NodeInfo) -> Result<Vec<String>, Unfit> {
        let primary = self.primary(node);
        if !self.supported.contains(&primary) {
            return Err(Unfit::Unsupported(primary));
        }
        let (mut problems, is_fatal) = self.wholly_other(primary, node);
        if is_fatal {
            return Err(Unfit::Incorrect(problems));
        }
        problems.extend(self.node_ports(primary, node));
        Ok(problems)
    }

    /// What is wholly of the family that is not the primary one; whether that is fatal.
    fn wholly_other(&self, primary: IpFamily, node: &NodeInfo) -> (Vec<String>, bool) {
        let other = other(primary);
        let cluster = if self.is_dual_stack() {
            format!("{primary}-primary")
        } else {
            format!("{primary}-only")
        };
        let is_other = |cidrs: &[IpNet]| {
            !cidrs.is_empty() && cidrs.iter().all(|cidr| family_of(cidr) == other)
        };
        let mut problems = Vec::new();
        let mut is_fatal = false;
        let mut contains = |name: &str| {
            problems.push(format!(
                "cluster is {cluster} but {name} contains only {other} addresses"
            ));
        };
        if is_other(&self.cluster_cidrs) {
            contains("clusterCIDRs");
            is_fatal |=
                matches!(self.detect_local, DetectLocal::ClusterCidr(_)) && !self.is_dual_stack();
        }
        if is_other(&node.pod_cidrs) {
            contains("node.spec.podCIDRs");
            is_fatal |= matches!(self.detect_local, DetectLocal::NodeCidr);
        }
        if !self.is_dual_stack() {
            if is_other(&self.exclude_cidrs) {
                contains("ipvs.excludeCIDRs");
            }
            for (name, address) in self.listeners {
                let ip = address.map(|address| address.ip());
                if ip.is_some_and(|ip| IpFamily::of(ip) == other && !ip.is_unspecified()) {
                    problems.push(format!("cluster is {cluster} but {name} is {other}"));
                }
            }
        }
        (problems, is_fatal)
    }

    /// What is open to more than is asked for.
    fn node_ports(&self, primary: IpFamily, node: &NodeInfo) -> Option<String> {
        let other = other(primary);
        let families: Vec<IpFamily> = match &self.node_port_addresses {
            NodePortAddresses::Cidrs(cidrs) => cidrs.iter().map(family_of).collect(),
            NodePortAddresses::Primary => [IpFamily::V4, IpFamily::V6]
                .into_iter()
                .filter(|family| {
                    let ip = crate::config::node_ip(self.bind_address, node, *family);
                    !ip.is_loopback()
                })
                .collect(),
        };
        let is_dual = |cidrs: &[IpNet]| {
            let families = || cidrs.iter().map(family_of);
            families().any(|family| family == primary) && families().any(|family| family == other)
        };
        let appears_dual_stack = is_dual(&self.cluster_cidrs)
            || is_dual(&self.exclude_cidrs)
            || is_dual(&node.pod_cidrs);
        if families.is_empty() {
            return Some(UNSET.to_owned());
        }
        let contains_only = |cluster: String, there: IpFamily, missing: IpFamily| {
            Some(format!(
                "cluster appears to be {cluster} but nodePortAddresses contains only {there} \
                 addresses; NodePort connections will be accepted on all local {missing} IPs"
            ))
        };
        if appears_dual_stack && families.iter().all(|family| *family == primary) {
            return contains_only("dual-stack".to_owned(), primary, other);
        }
        if families.iter().all(|family| *family == other) {
            return contains_only(format!("{primary}-primary"), other, primary);
        }
        None
    }

    /// The same for those who look before there is a proxy.
    pub(crate) fn findings(&self, node: &NodeInfo) -> Vec<Finding> {
        let advice = "name addresses and networks of the families that the node and its pods have";
        match self.judge(node) {
            Ok(problems) => problems
                .into_iter()
                // The Node object may know addresses that nobody can guess here.
                .filter(|problem| problem != UNSET || !node.ips.is_empty())
                .map(|problem| {
                    let message = format!("{INCOMPLETE}: {problem}");
                    Finding::warning("configuration", message, advice)
                })
                .collect(),
            Err(unfit) => vec![Finding::error("configuration", unfit.to_string(), advice)],
        }
    }
}

fn other(family: IpFamily) -> IpFamily {
    match family {
        IpFamily::V4 => IpFamily::V6,
        IpFamily::V6 => IpFamily::V4,
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;
    use crate::config::ConfigFlags;

    const BOTH: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];
    const V4_ONLY: [IpFamily; 1] = [IpFamily::V4];

    fn families(arguments: &[&str], supported: &[IpFamily]) -> Families {
        let command = ConfigFlags::augment_args(Command::new("a")).no_binary_name(true);
        let matches = command.try_get_matches_from(arguments).unwrap();
        let flags = ConfigFlags::from_arg_matches(&matches).unwrap();
        Families::new(&Settings::load(&flags).unwrap(), supported)
    }

    fn node(ips: &[&str], pod_cidrs: &[&str]) -> NodeInfo {
        NodeInfo {
            zone: None,
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            pod_cidrs: pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        }
    }

    fn judge(arguments: &[&str], supported: &[IpFamily], node: &NodeInfo) -> Vec<String> {
        families(arguments, supported).judge(node).unwrap()
    }

    /// O-72: a wildcard says nothing, whatever its family.
    #[test]
    fn the_primary_family_is_that_of_the_bind_address_or_of_the_node() {
        let v4_first = node(&["192.0.2.1", "2001:db8::1"], &[]);
        let v6_first = node(&["2001:db8::1", "192.0.2.1"], &[]);
        for (bind_address, node, expected) in [
            ("0.0.0.0", &v4_first, IpFamily::V4),
            ("0.0.0.0", &v6_first, IpFamily::V6),
            ("::", &v4_first, IpFamily::V4),
            ("::", &NodeInfo::default(), IpFamily::V4),
            ("2001:db8::7", &v4_first, IpFamily::V6),
            ("192.0.2.7", &v6_first, IpFamily::V4),
        ] {
            let argument = format!("--bind-address={bind_address}");
            let primary = families(&[&argument], &BOTH).primary(node);
            assert_eq!(primary, expected, "{bind_address}: {node:?}");
        }
    }

    /// O-75
    #[test]
    fn what_does_not_fit_together_is_named() {
        let both = node(&["192.0.2.1", "2001:db8::1"], &[]);
        let v4 = node(&["192.0.2.1"], &[]);
        let only = "cluster is IPv4-primary but clusterCIDRs contains only IPv6 addresses";
        let dual = "cluster appears to be dual-stack but nodePortAddresses contains only IPv4 \
                    addresses; NodePort connections will be accepted on all local IPv6 IPs";
        let primary = "cluster appears to be IPv4-primary but nodePortAddresses contains only IPv6 \
                       addresses; NodePort connections will be accepted on all local IPv4 IPs";
        let dual_cidrs = "--cluster-cidr=10.0.0.0/8,fd00::/8";
        for (arguments, node, expected) in [
            (&[][..], &both, &[][..]),
            (&[], &v4, &[]),
            (&["--cluster-cidr=10.0.0.0/8"], &both, &[]),
            (&["--cluster-cidr=fd00::/8"], &both, &[only]),
            (
                &["--cluster-cidr=fd00::/8", "--bind-address=2001:db8::1"],
                &both,
                &[],
            ),
            (&[dual_cidrs], &both, &[]),
            (&[dual_cidrs], &v4, &[dual]),
            (
                &[dual_cidrs, "--nodeport-addresses=192.0.2.0/24"],
                &both,
                &[dual],
            ),
            (&["--nodeport-addresses=2001:db8::/64"], &both, &[primary]),
            (
                &["--nodeport-addresses=192.0.2.0/24,2001:db8::/64"],
                &both,
                &[],
            ),
            (&[], &NodeInfo::default(), &[UNSET]),
        ] {
            assert_eq!(judge(arguments, &BOTH, node), expected, "{arguments:?}");
        }
        let pods = node(&["192.0.2.1"], &["fd00:1::/64"]);
        let named = "cluster is IPv4-primary but node.spec.podCIDRs contains only IPv6 addresses";
        assert_eq!(judge(&[], &BOTH, &pods), [named]);
        let listeners = [
            "--healthz-bind-address=[::1]:10256",
            "--metrics-bind-address=[::]:10249",
            "--ipvs-exclude-cidrs=fd00::/8",
        ];
        assert_eq!(judge(&listeners, &BOTH, &v4), [""; 0]);
        assert_eq!(
            judge(&listeners, &V4_ONLY, &v4),
            [
                "cluster is IPv4-only but ipvs.excludeCIDRs contains only IPv6 addresses",
                "cluster is IPv4-only but healthzBindAddress is IPv6",
            ]
        );
    }

    /// O-76
    #[test]
    fn what_can_never_work_is_fatal() {
        let v4 = node(&["192.0.2.1"], &[]);
        let v6 = node(&["2001:db8::1"], &[]);
        let pods = node(&["192.0.2.1"], &["fd00:1::/64"]);
        let cluster = "kube-proxy configuration is incorrect: cluster is IPv4-only but \
                       clusterCIDRs contains only IPv6 addresses";
        let both = "kube-proxy configuration is incorrect: [cluster is IPv4-primary but \
                    clusterCIDRs contains only IPv6 addresses, cluster is IPv4-primary but \
                    node.spec.podCIDRs contains only IPv6 addresses]";
        let other = "--cluster-cidr=fd00::/8";
        for (arguments, supported, node, expected) in [
            (&[other][..], &V4_ONLY[..], &v4, cluster),
            (
                &[],
                &V4_ONLY,
                &v6,
                "no support for primary IP family \"IPv6\"",
            ),
            (
                &["--bind-address=2001:db8::1"],
                &V4_ONLY,
                &v4,
                "no support for primary IP family \"IPv6\"",
            ),
            (&["--detect-local-mode=NodeCIDR", other], &BOTH, &pods, both),
        ] {
            let unfit = families(arguments, supported).judge(node).unwrap_err();
            assert_eq!(unfit.to_string(), expected, "{arguments:?}");
        }
        // With other ways to know pods, and with two families, there is some use in going on.
        let bridge = [
            "--detect-local-mode=BridgeInterface",
            "--pod-bridge-interface=b",
            other,
        ];
        assert_eq!(judge(&bridge, &V4_ONLY, &v4).len(), 1);
        assert_eq!(judge(&[other], &BOTH, &v4).len(), 1);
    }
}
