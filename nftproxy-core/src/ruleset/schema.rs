//! The type of each set and map, and the place of each base chain.

use super::name::{ChainName, SetName, SlotMap};
use crate::model::Family;

/// One part of a key. Each starts on a 32-bit register, and is padded to whole registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Source address, 4 or 16 bytes, network byte order.
    Saddr,
    /// Destination address, 4 or 16 bytes, network byte order.
    Daddr,
    /// Transport protocol, 1 byte, padded.
    L4Proto,
    /// Destination port, 2 bytes, network byte order, padded.
    Dport,
    /// Source address that may lie in a range; a set has it last.
    SaddrRange,
    /// Number of an endpoint's slot, 4 bytes, host byte order (it comes from `numgen`).
    Slot,
}

impl Field {
    /// Bytes before padding.
    pub fn byte_len<F: Family>(self) -> usize {
        match self {
            Self::Saddr | Self::SaddrRange | Self::Daddr => F::ADDRESS_LEN,
            Self::L4Proto => 1,
            Self::Dport => 2,
            Self::Slot => 4,
        }
    }

    /// 32-bit registers it takes.
    pub fn words<F: Family>(self) -> u8 {
        self.byte_len::<F>().div_ceil(4) as u8
    }

    /// The expression as nft(8) writes it. A slot's depends on the rule, so here is the one for
    /// the map's type.
    pub fn nft<F: Family>(self) -> String {
        let family = F::FAMILY.nft_name();
        match self {
            Self::Saddr | Self::SaddrRange => format!("{family} saddr"),
            Self::Daddr => format!("{family} daddr"),
            Self::L4Proto => "meta l4proto".into(),
            Self::Dport => "th dport".into(),
            Self::Slot => format!("numgen random mod {SLOT_TYPE_MODULUS}"),
        }
    }
}

/// The modulus that stands in the declared type of a slot. It limits nothing: nft(8) needs some
/// number to write the type of a `numgen` expression.
pub const SLOT_TYPE_MODULUS: u32 = 65536;

/// How many choices of clients are remembered; beyond, connections work and are not remembered.
pub const AFFINITY_MAX_CLIENTS: u32 = 1_000_000;

/// What an element of a set maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    /// Nothing: a set.
    None,
    /// A verdict: a verdict map.
    Verdict,
    /// An address and a port, network byte order, padded as [`Field::Daddr`] and [`Field::Dport`].
    Endpoint,
}

/// The type of a set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    /// The fields of a key, in order.
    pub key: &'static [Field],
    /// What it maps to.
    pub data: DataType,
}

/// The type of a set or map.
pub fn schema(set: SetName) -> Schema {
    use Field::{Daddr, Dport, L4Proto, Saddr, SaddrRange, Slot};
    let (key, data): (&[Field], _) = match set {
        SetName::ClusterIps | SetName::NodePortIps => (&[Daddr], DataType::None),
        SetName::Hairpin => (&[Saddr, Daddr], DataType::None),
        SetName::Restricted | SetName::ExternalLocal => (&[Daddr, L4Proto, Dport], DataType::None),
        SetName::NodePorts | SetName::ExternalLocalNodePorts => (&[L4Proto, Dport], DataType::None),
        SetName::AllowedSources => (&[Daddr, L4Proto, Dport, SaddrRange], DataType::None),
        SetName::Affinity => (&[Saddr, Daddr, L4Proto, Dport], DataType::Endpoint),
        SetName::Services
        | SetName::External
        | SetName::Local
        | SetName::Unavailable
        | SetName::Sticky
        | SetName::Masqueraded => (&[Daddr, L4Proto, Dport], DataType::Verdict),
        SetName::Endpoints | SetName::LocalEndpoints => {
            (&[Daddr, L4Proto, Dport, Slot], DataType::Endpoint)
        }
        SetName::ExternalNodePorts
        | SetName::LocalNodePorts
        | SetName::StickyNodePorts
        | SetName::MasqueradedNodePorts
        | SetName::UnavailableNodePorts => (&[L4Proto, Dport], DataType::Verdict),
        SetName::NodePortEndpoints | SetName::LocalNodePortEndpoints => {
            (&[L4Proto, Dport, Slot], DataType::Endpoint)
        }
    };
    Schema { key, data }
}

