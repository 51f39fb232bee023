//! Entries of connection tracking, as bytes.

use std::num::NonZeroU16;

use super::Flow;
use crate::apply::netlink::attribute::{attributes, be32, begin_nest, end_nest, find, put};
use crate::apply::netlink::constants::*;
use crate::model::{Family, IpFamily, Protocol};

/// What the kernel is to hand over of its entries. Kernels before 5.8 hand over all, which
/// [`read_entry`] and the caller sort out.
#[derive(Clone, Copy)]
pub(super) enum Filter<F: Family> {
    /// All of UDP.
    None,
    /// Those of UDP to a port, and an address if given.
    Destination(Option<F::Address>, NonZeroU16),
    /// Those that nothing came back for, of all protocols that Services have.
    Unanswered,
}

impl<F: Family> Filter<F> {
    /// Whose entries are looked at.
    pub(super) fn protocols(self) -> &'static [Protocol] {
        match self {
            Self::None | Self::Destination(..) => &[Protocol::Udp],
            Self::Unanswered => &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
        }
    }
}

pub(super) fn write_filter<F: Family>(filter: Filter<F>, out: &mut Vec<u8>) {
    let (address, port) = match filter {
        Filter::None => (None, None),
        Filter::Destination(address, port) => (address, Some(port)),
        Filter::Unanswered => {
            put(out, CTA_STATUS, &0_u32.to_be_bytes());
            put(out, CTA_STATUS_MASK, &IPS_SEEN_REPLY.to_be_bytes());
            return;
        }
    };
    let mut flags = CTA_FILTER_F_PROTO_NUM;
    let tuple = begin_nest(out, CTA_TUPLE_ORIG);
    if let Some(address) = address {
        flags |= CTA_FILTER_F_IP_DST;
        let ip = begin_nest(out, CTA_TUPLE_IP);
        let mut bytes = Vec::new();
        F::write_address(address, &mut bytes);
        put(out, ip_attributes(F::FAMILY).1, &bytes);
        end_nest(out, ip);
    }
    let protocol = begin_nest(out, CTA_TUPLE_PROTO);
    put(out, CTA_PROTO_NUM, &[Protocol::Udp.number()]);
    if let Some(port) = port {
        flags |= CTA_FILTER_F_PROTO_DST_PORT;
        put(out, CTA_PROTO_DST_PORT, &port.get().to_be_bytes());
    }
    end_nest(out, protocol);
    end_nest(out, tuple);
    let nest = begin_nest(out, CTA_FILTER);
    // In host byte order, unlike all else here.
    put(out, CTA_FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
    end_nest(out, nest);
}

fn ip_attributes(family: IpFamily) -> (u16, u16) {
    match family {
        IpFamily::V4 => (CTA_IP_V4_SRC, CTA_IP_V4_DST),
        IpFamily::V6 => (CTA_IP_V6_SRC, CTA_IP_V6_DST),
    }
}

/// Reads an entry of one of these protocols; `None` for anything else.
pub(super) fn read_entry<F: Family>(message: &[u8], protocols: &[Protocol]) -> Option<Flow<F>> {
    let (source, destination) = ip_attributes(F::FAMILY);
    let original = find(message, CTA_TUPLE_ORIG)?;
    let protocol = find(original, CTA_TUPLE_PROTO)?;
    let number = find(protocol, CTA_PROTO_NUM)?;
    if !protocols.iter().any(|one| number == [one.number()]) {
        return None;
    }
    let address = |tuple, attribute| F::read_address(find(find(tuple, CTA_TUPLE_IP)?, attribute)?);
    let port = |tuple, attribute| {
        let bytes = find(find(tuple, CTA_TUPLE_PROTO)?, attribute)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    };
    let reply = find(message, CTA_TUPLE_REPLY)?;
    let mut identity = Vec::new();
    for (attribute, payload) in attributes(message) {
        if matches!(attribute, CTA_TUPLE_ORIG | CTA_ZONE | CTA_ID) {
            // The tuple is a nest; the kernel looks at the type alone.
            put(&mut identity, attribute, payload);
        }
    }
    let status = find(message, CTA_STATUS).and_then(be32).unwrap_or_default();
    Some(Flow {
        source: address(original, source)?,
        is_answered: status & IPS_SEEN_REPLY != 0,
        destination: (
            address(original, destination)?,
            NonZeroU16::new(port(original, CTA_PROTO_DST_PORT)?)?,
        ),
        reply_source: (address(reply, source)?, port(reply, CTA_PROTO_SRC_PORT)?),
        identity,
    })
}
