//! What the engine did, as log lines. Entry point: [`log`].

use nftproxy_core::engine::Outcome;
use nftproxy_core::model::IpFamily;
use nftproxy_core::sync::Report;
use tracing::{debug, error, info, warn};

use crate::error::chain;

/// Logs what happened. What happens with each change is for those who debug.
pub(crate) fn log(outcome: &Outcome) {
    match outcome {
        Outcome::Synced {
            family,
            report,
            is_recovery,
            ..
        } => synced(*family, report, *is_recovery),
        Outcome::Failed { family, error } => {
            error!(%family, error = %chain(error), "sync failed");
        }
        Outcome::NoteAppeared { family, note } => warn!(%family, "{note}"),
        Outcome::NoteWent { family, note } => info!(%family, "no longer: {note}"),
        Outcome::Repaired { family, counts } => warn!(
            %family, added = counts.added_elements, deleted = counts.deleted_elements,
            rules = counts.rules, "the table was not as expected, and is now"
        ),
        Outcome::FlowsForgotten { count } => debug!(count, "deleted stale UDP flows"),
        Outcome::FlowsFailed { error } => {
            warn!(error = %chain(error), "stale UDP flows could not be deleted; retrying");
        }
        Outcome::ChainsDeleted { family, count } => {
            debug!(%family, count, "deleted unused pick chains");
        }
        Outcome::TidyFailed { family, error } => {
            debug!(%family, error = %chain(error), "tidying up is left for later");
        }
        // Whoever hands them over says so.
        Outcome::FlowsLeft(_) => {}
        other => debug!(?other, "something else happened"),
    }
}

fn synced(family: IpFamily, report: &Report, is_recovery: bool) {
    let Report {
        full,
        counts,
        committed,
        timings,
        ..
    } = report;
    let elapsed = timings.total();
    let (added, deleted, bytes) = (
        counts.added_elements,
        counts.deleted_elements,
        committed.bytes,
    );
    if *full || is_recovery {
        info!(%family, full, added, deleted, bytes, ?elapsed, "synced");
    } else {
        debug!(%family, full, added, deleted, bytes, ?elapsed, "synced");
    }
}
