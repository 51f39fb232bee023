//! Tables of others: where their chains sit, and what rules may do there.

use super::token::Token;
use super::{Base, RuleText, SetHead, Sink};
use crate::neighbour::{Act, BaseChain, Neighbour, family_name};

/// A table of somebody else, so far.
pub(super) struct Other {
    neighbour: Neighbour,
    /// As the listing calls it.
    family: String,
}

impl Other {
    pub(super) fn new(family: &str, table: &str) -> Self {
        Self {
            neighbour: Neighbour {
                family: family_name(family),
                table: table.into(),
                ..Neighbour::default()
            },
            family: family.into(),
        }
    }

    pub(super) fn is(&self, family: &str, table: &str) -> bool {
        self.family == family && self.neighbour.table == table
    }

    pub(super) fn finish(self) -> Neighbour {
        self.neighbour
    }
}

impl Sink for Other {
    fn table_flag(&mut self, flag: &str) {
        self.neighbour.is_dormant |= flag == "dormant";
    }

    fn set(&mut self, _: &SetHead) {}

    fn element(&mut self, _: &str, _: &[Token<'_>]) {}

    fn chain(&mut self, name: &str, base: Option<Base>) {
        self.neighbour.chains.push(name.into());
        self.neighbour
            .base_chains
            .extend(base.map(|base| BaseChain {
                name: name.into(),
                hook: base.hook_number(),
                chain_type: base.chain_type,
                priority: base.priority,
                drops_by_default: base.policy == "drop",
            }));
    }

    fn rule(&mut self, chain: &str, rule: &RuleText<'_>) {
        let mut acts = Vec::new();
        let mut leads_to = Vec::new();
        let mut words = rule.words.iter().peekable();
        while let Some(word) = words.next() {
            match word {
                Token::Word("comment" | "prefix" | "iifname" | "oifname") => {
                    // What is quoted there says nothing.
                    words.next_if(|word| matches!(word, Token::Quoted(_)));
                }
                Token::Word("jump" | "goto") => {
                    leads_to.extend(words.next().and_then(|word| word.text()));
                }
                word => acts.extend(word.text().and_then(Act::of)),
            }
        }
        if acts.is_empty() && leads_to.is_empty() {
            return;
        }
        let conduct = self.neighbour.conduct.entry(chain.into()).or_default();
        conduct.acts.extend(acts);
        conduct
            .leads_to
            .extend(leads_to.into_iter().map(String::from));
    }

    fn other(&mut self, _: String) {}
}
