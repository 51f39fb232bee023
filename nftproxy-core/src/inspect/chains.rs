//! Chains and rules: those that should be there, those that are, and those that nothing leads to.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::expr::text;
use super::finding::{Finding, Kind, Severity};
use crate::model::Family;
use crate::ruleset::element::Data;
use crate::ruleset::expr::Expr;
use crate::ruleset::name::ChainName;
use crate::ruleset::schema::base_chain;
use crate::ruleset::{FamilyRuleset, Rule};

/// Compares the chains and their rules.
pub(super) fn compare<F: Family>(
    desired: &FamilyRuleset<F>,
    observed: &FamilyRuleset<F>,
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
        if current != rules {
            compare_rules::<F>(*chain, rules, current, &mut found);
        }
    }
    for chain in observed.skeleton.chains.keys() {
        let is_needed = match chain {
            // One with other rules than it should have.
            ChainName::Pick(pick) => desired.picks.contains(pick),
            chain => desired.skeleton.chains.contains_key(chain),
        };
        if is_needed {
            continue;
        }
        let harmless = base_chain(*chain).is_none();
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
        let chain = ChainName::Pick(*pick);
        match observed.skeleton.chains.get(&chain) {
            Some(current) => {
                let rules = crate::compile::pick_rules::<F>(*pick);
                compare_rules::<F>(chain, &rules, current, &mut found);
            }
            None => found(finding::<F>(chain, Kind::Missing, "it does not exist")),
        }
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

/// Which chains lead where.
pub(super) struct Links {
    leads_to: BTreeMap<ChainName, BTreeSet<ChainName>>,
}

impl Links {
    pub(super) fn of<F: Family>(ruleset: &FamilyRuleset<F>) -> Self {
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
        // What tells of the table is there, and leads nowhere.
        let about = (ChainName::About, Cow::Owned(Vec::new()));
        let leads_to = fixed.chain(picks).chain([about]).map(|(chain, rules)| {
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
    pub(super) fn reached(&self) -> BTreeSet<ChainName> {
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
