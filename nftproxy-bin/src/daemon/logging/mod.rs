//! Where log lines go: standard error, in klog's forms.
//!
//! Verbosity as kube-proxy counts it becomes a level; single modules may have levels of their own,
//! and both may change while the proxy runs. Entry point: [`init`].

mod klog;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{LogSettings, log_directives};
use klog::Klog;

/// kube-proxy logs syncs from this verbosity on.
const VERBOSITY_DEBUG: u32 = 2;
/// And single transactions only from this one on.
const VERBOSITY_TRACE: u32 = 6;

/// What is logged, which can be changed while the proxy runs.
pub(crate) struct Levels {
    handle: Option<reload::Handle<EnvFilter, Registry>>,
    wanted: Mutex<Wanted>,
}

#[derive(Clone)]
struct Wanted {
    level: LevelFilter,
    filter: String,
}

/// Sets logging up for the rest of the process.
pub(crate) fn init(settings: &LogSettings) -> Arc<Levels> {
    let wanted = Wanted {
        level: level(settings.verbosity),
        filter: settings.filter.clone(),
    };
    let (filter, handle) = reload::Layer::new(wanted.env_filter());
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .event_format(Klog(settings.format));
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
    Arc::new(Levels {
        handle: Some(handle),
        wanted: Mutex::new(wanted),
    })
}

fn level(verbosity: u32) -> LevelFilter {
    match verbosity {
        0..VERBOSITY_DEBUG => LevelFilter::INFO,
        VERBOSITY_DEBUG..VERBOSITY_TRACE => LevelFilter::DEBUG,
        VERBOSITY_TRACE.. => LevelFilter::TRACE,
    }
}

impl Wanted {
    fn env_filter(&self) -> EnvFilter {
        // Libraries stay quiet unless everything is asked for: what of theirs matters, we log.
        let others = if self.level == LevelFilter::TRACE {
            LevelFilter::DEBUG
        } else {
            LevelFilter::OFF
        };
        let mut filter = EnvFilter::default()
            .add_directive(others.into())
            .add_directive(directive("nftproxy", self.level));
        for (module, level) in log_directives(&self.filter).unwrap_or_default() {
            filter = filter.add_directive(directive(&format!("nftproxy::{module}"), level));
        }
        filter
    }
}

fn directive(module: &str, level: LevelFilter) -> tracing_subscriber::filter::Directive {
    format!("{module}={level}")
        .parse()
        .expect("a module's path and a level are a directive")
}

impl Levels {
    /// Everything is logged up to this verbosity, but for modules with levels of their own.
    pub(crate) fn set_verbosity(&self, verbosity: u32) {
        self.change(|wanted| wanted.level = level(verbosity));
    }

    /// These modules have levels of their own, and no others.
    pub(crate) fn set_filter(&self, filter: &str) -> Result<(), String> {
        log_directives(filter)?;
        self.change(|wanted| filter.clone_into(&mut wanted.filter));
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Wanted)) {
        let mut wanted = self.wanted();
        change(&mut wanted);
        if let Some(handle) = &self.handle {
            // The subscriber lives as long as the process.
            let _ = handle.reload(wanted.env_filter());
        }
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Levels {
    /// Levels that nobody follows.
    pub(crate) fn for_test() -> Self {
        Self {
            handle: None,
            wanted: Mutex::new(Wanted {
                level: LevelFilter::INFO,
                filter: String::new(),
            }),
        }
    }

    pub(crate) fn level(&self) -> LevelFilter {
        self.wanted().level
    }

    pub(crate) fn filter(&self) -> String {
        self.wanted().filter.clone()
    }
}
