//! `nftproxy render`: manifests in, an nft script out. It needs no privileges.

use anyhow::{Context, bail};
use nftproxy_core::compile::{Compiled, compile};
use nftproxy_core::render;
use tracing::warn;

use super::args::{FamilyChoice, RenderArgs};
use super::{inputs, paint};
use crate::config::Settings;
use crate::source::once;

/// Renders the manifests.
pub(crate) fn run(args: &RenderArgs, settings: &Settings) -> anyhow::Result<()> {
    let manifests = std::slice::from_ref(&args.manifests);
    let mut snapshot = once::from_files(manifests, settings, &super::node_name(settings)?)?;
    let problems = std::mem::take(&mut snapshot.problems);
    let cluster = inputs::complete(snapshot, &args.node, settings, None);
    let Compiled { v4, v6, notes } = compile(&cluster.state, &cluster.node);
    for note in notes {
        warn!("{note}");
    }
    let mut script = String::new();
    if args.family != FamilyChoice::Ipv6 {
        script.push_str(&render::ruleset(&v4));
    }
    if args.family != FamilyChoice::Ipv4 {
        script.push_str(&render::ruleset(&v6));
    }
    match &args.output {
        Some(path) => std::fs::write(path, script)
            .with_context(|| format!("writing the script to {}", path.display()))?,
        None => paint::print(&script)?,
    }
    for problem in &problems {
        warn!("{problem}");
    }
    if !problems.is_empty() {
        bail!(
            "{} of the manifests could not be read; the script lacks what is in them",
            problems.len()
        );
    }
    Ok(())
}
