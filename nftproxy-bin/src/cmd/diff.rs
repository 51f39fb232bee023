//! `nftproxy diff`: two states of a node, as Services and as a script for `nft`.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use nftproxy_core::counts::Counts;
use nftproxy_core::diff::{Delta, Holder, Observed, Sizes, diff};
use nftproxy_core::inspect::{Desired, OfFamily, ServiceChange, canonical, changes};
use nftproxy_core::listing::Listing;
use nftproxy_core::model::{Family, IpFamily, V4, V6};
use nftproxy_core::render;
use nftproxy_core::ruleset::FamilyRuleset;
use serde::Serialize;

use super::args::{DesiredFlags, DiffArgs, DiffFormat, ObservedFlags};
use super::inputs::{self, Addresses, Cluster, Progress};
use super::paint::{self, Paint};
use crate::config::Settings;

/// The version of the JSON document. It changes when what is there changes its meaning.
const DOCUMENT_VERSION: u32 = 1;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    version: u32,
    differs: bool,
    services: Vec<DocumentChange<'a>>,
    script: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DocumentChange<'a> {
    service_port: &'a str,
    family: &'static str,
    added: &'a [String],
    removed: &'a [String],
}

/// One side of the comparison.
enum Side {
    Listing(Box<Listing>),
    Cluster(Box<Cluster>),
}

/// Compares, prints, and says by the exit code whether there is a difference.
pub(crate) fn run(args: &DiffArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    progress.tell("reading both sides");
    let families = args.output.family.families();
    inputs::standard_input_once(&[args.from.clone().into(), args.to.clone().into()])?;
    let from = side(&args.from, args, settings)?;
    let to = side(&args.to, args, settings)?;
    drop(progress);
    let mut all = Comparison::default();
    if families.contains(&IpFamily::V4) {
        all.compare::<V4>(&from, &to);
    }
    if families.contains(&IpFamily::V6) {
        all.compare::<V6>(&from, &to);
    }
    paint::print(&match args.output.output {
        DiffFormat::Text => all.text(Paint::of_stdout()),
        DiffFormat::Nft => all.script.clone(),
        DiffFormat::Json => paint::json(&Document {
            version: DOCUMENT_VERSION,
            differs: all.differs,
            services: all.services.iter().map(document_change).collect(),
            script: &all.script,
        })?,
    })?;
    Ok(ExitCode::from(u8::from(all.differs)))
}

pub(super) fn document_change(change: &ServiceChange) -> DocumentChange<'_> {
    DocumentChange {
        service_port: &change.service_port,
        family: change.family.kubernetes_name(),
        added: &change.added,
        removed: &change.removed,
    }
}

/// `kernel`, `cluster`, or a file: a listing, or manifests.
fn side(name: &str, args: &DiffArgs, settings: &Settings) -> anyhow::Result<Side> {
    let of_listing = |ruleset| -> anyhow::Result<Side> {
        let listing = inputs::listing(&ObservedFlags { ruleset }, args.output.family.families())?;
        if let Some(unread) = listing.unread.first() {
            anyhow::bail!("{name} cannot be read as a whole: {unread}");
        }
        Ok(Side::Listing(Box::new(listing)))
    };
    let of_cluster = |manifests| -> anyhow::Result<Side> {
        let flags = DesiredFlags {
            manifests,
            node: args.node.clone(),
        };
        let is_this_kernel = [&args.from, &args.to].iter().any(|side| *side == "kernel");
        let addresses = if is_this_kernel {
            Addresses::OfThisHost
        } else {
            Addresses::AsTold
        };
        Ok(Side::Cluster(Box::new(inputs::cluster(
            &flags, settings, addresses,
        )?)))
    };
    match name {
        "kernel" => of_listing(None),
        "cluster" => of_cluster(Vec::new()),
        path => {
            let path = PathBuf::from(path);
            if is_listing(&path) {
                of_listing(Some(path))
            } else {
                of_cluster(vec![path])
            }
        }
    }
}

/// Whether a file starts as a listing does.
fn is_listing(path: &std::path::Path) -> bool {
    let bytes = if path.is_file() {
        std::fs::read(path).unwrap_or_default()
    } else {
        Vec::new()
    };
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let text = text.trim_start();
    text.starts_with("table ")
        || text
            .replace([' ', '\n', '\t'], "")
            .starts_with("{\"nftables\":")
}

#[derive(Default)]
struct Comparison {
    differs: bool,
    services: Vec<ServiceChange>,
    script: String,
}

impl Comparison {
    fn compare<F: OfFamily>(&mut self, from: &Side, to: &Side) {
        let found = match from {
            Side::Listing(listing) => F::of(listing).cloned(),
            Side::Cluster(cluster) => Some(observed(cluster.desired().ruleset::<F>(None))),
        };
        let wanted = match to {
            Side::Listing(listing) => F::of(listing).map(|table| table.ruleset.clone()),
            Side::Cluster(cluster) => {
                Some(Desired::ruleset::<F>(&cluster.desired(), found.as_ref()))
            }
        };
        let nothing = FamilyRuleset::empty();
        let before = found.as_ref().map_or(&nothing, |table| &table.ruleset);
        let after = wanted.as_ref().unwrap_or(&nothing);
        let is_foreign = found
            .as_ref()
            .is_some_and(|table| !table.foreign.is_empty());
        self.services.extend(changes(before, after));
        if !is_foreign
            && found.is_some() == wanted.is_some()
            && canonical(before) == canonical(after)
        {
            return;
        }
        self.differs = true;
        self.script.push_str(&match &wanted {
            Some(wanted) => script(&diff(found.as_ref(), wanted)),
            None => format!("delete table {} nftproxy\n", F::FAMILY.nft_name()),
        });
    }

    fn text(&self, paint: Paint) -> String {
        let mut out = String::new();
        if !self.differs {
            let _ = writeln!(out, "{}", paint.good("nothing differs"));
            return out;
        }
        for change in &self.services {
            let head = format!("{} ({})", change.service_port, change.family);
            let _ = writeln!(out, "{}", paint.strong(&head));
            for line in &change.removed {
                let _ = writeln!(out, "  {}", paint.bad(&format!("- {line}")));
            }
            for line in &change.added {
                let _ = writeln!(out, "  {}", paint.good(&format!("+ {line}")));
            }
        }
        let _ = writeln!(out, "as a script for nft -f:");
        out.push_str(&self.script);
        out
    }
}

fn observed<F: Family>(ruleset: FamilyRuleset<F>) -> Observed<F> {
    Observed {
        ruleset,
        foreign: Vec::new(),
        sizes: Sizes::new(),
        holder: Holder::Nobody,
        about: None,
        counts: Counts::default(),
        remembered: Vec::new(),
    }
}

fn script<F: Family>(delta: &Delta<F>) -> String {
    render::delta(delta)
}
