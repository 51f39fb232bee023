//! Commands that look at rules: offline on listings of several versions of nft(8), and on kernels.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod addresses;
mod docs;
mod kernel;
mod offline;
mod others;
mod page;
mod schema;
mod server;

use std::path::PathBuf;

use integration::fixtures;

/// The flags that say what the recorded cluster asks of its first node.
fn recorded_cluster() -> Vec<String> {
    let manifests = fixtures::path("all.yaml");
    [
        "--manifests",
        manifests.to_str().unwrap(),
        "--hostname-override",
        fixtures::NODE_NAME,
        "--cluster-cidr",
        "10.244.0.0/16,fd00:10:244::/48",
    ]
    .map(String::from)
    .into()
}

/// A listing of what the real program made of the recorded cluster, beside other programs' tables.
fn recorded_listing(file: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fixtures", "listings", file]
        .iter()
        .collect()
}

/// Those listings: text and JSON, with all that nft(8) can be asked to print in another way.
const LISTINGS: [&str; 10] = [
    "nft-1.0.5.txt",
    "nft-1.0.5.json",
    "nft-1.0.6.txt",
    "nft-1.0.6-numeric.txt",
    "nft-1.0.6-services.txt",
    "nft-1.0.6.json",
    "nft-1.1.3.txt",
    "nft-1.1.3.json",
    "nft-1.1.7.txt",
    "nft-1.1.7.json",
];
