//! `nftproxy render`: manifests in, an nft script out. It needs no privileges.

use std::io::Write;

use anyhow::{Context, bail};
use nftproxy_core::compile::{Compiled, compile};
use nftproxy_core::engine;
use nftproxy_core::model::State;
use nftproxy_core::render;
use tracing::warn;

use super::args::{FamilyChoice, RenderArgs};
use crate::config::Settings;
use crate::source::Event;
use crate::source::files::Converter;
use crate::source::manifests::Source;

/// Renders the manifests.
pub(crate) fn run(args: &RenderArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut converter = Converter::new(
        &super::node_name(settings)?,
        settings.feature_gates.allow_service_external_ips,
    );
    let update = Source::open(&args.manifests)?.load();
    let mut state = State::default();
    let mut info = super::node_info(&args.node);
    for event in update
        .changes
        .into_iter()
        .filter_map(|change| converter.event(change))
    {
        match event {
            Event::Cluster(engine::Event::ServiceApplied(service)) => state.apply_service(service),
            Event::SliceApplied { slice, .. } => state.apply_slice(slice),
            Event::Cluster(engine::Event::ServiceCidrApplied(name, cidrs)) => {
                state.apply_service_cidr(&name, cidrs);
            }
            // What the command line says of the node counts more than a manifest.
            Event::NodeApplied { info: mut node, .. } => {
                if !args.node.ips.is_empty() || node.ips.is_empty() {
                    node.ips = info.ips;
                }
                node.zone = info.zone.or(node.zone);
                info = node;
            }
            _ => {}
        }
    }
    let Compiled { v4, v6, notes } = compile(&state, &super::offline_node(settings, &info));
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
        None => std::io::stdout()
            .write_all(script.as_bytes())
            .context("writing the script")?,
    }
    for problem in &update.problems {
        warn!("{problem}");
    }
    if !update.problems.is_empty() {
        bail!(
            "{} of the manifests could not be read; the script lacks what is in them",
            update.problems.len()
        );
    }
    Ok(())
}
