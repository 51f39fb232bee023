//! Rules: what nft(8) calls statements and matches, and the kernel expressions they become.
//!
//! [`Statement`] is what a person reads, [`Expr`] is what the kernel runs. [`Statement::lower`]
//! and [`Statement::nft`] stand side by side for each, and the kernel tests check that both say
//! the same: the text through `nft -f` and the expressions through netlink list identically.

use std::num::NonZeroU32;

use super::name::{ChainName, Draw, SetName};
use super::schema::{Field, schema};
use crate::model::{Family, InterfaceName, Protocol};

/// A 32-bit register by number, 0 to 15 (`NFT_REG32_00` …). Wider values take the next ones too.
pub type Register = u8;

/// A kernel expression, just those that our rules use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads bytes of the packet.
    Payload {
        /// Which header.
        base: PayloadBase,
        /// Offset in it, bytes.
        offset: u32,
        /// Bytes to load.
        len: u32,
        /// Where to.
        register: Register,
    },
    /// Loads packet metadata.
    Meta {
        /// Which.
        key: MetaKey,
        /// Where to.
        register: Register,
    },
    /// Sets the packet mark.
    SetMark {
        /// Where from.
        register: Register,
    },
    /// Loads `ct status` (4 bytes, host byte order).
    CtStatus {
        /// Where to.
        register: Register,
    },
    /// Loads a part of the connection's original direction, before any translation.
    CtOriginal {
        /// Which.
        key: CtOriginalKey,
        /// Where to.
        register: Register,
    },
    /// Adds an element to a map, or makes it anew.
    Update {
        /// The map.
        set: SetName,
        /// First register of the key.
        key: Register,
        /// First register of the data.
        data: Register,
        /// How long the element lives, milliseconds.
        timeout: u64,
    },
    /// Loads the type of route to an address (`fib … type`, 4 bytes, host byte order).
    FibType {
        /// Look at the destination address, rather than the source.
        destination: bool,
        /// Where to.
        register: Register,
    },
    /// Draws a random number below `modulus` (4 bytes, host byte order).
    Numgen {
        /// One more than the largest number.
        modulus: u32,
        /// Where to.
        register: Register,
    },
    /// Hashes registers by `jhash`, seeded with [`CLIENT_HASH_SEED`], to a number below `modulus` (4
    /// bytes, host byte order).
    Hash {
        /// First register to hash.
        from: Register,
        /// Bytes to hash.
        len: u32,
        /// One more than the largest number.
        modulus: u32,
        /// Where to.
        register: Register,
    },
    /// Goes on if the register equals the value, or does not.
    Cmp {
        /// Go on if they differ.
        negate: bool,
        /// Compare this.
        register: Register,
        /// With these bytes, as many as there are.
        value: Vec<u8>,
    },
    /// `register = (register & mask) ^ xor`
    Bitwise {
        /// In place.
        register: Register,
        /// As long as the value.
        mask: Vec<u8>,
        /// As long as the value.
        xor: Vec<u8>,
    },
    /// Looks a key up, and goes on if it is there.
    Lookup {
        /// Where.
        set: SetName,
        /// First register of the key.
        register: Register,
        /// What to do with the data.
        data: LookupData,
    },
    /// Looks a key up, and goes on if it is not there.
    LookupAbsent {
        /// Where.
        set: SetName,
        /// First register of the key.
        register: Register,
    },
    /// Counts the packets that get here. What it has counted is no part of the ruleset.
    Counter,
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Translates the destination, address and port from registers.
    Dnat {
        /// The new address.
        address: Register,
        /// The new port.
        port: Register,
    },
    /// Translates the source to the outgoing interface's address, with a random port.
    Masquerade,
    /// Refuses the packet.
    Reject(Reject),
    /// An expression that no rule of ours has, by its name; only ever read from a kernel.
    Foreign(String),
}

/// `NFT_PAYLOAD_…_HEADER`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadBase {
    /// The IP header.
    Network,
    /// The TCP, UDP or SCTP header.
    Transport,
}

/// `NFT_CT_…` of the original direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtOriginalKey {
    /// Destination address, 4 or 16 bytes, network byte order.
    Daddr,
    /// Destination port, 2 bytes, network byte order.
    Dport,
}

/// `NFT_META_…`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// The transport protocol's number, 1 byte.
    L4Proto,
    /// The packet mark, 4 bytes, host byte order.
    Mark,
    /// Name of the input interface, 16 bytes padded with NUL; all NUL without one.
    Iifname,
}

