//! A table as it was found against what it should be. Entry point: [`audit()`].

use super::finding::{Finding, Kind, Severity};
use super::owners::Owners;
use super::{Desired, OfFamily, chains, elements, others, remembered, table_text};
use crate::listing::{Listing, Unread};
use crate::model::{IpFamily, V4, V6};
use crate::provenance::{self, Digest};
use crate::ruleset::Table;

/// What an audit came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// What was found, the gravest first.
    pub findings: Vec<Finding>,
    /// What could not be read, so that nothing can be said of it.
    pub unread: Vec<Unread>,
    /// How much was looked at.
    pub scope: Scope,
}

/// How much an audit looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scope {
    /// Services that should be served.
    pub services: usize,
    /// Elements that should be there.
    pub desired_elements: usize,
    /// Elements that are there.
    pub observed_elements: usize,
    /// Chains that are there.
    pub chains: usize,
    /// Tables of others.
    pub neighbours: usize,
}

impl Report {
    /// The gravest of what was found; `None` if nothing was.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).min()
    }

    /// How many findings are as grave as that.
    pub fn count(&self, severity: Severity) -> usize {
        let findings = self.findings.iter();
        findings
            .filter(|finding| finding.severity == severity)
            .count()
    }
}

/// Compares what was found with what is desired, in the families given.
///
/// `progress` is told what is being done, for people who wait.
///
/// ```
/// # use nftproxy_core::compile::compile;
/// # use nftproxy_core::inspect::{Desired, Kind, audit};
/// # use nftproxy_core::listing;
/// # use nftproxy_core::model::{IpFamily, Node, Protocol, Service, ServiceName, ServicePort, State};
/// # use nftproxy_core::render;
/// # use nftproxy_core::ruleset::Table;
/// # let name = ServiceName::new("shop", "api")?;
/// # let port = ServicePort::new(Protocol::Tcp, 80.try_into()?);
/// let mut state = State::default();
/// state.apply_service(Service::at(name, [10, 96, 0, 20].into(), [port]));
/// let node = Node::default();
/// let desired = Desired { state: &state, node: &node };
/// let listing = render::listing(&compile(&state, &node).v4);
/// let table = Table::default();
/// let families = [IpFamily::V4];
///
/// let found = listing::read(&listing, &table);
/// assert_eq!(audit(desired, &found, &table, &families, |_| ()).worst(), None);
///
/// let damaged = listing.replace("goto refuse\n\t\tip daddr", "drop\n\t\tip daddr").replace(": goto refuse", ": drop");
/// let found = listing::read(&damaged, &table);
/// let report = audit(desired, &found, &table, &families, |_| ());
/// assert_eq!(report.findings[0].kind, Kind::Different);
/// assert_eq!(report.findings[0].service_port.as_deref(), Some("shop/api"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn audit(
    desired: Desired<'_>,
    listing: &Listing,
    table: &Table,
    families: &[IpFamily],
    mut progress: impl FnMut(&str),
) -> Report {
    let mut report = Report {
        unread: listing.unread.clone(),
        ..Report::default()
    };
    report.scope.services = desired.state.services().count();
    report.scope.neighbours = listing.neighbours.len();
    if families.contains(&IpFamily::V4) {
        progress("comparing IPv4");
        audit_family::<V4>(desired, listing, table, &mut report);
    }
    if families.contains(&IpFamily::V6) {
        progress("comparing IPv6");
        audit_family::<V6>(desired, listing, table, &mut report);
    }
    progress("looking at others' tables");
    let mark = desired.node.masquerade_mark;
    others::judge(table, mark, &listing.neighbours, |finding| {
        report.findings.push(finding)
    });
    report.findings.sort();
    report.findings.dedup();
    report
}

fn audit_family<F: OfFamily>(
    desired: Desired<'_>,
    listing: &Listing,
    table: &Table,
    report: &mut Report,
) {
    let observed = F::of(listing);
    let compiled = desired.compile::<F>(observed);
    report.scope.desired_elements += compiled.ruleset.elements.len();
    let Report {
        findings, scope, ..
    } = report;
    let of_table = |severity, kind, message: String, effect: &str| Finding {
        severity,
        kind,
        family: Some(F::FAMILY),
        service_port: None,
        object: table_text(F::FAMILY, table.name()),
        message,
        effect: effect.into(),
    };
    findings.extend(compiled.compilation.notes().map(|note| Finding {
        service_port: note.service_port().map(ToString::to_string),
        ..of_table(Severity::Note, Kind::LeftOut, note.to_string(), "")
    }));
    let Some(observed) = observed else {
        let is_needed = !compiled.ruleset.elements.is_empty();
        let (severity, effect) = if is_needed {
            (Severity::Error, "no Service of this family is served")
        } else {
            (Severity::Note, "there is nothing to serve in this family")
        };
        findings.push(of_table(
            severity,
            Kind::Missing,
            "it does not exist".into(),
            effect,
        ));
        return;
    };
    scope.observed_elements += observed.ruleset.elements.len();
    scope.chains += observed.ruleset.skeleton.chains.len() + observed.ruleset.picks.len();
    findings.extend(observed.foreign.iter().map(|what| {
        let effect = "the proxy's next full comparison removes it by building the table anew";
        of_table(Severity::Error, Kind::Foreign, what.clone(), effect)
    }));

    let digest = Digest::of(&observed.ruleset).to_string();
    let line = observed.about.as_ref();
    if let Some(own) = line.and_then(|line| provenance::digest_in(line.as_str()))
        && own != digest
    {
        let message = format!("it says of itself that its digest is {own}, and it is {digest}");
        let effect = "it was changed after that was written, which is done when all has been quiet for a second";
        findings.push(of_table(Severity::Note, Kind::Different, message, effect));
    }

    let ruleset = &compiled.ruleset;
    chains::compare(ruleset, &observed.ruleset, |finding| findings.push(finding));
    chains::structure(ruleset, &observed.ruleset, |finding| findings.push(finding));
    let owners = Owners::new(desired, &compiled, &observed.ruleset);
    elements::compare(ruleset, &observed.ruleset, &owners, |finding| {
        findings.push(finding)
    });
    remembered::compare(ruleset, &observed.remembered, &owners, |finding| {
        findings.push(finding)
    });
}
