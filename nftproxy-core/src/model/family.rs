//! The two IP families, as types.
//!
//! Everything that ends up in one family's table is generic over [`Family`], so that an IPv6
//! address cannot reach the `ip` table and an IPv4 endpoint costs four bytes.

use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Endpoint, EndpointAddress, SliceEndpoints};

/// An IP family, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4; its table is `ip nftproxy`.
    V4,
    /// IPv6; its table is `ip6 nftproxy`.
    V6,
}

impl IpFamily {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The word Kubernetes uses, and the value of the metrics label `ip_family`.
    pub fn kubernetes_name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The word nft(8) uses for the table family and in expressions (`ip daddr`).
    pub fn nft_name(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

impl Display for IpFamily {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kubernetes_name())
    }
}

/// An IP family, as a type: [`V4`] or [`V6`].
pub trait Family:
    Debug + Clone + Copy + PartialEq + Eq + PartialOrd + Ord + Hash + Default + Send + Sync + 'static
{
    /// An address of this family.
    type Address: Debug
        + Display
        + Clone
        + Copy
        + PartialEq
        + Eq
        + PartialOrd
        + Ord
        + Hash
        + Send
        + Sync
        + Into<IpAddr>;

    /// The family as a value.
    const FAMILY: IpFamily;
    /// Bytes in an address: 4 or 16.
    const ADDRESS_LEN: usize;
    /// Offset of the source address in the network header, in bytes.
    const SADDR_OFFSET: u32;
    /// Offset of the destination address in the network header, in bytes.
    const DADDR_OFFSET: u32;

    /// The address, if it is of this family.
    fn address(ip: IpAddr) -> Option<Self::Address>;
    /// Appends the address in network byte order.
    fn write_address(address: Self::Address, out: &mut Vec<u8>);
    /// Reads an address in network byte order; `None` unless `bytes` has [`Self::ADDRESS_LEN`].
    fn read_address(bytes: &[u8]) -> Option<Self::Address>;
    /// The last address of the prefix of this length that starts at `first`.
    fn last_of_prefix(first: Self::Address, len: u8) -> Self::Address;
    /// A number, or two, in the order of endpoint addresses.
    type SortKey: Ord + Copy;
    /// What sorts as the endpoint's address and port do, but faster.
    fn sort_key(endpoint: EndpointAddress<Self>) -> Self::SortKey;
    /// The slice's endpoints, if it is a slice of this family.
    fn endpoints(endpoints: &SliceEndpoints) -> Option<&[Endpoint<Self>]>;

    /// The prefix's address and length, if it is of this family.
    fn prefix(net: &IpNet) -> Option<(Self::Address, u8)> {
        Some((Self::address(net.network())?, net.prefix_len()))
    }
}

/// IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct V4;

/// IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct V6;

impl Family for V4 {
    type Address = Ipv4Addr;
    type SortKey = u64;
    const FAMILY: IpFamily = IpFamily::V4;
    const ADDRESS_LEN: usize = 4;
    const SADDR_OFFSET: u32 = 12;
    const DADDR_OFFSET: u32 = 16;

    fn address(ip: IpAddr) -> Option<Ipv4Addr> {
        match ip {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }

    fn write_address(address: Ipv4Addr, out: &mut Vec<u8>) {
        out.extend_from_slice(&address.octets());
    }

    fn read_address(bytes: &[u8]) -> Option<Ipv4Addr> {
        <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
    }

    fn last_of_prefix(first: Ipv4Addr, len: u8) -> Ipv4Addr {
        let host_bits = u32::MAX.checked_shr(len.into()).unwrap_or_default();
        Ipv4Addr::from_bits(first.to_bits() | host_bits)
    }

    fn sort_key(endpoint: EndpointAddress<V4>) -> u64 {
        u64::from(endpoint.address.to_bits()) << 16 | u64::from(endpoint.port.get())
    }

    fn endpoints(endpoints: &SliceEndpoints) -> Option<&[Endpoint<V4>]> {
        match endpoints {
            SliceEndpoints::V4(endpoints) => Some(endpoints),
            SliceEndpoints::V6(_) => None,
        }
    }
}

impl Family for V6 {
    type Address = Ipv6Addr;
    type SortKey = (u128, u16);
    const FAMILY: IpFamily = IpFamily::V6;
    const ADDRESS_LEN: usize = 16;
    const SADDR_OFFSET: u32 = 8;
    const DADDR_OFFSET: u32 = 24;

    fn address(ip: IpAddr) -> Option<Ipv6Addr> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address),
        }
    }

    fn write_address(address: Ipv6Addr, out: &mut Vec<u8>) {
        out.extend_from_slice(&address.octets());
    }

    fn read_address(bytes: &[u8]) -> Option<Ipv6Addr> {
        <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from)
    }

    fn last_of_prefix(first: Ipv6Addr, len: u8) -> Ipv6Addr {
        let host_bits = u128::MAX.checked_shr(len.into()).unwrap_or_default();
        Ipv6Addr::from_bits(first.to_bits() | host_bits)
    }

    fn sort_key(endpoint: EndpointAddress<V6>) -> (u128, u16) {
        (endpoint.address.to_bits(), endpoint.port.get())
    }

    fn endpoints(endpoints: &SliceEndpoints) -> Option<&[Endpoint<V6>]> {
        match endpoints {
            SliceEndpoints::V4(_) => None,
            SliceEndpoints::V6(endpoints) => Some(endpoints),
        }
    }
}
