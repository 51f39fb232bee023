//! Tables of others, as far as they can come between a connection and its Service.
//!
//! Plain data: [`crate::apply::netlink`] fills it from the kernel, [`crate::listing`] from a saved
//! listing.

mod maps;
mod mark;
mod served;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use maps::VerdictMaps;
pub(crate) use mark::MarkValue;
pub use mark::MarkWrite;
pub use served::{Details, Masquerade, Served, Treatment};

/// A table, of anybody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Neighbour {
    /// Its family, as nft(8) calls it: `ip`, `ip6`, `inet`, `bridge`, …
    pub family: &'static str,
    /// Its name.
    pub table: String,
    /// Whether its chains see no packets for now.
    pub is_dormant: bool,
    /// The names of its chains.
    pub chains: Vec<String>,
    /// Those of them that packets come to by themselves.
    pub base_chains: Vec<BaseChain>,
    /// What rules do, by chain; chains without such a rule are left out.
    pub conduct: BTreeMap<String, Conduct>,
}

/// A chain at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// Its name.
    pub name: String,
    /// `filter`, `nat` or `route`.
    pub chain_type: String,
    /// The hook's number, `NF_INET_…` in the families `ip`, `ip6` and `inet`.
    pub hook: u32,
    /// Lower ones run first.
    pub priority: i32,
    /// Whether its policy is `drop`.
    pub drops_by_default: bool,
}

/// What a chain's rules may do to a packet, whatever their conditions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conduct {
    /// What they do themselves.
    pub acts: BTreeSet<Act>,
    /// The chains that they lead to.
    pub leads_to: BTreeSet<String>,
}

/// What a rule may do to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Sends it elsewhere: `dnat`, `redirect`, `tproxy`.
    Dnat,
    /// Gives it another source: `snat`, `masquerade`.
    Snat,
    /// Discards or refuses it: `drop`, `reject`.
    Drop,
    /// Hands it to a program: `queue`.
    Queue,
    /// Hides it from connection tracking: `notrack`.
    Notrack,
    /// Sends it out of an interface at once: `fwd`.
    Divert,
    /// Changes addresses or ports that it carries, as in `ip daddr set 10.0.0.1`.
    Rewrite,
    /// Changes its mark.
    Mark(MarkWrite),
    /// Asks a verdict map that has no elements, or of which none could be read.
    VerdictMap,
}

impl Act {
    /// The act of a statement by its name, in nft(8)'s terms or by its iptables target.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "dnat" | "redirect" | "tproxy" | "DNAT" | "REDIRECT" | "TPROXY" | "NETMAP" => {
                Self::Dnat
            }
            "snat" | "masquerade" | "SNAT" | "MASQUERADE" => Self::Snat,
            "drop" | "reject" | "DROP" | "REJECT" => Self::Drop,
            "queue" | "NFQUEUE" => Self::Queue,
            "notrack" | "NOTRACK" => Self::Notrack,
            "fwd" => Self::Divert,
            "MARK" | "CONNMARK" => Self::Mark(MarkWrite::UNKNOWN),
            _ => return None,
        })
    }
}

/// Whether a write to these bytes of a network header changes an address. The addresses of both
/// families overlap, so that a family that may have either has two ranges that tell.
pub(crate) fn has_addresses(family: &str, offset: u32, len: u32) -> bool {
    let ranges: &[_] = match family {
        "ip" => &[(12, 20)],
        "ip6" => &[(8, 40)],
        _ => &[(12, 20), (24, 40)],
    };
    ranges
        .iter()
        .any(|(start, end)| offset < *end && *start < offset.saturating_add(len))
}

/// Whether a write to bytes of a transport header that start there changes a port.
pub(crate) fn has_ports(offset: u32) -> bool {
    offset < 4
}

impl Conduct {
    /// Adds what another chain or element may do.
    pub(crate) fn add(&mut self, other: &Self) {
        self.acts.extend(&other.acts);
        self.leads_to.extend(other.leads_to.iter().cloned());
    }
}

impl Neighbour {
    /// What may become of a packet in a chain and in those that it leads to.
    pub fn acts(&self, chain: &str) -> BTreeSet<Act> {
        self.acts_without(chain, &[])
    }

    /// The same, leaving out what these chains do.
    pub(crate) fn acts_without(&self, chain: &str, left_out: &[&str]) -> BTreeSet<Act> {
        let mut acts = BTreeSet::new();
        let mut seen: BTreeSet<_> = left_out.iter().copied().collect();
        let mut open = vec![chain];
        while let Some(chain) = open.pop() {
            if seen.insert(chain)
                && let Some(conduct) = self.conduct.get(chain)
            {
                acts.extend(&conduct.acts);
                open.extend(conduct.leads_to.iter().map(String::as_str));
            }
        }
        acts
    }
}

/// nft(8)'s name for a table's family, as a constant.
pub(crate) fn family_name(name: &str) -> &'static str {
    ["ip", "ip6", "inet", "arp", "bridge", "netdev"]
        .into_iter()
        .find(|known| *known == name)
        .unwrap_or("of another family")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_does_what_those_do_that_it_leads_to() {
        let conduct = |acts: &[Act], leads_to: &[&str]| Conduct {
            acts: acts.iter().copied().collect(),
            leads_to: leads_to.iter().map(|&chain| chain.to_owned()).collect(),
        };
        let neighbour = Neighbour {
            conduct: BTreeMap::from([
                ("a".to_owned(), conduct(&[], &["b", "gone"])),
                ("b".to_owned(), conduct(&[Act::Drop], &["a"])),
                ("c".to_owned(), conduct(&[Act::Dnat], &[])),
            ]),
            ..Neighbour::default()
        };
        assert_eq!(neighbour.acts("a"), BTreeSet::from([Act::Drop]));
        assert_eq!(neighbour.acts("elsewhere"), BTreeSet::new());
    }
}
