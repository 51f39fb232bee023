//! The program `nftproxy`: reads its arguments, sets logging up, and runs one command.
//!
//! It is a library only so that its parts can be measured (`bench`) and fuzzed (`fuzz`); nobody else should use it.

#[doc(hidden)]
pub mod bench;
mod check;
mod cmd;
mod config;
mod daemon;
mod error;
#[cfg(fuzzing)]
pub mod fuzz;
mod host_settings;
mod leftovers;
mod metrics;
mod panic;
mod source;
mod version;
mod wall_clock;

use std::fs;
use std::process::ExitCode;

use anyhow::Context;
use cmd::args::{Cli, Command, Instead, Invocation};
use config::{LogSettings, Settings};
use daemon::logging;
use tracing::{error, info, warn};

/// What commands that look at something end with if they cannot tell.
const CANNOT_TELL: u8 = 2;

/// The program.
pub fn main() -> ExitCode {
    panic::end_process();
    let (outcome, otherwise) = match Cli::parse_from_env() {
        Invocation::Work(command) => (run(&command), failure(&command)),
        Invocation::Describe(what) => (
            cmd::describe::run(&what).map(|()| ExitCode::SUCCESS),
            ExitCode::FAILURE,
        ),
    };
    outcome.unwrap_or_else(|error| {
        if !tracing::dispatcher::has_been_set() {
            logging::init(&LogSettings::default());
        }
        error!(error = format!("{error:#}"), "command failed");
        otherwise
    })
}

/// What the process ends with if the command cannot do what it is for.
fn failure(command: &Command) -> ExitCode {
    match command {
        Command::Run(_) | Command::Cleanup(_) | Command::Render(_) => ExitCode::FAILURE,
        Command::Check(_)
        | Command::List(_)
        | Command::Audit(_)
        | Command::Explain(_)
        | Command::Diff(_)
        | Command::Digest(_)
        | Command::Trace(_) => ExitCode::from(CANNOT_TELL),
    }
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(command.config())?;
    let levels = logging::init(&settings.log);
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    match command {
        Command::Run(args) => match &args.instead {
            Instead {
                write_config_to: Some(path),
                ..
            } => {
                fs::write(path, settings.effective.to_yaml())
                    .with_context(|| format!("writing {}", path.display()))?;
                info!(file = %path.display(), "Wrote configuration");
            }
            Instead { cleanup: true, .. } => cmd::cleanup::run(false)?,
            Instead {
                init_only: true, ..
            } => cmd::init::run(&settings)?,
            _ => cmd::run::run(args, &settings, &levels)?,
        },
        Command::Check(args) => return cmd::check::run(args, &settings),
        Command::Cleanup(args) => cmd::cleanup::run(args.only_ours)?,
        Command::Render(args) => cmd::render::run(args, &settings)?,
        Command::List(args) => return cmd::list::run(args, &settings),
        Command::Audit(args) => return cmd::audit::run(args, &settings),
        Command::Explain(args) => return cmd::explain::run(args, &settings),
        Command::Diff(args) => return cmd::diff::run(args, &settings),
        Command::Digest(args) => return cmd::digest::run(args, &settings),
        Command::Trace(args) => return cmd::trace::run(args, &settings),
    }
    Ok(ExitCode::SUCCESS)
}
