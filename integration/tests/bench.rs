//! `make bench` measures what it says: rows, floors, and operation counts. Nothing is said of
//! times, which depend on the machine.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeMap;
use std::process::Command;

use integration::daemon::binary;
use integration::netns::in_sandbox;
use serde_json::Value;

/// The rows of jobs whose names contain `only`, by group and case.
fn rows(only: &str) -> BTreeMap<(String, String), Value> {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("bench.json");
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--quick", "--only", only, "--json"])
        .arg(&json)
        // The one job that needs nftproxy itself has it built; its test has done so already.
        .env("CARGO", "true")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let results: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(results["is_quick"], true);
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let rows = results["rows"].as_array().unwrap().iter();
    rows.map(|row| ((text(row, "group"), text(row, "case")), row.clone()))
        .collect()
}

fn figure(row: &Value, name: &str) -> f64 {
    let figures = row["figures"].as_array().unwrap();
    let figure = figures.iter().find(|figure| figure["name"] == name);
    let figure = figure.unwrap_or_else(|| panic!("no figure {name} in {row}"));
    figure["value"].as_f64().unwrap()
}

fn check_floor(row: &Value) {
    let floor = row["floor"]["p50"].as_f64().unwrap();
    assert!(floor > 0.0, "{row}");
    assert_eq!(row["ours"]["n"], row["floor"]["n"], "{row}");
    let ours = row["ours"]["p50"].as_f64().unwrap();
    let ratio = row["ratio"].as_f64().unwrap();
    assert!((ratio - ours / floor).abs() < 1e-9, "{row}");
}

/// Checks elements deleted and added, and messages: the latter with the two that frame a batch.
fn check_operations(row: &Value, deleted: f64, added: f64, messages: f64) {
    let names = ["deleted", "added", "messages"];
    assert_eq!(
        names.map(|name| figure(row, name)),
        [deleted, added, messages],
        "{row}"
    );
}

/// One change costs the same few operations in a cluster of any size.
#[test]
fn changes_are_counted_exactly() {
    in_sandbox(|| {
        let rows = rows("one change");
        for size in ["100 x 5", "200 x 5", "440 x 1", "20 x 50", "1 x 500"] {
            let row = |case: &str| &rows[&(format!("one change, {size}"), case.to_owned())];
            // A slot's data.
            check_operations(row("endpoint replaced"), 1.0, 1.0, 4.0);
            // The new slot, and the number of them in the verdict; the first one ends a refusal.
            if size.ends_with(" x 1") {
                check_operations(row("endpoint added"), 2.0, 2.0, 6.0);
            } else {
                check_operations(row("endpoint added"), 1.0, 2.0, 5.0);
            }
        }
        let row = |case: &str| &rows[&("one change, 100 x 5".to_owned(), case.to_owned())];
        // A ClusterIP, a verdict, and five slots.
        check_operations(row("Service added"), 0.0, 7.0, 5.0);
        check_operations(row("Service deleted"), 7.0, 0.0, 5.0);
        // Of five Services, one endpoint each: the verdict, the last slot, and the one it fills.
        check_operations(row("a node's endpoints gone"), 15.0, 10.0, 6.0);
        rows.values().for_each(check_floor);
    });
}

/// What a cold sync sends follows from the size of the cluster.
#[test]
fn cold_syncs_are_counted_exactly() {
    in_sandbox(|| {
        let rows = rows("cold sync");
        // A ClusterIP and a verdict for each Service, all slots, and for each hundredth endpoint,
        // which is on this node, one for what it sends to itself.
        for (case, elements) in [
            ("100 x 5", 200 + 500 + 5),
            ("200 x 5", 400 + 1000 + 10),
            ("440 x 1", 880 + 440 + 5),
            ("20 x 50", 40 + 1000 + 10),
            ("1 x 500", 2 + 500 + 5),
            ("200 x 5, dual-stack", 2 * (400 + 1000 + 10)),
        ] {
            let row = &rows[&("cold sync".to_owned(), case.to_owned())];
            assert_eq!(figure(row, "elements"), f64::from(elements), "{row}");
            assert!(figure(row, "peak MiB") >= figure(row, "after MiB"), "{row}");
            check_floor(row);
        }
    });
}

/// A restart sends what changed meanwhile, and nothing if nothing did.
#[test]
fn restarts_are_counted_exactly() {
    in_sandbox(|| {
        let rows = rows("restart");
        for (size, changed) in [("200 x 5", 2.0), ("20 x 50", 1.0), ("440 x 1", 4.0)] {
            for (what, changed) in [
                ("nothing changed", 0.0),
                ("1 % of Services changed", changed),
            ] {
                let row = &rows[&("restart".to_owned(), format!("{size}, {what}"))];
                let operations = (figure(row, "deleted"), figure(row, "added"));
                assert_eq!(operations, (changed, changed), "{row}");
                check_floor(row);
            }
        }
    });
}

