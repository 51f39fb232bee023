//! What the kernel and nft(8) call types of sets, and verdicts, by number.

use super::super::constants::*;
use crate::model::{Family, IpFamily};
use crate::ruleset::expr::Verdict;
use crate::ruleset::schema::{DataType, Field, Schema};

/// `NFT_SET_…` flags.
pub(in crate::apply::netlink) fn set_flags(schema: &Schema) -> u32 {
    let map = if schema.data == DataType::None {
        0
    } else {
        NFT_SET_MAP
    };
    let interval = if schema.is_interval() {
        NFT_SET_INTERVAL | NFT_SET_CONCAT
    } else {
        0
    };
    let dynamic = if schema.is_dynamic() {
        NFT_SET_TIMEOUT | NFT_SET_EVAL
    } else {
        0
    };
    map | interval | dynamic
}

/// The type that nft(8) gives a concatenation: six bits per field, last one lowest.
pub(in crate::apply::netlink) fn fields_type<F: Family>(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |concatenation, field| {
        let datatype = match (field, F::FAMILY) {
            (Field::Slot, _) => 4, // integer
            (Field::Saddr | Field::SaddrRange | Field::Daddr, IpFamily::V4) => 7, // ipv4_addr
            (Field::Saddr | Field::SaddrRange | Field::Daddr, IpFamily::V6) => 8, // ipv6_addr
            (Field::L4Proto, _) => 12, // inet_proto
            (Field::Dport, _) => 13, // inet_service
        };
        concatenation << 6 | datatype
    })
}

/// The type of a map's data; `None` for a set.
pub(in crate::apply::netlink) fn data_type<F: Family>(data: DataType) -> Option<u32> {
    match data {
        DataType::None => None,
        DataType::Verdict => Some(NFT_DATA_VERDICT),
        DataType::Endpoint => Some(fields_type::<F>(&[Field::Daddr, Field::Dport])),
    }
}

/// The `NFT_…` or `NF_…` code of a verdict.
pub(in crate::apply::netlink) fn verdict_code(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Drop => NF_DROP,
        Verdict::Accept => NF_ACCEPT,
        Verdict::Return => NFT_RETURN,
        Verdict::Jump(_) => NFT_JUMP,
        Verdict::Goto(_) => NFT_GOTO,
    }
}
