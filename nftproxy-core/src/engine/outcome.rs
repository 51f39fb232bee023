//! What an engine did.

use std::collections::BTreeSet;
use std::time::Duration;

use super::flows::Flows;
use crate::apply::{ApplyError, Incident};
use crate::compile::Note;
use crate::diff::Counts;
use crate::model::{IpFamily, ServiceName};
use crate::sync::Report;

/// How a difference between a table and what it should be was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The kernel told that others touched it.
    Touched(Incident),
    /// The whole table was compared: a commit had failed, it was distrusted, or it was time.
    Comparison,
    /// The table of the other family had to be made anew.
    OtherFamily,
}

impl Cause {
    /// One word for each kind, for metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Touched(incident) if incident.is_lost => "lost",
            Self::Touched(_) => "touched",
            Self::Comparison => "comparison",
            Self::OtherFamily => "other-family",
        }
    }
}

/// Something that an engine did, or that came out while it did.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// A family's table agrees with everything that was applied.
    Synced {
        /// The family.
        family: IpFamily,
        /// What it took.
        report: Report,
        /// Services that may have changed since this family agreed last.
        changed: BTreeSet<ServiceName>,
        /// Whether the attempt before had failed.
        is_recovery: bool,
    },
    /// A family's table could not be changed, and is as it was. It is tried again after the sync
    /// period; [`ApplyError::is_retryable`] says whether that can help.
    Failed {
        /// The family.
        family: IpFamily,
        /// Why.
        error: ApplyError,
    },
    /// Something of a Service is left out since now.
    NoteAppeared {
        /// The family.
        family: IpFamily,
        /// What, and why.
        note: Note,
    },
    /// Something of a Service is no longer left out.
    NoteWent {
        /// The family.
        family: IpFamily,
        /// What, and why it was.
        note: Note,
    },
    /// The table differed from what it should be, and was set right.
    Repaired {
        /// The family.
        family: IpFamily,
        /// How that was found out.
        cause: Cause,
        /// What was sent to mend it; after a comparison of the whole table, together with what had
        /// changed in the cluster meanwhile.
        counts: Counts,
        /// How long it took, to look and to mend.
        took: Duration,
        /// How often the same programs have touched this family's table, this time included, within a
        /// minute from the first. Many are a fight.
        streak: usize,
    },
    /// Others touched the table, and it is as it should be, but for what session affinity remembered:
    /// nobody else knows that.
    Harmless {
        /// What was done.
        incident: Incident,
        /// As of [`Outcome::Repaired`].
        streak: usize,
    },
    /// Flows are left that changed rules do not reach: [`FlowOption::HandOver`](super::FlowOption::HandOver).
    FlowsLeft(Flows),
    /// Flows were forgotten, so that their next packets meet the rules.
    FlowsForgotten {
        /// How many.
        count: usize,
    },
    /// Flows could not be looked for or forgotten; it is tried again.
    FlowsFailed {
        /// Why.
        error: ApplyError,
    },
    /// Pick chains that nothing refers to any more were deleted.
    ChainsDeleted {
        /// The family.
        family: IpFamily,
        /// How many; never 0.
        count: usize,
    },
    /// Pick chains that nobody uses could not be deleted. It is tried again after the next sync, which
    /// is a full one.
    ChainDeletionFailed {
        /// In which table.
        family: IpFamily,
        /// Why.
        error: ApplyError,
    },
    /// Clients could not be told of endpoints that are gone, or that are back; it is tried again in a
    /// moment.
    FailFastFailed {
        /// Why.
        error: ApplyError,
    },
    /// Tidying up failed, which hurts nobody; it is tried again after the next sync.
    TidyFailed {
        /// The family.
        family: IpFamily,
        /// Why.
        error: ApplyError,
    },
}