/// Everything else runs, each with a floor.
#[test]
fn all_kinds_of_rows_have_a_floor() {
    in_sandbox(|| {
        for (only, expected) in [
            ("rolling update", 1),
            ("storm", 1),
            ("affinity", 1),
            ("balancing", 8),
            ("conntrack", 3),
            ("repair", 9),
            ("decode", 4),
            ("data path", 3),
        ] {
            let rows = rows(only);
            assert_eq!(rows.len(), expected, "{only}");
            rows.values().for_each(check_floor);
        }
    });
}

/// Changes that keep coming are all in force in the end; how long each waits has no floor.
#[test]
fn all_changes_of_a_paced_engine_come_into_force() {
    in_sandbox(|| {
        let rows = rows("pace");
        assert_eq!(rows.len(), 2);
        let n_changes: Vec<_> = rows.values().map(|row| row["ours"]["n"].as_u64()).collect();
        assert_eq!(n_changes, [Some(20), Some(200)]);
    });
}

/// The whole process adds all elements, and none when it starts again; what it asks for and what
/// it gets follows from the way to list.
#[test]
fn the_daemon_is_counted_exactly() {
    binary().unwrap();
    in_sandbox(|| {
        let rows = rows("daemon");
        let row = |group: &str, case: &str| &rows[&(group.to_owned(), case.to_owned())];
        // As for a cold sync.
        for (size, elements) in [("200 x 5", 400 + 1000 + 10), ("20 x 50", 40 + 1000 + 10)] {
            let row = |what: &str| row("daemon", &format!("{size}, {what}"));
            assert_eq!(figure(row("start"), "added"), f64::from(elements));
            assert_eq!(figure(row("restart"), "added"), 0.0);
            for row in [row("start"), row("restart")] {
                assert!(
                    figure(row, "peak MiB") >= figure(row, "steady MiB"),
                    "{row}"
                );
                assert!(figure(row, "steady MiB") > 1.0, "{row}");
                assert_eq!(row["floor"], Value::Null, "{row}");
            }
        }
        for line in ["", ", 20 ms away"] {
            let row = |way: &str| row("daemon, lists", &format!("{way}{line}"));
            // One of each kind; otherwise the refusals, and watches as far as there are any yet.
            assert_eq!(figure(row("streamed, protobuf"), "requests"), 4.0);
            assert!(figure(row("whole, protobuf"), "requests") >= 8.0);
            assert!(figure(row("in pages, protobuf"), "requests") >= 12.0);
            for way in ["streamed", "whole", "in pages"] {
                let [protobuf, json] = ["protobuf", "JSON"]
                    .map(|encoding| figure(row(&format!("{way}, {encoding}")), "MB"));
                assert!(protobuf > 0.0 && json > 1.5 * protobuf, "{way}");
            }
        }
        let row = |what: &str| row("daemon, fleet", &format!("5 nodes, 100 x 5, {what}"));
        assert_eq!(figure(row("start"), "requests each"), 4.0);
        assert!(figure(row("start"), "MB each") > 0.0);
        let back = row("after 2 s of 503");
        // Of each kind, how far the server has come, and a watch.
        assert_eq!(figure(back, "requests each"), 8.0, "{back}");
        assert!(figure(back, "MB each") < 0.01, "{back}");
        let forgotten = row("after 2 s of 503, versions forgotten");
        assert_eq!(figure(forgotten, "requests each"), 12.0, "{forgotten}");
        assert!(row("start")["ours"]["n"] == 5);
        let change = &rows[&(
            "daemon, one change".to_owned(),
            "endpoint replaced, 200 x 5".to_owned(),
        )];
        assert!(change["ours"]["p50"].as_f64().unwrap() > 0.0, "{change}");
    });
}

/// A name that matches nothing is a mistake, not an empty table.
#[test]
fn choosing_nothing_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--quick", "--only", "no such job", "--json"])
        .arg(folder.path().join("bench.json"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        stderr.contains("no job's name contains \"no such job\""),
        "{stderr}"
    );
}

/// An audit looks at all elements of a table.
#[test]
fn audits_are_of_whole_tables() {
    let rows = rows("audit");
    assert_eq!(rows.len(), 2);
    // As for a cold sync.
    for (size, elements) in [("200 x 5", 400 + 1000 + 10), ("20 x 50", 40 + 1000 + 10)] {
        let row = &rows[&("audit".to_owned(), format!("{size}, saved text"))];
        check_floor(row);
        assert_eq!(figure(row, "elements"), f64::from(elements));
    }
}
