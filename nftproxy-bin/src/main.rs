//! The nftproxy binary.
fn main() {}
