//! Scenarios and the rulesets they become: `scenarios/NAME.yaml` in, `golden/NAME.nft` out.
//!
//! `BLESS=1 cargo test -p nftproxy-core --test golden` writes the goldens anew, to be read in
//! review. They say what the ruleset looks like; what it does is the matter of `packets`.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Scenario, load_scenario};
use nftproxy_core::compile::{Compiled, compile, pick_rules};
use nftproxy_core::model::{Family, Node};
use nftproxy_core::render;
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::ruleset::element::Data;
use nftproxy_core::ruleset::expr::{Expr, LookupData};
use nftproxy_core::ruleset::name::ChainName;

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

/// The scenarios, in order of name.
fn scenarios() -> Vec<PathBuf> {
    let mut paths: Vec<_> = directory("scenarios")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

fn golden_of(scenario: &Path) -> PathBuf {
    directory("golden")
        .join(scenario.file_name().unwrap())
        .with_extension("nft")
}

/// Both families as a script, then what was left out, as comments.
fn render_scenario(scenario: &Scenario) -> String {
    let Compiled { v4, v6, notes } = compile(&scenario.state, &scenario.node);
    let mut text = render::ruleset(&v4);
    text.push('\n');
    text.push_str(&render::ruleset(&v6));
    if !notes.is_empty() || !scenario.problems.is_empty() {
        text.push('\n');
    }
    for note in notes {
        let _ = writeln!(text, "# note: {note}");
    }
    for problem in &scenario.problems {
        let _ = writeln!(text, "# problem: {problem}");
    }
    text
}

#[test]
fn scenarios_become_their_goldens() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut failures = String::new();
    for path in scenarios() {
        let actual = render_scenario(&load_scenario(&path, |_| {}));
        let golden = golden_of(&path);
        if bless {
            std::fs::write(&golden, actual).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if actual != expected {
            let _ = writeln!(
                failures,
                "{}:\n{}",
                golden.display(),
                difference(&expected, &actual)
            );
        }
    }
    assert!(
        failures.is_empty(),
        "BLESS=1 accepts these changes:\n{failures}"
    );

    let expected: Vec<_> = scenarios().iter().map(|path| golden_of(path)).collect();
    let mut goldens: Vec<_> = directory("golden")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    goldens.sort();
    assert_eq!(goldens, expected, "goldens and scenarios go together");
}

/// S-19
#[test]
fn the_order_of_arrival_leaves_no_trace() {
    for path in scenarios() {
        let bytes = |reorder: fn(&mut Vec<serde_norway::Value>)| {
            let mut scenario = load_scenario(&path, reorder);
            // Problems come in the order of the objects.
            scenario.problems.clear();
            render_scenario(&scenario)
        };
        let in_order = bytes(|_| {});
        let reversed = bytes(|objects| objects.reverse());
        let interleaved = bytes(|objects| {
            let (even, odd): (Vec<_>, Vec<_>) = objects
                .drain(..)
                .enumerate()
                .partition(|(index, _)| index % 2 == 0);
            objects.extend(odd.into_iter().chain(even).map(|(_, object)| object));
        });
        for shuffled in [reversed, interleaved] {
            let difference = difference(&in_order, &shuffled);
            assert!(in_order == shuffled, "{}:\n{difference}", path.display());
        }
    }
}

/// Some kernels check all verdicts of such a map for each element that leads to it.
#[test]
fn no_element_leads_to_a_verdict_map() {
    fn check<F: Family>(ruleset: &FamilyRuleset<F>) -> usize {
        let mut n_checked = 0;
        for element in &ruleset.elements {
            let Data::Verdict(verdict) = element.data() else {
                continue;
            };
            let mut left: Vec<_> = verdict.chain().into_iter().collect();
            while let Some(chain) = left.pop() {
                let of_pick;
                let rules = match chain {
                    ChainName::Pick(pick) => {
                        of_pick = pick_rules::<F>(pick);
                        &of_pick
                    }
                    chain => &ruleset.skeleton.chains[&chain],
                };
                for expr in rules.iter().flat_map(|rule| &rule.exprs) {
                    match expr {
                        Expr::Verdict(verdict) => left.extend(verdict.chain()),
                        Expr::Lookup {
                            data: LookupData::Verdict,
                            set,
                            ..
                        } => panic!("{} leads to {set}", element.nft()),
                        _ => {}
                    }
                }
                n_checked += 1;
            }
        }
        n_checked
    }
    let n_checked: usize = scenarios()
        .iter()
        .map(|path| {
            let Scenario { state, node, .. } = load_scenario(path, |_| {});
            let without_mark = Node {
                masquerade_mark: None,
                ..node.clone()
            };
            [node, without_mark].map(|node| {
                let Compiled { v4, v6, .. } = compile(&state, &node);
                check(&v4) + check(&v6)
            })
        })
        .map(|[with, without]| with + without)
        .sum();
    assert!(n_checked > 100, "{n_checked}");
}

/// The listing is for people, but those may want to load it all the same.
#[test]
fn nft_accepts_scripts_and_listings() {
    let Some(namespace) = namespace_with_nft() else {
        let reason = "nft, or a network namespace for it, is not to be had";
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        println!("skipped: {reason}");
        return;
    };
    for path in scenarios() {
        let scenario = load_scenario(&path, |_| {});
        let Compiled { v4, v6, .. } = compile(&scenario.state, &scenario.node);
        let listing = render::listing(&v4) + &render::listing(&v6);
        for text in [render_scenario(&scenario), listing] {
            if let Err(error) = nft_check(namespace, &text) {
                panic!("{}: {error}", path.display());
            }
        }
    }
}

fn nft_check(namespace: &[&str], text: &str) -> Result<(), String> {
    let mut child = Command::new("unshare")
        .args(namespace)
        .args(["nft", "--check", "--file", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The arguments of unshare(1) with which nft(8) works, so that no host is touched.
fn namespace_with_nft() -> Option<&'static [&'static str]> {
    [&["--map-root-user", "--net"][..], &["--net"][..]]
        .into_iter()
        .find(|namespace| {
            Command::new("unshare")
                .args(*namespace)
                .args(["nft", "list", "ruleset"])
                .output()
                .is_ok_and(|output| output.status.success())
        })
}

/// The lines that only one of the texts has, each element on a line of its own.
fn difference(expected: &str, actual: &str) -> String {
    let lines = |text: &str| -> Vec<String> {
        let pieces = text.lines().flat_map(|line| {
            let (command, elements) = match line.split_once(" { ") {
                Some((command, elements)) if command.contains(" element ") => (command, elements),
                _ => (line, ""),
            };
            let elements: Vec<_> = elements
                .trim_end_matches(" }")
                .split(", ")
                .map(|element| format!("{command} {element}"))
                .collect();
            elements
        });
        pieces.collect()
    };
    let (expected, actual) = (lines(expected), lines(actual));
    let mut text = String::new();
    for line in expected.iter().filter(|line| !actual.contains(line)) {
        let _ = writeln!(text, "- {line}");
    }
    for line in actual.iter().filter(|line| !expected.contains(line)) {
        let _ = writeln!(text, "+ {line}");
    }
    if text.is_empty() {
        text.push_str("  the same lines in another order\n");
    }
    text
}

#[test]
fn differences_are_told_by_element() {
    let expected = "add chain a\nadd element t s { 1, 2 }\n";
    let actual = "add chain a\nadd element t s { 1, 3 }\n";
    assert_eq!(
        difference(expected, actual),
        "- add element t s 2\n+ add element t s 3\n"
    );
}