/// What a lookup does with the data it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupData {
    /// Nothing: the set has none.
    None,
    /// Obeys the verdict.
    Verdict,
    /// Loads it into a register.
    Load(Register),
}

/// A verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Discards the packet.
    Drop,
    /// Leaves all chains of the hook and priority; those after it are asked.
    Accept,
    /// Leaves the chain.
    Return,
    /// Goes on in a chain, and comes back.
    Jump(ChainName),
    /// Goes on in a chain, and does not come back.
    Goto(ChainName),
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// ICMP or ICMPv6 port unreachable.
    PortUnreachable,
    /// TCP reset.
    TcpReset,
}

impl Verdict {
    /// As nft(8) writes it.
    pub fn nft(&self) -> String {
        match self {
            Self::Drop => "drop".into(),
            Self::Accept => "accept".into(),
            Self::Return => "return".into(),
            Self::Jump(chain) => format!("jump {chain}"),
            Self::Goto(chain) => format!("goto {chain}"),
        }
    }

    /// The chain it leads to.
    pub fn chain(&self) -> Option<ChainName> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(*chain),
            Self::Drop | Self::Accept | Self::Return => None,
        }
    }
}

/// The seed of the hash of clients: "nftp". All nodes have the same, so that they agree.
pub const CLIENT_HASH_SEED: u32 = 0x6e66_7470;
/// `RTN_LOCAL`: the address is one of this host's.
pub const ROUTE_TYPE_LOCAL: u32 = 2;
/// `IPS_DST_NAT`: the connection's destination has been translated.
pub const CT_STATUS_DNAT: u32 = 1 << 5;
/// `IFNAMSIZ`
pub const INTERFACE_NAME_LEN: usize = 16;

/// One part of a rule, as nft(8) writes it: the matches come first, then what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement<F: Family> {
    /// Matches if the set holds the packet's key.
    In(SetName),
    /// Matches if the set does not hold the packet's key.
    NotIn(SetName),
    /// Matches if the set of addresses holds the one that the connection was sent to at first.
    OriginalIn(SetName),
    /// Matches if the set of addresses does not hold that one.
    OriginalNotIn(SetName),
    /// Matches a source address.
    Saddr(Match<(F::Address, u8)>),
    /// Matches a destination address.
    Daddr(Match<(F::Address, u8)>),
    /// Matches the input interface by its name.
    Iifname(Match<InterfaceName>),
    /// Matches the input interface by how its name starts.
    IifnamePrefix(Match<InterfaceName>),
    /// Matches if the source address is one of this host's.
    SaddrIsLocal,
    /// Matches if the destination address is one of this host's.
    DaddrIsLocal,
    /// Matches a transport protocol.
    L4Proto(Protocol),
    /// Matches if the packet mark has this bit.
    HasMark(u32),
    /// Matches if the connection's destination has been translated.
    IsDnat,
    /// Sets a bit of the packet mark.
    SetMark(u32),
    /// Clears a bit of the packet mark that is known to be set.
    ClearMark(u32),
    /// Obeys the verdict that the map has for the packet's key, if any.
    Vmap(SetName),
    /// Obeys the verdict that the map has for where a connection was sent to at first.
    VmapOriginal(SetName, Protocol),
    /// Remembers where a connection was led to, for so many seconds.
    Remember(Protocol, NonZeroU32),
    /// Translates the destination to the remembered endpoint, if there is one.
    DnatToRemembered,
    /// Translates the destination to one of `n` slots.
    DnatToSlot {
        /// A map of slots.
        map: SetName,
        /// How one is chosen.
        draw: Draw,
        /// How many slots there are.
        n: u32,
    },
    /// Translates the source.
    Masquerade,
    /// Counts.
    Counter,
    /// Refuses the packet.
    Reject(Reject),
    /// Ends the rule.
    Verdict(Verdict),
}

/// A value to match, or to match the absence of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match<T> {
    /// The value.
    pub value: T,
    /// Match everything else.
    pub negate: bool,
}

