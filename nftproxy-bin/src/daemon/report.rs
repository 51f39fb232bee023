//! What the engine did, as log lines. Entry point: [`log`].

use std::time::Duration;

use nftproxy_core::apply::{Culprit, Incident};
use nftproxy_core::diff::Counts;
use nftproxy_core::engine::{Cause, Outcome};
use nftproxy_core::model::IpFamily;
use nftproxy_core::ruleset::name::SetName;
use nftproxy_core::sync::Report;
use tracing::{debug, error, info, warn};

use crate::error::chain;
use crate::leftovers::KUBE_PROXY_TABLE;
use crate::source::api::{Occurrence, Recorder, Regarding};

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
            error!(ipFamily = %family, error = %chain(error), "nftables sync failed");
        }
        Outcome::NoteAppeared { family, note } => warn!(ipFamily = %family, "{note}"),
        Outcome::NoteWent { family, note } => info!(ipFamily = %family, "no longer: {note}"),
        Outcome::Repaired {
            family,
            cause,
            counts,
            took,
            streak,
        } => repaired(*family, cause, counts, *took, *streak),
        Outcome::Harmless { incident, streak } => harmless(incident, *streak),
        Outcome::FlowsForgotten { count } => debug!(count, "deleted stale flows"),
        Outcome::FlowsFailed { error } => {
            warn!(error = %chain(error), "stale flows could not be deleted; retrying");
        }
        Outcome::ChainsDeleted { family, count } => {
            info!(ipFamily = %family, numChains = count, "Deleting stale nftables chains");
        }
        Outcome::ChainDeletionFailed { family, error } => error!(
            ipFamily = %family, err = %chain(error),
            "Unable to delete stale chains; will retry later"
        ),
        Outcome::FailFastFailed { error } => warn!(
            error = %chain(error),
            "clients could not be told of endpoints that are gone or back; retrying"
        ),
        Outcome::TidyFailed { family, error } => {
            debug!(ipFamily = %family, error = %chain(error), "tidying up is left for later");
        }
        // Whoever hands them over says so.
        Outcome::FlowsLeft(_) => {}
        other => debug!(?other, "something else happened"),
    }
}

/// Has an Event written of what the owner of a Service should know.
pub(crate) fn record(outcome: &Outcome, recorder: &Recorder) {
    let Outcome::NoteAppeared { note, .. } = outcome else {
        return;
    };
    let Some(service_port) = note.service_port() else {
        return;
    };
    let (namespace, name) = service_port.service.parts();
    recorder.record(Occurrence {
        regarding: Regarding::Service {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        },
        is_warning: true,
        reason: note.reason(),
        action: "SyncProxyRules",
        note: note.to_string(),
    });
}

fn synced(family: IpFamily, report: &Report, is_recovery: bool) {
    let Report {
        full,
        counts,
        taken_over,
        committed,
        timings,
        is_first,
        ..
    } = report;
    if let Some(remembered) = taken_over {
        let name = family.nft_name();
        info!(
            remembered,
            "removed table {name} {KUBE_PROXY_TABLE}, as ours takes its place"
        );
    }
    let elapsed = timings.total();
    let (added, deleted, bytes) = (
        counts.added_elements,
        counts.deleted_elements,
        committed.bytes,
    );
    if *is_first || is_recovery {
        info!(ipFamily = %family, full, added, deleted, bytes, ?elapsed, "SyncProxyRules complete");
    } else {
        debug!(ipFamily = %family, full, added, deleted, bytes, ?elapsed, "SyncProxyRules complete");
    }
}

/// So many times a minute each is worth a line. Beyond it is a fight, of which less is said.
const INCIDENTS: usize = 10;

fn repaired(family: IpFamily, cause: &Cause, counts: &Counts, took: Duration, streak: usize) {
    let (by, what) = match cause {
        Cause::Touched(incident) => (by(incident), incident.to_string()),
        Cause::Comparison => ("unknown".into(), "found by comparison".into()),
        Cause::OtherFamily => ("unknown".into(), "gone, as that of the other family".into()),
    };
    let (added, deleted, rules) = (counts.added_elements, counts.deleted_elements, counts.rules);
    if streak <= INCIDENTS {
        warn!(
            ipFamily = %family, by, what, added, deleted, rules, ?took,
            "somebody else changed the table; it is repaired"
        );
    } else if streak.is_power_of_two() {
        error!(
            ipFamily = %family, by, what, repairs = streak,
            "somebody else keeps changing the table, and traffic to Services suffers: stop them"
        );
    } else {
        debug!(ipFamily = %family, by, what, added, deleted, rules, ?took, "repaired again");
    }
}

fn harmless(incident: &Incident, streak: usize) {
    let (family, by) = (incident.family, by(incident));
    if streak > INCIDENTS {
        debug!(ipFamily = %family, by, what = %incident, "touched again");
    } else if incident.scope.has_set(SetName::Affinity) {
        warn!(
            ipFamily = %family, by, what = %incident,
            "somebody else changed what session affinity remembers: clients may get other endpoints"
        );
    } else {
        info!(
            ipFamily = %family, by, what = %incident,
            "somebody else touched the table, and it is as it should be"
        );
    }
}

/// Who did it, as far as the kernel says.
fn by(incident: &Incident) -> String {
    if incident.culprits.is_empty() {
        return "unknown".into();
    }
    let culprits: Vec<_> = incident.culprits.iter().map(Culprit::to_string).collect();
    culprits.join(", ")
}
