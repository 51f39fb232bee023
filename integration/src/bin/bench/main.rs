//! What changes cost, beside what the kernel alone needs for the same: `make bench`.
//!
//! Measurements are grouped into jobs, each in a process of its own, so that memory is the job's
//! and nothing is left of the one before. A job yields rows; see [`rows`]. Everything happens in
//! network namespaces made for it.

#![allow(clippy::print_stdout, reason = "the table is the program's purpose")]
#![allow(
    clippy::print_stderr,
    reason = "it takes minutes, and says where it is"
)]

mod cluster;
mod floor;
mod measure;
mod netlink;
mod rows;
mod table;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use rows::{Job, Scale};
use table::{Results, Row};

/// Measures what changes of a cluster cost, beside what the kernel alone needs for the same
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    /// Run only jobs whose name contains this; `daemon`, which builds nftproxy first, runs only so
    #[arg(long, value_name = "SUBSTRING", default_value = "")]
    only: String,
    /// Where to write the results as JSON
    #[arg(long, value_name = "PATH", default_value = "target/bench.json")]
    json: PathBuf,
    /// Print tables in Markdown
    #[arg(long)]
    markdown: bool,
    /// Take small clusters, to see that it works
    #[arg(long)]
    quick: bool,
    /// Run the job of this name in this process, and print its rows as JSON
    #[arg(long, value_name = "JOB")]
    row: Option<String>,
    /// Be so many nodes of the cluster of --kubeconfig, for the job `daemon, fleet`
    #[arg(long, value_name = "N", requires = "kubeconfig", hide = true)]
    nodes: Option<usize>,
    #[arg(long, value_name = "PATH", hide = true)]
    kubeconfig: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let jobs = rows::jobs(Scale {
        is_quick: arguments.quick,
    });
    if let (Some(n_nodes), Some(kubeconfig)) = (arguments.nodes, &arguments.kubeconfig) {
        return rows::follow(kubeconfig, n_nodes);
    }
    if let Some(name) = &arguments.row {
        let mut jobs = jobs.iter();
        let job = jobs.find(|job| job.name == *name);
        let rows = (job
            .with_context(|| format!("there is no job {name:?}"))?
            .run)()?;
        println!("{}", serde_json::to_string(&rows)?);
        return Ok(());
    }

    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for job in &jobs {
        if !job.is_chosen(&arguments.only) {
            if let (Some(reason), "") = (job.skipped_because, arguments.only.as_str()) {
                eprintln!("{0}: skipped, {reason}; --only {0} runs it", job.name);
            }
            continue;
        }
        let start = Instant::now();
        eprint!("{} ... ", job.name);
        match in_child(job, arguments.quick) {
            Ok(found) => {
                eprintln!("{:.1} s", start.elapsed().as_secs_f64());
                rows.extend(found);
            }
            Err(error) => {
                eprintln!("failed: {error:#}");
                failed.push(job.name.as_str());
            }
        }
    }
    let tables = if arguments.markdown {
        table::markdown(&rows)
    } else {
        table::text(&rows)
    };
    print!("{tables}");
    let results = Results {
        version: env!("CARGO_PKG_VERSION"),
        kernel: kernel()?,
        cpu: cpu()?,
        cpus: available_parallelism().map_or(1, usize::from),
        is_quick: arguments.quick,
        rows,
    };
    write(&arguments.json, &results)?;
    ensure!(failed.is_empty(), "not measured: {}", failed.join("; "));
    ensure!(
        !results.rows.is_empty(),
        "no job's name contains {:?}",
        arguments.only
    );
    Ok(())
}

/// Runs a job in a child process.
fn in_child(job: &Job, is_quick: bool) -> Result<Vec<Row>> {
    let binary = env::current_exe().context("finding this program's own file")?;
    let mut command = Command::new(binary);
    command.args(["--row", &job.name]);
    if is_quick {
        command.arg("--quick");
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("starting a process for it")?;
    ensure!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).context("reading its rows")
}

fn write(path: &PathBuf, results: &Results) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let json = serde_json::to_string_pretty(results)?;
    fs::write(path, json + "\n").with_context(|| format!("writing {}", path.display()))?;
    eprintln!("written to {}", path.display());
    Ok(())
}

fn kernel() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    Ok(release.trim().into())
}

fn cpu() -> Result<String> {
    let path = "/proc/cpuinfo";
    let info = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = model.map_or("unknown", |model| {
        model.trim_start_matches([' ', '\t', ':'])
    });
    Ok(name.into())
}
