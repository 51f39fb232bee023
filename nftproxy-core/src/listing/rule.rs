//! A rule's words to its statements, as far as we could have written them.
//!
//! Each version of nft(8) lists the same kernel expressions in its own words; what they come down
//! to is the same. A rule with a statement that we do not write is none of ours.

use super::ours::{prefix, protocol, verdict};
use super::token::Token;
use crate::model::{Family, InterfaceName, Protocol};
use crate::ruleset::Rule;
use crate::ruleset::expr::{CLIENT_HASH_SEED, Match, Reject, Statement};
use crate::ruleset::name::{Draw, SetName, SlotMap};
use crate::ruleset::schema::{Field, schema};

/// Reads a rule; `None` if it is none of ours.
pub(super) fn read<F: Family>(words: &[Token<'_>]) -> Option<Rule> {
    let mut reader = Reader { rest: words };
    let mut statements: Vec<Statement<F>> = Vec::new();
    while !reader.rest.is_empty() {
        // What is said of a rule is nothing that it does.
        if let [Token::Word("comment"), Token::Quoted(_)] = reader.rest {
            break;
        }
        let protocol = match statements.last() {
            Some(Statement::L4Proto(protocol)) => Some(*protocol),
            _ => None,
        };
        let read = reader.statement::<F>(protocol)?;
        if read.takes_protocol {
            statements.pop();
        }
        statements.extend(read.statements);
    }
    (!statements.is_empty()).then(|| Rule::new(statements))
}

/// The packets that the counter of a rule has seen; `None` if it has none, or does not say.
pub(super) fn counted(words: &[Token<'_>]) -> Option<u64> {
    let at = words
        .windows(2)
        .position(|two| two == [Token::Word("counter"), Token::Word("packets")])?;
    words.get(at + 2)?.text()?.parse().ok()
}

/// What a key is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Of(Field),
    OriginalDaddr,
    OriginalDport,
    /// A destination port, named by its protocol.
    DportOf(Protocol),
    /// A slot, of so many.
    Slot(Draw, u32),
}

struct Read<F: Family> {
    statements: Vec<Statement<F>>,
    /// Whether the match of a protocol before it belongs to it.
    takes_protocol: bool,
}

/// Makes a statement of a prefix.
type OfAddress<F> = fn(Match<(<F as Family>::Address, u8)>) -> Statement<F>;

struct Reader<'a, 't> {
    rest: &'a [Token<'t>],
}

