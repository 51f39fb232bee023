//! The ways in for what a kernel says, for fuzzing only (`cfg(fuzzing)`; see `fuzz/`).

use super::attribute::{NFGENMSG_LEN, find, messages, string};
use super::conntrack::read_any;
use super::constants::*;
use super::decode::Decoder;
use super::{Reader, encode};
use crate::diff::diff;
use crate::model::{Family, V4, V6};
use crate::ruleset::name::SetName;
use crate::ruleset::{FamilyRuleset, Table};

/// Reads messages as the dumps of a table. What comes of it can be compared, and what that says
/// can be written down again.
pub fn dump(bytes: &[u8]) {
    dump_of::<V4>(bytes);
    dump_of::<V6>(bytes);
}

fn dump_of<F: Family>(bytes: &[u8]) {
    let table = Table::default();
    let mut decoder = Decoder::<F>::new(&table);
    for message in messages(bytes) {
        let attributes = message.body.get(NFGENMSG_LEN..).unwrap_or_default();
        match message.message_type & 0xff {
            NFT_MSG_NEWCHAIN => decoder.chain(attributes),
            NFT_MSG_NEWRULE => decoder.rule(attributes),
            NFT_MSG_NEWSET => drop(decoder.set(attributes)),
            NFT_MSG_NEWSETELEM => {
                let set = find(attributes, NFTA_SET_ELEM_LIST_SET).and_then(string);
                if let Some(set) = set.and_then(SetName::parse) {
                    decoder.elements(set, attributes);
                }
            }
            _ => read_any::<F>(attributes),
        }
    }
    drop(decoder.slots());
    let observed = decoder.finish();
    if observed.ruleset.elements.is_empty() && observed.ruleset.skeleton.chains.is_empty() {
        return;
    }
    let delta = diff(Some(&observed), &FamilyRuleset::empty());
    encode::batch(&delta, &table, true, false);
    let delta = diff(None, &observed.ruleset);
    encode::batch(&delta, &table, false, true);
}

/// Reads notifications, in datagrams that each begin with their length in two bytes.
pub fn notifications(mut bytes: &[u8]) {
    let mut reader = Reader::new(&Table::default());
    let mut incidents = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (datagram, rest) = rest.split_at(length);
        reader.take(datagram, &mut incidents);
        bytes = rest;
    }
    for incident in incidents {
        let _ = incident.to_string();
    }
}
