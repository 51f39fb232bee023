//! Settings that are valid each for itself, and do not fit together.

use nftproxy_core::model::IpFamily;

use super::family_of;
use super::finding::Finding;
use crate::config::{NodePortAddresses, Settings};

/// kube-proxy's words for all of them.
const INCOMPLETE: &str = "Kube-proxy configuration may be incomplete or incorrect";

/// Compares families of addresses that are configured in several places.
pub(super) fn families_agree(settings: &Settings) -> Vec<Finding> {
    let primary = if settings.bind_address.is_ipv4() {
        IpFamily::V4
    } else {
        IpFamily::V6
    };
    let clusters: Vec<_> = settings.cluster_cidrs.iter().map(family_of).collect();
    let is_dual_stack = clusters.contains(&IpFamily::V4) && clusters.contains(&IpFamily::V6);
    let node_ports: Vec<_> = match &settings.node_port_addresses {
        NodePortAddresses::Primary => Vec::new(),
        NodePortAddresses::Cidrs(cidrs) => cidrs.iter().map(family_of).collect(),
    };
    let is_wholly_other = |families: &[IpFamily]| {
        !families.is_empty() && families.iter().all(|family| *family != primary)
    };
    let mut findings = Vec::new();
    let mut warn = |message: String, advice: &str| {
        let message = format!("{INCOMPLETE}: {message}");
        findings.push(Finding::warning("configuration", message, advice));
    };
    if is_wholly_other(&clusters) {
        warn(
            format!("clusterCIDR has no network of {primary}, the family of bindAddress"),
            "name one network of each family of the pods, or another bindAddress",
        );
    }
    if is_wholly_other(&node_ports) {
        warn(
            format!("nodePortAddresses has no network of {primary}, the family of bindAddress"),
            "name networks of that family too, or use `primary`",
        );
    } else if is_dual_stack && !node_ports.is_empty() && is_one_family(&node_ports) {
        warn(
            "nodePortAddresses has networks of one family, and the cluster has two".to_owned(),
            "name networks of both families, or use `primary`",
        );
    }
    findings
}

fn is_one_family(families: &[IpFamily]) -> bool {
    families.iter().all(|family| family == &families[0])
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;
    use crate::config::ConfigFlags;

    /// O-75
    #[test]
    fn families_that_do_not_fit_are_named() {
        for (arguments, expected) in [
            (&[][..], &[][..]),
            (&["--cluster-cidr=10.0.0.0/8"], &[]),
            (&["--cluster-cidr=fd00::/8"], &["clusterCIDR"]),
            (&["--cluster-cidr=fd00::/8", "--bind-address=::"], &[]),
            (&["--cluster-cidr=10.0.0.0/8,fd00::/8"], &[]),
            (
                &[
                    "--cluster-cidr=10.0.0.0/8,fd00::/8",
                    "--nodeport-addresses=192.0.2.0/24",
                ],
                &["nodePortAddresses has networks of one family"],
            ),
            (
                &["--nodeport-addresses=2001:db8::/64"],
                &["nodePortAddresses has no network of IPv4"],
            ),
            (&["--nodeport-addresses=192.0.2.0/24,2001:db8::/64"], &[]),
        ] {
            let command = ConfigFlags::augment_args(Command::new("a")).no_binary_name(true);
            let matches = command.try_get_matches_from(arguments).unwrap();
            let flags = ConfigFlags::from_arg_matches(&matches).unwrap();
            let findings = families_agree(&Settings::load(&flags).unwrap());
            assert_eq!(
                findings.len(),
                expected.len(),
                "{arguments:?}: {findings:?}"
            );
            for (finding, expected) in findings.iter().zip(expected) {
                assert!(finding.message.starts_with(INCOMPLETE), "{finding}");
                assert!(finding.message.contains(expected), "{finding}");
            }
        }
    }
}