impl Schema {
    /// Bytes of a key, padding included.
    pub fn key_len<F: Family>(&self) -> usize {
        self.key
            .iter()
            .map(|field| usize::from(field.words::<F>()) * 4)
            .sum()
    }

    /// Bytes of the data, padding included. The kernel ignores it for verdicts.
    pub fn data_len<F: Family>(&self) -> usize {
        match self.data {
            DataType::None => 0,
            DataType::Verdict => 16,
            DataType::Endpoint => F::ADDRESS_LEN + 4,
        }
    }

    /// Whether a key stands for a range of values (set flag `interval`).
    pub fn is_interval(&self) -> bool {
        self.key.contains(&Field::SaddrRange)
    }

    /// Whether rules add elements of their own, each with a timeout, up to
    /// [`AFFINITY_MAX_CLIENTS`].
    pub fn is_dynamic(&self) -> bool {
        self.key.first() == Some(&Field::Saddr) && self.data == DataType::Endpoint
    }

    /// The type as nft(8) declares it.
    pub fn nft<F: Family>(&self) -> String {
        let fields = |fields: &[Field]| {
            fields
                .iter()
                .map(|field| field.nft::<F>())
                .collect::<Vec<_>>()
                .join(" . ")
        };
        let key = fields(self.key);
        match self.data {
            DataType::None if self.is_interval() => format!("typeof {key}; flags interval"),
            DataType::None => format!("typeof {key}"),
            DataType::Verdict => format!("typeof {key} : verdict"),
            DataType::Endpoint => {
                let data = fields(&[Field::Daddr, Field::Dport]);
                let dynamic = if self.is_dynamic() {
                    format!("; size {AFFINITY_MAX_CLIENTS}; flags dynamic,timeout")
                } else {
                    String::new()
                };
                format!("typeof {key} : {data}{dynamic}")
            }
        }
    }
}

impl SlotMap {
    /// The map that [`SetName`] names, if it is one of slots.
    pub fn of(set: SetName) -> Option<Self> {
        Self::ALL.into_iter().find(|map| map.set() == set)
    }
}

/// A netfilter hook that nat chains can sit at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `NF_INET_PRE_ROUTING`
    Prerouting,
    /// `NF_INET_LOCAL_IN`
    Input,
    /// `NF_INET_LOCAL_OUT`
    Output,
    /// `NF_INET_POST_ROUTING`
    Postrouting,
}

impl Hook {
    /// The `NF_INET_…` number.
    pub fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }

    /// The word nft(8) uses.
    pub fn nft(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// Where a base chain sits. All of ours have type nat, so that they see the first packet of a
/// connection and no other, and policy accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    /// The hook.
    pub hook: Hook,
    /// The priority; lower ones run first.
    pub priority: i32,
}

/// `NF_IP_PRI_NAT_DST`: where others expect Services to be translated.
pub const PRIORITY_DSTNAT: i32 = -100;
/// Before anybody's DNAT, where kube-proxy filters sources as well.
pub const PRIORITY_SOURCE_RANGES: i32 = PRIORITY_DSTNAT - 10;
/// After everybody's DNAT: a connection that gets here is one nobody wanted to translate.
pub const PRIORITY_GUARD: i32 = PRIORITY_DSTNAT + 10;
/// `NF_IP_PRI_NAT_SRC`
pub const PRIORITY_SRCNAT: i32 = 100;

/// Where a chain sits, if it is a base chain.
pub fn base_chain(chain: ChainName) -> Option<BaseChain> {
    let (hook, priority) = match chain {
        ChainName::PreroutingSourceRanges => (Hook::Prerouting, PRIORITY_SOURCE_RANGES),
        ChainName::OutputSourceRanges => (Hook::Output, PRIORITY_SOURCE_RANGES),
        ChainName::Prerouting => (Hook::Prerouting, PRIORITY_DSTNAT),
        ChainName::Output => (Hook::Output, PRIORITY_DSTNAT),
        ChainName::PreroutingGuard => (Hook::Prerouting, PRIORITY_GUARD),
        ChainName::OutputGuard => (Hook::Output, PRIORITY_GUARD),
        // Where source addresses are translated on the way in; it is after the destination's.
        ChainName::Input => (Hook::Input, PRIORITY_SRCNAT),
        ChainName::Postrouting => (Hook::Postrouting, PRIORITY_SRCNAT),
        _ => return None,
    };
    Some(BaseChain { hook, priority })
}
