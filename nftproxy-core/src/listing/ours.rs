//! Our own tables: words to the sets, elements, chains and rules of a ruleset.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::port::port;
use super::rule;
use super::token::Token;
use super::{Base, RuleText, SetHead, Sink};
use crate::counts::Reason;
use crate::diff::{Observed, Parts};
use crate::model::{EndpointAddress, Family, IpFamily, Protocol};
use crate::ruleset::element::{Data, Destination, Element, Key};
use crate::ruleset::expr::{Expr, Verdict};
use crate::ruleset::name::{ChainName, SetName};
use crate::ruleset::schema::{AFFINITY_MAX_CLIENTS, DataType, Field, schema};
use crate::ruleset::{Comment, Rule, Table};

/// One of our tables, so far.
pub(super) struct Ours<'a, F: Family> {
    table: &'a Table,
    parts: Parts<F>,
}

impl<'a, F: Family> Ours<'a, F> {
    pub(super) fn new(table: &'a Table) -> Self {
        Self {
            table,
            parts: Parts::default(),
        }
    }

    pub(super) fn finish(self) -> Observed<F> {
        self.parts.finish()
    }

    fn foreign(&mut self, what: String) {
        self.parts.foreign.push(what);
    }
}

impl<F: Family> Sink for Ours<'_, F> {
    fn table_flag(&mut self, flag: &str) {
        self.foreign(format!("table flag {flag}"));
    }

    fn set(&mut self, set: &SetHead) {
        let Some(name) = SetName::parse(&set.name) else {
            return self.foreign(format!("{} {}", set.kind, set.name));
        };
        if is_as_ours::<F>(name, set) {
            if set.counts {
                self.parts.counted.insert(name);
            }
            self.parts.sets.insert(name);
            if let Some(size) = set.size.filter(|_| !schema(name).is_dynamic()) {
                self.parts.sizes.insert(name, size);
            }
        } else {
            self.foreign(format!("set {name} of another type"));
        }
    }

    fn element(&mut self, set: &str, words: &[Token<'_>]) {
        let Some(set) = SetName::parse(set) else {
            return;
        };
        if !self.parts.sets.contains(&set) {
            return;
        }
        match element(set, words) {
            // What rules have learned is no part of the ruleset.
            Some((element, _)) if schema(set).is_dynamic() => self.parts.remembered.push(element),
            Some((element, packets)) => {
                if let Some(packets) = packets {
                    let counts = &mut self.parts.counts.elements;
                    counts.push((element.clone(), packets));
                }
                self.parts.elements.push(element);
            }
            None => self.foreign(format!("element {{ {} }} of {set}", join(words))),
        }
    }

    fn chain(&mut self, name: &str, base: Option<Base>) {
        let Some(chain) = ChainName::parse(name) else {
            return self.foreign(format!("chain {name}"));
        };
        let wanted = self.table.base_chain(chain).map(|base| Base {
            chain_type: "nat".into(),
            hook: base.hook.nft().into(),
            priority: base.priority,
            policy: "accept".into(),
        });
        let place = |base: &Option<Base>| {
            base.as_ref()
                .map(|base| (base.hook_number(), base.priority))
        };
        if place(&base) != place(&wanted) {
            self.foreign(format!("chain {name} at another hook"));
        } else if base != wanted {
            self.foreign(format!("chain {name} of another type or policy"));
        }
        if chain != ChainName::About {
            self.parts.chains.entry(chain).or_default();
        }
    }

    fn rule(&mut self, chain: &str, rule: &RuleText<'_>) {
        let Some(chain) = ChainName::parse(chain) else {
            return;
        };
        if chain == ChainName::About {
            let comment = rule.words.last().copied().and_then(Token::text);
            let is_ours = rule.raw.trim_start().starts_with("return comment \"");
            if !is_ours || self.parts.about.is_some() {
                self.foreign(format!("a rule of chain {chain}: {}", rule.raw));
            }
            self.parts.about = comment.map(Comment::new);
            return;
        }
        let Some(rules) = self.parts.chains.get_mut(&chain) else {
            return;
        };
        let read = rule::read::<F>(rule.words).unwrap_or_else(|| Rule {
            text: rule.raw.into(),
            exprs: vec![Expr::Foreign(format!("{} (line {})", rule.raw, rule.line))],
        });
        let reason = Reason::of_rule(chain, &read);
        if let (Some(reason), Some(packets)) = (reason, rule::counted(rule.words)) {
            let counts = &mut self.parts.counts.rules;
            counts.push((chain, rules.len(), reason, packets));
        }
        rules.push(read);
    }

    fn other(&mut self, what: String) {
        self.foreign(what);
    }
}

