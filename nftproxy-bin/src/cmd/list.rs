//! `nftproxy list`: Services as this node sees them.

use std::fmt::Write;
use std::process::ExitCode;

use nftproxy_core::inspect::{
    DestinationRow, EndpointRow, OfFamily, ServiceFilter, ServiceRow, Standing, add_counts,
    services, services_of,
};
use nftproxy_core::listing::Listing;
use nftproxy_core::model::{IpFamily, TrafficPolicy, V4, V6};
use serde::Serialize;

use super::args::{ListArgs, Origin, OutputFormat};
use super::inputs::{self, Addresses, Progress};
use super::paint::{self, Columns, Paint};
use super::watch::Watch;
use crate::config::Settings;

/// The version of the JSON document. It changes when what is there changes its meaning.
const DOCUMENT_VERSION: u32 = 1;

#[derive(Debug, Serialize)]
struct Document<'a> {
    version: u32,
    services: Vec<DocumentService<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DocumentService<'a> {
    service_port: &'a str,
    family: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity_seconds: Option<u32>,
    /// How endpoints are chosen, where it is not at random and alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    balancing: Option<&'a str>,
    destinations: Vec<DocumentDestination<'a>>,
    endpoints: Vec<DocumentEndpoint<'a>>,
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DocumentDestination<'a> {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<std::net::IpAddr>,
    protocol: &'static str,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'static str>,
    masquerade: &'static str,
    source_ranges: &'a [String],
    outcome: &'a str,
    /// New connections since this was last changed, where they are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
}

/// An endpoint, as `list` and `explain` tell of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DocumentEndpoint<'a> {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<&'static str>,
    used: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_locally: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason_locally: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
}

/// Lists, and says by the exit code whether there was anything to list.
pub(crate) fn run(args: &ListArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let families = args.output.family.families();
    let progress = Progress::new();
    progress.tell("reading Services");
    let watch = args.watch.then(|| Watch::start(args)).transpose()?;
    let mut rows = match args.origin() {
        Origin::Desired => {
            let addresses = Addresses::of_desired(&args.observed);
            let cluster = inputs::cluster(&args.desired, settings, addresses)?;
            of_families(
                families,
                || services::<V4>(cluster.desired()),
                || services::<V6>(cluster.desired()),
            )
        }
        Origin::Kernel => {
            let listing = match &watch {
                Some(watch) => &watch.listing,
                None => &inputs::listing(&args.observed, families)?,
            };
            for unread in &listing.unread {
                tracing::warn!("{unread}");
            }
            anyhow::ensure!(
                listing.unread.is_empty(),
                "the listing could not be read as a whole"
            );
            anyhow::ensure!(
                args.watch || listing.v4.is_some() || listing.v6.is_some(),
                "there is no table of nftproxy's"
            );
            of_families(
                families,
                || of_table::<V4>(listing),
                || of_table::<V6>(listing),
            )
        }
    };
    drop(progress);
    let filter = ServiceFilter {
        namespace: args.namespace.clone(),
        name: args.name.clone(),
        address: args.address,
        port: args.port,
    };
    rows.retain(|row| filter.shows(row));
    rows.sort_by(|a, b| (&a.service_port, a.family).cmp(&(&b.service_port, b.family)));
    paint::print(&match args.output.output {
        OutputFormat::Text => text(&rows, args.wide, Paint::of_stdout()),
        OutputFormat::Json => paint::json(&Document {
            version: DOCUMENT_VERSION,
            services: rows.iter().map(document).collect(),
        })?,
    })?;
    if let Some(watch) = watch {
        watch.follow(args, &filter)?;
    }
    Ok(ExitCode::from(u8::from(rows.is_empty())))
}

/// What a table says, with what it has counted.
fn of_table<F: OfFamily>(listing: &Listing) -> Vec<ServiceRow> {
    let Some(table) = F::of(listing) else {
        return Vec::new();
    };
    let mut rows = services_of(&table.ruleset);
    add_counts(&mut rows, &table.counts);
    rows
}

fn of_families(
    families: &[IpFamily],
    v4: impl FnOnce() -> Vec<ServiceRow>,
    v6: impl FnOnce() -> Vec<ServiceRow>,
) -> Vec<ServiceRow> {
    let mut rows = Vec::new();
    if families.contains(&IpFamily::V4) {
        rows.extend(v4());
    }
    if families.contains(&IpFamily::V6) {
        rows.extend(v6());
    }
    rows
}

fn policy(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

fn document(row: &ServiceRow) -> DocumentService<'_> {
    let ServiceRow {
        service_port,
        family,
        affinity,
        balancing,
        destinations,
        endpoints,
        notes,
    } = row;
    DocumentService {
        service_port,
        family: family.kubernetes_name(),
        affinity_seconds: *affinity,
        balancing: balancing.as_deref(),
        destinations: destinations
            .iter()
            .map(|at| DocumentDestination {
                kind: at.kind,
                ip: at.address.ip,
                protocol: at.address.protocol.nft_name(),
                port: at.address.port.get(),
                policy: at.policy.map(policy),
                masquerade: at.masquerade,
                source_ranges: &at.sources,
                outcome: &at.outcome,
                connections: at.connections,
            })
            .collect(),
        endpoints: endpoints.iter().map(document_endpoint).collect(),
        notes,
    }
}

