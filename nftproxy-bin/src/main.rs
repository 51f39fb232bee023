//! The nftproxy binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    nftproxy_bin::main()
}
