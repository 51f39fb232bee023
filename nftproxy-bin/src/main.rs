//! The nftproxy binary: reads its arguments, sets logging up, and runs one command.

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

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Before logging is set up there is nowhere else to say it.
            if tracing::dispatcher::has_been_set() {
                error!("{error:#}");
            } else {
                use std::io::Write;
                let _ = writeln!(std::io::stderr(), "Error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let command = Cli::parse_from_env();
    let flags = match &command {
        Command::Run(args) => &args.config,
        Command::Render(args) => &args.config,
    };
    let settings = Settings::load(flags)?;
    logging::init(&settings.log);
    panic::end_process();
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    match &command {
        Command::Run(args) => cmd::run::run(args, &settings),
        Command::Render(args) => cmd::render::run(args, &settings),
    }
}