impl<'t> Reader<'_, 't> {
    fn peek(&self, ahead: usize) -> &'t str {
        match self.rest.get(ahead) {
            Some(Token::Word(word)) => word,
            _ => "",
        }
    }

    fn skip(&mut self, n: usize) {
        self.rest = self.rest.get(n..).unwrap_or_default();
    }

    /// Goes on if these words come next.
    fn take(&mut self, words: &str) -> Option<()> {
        let n = words.split(' ').count();
        let is_next = words
            .split(' ')
            .enumerate()
            .all(|(ahead, word)| self.peek(ahead) == word);
        is_next.then(|| self.skip(n))
    }

    fn is_next(&mut self, words: &str) -> bool {
        self.take(words).is_some()
    }

    fn sign(&mut self, sign: Token<'_>) -> Option<()> {
        (self.rest.first() == Some(&sign)).then(|| self.skip(1))
    }

    fn word(&mut self) -> Option<&'t str> {
        let word = self.rest.first()?.text()?;
        self.skip(1);
        Some(word)
    }

    /// A number, as nft(8) writes it: hexadecimal or decimal.
    fn number(&mut self) -> Option<u32> {
        let word = self.word()?;
        match word.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        }
    }

    fn statement<F: Family>(&mut self, protocol: Option<Protocol>) -> Option<Read<F>> {
        let one = |statement| {
            Some(Read {
                statements: vec![statement],
                takes_protocol: false,
            })
        };
        match self.peek(0) {
            "jump" | "goto" => {
                let word = self.word()?;
                let chain = self.word()?;
                return one(Statement::Verdict(verdict(word, Some(chain))?));
            }
            "accept" | "drop" | "return" => {
                return one(Statement::Verdict(verdict(self.word()?, None)?));
            }
            "masquerade" => {
                self.take("masquerade fully-random")?;
                return one(Statement::Masquerade);
            }
            "counter" => {
                self.skip(1);
                if self.is_next("packets") {
                    let _: u64 = self.word()?.parse().ok()?;
                    self.take("bytes")?;
                    let _: u64 = self.word()?.parse().ok()?;
                }
                return one(Statement::Counter);
            }
            "reject" => return self.reject(protocol),
            "dnat" => return one(self.dnat::<F>()?),
            "fib" => {
                let is_source = match (self.peek(1), self.peek(3)) {
                    ("saddr", "local" | "2") => true,
                    ("daddr", "local" | "2") => false,
                    _ => return None,
                };
                (self.peek(2) == "type").then(|| self.skip(4))?;
                return one(if is_source {
                    Statement::SaddrIsLocal
                } else {
                    Statement::DaddrIsLocal
                });
            }
            "iifname" => return one(self.iifname()?),
            _ => {}
        }
        if self.is_next("meta iifname") {
            return one(self.iifname_value()?);
        }
        if self.peek(0) == "ct" && self.peek(1) == "status" {
            self.skip(2);
            self.is_status_dnat()?;
            return one(Statement::IsDnat);
        }
        if let Some(statement) = self.mark::<F>() {
            return one(statement);
        }
        if self.peek(0) == "meta" && self.peek(1) == "l4proto" && self.peek(2) != "." {
            self.skip(2);
            self.is_next("==");
            return one(Statement::L4Proto(super::ours::protocol(self.word()?)?));
        }
        let key = self.key::<F>()?;
        if self.peek(0) == "vmap" {
            self.skip(1);
            let set = self.set()?;
            return self.vmap(&key, set, protocol);
        }
        if let [Part::DportOf(of)] = key.as_slice() {
            self.take("!= 0")?;
            return Some(Read {
                statements: vec![self.update::<F>(*of)?],
                takes_protocol: protocol == Some(*of),
            });
        }
        let negate = self.is_next("!=");
        if !negate {
            self.is_next("==");
        }
        if self.peek(0).starts_with('@') {
            let set = self.set()?;
            return one(lookup(&key, set, negate)?);
        }
        let of_address: OfAddress<F> = match key.as_slice() {
            [Part::Of(Field::Saddr)] => Statement::Saddr,
            [Part::Of(Field::Daddr)] => Statement::Daddr,
            _ => return None,
        };
        let value = prefix::<F>(self.word()?)?;
        one(of_address(Match { value, negate }))
    }

    /// `ct status dnat`, in any of its spellings.
    fn is_status_dnat(&mut self) -> Option<()> {
        const DNAT: u32 = crate::ruleset::expr::CT_STATUS_DNAT;
        if self.is_next("dnat") {
            return Some(());
        }
        let is_mask = self.is_next("&");
        if !self.is_next("dnat") && self.number()? != DNAT {
            return None;
        }
        if is_mask {
            self.take("!=")?;
            (self.number()? == 0).then_some(())?;
        }
        Some(())
    }

    /// `meta mark & 0x4000 != 0`, `meta mark set meta mark | 0x4000` and `… ^ 0x4000`.
    fn mark<F: Family>(&mut self) -> Option<Statement<F>> {
        let start = self.rest;
        let statement = self.mark_or_none();
        if statement.is_none() {
            self.rest = start;
        }
        statement
    }

    fn mark_or_none<F: Family>(&mut self) -> Option<Statement<F>> {
        self.take("meta mark")?;
        if self.is_next("&") || self.is_next("and") {
            let mark = self.number()?;
            self.take("!=")?;
            (self.number()? == 0).then_some(())?;
            return Some(Statement::HasMark(mark));
        }
        self.take("set")?;
        self.is_next("meta");
        self.take("mark")?;
        match self.word()? {
            "|" | "or" => Some(Statement::SetMark(self.number()?)),
            "^" | "xor" => Some(Statement::ClearMark(self.number()?)),
            _ => None,
        }
    }

    fn iifname<F: Family>(&mut self) -> Option<Statement<F>> {
        self.take("iifname")?;
        self.iifname_value()
    }

    fn iifname_value<F: Family>(&mut self) -> Option<Statement<F>> {
        let negate = self.is_next("!=");
        if !negate {
            self.is_next("==");
        }
        let name = self.word()?;
        let named = |name| {
            let value = InterfaceName::new(name).ok()?;
            Some(Match { value, negate })
        };
        match name.strip_suffix('*') {
            Some(start) => named(start).map(Statement::IifnamePrefix),
            None => named(name).map(Statement::Iifname),
        }
    }

    /// A reset says of itself that the packet is TCP, so nft(8) leaves that match out.
    fn reject<F: Family>(&mut self, protocol: Option<Protocol>) -> Option<Read<F>> {
        self.take("reject")?;
        let reject = if self.is_next("with tcp reset") {
            Reject::TcpReset
        } else if self.is_next("with") {
            if !["icmp", "icmpv6", "icmpx"].contains(&self.word()?) {
                return None;
            }
            self.is_next("type");
            self.take("port-unreachable")?;
            Reject::PortUnreachable
        } else {
            Reject::PortUnreachable
        };
        let mut statements = Vec::new();
        if reject == Reject::TcpReset && protocol.is_none() {
            statements.push(Statement::L4Proto(Protocol::Tcp));
        }
        statements.push(Statement::Reject(reject));
        Some(Read {
            statements,
            takes_protocol: false,
        })
    }

    fn dnat<F: Family>(&mut self) -> Option<Statement<F>> {
        self.take("dnat")?;
        self.is_next(F::FAMILY.nft_name());
        self.is_next("addr . port");
        self.take("to")?;
        let key = self.key::<F>()?;
        self.take("map")?;
        let set = self.set()?;
        if set == SetName::Affinity {
            return is_key_of(&key, set).then_some(Statement::DnatToRemembered);
        }
        SlotMap::of(set)?;
        let (Part::Slot(draw, n), fields) = key.split_last()? else {
            return None;
        };
        let wanted = schema(set).key.split_last()?.1;
        is_fields(fields, wanted).then_some(Statement::DnatToSlot {
            map: set,
            draw: *draw,
            n: *n,
        })
    }

    /// `update @affinity { KEY timeout 1h : ip daddr . tcp dport }`, after a match of the protocol.
    /// Before 1.0.6, nft(8) leaves the port out.
    fn update<F: Family>(&mut self, protocol: Protocol) -> Option<Statement<F>> {
        self.take("update @affinity")?;
        self.sign(Token::Open)?;
        let key = self.key::<F>()?;
        self.take("timeout")?;
        let seconds = seconds(self.word()?)?;
        self.take(":")?;
        let data = self.key::<F>()?;
        self.sign(Token::Close)?;
        match data.as_slice() {
            [Part::Of(Field::Daddr)] => {}
            [Part::Of(Field::Daddr), Part::DportOf(of)] if *of == protocol => {}
            _ => return None,
        }
        is_original_of(&key, SetName::Affinity)
            .then(|| Some(Statement::Remember(protocol, seconds.try_into().ok()?)))?
    }

    fn set(&mut self) -> Option<SetName> {
        SetName::parse(self.word()?.strip_prefix('@')?)
    }

    fn vmap<F: Family>(
        &mut self,
        key: &[Part],
        set: SetName,
        protocol: Option<Protocol>,
    ) -> Option<Read<F>> {
        if is_key_of(key, set) {
            return Some(Read {
                statements: vec![Statement::Vmap(set)],
                takes_protocol: false,
            });
        }
        is_original_of(key, set).then_some(())?;
        Some(Read {
            statements: vec![Statement::VmapOriginal(set, protocol?)],
            takes_protocol: true,
        })
    }

    /// Parts joined by dots.
    fn key<F: Family>(&mut self) -> Option<Vec<Part>> {
        let mut parts = vec![self.part::<F>()?];
        while self.is_next(".") {
            parts.push(self.part::<F>()?);
        }
        Some(parts)
    }

    fn part<F: Family>(&mut self) -> Option<Part> {
        let family = F::FAMILY.nft_name();
        let part = match (self.peek(0), self.peek(1)) {
            (of, "saddr") if of == family => Part::Of(Field::Saddr),
            (of, "daddr") if of == family => Part::Of(Field::Daddr),
            ("meta", "l4proto") => Part::Of(Field::L4Proto),
            ("th", "dport") => Part::Of(Field::Dport),
            ("@th", "") => {
                self.skip(1);
                for (sign, word) in [(Token::Comma, "16"), (Token::Comma, "16")] {
                    self.sign(sign)?;
                    self.take(word)?;
                }
                return Some(Part::Of(Field::Dport));
            }
            (of, "dport") => Part::DportOf(protocol(of)?),
            ("ct", "original") => {
                self.skip(2);
                if self.is_next("proto-dst") {
                    return Some(Part::OriginalDport);
                }
                self.is_next(family);
                self.take("daddr")?;
                return Some(Part::OriginalDaddr);
            }
            ("numgen", "random") => {
                self.take("numgen random mod")?;
                let n = self.number()?;
                if self.is_next("offset") && self.number()? != 0 {
                    return None;
                }
                return Some(Part::Slot(Draw::Random, n));
            }
            ("jhash", of) if of == family => {
                self.skip(2);
                self.take("saddr mod")?;
                let n = self.number()?;
                self.take("seed")?;
                (self.number()? == CLIENT_HASH_SEED).then_some(())?;
                if self.is_next("offset") && self.number()? != 0 {
                    return None;
                }
                return Some(Part::Slot(Draw::Hash, n));
            }
            _ => return None,
        };
        self.skip(2);
        Some(part)
    }
}

