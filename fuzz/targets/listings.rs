//! Saved listings, as text and in JSON, through an audit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nftproxy_core::inspect::{Desired, audit};
use nftproxy_core::listing;
use nftproxy_core::model::{IpFamily, Node, State};
use nftproxy_core::ruleset::Table;

fuzz_target!(|text: &str| {
    let table = Table::default();
    let listing = listing::read(text, &table);
    let (state, node) = (State::default(), Node::default());
    let desired = Desired {
        state: &state,
        node: &node,
    };
    let report = audit(
        desired,
        &listing,
        &table,
        &[IpFamily::V4, IpFamily::V6],
        |_| (),
    );
    for unread in &report.unread {
        let _ = unread.to_string();
    }
});
