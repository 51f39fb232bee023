//! Where log lines go: standard error, as text or JSON.

use tracing::level_filters::LevelFilter;

use crate::config::{LogFormat, LogSettings};

/// kube-proxy logs single transactions from verbosity 4 on.
const VERBOSITY_DEBUG: u32 = 2;
const VERBOSITY_TRACE: u32 = 6;

/// Sets logging up for the rest of the process.
pub(crate) fn init(settings: &LogSettings) {
    let level = match settings.verbosity {
        0..VERBOSITY_DEBUG => LevelFilter::INFO,
        VERBOSITY_DEBUG..VERBOSITY_TRACE => LevelFilter::DEBUG,
        VERBOSITY_TRACE.. => LevelFilter::TRACE,
    };
    // Libraries stay quiet unless everything is asked for: what of theirs matters, we log.
    let others = if level == LevelFilter::TRACE {
        LevelFilter::DEBUG
    } else {
        LevelFilter::OFF
    };
    let filter = tracing_subscriber::EnvFilter::default()
        .add_directive(others.into())
        .add_directive(
            format!("nftproxy={level}")
                .parse()
                .expect("a crate name and a level are a directive"),
        );
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match settings.format {
        LogFormat::Text => builder.with_target(false).with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}
