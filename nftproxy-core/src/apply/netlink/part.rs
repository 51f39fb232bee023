//! The parts of nf_tables that the rules are made of, as kernels have or lack them.

use std::fmt;

use crate::model::IpFamily;
use crate::ruleset::expr::{
    CtOriginalKey, Expr, LookupData, MetaKey, PayloadBase, Reject, Verdict,
};
use crate::ruleset::name::SetName;

/// A part of nf_tables that may be built into a kernel, be a module of its own, or be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// nf_tables itself, and its tables of the family.
    Tables,
    /// Sets and maps, with all types of keys and data that there are.
    Sets,
    /// Chains of type nat.
    NatChains,
    /// `meta`, `th dport`, `ip daddr` and the likes, `&`, `^`, lookups, verdicts.
    Basics,
    /// Adding elements by rule.
    Update,
    /// `ct status`, `ct original …`
    Ct,
    /// `fib daddr type`
    Fib,
    /// `numgen random`
    Numgen,
    /// `dnat`
    Dnat,
    /// `masquerade`
    Masquerade,
    /// `reject`
    Reject,
}

impl Part {
    /// All of them, those first that others need.
    pub const ALL: [Self; 11] = [
        Self::Tables,
        Self::Sets,
        Self::NatChains,
        Self::Basics,
        Self::Update,
        Self::Ct,
        Self::Fib,
        Self::Numgen,
        Self::Dnat,
        Self::Masquerade,
        Self::Reject,
    ];

    /// The options of the kernel's configuration that it takes, without `CONFIG_`. Those last that
    /// take the others.
    pub fn config(self, family: IpFamily) -> &'static [&'static str] {
        match (self, family) {
            (Self::Tables, IpFamily::V4) => &["NF_TABLES", "NF_TABLES_IPV4"],
            (Self::Tables, IpFamily::V6) => &["NF_TABLES", "NF_TABLES_IPV6"],
            (Self::Sets | Self::Basics | Self::Update, _) => &["NF_TABLES"],
            (Self::NatChains | Self::Dnat, _) => &["NF_CONNTRACK", "NF_NAT", "NFT_NAT"],
            (Self::Ct, _) => &["NF_CONNTRACK", "NFT_CT"],
            (Self::Fib, IpFamily::V4) => &["NFT_FIB", "NFT_FIB_IPV4"],
            (Self::Fib, IpFamily::V6) => &["NFT_FIB", "NFT_FIB_IPV6"],
            (Self::Numgen, _) => &["NFT_NUMGEN"],
            (Self::Masquerade, _) => &["NF_CONNTRACK", "NF_NAT", "NFT_MASQ"],
            (Self::Reject, IpFamily::V4) => &["NFT_REJECT", "NFT_REJECT_IPV4"],
            (Self::Reject, IpFamily::V6) => &["NFT_REJECT", "NFT_REJECT_IPV6"],
        }
    }

    /// The modules that it is made of where it is not built in, each after those that it takes.
    pub fn modules(self, family: IpFamily) -> &'static [&'static str] {
        match (self, family) {
            (Self::Tables | Self::Sets | Self::Basics | Self::Update, _) => {
                &["nfnetlink", "nf_tables"]
            }
            (Self::NatChains, _) => &["nf_conntrack", "nf_nat", "nft_chain_nat"],
            (Self::Ct, _) => &["nf_conntrack", "nft_ct"],
            (Self::Fib, IpFamily::V4) => &["nft_fib", "nft_fib_ipv4"],
            (Self::Fib, IpFamily::V6) => &["nft_fib", "nft_fib_ipv6"],
            (Self::Numgen, _) => &["nft_numgen"],
            (Self::Dnat, _) => &["nf_conntrack", "nf_nat", "nft_nat"],
            (Self::Masquerade, _) => &["nf_conntrack", "nf_nat", "nft_masq"],
            (Self::Reject, IpFamily::V4) => &["nf_reject_ipv4", "nft_reject", "nft_reject_ipv4"],
            (Self::Reject, IpFamily::V6) => &["nf_reject_ipv6", "nft_reject", "nft_reject_ipv6"],
        }
    }

    /// The expressions that it is tried with, each in a rule of its own.
    pub(super) fn expressions(self) -> Vec<Expr> {
        let register = 0;
        match self {
            Self::Tables | Self::Sets | Self::NatChains => Vec::new(),
            Self::Basics => vec![
                Expr::Payload {
                    base: PayloadBase::Transport,
                    offset: 2,
                    len: 2,
                    register,
                },
                Expr::Meta {
                    key: MetaKey::L4Proto,
                    register,
                },
                Expr::Meta {
                    key: MetaKey::Iifname,
                    register,
                },
                Expr::Meta {
                    key: MetaKey::Mark,
                    register,
                },
                Expr::SetMark { register },
                Expr::Bitwise {
                    register,
                    mask: vec![0xff; 4],
                    xor: vec![0; 4],
                },
                Expr::Cmp {
                    negate: false,
                    register,
                    value: vec![0; 4],
                },
                Expr::Lookup {
                    set: SetName::Services,
                    register,
                    data: LookupData::Verdict,
                },
                Expr::Lookup {
                    set: SetName::Endpoints,
                    register,
                    data: LookupData::Load(register),
                },
                Expr::LookupAbsent {
                    set: SetName::ClusterIps,
                    register,
                },
                Expr::Verdict(Verdict::Drop),
            ],
            Self::Update => vec![Expr::Update {
                set: SetName::Affinity,
                key: register,
                data: register,
                timeout: 1000,
            }],
            Self::Ct => vec![
                Expr::CtStatus { register },
                Expr::CtOriginal {
                    key: CtOriginalKey::Daddr,
                    register,
                },
                Expr::CtOriginal {
                    key: CtOriginalKey::Dport,
                    register,
                },
            ],
            Self::Fib => [true, false]
                .map(|destination| Expr::FibType {
                    destination,
                    register,
                })
                .to_vec(),
            Self::Numgen => vec![Expr::Numgen {
                modulus: 2,
                register,
            }],
            Self::Dnat => vec![Expr::Dnat {
                address: register,
                port: 4,
            }],
            Self::Masquerade => vec![Expr::Masquerade],
            Self::Reject => vec![
                Expr::Reject(Reject::PortUnreachable),
                Expr::Reject(Reject::TcpReset),
            ],
        }
    }
}

