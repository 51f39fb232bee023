//! Counts what the engine is told and what it did, for the metrics.
//!
//! It changes nothing and delays nothing. Entry point: [`Tally`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use nftproxy_core::compile::{NoLocalEndpoints, no_local_endpoints};
use nftproxy_core::engine::{Event, Outcome};
use nftproxy_core::model::{EndpointSlice, IpFamily, ServiceName, SliceEndpoints, State, V4, V6};

use crate::metrics::Metrics;
use crate::wall_clock;

/// What was counted and has yet to be told.
pub(crate) struct Tally {
    metrics: Metrics,
    families: Vec<Family>,
    /// Changes from before count for whoever ran then.
    started: Timestamp,
    changed_services: BTreeSet<ServiceName>,
    n_changed_slices: i64,
}

/// One family's part.
struct Family {
    family: IpFamily,
    /// When those changes happened in the cluster that are not in the rules yet.
    triggers: Vec<Timestamp>,
    /// Services with ports that are of no use on this node.
    no_local_endpoints: BTreeMap<ServiceName, NoLocalEndpoints>,
}

impl Tally {
    pub(crate) fn new(metrics: Metrics, families: &[IpFamily]) -> Self {
        let families = families.iter().map(|family| Family {
            family: *family,
            triggers: Vec::new(),
            no_local_endpoints: BTreeMap::new(),
        });
        let tally = Self {
            metrics,
            families: families.collect(),
            started: wall_clock::now(),
            changed_services: BTreeSet::new(),
            n_changed_slices: 0,
        };
        // The start of the loop counts as a request.
        tally.queued();
        tally
    }

    /// The engine is about to be told.
    pub(crate) fn event(&mut self, event: &Event) {
        match event {
            Event::ServiceApplied(service) => self.service_changed(&service.name),
            Event::ServiceDeleted(name) => self.service_changed(name),
            Event::SliceApplied(_) | Event::SliceDeleted(_) => {
                self.n_changed_slices += 1;
                let metrics = &self.metrics.proxy;
                metrics.slice_changes.inc();
                metrics.slice_changes_pending.set(self.n_changed_slices);
            }
            _ => {}
        }
    }

    /// kube-proxy counts each event for each family.
    fn service_changed(&mut self, name: &ServiceName) {
        let metrics = &self.metrics.proxy;
        metrics.service_changes.inc_by(self.families.len() as u64);
        if !self.changed_services.contains(name) {
            self.changed_services.insert(name.clone());
        }
        let n = i64::try_from(self.changed_services.len());
        metrics.service_changes_pending.set(n.unwrap_or(i64::MAX));
    }

    /// A slice is about to be applied that was changed for something that happened then.
    pub(crate) fn triggered(&mut self, at: Timestamp, slice: &mut EndpointSlice, state: &State) {
        if at <= self.started || state.knows_slice(slice) {
            return;
        }
        let family = match slice.endpoints {
            SliceEndpoints::V4(_) => IpFamily::V4,
            SliceEndpoints::V6(_) => IpFamily::V6,
        };
        if let Some(part) = self.of(family) {
            part.triggers.push(at);
        }
    }

    /// There is something to sync.
    pub(crate) fn queued(&self) {
        for part in &self.families {
            self.metrics.proxy.queued(part.family);
        }
    }

    /// The engine did these things, which took so long together.
    pub(crate) fn performed(&mut self, outcomes: &[Outcome], took: Duration, state: &State) {
        let mut of_failures = took;
        let mut n_failures = 0;
        for outcome in outcomes {
            match outcome {
                Outcome::Synced { report, .. } => {
                    of_failures = of_failures.saturating_sub(report.timings.total());
                }
                Outcome::Failed { .. } => n_failures += 1,
                _ => {}
            }
        }
        for outcome in outcomes {
            if let Outcome::Failed { family, .. } = outcome {
                self.failed(*family, of_failures / n_failures);
            } else {
                self.outcome(outcome, state);
            }
        }
    }

    /// Something that the engine did; failed syncs are counted by [`Self::performed`].
    pub(crate) fn outcome(&mut self, outcome: &Outcome, state: &State) {
        let own = &self.metrics.own;
        match outcome {
            Outcome::Synced {
                family,
                report,
                changed,
                ..
            } => {
                own.synced(*family, report);
                let metrics = &self.metrics.proxy;
                metrics.synced(*family, report.full, report.timings.total());
                metrics.succeeded(*family);
                self.nothing_is_pending();
                self.programmed(*family);
                self.count_no_local_endpoints(*family, changed, state);
            }
            Outcome::NoteAppeared { family, note } => own.note(*family, note, true),
            Outcome::NoteWent { family, note } => own.note(*family, note, false),
            Outcome::Repaired { family, cause, .. } => own.repaired(*family, cause),
            Outcome::ChainDeletionFailed { family, .. } => {
                self.metrics.proxy.cleanup_failed(*family);
            }
            _ => {}
        }
    }

    fn failed(&mut self, family: IpFamily, took: Duration) {
        let metrics = &self.metrics.proxy;
        metrics.sync_failed(family);
        // Whatever was tried first, the whole table was tried last.
        metrics.synced(family, true, took);
        self.nothing_is_pending();
        if let Some(part) = self.of(family) {
            // As in kube-proxy: what comes later was not delayed by programming alone.
            part.triggers.clear();
        }
    }

    fn nothing_is_pending(&mut self) {
        self.changed_services.clear();
        self.n_changed_slices = 0;
        self.metrics.proxy.service_changes_pending.set(0);
        self.metrics.proxy.slice_changes_pending.set(0);
    }

    fn programmed(&mut self, family: IpFamily) {
        let now = wall_clock::now();
        let metrics = self.metrics.proxy.clone();
        let Some(part) = self.of(family) else { return };
        for at in std::mem::take(&mut part.triggers) {
            // Clocks of nodes differ.
            let after = now.duration_since(at).try_into().unwrap_or(Duration::ZERO);
            metrics.programmed(family, after);
        }
    }

    fn count_no_local_endpoints(
        &mut self,
        family: IpFamily,
        changed: &BTreeSet<ServiceName>,
        state: &State,
    ) {
        let Some(part) = self.of(family) else { return };
        for name in changed {
            let count = match family {
                IpFamily::V4 => no_local_endpoints::<V4>(state, name),
                IpFamily::V6 => no_local_endpoints::<V6>(state, name),
            };
            if count == NoLocalEndpoints::default() {
                part.no_local_endpoints.remove(name);
            } else {
                part.no_local_endpoints.insert(name.clone(), count);
            }
        }
        let counts = part.no_local_endpoints.values();
        let (internal, external) = counts.fold((0, 0), |(internal, external), count| {
            (internal + count.internal, external + count.external)
        });
        let metrics = &self.metrics.proxy;
        metrics.set_no_local_endpoints(family, internal, external);
    }

    fn of(&mut self, family: IpFamily) -> Option<&mut Family> {
        let mut families = self.families.iter_mut();
        families.find(|part| part.family == family)
    }
}
