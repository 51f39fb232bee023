//! The subcommands, one file each.

pub(crate) mod args;
pub(crate) mod audit;
pub(crate) mod check;
pub(crate) mod cleanup;
pub(crate) mod describe;
pub(crate) mod diff;
pub(crate) mod digest;
mod ends;
pub(crate) mod explain;
pub(crate) mod init;
mod inputs;
pub(crate) mod list;
#[cfg(test)]
mod options;
mod paint;
pub(crate) mod render;
pub(crate) mod run;
pub(crate) mod trace;
mod watch;

use anyhow::Context;
use nftproxy_core::host;
use nftproxy_core::model::NodeInfo;

use crate::config::Settings;
use args::NodeFlags;

/// The name of this node: as configured, else this host's.
fn node_name(settings: &Settings) -> anyhow::Result<String> {
    if let Some(name) = &settings.node_name {
        return Ok(name.clone());
    }
    let name = nix::unistd::gethostname().context("asking for this host's name")?;
    Ok(name.to_string_lossy().trim().to_lowercase())
}

/// What is known of this node without a Node object: what the command line says, else what the
/// routing table suggests.
fn node_info(flags: &NodeFlags) -> NodeInfo {
    let ips = if flags.ips.is_empty() {
        host::guess_node_ips()
    } else {
        flags.ips.clone()
    };
    NodeInfo {
        zone: flags.zone.clone(),
        ips,
        pod_cidrs: Vec::new(),
    }
}
