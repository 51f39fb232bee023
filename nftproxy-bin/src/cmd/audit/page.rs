//! An audit as a page for browsers, in one file that needs nothing else. Entry point: [`page`].
//!
//! All that there is to know stands in plain tables. The script only searches and sorts them, and
//! draws pictures of what they say.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use nftproxy_core::inspect::{
    Client, DestinationTraffic, End, EndpointRow, Finding, Report, ServiceTraffic, Severity,
    Standing, TrafficWay,
};
use nftproxy_core::model::IpFamily;
use nftproxy_core::trace::Share;

use super::Outcome;
use crate::cmd::list::address;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What a page tells.
pub(super) struct Page<'a> {
    /// The node's name.
    pub(super) node: &'a str,
    /// Where the rules come from, in words.
    pub(super) observed: &'a str,
    /// Where what is desired comes from, in words.
    pub(super) desired: &'a str,
    /// When the rules were looked at.
    pub(super) time: jiff::Timestamp,
    pub(super) report: &'a Report,
    pub(super) outcome: Outcome,
    pub(super) traffic: &'a [ServiceTraffic],
    /// How many findings are shown; 0 for all.
    pub(super) limit: usize,
}

/// Writes the page.
pub(super) fn page(page: &Page<'_>) -> String {
    let policy = format!(
        "default-src 'none'; base-uri 'none'; form-action 'none'; style-src '{}'; script-src '{}'",
        digest(STYLE),
        digest(SCRIPT)
    );
    let title = format!("Audit of {}", visible(page.node));
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { (head(page, &title)) }
                main {
                    (findings(page))
                    (services(page))
                    (legend())
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
    .into_string()
}

/// What a content security policy calls a script or style by, so that no other ever runs.
fn digest(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    format!("sha256-{}", STANDARD.encode(digest))
}

/// Text as it is, but for characters that nobody sees, or that change how others are shown: these
/// become their number.
fn visible(text: &str) -> Cow<'_, str> {
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| match c {
        c if is_hidden(c) => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    Cow::Owned(text.chars().map(shown).collect())
}

fn head(page: &Page<'_>, title: &str) -> Markup {
    let report = page.report;
    let scope = &report.scope;
    let (class, verdict) = match page.outcome {
        Outcome::Clean => ("good", "As it should be"),
        Outcome::Findings => ("bad", "Not as it should be"),
        Outcome::Unknown => ("bad", "Cannot be told"),
    };
    let number = |n: usize, name: &str, class: &str| {
        html! { div class=(if n == 0 { "" } else { class }) { dt { (name) } dd { (grouped(n)) } } }
    };
    html! {
        h1 { (title) }
        p.verdict.(class) role="status" { (verdict) }
        dl.numbers {
            (number(report.count(Severity::Error), "errors", "error"))
            (number(report.count(Severity::Warning), "warnings", "warning"))
            (number(report.count(Severity::Note), "notes", "note"))
            (number(scope.services, "Services", ""))
            (number(scope.observed_elements, "elements found", ""))
            (number(scope.desired_elements, "elements desired", ""))
            (number(scope.chains, "chains", ""))
            (number(scope.neighbours, "other tables", ""))
        }
        p.origin {
            "Rules: " b { (visible(page.observed)) } ". Desired: " b { (visible(page.desired)) } ". "
            "Looked at " time { (page.time.strftime("%Y-%m-%d %H:%M:%S UTC")) }
            " by nftproxy " (env!("CARGO_PKG_VERSION")) "."
        }
    }
}

/// A number with narrow spaces between thousands.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

fn findings(page: &Page<'_>) -> Markup {
    let Report {
        findings, unread, ..
    } = page.report;
    let n = match page.limit {
        0 => findings.len(),
        limit => limit.min(findings.len()),
    };
    let places = places(page.traffic);
    let place = |finding: &Finding| {
        let name = finding.service_port.as_deref()?;
        let at = places.get(&(name, finding.family))?;
        Some(html! { a href={ "#s" (at) } { (visible(name)) } })
    };
    html! {
        section aria-labelledby="findings" {
            h2 #findings { "Findings" }
            @if !unread.is_empty() {
                p { "Not all could be read, so nothing can be said of it:" }
                ul.unread {
                    @for unread in unread.iter().take(n.max(100)) { li { (visible(&unread.to_string())) } }
                }
            }
            @if findings.is_empty() {
                p { "Nothing was found." }
            } @else {
                table.findings {
                    thead { tr {
                        th scope="col" { "Severity" } th scope="col" { "Kind" }
                        th scope="col" { "Family" } th scope="col" { "Service" }
                        th scope="col" { "What is so, and what it does" }
                    } }
                    tbody {
                        @for finding in &findings[..n] {
                            tr {
                                td { span class={ "badge " (finding.severity.as_str()) } { (finding.severity) } }
                                td { (finding.kind) }
                                td { @if let Some(family) = finding.family { (family) } }
                                td.name {
                                    @if let Some(link) = place(finding) { (link) }
                                    @else if let Some(name) = &finding.service_port { (visible(name)) }
                                }
                                td {
                                    code { (visible(&finding.object)) } ": " (visible(&finding.message))
                                    @if !finding.effect.is_empty() { span.effect { (visible(&finding.effect)) } }
                                }
                            }
                        }
                    }
                }
                @if n < findings.len() {
                    p { "… and " (grouped(findings.len() - n)) " more, which " code { "--limit 0" } " shows." }
                }
            }
        }
    }
}

/// The part of a name that a Service's ports share.
fn whole(service_port: &str) -> &str {
    let whole = service_port.split_once(':');
    whole.map_or(service_port, |(whole, _)| whole)
}

/// Where Service ports are in the table, by what findings may call them.
fn places(traffic: &[ServiceTraffic]) -> BTreeMap<(&str, Option<IpFamily>), usize> {
    let mut places = BTreeMap::new();
    for (at, service) in traffic.iter().enumerate() {
        let row = &service.row;
        for name in [row.service_port.as_str(), whole(&row.service_port)] {
            for family in [Some(row.family), None] {
                places.entry((name, family)).or_insert(at);
            }
        }
    }
    places
}

/// The gravest finding about each Service port.
fn severities(page: &Page<'_>) -> BTreeMap<(String, IpFamily), Severity> {
    let mut worst = BTreeMap::<(&str, Option<IpFamily>), Severity>::new();
    for finding in &page.report.findings {
        if let Some(name) = finding.service_port.as_deref() {
            let known = worst
                .entry((name, finding.family))
                .or_insert(finding.severity);
            *known = finding.severity.min(*known);
        }
    }
    let of = |service: &ServiceTraffic| {
        let row = &service.row;
        let name = row.service_port.as_str();
        let keys = [name, whole(name)].into_iter();
        let keys = keys.flat_map(|name| [(name, None), (name, Some(row.family))]);
        let severity = keys.filter_map(|key| worst.get(&key).copied()).min()?;
        Some(((row.service_port.clone(), row.family), severity))
    };
    page.traffic.iter().filter_map(of).collect()
}

fn services(page: &Page<'_>) -> Markup {
    let severities = severities(page);
    let severity = |service: &ServiceTraffic| {
        let key = (service.row.service_port.clone(), service.row.family);
        severities.get(&key).copied()
    };
    html! {
        section aria-labelledby="services" {
            h2 #services { "Services" }
            p #tools hidden {
                label { "Search " input #search type="search" placeholder="name, address, port, chain …" autocomplete="off"; }
                label { input #problems type="checkbox"; " with findings only" }
                span #count role="status" {}
            }
            @if page.traffic.is_empty() { p { "There are none." } }
            @else {
                table #table.services {
                    colgroup { col.c1; col.c2; col.c3; col.c4; col.c5; }
                    thead { tr {
                        th scope="col" data-sort="name" { "Service" }
                        th scope="col" data-sort="to" { "Destination" }
                        th scope="col" { "From" }
                        th scope="col" { "Chains" }
                        th scope="col" data-sort="ends" { "Endpoints, with their part of new connections" }
                    } }
                    @for (at, service) in page.traffic.iter().enumerate() {
                        (service_rows(at, service, severity(service)))
                    }
                }
            }
        }
    }
}

/// A row of the table, but for the Service's name and destination.
struct Row<'a> {
    way: Option<&'a TrafficWay>,
    /// What is said in place of a way.
    text: Option<String>,
    /// Whether it is asked for and not there.
    is_desired: bool,
}

