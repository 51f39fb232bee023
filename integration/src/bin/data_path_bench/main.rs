//! What a packet through a node costs, with nftproxy's rules and without: `data_path_bench` as
//! root, on a machine with nothing else to do.
//!
//! It prints a line of JSON for each figure on standard output, and a table on standard error. All
//! measuring is in [`data_path`].

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it is a program, and its output is what it is for"
)]

mod bed;
mod cluster;
mod data_path;
mod frame;

use anyhow::Result;
use serde_json::json;

fn main() -> Result<()> {
    let costs = data_path::measure()?;
    eprintln!("{:44} {:>9} {:>9}", "ns per packet", "median", "tenth");
    for cost in &costs {
        let name = format!("{}, {}", cost.traffic, cost.rules);
        let (median, tenth) = (cost.median.as_nanos() as u64, cost.tenth.as_nanos() as u64);
        eprintln!("{name:44} {median:>9} {tenth:>9}");
        println!(
            "{}",
            json!({"name": name, "unit": "ns/packet", "median": median, "tenth": tenth})
        );
    }
    eprintln!("{:44} {:>9} {:>9}", "ratio", "measured", "target");
    for ratio in data_path::ratios(&costs) {
        let (name, value, target) = (ratio.name, ratio.value, ratio.target);
        eprintln!("{name:44} {value:9.2} {target:9.2}");
        println!(
            "{}",
            json!({"name": name, "unit": "ratio", "value": value, "target": target})
        );
    }
    Ok(())
}