/// Words as they stand in a listing.
fn join(words: &[Token<'_>]) -> String {
    let mut text = String::new();
    for word in words {
        if !text.is_empty() {
            text.push(' ');
        }
        match word {
            Token::Word(word) => text.push_str(word),
            Token::Quoted(quoted) => text.push_str(&format!("\"{quoted}\"")),
            Token::Open => text.push('{'),
            Token::Close => text.push('}'),
            Token::Semicolon | Token::Comma | Token::Newline => {}
        }
    }
    text
}

/// Whether a set has the type that it must have. `nft -j` leaves the flag `dynamic` out up to 1.0.8.
fn is_as_ours<F: Family>(name: SetName, set: &SetHead) -> bool {
    let schema = schema(name);
    let address = match F::FAMILY {
        IpFamily::V4 => "ipv4_addr",
        IpFamily::V6 => "ipv6_addr",
    };
    let type_of = |field: &Field| match field {
        Field::Saddr | Field::Daddr | Field::SaddrRange => address,
        Field::L4Proto => "inet_proto",
        Field::Dport => "inet_service",
        Field::Slot => "integer",
    };
    let data: &[&str] = match schema.data {
        DataType::None => &[],
        DataType::Verdict => &["verdict"],
        DataType::Endpoint => &[address, "inet_service"],
    };
    let mut flags: BTreeSet<_> = set.flags.iter().map(String::as_str).collect();
    let wanted = if schema.is_dynamic() {
        flags.insert("dynamic");
        BTreeSet::from(["dynamic", "timeout"])
    } else if schema.is_interval() {
        BTreeSet::from(["interval"])
    } else {
        BTreeSet::new()
    };
    set.key.iter().eq(schema.key.iter().map(type_of))
        && set.data == data
        && flags == wanted
        && !set.has_timeout
        && (!schema.is_dynamic() || set.size == Some(AFFINITY_MAX_CLIENTS))
}

/// The words of an element, one after the other.
struct Words<'a, 't> {
    rest: &'a [Token<'t>],
}

impl<'t> Words<'_, 't> {
    fn next(&mut self) -> Option<&'t str> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        first.text()
    }

    fn next_if(&mut self, wanted: &str) -> bool {
        let is_next = self.rest.first() == Some(&Token::Word(wanted));
        if is_next {
            self.rest = &self.rest[1..];
        }
        is_next
    }

    /// The next part of a concatenation.
    fn dot(&mut self) -> Option<()> {
        self.next_if(".").then_some(())
    }

    /// `counter packets 1 bytes 60`, of a set that may count: the packets, if there is a counter that
    /// says how many.
    fn counter(&mut self, set: SetName) -> Option<Option<u64>> {
        if !SetName::COUNTED.contains(&set) || !self.next_if("counter") {
            return Some(None);
        }
        if !self.next_if("packets") {
            return Some(None);
        }
        let packets = self.next()?.parse().ok()?;
        self.next_if("bytes").then_some(())?;
        let _: u64 = self.next()?.parse().ok()?;
        Some(Some(packets))
    }

    /// `timeout 3h expires 2h59m`, of an element that goes by itself.
    fn lifetime(&mut self) -> Option<()> {
        for name in ["timeout", "expires"] {
            if self.next_if(name) {
                self.next()?;
            }
        }
        Some(())
    }

    fn address<F: Family>(&mut self) -> Option<F::Address> {
        F::address(self.next()?.parse::<IpAddr>().ok()?)
    }

    fn destination<F: Family>(&mut self, has_address: bool) -> Option<Destination<F>> {
        let address = if has_address {
            let address = self.address::<F>()?;
            self.dot()?;
            Some(address)
        } else {
            None
        };
        let protocol = protocol(self.next()?)?;
        self.dot()?;
        let port = port(self.next()?)?;
        Some(Destination {
            address,
            protocol,
            port,
        })
    }
}

