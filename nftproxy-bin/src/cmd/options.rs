//! `docs/OPTIONS.md` is what the code has: commands, flags, and fields of the configuration file.
//! `BLESS=1` rewrites what stands below the mark in it.

use std::collections::BTreeSet;
use std::fs;

use clap::{Arg, Args, Command, CommandFactory};

use super::args::Cli;
use crate::config::ConfigFlags;
use crate::config::reference::{self, escaped};

const MARK: &str = "<!-- What follows is made from the code. -->\n";
const CONFIGURATION: &str = "Flags of the configuration";

#[test]
fn the_document_of_all_options_is_what_the_code_has() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPTIONS.md");
    let document = fs::read_to_string(path).unwrap();
    let (by_hand, _) = document.split_once(MARK).unwrap();
    let current = format!("{by_hand}{MARK}\n{}", reference_of_all());
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, current).unwrap();
        return;
    }
    let mut lines = document.lines().zip(current.lines());
    let difference = lines.find(|(document, current)| document != current);
    assert!(
        document == current,
        "docs/OPTIONS.md is out of date (BLESS=1 rewrites it); first difference: {difference:?}"
    );
}

fn reference_of_all() -> String {
    let mut program = Cli::command().disable_help_subcommand(true).term_width(100);
    program.build();
    let mut text = String::new();
    let common = ConfigFlags::augment_args(Command::new("nftproxy"));
    let common_ids: BTreeSet<_> = common.get_arguments().map(|arg| arg.get_id()).collect();
    for command in program.get_subcommands() {
        let name = command.get_bin_name().unwrap();
        text.push_str(&format!("## {name}\n\n"));
        let about = command.get_about().unwrap().to_string();
        text.push_str(&format!("{}.\n\n", escaped(&about)));
        let usage = command.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ");
        text.push_str(&format!("```text\n{usage}\n```\n\n"));
        let own = command.get_arguments().filter(|argument| {
            let id = argument.get_id().as_str();
            !common_ids.contains(argument.get_id()) && id != "help" && id != "version"
        });
        text.push_str(&table(own));
        if common_ids.iter().all(|id| has(command, id.as_str())) {
            text.push_str("And the [flags of the configuration](#flags-of-the-configuration).\n\n");
        }
        if let Some(more) = command.get_after_help() {
            text.push_str(&format!("```text\n{more}\n```\n\n"));
        }
    }
    text.push_str(&format!("## {CONFIGURATION}\n\n"));
    text.push_str(&table(
        common
            .get_arguments()
            .filter(|argument| !argument.is_hide_set()),
    ));
    text.push_str(
        "`--help` does not show these, which are accepted because kube-proxy has them:\n\n",
    );
    text.push_str(&reference::hidden_flags());
    text.push_str("\n## Fields of the configuration file\n\n");
    text.push_str(&reference::fields());
    text
}

fn has(command: &Command, id: &str) -> bool {
    command
        .get_arguments()
        .any(|argument| argument.get_id() == id)
}

/// The arguments, one to a row, in the order of their headings.
fn table<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let arguments: Vec<_> = arguments.collect();
    if arguments.is_empty() {
        return String::new();
    }
    let mut headings: Vec<_> = arguments.iter().map(|arg| arg.get_help_heading()).collect();
    let mut seen = BTreeSet::new();
    headings.retain(|heading| seen.insert(*heading));
    let mut text = "| option | group | meaning |\n| --- | --- | --- |\n".to_owned();
    for heading in headings {
        let under = arguments
            .iter()
            .filter(|arg| arg.get_help_heading() == heading);
        for argument in under {
            text.push_str(&format!(
                "| `{}` | {} | {} |\n",
                spelled(argument),
                heading.unwrap_or_default(),
                meaning(argument)
            ));
        }
    }
    text.push('\n');
    text
}

/// `-o, --output FORMAT`, or the name of a positional argument.
fn spelled(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let takes_value = argument.is_positional() || argument.get_action().takes_values();
    let value = if takes_value {
        names.join(" ")
    } else {
        String::new()
    };
    let optional = argument.is_require_equals_set();
    let value = match (value.as_str(), optional) {
        ("", _) => value,
        (_, true) => format!("[={value}]"),
        (_, false) => format!(" {value}"),
    };
    let short = argument.get_short().map(|short| format!("-{short}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    // A flag of one letter is the same with two dashes.
    let spellings: Vec<_> = short.into_iter().chain(long).collect();
    format!("{}{value}", spellings.join(", ")).trim().to_owned()
}

fn meaning(argument: &Arg) -> String {
    let help = argument.get_help().map(ToString::to_string);
    let mut meaning = escaped(&help.unwrap_or_default());
    let choices: Vec<_> = argument
        .get_possible_values()
        .iter()
        .filter(|choice| !choice.is_hide_set())
        .map(|choice| match choice.get_help() {
            Some(help) => format!("`{}`: {}", choice.get_name(), escaped(&help.to_string())),
            None => format!("`{}`", choice.get_name()),
        })
        .collect();
    if !choices.is_empty() && argument.get_action().takes_values() {
        meaning.push_str(&format!(". One of {}", choices.join("; ")));
    }
    let defaults: Vec<_> = argument.get_default_values().iter().collect();
    if !defaults.is_empty()
        && argument.get_action().takes_values()
        && !argument.is_hide_default_value_set()
    {
        let defaults: Vec<_> = defaults
            .iter()
            .map(|value| value.to_string_lossy())
            .collect();
        meaning.push_str(&format!(" [default: {}]", defaults.join(",")));
    }
    meaning.trim_start_matches(". ").to_owned()
}
