//! How many instructions the hot loops take, compared with the limits in `instructions.txt`.
//!
//! Time depends on the machine and on what else it does; instructions hardly do, so a test can
//! hold them to a limit. The program runs itself under valgrind, once for each loop, and fails if
//! one takes more than [`MARGIN_PERCENT`] above what is written down. With `BLESS=1` it writes the
//! counts down anew. Entry point: [`LOOPS`].

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

mod common;

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::process::{Command, ExitCode};

use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::compile::Compilation;
use nftproxy_core::diff::{Delta, diff};
use nftproxy_core::k8s;
use nftproxy_core::model::V4;
use serde_json::json;

use common::{Cluster, observed};

const LIMITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
/// Compilers and C libraries differ by some percent, and losing an algorithm costs far more.
const MARGIN_PERCENT: u64 = 15;

type Loop = (&'static str, fn());

/// What is counted, by the name it has in `instructions.txt`.
const LOOPS: [Loop; 6] = [
    ("compile-1000x5", compile_all),
    ("replace-one-endpoint", replace_one_endpoint),
    ("compile-one-of-1000", compile_one_of_1000),
    ("diff-equal-1000x5", diff_equal),
    ("encode-5000-elements", encode),
    ("slice-from-json", slice_from_json),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let is_given = |name| arguments.iter().any(|argument| argument == name);
    // Only `cargo bench` says this. `cargo test --benches` runs all loops, and `count` just one.
    if !is_given("--bench") {
        let chosen = |(name, _): &Loop| arguments.is_empty() || is_given(name);
        LOOPS.into_iter().filter(chosen).for_each(|(_, run)| run());
        return ExitCode::SUCCESS;
    }
    if cfg!(not(target_arch = "x86_64")) {
        println!("instructions are not counted: the limits are for x86-64");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = Command::new("valgrind").arg("--version").output() {
        println!("instructions are not counted: cannot run valgrind: {error}");
        // In CI, a check that never runs is no check.
        return match env::var_os("CI") {
            Some(_) => ExitCode::FAILURE,
            None => ExitCode::SUCCESS,
        };
    }
    let counts = LOOPS.map(|(name, _)| (name, count(name)));
    if env::var_os("BLESS").is_some() {
        fs::write(LIMITS, written(&counts)).expect("the source tree is writable");
    }
    if compare(&counts) {
        ExitCode::SUCCESS
    } else {
        println!("If it is worth it, `make bless` writes the counts down anew.");
        ExitCode::FAILURE
    }
}

/// Instructions of a loop, without those that set it up.
fn count(name: &str) -> u64 {
    let program = env::current_exe().expect("/proc is mounted");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*measured*")
        .arg(program)
        .arg(name)
        .output()
        .expect("valgrind has just been run");
    let messages = String::from_utf8_lossy(&output.stderr);
    let collected = messages
        .lines()
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    match collected {
        Some(count) if output.status.success() && count > 0 => count,
        _ => panic!("valgrind did not count {name}:\n{messages}"),
    }
}

/// Prints how the counts compare, and returns whether all are within their limits.
fn compare(counts: &[(&str, u64)]) -> bool {
    let text = fs::read_to_string(LIMITS).unwrap_or_default();
    let expected = read(&text);
    let mut all_good = true;
    for (name, count) in counts {
        let Some(&expected) = expected.get(name) else {
            println!("{name:22} {count:>12}  not written down");
            all_good = false;
            continue;
        };
        let is_good = *count <= expected + expected * MARGIN_PERCENT / 100;
        all_good &= is_good;
        let percent = (*count as f64 / expected as f64 - 1.0) * 100.0;
        let verdict = if is_good { "" } else { "  too many" };
        println!("{name:22} {count:>12}  {percent:+6.1} % of {expected}{verdict}");
    }
    all_good
}

fn read(text: &str) -> BTreeMap<&str, u64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (name, count) = line.split_once(char::is_whitespace)?;
            Some((name, count.trim().parse().ok()?))
        })
        .collect()
}

fn written(counts: &[(&str, u64)]) -> String {
    let mut text =
        String::from("# Instructions of the hot loops; `make bless` writes this file.\n");
    for (name, count) in counts {
        writeln!(text, "{name:22} {count:>12}").expect("a string takes everything");
    }
    text
}

/// Marks what is counted: valgrind knows it by its name, so it must stay a function.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn compile_all() {
    let cluster = Cluster::new(1_000, 5);
    measured(|| cluster.ruleset());
}

fn replace_one_endpoint() {
    let mut cluster = Cluster::new(1_000, 5);
    let mut compilation = Compilation::default();
    cluster.update(&mut compilation);
    measured(|| {
        cluster.replace_endpoint(500, true);
        cluster.update(&mut compilation)
    });
}

/// Without storing the slice, as it comes whole.
fn compile_one_of_1000() {
    let mut cluster = Cluster::new(1, 1_000);
    let mut compilation = Compilation::default();
    cluster.update(&mut compilation);
    cluster.replace_endpoint(0, true);
    let changes = measured(|| cluster.update(&mut compilation));
    assert_eq!((changes.delete.len(), changes.add.len()), (1, 1));
}

fn diff_equal() {
    let cluster = Cluster::new(1_000, 5);
    let current = observed(cluster.ruleset());
    let desired = cluster.ruleset();
    measured(|| diff(Some(&current), &desired));
}

fn encode() {
    let netlink = Netlink::open().expect("opening a netlink socket takes no privilege");
    let mut elements = Cluster::new(1_000, 5).creation().add_elements;
    elements.truncate(5_000);
    let delta: Delta<V4> = Delta {
        add_elements: elements,
        ..Delta::default()
    };
    measured(|| netlink.encode(&delta));
}

fn slice_from_json() {
    let endpoints: Vec<_> = (0..100)
        .map(|index| {
            json!({
                "addresses": [format!("10.244.0.{index}")],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("worker-{index}"),
                "targetRef": {"kind": "Pod", "namespace": "bench", "name": format!("pod-{index}")},
                "zone": "zone-a",
            })
        })
        .collect();
    let text = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "service-1-1",
            "namespace": "bench",
            "labels": {"kubernetes.io/service-name": "service-1"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints,
    })
    .to_string();
    let slice = measured(|| {
        let slice = serde_json::from_str(&text).expect("it is an EndpointSlice");
        k8s::endpoint_slice(&slice, "worker-1", &mut Vec::new())
    });
    assert!(slice.is_some(), "the slice is of use");
}
