//! What is printed: the table, and where to look when something failed.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, iter};

use anyhow::{Context, Result};

use crate::machine::Outcome;

/// The lines in a Markdown file that the table stands between.
const START: &str = "<!-- kernels: start -->";
const END: &str = "<!-- kernels: end -->";

/// Whether all these suites ran to their end, and all tests passed.
pub(crate) fn is_fine(outcome: &Outcome, suites: &[String]) -> bool {
    let is_suite_fine = |name: &String| {
        let mut suites = outcome.suites.iter();
        suites.any(|suite| suite.name == *name && suite.is_fine())
    };
    outcome.problem.is_none() && suites.iter().all(is_suite_fine)
}

/// Prints what the table has no room for.
pub(crate) fn print_details(outcome: &Outcome, folder: &Path) {
    for suite in &outcome.suites {
        let seconds = suite.duration.as_secs();
        let (passed, failed) = (suite.passed, suite.failed.len());
        println!(
            "  {}: {passed} passed, {failed} failed, {seconds} s",
            suite.name
        );
        for name in &suite.failed {
            println!("    {name}");
        }
    }
    if let Some(problem) = &outcome.problem {
        println!("  {problem}");
    }
    if outcome.problem.is_some() || !outcome.suites.iter().all(|suite| suite.is_fine()) {
        println!("  see {}", folder.join("suites.log").display());
    }
}

/// The table in Markdown: kernel by suite.
pub(crate) fn table(tried: &[(String, Outcome)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for suite in tried.iter().flat_map(|(_, outcome)| &outcome.suites) {
        if !names.contains(&suite.name.as_str()) {
            names.push(&suite.name);
        }
    }
    let header = ["", "kernel"]
        .into_iter()
        .chain(names.iter().copied())
        .chain(["lacks"]);
    let mut rows = vec![header.map(str::to_owned).collect::<Vec<_>>()];
    for (name, outcome) in tried {
        let cells = names.iter().map(|name| {
            let suite = outcome.suites.iter().find(|suite| suite.name == **name);
            match suite {
                None => "not run".to_owned(),
                Some(suite) if suite.is_fine() => format!("{} passed", suite.passed),
                Some(suite) if suite.exit_code.is_none() => "did not end".to_owned(),
                Some(suite) => {
                    format!("{} passed, {} failed", suite.passed, suite.failed.len())
                }
            }
        });
        let mut lacks: Vec<&str> = Vec::new();
        for lack in outcome.suites.iter().flat_map(|suite| &suite.lacks) {
            if !lacks.contains(&lack.as_str()) {
                lacks.push(lack);
            }
        }
        let lacks = if lacks.is_empty() {
            "–".to_owned()
        } else {
            lacks.join("; ")
        };
        let kernel = if outcome.release.is_empty() {
            "–"
        } else {
            &outcome.release
        };
        rows.push(
            [name.clone(), kernel.to_owned()]
                .into_iter()
                .chain(cells)
                .chain([lacks])
                .collect(),
        );
    }
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if index == 0 {
            let _ = writeln!(
                text,
                "|{}",
                iter::repeat_n(" --- |", row.len()).collect::<String>()
            );
        }
    }
    text
}

/// Puts the table into a Markdown file, between its markers, with today's date.
///
/// # Errors
///
/// If the file cannot be read or written, or has no markers.
pub(crate) fn write(path: &Path, table: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let (before, rest) = text
        .split_once(START)
        .with_context(|| format!("{} has no line {START}", path.display()))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{} has no line {END}", path.display()))?;
    let date = crate::list::run(std::process::Command::new("date").arg("+%-d %B %Y"))?;
    let date = date.trim();
    let new = format!("{before}{START}\n\nRun on {date}:\n\n{table}\n{END}{after}");
    fs::write(path, new).with_context(|| format!("writing {}", path.display()))
}