pub(super) fn document_endpoint(endpoint: &EndpointRow) -> DocumentEndpoint<'_> {
    DocumentEndpoint {
        address: endpoint.address.to_string(),
        place: Some(endpoint.place()).filter(|place| !place.is_empty()),
        used: endpoint.is_used(),
        reason: endpoint.reason(),
        used_locally: endpoint
            .local
            .as_ref()
            .map(|standing| *standing == Standing::Used),
        reason_locally: endpoint.reason_locally(),
        connections: endpoint.connections,
    }
}

/// Where a destination is; a NodePort is at the node.
pub(super) fn address(at: &DestinationRow, family: IpFamily) -> String {
    let port = at.address.port;
    match (at.address.ip, family) {
        (Some(ip), _) => std::net::SocketAddr::new(ip, port.get()).to_string(),
        (None, IpFamily::V4) => format!("node:{port}"),
        (None, IpFamily::V6) => format!("[node]:{port}"),
    }
}

fn text(rows: &[ServiceRow], wide: bool, paint: Paint) -> String {
    let mut heads = vec![
        "SERVICE",
        "KIND",
        "ADDRESS",
        "PROTO",
        "POLICY",
        "MASQ",
        "AFFINITY",
        "ENDPOINTS",
    ];
    let is_balanced = rows.iter().any(|row| row.balancing.is_some());
    if is_balanced {
        heads.insert(heads.len() - 1, "BALANCING");
    }
    let outcome_column = heads.len() - 1;
    let mut destinations = rows.iter().flat_map(|row| &row.destinations);
    let counts = destinations.any(|at| at.connections.is_some());
    if counts {
        heads.insert(outcome_column, "CONNECTIONS");
    }
    let outcome_column = heads.len() - 1;
    let mut columns = Columns::new(&heads);
    let mut is_bad = vec![false];
    for row in rows {
        for at in &row.destinations {
            let affinity = row.affinity.map(|seconds| format!("{seconds}s"));
            let outcome = match at.sources.as_slice() {
                [] => at.outcome.clone(),
                sources => format!("{}, only from {}", at.outcome, sources.join(" ")),
            };
            is_bad.push(!at.outcome.contains("endpoint"));
            let mut cells = vec![
                row.service_port.clone(),
                at.kind.to_owned(),
                address(at, row.family),
                at.address.protocol.nft_name().to_owned(),
                at.policy.map(policy).unwrap_or("-").to_owned(),
                at.masquerade.to_owned(),
                affinity.unwrap_or_else(|| "-".into()),
            ];
            if is_balanced {
                cells.push(row.balancing.clone().unwrap_or_else(|| "-".into()));
            }
            if counts {
                let connections = at.connections.map(|number| number.to_string());
                cells.push(connections.unwrap_or_else(|| "-".into()));
            }
            cells.push(outcome);
            columns.push(cells);
        }
    }
    let style = |row: usize, column: usize, text: &str| match (row, column) {
        (0, _) => paint.strong(text),
        (row, column) if column == outcome_column && is_bad[row] => paint.bad(text),
        _ => text.to_owned(),
    };
    let lines = columns.lines(style);
    if rows.is_empty() {
        return String::new();
    }
    let mut out = String::new();
    let mut lines = lines.into_iter();
    let mut line = |out: &mut String| {
        if let Some(line) = lines.next() {
            let _ = writeln!(out, "{line}");
        }
    };
    line(&mut out);
    for row in rows {
        for _ in &row.destinations {
            line(&mut out);
        }
        if wide {
            for text in details(row, paint) {
                let _ = writeln!(out, "    {text}");
            }
        }
    }
    out
}

/// A Service's endpoints and notes, a line each.
fn details(row: &ServiceRow, paint: Paint) -> Vec<String> {
    let endpoints = row
        .endpoints
        .iter()
        .map(|endpoint| endpoint_text(endpoint, paint));
    let notes = row.notes.iter().map(|note| paint.bad(note));
    endpoints.chain(notes).collect()
}

/// An endpoint with what speaks for and against it.
pub(super) fn endpoint_text(endpoint: &EndpointRow, paint: Paint) -> String {
    let mut text = format!("→ {}", endpoint.address);
    if !endpoint.place().is_empty() {
        let _ = write!(text, " on {}", endpoint.place());
    }
    let standing = match (endpoint.reason(), &endpoint.cluster, &endpoint.local) {
        (Some(reason), ..) => format!("not used: {reason}"),
        (None, Some(_), Some(Standing::Unused(reason))) => format!("not from outside: {reason}"),
        (None, Some(Standing::Unused(reason)), Some(Standing::Used)) => {
            format!("from outside only: {reason}")
        }
        _ => String::new(),
    };
    if let Some(number) = endpoint.connections {
        let _ = write!(text, ": {number} new connections");
    }
    if standing.is_empty() {
        return text;
    }
    let _ = write!(text, " ({standing})");
    paint.faint(&text)
}
