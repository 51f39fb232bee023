//! What the rules of others may do, from their expressions.

use std::collections::BTreeMap;

use crate::apply::netlink::attribute::{attributes, be32, find, string};
use crate::apply::netlink::constants::*;
use crate::neighbour::{Act, Conduct, MarkValue, MarkWrite, has_addresses, has_ports};

/// What a rule may do, and the verdict maps that it asks.
pub(super) fn of_rule<'a>(family: &str, expressions: &'a [u8]) -> (Conduct, Vec<&'a str>) {
    let mut conduct = Conduct::default();
    let mut maps = Vec::new();
    let mut registers = Registers::default();
    for (_, expression) in attributes(expressions) {
        let name = find(expression, NFTA_EXPR_NAME).and_then(string);
        let name = name.unwrap_or_default();
        let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
        if let Some(verdict) =
            find(data, NFTA_IMMEDIATE_DATA).and_then(|data| find(data, NFTA_DATA_VERDICT))
            && name == "immediate"
        {
            add_verdict(verdict, &mut conduct);
        } else if name == "lookup" && number(data, NFTA_LOOKUP_DREG) == Some(NFT_REG_VERDICT) {
            maps.extend(find(data, NFTA_LOOKUP_SET).and_then(string));
        } else {
            conduct.acts.extend(act(family, name, data, &registers));
        }
        registers.follow(name, data);
    }
    (conduct, maps)
}

/// Adds what a verdict does.
pub(super) fn add_verdict(verdict: &[u8], conduct: &mut Conduct) {
    /// `NF_VERDICT_MASK`: the number of a queue stands above.
    const MASK: u32 = 0xff;
    let code = number(verdict, NFTA_VERDICT_CODE).map(|code| code as i32);
    conduct.acts.extend(match code {
        Some(NF_DROP) => Some(Act::Drop),
        Some(code) if code >= 0 && code as u32 & MASK == NF_QUEUE => Some(Act::Queue),
        _ => None,
    });
    let chain = find(verdict, NFTA_VERDICT_CHAIN).and_then(string);
    conduct.leads_to.extend(chain.map(String::from));
}

fn number(data: &[u8], attribute: u16) -> Option<u32> {
    find(data, attribute).and_then(be32)
}

/// What an expression does that gives no verdict.
fn act(family: &str, name: &str, data: &[u8], registers: &Registers) -> Option<Act> {
    match name {
        "nat" if number(data, NFTA_NAT_TYPE) == Some(NFT_NAT_DNAT) => Some(Act::Dnat),
        "nat" | "masq" => Some(Act::Snat),
        "redir" | "tproxy" => Some(Act::Dnat),
        // Extensions of iptables.
        "target" => {
            let target = find(data, NFTA_TARGET_NAME).and_then(string)?;
            target_mark(target, data).or_else(|| Act::of(target))
        }
        "payload" => {
            find(data, NFTA_PAYLOAD_SREG)?;
            let offset = number(data, NFTA_PAYLOAD_OFFSET)?;
            let len = number(data, NFTA_PAYLOAD_LEN)?;
            let is_it = match number(data, NFTA_PAYLOAD_BASE)? {
                NFT_PAYLOAD_NETWORK_HEADER => has_addresses(family, offset, len),
                NFT_PAYLOAD_TRANSPORT_HEADER => has_ports(offset),
                _ => false,
            };
            is_it.then_some(Act::Rewrite)
        }
        "meta" => {
            let register = number(data, NFTA_META_SREG)?;
            let is_mark = number(data, NFTA_META_KEY) == Some(NFT_META_MARK);
            is_mark.then(|| Act::Mark(registers.write(register)))
        }
        name => Act::of(name),
    }
}

/// What the target `MARK` of iptables does, in the form that it has had since 2.6.
fn target_mark(target: &str, data: &[u8]) -> Option<Act> {
    let is_known = target == "MARK" && number(data, NFTA_TARGET_REV) == Some(2);
    let info = find(data, NFTA_TARGET_INFO).filter(|_| is_known)?;
    let (mark, rest) = info.split_first_chunk()?;
    let (mask, _) = rest.split_first_chunk()?;
    let [mark, mask] = [*mark, *mask].map(u32::from_ne_bytes);
    Some(Act::Mark(MarkValue::SAME.bitwise(!mask, mark).write()))
}

/// What registers hold of the mark, where that can be told.
#[derive(Default)]
struct Registers(BTreeMap<u32, MarkValue>);

impl Registers {
    /// What it does to write a register to the mark.
    fn write(&self, register: u32) -> MarkWrite {
        let value = self.0.get(&slot(register));
        value.map_or(MarkWrite::UNKNOWN, |value| value.write())
    }

    /// Takes what an expression loads. Of one that is not known, nothing is known afterwards.
    fn follow(&mut self, name: &str, data: &[u8]) {
        let loaded = match name {
            "cmp" | "range" | "counter" | "limit" | "log" | "objref" => return,
            "meta" if find(data, NFTA_META_SREG).is_some() => return,
            "meta" if number(data, NFTA_META_KEY) == Some(NFT_META_MARK) => {
                number(data, NFTA_META_DREG).map(|to| (to, MarkValue::SAME))
            }
            "immediate" => constant(data),
            "bitwise" => self.bitwise(data),
            _ => None,
        };
        match loaded {
            Some((register, value)) => {
                self.0.insert(slot(register), value);
            }
            None => self.0.clear(),
        }
    }

    fn bitwise(&self, data: &[u8]) -> Option<(u32, MarkValue)> {
        let from = slot(number(data, NFTA_BITWISE_SREG)?);
        let to = number(data, NFTA_BITWISE_DREG)?;
        let word = |attribute| word(find(data, attribute)?);
        let is_mask = number(data, NFTA_BITWISE_OP).is_none_or(|op| op == NFT_BITWISE_MASK_XOR);
        let value = self.0.get(&from).filter(|_| is_mask)?;
        Some((
            to,
            value.bitwise(word(NFTA_BITWISE_MASK)?, word(NFTA_BITWISE_XOR)?),
        ))
    }
}

fn constant(data: &[u8]) -> Option<(u32, MarkValue)> {
    let to = number(data, NFTA_IMMEDIATE_DREG)?;
    let value = word(find(data, NFTA_IMMEDIATE_DATA)?)?;
    Some((to, MarkValue::constant(value)))
}

/// A value of four bytes, in the host's order as marks are.
fn word(data: &[u8]) -> Option<u32> {
    let bytes = find(data, NFTA_DATA_VALUE)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

/// The first of the four small registers that a large one consists of; a small one itself.
fn slot(register: u32) -> u32 {
    match register {
        1..=4 => NFT_REG32_00 + 4 * (register - 1),
        small => small,
    }
}
