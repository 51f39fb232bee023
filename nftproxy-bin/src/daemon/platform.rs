//! What the host must have, checked at start so that the message is clear.

use anyhow::{Context, bail};
use nftproxy_core::apply::netlink::conntrack::Conntrack;
use nftproxy_core::apply::netlink::{Netlink, kernel_version};
use nftproxy_core::engine::Kernels;
use nftproxy_core::host;
use nftproxy_core::model::{V4, V6};

/// The oldest kernel with all that the rules need, as kube-proxy's nftables mode has it.
const OLDEST_KERNEL: (u32, u32) = (5, 13);
/// Skips the check of the kernel's version, for kernels with backports.
const SKIP_KERNEL_CHECK: &str = "KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK";

/// Checks the kernel and opens connections to it, one for each family that the host has. Flows are
/// forgotten elsewhere.
pub(crate) fn open_kernel() -> anyhow::Result<Kernels<Netlink, Netlink, Conntrack>> {
    let release = nix::sys::utsname::uname().context("asking for the kernel's version")?;
    let release = release.release().to_string_lossy().into_owned();
    let is_skipped = std::env::var_os(SKIP_KERNEL_CHECK).is_some_and(|value| !value.is_empty());
    if !is_skipped {
        check_version(&release)?;
    }
    let mut v4 = Netlink::open()?;
    let mut v6 = host::has_ipv6().then(Netlink::open).transpose()?;
    // To ask needs the same permission as to change.
    v4.check::<V4>().context("listing table ip nftproxy")?;
    if let Some(v6) = &mut v6 {
        v6.check::<V6>().context("listing table ip6 nftproxy")?;
    }
    Ok(Kernels {
        v4: Some(v4),
        v6,
        flows: None,
    })
}

fn check_version(release: &str) -> anyhow::Result<()> {
    let Some(version) = kernel_version(release) else {
        bail!("kernel version {release:?} cannot be read; set {SKIP_KERNEL_CHECK}=1 to go on");
    };
    let (oldest_major, oldest_minor) = OLDEST_KERNEL;
    if version < OLDEST_KERNEL {
        bail!(
            "kernel {release} is too old: nftproxy requires {oldest_major}.{oldest_minor} or later \
             (set {SKIP_KERNEL_CHECK}=1 if yours has the features backported)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_compared_by_number() {
        for release in ["5.13.0", "5.100.1-generic", "6.1.0-13-amd64", "10.0"] {
            check_version(release).unwrap();
        }
        for release in ["5.12.19", "4.19.0", "5.4.0-1-cloud", "mystery"] {
            check_version(release).unwrap_err();
        }
    }
}
