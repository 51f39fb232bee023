//! What `oracle` asks about the network it is in, answered for the lab.
//!
//! The oracle is a file of nftproxy-core's property tests, where the module of this name answers
//! for addresses that are made up. It knows nothing of Services.

use std::net::{Ipv4Addr, Ipv6Addr};

use integration::lab::{Dual, NODE, NODE_SECOND, POD_GATEWAY};
use nftproxy_core::model::Family;

const LOOPBACK: Dual = Dual {
    v4: Ipv4Addr::LOCALHOST,
    v6: Ipv6Addr::LOCALHOST,
};

/// A family that has a counterpart for each IPv4 address.
pub(crate) trait Twin: Family {
    /// The oracle names no address but loopback.
    fn parse(address: &str) -> Self::Address {
        assert_eq!(address, "127.0.0.1", "the lab has no twin of it");
        Self::of(LOOPBACK)
    }

    fn of(address: Dual) -> Self::Address {
        let mut both = address.both().into_iter();
        both.find_map(Self::address).unwrap()
    }
}

impl<F: Family> Twin for F {}

/// Whether the node has the address itself.
pub(crate) fn is_local<F: Twin>(address: F::Address) -> bool {
    [NODE, NODE_SECOND, POD_GATEWAY, LOOPBACK]
        .into_iter()
        .any(|local| F::of(local) == address)
}
