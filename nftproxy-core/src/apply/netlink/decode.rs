//! From the kernel's dumps to a ruleset.
//!
//! What is not ours, or not as we would write it, is never an error: it ends up in
//! [`Observed::foreign`], or as [`Expr::Foreign`] in a rule, which then differs from any of ours.

use std::collections::{BTreeMap, BTreeSet};

use super::attribute::{attributes, be32, find, string};
use super::constants::*;
use super::encode::{data_type, fields_type, reject_code, set_flags};
use super::{nfproto, userdata};
use crate::diff::{Holder, Observed, Parts};
use crate::model::{Family, IpFamily};
use crate::ruleset::element::{Data, Element, Key, RawData};
use crate::ruleset::expr::{
    CLIENT_HASH_SEED, CtOriginalKey, Expr, LookupData, MetaKey, PayloadBase, Register, Reject,
    Verdict,
};
use crate::ruleset::name::{ChainName, SetName, SlotMap};
use crate::ruleset::schema::{AFFINITY_MAX_CLIENTS, schema};
use crate::ruleset::{Comment, Rule, Table};

/// Collects what the dumps of one table say.
pub(super) struct Decoder<'a, F: Family> {
    table: &'a Table,
    parts: Parts<F>,
}

impl<'a, F: Family> Decoder<'a, F> {
    /// Knows nothing of this table yet.
    pub(super) fn new(table: &'a Table) -> Self {
        Self {
            table,
            parts: Parts::default(),
        }
    }

    fn is_of_table(&self, message: &[u8], attribute: u16) -> bool {
        find(message, attribute).and_then(string) == Some(self.table.name())
    }

    /// Notes that something about the table is not ours.
    pub(super) fn foreign(&mut self, what: String) {
        self.parts.foreign.push(what);
    }

    /// Notes who keeps others from changing the table.
    pub(super) fn held_by(&mut self, holder: Holder) {
        self.parts.holder = holder;
    }

    /// Takes a message of a chain dump.
    pub(super) fn chain(&mut self, message: &[u8]) {
        if !self.is_of_table(message, NFTA_CHAIN_TABLE) {
            return;
        }
        let name = find(message, NFTA_CHAIN_NAME)
            .and_then(string)
            .unwrap_or_default();
        let Some(chain) = ChainName::parse(name) else {
            return self.foreign(format!("chain {name}"));
        };
        let hook = find(message, NFTA_CHAIN_HOOK);
        let place = hook.and_then(|hook| {
            let number = find(hook, NFTA_HOOK_HOOKNUM).and_then(be32)?;
            let priority = find(hook, NFTA_HOOK_PRIORITY).and_then(be32)? as i32;
            Some((number, priority))
        });
        let wanted = self
            .table
            .base_chain(chain)
            .map(|base| (base.hook.number(), base.priority));
        let is_accepting_nat = hook.is_none()
            || (find(message, NFTA_CHAIN_TYPE).and_then(string) == Some("nat")
                && find(message, NFTA_CHAIN_POLICY).and_then(be32) == Some(NF_ACCEPT as u32));
        if place != wanted {
            self.foreign(format!("chain {name} at another hook"));
        } else if !is_accepting_nat {
            self.foreign(format!("chain {name} of another type or policy"));
        }
        if chain != ChainName::About {
            self.parts.chains.entry(chain).or_default();
        }
    }

    /// Takes a message of a rule dump; chains come first.
    pub(super) fn rule(&mut self, message: &[u8]) {
        if !self.is_of_table(message, NFTA_RULE_TABLE) {
            return;
        }
        let chain = find(message, NFTA_RULE_CHAIN)
            .and_then(string)
            .and_then(ChainName::parse);
        if chain == Some(ChainName::About) {
            let userdata = find(message, NFTA_RULE_USERDATA);
            let comment = userdata.and_then(userdata::element_comment);
            let is_ours = decode_rule::<F>(message).exprs == [Expr::Verdict(Verdict::Return)];
            if !is_ours || comment.is_none() || self.parts.about.is_some() {
                self.foreign(format!("a rule of chain {}", ChainName::About));
            }
            self.parts.about = comment.map(Comment::new);
            return;
        }
        let Some(rules) = chain.and_then(|chain| self.parts.chains.get_mut(&chain)) else {
            return;
        };
        rules.push(decode_rule::<F>(message));
    }

