//! Chains and rules: those that should be there, those that are, and those that nothing leads to.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::expr::text;
use super::finding::{Finding, Kind, Severity};
use crate::compile::{Features, skeleton};
use crate::model::{Family, Node};
use crate::ruleset::element::Data;
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
            text::<F>(rule)
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

/// Which chains lead where.
struct Links {
    leads_to: BTreeMap<ChainName, BTreeSet<ChainName>>,
}

impl Links {
    fn of<F: Family>(ruleset: &FamilyRuleset<F>) -> Self {
        let mut maps = BTreeMap::<_, BTreeSet<ChainName>>::new();
        for element in &ruleset.elements {
            if let Data::Verdict(verdict) = element.data() {
                let targets = maps.entry(element.set()).or_default();
                targets.extend(verdict.chain());
            }
        }
        let picks = ruleset.picks.iter().map(|pick| {
            let rules = crate::compile::pick_rules::<F>(*pick);
            (ChainName::Pick(*pick), Cow::Owned(rules))
        });
        let fixed = ruleset.skeleton.chains.iter();
        let fixed = fixed.map(|(chain, rules)| (*chain, Cow::Borrowed(rules)));
        let leads_to = fixed.chain(picks).map(|(chain, rules)| {
            let mut targets = BTreeSet::new();
            for expr in rules.iter().flat_map(|rule| &rule.exprs) {
                match expr {
                    Expr::Verdict(verdict) => targets.extend(verdict.chain()),
                    Expr::Lookup { set, .. } => targets.extend(maps.get(set).into_iter().flatten()),
                    _ => {}
                }
            }
            (chain, targets)
        });
        Self {
            leads_to: leads_to.collect(),
        }
    }

    /// The chains that packets come to.
    fn reached(&self) -> BTreeSet<ChainName> {
        let all = self.leads_to.keys().copied();
        let mut open: Vec<_> = all.filter(|chain| base_chain(*chain).is_some()).collect();
        let mut reached = BTreeSet::new();
        while let Some(chain) = open.pop() {
            if reached.insert(chain) {
                open.extend(self.leads_to.get(&chain).into_iter().flatten());
            }
        }
        reached
    }
}

/// Looks for verdicts that lead nowhere, and for chains that nothing leads to.
pub(super) fn structure<F: Family>(
    desired: &FamilyRuleset<F>,
    observed: &FamilyRuleset<F>,
    mut found: impl FnMut(Finding),
) {
    let links = Links::of(observed);
    for (chain, targets) in &links.leads_to {
        for target in targets
            .iter()
            .filter(|target| !links.leads_to.contains_key(target))
        {
            let message =
                format!("a verdict leads from here to chain {target}, which does not exist");
            found(finding::<F>(*chain, Kind::Dangling, message));
        }
    }
    let reached = links.reached();
    let wanted = Links::of(desired).reached();
    for chain in links
        .leads_to
        .keys()
        .filter(|chain| !reached.contains(chain))
    {
        let (severity, effect) = if wanted.contains(chain) {
            (Severity::Error, "what it decides is decided by nobody")
        } else if matches!(chain, ChainName::Pick(_)) {
            (Severity::Note, "it is left from before, which does no harm")
        } else {
            // Its map is empty for now, or it has been told of as one that nothing needs.
            continue;
        };
        found(Finding {
            severity,
            effect: effect.into(),
            ..finding::<F>(*chain, Kind::Unreachable, "no packet comes to it")
        });
    }
}
