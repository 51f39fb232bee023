//! What `nftproxy-core` offers to others changes on purpose only: it is compared, item by item, with
//! `nftproxy-core/public-api.txt`. `BLESS=1` writes that file anew; read the difference before
//! committing it, and give it an entry in the changelog.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::path::Path;
use std::process::Command;

use integration::netns::unsupported;
use public_api::Builder;

#[test]
fn the_public_api_is_the_one_that_was_agreed_on() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // A target folder of its own, as the one of the tests is in use.
    let target = root.join("target/public-api");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "rustdoc",
            "--quiet",
            "--package",
            "nftproxy-core",
            "--lib",
            "--target-dir",
        ])
        .arg(&target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        // The format is not stable, and so stable compilers want to be asked like this.
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(&root)
        .status()
        .unwrap();
    assert!(status.success(), "rustdoc failed");
    let api = Builder::from_rustdoc_json(target.join("doc/nftproxy_core.json"))
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build();
    let api = match api {
        Ok(api) => api.to_string(),
        Err(error) => return unsupported(&format!("this compiler writes another format: {error}")),
    };
    let file = root.join("nftproxy-core/public-api.txt");
    if std::env::var_os("BLESS").is_some() {
        return std::fs::write(file, api).unwrap();
    }
    let agreed = std::fs::read_to_string(file).unwrap();
    let missing_in = |other: &str, text: &str, sign: char| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| !other.lines().any(|other| other == *line));
        lines.map(|line| format!("{sign} {line}")).collect()
    };
    let mut changes = missing_in(&api, &agreed, '-');
    changes.extend(missing_in(&agreed, &api, '+'));
    assert!(
        changes.is_empty(),
        "the public API of nftproxy-core has changed; if it was meant to, BLESS=1 agrees:\n{}",
        changes.join("\n")
    );
}