fn rows(traffic: &DestinationTraffic) -> Vec<Row<'_>> {
    let row = |is_desired| {
        move |way| Row {
            way: Some(way),
            text: None,
            is_desired,
        }
    };
    let mut rows: Vec<_> = traffic.ways.iter().map(row(false)).collect();
    let said = |text: String| Row {
        way: None,
        text: Some(text),
        is_desired: false,
    };
    rows.extend(
        traffic
            .error
            .as_ref()
            .map(|error| said(format!("The rules cannot be followed: {error}."))),
    );
    let desired = traffic.desired.iter().flatten();
    rows.extend(
        desired
            .filter(|way| !traffic.ways.contains(way))
            .map(row(true)),
    );
    if rows.is_empty() {
        rows.push(said("No address of this node is known to take it.".into()));
    }
    rows
}

fn service_rows(at: usize, service: &ServiceTraffic, severity: Option<Severity>) -> Markup {
    let ServiceTraffic { row, destinations } = service;
    let all: Vec<_> = destinations.iter().map(rows).collect();
    let unused: Vec<_> = row.endpoints.iter().filter_map(unused).collect();
    let has_remarks = !unused.is_empty()
        || !row.notes.is_empty()
        || row.affinity.is_some()
        || row.balancing.is_some();
    let n: usize = all.iter().map(Vec::len).sum::<usize>() + usize::from(has_remarks);
    let class = severity.map(Severity::as_str);
    let head = html! {
        th scope="rowgroup" rowspan=[(n > 1).then_some(n)] {
            (visible(&row.service_port))
            @if row.family == IpFamily::V6 { " " small { "IPv6" } }
            @if let Some(severity) = severity { " " a.badge.(severity.as_str()) href="#findings" { (severity) } }
        }
    };
    let mut head = Some(head);
    html! {
        tbody id={ "s" (at) } class=[class] {
            @for (of, rows) in row.destinations.iter().zip(&all) {
                @for (number, line) in rows.iter().enumerate() {
                    tr class=[line.is_desired.then_some("want")] {
                        @if let Some(head) = head.take() { (head) }
                        @if number == 0 {
                            td rowspan=[(rows.len() > 1).then_some(rows.len())] {
                                (address(of, row.family)) "/" (of.address.protocol.nft_name()) br; small { (of.kind) (policy(of)) }
                            }
                        }
                        @if let Some(text) = &line.text { td colspan="3" { (visible(text)) } }
                        @if let Some(way) = line.way { (way_cells(way)) }
                    }
                }
            }
            @if has_remarks {
                tr.remark {
                    @if let Some(head) = head.take() { (head) }
                    td colspan="4" {
                        @if let Some(balancing) = &row.balancing { "Endpoints are chosen by " (balancing) ". " }
                        @if let Some(seconds) = row.affinity { "Clients keep their endpoint for " (seconds) " s. " }
                        @if !unused.is_empty() { "Not used, or not by all: " (unused.join(", ")) ". " }
                        @for note in &row.notes { (visible(note)) ". " }
                    }
                }
            }
        }
    }
}