/// A transport protocol, by name or number.
pub(super) fn protocol(text: &str) -> Option<Protocol> {
    let by_number = || Protocol::from_number(text.parse().ok()?);
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.nft_name() == text)
        .or_else(by_number)
}

/// A verdict, from the words that name it.
pub(super) fn verdict(word: &str, chain: Option<&str>) -> Option<Verdict> {
    let chain = || chain.and_then(ChainName::parse);
    Some(match word {
        "drop" => Verdict::Drop,
        "accept" => Verdict::Accept,
        "return" => Verdict::Return,
        "jump" => Verdict::Jump(chain()?),
        "goto" => Verdict::Goto(chain()?),
        _ => return None,
    })
}

/// An element that we could have written, and what it has counted; anything more or else is none.
fn element<F: Family>(set: SetName, words: &[Token<'_>]) -> Option<(Element<F>, Option<u64>)> {
    let schema = schema(set);
    let mut words = Words { rest: words };
    let has_address = schema.key.contains(&Field::Daddr);
    let key = match schema.key {
        [Field::Daddr] => Key::Address(words.address::<F>()?),
        [Field::Saddr, Field::Daddr] => {
            let address = words.address::<F>()?;
            words.dot()?;
            (words.address::<F>()? == address).then_some(Key::Hairpin(address))?
        }
        [.., Field::SaddrRange] => {
            let destination = words.destination::<F>(true)?;
            words.dot()?;
            let (first, len) = prefix::<F>(words.next()?)?;
            Key::Source(destination, first, len)
        }
        [.., Field::Slot] => {
            let destination = words.destination::<F>(has_address)?;
            words.dot()?;
            Key::Slot(destination, words.next()?.parse().ok()?)
        }
        [Field::Saddr, ..] => {
            let client = words.address::<F>()?;
            words.dot()?;
            let destination = words.destination::<F>(has_address)?;
            words.lifetime()?;
            Key::Client(client, destination)
        }
        _ => Key::Destination(words.destination::<F>(has_address)?),
    };
    let packets = words.counter(set)?;
    let comment = if words.next_if("comment") {
        Some(Comment::new(words.next()?))
    } else {
        None
    };
    let data = match schema.data {
        DataType::None => Data::None,
        DataType::Verdict => {
            words.next_if(":").then_some(())?;
            let word = words.next()?;
            let chain = matches!(word, "jump" | "goto")
                .then(|| words.next())
                .flatten();
            Data::Verdict(verdict(word, chain)?)
        }
        DataType::Endpoint => {
            words.next_if(":").then_some(())?;
            let address = words.address::<F>()?;
            words.dot()?;
            let port = port(words.next()?)?;
            Data::Endpoint(EndpointAddress { address, port })
        }
    };
    words
        .rest
        .is_empty()
        .then(|| (Element::of_parts(set, key, data, comment), packets))
}

/// An address, or an address and the length of its prefix.
pub(super) fn prefix<F: Family>(text: &str) -> Option<(F::Address, u8)> {
    let whole = F::ADDRESS_LEN as u8 * 8;
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => (address, len.parse().ok().filter(|len| *len <= whole)?),
        None => (text, whole),
    };
    Some((F::address(address.parse().ok()?)?, len))
}

/// Names of types by the expressions that stand for them in `typeof`.
pub(super) fn type_name(expression: &str) -> &str {
    let known = BTreeMap::from([
        ("ip saddr", "ipv4_addr"),
        ("ip daddr", "ipv4_addr"),
        ("ip6 saddr", "ipv6_addr"),
        ("ip6 daddr", "ipv6_addr"),
        ("meta l4proto", "inet_proto"),
        ("th dport", "inet_service"),
        ("@th,16,16", "inet_service"),
    ]);
    match known.get(expression) {
        Some(name) => name,
        None if expression.starts_with("numgen random mod") => "integer",
        None => expression,
    }
}
