//! What kube-proxy's table does with connections, beyond where they lead to. Entry point:
//! [`Netlink::list_details`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::Netlink;
use super::attribute::{attributes, be32, find, put_str, string};
use super::constants::*;
use super::predecessor::goto;
use crate::apply::ApplyError;
use crate::compile::Learned;
use crate::model::Family;
use crate::neighbour::{Details, Masquerade};
use crate::ruleset::Table;
use crate::ruleset::element::Destination;

/// Where kube-proxy's chains mark what is to be masqueraded.
const MARK_CHAIN: &str = "mark-for-masquerade";

/// What a chain's rules come to, as far as they are understood.
#[derive(Default)]
struct Conduct {
    masquerade: Option<Masquerade>,
    /// The set of sources that may pass.
    set: Option<String>,
    /// The one range of sources that may pass.
    range: Option<IpNet>,
}

impl Netlink {
    /// Reads what else the chains of a table do that `chains` leads to, by destination.
    pub(super) fn list_details<F: Family>(
        &mut self,
        table: &Table,
        chains: &[(Destination<F>, String)],
    ) -> Result<Details<F>, ApplyError> {
        let mut details = Details {
            affinity: self.affinity_timeouts::<F>(table)?,
            ..Details::default()
        };
        let conduct = self.conduct::<F>(table)?;
        for (destination, chain) in chains {
            let does = conduct.get(chain).and_then(|conduct| conduct.masquerade);
            let masquerade = does.unwrap_or(Masquerade::Nobody);
            details.masquerade.insert(*destination, masquerade);
        }
        let mut guarded = Vec::new();
        self.dump_map(table, "firewall-ips", |destination, element| {
            guarded.extend(goto(element).map(|chain| (destination, chain.to_owned())));
        })?;
        for (destination, chain) in guarded {
            let Some(conduct) = conduct.get(&chain) else {
                continue;
            };
            let ranges = match (&conduct.set, conduct.range) {
                (Some(set), _) => self.ranges::<F>(table, set)?,
                (None, Some(range)) => vec![range],
                (None, None) => continue,
            };
            details
                .sources
                .insert(destination, IpNet::aggregate(&ranges));
        }
        Ok(details)
    }

    fn affinity_timeouts<F: Family>(
        &mut self,
        table: &Table,
    ) -> Result<BTreeMap<String, u32>, ApplyError> {
        let mut timeouts = BTreeMap::new();
        self.dump::<F>(
            NFT_MSG_GETSET,
            "set",
            |out| put_str(out, NFTA_SET_TABLE, table.name()),
            |message| {
                let of_table = find(message, NFTA_SET_TABLE).and_then(string);
                let name = find(message, NFTA_SET_NAME).and_then(string);
                let learned = name.filter(|_| of_table == Some(table.name()));
                let learned = learned.and_then(Learned::<F>::of_set);
                let timeout = find(message, NFTA_SET_TIMEOUT).and_then(|it| it.try_into().ok());
                if let (Some(learned), Some(timeout)) = (learned, timeout) {
                    let seconds = u64::from_be_bytes(timeout) / 1000;
                    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
                    timeouts.insert(learned.comment().to_string(), seconds);
                }
            },
        )?;
        Ok(timeouts)
    }