/// As nft(8) calls it.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tables => "tables",
            Self::Sets => "sets and maps",
            Self::NatChains => "chains of type nat",
            Self::Basics => "meta, payload and lookup expressions",
            Self::Update => "update statements",
            Self::Ct => "ct expressions",
            Self::Fib => "fib expressions",
            Self::Numgen => "numgen expressions",
            Self::Dnat => "dnat statements",
            Self::Masquerade => "masquerade statements",
            Self::Reject => "reject statements",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an expression belongs to; `None` for one that is not ours, or that rules do without. A new
    /// one has to say.
    fn part_of(expr: &Expr) -> Option<Part> {
        Some(match expr {
            Expr::Payload { .. }
            | Expr::Meta { .. }
            | Expr::SetMark { .. }
            | Expr::Cmp { .. }
            | Expr::Bitwise { .. }
            | Expr::Lookup { .. }
            | Expr::LookupAbsent { .. }
            | Expr::Verdict(_) => Part::Basics,
            Expr::Update { .. } => Part::Update,
            Expr::CtStatus { .. } | Expr::CtOriginal { .. } => Part::Ct,
            Expr::FibType { .. } => Part::Fib,
            Expr::Numgen { .. } => Part::Numgen,
            Expr::Dnat { .. } => Part::Dnat,
            Expr::Counter | Expr::Hash { .. } => return None,
            Expr::Masquerade => Part::Masquerade,
            Expr::Reject(_) => Part::Reject,
            Expr::Foreign(_) => return None,
        })
    }

    #[test]
    fn each_part_is_tried_by_expressions_of_its_own() {
        for part in Part::ALL {
            for expr in part.expressions() {
                assert_eq!(part_of(&expr), Some(part), "{expr:?}");
            }
        }
    }
}
