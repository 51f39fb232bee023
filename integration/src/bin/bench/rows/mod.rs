//! What is measured: each module contributes jobs.

mod affinity;
mod audit;
mod balancing;
mod burst;
mod change;
mod cold;
mod conntrack;
mod daemon;
mod data_path;
mod decode;
mod pace;
mod repair;
mod restart;

use std::time::Duration;

use anyhow::Result;

use crate::cluster::Size;
use crate::floor::Cost;
use crate::measure::{Effort, mean, ms, spread};
use crate::table::Row;
pub(crate) use daemon::follow;

/// What one process measures.
pub(crate) struct Job {
    /// What `--only` chooses by.
    pub(crate) name: String,
    pub(crate) run: Box<dyn Fn() -> Result<Vec<Row>>>,
    /// Why it runs only if it is asked for.
    pub(crate) skipped_because: Option<&'static str>,
}

impl Job {
    fn new(name: String, run: impl Fn() -> Result<Vec<Row>> + 'static) -> Self {
        Self {
            name,
            run: Box::new(run),
            skipped_because: None,
        }
    }

    /// Whether `--only` with this value chooses it. A job that has to be asked for wants the
    /// beginning of its name.
    pub(crate) fn is_chosen(&self, only: &str) -> bool {
        match self.skipped_because {
            Some(_) => !only.is_empty() && self.name.starts_with(only),
            None => self.name.contains(only),
        }
    }
}

/// All jobs, in the order in which they run.
pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    [
        cold::jobs,
        change::jobs,
        burst::jobs,
        pace::jobs,
        restart::jobs,
        repair::jobs,
        affinity::jobs,
        balancing::jobs,
        conntrack::jobs,
        decode::jobs,
        audit::jobs,
        data_path::jobs,
        daemon::jobs,
    ]
    .into_iter()
    .flat_map(|jobs| jobs(scale))
    .collect()
}

/// Whether it is for real.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) is_quick: bool,
}

/// The batch is sent again, finished, to a namespace in the same state.
const REPLAY: &str = "the same batch sent again, finished, to a kernel in the same state";

impl Scale {
    fn small(self) -> Size {
        self.pick(Size::new(100, 5), Size::new(1_000, 5))
    }

    fn medium(self) -> Size {
        self.pick(Size::new(200, 5), Size::new(10_000, 5))
    }

    /// As many Services as an API server may have of a kind, more or less.
    fn many_services(self) -> Size {
        self.pick(Size::new(440, 1), Size::new(44_000, 1))
    }

    /// 250,000 endpoints.
    fn many_endpoints(self) -> Size {
        self.pick(Size::new(20, 50), Size::new(5_000, 50))
    }

    fn one_service(self) -> Size {
        self.pick(Size::new(1, 500), Size::new(1, 5_000))
    }

    fn sizes(self) -> [Size; 5] {
        [
            self.small(),
            self.medium(),
            self.many_services(),
            self.many_endpoints(),
            self.one_service(),
        ]
    }

    fn pick<T>(self, quick: T, real: T) -> T {
        if self.is_quick { quick } else { real }
    }

    /// How often to repeat what is over in milliseconds.
    fn effort(self) -> Effort {
        Effort {
            at_least: self.pick(3, 20),
            at_most: self.pick(3, 200),
            budget: Duration::from_secs(2),
        }
    }

    /// How often to repeat what takes a good part of a second.
    fn few(self) -> Effort {
        Effort {
            at_least: self.pick(2, 3),
            at_most: self.pick(2, 5),
            budget: Duration::from_secs(4),
        }
    }
}

/// A row of syncs: what they cost, and what there was to do, on average.
fn sync_row(group: &str, floor_is: &str, case: String, costs: &[Cost]) -> Row {
    let ours = spread(costs.iter().map(|cost| cost.total));
    let floor = spread(costs.iter().map(|cost| cost.floor));
    let own = spread(costs.iter().map(own));
    let average = |figure: fn(&Cost) -> usize| mean(costs.iter().map(|cost| figure(cost) as f64));
    Row::ms(group, floor_is, case, ours, floor)
        .with("own ms", own.p50)
        .with("deleted", average(|cost| cost.counts.deleted_elements))
        .with("added", average(|cost| cost.counts.added_elements))
        .with("messages", average(|cost| cost.messages))
        .with("bytes", average(|cost| cost.bytes))
}

/// The time that was ours: what the kernel did with our batches taken off.
fn own(cost: &Cost) -> Duration {
    cost.total.saturating_sub(cost.timings.kernel)
}

/// Milliseconds of the longest time in the kernel for one batch.
fn longest_batch(costs: &[Cost]) -> f64 {
    let longest = costs.iter().map(|cost| cost.longest_batch).max();
    longest.map_or(0.0, ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_has_to_be_asked_for_is_not_chosen_by_chance() {
        let job = |name: &str| Job::new(name.into(), || Ok(Vec::new()));
        let ordinary = job("cold sync");
        let on_request = Job {
            skipped_because: Some("as it takes long"),
            ..job("daemon")
        };
        let chosen = |only: &str| [&ordinary, &on_request].map(|job| job.is_chosen(only));
        assert_eq!(chosen(""), [true, false]);
        assert_eq!(chosen("sync"), [true, false]);
        assert_eq!(chosen("o"), [true, false]);
        assert_eq!(chosen("daemon"), [false, true]);
    }
}