    /// What each chain does.
    fn conduct<F: Family>(
        &mut self,
        table: &Table,
    ) -> Result<BTreeMap<String, Conduct>, ApplyError> {
        let mut chains = BTreeMap::<String, Conduct>::new();
        self.dump::<F>(
            NFT_MSG_GETRULE,
            "rule",
            |out| put_str(out, NFTA_RULE_TABLE, table.name()),
            |message| {
                let of_table = find(message, NFTA_RULE_TABLE).and_then(string);
                let chain = find(message, NFTA_RULE_CHAIN).and_then(string);
                let Some(chain) = chain.filter(|_| of_table == Some(table.name())) else {
                    return;
                };
                let rule = find(message, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
                let conduct = chains.entry(chain.to_owned()).or_default();
                if chain.starts_with("firewall-") {
                    (conduct.set, conduct.range) = sources::<F>(rule);
                } else if let Some(masquerade) = masquerade(rule) {
                    conduct.masquerade.get_or_insert(masquerade);
                }
            },
        )?;
        Ok(chains)
    }

    /// The ranges in a set of addresses.
    fn ranges<F: Family>(&mut self, table: &Table, set: &str) -> Result<Vec<IpNet>, ApplyError> {
        let mut bounds = BTreeSet::new();
        self.dump::<F>(
            NFT_MSG_GETSETELEM,
            set,
            |out| {
                put_str(out, NFTA_SET_ELEM_LIST_TABLE, table.name());
                put_str(out, NFTA_SET_ELEM_LIST_SET, set);
            },
            |message| {
                let list = find(message, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
                bounds.extend(attributes(list).filter_map(|(_, element)| {
                    let key = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
                    let flags = find(element, NFTA_SET_ELEM_FLAGS).and_then(be32);
                    let is_end = flags.unwrap_or_default() & NFT_SET_ELEM_INTERVAL_END != 0;
                    Some((F::read_address(key)?.into(), is_end))
                }));
            },
        )?;
        Ok(prefixes(&bounds))
    }
}

/// Ranges from their first addresses and, marked, those behind their last ones. A range to the last
/// address of all has no end, and an end may be the start of the next.
fn prefixes(bounds: &BTreeSet<(IpAddr, bool)>) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for (first, _) in bounds.iter().filter(|(_, is_end)| !is_end) {
        let end = bounds.iter().find(|(at, _)| at > first);
        let end = end.map(|(at, _)| *at);
        match first {
            IpAddr::V4(first) => {
                let last = match end {
                    Some(IpAddr::V4(end)) => (u32::from(end) - 1).into(),
                    _ => u32::MAX.into(),
                };
                ranges.extend(Ipv4Subnets::new(*first, last, 0).map(IpNet::from));
            }
            IpAddr::V6(first) => {
                let last = match end {
                    Some(IpAddr::V6(end)) => (u128::from(end) - 1).into(),
                    _ => u128::MAX.into(),
                };
                ranges.extend(Ipv6Subnets::new(*first, last, 0).map(IpNet::from));
            }
        }
    }
    ranges
}

/// A rule's expressions: name and data.
fn expressions(rule: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    attributes(rule).filter_map(|(_, expression)| {
        let name = find(expression, NFTA_EXPR_NAME).and_then(string)?;
        Some((name, find(expression, NFTA_EXPR_DATA).unwrap_or_default()))
    })
}

/// Whom a rule has masqueraded, if it does.
fn masquerade(rule: &[u8]) -> Option<Masquerade> {
    let marks = |(name, data): (&str, &[u8])| {
        let verdict = find(data, NFTA_IMMEDIATE_DATA).and_then(|it| find(it, NFTA_DATA_VERDICT));
        let chain = verdict.and_then(|it| find(it, NFTA_VERDICT_CHAIN));
        name == "immediate" && chain.and_then(string) == Some(MARK_CHAIN)
    };
    if !expressions(rule).any(marks) {
        return None;
    }
    let is_negated = |(name, data): (&str, &[u8])| {
        name == "cmp" && find(data, NFTA_CMP_OP).and_then(be32) == Some(NFT_CMP_NEQ)
    };
    Some(if expressions(rule).any(|(name, _)| name == "fib") {
        Masquerade::Node
    } else if expressions(rule).any(is_negated) {
        Masquerade::AllButPods
    } else {
        Masquerade::Everybody
    })
}

/// Those who pass a rule that drops all others: a set of them, or one range.
fn sources<F: Family>(rule: &[u8]) -> (Option<String>, Option<IpNet>) {
    let (mut mask, mut set, mut range) = (None, None, None);
    for (name, data) in expressions(rule) {
        match name {
            "lookup" => {
                set = find(data, NFTA_LOOKUP_SET)
                    .and_then(string)
                    .map(str::to_owned)
            }
            "bitwise" => {
                mask = find(data, NFTA_BITWISE_MASK).and_then(|it| find(it, NFTA_DATA_VALUE));
            }
            "cmp" => {
                let value = find(data, NFTA_CMP_DATA).and_then(|it| find(it, NFTA_DATA_VALUE));
                range = value.and_then(|value| prefix::<F>(value, mask));
            }
            _ => {}
        }
    }
    (set, range)
}

/// A prefix, of which as many bytes are compared as it has.
fn prefix<F: Family>(value: &[u8], mask: Option<&[u8]>) -> Option<IpNet> {
    let mut bytes = value.to_vec();
    bytes.resize(F::ADDRESS_LEN, 0);
    let len = match mask {
        Some(mask) => mask.iter().map(|byte| byte.count_ones()).sum::<u32>(),
        None => 8 * u32::try_from(value.len()).ok()?,
    };
    IpNet::new(F::read_address(&bytes)?.into(), len.try_into().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_from_their_bounds() {
        let bounds = |bounds: &[(&str, bool)]| -> BTreeSet<(IpAddr, bool)> {
            let bounds = bounds.iter();
            bounds
                .map(|(address, is_end)| (address.parse().unwrap(), *is_end))
                .collect()
        };
        let texts =
            |found: Vec<IpNet>| -> Vec<String> { found.iter().map(ToString::to_string).collect() };
        let v4 = bounds(&[
            ("0.0.0.0", true),
            ("10.0.0.0", false),
            ("11.0.0.0", true),
            ("192.0.2.7", false),
            ("192.0.2.8", true),
            ("255.255.255.254", false),
        ]);
        assert_eq!(
            texts(prefixes(&v4)),
            ["10.0.0.0/8", "192.0.2.7/32", "255.255.255.254/31"]
        );
        let v6 = bounds(&[("::", true), ("fd00::", false), ("fd00:0:0:1::", true)]);
        assert_eq!(texts(prefixes(&v6)), ["fd00::/64"]);
    }
}
