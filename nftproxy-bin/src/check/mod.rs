//! Whether this host has what the proxy needs: `nftproxy check` prints it, `nftproxy run` acts on
//! it.
//!
//! It may use `config` and the library. Entry points: [`kernel`], which says what rules can be had,
//! and [`surroundings`], which looks at the rest. Nothing here changes anything.

mod configuration;
mod finding;
mod host;
mod modules;
mod neighbours;
mod routes;
mod rules;

use nftproxy_core::model::IpFamily;

pub(crate) use self::configuration::{Families, INCOMPLETE, Unfit, list};
pub(crate) use self::finding::{Finding, Level};
use crate::config::Settings;

/// What the kernel can do.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The families whose rules it takes.
    pub(crate) families: Vec<IpFamily>,
    pub(crate) findings: Vec<Finding>,
}

/// Tries what the kernel can do. It takes some 10 to 30 ms.
pub(crate) fn kernel(settings: &Settings) -> Kernel {
    let wanted = wanted(settings);
    let (kernel, version) = rules::kernel();
    let (families, ipv6) = host::families(&wanted);
    let (mut usable, mut rules) = rules::rules(&kernel, &families, &wanted);
    if usable.is_empty() && rules.iter().all(|finding| finding.level != Level::Error) {
        // Without any family there is no proxy, whichever it was to be.
        (usable, rules) = rules::rules(&kernel, &families, &families);
    }
    let families = usable;
    let mut findings = vec![version, ipv6];
    findings.extend(rules);
    if !families.is_empty() {
        findings.push(rules::conntrack(&kernel));
    }
    Kernel { families, findings }
}

/// Looks at what else makes a difference to traffic of these families.
pub(crate) fn surroundings(settings: &Settings, families: &[IpFamily]) -> Vec<Finding> {
    // Where pods have one family only, the other is of no use to them.
    let has_pods = |family: &&IpFamily| {
        let mut cidrs = settings.cluster_cidrs.iter();
        settings.cluster_cidrs.is_empty() || cidrs.any(|cidr| family_of(cidr) == **family)
    };
    let families: Vec<IpFamily> = families.iter().filter(has_pods).copied().collect();
    let links = host::links();
    let mut findings = host::forwarding(&families, links.as_deref().unwrap_or_default());
    findings.extend(host::bridges(&links, settings, &families));
    if families.contains(&IpFamily::V4) {
        findings.push(routes::reverse_path());
    }
    // Who may not ask has been told so.
    if !families.is_empty() {
        findings.extend(neighbours::neighbours(links.as_deref().unwrap_or_default()));
    }
    findings
}

/// Looks whether the servers' ports are free, which they are not while the proxy runs.
pub(crate) fn ports(settings: &Settings) -> Vec<Finding> {
    host::ports(settings)
}

/// The families that the kernel is to have: those of the pods' networks, else that of the address it
/// is bound to. A wildcard says nothing; the node will.
fn wanted(settings: &Settings) -> Vec<IpFamily> {
    if settings.cluster_cidrs.is_empty() {
        let bind_address = Some(settings.bind_address).filter(|ip| !ip.is_unspecified());
        return bind_address.map(IpFamily::of).into_iter().collect();
    }
    let mut families: Vec<_> = settings.cluster_cidrs.iter().map(family_of).collect();
    families.sort_unstable();
    families.dedup();
    families
}

fn family_of(cidr: &ipnet::IpNet) -> IpFamily {
    if cidr.addr().is_ipv4() {
        IpFamily::V4
    } else {
        IpFamily::V6
    }
}
