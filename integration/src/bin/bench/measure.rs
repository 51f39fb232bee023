//! Repetition, percentiles, memory.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::table::Spread;

/// How often something is measured: until one of the limits is reached, but some times at least.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) at_least: u32,
    pub(crate) at_most: u32,
    pub(crate) budget: Duration,
}

impl Effort {
    /// Calls `once` with 0, 1, 2…
    pub(crate) fn repeat<T>(self, mut once: impl FnMut(u32) -> Result<T>) -> Result<Vec<T>> {
        let start = Instant::now();
        let mut results = Vec::new();
        for n in 0..self.at_most {
            if n >= self.at_least && start.elapsed() > self.budget {
                break;
            }
            results.push(once(n)?);
        }
        Ok(results)
    }
}

/// Milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The spread of durations, in milliseconds.
pub(crate) fn spread(durations: impl IntoIterator<Item = Duration>) -> Spread {
    let mut values: Vec<_> = durations.into_iter().map(ms).collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let rank = (values.len() as f64 * share).ceil() as usize;
        values
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    };
    Spread {
        n: values.len(),
        p50: at(0.5),
        p99: at(0.99),
    }
}

/// The mean, 0 of nothing.
pub(crate) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1) as f64;
    values.sum::<f64>() / n
}

/// What this process takes of memory, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) now: f64,
    /// Since it started.
    pub(crate) peak: f64,
}

impl Memory {
    pub(crate) fn read() -> Result<Self> {
        let path = "/proc/self/status";
        let status = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        let mib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            kib.map(|kib| kib / 1024.0)
                .with_context(|| format!("finding {field} in {path}"))
        };
        Ok(Self {
            now: mib("VmRSS:")?,
            peak: mib("VmHWM:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let durations = (1..=200).map(Duration::from_millis);
        let Spread { n, p50, p99 } = spread(durations.rev());
        assert_eq!((n, p50, p99), (200, 100.0, 198.0));
        let Spread { n, p50, p99 } = spread([Duration::from_millis(7)]);
        assert_eq!((n, p50, p99), (1, 7.0, 7.0));
    }
}
