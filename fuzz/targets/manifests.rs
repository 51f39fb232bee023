//! Manifests, and recorded lists.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nftproxy_bin::fuzz::manifest;

fuzz_target!(|bytes: &[u8]| manifest(bytes));
