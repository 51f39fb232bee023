//! Userdata: what nft(8) keeps in the kernel so that listings read as they were written.
//!
//! The kernel does not look into it. The formats are those of nft's own `NFTNL_UDATA_…` types:
//! type, length, value, one byte each for the first two; numbers in host byte order.

use crate::model::Family;
use crate::ruleset::schema::{DataType, Field, SLOT_TYPE_MODULUS, Schema};

const SET_KEY_BYTE_ORDER: u8 = 0;
const SET_DATA_BYTE_ORDER: u8 = 1;
const SET_KEY_TYPEOF: u8 = 3;
const SET_DATA_TYPEOF: u8 = 4;
const SET_DATA_INTERVAL: u8 = 6;
const TYPEOF_EXPR: u8 = 0;
const TYPEOF_DATA: u8 = 1;
const ELEMENT_COMMENT: u8 = 0;
const TABLE_COMMENT: u8 = 0;

/// `enum byteorder` of nft.
const BYTE_ORDER_INVALID: u32 = 0;
const BYTE_ORDER_BIG_ENDIAN: u32 = 2;

/// `enum expr_types` of nft.
const EXPR_VERDICT: u32 = 1;
const EXPR_PAYLOAD: u32 = 7;
const EXPR_META: u32 = 9;
const EXPR_CONCAT: u32 = 13;
const EXPR_NUMGEN: u32 = 23;

/// `enum proto_desc_id` of nft, and the index of a field in that protocol's template.
const PROTO_DESC_TH: u32 = 11;
const PROTO_DESC_IP: u32 = 12;
const PROTO_DESC_IP6: u32 = 13;
const TH_DPORT: u32 = 2;
const IP_SADDR: u32 = 11;
const IP_DADDR: u32 = 12;
const IP6_SADDR: u32 = 8;
const IP6_DADDR: u32 = 9;

const NFT_META_L4PROTO: u32 = 16;
const NFT_NG_RANDOM: u32 = 1;

/// A comment, for a table or an element.
pub(super) fn comment(text: &str) -> Vec<u8> {
    const { assert!(ELEMENT_COMMENT == TABLE_COMMENT) };
    let mut value = text.as_bytes().to_vec();
    value.push(0);
    let mut out = Vec::with_capacity(value.len() + 2);
    put(&mut out, ELEMENT_COMMENT, &value);
    out
}

/// The comment in an element's userdata.
pub(super) fn element_comment(userdata: &[u8]) -> Option<&str> {
    let (&[attribute, length], value) = userdata.split_first_chunk()?;
    let text = value.get(..usize::from(length))?.strip_suffix(&[0])?;
    (attribute == ELEMENT_COMMENT).then(|| std::str::from_utf8(text).ok())?
}

/// A set's userdata: how its key and data were written.
pub(super) fn set<F: Family>(schema: &Schema) -> Vec<u8> {
    let mut out = Vec::new();
    let single = schema.key.len() == 1;
    let order = if single {
        BYTE_ORDER_BIG_ENDIAN
    } else {
        BYTE_ORDER_INVALID
    };
    put_u32(&mut out, SET_KEY_BYTE_ORDER, order);
    if schema.data != DataType::None {
        put_u32(&mut out, SET_DATA_BYTE_ORDER, BYTE_ORDER_INVALID);
    }
    put(&mut out, SET_KEY_TYPEOF, &typeof_fields::<F>(schema.key));
    match schema.data {
        DataType::None => {}
        DataType::Verdict => put(&mut out, SET_DATA_TYPEOF, &typeof_expr(EXPR_VERDICT, &[])),
        DataType::Endpoint => {
            let data = typeof_fields::<F>(&[Field::Daddr, Field::Dport]);
            put(&mut out, SET_DATA_TYPEOF, &data);
        }
    }
    if schema.data != DataType::None {
        put_u32(&mut out, SET_DATA_INTERVAL, 0);
    }
    out
}

fn typeof_fields<F: Family>(fields: &[Field]) -> Vec<u8> {
    if let [field] = fields {
        return typeof_field::<F>(*field);
    }
    let mut members = Vec::new();
    for (index, field) in (0_u8..).zip(fields) {
        put(&mut members, index, &typeof_field::<F>(*field));
    }
    typeof_expr(EXPR_CONCAT, &members)
}

fn typeof_field<F: Family>(field: Field) -> Vec<u8> {
    let ip = |v4, v6| match F::FAMILY {
        crate::model::IpFamily::V4 => (PROTO_DESC_IP, v4),
        crate::model::IpFamily::V6 => (PROTO_DESC_IP6, v6),
    };
    let payload = |(protocol, field): (u32, u32)| {
        let mut data = Vec::new();
        put_u32(&mut data, 0, protocol);
        put_u32(&mut data, 1, field);
        typeof_expr(EXPR_PAYLOAD, &data)
    };
    let mut data = Vec::new();
    match field {
        Field::Saddr | Field::SaddrRange => payload(ip(IP_SADDR, IP6_SADDR)),
        Field::Daddr => payload(ip(IP_DADDR, IP6_DADDR)),
        Field::Dport => payload((PROTO_DESC_TH, TH_DPORT)),
        Field::L4Proto => {
            put_u32(&mut data, 0, NFT_META_L4PROTO);
            typeof_expr(EXPR_META, &data)
        }
        Field::Slot => {
            put_u32(&mut data, 0, NFT_NG_RANDOM);
            put_u32(&mut data, 1, SLOT_TYPE_MODULUS);
            put_u32(&mut data, 2, 0);
            typeof_expr(EXPR_NUMGEN, &data)
        }
    }
}

fn typeof_expr(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_u32(&mut out, TYPEOF_EXPR, kind);
    put(&mut out, TYPEOF_DATA, data);
    out
}

fn put_u32(out: &mut Vec<u8>, attribute: u8, value: u32) {
    put(out, attribute, &value.to_ne_bytes());
}

fn put(out: &mut Vec<u8>, attribute: u8, value: &[u8]) {
    let length = u8::try_from(value.len()).expect("comments and types stay below 256 bytes");
    out.extend_from_slice(&[attribute, length]);
    out.extend_from_slice(value);
}
