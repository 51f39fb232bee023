//! What an engine does when it is due, in both families. Entry point: [`Engine::perform`].

use std::time::{Duration, Instant};

use super::flows::{FlowTable, Flows};
use super::half::{Done, Half};
use super::{Cause, Engine, Outcome, Task, cpu};
use crate::apply::{ApplyError, Kernel};
use crate::model::{IpFamily, V4, V6};

impl<K4: Kernel<V4>, K6: Kernel<V6>, T: FlowTable> Engine<K4, K6, T> {
    /// Does a task, due or not, and returns what came of it, in order.
    ///
    /// Nothing is done to the tables before both lists are complete.
    pub fn perform(&mut self, task: Task, now: Instant) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        // Nobody takes it any more, and the kernel would go on filling it.
        self.monitor = None;
        if task == Task::ForgetFlows {
            self.forget_flows(now, &mut outcomes);
        } else if self.is_listed() {
            if !self.schedule.is_watched() {
                self.look();
            }
            self.perform_on_tables(task, now, &mut outcomes);
            if !self.schedule.is_watched() {
                self.generation = self.ask_generation();
            }
        }
        outcomes
    }

    fn perform_on_tables(&mut self, task: Task, now: Instant, outcomes: &mut Vec<Outcome>) {
        match task {
            Task::ForgetFlows => {}
            Task::Sync => self.sync(now, outcomes),
            Task::Repair => self.repair(now, outcomes),
            Task::Look => {
                self.schedule.watched(false, now);
                if self.has_synced() && !self.trusts() {
                    self.sync(now, outcomes);
                }
            }
            Task::Compare => {
                self.schedule.compared(now);
                self.distrust();
                self.sync(now, outcomes);
            }
            Task::Tidy => {
                if let Some(v4) = &mut self.v4 {
                    v4.tidy(self.trims_heap, outcomes);
                }
                if let Some(v6) = &mut self.v6 {
                    v6.tidy(self.trims_heap, outcomes);
                }
                if let Some(fail_fast) = &mut self.fail_fast {
                    fail_fast.tidy(now, outcomes);
                }
                self.schedule.tidied();
            }
        }
    }

    /// Both families, whatever becomes of the first.
    fn sync(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        self.begin(now, outcomes);
        let (used, (v4, v6)) = cpu::used_by(|| {
            let (state, node, ips) = (&self.state, &self.node, &self.local_addresses);
            let v4 = self.v4.as_mut().map(|v4| v4.sync(state, node, ips));
            if is_new_table(&v4)
                && let Some(v6) = &mut self.v6
            {
                v6.syncer.distrust();
            }
            let v6 = self.v6.as_mut().map(|v6| v6.sync(state, node, ips));
            (v4, v6)
        });
        let mut ended = Ended::default();
        self.conclude(IpFamily::V4, v4, now, &mut ended, outcomes);
        self.conclude(IpFamily::V6, v6, now, &mut ended, outcomes);
        let is_success = ended.failures.is_empty();
        if let Some(fail_fast) = self.fail_fast.as_mut().filter(|_| is_success) {
            fail_fast.after_sync(now + ended.took, outcomes);
        }
        let is_held = ended.failures.iter().any(is_held_by_another);
        outcomes.extend(ended.failures);
        // The kernel takes nobody else's change meanwhile, whether it is at work or waits.
        let cost = used.max(ended.in_kernel);
        self.schedule.synced(now + ended.took, cost, is_success);
        if is_held {
            self.schedule.retry_soon(now + ended.took);
        }
        if is_success && ended.n_full == ended.n_families {
            self.schedule.compared(now);
        }
        self.note_revision();
    }

    /// What others did, in both families.
    fn repair(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        self.begin(now, outcomes);
        let (used, (v4, v6)) = cpu::used_by(|| {
            let (state, node, ips) = (&self.state, &self.node, &self.local_addresses);
            let v4 = self.v4.as_mut();
            let v4 = v4.and_then(|v4| v4.repair(state, node, ips).transpose());
            if is_new_table(&v4)
                && let Some(v6) = &mut self.v6
            {
                v6.suspect();
            }
            let v6 = self.v6.as_mut();
            let v6 = v6.and_then(|v6| v6.repair(state, node, ips).transpose());
            (v4, v6)
        });
        let mut ended = Ended::default();
        self.conclude(IpFamily::V4, v4, now, &mut ended, outcomes);
        self.conclude(IpFamily::V6, v6, now, &mut ended, outcomes);
        let is_success = ended.failures.is_empty();
        outcomes.extend(ended.failures);
        self.schedule.repaired(now + ended.took, used, is_success);
        if self.is_doubtful() {
            self.schedule.damaged();
        }
        self.note_revision();
    }

    /// Says what came of a sync or a repair of a family, and hands on what it left behind.
    fn conclude(
        &mut self,
        family: IpFamily,
        result: Option<Result<Done, ApplyError>>,
        now: Instant,
        ended: &mut Ended,
        outcomes: &mut Vec<Outcome>,
    ) {
        let mut done = match result {
            None => return,
            Some(Ok(done)) => done,
            Some(Err(error)) => {
                self.health.damaged(family, now);
                ended.failures.push(Outcome::Failed { family, error });
                return;
            }
        };
        let took = done.report.timings.total();
        ended.took += took;
        ended.in_kernel += done.report.timings.kernel;
        ended.n_families += 1;
        ended.n_full += usize::from(done.report.full);
        if family == IpFamily::V6
            && done.report.is_repair
            && done.report.is_new_table
            && let Some(v4) = self.v4.as_mut().filter(|_| ended.n_full < 2)
        {
            v4.suspect();
        }
        let is_doubtful = match family {
            IpFamily::V4 => self.v4.as_ref().is_some_and(Half::is_doubtful),
            IpFamily::V6 => self.v6.as_ref().is_some_and(Half::is_doubtful),
        };
        if !is_doubtful {
            self.health.mended(family);
        }
        match done.cause {
            Some(cause) if done.report.is_repair => outcomes.push(Outcome::Repaired {
                family,
                streak: self.schedule.streak(family, &cause, now),
                cause,
                counts: done.report.counts,
                took,
            }),
            Some(cause @ Cause::Touched(_)) => {
                let streak = self.schedule.streak(family, &cause, now);
                if let Cause::Touched(incident) = cause {
                    outcomes.push(Outcome::Harmless { incident, streak });
                }
            }
            _ => {}
        }
        let appeared = std::mem::take(&mut done.report.appeared);
        let went = std::mem::take(&mut done.report.went);
        if let Some(synced) = done.synced {
            self.health.synced(family);
            outcomes.push(Outcome::Synced {
                family,
                report: done.report,
                changed: synced.changed,
                is_recovery: synced.is_recovery,
            });
        }
        let appeared = appeared.into_iter();
        outcomes.extend(appeared.map(|note| Outcome::NoteAppeared { family, note }));
        let went = went.into_iter();
        outcomes.extend(went.map(|note| Outcome::NoteWent { family, note }));
        if let Some(flows) = done.flows {
            self.hand_over(flows, now, outcomes);
        }
        if self.is_doubtful() {
            self.schedule.damaged();
        }
    }

    /// What comes before the tables are changed: endpoints that are back are taken out of those that
    /// are gone, as a repair may lead clients there as well, and both families get the names of dirty
    /// Services.
    fn begin(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        if let Some(fail_fast) = &mut self.fail_fast {
            fail_fast.before_sync(&mut self.state, now, outcomes);
        }
        let dirty = self.state.take_dirty();
        // Most instances have both, and need the names twice.
        if let Some(v4) = &mut self.v4 {
            v4.dirty.extend(dirty.iter().cloned());
        }
        if let Some(v6) = &mut self.v6 {
            v6.dirty.extend(dirty);
        }
    }

    /// Makes the next sync compare the tables as a whole.
    pub(super) fn distrust(&mut self) {
        if let Some(v4) = &mut self.v4 {
            v4.syncer.distrust();
        }
        if let Some(v6) = &mut self.v6 {
            v6.syncer.distrust();
        }
    }

    fn is_doubtful(&self) -> bool {
        self.v4.as_ref().is_some_and(Half::is_doubtful)
            || self.v6.as_ref().is_some_and(Half::is_doubtful)
    }

    /// Asks whether anybody has committed anything since the last time we did; if so, the tables
    /// are to be compared as a whole.
    fn look(&mut self) {
        let generation = self.ask_generation();
        if self.has_synced() && (generation.is_none() || generation != self.generation) {
            self.distrust();
        }
    }

    /// Whether the tables are taken to be as they were left.
    fn trusts(&self) -> bool {
        self.v4.as_ref().is_none_or(|v4| v4.syncer.trusts())
            && self.v6.as_ref().is_none_or(|v6| v6.syncer.trusts())
    }

    fn ask_generation(&mut self) -> Option<u32> {
        let v4 = self.v4.as_mut().map(|v4| v4.syncer.generation());
        let v6 = || self.v6.as_mut().map(|v6| v6.syncer.generation());
        // It is the same for all families. A failure means that it is not known.
        v4.or_else(v6)?.ok()?
    }

    fn hand_over(&mut self, flows: Flows, now: Instant, outcomes: &mut Vec<Outcome>) {
        match &mut self.forgetter {
            Some(forgetter) => forgetter.add(flows, now),
            None => outcomes.push(Outcome::FlowsLeft(flows)),
        }
    }

    fn forget_flows(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        let Some(forgetter) = &mut self.forgetter else {
            return;
        };
        match forgetter.perform(now) {
            Ok(0) => {}
            Ok(count) => outcomes.push(Outcome::FlowsForgotten { count }),
            Err(error) => outcomes.push(Outcome::FlowsFailed { error }),
        }
    }
}

/// What a sync or a repair of both families came to.
#[derive(Default)]
struct Ended {
    failures: Vec<Outcome>,
    took: Duration,
    /// The part of it in which the kernel had the batches.
    in_kernel: Duration,
    n_families: usize,
    /// How many of these were compared as a whole.
    n_full: usize,
}

/// Whether it is only that another process has not ended yet.
fn is_held_by_another(outcome: &Outcome) -> bool {
    let Outcome::Failed { error, .. } = outcome else {
        return false;
    };
    matches!(error, ApplyError::Held { .. })
}

/// Whether a table was gone, and is there again.
fn is_new_table(result: &Option<Result<Done, ApplyError>>) -> bool {
    match result {
        Some(Ok(done)) => done.report.is_repair && done.report.is_new_table,
        _ => false,
    }
}