    /// Takes a message of a set dump. Returns the set if its elements should be listed.
    pub(super) fn set(&mut self, message: &[u8]) -> Option<SetName> {
        if !self.is_of_table(message, NFTA_SET_TABLE) {
            return None;
        }
        let name = find(message, NFTA_SET_NAME)
            .and_then(string)
            .unwrap_or_default();
        let Some(set) = SetName::parse(name) else {
            self.foreign(format!("set {name}"));
            return None;
        };
        let schema = schema(set);
        let number = |attribute| find(message, attribute).and_then(be32);
        let data_type = data_type::<F>(schema.data);
        // The kernel leaves flags out if there are none.
        let as_ours = number(NFTA_SET_FLAGS).unwrap_or_default() == set_flags(&schema)
            && number(NFTA_SET_KEY_TYPE) == Some(fields_type::<F>(schema.key))
            && number(NFTA_SET_KEY_LEN) == Some(schema.key_len::<F>() as u32)
            && number(NFTA_SET_DATA_TYPE) == data_type
            && number(NFTA_SET_DATA_LEN) == data_type.map(|_| schema.data_len::<F>() as u32)
            && find(message, NFTA_SET_TIMEOUT).is_none();
        if !as_ours {
            self.foreign(format!("set {name} of another type"));
            return None;
        }
        let expression = find(message, NFTA_SET_EXPR);
        match expression.map(|it| find(it, NFTA_EXPR_NAME).and_then(string)) {
            None => {}
            Some(Some("counter")) => {
                self.parts.counted.insert(set);
            }
            Some(_) => self.foreign(format!("an expression for the elements of {set}")),
        }
        self.parts.sets.insert(set);
        let description = find(message, NFTA_SET_DESC).unwrap_or_default();
        let size = find(description, NFTA_SET_DESC_SIZE).and_then(be32);
        match size {
            size if schema.is_dynamic() && size != Some(AFFINITY_MAX_CLIENTS) => {
                self.foreign(format!("set {name} of another size"));
            }
            Some(size) if !schema.is_dynamic() => {
                self.parts.sizes.insert(set, size);
            }
            _ => {}
        }
        Some(set)
    }

    /// Takes a message of a dump of named objects or flowtables, of which we have none.
    pub(super) fn object(&mut self, message: &[u8]) {
        if self.is_of_table(message, NFTA_OBJ_TABLE) {
            let name = find(message, NFTA_OBJ_NAME).and_then(string);
            self.foreign(format!("object {}", name.unwrap_or_default()));
        }
    }

