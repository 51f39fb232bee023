//! Configuration files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nftproxy_bin::fuzz::configuration;

fuzz_target!(|bytes: &[u8]| configuration(bytes));
