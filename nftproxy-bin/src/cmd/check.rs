//! `nftproxy check`: whether this host has what the proxy needs.

use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use super::args::{CheckArgs, NodeFlags, OutputFormat};
use super::paint;
use crate::check::{self, Finding, Level};
use crate::config::Settings;

/// The version of the JSON document. It changes when what is there changes its meaning.
const DOCUMENT_VERSION: u32 = 1;

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    outcome: Level,
    findings: &'a [Finding],
}

/// Looks, prints, and says by the exit code what the worst finding is.
pub(crate) fn run(args: &CheckArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let check::Kernel {
        families,
        mut findings,
    } = check::kernel(settings);
    let node = super::node_info(&NodeFlags::default());
    findings.extend(check::Families::new(settings, &families).findings(&node));
    findings.extend(check::surroundings(settings, &families));
    findings.extend(check::ports(settings));
    // Notes are no more than that.
    let worst = findings.iter().map(|finding| finding.level).max();
    let outcome = worst.filter(|level| *level > Level::Note);
    let outcome = outcome.unwrap_or(Level::Ok);
    let text = match args.output {
        OutputFormat::Text => lines(&findings),
        OutputFormat::Json => {
            let document = Document {
                version: DOCUMENT_VERSION,
                outcome,
                findings: &findings,
            };
            serde_json::to_string_pretty(&document).context("writing JSON")? + "\n"
        }
    };
    paint::print(&text)?;
    Ok(ExitCode::from(match outcome {
        Level::Ok | Level::Note => 0,
        Level::Warning if args.allow_warnings => 0,
        Level::Warning => 1,
        Level::Error => 2,
    }))
}

fn lines(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max();
    let width = width.unwrap_or_default();
    findings
        .iter()
        .map(|finding| {
            let Finding { level, check, .. } = finding;
            format!("{level:<7}  {check:<width$}  {finding}\n")
        })
        .collect()
}