impl<F: Family> Statement<F> {
    /// As nft(8) writes it.
    pub fn nft(&self) -> String {
        let family = F::FAMILY.nft_name();
        let key = |set| {
            schema(set)
                .key
                .iter()
                .map(|field| field.nft::<F>())
                .collect::<Vec<_>>()
                .join(" . ")
        };
        let not = |negate: bool| if negate { "!= " } else { "" };
        match self {
            Self::In(set) => format!("{} @{set}", key(*set)),
            Self::NotIn(set) => format!("{} != @{set}", key(*set)),
            Self::OriginalIn(set) => format!("ct original {family} daddr @{set}"),
            Self::OriginalNotIn(set) => format!("ct original {family} daddr != @{set}"),
            Self::Saddr(Match {
                value: (address, len),
                negate,
            }) => {
                format!("{family} saddr {}{address}/{len}", not(*negate))
            }
            Self::Daddr(Match {
                value: (address, len),
                negate,
            }) => {
                format!("{family} daddr {}{address}/{len}", not(*negate))
            }
            Self::Iifname(Match { value, negate }) => {
                format!("iifname {}\"{value}\"", not(*negate))
            }
            Self::IifnamePrefix(Match { value, negate }) => {
                format!("iifname {}\"{value}*\"", not(*negate))
            }
            Self::SaddrIsLocal => "fib saddr type local".into(),
            Self::DaddrIsLocal => "fib daddr type local".into(),
            Self::L4Proto(protocol) => format!("meta l4proto {}", protocol.nft_name()),
            Self::HasMark(mark) => format!("meta mark & {mark:#x} != 0"),
            Self::IsDnat => "ct status dnat".into(),
            Self::SetMark(mark) => format!("meta mark set meta mark | {mark:#x}"),
            Self::ClearMark(mark) => format!("meta mark set meta mark ^ {mark:#x}"),
            Self::Vmap(set) => format!("{} vmap @{set}", key(*set)),
            Self::VmapOriginal(set, protocol) => {
                let key = original::<F>(schema(*set).key);
                format!("meta l4proto {} {key} vmap @{set}", protocol.nft_name())
            }
            Self::Remember(protocol, seconds) => {
                let protocol = protocol.nft_name();
                let key = original::<F>(schema(SetName::Affinity).key);
                let data = format!("{family} daddr . {protocol} dport");
                format!(
                    "{protocol} dport != 0 update @affinity {{ {key} timeout {seconds}s : {data} }}"
                )
            }
            Self::DnatToRemembered => {
                format!(
                    "dnat {family} addr . port to {} map @affinity",
                    key(SetName::Affinity)
                )
            }
            Self::DnatToSlot { map, draw, n } => {
                let fields: Vec<_> = schema(*map)
                    .key
                    .iter()
                    .map(|field| match (field, draw) {
                        (Field::Slot, Draw::Random) => format!("numgen random mod {n}"),
                        (Field::Slot, Draw::Hash) => {
                            format!("jhash {family} saddr mod {n} seed {CLIENT_HASH_SEED:#x}")
                        }
                        (field, _) => field.nft::<F>(),
                    })
                    .collect();
                format!(
                    "dnat {family} addr . port to {} map @{map}",
                    fields.join(" . ")
                )
            }
            Self::Masquerade => "masquerade fully-random".into(),
            Self::Counter => "counter".into(),
            Self::Reject(Reject::PortUnreachable) => "reject".into(),
            Self::Reject(Reject::TcpReset) => "reject with tcp reset".into(),
            Self::Verdict(verdict) => verdict.nft(),
        }
    }

