//! `nftproxy cleanup`, and kube-proxy's `--cleanup`: takes away what service proxies leave behind.

use anyhow::bail;

use crate::leftovers;

/// Removes our tables, and kube-proxy's rules of all modes.
pub(crate) fn run() -> anyhow::Result<()> {
    if leftovers::remove_all() {
        return Ok(());
    }
    bail!("encountered an error while tearing down rules")
}
