//! What was done, how often, and what came last. Entry point: [`Journal`].

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

/// So many of the last events are kept.
const N_LAST: usize = 60;

/// The events so far.
pub(crate) struct Journal {
    start: Instant,
    counts: BTreeMap<&'static str, usize>,
    last: VecDeque<(Duration, String)>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            counts: BTreeMap::new(),
            last: VecDeque::new(),
        }
    }

    /// Notes an event of a kind, with what there is to say of it.
    pub(crate) fn note(&mut self, kind: &'static str, what: impl fmt::Display) {
        *self.counts.entry(kind).or_default() += 1;
        if self.last.len() == N_LAST {
            self.last.pop_front();
        }
        let event = format!("{kind} {what}");
        self.last.push_back((self.start.elapsed(), event));
    }

    /// How often each kind of event was.
    pub(crate) fn counts(&self) -> &BTreeMap<&'static str, usize> {
        &self.counts
    }

    /// How many events there were.
    pub(crate) fn n_events(&self) -> usize {
        self.counts.values().sum()
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// A line for each of the last events.
    pub(crate) fn last(&self) -> String {
        let line =
            |(at, event): &(Duration, String)| format!("{:>9.3} s  {event}\n", at.as_secs_f64());
        self.last.iter().map(line).collect()
    }
}
