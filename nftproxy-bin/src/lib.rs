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
use cmd::args::{Cli, Command, Instead};
use config::{LogSettings, Settings};
use daemon::logging;
use tracing::{error, info, warn};

/// What `nftproxy check` ends with if it cannot tell.
const CANNOT_TELL: u8 = 2;

/// The program.
pub fn main() -> ExitCode {
    panic::end_process();
    let command = Cli::parse_from_env();
    run(&command).unwrap_or_else(|error| {
        if !tracing::dispatcher::has_been_set() {
            logging::init(&LogSettings::default());
        }
        error!(error = format!("{error:#}"), "command failed");
        match command {
            Command::Check(_) => ExitCode::from(CANNOT_TELL),
            _ => ExitCode::FAILURE,
        }
    })
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let flags = match command {
        Command::Run(args) => &args.config,
        Command::Check(args) => &args.config,
        Command::Cleanup(args) => &args.config,
        Command::Render(args) => &args.config,
    };
    let settings = Settings::load(flags)?;
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
            Instead { cleanup: true, .. } => cmd::cleanup::run()?,
            Instead {
                init_only: true, ..
            } => cmd::init::run(&settings)?,
            _ => cmd::run::run(args, &settings, &levels)?,
        },
        Command::Check(args) => return cmd::check::run(args, &settings),
        Command::Cleanup(_) => cmd::cleanup::run()?,
        Command::Render(args) => cmd::render::run(args, &settings)?,
    }
    Ok(ExitCode::SUCCESS)
}