    /// Appends the kernel expressions, the same that nft(8) makes of [`Statement::nft`].
    pub fn lower(&self, out: &mut Vec<Expr>) {
        match self {
            Self::In(set) => {
                load_key::<F>(schema(*set).key, out);
                out.push(Expr::Lookup {
                    set: *set,
                    register: 0,
                    data: LookupData::None,
                });
            }
            Self::NotIn(set) => {
                load_key::<F>(schema(*set).key, out);
                out.push(Expr::LookupAbsent {
                    set: *set,
                    register: 0,
                });
            }
            Self::OriginalIn(set) | Self::OriginalNotIn(set) => {
                let (set, register) = (*set, 0);
                out.push(Expr::CtOriginal {
                    key: CtOriginalKey::Daddr,
                    register,
                });
                out.push(match self {
                    Self::OriginalNotIn(_) => Expr::LookupAbsent { set, register },
                    _ => Expr::Lookup {
                        set,
                        register,
                        data: LookupData::None,
                    },
                });
            }
            Self::Saddr(prefix) => match_prefix::<F>(F::SADDR_OFFSET, prefix, out),
            Self::Daddr(prefix) => match_prefix::<F>(F::DADDR_OFFSET, prefix, out),
            Self::Iifname(Match { value, negate }) => {
                let mut name = value.as_str().as_bytes().to_vec();
                name.resize(INTERFACE_NAME_LEN, 0);
                out.push(Expr::Meta {
                    key: MetaKey::Iifname,
                    register: 0,
                });
                out.push(Expr::Cmp {
                    negate: *negate,
                    register: 0,
                    value: name,
                });
            }
            Self::IifnamePrefix(Match { value, negate }) => {
                out.push(Expr::Meta {
                    key: MetaKey::Iifname,
                    register: 0,
                });
                let value = value.as_str().as_bytes().to_vec();
                out.push(Expr::Cmp {
                    negate: *negate,
                    register: 0,
                    value,
                });
            }
            Self::SaddrIsLocal | Self::DaddrIsLocal => {
                let destination = *self == Self::DaddrIsLocal;
                out.push(Expr::FibType {
                    destination,
                    register: 0,
                });
                let value = ROUTE_TYPE_LOCAL.to_ne_bytes().to_vec();
                out.push(Expr::Cmp {
                    negate: false,
                    register: 0,
                    value,
                });
            }
            Self::L4Proto(protocol) => {
                out.push(Expr::Meta {
                    key: MetaKey::L4Proto,
                    register: 0,
                });
                let value = vec![protocol.number()];
                out.push(Expr::Cmp {
                    negate: false,
                    register: 0,
                    value,
                });
            }
            Self::HasMark(mark) => {
                out.push(Expr::Meta {
                    key: MetaKey::Mark,
                    register: 0,
                });
                out.push(mask_u32(*mark, 0));
                out.push(Expr::Cmp {
                    negate: true,
                    register: 0,
                    value: vec![0; 4],
                });
            }
            Self::IsDnat => {
                out.push(Expr::CtStatus { register: 0 });
                out.push(mask_u32(CT_STATUS_DNAT, 0));
                out.push(Expr::Cmp {
                    negate: true,
                    register: 0,
                    value: vec![0; 4],
                });
            }
            Self::SetMark(mark) => {
                out.push(Expr::Meta {
                    key: MetaKey::Mark,
                    register: 0,
                });
                out.push(mask_u32(!mark, *mark));
                out.push(Expr::SetMark { register: 0 });
            }
            Self::ClearMark(mark) => {
                out.push(Expr::Meta {
                    key: MetaKey::Mark,
                    register: 0,
                });
                out.push(mask_u32(u32::MAX, *mark));
                out.push(Expr::SetMark { register: 0 });
            }
            Self::Vmap(set) => {
                load_key::<F>(schema(*set).key, out);
                out.push(Expr::Lookup {
                    set: *set,
                    register: 0,
                    data: LookupData::Verdict,
                });
            }
            Self::VmapOriginal(set, protocol) => {
                Self::L4Proto(*protocol).lower(out);
                load_original::<F>(schema(*set).key, out);
                out.push(Expr::Lookup {
                    set: *set,
                    register: 0,
                    data: LookupData::Verdict,
                });
            }
            Self::Remember(protocol, seconds) => {
                Self::L4Proto(*protocol).lower(out);
                // It is always so. But nft(8) needs a match on the header to take its own listing
                // back, as it leaves out a protocol that what follows implies.
                load_fields::<F>(&[Field::Dport], 0, out);
                out.push(Expr::Cmp {
                    register: 0,
                    negate: true,
                    value: vec![0; 2],
                });
                let data = load_original::<F>(schema(SetName::Affinity).key, out);
                load_fields::<F>(&[Field::Daddr, Field::Dport], data, out);
                out.push(Expr::Update {
                    set: SetName::Affinity,
                    key: 0,
                    data,
                    timeout: u64::from(seconds.get()) * 1000,
                });
            }
            Self::DnatToRemembered => {
                let set = SetName::Affinity;
                load_key::<F>(schema(set).key, out);
                out.push(Expr::Lookup {
                    set,
                    register: 0,
                    data: LookupData::Load(0),
                });
                out.push(Expr::Dnat {
                    address: 0,
                    port: Field::Daddr.words::<F>(),
                });
            }
            Self::DnatToSlot { map, draw, n } => {
                load_slot_key::<F>(schema(*map).key, *draw, *n, out);
                out.push(Expr::Lookup {
                    set: *map,
                    register: 0,
                    data: LookupData::Load(0),
                });
                out.push(Expr::Dnat {
                    address: 0,
                    port: Field::Daddr.words::<F>(),
                });
            }
            Self::Masquerade => out.push(Expr::Masquerade),
            Self::Counter => out.push(Expr::Counter),
            Self::Reject(reject) => out.push(Expr::Reject(*reject)),
            Self::Verdict(verdict) => out.push(Expr::Verdict(*verdict)),
        }
    }
}

