//! Repetition, percentiles, and what the kernel knows of a process.

use std::fs;
use std::process;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{SysconfVar, sysconf};

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
    spread_of(durations.into_iter().map(ms).collect())
}

/// The spread of numbers.
pub(crate) fn spread_of(mut values: Vec<f64>) -> Spread {
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

/// What a process takes of memory, in MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) now: f64,
    /// Since it started.
    pub(crate) peak: f64,
}

impl Memory {
    /// Of this process.
    pub(crate) fn read() -> Result<Self> {
        Self::of(process::id())
    }

    pub(crate) fn of(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
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

/// The CPU time that a process has used so far, its own and the kernel's, in steps of a clock tick.
pub(crate) fn cpu_time(process: u32) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // The second field, a name in brackets, may contain anything.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields);
    let fields = fields.into_iter().flat_map(str::split_whitespace);
    let ticks: Vec<u32> = fields
        .skip(UTIME - 3)
        .take(2)
        .map_while(|field| field.parse().ok())
        .collect();
    let [utime, stime] = ticks[..] else {
        bail!("finding CPU times in {path}");
    };
    let per_second = sysconf(SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .context("asking how long a clock tick is")?;
    Ok(Duration::from_secs_f64(
        f64::from(utime + stime) / per_second as f64,
    ))
}

/// The number of a field in `/proc/PID/stat`; the next is `stime` (see `proc_pid_stat(5)`).
const UTIME: usize = 14;

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

    #[test]
    fn cpu_time_is_that_of_the_process() {
        let before = cpu_time(process::id()).unwrap();
        let start = Instant::now();
        while cpu_time(process::id()).unwrap() < before + Duration::from_millis(20) {
            assert!(start.elapsed() < Duration::from_secs(10), "it stands still");
        }
        assert!(Memory::read().unwrap().peak > 0.0);
    }
}
