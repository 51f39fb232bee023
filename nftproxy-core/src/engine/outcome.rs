//! What an engine did.

use std::collections::BTreeSet;

use super::flows::Flows;
use crate::apply::ApplyError;
use crate::compile::Note;
use crate::diff::Counts;
use crate::model::{IpFamily, ServiceName};
use crate::sync::Report;

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
    /// The table was compared as a whole, for a change of it had failed or it was distrusted, and
    /// differed from what it should be.
    Repaired {
        /// The family.
        family: IpFamily,
        /// What was sent to mend it, together with what had changed meanwhile.
        counts: Counts,
    },
    /// UDP flows are left that changed rules do not reach: [`FlowOption::HandOver`](super::FlowOption::HandOver).
    FlowsLeft(Flows),
    /// UDP flows were forgotten, so that their next packets meet the rules.
    FlowsForgotten {
        /// How many.
        count: usize,
    },
    /// UDP flows could not be looked for or forgotten; it is tried again.
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
    /// Tidying up failed, which hurts nobody; it is tried again after the next sync.
    TidyFailed {
        /// The family.
        family: IpFamily,
        /// Why.
        error: ApplyError,
    },
}
