//! Chains and rules: those that should be there, those that are, and those that nothing leads to.

use std::collections::{BTreeMap, BTreeSet};

use super::expr::text;
use super::finding::{Finding, Kind, Severity};
use crate::compile::{Features, skeleton};
use crate::model::{Family, Node};
use crate::ruleset::expr::Expr;
use crate::ruleset::name::ChainName;
use crate::ruleset::schema::base_chain;
use crate::ruleset::{FamilyRuleset, Rule, Skeleton};

/// Compares the chains with fixed names.
pub(super) fn compare<F: Family>(
    desired: &FamilyRuleset<F>,
    observed: &FamilyRuleset<F>,
    with_left_affinity: Option<&Skeleton>,
    mut found: impl FnMut(Finding),
) {
    for (chain, rules) in &desired.skeleton.chains {
        let Some(current) = observed.skeleton.chains.get(chain) else {
            found(Finding {
                effect: "what it decides is decided by nobody".into(),
                ..finding::<F>(*chain, Kind::Missing, "it does not exist")
            });
            continue;
        };
        let also_right = with_left_affinity.and_then(|skeleton| skeleton.chains.get(chain));
        if current != rules && also_right != Some(current) {
            compare_rules::<F>(*chain, rules, current, &mut found);
        }
    }
    for chain in observed.skeleton.chains.keys() {
        if desired.skeleton.chains.contains_key(chain) {
            continue;
        }
        let is_left =
            with_left_affinity.is_some_and(|skeleton| skeleton.chains.contains_key(chain));
        let harmless = base_chain(*chain).is_none() || is_left;
        found(Finding {
            severity: if harmless {
                Severity::Note
            } else {
                Severity::Warning
            },
            effect: if harmless {
                "left from before, which does no harm".into()
            } else {
                "connections pay for it".into()
            },
            ..finding::<F>(*chain, Kind::Extra, "nothing needs it")
        });
    }
    for pick in desired.picks.difference(&observed.picks) {
        found(finding::<F>(
            ChainName::Pick(*pick),
            Kind::Missing,
            "it does not exist, or has other rules",
        ));
    }
}

fn finding<F: Family>(chain: ChainName, kind: Kind, message: impl Into<String>) -> Finding {
    Finding {
        severity: Severity::Error,
        kind,
        family: Some(F::FAMILY),
        service_port: None,
        object: format!("chain {chain}"),
        message: message.into(),
        effect: String::new(),
    }
}

fn compare_rules<F: Family>(
    chain: ChainName,
    desired: &[Rule],
    observed: &[Rule],
    found: &mut impl FnMut(Finding),
) {
    let mut unexplained: Vec<_> = desired.iter().collect();
    let mut is_told = false;
    for (index, rule) in observed.iter().enumerate() {
        if let Some(at) = unexplained.iter().position(|wanted| *wanted == rule) {
            unexplained.remove(at);
            continue;
        }
        is_told = true;
        let message = format!(
            "rule {} is none that should be there: {}",
            index + 1,
            text(rule)
        );
        let is_foreign = rule
            .exprs
            .iter()
            .any(|expr| matches!(expr, Expr::Foreign(_)));
        let kind = if is_foreign {
            Kind::Foreign
        } else {
            Kind::Extra
        };
        found(finding::<F>(chain, kind, message));
    }
    for rule in unexplained {
        is_told = true;
        let message = format!("it lacks the rule: {}", rule.text);
        found(finding::<F>(chain, Kind::Missing, message));
    }
    if !is_told {
        found(finding::<F>(
            chain,
            Kind::Different,
            "its rules are in another order",
        ));
    }
}

/// The fixed chains as they are after Services with session affinity have gone: what belonged to it
/// stays until the proxy starts anew. `None` if nothing of it is there, or it is in use.
pub(super) fn with_left_affinity<F: Family>(
    node: &Node,
    cidrs: &[(F::Address, u8)],
    features: &Features,
    observed: &Skeleton,
) -> Option<Skeleton> {
    let timeouts: BTreeSet<_> = observed
        .chains
        .keys()
        .filter_map(|chain| match chain {
            ChainName::RememberFor(seconds) => Some(*seconds),
            _ => None,
        })
        .collect();
    (!timeouts.is_subset(&features.affinity)).then(|| {
        let mut features = features.clone();
        features.affinity.extend(timeouts);
        skeleton::<F>(node, cidrs, &features)
    })
}

/// Looks for verdicts that lead nowhere, and for chains that nothing leads to.
pub(super) fn structure<F: Family>(observed: &FamilyRuleset<F>, mut found: impl FnMut(Finding)) {
    let mut leads_to: BTreeMap<ChainName, BTreeSet<ChainName>> = BTreeMap::new();
    let mut maps = BTreeMap::<_, BTreeSet<ChainName>>::new();
    for element in &observed.elements {
        if let crate::ruleset::element::Data::Verdict(verdict) = element.data()
            && let Some(chain) = verdict.chain()
        {
            maps.entry(element.set()).or_default().insert(chain);
        }
    }
    let picks = observed.picks.iter().map(|pick| {
        (
            ChainName::Pick(*pick),
            crate::compile::pick_rules::<F>(*pick),
        )
    });
    let fixed = observed.skeleton.chains.iter();
    let all: BTreeMap<_, _> = fixed
        .map(|(chain, rules)| (*chain, rules.clone()))
        .chain(picks)
        .collect();
    for (chain, rules) in &all {
        let targets = leads_to.entry(*chain).or_default();
        for expr in rules.iter().flat_map(|rule| &rule.exprs) {
            match expr {
                Expr::Verdict(verdict) => targets.extend(verdict.chain()),
                Expr::Lookup { set, .. } => targets.extend(maps.get(set).into_iter().flatten()),
                _ => {}
            }
        }
    }
    for (chain, targets) in &leads_to {
        for target in targets.iter().filter(|target| !all.contains_key(target)) {
            let message =
                format!("a verdict leads from here to chain {target}, which does not exist");
            found(finding::<F>(*chain, Kind::Dangling, message));
        }
    }
    let mut reached = BTreeSet::new();
    let mut open: Vec<_> = all
        .keys()
        .copied()
        .filter(|chain| base_chain(*chain).is_some())
        .collect();
    while let Some(chain) = open.pop() {
        if reached.insert(chain) {
            open.extend(leads_to.get(&chain).into_iter().flatten());
        }
    }
    for chain in all.keys().filter(|chain| !reached.contains(chain)) {
        // A plain pick chain of a map waits for its last sticky one to go, and others for the
        // Services that need them: nothing is wrong with any of them.
        found(Finding {
            severity: Severity::Note,
            effect: match chain {
                ChainName::Pick(_) => "it is not in use, which does no harm",
                _ => "nothing needs it at present",
            }
            .into(),
            ..finding::<F>(*chain, Kind::Unreachable, "no packet comes to it")
        });
    }
}
