//! Dumps of tables and of connection tracking, and notifications.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nftproxy_core::apply::netlink::fuzz::{dump, notifications};

fuzz_target!(|bytes: &[u8]| {
    dump(bytes);
    notifications(bytes);
});
