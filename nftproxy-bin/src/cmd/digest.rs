//! `nftproxy digest`: what a node's rules amount to, in one line for each family.
//!
//! The digest is taken of what is there, when it is asked for. What the table says of itself is what
//! the proxy meant to write, whatever became of it; if that differs, it is said.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::ensure;
use nftproxy_core::inspect::{OfFamily, canonical, shared};
use nftproxy_core::listing::Listing;
use nftproxy_core::model::{IpFamily, V4, V6};
use nftproxy_core::provenance::{Digest, digest_in};
use serde::Serialize;

use super::args::{DigestArgs, DigestFormat, Origin};
use super::inputs::{self, Addresses, Cluster, Progress};
use super::paint;
use crate::config::Settings;

/// The version of the JSON document. It changes when what is there changes its meaning.
const DOCUMENT_VERSION: u32 = 1;

#[derive(Debug, Serialize)]
struct Document {
    version: u32,
    program: &'static str,
    families: Vec<FamilyDigest>,
}

#[derive(Debug, Serialize)]
struct FamilyDigest {
    family: &'static str,
    /// Of everything.
    digest: String,
    /// What the table says of itself, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    about: Option<String>,
    /// Of what all nodes have.
    shared: String,
    /// Lines that the digest is of.
    lines: usize,
    #[serde(skip)]
    text: String,
}

/// Where the rulesets come from.
enum Side {
    Desired(Box<Cluster>),
    Found(Box<Listing>),
}

/// Prints the digests.
pub(crate) fn run(args: &DigestArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let families = args.output.family.families();
    let progress = Progress::new();
    progress.tell("reading rules");
    let side = match args.origin() {
        Origin::Desired => {
            let addresses = Addresses::of_desired(&args.observed);
            Side::Desired(Box::new(inputs::cluster(
                &args.desired,
                settings,
                addresses,
            )?))
        }
        Origin::Kernel => {
            let listing = inputs::listing(&args.observed, families)?;
            if let Some(unread) = listing.unread.first() {
                anyhow::bail!("the listing cannot be read as a whole: {unread}");
            }
            Side::Found(Box::new(listing))
        }
    };
    let mut all = Vec::new();
    if families.contains(&IpFamily::V4) {
        all.extend(digest::<V4>(&side)?);
    }
    if families.contains(&IpFamily::V6) {
        all.extend(digest::<V6>(&side)?);
    }
    drop(progress);
    ensure!(!all.is_empty(), "there is no table of nftproxy's");
    paint::print(&match args.output.output {
        DigestFormat::Text => all.iter().fold(String::new(), |mut text, of| {
            let FamilyDigest {
                family,
                digest,
                about,
                shared,
                lines,
                text: _,
            } = of;
            let _ = write!(text, "{family} {digest} shared {shared} ({lines} lines)");
            match about.as_deref().map(|about| (about, digest_in(about))) {
                Some((_, Some(own))) if own == digest => text.push_str(", as the table says"),
                Some((about, _)) => {
                    let _ = write!(text, ", and the table says: {about}");
                }
                None => {}
            }
            text.push('\n');
            text
        }),
        DigestFormat::Lines => all.iter().map(|of| of.text.as_str()).collect(),
        DigestFormat::Json => paint::json(&Document {
            version: DOCUMENT_VERSION,
            program: env!("CARGO_PKG_VERSION"),
            families: all,
        })?,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The digest of one family; `None` if it has no table.
fn digest<F: OfFamily>(side: &Side) -> anyhow::Result<Option<FamilyDigest>> {
    let (digest, about, whole, shared) = match side {
        Side::Desired(cluster) => {
            let ruleset = cluster.desired().ruleset::<F>(None);
            (
                Digest::of(&ruleset),
                None,
                canonical(&ruleset),
                shared(&ruleset),
            )
        }
        Side::Found(listing) => {
            let Some(observed) = F::of(listing) else {
                return Ok(None);
            };
            if let Some(foreign) = observed.foreign.first() {
                anyhow::bail!("the table holds what is not nftproxy's: {foreign}");
            }
            let ruleset = &observed.ruleset;
            let about = observed.about.as_ref().map(ToString::to_string);
            (
                Digest::of(ruleset),
                about,
                canonical(ruleset),
                shared(ruleset),
            )
        }
    };
    let text = joined::<F>(&whole);
    Ok(Some(FamilyDigest {
        family: F::FAMILY.kubernetes_name(),
        digest: digest.to_string(),
        about,
        shared: sum(&joined::<F>(&shared)),
        lines: whole.len(),
        text,
    }))
}

fn joined<F: OfFamily>(lines: &BTreeSet<String>) -> String {
    let family = F::FAMILY.nft_name();
    lines.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{family} {line}");
        text
    })
}

/// The first half of the SHA-256 of a text, which is more than chance needs.
fn sum(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let half = digest.as_ref().iter().take(16);
    half.fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