fn lookup<F: Family>(key: &[Part], set: SetName, negate: bool) -> Option<Statement<F>> {
    if is_key_of(key, set) {
        return Some(if negate {
            Statement::NotIn(set)
        } else {
            Statement::In(set)
        });
    }
    (key == [Part::OriginalDaddr] && schema(set).key == [Field::Daddr]).then_some(if negate {
        Statement::OriginalNotIn(set)
    } else {
        Statement::OriginalIn(set)
    })
}

/// Whether the parts are what the packet has of the fields.
fn is_fields(parts: &[Part], fields: &[Field]) -> bool {
    let of_packet = |field: &Field| match field {
        Field::SaddrRange => Field::Saddr,
        field => *field,
    };
    parts.len() == fields.len()
        && parts
            .iter()
            .zip(fields)
            .all(|(part, field)| *part == Part::Of(of_packet(field)))
}

fn is_key_of(parts: &[Part], set: SetName) -> bool {
    is_fields(parts, schema(set).key)
}

/// Whether the parts are the set's key, of where a connection was sent to at first.
fn is_original_of(parts: &[Part], set: SetName) -> bool {
    let fields = schema(set).key;
    let original = |field: &Field| match field {
        Field::Daddr => Part::OriginalDaddr,
        Field::Dport => Part::OriginalDport,
        field => Part::Of(*field),
    };
    parts.len() == fields.len()
        && parts
            .iter()
            .zip(fields)
            .all(|(part, field)| *part == original(field))
}

/// A time as nft(8) writes it, in whole seconds: `1d2h3m4s`, `3600s`, or a bare number of seconds.
fn seconds(text: &str) -> Option<u32> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let mut total = 0_u32;
    let mut digits = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        let unit = match c {
            'd' => 86400,
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(digits.parse::<u32>().ok()?.checked_mul(unit)?)?;
        digits.clear();
    }
    (digits.is_empty() && !text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests;
