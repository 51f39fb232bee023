//! Bodies of lists and watches, in protobuf.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nftproxy_bin::fuzz::{Encoding, body};

fuzz_target!(|bytes: &[u8]| body(Encoding::Protobuf, bytes));
