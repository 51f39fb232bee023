//! Tables of others: where their chains sit, and what rules may do there.

use super::token::Token;
use super::{Base, RuleText, SetHead, Sink};
use crate::neighbour::{
    Act, BaseChain, Conduct, MarkValue, MarkWrite, Neighbour, VerdictMaps, family_name,
    has_addresses, has_ports,
};

/// A table of somebody else, so far.
pub(super) struct Other {
    neighbour: Neighbour,
    /// As the listing calls it.
    family: String,
    maps: VerdictMaps,
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
            maps: VerdictMaps::default(),
        }
    }

    pub(super) fn is(&self, family: &str, table: &str) -> bool {
        self.family == family && self.neighbour.table == table
    }

    pub(super) fn finish(mut self) -> Neighbour {
        self.maps.resolve(&mut self.neighbour.conduct);
        self.neighbour
    }
}

impl Sink for Other {
    fn table_flag(&mut self, flag: &str) {
        self.neighbour.is_dormant |= flag == "dormant";
    }

    fn set(&mut self, _: &SetHead) {}

    fn element(&mut self, set: &str, words: &[Token<'_>]) {
        let (conduct, _) = conduct(self.neighbour.family, words);
        self.maps.element(set).add(&conduct);
    }

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
        let (conduct, map) = conduct(self.neighbour.family, rule.words);
        if let Some(map) = map {
            self.maps.ask(chain, map);
        }
        if conduct != Conduct::default() {
            let known = self.neighbour.conduct.entry(chain.into()).or_default();
            known.add(&conduct);
        }
    }

    fn other(&mut self, _: String) {}
}

/// What the words of a rule or element may do, and the named verdict map that they ask.
fn conduct<'a>(family: &str, words: &[Token<'a>]) -> (Conduct, Option<&'a str>) {
    let mut conduct = Conduct::default();
    let mut map = None;
    for (at, word) in words.iter().enumerate() {
        let (before, after) = (&words[..at], &words[at + 1..]);
        match (before.last(), word) {
            (Some(Token::Word("jump" | "goto")), word) => {
                conduct.leads_to.extend(word.text().map(String::from));
            }
            (Some(Token::Word("vmap")), Token::Word(name)) if name.starts_with('@') => {
                map = name.strip_prefix('@');
            }
            (_, Token::Word("set")) => conduct.acts.extend(write(family, before, after)),
            (_, Token::Word(word)) => conduct.acts.extend(Act::of(word)),
            // Extensions of iptables. What else is quoted says nothing.
            (Some(Token::Word("target")), Token::Quoted(name)) => {
                conduct.acts.extend(Act::of(name));
            }
            _ => {}
        }
    }
    (conduct, map)
}

/// What a statement does that writes to what stands before the word `set`.
fn write(family: &str, before: &[Token<'_>], after: &[Token<'_>]) -> Option<Act> {
    use Token::{Comma, Word};
    let number = |word: &str| word.parse::<u32>().ok();
    match before {
        [.., Word("meta"), Word("mark")] => Some(Act::Mark(mark_write(after))),
        [.., Word("ip" | "ip6"), Word("saddr" | "daddr")]
        | [.., Word(_), Word("sport" | "dport")]
        | [
            ..,
            Word("icmp" | "icmpv6"),
            Word("type" | "code" | "checksum"),
        ] => Some(Act::Rewrite),
        // Of raw payload, in bits.
        [.., Word(base), Comma, Word(offset), Comma, Word(len)] => {
            let (offset, len) = (number(offset)?, number(len)?);
            let bytes = (offset / 8, (offset % 8 + len).div_ceil(8));
            let is_it = match *base {
                "@nh" => has_addresses(family, bytes.0, bytes.1),
                "@th" => has_ports(bytes.0),
                _ => false,
            };
            is_it.then_some(Act::Rewrite)
        }
        _ => None,
    }
}

/// What a value does to the mark that it is written to: a number, or the mark with some of its bits
/// changed. Others cannot be told.
fn mark_write(words: &[Token<'_>]) -> MarkWrite {
    use Token::Word;
    let (mut value, mut rest) = match words {
        [Word("meta"), Word("mark"), rest @ ..] | [Word("mark"), rest @ ..] => {
            (MarkValue::SAME, rest)
        }
        [Word(word), rest @ ..] => match number(word) {
            Some(number) => (MarkValue::constant(number), rest),
            None => return MarkWrite::UNKNOWN,
        },
        _ => return MarkWrite::UNKNOWN,
    };
    while let [Word(sign), Word(operand), more @ ..] = rest
        && let Some(operand) = number(operand)
    {
        value = match *sign {
            "|" | "or" => value.bitwise(!operand, operand),
            "&" | "and" => value.bitwise(operand, 0),
            "^" | "xor" => value.bitwise(u32::MAX, operand),
            _ => break,
        };
        rest = more;
    }
    match rest {
        [
            Word("|" | "or" | "&" | "and" | "^" | "xor" | "<<" | ">>" | "map" | "."),
            ..,
        ] => MarkWrite::UNKNOWN,
        _ => value.write(),
    }
}

fn number(word: &str) -> Option<u32> {
    match word.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}
