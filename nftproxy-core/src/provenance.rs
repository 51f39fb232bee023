//! Who wrote a table, in which layout, and what it amounts to, as one line in the table itself.
//!
//! The kernel lets no comment of a table, chain or set change, so the line is the comment of a rule
//! that no packet meets, in the chain [`ChainName::About`]. It is written some time after the last
//! change, when there is nothing else to do.
//!
//! The digest is a sum of hashes, one for each element and rule, so that what changes is taken off
//! and added on, whatever else there is. Entry point: [`Digest::of`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::model::{EndpointAddress, Family};
use crate::ruleset::element::{Data, Destination, Element, Key, write_port};
use crate::ruleset::expr::{Expr, Verdict};
use crate::ruleset::name::{ChainName, Pick, SetName};
use crate::ruleset::{FamilyRuleset, Rule, Skeleton};

/// The version of the layout: it changes with the fixed chains and the types of sets.
pub const LAYOUT: u32 = 2;

/// What a ruleset amounts to. Which slots endpoints have does not count, nor whether connections
/// are counted, nor what affinity remembers.
///
/// ```
/// # use nftproxy_core::compile::compile;
/// # use nftproxy_core::listing;
/// # use nftproxy_core::model::{Node, State};
/// # use nftproxy_core::provenance::Digest;
/// # use nftproxy_core::render;
/// # use nftproxy_core::ruleset::Table;
/// let ruleset = compile(&State::default(), &Node::default()).v4;
/// let found = listing::read(&render::listing(&ruleset), &Table::default());
/// assert_eq!(found.v4.map(|table| Digest::of(&table.ruleset)), Some(Digest::of(&ruleset)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest(u128);

impl Digest {
    /// The digest of a ruleset.
    ///
    /// Which endpoints there are counts, each as often as it has a slot; and the slots themselves
    /// where they have a gap.
    pub fn of<F: Family>(ruleset: &FamilyRuleset<F>) -> Self {
        let mut digest = Self::default();
        let mut skeleton = ruleset.skeleton.clone();
        let drawn: BTreeSet<_> = ruleset.elements.iter().flat_map(draws_by).collect();
        // A pick chain with other rules than it should have counts where packets come to it.
        skeleton.chains.retain(|chain, _| match chain {
            ChainName::Pick(pick) => drawn.contains(pick),
            _ => true,
        });
        digest.add_chains(&skeleton);
        let mut slots = BTreeMap::<(SetName, Destination<F>), Vec<_>>::new();
        for element in &ruleset.elements {
            match (element.key(), element.data()) {
                (Key::Slot(destination, slot), _) => {
                    let slots = slots.entry((element.set(), *destination)).or_default();
                    slots.push((*slot, element));
                }
                _ => digest.add(element),
            }
        }
        for slots in slots.into_values() {
            let is_whole = slots.iter().zip(0..).all(|((slot, _), n)| *slot == n);
            for (slot, element) in slots {
                let slot = (!is_whole).then_some(slot);
                digest.0 = digest.0.wrapping_add(hash_of_element(element, slot));
            }
        }
        digest
    }

    /// An element has come.
    pub(crate) fn add<F: Family>(&mut self, element: &Element<F>) {
        self.0 = self.0.wrapping_add(hash_of_element(element, None));
    }

    /// An element has gone.
    pub(crate) fn remove<F: Family>(&mut self, element: &Element<F>) {
        self.0 = self.0.wrapping_sub(hash_of_element(element, None));
    }

