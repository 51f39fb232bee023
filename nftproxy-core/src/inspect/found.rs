//! Services as a ruleset has them. Entry point: [`services_of`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::services::{
    DestinationRow, EndpointRow, ServiceRow, Standing, endpoints_text, outcome, socket,
};
use crate::compile::ClaimKind;
use crate::counts::Counts;
use crate::model::{EndpointAddress, Family, ServiceAddress, TrafficPolicy};
use crate::ruleset::FamilyRuleset;
use crate::ruleset::element::{Data, Destination, Element, Key};
use crate::ruleset::expr::{Expr, Verdict};
use crate::ruleset::name::{ChainName, Draw, SetName};

/// Whose source is replaced on the way to a ClusterIP, by the rule that does it.
fn masquerade_of_cluster_ips<F: Family>(ruleset: &FamilyRuleset<F>) -> &'static str {
    let chains = [ChainName::Services, ChainName::Masquerading];
    let rules = chains
        .iter()
        .filter_map(|chain| ruleset.skeleton.chains.get(chain))
        .flatten();
    let is_it = |expr: &Expr| {
        matches!(
            expr,
            Expr::Lookup {
                set: SetName::ClusterIps,
                ..
            }
        )
    };
    let marks = |expr: &Expr| matches!(expr, Expr::SetMark { .. } | Expr::Masquerade);
    let mut rules =
        rules.filter(|rule| rule.exprs.iter().any(is_it) && rule.exprs.iter().any(marks));
    match rules.next() {
        None => "none",
        Some(rule)
            if rule
                .exprs
                .iter()
                .any(|expr| matches!(expr, Expr::Cmp { .. })) =>
        {
            "not pods"
        }
        Some(_) => "all",
    }
}

