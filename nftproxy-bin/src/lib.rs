//! The program `nftproxy`: reads its arguments, sets logging up, and runs one command.
//!
//! It is a library only so that its parts can be measured (`bench`); nobody else should use it.

#[doc(hidden)]
pub mod bench;
mod check;
mod cmd;
mod config;
mod daemon;
mod error;
mod panic;
mod source;

use std::process::ExitCode;

use cmd::args::{Cli, Command};
use config::Settings;
use daemon::logging;
use tracing::{error, warn};

/// What commands that look at something end with if they cannot tell.
const CANNOT_TELL: u8 = 2;

/// The program.
pub fn main() -> ExitCode {
    panic::end_process();
    let command = Cli::parse_from_env();
    run(&command).unwrap_or_else(|error| {
        // Before logging is set up there is nowhere else to say it.
        if tracing::dispatcher::has_been_set() {
            error!("{error:#}");
        } else {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "Error: {error:#}");
        }
        match command {
            Command::Run(_) | Command::Render(_) => ExitCode::FAILURE,
            Command::Check(_)
            | Command::List(_)
            | Command::Audit(_)
            | Command::Explain(_)
            | Command::Diff(_) => ExitCode::from(CANNOT_TELL),
        }
    })
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(command.config())?;
    logging::init(&settings.log);
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    match command {
        Command::Run(args) => cmd::run::run(args, &settings)?,
        Command::Check(args) => return cmd::check::run(args, &settings),
        Command::Render(args) => cmd::render::run(args, &settings)?,
        Command::List(args) => return cmd::list::run(args, &settings),
        Command::Audit(args) => return cmd::audit::run(args, &settings),
        Command::Explain(args) => return cmd::explain::run(args, &settings),
        Command::Diff(args) => return cmd::diff::run(args, &settings),
    }
    Ok(ExitCode::SUCCESS)
}
