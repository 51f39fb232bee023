//! What is different between two rulesets, as Services. Entry point: [`changes`].

use std::collections::{BTreeMap, BTreeSet};

use super::found::services_of;
use super::services::ServiceRow;
use crate::model::{Family, IpFamily};
use crate::ruleset::FamilyRuleset;

/// What becomes of a Service port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceChange {
    /// `namespace/name:port`, or as much of it as a comment holds.
    pub service_port: String,
    /// The family.
    pub family: IpFamily,
    /// What comes, one line each: a destination with what becomes of connections, or an endpoint.
    pub added: Vec<String>,
    /// What goes.
    pub removed: Vec<String>,
}

/// Finds the Service ports that differ, in order of name.
pub fn changes<F: Family>(from: &FamilyRuleset<F>, to: &FamilyRuleset<F>) -> Vec<ServiceChange> {
    let by_name = |rows: Vec<ServiceRow>| -> BTreeMap<String, BTreeSet<String>> {
        rows.into_iter()
            .map(|row| (row.service_port.clone(), lines(&row)))
            .collect()
    };
    let (from, to) = (by_name(services_of(from)), by_name(services_of(to)));
    let nothing = BTreeSet::new();
    let names: BTreeSet<_> = from.keys().chain(to.keys()).collect();
    let changes = names.into_iter().map(|name| {
        let before = from.get(name).unwrap_or(&nothing);
        let after = to.get(name).unwrap_or(&nothing);
        ServiceChange {
            service_port: name.clone(),
            family: F::FAMILY,
            added: after.difference(before).cloned().collect(),
            removed: before.difference(after).cloned().collect(),
        }
    });
    changes
        .filter(|change| !change.added.is_empty() || !change.removed.is_empty())
        .collect()
}

fn lines(row: &ServiceRow) -> BTreeSet<String> {
    let affinity = row
        .affinity
        .map(|seconds| format!(", clients keep theirs for {seconds} s"));
    let affinity = affinity.unwrap_or_default();
    let balancing = row.balancing.iter().map(|how| format!(", {how}"));
    let balancing: String = balancing.collect();
    let destinations = row.destinations.iter().map(|at| {
        let sources = match at.sources.as_slice() {
            [] => String::new(),
            sources => format!(", only from {}", sources.join(" ")),
        };
        format!(
            "{} {}: {}{balancing}{affinity}{sources}",
            at.kind, at.address, at.outcome
        )
    });
    let endpoints = row
        .endpoints
        .iter()
        .map(|at| format!("endpoint {}", at.address));
    destinations.chain(endpoints).collect()
}
