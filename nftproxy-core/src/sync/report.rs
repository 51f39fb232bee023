//! What a sync did. Entry point: [`Report`].

use std::collections::BTreeSet;
use std::time::Duration;

use crate::apply::Committed;
use crate::compile::Note;
use crate::diff::Counts;

/// What a sync did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether the table was listed and compared as a whole.
    pub full: bool,
    /// What was sent.
    pub counts: Counts,
    /// The size of the batch.
    pub committed: Committed,
    /// What is left out of the Services since this sync.
    pub appeared: BTreeSet<Note>,
    /// What is no longer left out since this sync.
    pub went: BTreeSet<Note>,
    /// What was not as expected, in a full sync after the first or a repair: somebody else changed
    /// the table, or a commit had failed.
    pub is_repair: bool,
    /// Nothing had been synced before.
    pub is_first: bool,
    /// The table was made, or made anew.
    pub is_new_table: bool,
    /// How many entries of session affinity were carried over from another proxy's table, if it was
    /// deleted in favour of this one.
    pub taken_over: Option<usize>,
    /// Where the time went.
    pub timings: Timings,
}

/// Where the time of a sync went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Listing the table, in a full sync, and what affinity remembers, where some must go.
    pub list: Duration,
    /// From state to ruleset; in an ordinary sync, to the delta.
    pub compile: Duration,
    /// Comparing rulesets, in a full sync.
    pub diff: Duration,
    /// Encoding the delta.
    pub encode: Duration,
    /// Sending the batch, and waiting for the kernel's consent.
    pub kernel: Duration,
}

impl Timings {
    /// The whole sync.
    pub fn total(&self) -> Duration {
        let Self {
            list,
            compile,
            diff,
            encode,
            kernel,
        } = *self;
        list + compile + diff + encode + kernel
    }
}
