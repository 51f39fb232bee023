//! The nftproxy binary: reads its arguments, sets logging up, and runs one command.

mod check;
mod cmd;
mod config;
mod daemon;
mod error;
mod metrics;
mod panic;
mod source;
mod version;

use std::process::ExitCode;

use cmd::args::{Cli, Command};
use config::Settings;
use daemon::logging;
use tracing::{error, warn};

/// What `nftproxy check` ends with if it cannot tell.
const CANNOT_TELL: u8 = 2;

fn main() -> ExitCode {
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
            Command::Check(_) => ExitCode::from(CANNOT_TELL),
            Command::Run(_) | Command::Render(_) => ExitCode::FAILURE,
        }
    })
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let flags = match command {
        Command::Run(args) => &args.config,
        Command::Check(args) => &args.config,
        Command::Render(args) => &args.config,
    };
    let settings = Settings::load(flags)?;
    let levels = logging::init(&settings.log);
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    match command {
        Command::Run(args) => cmd::run::run(args, &settings, &levels)?,
        Command::Check(args) => return cmd::check::run(args, &settings),
        Command::Render(args) => cmd::render::run(args, &settings)?,
    }
    Ok(ExitCode::SUCCESS)
}
