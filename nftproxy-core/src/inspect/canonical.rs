//! Rulesets in a form in which two are equal if connections fare equally. Entry points:
//! [`canonical`] and [`shared`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::chains::Links;
use super::expr::text;
use crate::compile::pick_rules;
use crate::model::{EndpointAddress, Family};
use crate::ruleset::element::{Data, Destination, Element, Key};
use crate::ruleset::expr::{Expr, Verdict};
use crate::ruleset::name::{ChainName, SetName};
use crate::ruleset::{FamilyRuleset, Rule};

/// A ruleset in lines of which two are equal if connections fare equally: in which slot of several
/// an endpoint is does not count, nor do chains that no packet comes to, such as those that are
/// left from before, nor what affinity remembers.
///
/// Slots count where they are not as they should be: with a gap, or with one endpoint twice.
pub fn canonical<F: Family>(ruleset: &FamilyRuleset<F>) -> BTreeSet<String> {
    let mut lines = chains(ruleset);
    lines.extend(elements(ruleset, |_| true));
    lines
}

/// The part of [`canonical`] that is the same on all nodes of a zone that have the same settings,
/// unless a Service has `internalTrafficPolicy: Local`: without what depends on where endpoints
/// are, and without the node's own addresses.
pub fn shared<F: Family>(ruleset: &FamilyRuleset<F>) -> BTreeSet<String> {
    let mut lines = chains(ruleset);
    let of_node = ["chain pick-local-", "chain sticky-pick-local-"];
    lines.retain(|line| !of_node.iter().any(|name| line.starts_with(name)));
    lines.extend(elements(ruleset, |element| {
        !matches!(
            (element.set(), element.data()),
            (
                SetName::NodePortIps
                    | SetName::Hairpin
                    | SetName::Local
                    | SetName::LocalNodePorts
                    | SetName::LocalEndpoints
                    | SetName::LocalNodePortEndpoints,
                _
            ) | (
                SetName::Unavailable | SetName::UnavailableNodePorts,
                Data::Verdict(Verdict::Drop)
            )
        )
    }));
    lines
}

fn chains<F: Family>(ruleset: &FamilyRuleset<F>) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for chain in Links::of(ruleset).reached() {
        let rules = match chain {
            ChainName::Pick(pick) if ruleset.picks.contains(&pick) => pick_rules::<F>(pick),
            chain => match ruleset.skeleton.chains.get(&chain) {
                Some(rules) => rules.clone(),
                None => continue,
            },
        };
        for (number, rule) in rules.iter().enumerate() {
            let rule = without_counter(rule);
            lines.insert(format!("chain {chain} {number}: {}", text::<F>(&rule)));
        }
    }
    lines
}

/// A rule as it is where nothing is counted, as that changes nothing for connections.
fn without_counter(rule: &Rule) -> Cow<'_, Rule> {
    if !rule.exprs.contains(&Expr::Counter) {
        return Cow::Borrowed(rule);
    }
    let exprs = rule.exprs.iter().filter(|expr| **expr != Expr::Counter);
    Cow::Owned(Rule {
        text: String::new(),
        exprs: exprs.cloned().collect(),
    })
}

type Slots<F> = BTreeMap<(SetName, Destination<F>), Vec<(u32, EndpointAddress<F>)>>;

fn elements<F: Family>(
    ruleset: &FamilyRuleset<F>,
    is_wanted: impl Fn(&Element<F>) -> bool,
) -> Vec<String> {
    let mut lines = Vec::new();
    let mut slots = Slots::<F>::new();
    for element in ruleset.elements.iter().filter(|element| is_wanted(element)) {
        match (element.key(), element.data()) {
            (Key::Slot(destination, slot), Data::Endpoint(at)) => {
                let slots = slots.entry((element.set(), *destination)).or_default();
                slots.push((*slot, *at));
            }
            _ => lines.push(format!("{}: {}", element.set(), element.nft())),
        }
    }
    for ((set, destination), mut slots) in slots {
        slots.sort();
        let distinct: BTreeSet<_> = slots.iter().map(|(_, at)| *at).collect();
        let is_whole = distinct.len() == slots.len()
            && slots
                .iter()
                .zip(0..)
                .all(|((slot, _), number)| *slot == number);
        lines.extend(slots.into_iter().map(|(slot, at)| {
            let at = format!("{} . {}", at.address, at.port);
            if is_whole {
                format!("{set}: {destination} : {at}")
            } else {
                format!("{set}: {destination} . {slot} : {at}")
            }
        }));
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use super::*;
    use crate::model::{Protocol, V4};
    use crate::ruleset::name::SlotMap;

    fn slots(slots: &[(u32, u8)]) -> FamilyRuleset<V4> {
        let destination = Destination::<V4> {
            address: Some([10, 96, 0, 1].into()),
            protocol: Protocol::Tcp,
            port: 80.try_into().unwrap(),
        };
        let mut ruleset = FamilyRuleset::empty();
        for (slot, last) in slots {
            let endpoint = EndpointAddress {
                address: [10, 0, 0, *last].into(),
                port: 80.try_into().unwrap(),
            };
            ruleset.elements.insert(Element::slot(
                SlotMap::Endpoints,
                destination,
                *slot,
                endpoint,
            ));
        }
        ruleset
    }

    #[test]
    fn the_order_of_slots_does_not_count_and_gaps_do() {
        let plain = canonical(&slots(&[(0, 1), (1, 2)]));
        assert_eq!(plain, canonical(&slots(&[(0, 2), (1, 1)])));
        for damaged in [
            &[(0, 1), (2, 2)][..],
            &[(0, 1), (1, 1)],
            &[(0, 1), (1, 2), (2, 2)],
            &[(0, 1)],
        ] {
            assert_ne!(plain, canonical(&slots(damaged)), "{damaged:?}");
        }
    }
}
