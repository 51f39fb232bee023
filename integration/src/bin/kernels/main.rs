//! Runs the suites on other kernels, each in a virtual machine of its own, and prints what came of
//! it: `make kernels`.
//!
//! Read [`main`]: [`list`] gets the kernels, [`root`] makes what they boot into, [`machine`] boots
//! them, [`report`] prints.
#![allow(clippy::print_stdout, reason = "it is a program for the terminal")]

mod list;
mod machine;
mod report;
mod root;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::list::Entry;
use crate::machine::{Accelerator, Outcome};
use crate::root::Built;

/// Runs the suites on other kernels, each booted in a virtual machine.
///
/// Exit code: 0 if all tests passed on all kernels, 1 if not, 2 if it could not be told.
#[derive(Debug, Parser)]
struct Arguments {
    /// A kernel of one's own, in the place of the list: its image, and its /lib/modules/RELEASE if
    /// it has modules. May be given several times.
    #[arg(long = "kernel", value_name = "IMAGE[,MODULES]")]
    kernels: Vec<String>,
    /// The list of kernels.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels.yaml"))]
    list: PathBuf,
    /// Only the kernel of this name, or those whose names contain it.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The suites to run, in this order.
    #[arg(long = "suite", value_name = "NAME", default_values = ["vm", "leftovers", "check", "kernel", "packets", "trace", "damage", "daemon", "embedding"])]
    suites: Vec<String>,
    /// Only tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    test: Option<String>,
    /// Whether the processor itself runs the machines.
    #[arg(long, value_enum, default_value_t = Kvm::Auto)]
    kvm: Kvm,
    /// A Markdown file that has the table between its markers.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kvm {
    /// If it does so within twenty seconds.
    Auto,
    /// Never.
    Off,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            println!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let mut entries = if arguments.kernels.is_empty() {
        list::read(&arguments.list)?
    } else {
        arguments
            .kernels
            .iter()
            .map(|text| Entry::of_argument(text))
            .collect()
    };
    if let Some(text) = &arguments.only {
        let is_name = entries.iter().any(|entry| entry.name == *text);
        entries.retain(|entry| entry.name == *text || !is_name && entry.name.contains(text));
    }
    anyhow::ensure!(!entries.is_empty(), "no kernel has such a name");
    let built = build(&arguments.suites)?;
    let settings = format!(
        "SUITES='{}'\nARGUMENTS='{}'\n",
        arguments.suites.join(" "),
        arguments.test.as_deref().unwrap_or_default()
    );
    let cache = built.folder.join("../kernels");
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    let cache = cache.canonicalize().context("finding the cache")?;

    let mut use_kvm = arguments.kvm == Kvm::Auto && Path::new("/dev/kvm").exists();
    let mut tried = Vec::new();
    for entry in &entries {
        let kernel = entry.fetch(&cache)?;
        let folder = cache
            .join("run")
            .join(entry.name.replace(['/', ' ', ','], "_"));
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        println!("{}: {}", kernel.name, kernel.image.display());
        let archive = root::make(&kernel, &built, &settings, &folder)?;
        let boot = |accelerator| machine::run(&kernel.image, &archive, accelerator, &folder);
        let mut outcome = None;
        if use_kvm {
            outcome = boot(Accelerator::Kvm)?;
            use_kvm = outcome.is_some();
            if !use_kvm {
                println!("  KVM does not work here; going on in emulation");
            }
        }
        if outcome.is_none() {
            outcome = boot(Accelerator::Emulation)?;
        }
        let outcome = outcome.unwrap_or_else(|| Outcome {
            problem: Some(format!(
                "it never came up; see {}",
                folder.join("console.log").display()
            )),
            ..Outcome::default()
        });
        report::print_details(&outcome, &folder);
        tried.push((kernel.name, outcome));
    }
    let table = report::table(&tried);
    println!("\n{table}");
    if let Some(path) = &arguments.write {
        report::write(path, &table)?;
    }
    Ok(tried
        .iter()
        .all(|(_, outcome)| report::is_fine(outcome, &arguments.suites)))
}

/// Builds the suites and the product.
fn build(suites: &[String]) -> Result<Built> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    println!("building the suites");
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new(&cargo);
        list::run(command.args(arguments).current_dir(&workspace))
    };
    cargo(&["build", "--package", "nftproxy-bin"])?;
    let messages = cargo(&["test", "--workspace", "--no-run", "--message-format=json"])?;
    let programs: Vec<(String, PathBuf)> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| {
            let manifest = message["manifest_path"].as_str().unwrap_or_default();
            Path::new(manifest) == Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")
                && message["target"]["kind"][0] == "test"
        })
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, message["executable"].as_str()?.into()))
        })
        .collect();
    let suites = suites
        .iter()
        .map(|suite| {
            let program = programs.iter().find(|(name, _)| name == suite);
            program
                .cloned()
                .with_context(|| format!("there is no suite {suite}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let folder = suites
        .first()
        .and_then(|(_, program)| program.parent()?.parent())
        .context("there are no suites")?;
    Ok(Built {
        folder: folder.to_owned(),
        data: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")],
        suites,
    })
}
