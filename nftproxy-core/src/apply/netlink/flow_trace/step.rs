//! What the kernel tells of a packet, message by message.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::attribute::{NFGENMSG_LEN, be32, find, string};
use super::super::constants::*;
use crate::model::IpFamily;

const NFT_MSG_TRACE: u16 = 17;
const NFTA_TRACE_TABLE: u16 = 1;
const NFTA_TRACE_CHAIN: u16 = 2;
const NFTA_TRACE_RULE_HANDLE: u16 = 3;
const NFTA_TRACE_TYPE: u16 = 4;
const NFTA_TRACE_VERDICT: u16 = 5;
const NFTA_TRACE_ID: u16 = 6;
const NFTA_TRACE_NETWORK_HEADER: u16 = 8;
const NFTA_TRACE_TRANSPORT_HEADER: u16 = 9;
const NFTA_TRACE_IIF: u16 = 10;
const NFTA_TRACE_POLICY: u16 = 16;
/// `NFT_TRACETYPE_RULE`
const TYPE_RULE: u32 = 3;

/// One thing that happened to a packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FlowStep {
    /// Which packet it is; numbers come again after a while.
    pub packet: u32,
    /// The family of the table; `None` for one that holds rules of several.
    pub family: Option<IpFamily>,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule's handle; `None` for what the chain does at its end.
    pub rule: Option<u64>,
    /// What it came to, as nft(8) calls it: `accept`, `goto pick-2`, `continue`.
    pub verdict: String,
    /// From where the packet comes and goes to at this point; once for each base chain.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// The number of the interface that it came in by.
    pub input_interface: Option<u32>,
}

pub(super) fn be64(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_be_bytes)
}

/// Reads a message of type `NFT_MSG_TRACE`; `None` for another, or one that is cut off.
pub(super) fn read_step(message_type: u16, body: &[u8]) -> Option<FlowStep> {
    if message_type != NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE {
        return None;
    }
    let (nfgenmsg, attributes) = body.split_at_checked(NFGENMSG_LEN)?;
    let name = |attribute| {
        let name = find(attributes, attribute).and_then(string);
        name.unwrap_or_default().to_owned()
    };
    let number = |attribute| find(attributes, attribute).and_then(be32);
    let verdict = find(attributes, NFTA_TRACE_VERDICT);
    let code = verdict
        .and_then(|verdict| find(verdict, NFTA_VERDICT_CODE))
        .and_then(be32);
    let target = verdict
        .and_then(|verdict| find(verdict, NFTA_VERDICT_CHAIN))
        .and_then(string);
    let is_rule = number(NFTA_TRACE_TYPE) == Some(TYPE_RULE);
    Some(FlowStep {
        packet: number(NFTA_TRACE_ID)?,
        family: match u16::from(nfgenmsg[0]) {
            NFPROTO_IPV4 => Some(IpFamily::V4),
            NFPROTO_IPV6 => Some(IpFamily::V6),
            _ => None,
        },
        table: name(NFTA_TRACE_TABLE),
        chain: name(NFTA_TRACE_CHAIN),
        rule: find(attributes, NFTA_TRACE_RULE_HANDLE)
            .and_then(be64)
            .filter(|_| is_rule),
        verdict: verdict_text(code.or(number(NFTA_TRACE_POLICY)), target),
        ends: ends(
            find(attributes, NFTA_TRACE_NETWORK_HEADER),
            find(attributes, NFTA_TRACE_TRANSPORT_HEADER),
        ),
        input_interface: number(NFTA_TRACE_IIF),
    })
}

fn verdict_text(code: Option<u32>, target: Option<&str>) -> String {
    let target = target.unwrap_or_default();
    match code.map(|code| code as i32) {
        Some(NF_DROP) => "drop".into(),
        Some(1) => "accept".into(),
        Some(2) => "stolen".into(),
        // The number of the queue is in the upper half.
        Some(code) if code & 0xff == 3 && code > 0 => "queue".into(),
        Some(-1) => "continue".into(),
        Some(-2) => "break".into(),
        Some(NFT_JUMP) => format!("jump {target}"),
        Some(NFT_GOTO) => format!("goto {target}"),
        Some(NFT_RETURN) => "return".into(),
        Some(code) => format!("verdict {code}"),
        None => "continue".into(),
    }
}

fn ends(network: Option<&[u8]>, transport: Option<&[u8]>) -> Option<(SocketAddr, SocketAddr)> {
    let network = network?;
    let (source, destination): (IpAddr, IpAddr) = match network.first()? >> 4 {
        4 => {
            let at = |at: usize| <[u8; 4]>::try_from(network.get(at..at + 4)?).ok();
            (
                Ipv4Addr::from(at(12)?).into(),
                Ipv4Addr::from(at(16)?).into(),
            )
        }
        6 => {
            let at = |at: usize| <[u8; 16]>::try_from(network.get(at..at + 16)?).ok();
            (
                Ipv6Addr::from(at(8)?).into(),
                Ipv6Addr::from(at(24)?).into(),
            )
        }
        _ => return None,
    };
    let port = |at: usize| {
        let bytes = transport?.get(at..at + 2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let with_port = |ip, at| SocketAddr::new(ip, port(at).unwrap_or_default());
    Some((with_port(source, 0), with_port(destination, 2)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use super::super::super::attribute::{begin_nest, end_nest, put, put_str};
    use super::*;

    /// A message as the kernel writes it.
    fn message() -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0];
        put_str(&mut body, NFTA_TRACE_TABLE, "nftproxy");
        put(&mut body, NFTA_TRACE_TYPE, &TYPE_RULE.to_be_bytes());
        put(&mut body, NFTA_TRACE_ID, &7u32.to_be_bytes());
        put_str(&mut body, NFTA_TRACE_CHAIN, "services");
        put(&mut body, NFTA_TRACE_RULE_HANDLE, &42u64.to_be_bytes());
        let nest = begin_nest(&mut body, NFTA_TRACE_VERDICT);
        put(&mut body, NFTA_VERDICT_CODE, &NFT_GOTO.to_be_bytes());
        put_str(&mut body, NFTA_VERDICT_CHAIN, "pick-2");
        end_nest(&mut body, nest);
        let mut header = vec![0x45; 20];
        header[12..].copy_from_slice(&[10, 0, 0, 1, 10, 96, 0, 1]);
        put(&mut body, NFTA_TRACE_NETWORK_HEADER, &header);
        put(&mut body, NFTA_TRACE_TRANSPORT_HEADER, &[0x10, 0, 0, 80]);
        body
    }

    #[test]
    fn steps_are_read_and_what_is_cut_off_is_none() {
        let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE;
        let body = message();
        let step = read_step(kind, &body).unwrap();
        let expected = FlowStep {
            packet: 7,
            family: Some(IpFamily::V4),
            table: "nftproxy".into(),
            chain: "services".into(),
            rule: Some(42),
            verdict: "goto pick-2".into(),
            ends: Some((
                "10.0.0.1:4096".parse().unwrap(),
                "10.96.0.1:80".parse().unwrap(),
            )),
            input_interface: None,
        };
        assert_eq!(step, expected);
        assert_eq!(read_step(kind - 1, &body), None);
        for length in 0..body.len() {
            // Whatever is missing, it does not panic.
            let _ = read_step(kind, &body[..length]);
        }
    }
}