    /// Adds the fixed chains, but for those that are left when nothing needs them any more.
    pub(crate) fn add_chains(&mut self, skeleton: &Skeleton) {
        let needed = needed(skeleton);
        let chains = skeleton.chains.iter();
        for (chain, rules) in chains.filter(|(chain, _)| needed(**chain)) {
            for (place, rule) in rules.iter().enumerate() {
                let mut hasher = SipHasher24::new();
                hasher.write(format!("chain {chain} {place}: {}", exprs(rule)).as_bytes());
                self.0 = self.0.wrapping_add(hasher.finish128().as_u128());
            }
        }
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The line for a table.
pub fn line(digest: Digest) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("nftproxy {version}, layout {LAYOUT}, digest {digest}")
}

/// The digest that a table's line has.
pub fn digest_in(line: &str) -> Option<&str> {
    line.rsplit_once(", digest ").map(|(_, digest)| digest)
}

/// Chains that remember clients, and those that masquerade without a mark, stay for a while when
/// nothing needs them. The former are needed together with the chain `input`, the latter if
/// `postrouting` leads to them.
fn needed(skeleton: &Skeleton) -> impl Fn(ChainName) -> bool {
    let remembers = skeleton.chains.contains_key(&ChainName::Input);
    let masquerading = Expr::Verdict(Verdict::Jump(ChainName::Masquerading));
    let postrouting = skeleton.chains.get(&ChainName::Postrouting);
    let mut postrouting = postrouting.into_iter().flatten();
    let masquerades = postrouting.any(|rule| rule.exprs.contains(&masquerading));
    move |chain| match chain {
        ChainName::Remember => remembers,
        // The elements of `sticky` tell which there are.
        ChainName::RememberFor(_) => false,
        ChainName::Masquerading
        | ChainName::MasqueradeExternal
        | ChainName::MasqueradeExternalLocal => masquerades,
        _ => true,
    }
}

/// The pick chains that an element leads to: a sticky one leads on to a plain one.
fn draws_by<F: Family>(element: &Element<F>) -> impl Iterator<Item = Pick> + use<F> {
    let pick = match element.data() {
        Data::Verdict(Verdict::Goto(ChainName::Pick(pick))) => Some(*pick),
        _ => None,
    };
    let plain = pick.map(|pick| Pick {
        sticky: false,
        ..pick
    });
    pick.into_iter().chain(plain)
}

/// What a rule does, but for counting.
fn exprs(rule: &Rule) -> String {
    let exprs = rule.exprs.iter();
    let exprs: Vec<_> = exprs.filter(|expr| **expr != Expr::Counter).collect();
    format!("{exprs:?}")
}

fn hash_of_element<F: Family>(element: &Element<F>, slot: Option<u32>) -> u128 {
    let mut bytes = Vec::with_capacity(96);
    bytes.extend_from_slice(element.set().as_str().as_bytes());
    bytes.push(0);
    match (element.key(), slot) {
        (Key::Slot(destination, _), None) => Key::Destination(*destination).write(&mut bytes),
        (Key::Slot(destination, _), Some(slot)) => {
            Key::Destination(*destination).write(&mut bytes);
            bytes.extend_from_slice(&slot.to_be_bytes());
        }
        (Key::Source(.., len), _) => {
            element.key().write(&mut bytes);
            bytes.push(*len);
        }
        (key, _) => key.write(&mut bytes),
    }
    match element.data() {
        Data::None => {}
        Data::Endpoint(EndpointAddress { address, port }) => {
            F::write_address(*address, &mut bytes);
            write_port(*port, &mut bytes);
        }
        Data::Verdict(verdict) => {
            let code = match verdict {
                Verdict::Drop => 0,
                Verdict::Return => 1,
                Verdict::Jump(_) => 2,
                Verdict::Goto(_) => 3,
                Verdict::Accept => 4,
            };
            bytes.push(code);
            if let Some(chain) = verdict.chain() {
                bytes.extend_from_slice(chain.to_string().as_bytes());
            }
        }
    }
    bytes.push(0);
    if let Some(comment) = element.comment() {
        bytes.extend_from_slice(comment.as_str().as_bytes());
    }
    let mut hasher = SipHasher24::new();
    hasher.write(&bytes);
    hasher.finish128().as_u128()
}
