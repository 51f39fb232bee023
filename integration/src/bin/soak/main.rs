//! The long test of the whole program: `make soak`.
//!
//! The real binary runs on a node of the [lab](integration::lab) behind an API server, while
//! objects change at random, the server, the process and the tables meet with all kinds of
//! misfortune, and connections to Services that do not change are made all the time. Again and
//! again all of that pauses, and then the kernel has to hold what the objects say, nobody may have
//! failed without a reason, and the process may not have grown.
//!
//! The same seed leads to the same misfortunes; when they strike is up to the machine.
//! Read [`soak`] first. `objects`, `churn`, `misfortune`, `damage` and `process` are what happens,
//! `stable` and `probes` what has to go on, `expected`, `windows` and `journal` how it is judged.

#![allow(clippy::print_stdout, reason = "it is made to be read")]

mod api;
mod churn;
mod damage;
mod expected;
mod journal;
mod misfortune;
mod objects;
mod probes;
mod process;
mod soak;
mod stable;
mod windows;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;

use soak::Soak;

/// Runs nftproxy under all kinds of misfortune, and sees that it does what it should.
#[derive(Parser)]
struct Arguments {
    /// What decides over everything that happens; at random if there is none
    #[arg(long)]
    seed: Option<u64>,
    /// How long, as in 90s, 30m or 8h
    #[arg(long, default_value = "2m", value_parser = duration)]
    length: Duration,
}

/// Between two lines that tell how far it is.
const PROGRESS: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("soak with --seed {seed} for {:?}", arguments.length);
    let mut soak = match Soak::new(seed) {
        Ok(soak) => soak,
        Err(error) => {
            println!("The soak could not begin: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = run(&mut soak, arguments.length);
    if result.is_err() {
        println!("The last events:\n{}", soak.journal.last());
        println!("The end of the log:\n{}\n", soak.log());
    }
    summarize(&soak);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Last, where whoever sees only the end of it looks.
        Err(error) => {
            println!("Failed, with --seed {seed}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(soak: &mut Soak, length: Duration) -> Result<()> {
    let mut told = Duration::ZERO;
    while soak.journal.elapsed() < length {
        soak.round()?;
        let elapsed = soak.journal.elapsed();
        if elapsed >= told + PROGRESS {
            told = elapsed;
            let (n_connections, n_exchanges) = soak.probes.counts();
            println!(
                "{:>6} s: {} events, {} pauses, {n_connections} connections, {n_exchanges} \
                 exchanges on kept ones, {} failed while a table was damaged",
                elapsed.as_secs(),
                soak.journal.n_events(),
                soak.figures.n_pauses,
                soak.figures.n_excused
            );
        }
    }
    Ok(())
}

fn summarize(soak: &Soak) {
    let figures = &soak.figures;
    let (n_connections, n_exchanges) = soak.probes.counts();
    println!(
        "{} s, {} events:",
        soak.journal.elapsed().as_secs(),
        soak.journal.n_events()
    );
    for (kind, n) in soak.journal.counts() {
        println!("    {n:>7} {kind}");
    }
    println!(
        "{} pauses with kernel and objects in step, {} audits without a finding",
        figures.n_pauses, figures.n_audits
    );
    println!(
        "{n_connections} connections and {n_exchanges} exchanges on kept ones, {} of them failed \
         while a table was damaged",
        figures.n_excused
    );
    println!("repairs by a process at work: {}", spread(&figures.repairs));
    println!(
        "damage with the process or the API server in trouble: {}",
        spread(&figures.outages)
    );
    let memory = figures.usages.iter().map(|usage| usage.memory);
    let files = figures.usages.iter().map(|usage| usage.n_files);
    if let (Some(first), Some(last)) = (figures.usages.first(), figures.usages.last()) {
        println!(
            "memory at the first pause {} KiB, at the last {} KiB, at most {} KiB; open files {}, \
             {}, at most {}",
            first.memory,
            last.memory,
            memory.max().unwrap_or_default(),
            first.n_files,
            last.n_files,
            files.max().unwrap_or_default()
        );
    }
}

fn spread(durations: &[Duration]) -> String {
    let mut sorted = durations.to_vec();
    sorted.sort();
    match (sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(median), Some(longest)) => {
            let n = sorted.len();
            format!("{n}, median {median:.1?}, longest {longest:.1?}")
        }
        _ => "none".to_owned(),
    }
}

/// A number with a unit: `s`, `m` or `h`.
fn duration(text: &str) -> Result<Duration> {
    let Some((index, unit)) = text.char_indices().last() else {
        bail!("an empty length");
    };
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => bail!("a length ends with s, m or h"),
    };
    let number: u32 = text[..index].parse()?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_a_unit() {
        let seconds = |text| duration(text).map(|length| length.as_secs()).ok();
        assert_eq!(seconds("90s"), Some(90));
        assert_eq!(seconds("2m"), Some(120));
        assert_eq!(seconds("8h"), Some(28_800));
        for wrong in ["", "5", "m", "5d", "-1s", "1½"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
