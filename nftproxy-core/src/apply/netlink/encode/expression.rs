//! Expressions of rules, for libnftnl. Entry point: [`expression`].

use std::ffi::CStr;

use nftnl::nftnl_sys as sys;

use super::super::constants::*;
use super::super::ffi::Expression;
use super::super::nfproto;
use super::types::verdict_code;
use crate::model::{Family, IpFamily};
use crate::ruleset::expr::{
    CLIENT_HASH_SEED, CtOriginalKey, Expr, LookupData, MetaKey, PayloadBase, Register, Reject,
};

fn register(register: Register) -> u32 {
    NFT_REG32_00 + u32::from(register)
}

/// The register that verdicts go to.
const NFT_REG_VERDICT: u32 = 0;

/// Builds an expression. `None` only if this libnftnl lacks it, or it is not ours to write; the
/// kernel then refuses nothing, so [`Netlink`](super::super::Netlink) checks for it when it starts.
pub(super) fn expression<F: Family>(expr: &Expr) -> Option<Expression> {
    Some(match expr {
        Expr::Payload {
            base,
            offset,
            len,
            register: dreg,
        } => {
            let base = match base {
                PayloadBase::Network => NFT_PAYLOAD_NETWORK_HEADER,
                PayloadBase::Transport => NFT_PAYLOAD_TRANSPORT_HEADER,
            };
            named(c"payload")?
                .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, register(*dreg))
                .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, base)
                .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, *offset)
                .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, *len)
        }
        Expr::Meta {
            key,
            register: dreg,
        } => {
            let key = match key {
                MetaKey::L4Proto => NFT_META_L4PROTO,
                MetaKey::Mark => NFT_META_MARK,
                MetaKey::Iifname => NFT_META_IIFNAME,
            };
            named(c"meta")?
                .u32(sys::NFTNL_EXPR_META_KEY, key)
                .u32(sys::NFTNL_EXPR_META_DREG, register(*dreg))
        }
        Expr::SetMark { register: sreg } => named(c"meta")?
            .u32(sys::NFTNL_EXPR_META_KEY, NFT_META_MARK)
            .u32(sys::NFTNL_EXPR_META_SREG, register(*sreg)),
        Expr::CtStatus { register: dreg } => named(c"ct")?
            .u32(sys::NFTNL_EXPR_CT_KEY, NFT_CT_STATUS)
            .u32(sys::NFTNL_EXPR_CT_DREG, register(*dreg)),
        Expr::CtOriginal {
            key,
            register: dreg,
        } => {
            let key = match (key, F::FAMILY) {
                (CtOriginalKey::Dport, _) => NFT_CT_PROTO_DST,
                (CtOriginalKey::Daddr, IpFamily::V4) => NFT_CT_DST_IP,
                (CtOriginalKey::Daddr, IpFamily::V6) => NFT_CT_DST_IP6,
            };
            named(c"ct")?
                .u32(sys::NFTNL_EXPR_CT_KEY, key)
                .bytes(sys::NFTNL_EXPR_CT_DIR, &[IP_CT_DIR_ORIGINAL])
                .u32(sys::NFTNL_EXPR_CT_DREG, register(*dreg))
        }
        Expr::Update {
            set,
            key,
            data,
            timeout,
        } => named(c"dynset")?
            .str(sys::NFTNL_EXPR_DYNSET_SET_NAME, set.as_str())
            .u32(sys::NFTNL_EXPR_DYNSET_OP, NFT_DYNSET_OP_UPDATE)
            .u32(sys::NFTNL_EXPR_DYNSET_SREG_KEY, register(*key))
            .u32(sys::NFTNL_EXPR_DYNSET_SREG_DATA, register(*data))
            .bytes(sys::NFTNL_EXPR_DYNSET_TIMEOUT, &timeout.to_ne_bytes()),
        Expr::FibType {
            destination,
            register: dreg,
        } => {
            let flags = if *destination {
                NFTA_FIB_F_DADDR
            } else {
                NFTA_FIB_F_SADDR
            };
            named(c"fib")?
                .u32(sys::NFTNL_EXPR_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
                .u32(sys::NFTNL_EXPR_FIB_FLAGS, flags)
                .u32(sys::NFTNL_EXPR_FIB_DREG, register(*dreg))
        }
        Expr::Numgen {
            modulus,
            register: dreg,
        } => named(c"numgen")?
            .u32(sys::NFTNL_EXPR_NG_DREG, register(*dreg))
            .u32(sys::NFTNL_EXPR_NG_MODULUS, *modulus)
            .u32(sys::NFTNL_EXPR_NG_TYPE, NFT_NG_RANDOM),
        Expr::Hash {
            from,
            len,
            modulus,
            register: dreg,
        } => named(c"hash")?
            .u32(sys::NFTNL_EXPR_HASH_SREG, register(*from))
            .u32(sys::NFTNL_EXPR_HASH_DREG, register(*dreg))
            .u32(sys::NFTNL_EXPR_HASH_LEN, *len)
            .u32(sys::NFTNL_EXPR_HASH_MODULUS, *modulus)
            .u32(sys::NFTNL_EXPR_HASH_SEED, CLIENT_HASH_SEED)
            .u32(sys::NFTNL_EXPR_HASH_TYPE, NFT_HASH_JENKINS),
        Expr::Cmp {
            negate,
            register: sreg,
            value,
        } => named(c"cmp")?
            .u32(sys::NFTNL_EXPR_CMP_SREG, register(*sreg))
            .u32(
                sys::NFTNL_EXPR_CMP_OP,
                if *negate { NFT_CMP_NEQ } else { NFT_CMP_EQ },
            )
            .bytes(sys::NFTNL_EXPR_CMP_DATA, value),
        Expr::Bitwise {
            register: both,
            mask,
            xor,
        } => named(c"bitwise")?
            .u32(sys::NFTNL_EXPR_BITWISE_SREG, register(*both))
            .u32(sys::NFTNL_EXPR_BITWISE_DREG, register(*both))
            .u32(sys::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)
            .bytes(sys::NFTNL_EXPR_BITWISE_MASK, mask)
            .bytes(sys::NFTNL_EXPR_BITWISE_XOR, xor),
        Expr::Lookup {
            set,
            register: sreg,
            data,
        } => {
            let lookup = named(c"lookup")?
                .u32(sys::NFTNL_EXPR_LOOKUP_SREG, register(*sreg))
                .str(sys::NFTNL_EXPR_LOOKUP_SET, set.as_str());
            match data {
                LookupData::None => lookup,
                LookupData::Verdict => lookup.u32(sys::NFTNL_EXPR_LOOKUP_DREG, NFT_REG_VERDICT),
                LookupData::Load(dreg) => lookup.u32(sys::NFTNL_EXPR_LOOKUP_DREG, register(*dreg)),
            }
        }
        Expr::LookupAbsent {
            set,
            register: sreg,
        } => named(c"lookup")?
            .u32(sys::NFTNL_EXPR_LOOKUP_SREG, register(*sreg))
            .str(sys::NFTNL_EXPR_LOOKUP_SET, set.as_str())
            .u32(sys::NFTNL_EXPR_LOOKUP_FLAGS, NFT_LOOKUP_F_INV),
        Expr::Verdict(verdict) => {
            let immediate = named(c"immediate")?
                .u32(sys::NFTNL_EXPR_IMM_DREG, NFT_REG_VERDICT)
                .u32(sys::NFTNL_EXPR_IMM_VERDICT, verdict_code(*verdict) as u32);
            match verdict.chain() {
                Some(chain) => immediate.str(sys::NFTNL_EXPR_IMM_CHAIN, &chain.to_string()),
                None => immediate,
            }
        }
        Expr::Dnat { address, port } => named(c"nat")?
            .u32(sys::NFTNL_EXPR_NAT_TYPE, NFT_NAT_DNAT)
            .u32(sys::NFTNL_EXPR_NAT_FAMILY, nfproto(F::FAMILY).into())
            .u32(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, register(*address))
            .u32(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, register(*port)),
        Expr::Counter => named(c"counter")?,
        Expr::Masquerade => {
            named(c"masq")?.u32(sys::NFTNL_EXPR_MASQ_FLAGS, NF_NAT_RANGE_RANDOM_FULLY)
        }
        Expr::Reject(reject) => {
            let (kind, code) = reject_code(*reject, F::FAMILY);
            named(c"reject")?
                .u32(sys::NFTNL_EXPR_REJECT_TYPE, kind)
                .bytes(sys::NFTNL_EXPR_REJECT_CODE, &[code])
        }
        Expr::Foreign(_) => return None,
    })
}

/// The type and code of a reject expression.
pub(in crate::apply::netlink) fn reject_code(reject: Reject, family: IpFamily) -> (u32, u8) {
    match (reject, family) {
        (Reject::TcpReset, _) => (NFT_REJECT_TCP_RST, 0),
        (Reject::PortUnreachable, IpFamily::V4) => (NFT_REJECT_ICMP_UNREACH, ICMP_PORT_UNREACH),
        (Reject::PortUnreachable, IpFamily::V6) => (NFT_REJECT_ICMP_UNREACH, ICMPV6_PORT_UNREACH),
    }
}

fn named(name: &CStr) -> Option<Expression> {
    Expression::new(name)
}