/// The Services of one family as a ruleset has them, in order of name: what comments name.
pub fn services_of<F: Family>(ruleset: &FamilyRuleset<F>) -> Vec<ServiceRow> {
    let mut rows = BTreeMap::<String, ServiceRow>::new();
    let verdicts: BTreeMap<_, _> = ruleset
        .elements
        .iter()
        .filter_map(|element| match (element.key(), element.data()) {
            (Key::Destination(destination), Data::Verdict(verdict)) => {
                Some(((element.set(), *destination), *verdict))
            }
            _ => None,
        })
        .collect();
    let mut endpoints = BTreeMap::<Destination<F>, BTreeSet<EndpointAddress<F>>>::new();
    let mut slots = BTreeMap::<_, (u32, BTreeSet<EndpointAddress<F>>)>::new();
    let mut sources = BTreeMap::<Destination<F>, Vec<String>>::new();
    for element in &ruleset.elements {
        match (element.key(), element.data()) {
            (Key::Slot(destination, _), Data::Endpoint(endpoint)) => {
                endpoints.entry(*destination).or_default().insert(*endpoint);
                let place = (element.set(), *destination);
                let (n, endpoints) = slots.entry(place).or_default();
                *n += 1;
                endpoints.insert(*endpoint);
            }
            (Key::Source(destination, first, len), _) => {
                sources
                    .entry(*destination)
                    .or_default()
                    .push(format!("{first}/{len}"));
            }
            _ => {}
        }
    }
    let of_cluster_ips = masquerade_of_cluster_ips(ruleset);
    let is_cluster_ip = |address| ruleset.elements.contains(&Element::cluster_ip(address));
    for element in &ruleset.elements {
        let (Key::Destination(destination), Some(comment)) = (element.key(), element.comment())
        else {
            continue;
        };
        let (service_map, external, local, unavailable, sticky) = match destination.address {
            Some(_) => (
                SetName::Services,
                SetName::External,
                SetName::Local,
                SetName::Unavailable,
                SetName::Sticky,
            ),
            None => (
                SetName::NodePorts,
                SetName::ExternalNodePorts,
                SetName::LocalNodePorts,
                SetName::UnavailableNodePorts,
                SetName::StickyNodePorts,
            ),
        };
        let row = rows
            .entry(comment.to_string())
            .or_insert_with(|| ServiceRow {
                service_port: comment.to_string(),
                family: F::FAMILY,
                affinity: None,
                balancing: None,
                destinations: Vec::new(),
                endpoints: Vec::new(),
                notes: Vec::new(),
            });
        let address = ServiceAddress::from(*destination);
        if row
            .destinations
            .iter()
            .any(|known| known.address == address)
        {
            continue;
        }
        let verdict = |set| verdicts.get(&(set, *destination)).copied();
        let n = |set| match verdict(set) {
            Some(Verdict::Goto(ChainName::Pick(pick))) => {
                let slots = slots.get(&(pick.map.set(), *destination));
                // An endpoint may have several; one that lacks is missed.
                match slots.filter(|(n, _)| *n == pick.n.get()) {
                    Some((_, endpoints)) => endpoints.len(),
                    None => pick.n.get() as usize,
                }
            }
            _ => 0,
        };
        let is_by_client = [service_map, external, local].into_iter().any(|set| {
            let pick = match verdict(set) {
                Some(Verdict::Goto(ChainName::Pick(pick))) => Some(pick),
                _ => None,
            };
            pick.is_some_and(|pick| pick.draw == Draw::Hash)
        });
        if is_by_client {
            row.balancing = Some("by client".into());
        }
        // Only a ClusterIP leads to a pick chain at once, even if the set of them lacks it.
        let is_picked = matches!(
            verdict(service_map),
            Some(Verdict::Goto(ChainName::Pick(_)))
        );
        let is_cluster = is_picked || destination.address.is_some_and(is_cluster_ip);
        let external_local = Element::external_local(*destination);
        let (policy, masquerade) = if ruleset.elements.contains(&external_local) {
            (TrafficPolicy::Local, "node")
        } else if is_cluster {
            (TrafficPolicy::Cluster, of_cluster_ips)
        } else {
            (TrafficPolicy::Cluster, "all")
        };
        let kind = if is_cluster {
            ClaimKind::ClusterIp
        } else {
            ClaimKind::External
        };
        let outcome = match verdict(unavailable) {
            Some(Verdict::Goto(_)) => "refuse".into(),
            Some(_) if is_cluster => "drop".into(),
            _ if is_cluster => endpoints_text(n(service_map)),
            _ => outcome(kind, policy, n(external), n(local)),
        };
        row.destinations.push(DestinationRow {
            kind: match (destination.address, kind) {
                (None, _) => "NodePort",
                (_, ClaimKind::ClusterIp) => "ClusterIP",
                (_, ClaimKind::External) => "External",
            },
            address,
            // Endpoints of a ClusterIP are all in one map, whatever its policy.
            policy: (!is_cluster).then_some(policy),
            masquerade,
            sources: sources.get(destination).cloned().unwrap_or_default(),
            outcome,
            connections: None,
        });
        if let Some(Verdict::Goto(ChainName::RememberFor(seconds))) = verdict(sticky) {
            row.affinity = Some(seconds.get());
        }
        for endpoint in endpoints.get(destination).into_iter().flatten() {
            let address = socket(*endpoint);
            if !row.endpoints.iter().any(|known| known.address == address) {
                row.endpoints.push(EndpointRow {
                    address,
                    locality: None,
                    cluster: Some(Standing::Used),
                    local: None,
                    connections: None,
                });
            }
        }
    }
    let mut rows: Vec<_> = rows.into_values().collect();
    for row in &mut rows {
        row.endpoints.sort_by_key(|endpoint| endpoint.address);
    }
    rows
}

/// Adds to the Services of a ruleset what its table has counted.
pub fn add_counts<F: Family>(rows: &mut [ServiceRow], counts: &Counts<F>) {
    let mut destinations = BTreeMap::<ServiceAddress, u64>::new();
    let mut endpoints = BTreeMap::<ServiceAddress, Vec<(SocketAddr, u64)>>::new();
    for (element, number) in &counts.elements {
        match (element.key(), element.data()) {
            (Key::Slot(destination, _), Data::Endpoint(endpoint)) => {
                let endpoints = endpoints.entry((*destination).into()).or_default();
                endpoints.push((socket(*endpoint), *number));
            }
            (Key::Destination(destination), _) => {
                // Connections that are dropped by the policy `Local` meet both maps.
                let known = destinations.entry((*destination).into()).or_default();
                *known = (*known).max(*number);
            }
            _ => {}
        }
    }
    for row in rows.iter_mut().filter(|row| row.family == F::FAMILY) {
        for at in &mut row.destinations {
            at.connections = destinations.get(&at.address).copied();
            for (endpoint, number) in endpoints.get(&at.address).into_iter().flatten() {
                let known = row.endpoints.iter_mut().find(|it| it.address == *endpoint);
                if let Some(known) = known {
                    *known.connections.get_or_insert_default() += number;
                }
            }
        }
    }
}