/// Loads the fields of a key into registers from 0 on.
fn load_key<F: Family>(key: &[Field], out: &mut Vec<Expr>) {
    load_fields::<F>(key, 0, out);
}

/// Loads the fields of a key that ends with a slot into registers from 0 on.
fn load_slot_key<F: Family>(key: &[Field], draw: Draw, modulus: u32, out: &mut Vec<Expr>) {
    let fields = key.strip_suffix(&[Field::Slot]).unwrap_or(key);
    let register = load_fields::<F>(fields, 0, out);
    match draw {
        Draw::Random => out.push(Expr::Numgen { modulus, register }),
        Draw::Hash => {
            // Just where nft(8) has the address: four registers behind the key.
            let from = register + Field::Slot.words::<F>() + 4;
            out.push(load_address::<F>(F::SADDR_OFFSET, from));
            out.push(Expr::Hash {
                from,
                len: F::ADDRESS_LEN as u32,
                modulus,
                register,
            });
        }
    }
}

/// The fields of a key as nft(8) writes them after translation: the destination is the one that
/// the connection was sent to at first.
fn original<F: Family>(key: &[Field]) -> String {
    let fields = key.iter().map(|field| match field {
        Field::Daddr => format!("ct original {} daddr", F::FAMILY.nft_name()),
        Field::Dport => "ct original proto-dst".into(),
        field => field.nft::<F>(),
    });
    fields.collect::<Vec<_>>().join(" . ")
}

/// Loads the fields of [`original`] into registers from 0 on, and returns the next free one.
fn load_original<F: Family>(key: &[Field], out: &mut Vec<Expr>) -> Register {
    let mut register = 0;
    for field in key {
        match field {
            Field::Daddr => out.push(Expr::CtOriginal {
                key: CtOriginalKey::Daddr,
                register,
            }),
            Field::Dport => out.push(Expr::CtOriginal {
                key: CtOriginalKey::Dport,
                register,
            }),
            field => {
                load_fields::<F>(&[*field], register, out);
            }
        }
        register += field.words::<F>();
    }
    register
}

/// Loads fields into registers from `register` on, and returns the next free one. A slot is in no
/// packet.
fn load_fields<F: Family>(key: &[Field], mut register: Register, out: &mut Vec<Expr>) -> Register {
    for field in key {
        out.push(match field {
            Field::Saddr | Field::SaddrRange => load_address::<F>(F::SADDR_OFFSET, register),
            Field::Daddr => load_address::<F>(F::DADDR_OFFSET, register),
            Field::L4Proto => Expr::Meta {
                key: MetaKey::L4Proto,
                register,
            },
            // The destination port is at the same place in TCP, UDP and SCTP.
            Field::Dport => Expr::Payload {
                base: PayloadBase::Transport,
                offset: 2,
                len: 2,
                register,
            },
            Field::Slot => continue,
        });
        register += field.words::<F>();
    }
    register
}

fn load_address<F: Family>(offset: u32, register: Register) -> Expr {
    Expr::Payload {
        base: PayloadBase::Network,
        offset,
        len: F::ADDRESS_LEN as u32,
        register,
    }
}

fn mask_u32(mask: u32, xor: u32) -> Expr {
    Expr::Bitwise {
        register: 0,
        mask: mask.to_ne_bytes().to_vec(),
        xor: xor.to_ne_bytes().to_vec(),
    }
}

/// Compares the bytes that a prefix covers, masked if the last one is covered in part. The caller
/// sees to it that the prefix is longer than 0.
fn match_prefix<F: Family>(offset: u32, prefix: &Match<(F::Address, u8)>, out: &mut Vec<Expr>) {
    let Match {
        value: (address, len),
        negate,
    } = prefix;
    let mut value = Vec::with_capacity(F::ADDRESS_LEN);
    F::write_address(*address, &mut value);
    if len.is_multiple_of(8) {
        value.truncate(usize::from(*len) / 8);
    }
    let bytes = value.len();
    out.push(Expr::Payload {
        base: PayloadBase::Network,
        offset,
        len: bytes as u32,
        register: 0,
    });
    if !len.is_multiple_of(8) {
        let mask = (0..bytes)
            .map(|byte| {
                let covered = usize::from(*len).saturating_sub(byte * 8).min(8);
                !(0xff_u32 >> covered) as u8
            })
            .collect();
        out.push(Expr::Bitwise {
            register: 0,
            mask,
            xor: vec![0; bytes],
        });
    }
    out.push(Expr::Cmp {
        negate: *negate,
        register: 0,
        value,
    });
}
