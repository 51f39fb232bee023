//! `nftproxy cleanup`, and kube-proxy's `--cleanup`: takes away what service proxies leave behind.

use anyhow::bail;

use crate::leftovers;

/// Removes our tables, and unless only they are to go, kube-proxy's rules of all modes.
pub(crate) fn run(only_ours: bool) -> anyhow::Result<()> {
    if leftovers::remove(only_ours) {
        return Ok(());
    }
    bail!("encountered an error while tearing down rules")
}
