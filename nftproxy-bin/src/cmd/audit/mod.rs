//! `nftproxy audit`: the kernel's rules against what the cluster asks for.

mod page;

use std::fmt::Write;
use std::process::ExitCode;

use nftproxy_core::inspect::{Finding, Report, ServiceTraffic, Severity, audit, traffic};
use nftproxy_core::listing::Listing;
use nftproxy_core::model::{IpFamily, V4, V6};
use nftproxy_core::ruleset::Table;
use serde::Serialize;

use super::args::{AuditArgs, AuditFormat};
use super::inputs::{self, Addresses, Cluster, Progress};
use super::paint::{self, Columns, Paint};
use crate::config::Settings;

/// The version of the JSON document. It changes when what is there changes its meaning.
const DOCUMENT_VERSION: u32 = 1;
/// Findings that are printed unless told otherwise.
const TEXT_LIMIT: usize = 200;
/// Findings on a page unless told otherwise, so that a browser can show it.
const PAGE_LIMIT: usize = 2000;

/// How an audit ends, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Clean,
    Findings,
    Unknown,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    outcome: Outcome,
    scope: DocumentScope,
    findings: Vec<DocumentFinding<'a>>,
    unread: Vec<DocumentUnread<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DocumentScope {
    services: usize,
    desired_elements: usize,
    observed_elements: usize,
    chains: usize,
    other_tables: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DocumentFinding<'a> {
    severity: &'static str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_port: Option<&'a str>,
    object: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    effect: &'a str,
}

#[derive(Debug, Serialize)]
struct DocumentUnread<'a> {
    line: usize,
    why: &'a str,
}

/// Compares, prints, and says by the exit code what came of it.
pub(crate) fn run(args: &AuditArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let families = args.output.family.families();
    inputs::standard_input_once(args.desired.manifests.iter().chain(&args.observed.ruleset))?;
    let progress = Progress::new();
    progress.tell("reading what is desired");
    let cluster = inputs::cluster(
        &args.desired,
        settings,
        Addresses::of_observed(&args.observed),
    )?;
    progress.tell("reading the rules");
    let mut listing = inputs::listing(&args.observed, families)?;
    if inputs::is_this_kernel(&args.observed) {
        inputs::add_learned(&mut listing)?;
    }
    let mut report = audit(
        cluster.desired(),
        &listing,
        &Table::default(),
        families,
        |what| {
            progress.tell(what);
        },
    );
    if inputs::is_this_kernel(&args.observed) {
        report.findings.extend(inputs::outside_of_nftables());
        report.findings.sort();
    }
    let outcome = outcome(&report);
    let printed = match args.output.output {
        AuditFormat::Text => text(
            &report,
            args.limit.unwrap_or(TEXT_LIMIT),
            Paint::of_stdout(),
        ),
        AuditFormat::Json => paint::json(&document(&report, outcome))?,
        AuditFormat::Html => {
            progress.tell("following connections");
            page::page(&page::Page {
                node: &super::node_name(settings)?,
                observed: &inputs::observed_text(&args.observed),
                desired: &inputs::desired_text(&args.desired),
                time: crate::wall_clock::now(),
                report: &report,
                outcome,
                traffic: &all_traffic(&cluster, &listing, families),
                limit: args.limit.unwrap_or(PAGE_LIMIT),
            })
        }
    };
    drop(progress);
    paint::print(&printed)?;
    Ok(ExitCode::from(match outcome {
        Outcome::Clean => 0,
        Outcome::Findings => 1,
        Outcome::Unknown => 2,
    }))
}

/// The ways of all connections, by the name of the Service.
fn all_traffic(cluster: &Cluster, listing: &Listing, families: &[IpFamily]) -> Vec<ServiceTraffic> {
    let (desired, local) = (cluster.desired(), cluster.local.as_slice());
    let mut all = Vec::new();
    if families.contains(&IpFamily::V4) {
        all.extend(traffic::<V4>(desired, Some(listing), local));
    }
    if families.contains(&IpFamily::V6) {
        all.extend(traffic::<V6>(desired, Some(listing), local));
    }
    all.sort_by(|a, b| {
        (&a.row.service_port, a.row.family).cmp(&(&b.row.service_port, b.row.family))
    });
    all
}

fn outcome(report: &Report) -> Outcome {
    if !report.unread.is_empty() {
        return Outcome::Unknown;
    }
    match report.worst() {
        None | Some(Severity::Note) => Outcome::Clean,
        Some(Severity::Warning | Severity::Error) => Outcome::Findings,
    }
}

fn document(report: &Report, outcome: Outcome) -> Document<'_> {
    let Report {
        findings,
        unread,
        scope,
    } = report;
    Document {
        version: DOCUMENT_VERSION,
        outcome,
        scope: DocumentScope {
            services: scope.services,
            desired_elements: scope.desired_elements,
            observed_elements: scope.observed_elements,
            chains: scope.chains,
            other_tables: scope.neighbours,
        },
        findings: findings.iter().map(document_finding).collect(),
        unread: unread
            .iter()
            .map(|unread| DocumentUnread {
                line: unread.line,
                why: &unread.why,
            })
            .collect(),
    }
}

fn document_finding(finding: &Finding) -> DocumentFinding<'_> {
    let Finding {
        severity,
        kind,
        family,
        service_port,
        object,
        message,
        effect,
    } = finding;
    DocumentFinding {
        severity: severity.as_str(),
        kind: kind.as_str(),
        family: family.map(|family| family.kubernetes_name()),
        service_port: service_port.as_deref(),
        object,
        message,
        effect,
    }
}

fn text(report: &Report, limit: usize, paint: Paint) -> String {
    let mut columns = Columns::new(&["SEVERITY", "KIND", "FAMILY", "WHAT"]);
    let shown = match limit {
        0 => report.findings.len(),
        limit => limit.min(report.findings.len()),
    };
    let findings = &report.findings[..shown];
    for finding in findings {
        columns.push([
            finding.severity.to_string(),
            finding.kind.to_string(),
            finding
                .family
                .map(|family| family.to_string())
                .unwrap_or_default(),
            finding.to_string(),
        ]);
    }
    let mut text = String::new();
    if !findings.is_empty() {
        let style = |row: usize, column: usize, text: &str| match (row, column) {
            (0, _) => paint.strong(text),
            (row, 0) => paint.severity(findings[row - 1].severity, text),
            _ => text.to_owned(),
        };
        for line in columns.lines(style) {
            let _ = writeln!(text, "{line}");
        }
    }
    let hidden = report.findings.len() - shown;
    if hidden > 0 {
        let _ = writeln!(text, "… and {hidden} more; --limit 0 prints all");
    }
    for unread in &report.unread {
        let _ = writeln!(text, "{}: {unread}", paint.bad("could not be read"));
    }
    let (errors, warnings, notes) = (
        report.count(Severity::Error),
        report.count(Severity::Warning),
        report.count(Severity::Note),
    );
    let scope = &report.scope;
    let verdict = match outcome(report) {
        Outcome::Clean => paint.good("clean"),
        Outcome::Findings => paint.bad("not as it should be"),
        Outcome::Unknown => paint.bad("cannot be told"),
    };
    let _ = writeln!(
        text,
        "{verdict}: {errors} errors, {warnings} warnings, {notes} notes; {} Services, {} elements of {}, {} chains, {} other tables",
        scope.services,
        scope.observed_elements,
        scope.desired_elements,
        scope.chains,
        scope.neighbours,
    );
    text
}
