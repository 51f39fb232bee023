//! A ruleset as data: the fixed skeleton, the pick chains in use, and the elements.
//!
//! It can express nothing that is named after a Service: Services and endpoints are elements.
//! The module knows neither Kubernetes nor netlink. Read [`FamilyRuleset`] first.

mod comment;
pub mod element;
pub mod expr;
pub mod name;
pub mod schema;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Family;
pub use comment::Comment;
use element::Element;
use expr::{Expr, Statement};
use name::{ChainName, Pick, SetName};
pub use table::{Table, TableError};

/// One family's table.
///
/// `node-port-ips` and the likes are elements too, so what is left in `chains` changes only with
/// the node's settings, the ServiceCIDRs and the program's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FamilyRuleset<F: Family> {
    /// The chains with fixed names, and their rules.
    pub skeleton: Skeleton,
    /// The pick chains.
    pub picks: BTreeSet<Pick>,
    /// The elements, each set-and-key once.
    pub elements: BTreeSet<Element<F>>,
}

impl<F: Family> FamilyRuleset<F> {
    /// One that does nothing.
    pub fn empty() -> Self {
        Self {
            skeleton: Skeleton::default(),
            picks: BTreeSet::new(),
            elements: BTreeSet::new(),
        }
    }
}

/// The chains with fixed names, and the sets and maps beside those of [`name::SetName::ALL`], which
/// are always there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Skeleton {
    /// How its sets and maps are declared.
    pub set_options: SetOptions,
    /// Those of [`name::SetName::OPTIONAL`] that there are.
    pub sets: BTreeSet<SetName>,
    /// Rules by chain, in order.
    pub chains: BTreeMap<ChainName, Vec<Rule>>,
}

/// What may differ in the declaration of sets and maps; a table is made anew to change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetOptions {
    /// Whether the elements of [`name::SetName::COUNTED`] count connections.
    pub counts: bool,
}

impl SetOptions {
    /// Whether the elements of a set count.
    pub fn counts(self, set: SetName) -> bool {
        self.counts && SetName::COUNTED.contains(&set)
    }
}

impl Skeleton {
    /// Pick chains that are here because they have other rules than they should have.
    pub(crate) fn spoiled_picks(&self) -> Vec<Pick> {
        let chains = self.chains.keys();
        chains
            .filter_map(|chain| match chain {
                ChainName::Pick(pick) => Some(*pick),
                _ => None,
            })
            .collect()
    }

    /// The same when they have been mended, and are among the others.
    pub(crate) fn without_picks(mut self) -> Self {
        self.chains
            .retain(|chain, _| !matches!(chain, ChainName::Pick(_)));
        self
    }
}

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// As nft(8) writes it; empty if it was read from the kernel.
    pub text: String,
    /// What the kernel runs.
    pub exprs: Vec<Expr>,
}

impl Rule {
    /// Makes a rule of its statements.
    pub fn new<F: Family>(statements: impl IntoIterator<Item = Statement<F>>) -> Self {
        let mut texts = Vec::new();
        let mut exprs = Vec::new();
        for statement in statements {
            texts.push(statement.nft());
            statement.lower(&mut exprs);
        }
        Self {
            text: texts.join(" "),
            exprs,
        }
    }

    /// The sets and maps that it uses.
    pub(crate) fn sets(&self) -> impl Iterator<Item = SetName> {
        self.exprs.iter().filter_map(|expr| match expr {
            Expr::Lookup { set, .. }
            | Expr::LookupAbsent { set, .. }
            | Expr::Update { set, .. } => Some(*set),
            _ => None,
        })
    }
}

/// Rules are equal if the kernel does the same; the text only explains.
impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        let Self { text: _, exprs } = self;
        *exprs == other.exprs
    }
}

impl Eq for Rule {}
