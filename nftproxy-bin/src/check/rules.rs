//! Whether this kernel takes the rules, and connection tracking can be asked.

use std::env;
use std::io;
use std::path::Path;

use nftproxy_core::apply::ApplyError;
use nftproxy_core::apply::netlink::conntrack::{Conntrack, Usage};
use nftproxy_core::apply::netlink::{Lack, Netlink, Part};
use nftproxy_core::model::IpFamily;

use super::finding::Finding;
use super::modules::Kernel;
use crate::error::chain;

/// Older ones may lack something that cannot be tried; the same bound as kube-proxy's.
const OLDEST_KERNEL: (u32, u32) = (5, 13);
/// Says that an older one is known to be good.
const SKIP_KERNEL_CHECK: &str = "KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK";
/// From this share of the maximum on, connection tracking is nearly full: percent.
const NEARLY_FULL: u64 = 90;

/// The kernel's release, and whether it is one that nobody has tried.
pub(super) fn kernel() -> (Kernel, Finding) {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let is_skipped = env::var_os(SKIP_KERNEL_CHECK).is_some_and(|value| !value.is_empty());
    let finding = version(&release, is_skipped);
    (Kernel::new(Path::new("/"), &release), finding)
}

fn version(release: &str, is_skipped: bool) -> Finding {
    let is_old = kernel_version(release).is_none_or(|version| version < OLDEST_KERNEL);
    if is_old && !is_skipped {
        let (major, minor) = OLDEST_KERNEL;
        return Finding::warning(
            "kernel",
            format!("Linux {release} is older than {major}.{minor}, which nobody has tried"),
            format!("set {SKIP_KERNEL_CHECK}=1 if it has the features of newer ones"),
        );
    }
    Finding::ok("kernel", format!("Linux {release}"))
}

/// The major and minor version in a kernel's release, as `uname` has it: `6.1.0-13-amd64`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Tries the rules of some families, of which some are wanted: those that are usable, and what was
/// found.
pub(super) fn rules(
    kernel: &Kernel,
    families: &[IpFamily],
    wanted: &[IpFamily],
) -> (Vec<IpFamily>, Vec<Finding>) {
    let tried = Netlink::open().and_then(|mut netlink| netlink.try_rules(families));
    let lacks = match tried {
        Ok(lacks) => lacks,
        Err(ApplyError::NotPermitted) => {
            let finding = Finding::error(
                "rights",
                "not permitted to change nftables",
                "run as root or with CAP_NET_ADMIN, in the node's network namespace",
            );
            return (Vec::new(), vec![finding]);
        }
        // No netlink socket of that kind: not even nfnetlink is there.
        Err(ApplyError::Open(error)) => families
            .iter()
            .map(|family| Lack {
                family: *family,
                part: Part::Tables,
                source: io::Error::from_raw_os_error(error.raw_os_error().unwrap_or_default()),
            })
            .collect(),
        Err(error) => {
            let finding = Finding::error("rules", chain(&error), "try again");
            return (Vec::new(), vec![finding]);
        }
    };
    let mut findings = vec![Finding::ok("rights", "may change nftables")];
    let mut usable = Vec::new();
    for family in families {
        let name = family.nft_name();
        let lacks: Vec<_> = lacks.iter().filter(|lack| lack.family == *family).collect();
        if lacks.is_empty() {
            usable.push(*family);
            let message = format!("the kernel takes the rules of table {name} nftproxy");
            findings.push(Finding::ok("rules", message));
        }
        for Lack { part, source, .. } in lacks {
            let why = kernel.why(
                part.config(*family),
                part.modules(*family),
                &source.to_string(),
            );
            let message = format!(
                "no table {name} nftproxy: the kernel has no {part} for {family}, as {}",
                why.reason
            );
            findings.push(if wanted.contains(family) {
                Finding::error("rules", message, why.advice)
            } else {
                Finding::warning("rules", message, why.advice)
            });
        }
    }
    (usable, findings)
}

/// Whether flows can be forgotten, and whether there is room for more.
pub(super) fn conntrack(kernel: &Kernel) -> Finding {
    let usage = Conntrack::open().and_then(|mut conntrack| conntrack.usage());
    match usage {
        Ok(usage) => fullness(usage),
        Err(ApplyError::NoConntrack) => {
            let why = kernel.why(
                &["NF_CONNTRACK", "NF_CT_NETLINK"],
                &["nf_conntrack", "nf_conntrack_netlink"],
                "Operation not supported",
            );
            Finding::warning(
                "conntrack",
                format!(
                    "UDP flows stay with endpoints that are gone: connection tracking cannot be \
                     asked, as {}",
                    why.reason
                ),
                why.advice,
            )
        }
        Err(error) => Finding::warning(
            "conntrack",
            format!(
                "UDP flows stay with endpoints that are gone: {}",
                chain(&error)
            ),
            "run as root or with CAP_NET_ADMIN",
        ),
    }
}

fn fullness(usage: Usage) -> Finding {
    match usage {
        Usage { entries, max: None } => {
            Finding::ok("conntrack", format!("{entries} connections are tracked"))
        }
        Usage {
            entries,
            max: Some(max),
        } => {
            let message = format!("{entries} of at most {max} connections are tracked");
            // 0 is no limit.
            if max != 0 && u64::from(entries) * 100 >= u64::from(max) * NEARLY_FULL {
                Finding::warning(
                    "conntrack",
                    format!("{message}; beyond, new ones are dropped"),
                    "raise net.netfilter.nf_conntrack_max",
                )
            } else {
                Finding::ok("conntrack", message)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;

    /// O-78: only warned of, as what the kernel takes is tried.
    #[test]
    fn versions_are_compared_by_number_and_only_warned_of() {
        for release in ["5.13.0", "5.100.1-generic", "6.1.0-13-amd64", "10.0"] {
            assert_eq!(version(release, false).level, Level::Ok, "{release}");
        }
        for release in ["5.12.19", "4.19.0", "5.4.0-1-cloud", "mystery"] {
            assert_eq!(version(release, false).level, Level::Warning, "{release}");
            assert_eq!(version(release, true).level, Level::Ok, "{release}");
        }
    }

    #[test]
    fn a_table_that_is_nearly_full_is_warned_of() {
        let level = |entries, max| fullness(Usage { entries, max }).level;
        assert_eq!(level(89, Some(100)), Level::Ok);
        assert_eq!(level(90, Some(100)), Level::Warning);
        assert_eq!(level(u32::MAX, Some(0)), Level::Ok);
        assert_eq!(level(u32::MAX, None), Level::Ok);
    }
}