fn policy(of: &nftproxy_core::inspect::DestinationRow) -> &'static str {
    match of.policy {
        Some(nftproxy_core::model::TrafficPolicy::Local) => ", Local",
        _ => "",
    }
}

fn unused(endpoint: &EndpointRow) -> Option<String> {
    let reason = match (&endpoint.cluster, &endpoint.local) {
        (_, _) if !endpoint.is_used() => endpoint.reason()?,
        (Some(Standing::Unused(reason)), _) | (_, Some(Standing::Unused(reason))) => reason,
        _ => return None,
    };
    Some(format!("{} ({reason})", endpoint.address))
}

fn joined(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

fn way_cells(way: &TrafficWay) -> Markup {
    let (masqueraded, plain): (Vec<&Client>, _) =
        way.from.iter().partition(|client| client.masquerade);
    let sources = |clients: Vec<&Client>| joined(clients.iter().map(|client| client.source));
    let chains: Vec<_> = way.chains.iter().map(ToString::to_string).collect();
    html! {
        td {
            (sources(plain))
            @if !masqueraded.is_empty() {
                @if masqueraded.len() < way.from.len() { br; }
                "masqueraded: " (sources(masqueraded))
            }
        }
        td { (chains.join(" › ")) }
        td { (ends(&way.ends)) }
    }
}

/// Ends of equal shares stand behind one number.
fn ends(ends: &[(End, Share)]) -> Markup {
    let mut groups = Vec::<(Share, Vec<&End>)>::new();
    for (end, share) in ends {
        match groups.iter_mut().find(|(known, _)| known == share) {
            Some((_, group)) => group.push(end),
            None => groups.push((*share, vec![end])),
        }
    }
    let is_bad = |group: &[&End]| !matches!(group, [End::Endpoint(_), ..]);
    html! {
        @for (share, group) in &groups {
            b { (share) } " "
            @if is_bad(group) { em { (joined(group)) } } @else { (joined(group)) }
            " "
        }
    }
}

fn legend() -> Markup {
    html! {
        section.legend aria-labelledby="legend" {
            h2 #legend { "How to read this" }
            p {
                "Each line is one way of new connections: who connects, where to, the chains of the table "
                code { "nftproxy" } " that decide, and where it ends, with the exact part of new connections that ends there. "
                "The ways are those of the rules that were found; where the cluster asks for others, these stand below in a frame. "
                "Endpoints see this node's address instead of the client's where it says “masqueraded”. "
                "“Source ranges” are clients whom the Service allows in, “outside” are all others who are neither pods nor this node. "
                "“Dropped” looks like a timeout to clients, “refused” is told at once, and what is “left alone” is no Service to this node."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_hides() {
        assert_eq!(visible("shop/api:http"), "shop/api:http");
        assert_eq!(visible("a\u{202e}b\u{1b}c\n"), "a\\u{202e}b\\u{1b}c\\u{a}");
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1234567), "1\u{202f}234\u{202f}567");
    }
}