    /// Takes a message of an element dump.
    pub(super) fn elements(&mut self, set: SetName, message: &[u8]) {
        let list = find(message, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
        let counts = self.parts.counted.contains(&set);
        for (_, element) in attributes(list) {
            let does_more = !counts && does_something(element);
            match decode_element(set, element) {
                Some(element) if !does_more => self.parts.elements.push(element),
                _ => self.foreign(foreign_element::<F>(set, element)),
            }
        }
    }

    /// Takes an element.
    pub(super) fn element(&mut self, element: Element<F>) {
        self.parts.elements.push(element);
    }

    /// The sets so far whose elements count.
    pub(super) fn counted(&self) -> &BTreeSet<SetName> {
        &self.parts.counted
    }

    /// Takes over elements that were collected apart.
    pub(super) fn append(&mut self, mut other: Decoder<'_, F>) {
        self.parts.elements.append(&mut other.parts.elements);
        self.parts.foreign.append(&mut other.parts.foreign);
    }

    /// The keys of the slots that the verdicts so far lead to, of the maps that hold them.
    pub(super) fn slots(&self) -> BTreeMap<SlotMap, Vec<Key<F>>> {
        let mut slots = BTreeMap::<_, Vec<_>>::new();
        for element in &self.parts.elements {
            if let (Key::Destination(destination), Data::Verdict(Verdict::Goto(chain))) =
                (element.key(), element.data())
                && let ChainName::Pick(pick) = chain
            {
                let keys = (0..pick.n.get()).map(|slot| Key::Slot(*destination, slot));
                slots.entry(pick.map).or_default().extend(keys);
            }
        }
        slots
    }

    /// What all of it amounts to.
    pub(super) fn finish(self) -> Observed<F> {
        self.parts.finish()
    }
}

/// Decodes a message of a rule dump.
pub(super) fn decode_rule<F: Family>(message: &[u8]) -> Rule {
    let list = find(message, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    let exprs = attributes(list)
        .filter(|(attribute, _)| *attribute == NFTA_LIST_ELEM)
        .filter(|(_, expression)| !does_nothing(expression))
        .map(|(_, expression)| decode_expression::<F>(expression))
        .collect();
    Rule {
        text: String::new(),
        exprs,
    }
}

/// Whether an expression is one that nft(8) writes for nothing: 1.0.6 turns a byte around, before a
/// lookup of ranges, as if it were a number of two bytes, and the kernel turns no half number.
fn does_nothing(expression: &[u8]) -> bool {
    let is_it = find(expression, NFTA_EXPR_NAME).and_then(string) == Some("byteorder");
    let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
    let number = |attribute| find(data, attribute).and_then(be32);
    // From a register to a register, an operation, length and size, in bytes.
    let (from, to) = (number(1), number(2));
    is_it && from.is_some() && from == to && number(4) < number(5)
}

/// Decodes an element; `None` if it is none that we, or our rules, would write.
pub(super) fn decode_element<F: Family>(set: SetName, element: &[u8]) -> Option<Element<F>> {
    let (mut key, mut key_end, mut data, mut comment) = (None, None, RawData::None, None);
    for (attribute, payload) in attributes(element) {
        match attribute {
            NFTA_SET_ELEM_KEY => key = find(payload, NFTA_DATA_VALUE),
            NFTA_SET_ELEM_KEY_END => key_end = find(payload, NFTA_DATA_VALUE),
            NFTA_SET_ELEM_DATA => data = decode_data(payload)?,
            NFTA_SET_ELEM_USERDATA => comment = userdata::element_comment(payload),
            _ => {}
        }
    }
    Element::read(set, key?, key_end, data, comment)
}

/// What there is to say of an element that is none of ours.
fn foreign_element<F: Family>(set: SetName, element: &[u8]) -> String {
    let value = |attribute| find(find(element, attribute)?, NFTA_DATA_VALUE);
    let flags = find(element, NFTA_SET_ELEM_FLAGS).and_then(be32);
    if flags.unwrap_or_default() & NFT_SET_ELEM_CATCHALL != 0 {
        return format!("element {{ * }} of {set}");
    }
    let key = value(NFTA_SET_ELEM_KEY)
        .and_then(|key| Key::<F>::read(set, key, value(NFTA_SET_ELEM_KEY_END)));
    match key {
        Some(key) => format!("element {{ {} }} of {set}", key.nft()),
        None => format!("element of {set}"),
    }
}

/// Whether an element has expressions of its own.
fn does_something(element: &[u8]) -> bool {
    [NFTA_SET_ELEM_EXPR, NFTA_SET_ELEM_EXPRESSIONS]
        .iter()
        .any(|attribute| find(element, *attribute).is_some())
}

fn decode_data(payload: &[u8]) -> Option<RawData<'_>> {
    if let Some(value) = find(payload, NFTA_DATA_VALUE) {
        return Some(RawData::Value(value));
    }
    decode_verdict(payload).map(RawData::Verdict)
}

fn decode_verdict(data: &[u8]) -> Option<Verdict> {
    let verdict = find(data, NFTA_DATA_VERDICT)?;
    let code = find(verdict, NFTA_VERDICT_CODE).and_then(be32)? as i32;
    let chain = || {
        find(verdict, NFTA_VERDICT_CHAIN)
            .and_then(string)
            .and_then(ChainName::parse)
    };
    match code {
        NF_DROP => Some(Verdict::Drop),
        NF_ACCEPT => Some(Verdict::Accept),
        NFT_RETURN => Some(Verdict::Return),
        NFT_JUMP => chain().map(Verdict::Jump),
        NFT_GOTO => chain().map(Verdict::Goto),
        _ => None,
    }
}

fn decode_expression<F: Family>(expression: &[u8]) -> Expr {
    let name = find(expression, NFTA_EXPR_NAME)
        .and_then(string)
        .unwrap_or_default();
    let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
    known_expression::<F>(name, data).unwrap_or_else(|| Expr::Foreign(name.into()))
}

/// Decodes an expression by its name. The numbers are those of its `NFTA_…` attributes.
fn known_expression<F: Family>(name: &str, data: &[u8]) -> Option<Expr> {
    let number = |attribute| find(data, attribute).and_then(be32);
    let value = |attribute| find(data, attribute).and_then(|nest| find(nest, NFTA_DATA_VALUE));
    let register = |attribute| number(attribute).and_then(decode_register);
    Some(match name {
        "payload" => Expr::Payload {
            register: register(1)?,
            base: match number(2)? {
                NFT_PAYLOAD_NETWORK_HEADER => PayloadBase::Network,
                NFT_PAYLOAD_TRANSPORT_HEADER => PayloadBase::Transport,
                _ => return None,
            },
            offset: number(3)?,
            len: number(4)?,
        },
        "meta" => match (number(2)?, register(1), register(3)) {
            (NFT_META_MARK, None, Some(register)) => Expr::SetMark { register },
            (key, Some(register), None) => {
                let key = match key {
                    NFT_META_L4PROTO => MetaKey::L4Proto,
                    NFT_META_MARK => MetaKey::Mark,
                    NFT_META_IIFNAME => MetaKey::Iifname,
                    _ => return None,
                };
                Expr::Meta { key, register }
            }
            _ => return None,
        },
        "ct" if find(data, 3) == Some(&[IP_CT_DIR_ORIGINAL]) => Expr::CtOriginal {
            key: match (number(2)?, F::FAMILY) {
                (NFT_CT_PROTO_DST, _) => CtOriginalKey::Dport,
                (NFT_CT_DST_IP, IpFamily::V4) | (NFT_CT_DST_IP6, IpFamily::V6) => {
                    CtOriginalKey::Daddr
                }
                _ => return None,
            },
            register: register(1)?,
        },
        // With an expression (7, or 10 for several), or a flag, it does more than that.
        "dynset"
            if number(3)? == NFT_DYNSET_OP_UPDATE
                && find(data, 7).is_none()
                && find(data, 10).is_none()
                && number(9).unwrap_or_default() == 0 =>
        {
            Expr::Update {
                set: SetName::parse(find(data, 1).and_then(string)?)?,
                key: register(4)?,
                data: register(5)?,
                timeout: u64::from_be_bytes(find(data, 6)?.try_into().ok()?),
            }
        }
        "ct" if number(2)? == NFT_CT_STATUS => Expr::CtStatus {
            register: register(1)?,
        },
        "fib" if number(2)? == NFT_FIB_RESULT_ADDRTYPE => Expr::FibType {
            register: register(1)?,
            destination: match number(3)? {
                NFTA_FIB_F_DADDR => true,
                NFTA_FIB_F_SADDR => false,
                _ => return None,
            },
        },
        "numgen" if number(3)? == NFT_NG_RANDOM && number(4).unwrap_or_default() == 0 => {
            Expr::Numgen {
                register: register(1)?,
                modulus: number(2)?,
            }
        }
        "hash"
            if number(5) == Some(CLIENT_HASH_SEED)
                && number(6).unwrap_or_default() == 0
                && number(7).unwrap_or_default() == NFT_HASH_JENKINS =>
        {
            Expr::Hash {
                from: register(1)?,
                len: number(3)?,
                modulus: number(4)?,
                register: register(2)?,
            }
        }
        "cmp" => Expr::Cmp {
            register: register(1)?,
            negate: match number(2)? {
                NFT_CMP_EQ => false,
                NFT_CMP_NEQ => true,
                _ => return None,
            },
            value: value(3)?.to_vec(),
        },
        "bitwise" if number(1)? == number(2)? && number(6).unwrap_or_default() == 0 => {
            Expr::Bitwise {
                register: register(1)?,
                mask: value(4)?.to_vec(),
                xor: value(5)?.to_vec(),
            }
        }
        "lookup" if number(5) == Some(NFT_LOOKUP_F_INV) => Expr::LookupAbsent {
            set: SetName::parse(find(data, 1).and_then(string)?)?,
            register: register(2)?,
        },
        "lookup" if number(5).unwrap_or_default() == 0 => Expr::Lookup {
            set: SetName::parse(find(data, 1).and_then(string)?)?,
            register: register(2)?,
            data: match number(3) {
                None => LookupData::None,
                Some(0) => LookupData::Verdict,
                Some(register) => LookupData::Load(decode_register(register)?),
            },
        },
        "immediate" if number(1)? == 0 => Expr::Verdict(decode_verdict(find(data, 2)?)?),
        "counter" => Expr::Counter,
        // The kernel fills the ends of the ranges in.
        "nat"
            if number(1)? == NFT_NAT_DNAT
                && number(2)? == u32::from(nfproto(F::FAMILY))
                && number(4).is_none_or(|max| Some(max) == number(3))
                && number(6).is_none_or(|max| Some(max) == number(5))
                && number(7).unwrap_or_default() & !NF_NAT_RANGE_GIVEN == 0 =>
        {
            Expr::Dnat {
                address: register(3)?,
                port: register(5)?,
            }
        }
        "masq" if number(1)? == NF_NAT_RANGE_RANDOM_FULLY && number(2).is_none() => {
            Expr::Masquerade
        }
        "reject" => {
            let kind = number(1)?;
            // The kernel leaves the code out for a reset.
            let code = find(data, 2)
                .and_then(|code| code.first())
                .copied()
                .unwrap_or_default();
            Expr::Reject(
                [Reject::TcpReset, Reject::PortUnreachable]
                    .into_iter()
                    .find(|reject| reject_code(*reject, F::FAMILY) == (kind, code))?,
            )
        }
        _ => return None,
    })
}

/// The kernel names a register by the 128-bit one (1 to 4) where it can, else by the 32-bit one.
fn decode_register(number: u32) -> Option<Register> {
    match number {
        1..=4 => Some((number - 1) as Register * 4),
        NFT_REG32_00..=23 => Some((number - NFT_REG32_00) as Register),
        _ => None,
    }
}
