//! `docs/AUDIT.md` shows what the program prints. `BLESS=1` rewrites it.

use std::fs;
use std::process::Command;

use integration::daemon::binary;

/// The output of a command line that starts with `nftproxy`, run where the document's paths lead.
fn output(line: &str, root: &str) -> String {
    let output = Command::new(binary().unwrap())
        .args(line.split_whitespace().skip(1))
        .current_dir(root)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_the_document_shows_is_what_is_printed() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let path = format!("{root}/docs/AUDIT.md");
    let document = fs::read_to_string(&path).unwrap();
    let (mut printed, mut n) = (String::new(), 0);
    let mut rest = document.as_str();
    while let Some((before, block)) = rest.split_once("```console\n$ ") {
        let (command, shown) = block.split_once('\n').unwrap();
        let (_, after) = shown.split_once("```\n").unwrap();
        printed.push_str(&format!(
            "{before}```console\n$ {command}\n{}```\n",
            output(command, root)
        ));
        rest = after;
        n += 1;
    }
    printed.push_str(rest);
    assert!(n >= 4);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, printed).unwrap();
    } else {
        assert!(
            printed == document,
            "docs/AUDIT.md is out of date: BLESS=1 rewrites it"
        );
    }
}
