//! When to do what. Everything here is a function of times that the owner hands in.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::outcome::Cause;
use crate::model::IpFamily;

/// How long after a sync unused pick chains are deleted; see
/// [`Syncer::delete_unused_chains`](crate::sync::Syncer::delete_unused_chains).
const TIDY_DELAY: Duration = Duration::from_secs(1);

/// Pauses that repairs may owe: half a second's worth of repairs. Somebody who damages the table in a
/// loop has a twentieth of a core at most.
const REPAIR_CREDIT: Duration = Duration::from_millis(9500);
/// And no more than that is owed.
const REPAIR_DEBT_MAX: Duration = Duration::from_secs(3600);
/// Pauses that syncs may owe, where they are paced by their cost: 50 ms worth of syncs.
const SYNC_CREDIT: Duration = Duration::from_millis(950);
/// The pauses between syncs that are paced by their cost, whatever that is.
const SYNC_PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_secs(1)];
/// When a failed repair is tried again; each time it fails, twice as long after.
const REPAIR_RETRY: Duration = Duration::from_millis(250);
/// When a sync is tried again that has to wait for another process to end.
const HELD_RETRY: Duration = Duration::from_secs(2);
/// Beyond that many failures the pause grows no more.
const REPAIR_DOUBLINGS: u32 = 16;
/// Repairs within so much time belong together.
const STREAK: Duration = Duration::from_secs(60);
/// So many culprits are told apart.
const CULPRITS_MAX: usize = 16;

/// When to sync: a lone change at once; after that, what changes within a pause together at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// No sync starts earlier than this after the one before has ended (`minSyncPeriod`).
    ///
    /// `None` paces syncs by what they cost, as CPU time or as time in which the kernel's ruleset is
    /// locked: 19 times that, so that they have a twentieth of the time in the long run. The first
    /// 50 ms of work are on credit, which comes back in a second. A pause is 5 ms at least and 1 s at
    /// most.
    pub min_sync_period: Option<Duration>,
    /// A failed sync is retried after this, or as soon as something else changes (`syncPeriod`).
    /// Where nobody tells of changes by others, the kernel is asked for them as often.
    pub sync_period: Duration,
    /// How long after it was compared the last time a table is compared as a whole, whether there
    /// is a reason to or not. Where many nodes start together, their owners spread it.
    pub comparison_period: Duration,
}

impl Default for Pace {
    /// By cost, 30 s and 1 h; the latter two are kube-proxy's.
    fn default() -> Self {
        Self {
            min_sync_period: None,
            sync_period: Duration::from_secs(30),
            comparison_period: Duration::from_secs(3600),
        }
    }
}

/// Something for the owner to have done by [`Engine::perform`](super::Engine::perform).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Set right what others did to the tables.
    Repair,
    /// Bring the tables in step.
    Sync,
    /// Ask the kernel whether others have committed anything.
    Look,
    /// Compare the tables with what they should be, as a whole.
    Compare,
    /// Forget UDP flows, one step of it.
    ForgetFlows,
    /// Do what has time: delete unused chains, sweep what affinity remembers, give memory back.
    Tidy,
}

/// A task, and when it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// What to do.
    pub task: Task,
    /// When; never before the time that was asked with.
    pub at: Instant,
}

/// What is to be done to the tables, and when.
#[derive(Debug)]
pub(super) struct Schedule {
    pace: Pace,
    /// Something changed that is not yet synced.
    is_pending: bool,
    /// No sync starts earlier, but to try again what has failed.
    not_before: Instant,
    sync_budget: Budget,
    retry_at: Option<Instant>,
    tidy_at: Option<Instant>,
    /// Somebody else has touched a table.
    is_damaged: bool,
    /// No repair starts earlier.
    no_repair_before: Instant,
    repair_budget: Budget,
    /// So many repairs have failed in a row.
    failed_repairs: u32,
    /// The latest ones.
    streaks: Vec<Streak>,
    compare_at: Option<Instant>,
    /// Nobody tells of changes by others, so that is when to ask.
    look_at: Option<Instant>,
}

/// Repairs after the same programs, from the first on.
#[derive(Debug)]
struct Streak {
    family: IpFamily,
    /// Their names; none if it is not known who did it.
    culprits: BTreeSet<String>,
    n_repairs: usize,
    since: Instant,
}

impl Schedule {
    pub(super) fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            is_pending: false,
            not_before: now,
            sync_budget: Budget::new(SYNC_CREDIT, SYNC_CREDIT + SYNC_PAUSES[1], now),
            retry_at: None,
            tidy_at: None,
            is_damaged: false,
            no_repair_before: now,
            repair_budget: Budget::new(REPAIR_CREDIT, REPAIR_DEBT_MAX, now),
            failed_repairs: 0,
            streaks: Vec::new(),
            compare_at: None,
            look_at: Some(now + pace.sync_period),
        }
    }

    /// There is something to sync.
    pub(super) fn changed(&mut self) {
        self.is_pending = true;
    }

    pub(super) fn is_pending(&self) -> bool {
        self.is_pending
    }

    /// There is something to repair.
    pub(super) fn damaged(&mut self) {
        self.is_damaged = true;
    }

    /// Whether nothing has changed since a sync that succeeded.
    pub(super) fn is_in_step(&self) -> bool {
        !self.is_pending && self.retry_at.is_none()
    }

    /// The next task, given when syncs may start at all.
    pub(super) fn next(&self, ready_at: Option<Instant>) -> Option<(Instant, Task)> {
        let ready_at = ready_at?;
        let sync_at = if self.is_pending {
            Some(self.not_before)
        } else {
            self.retry_at
        };
        // Of those that are due at the same time the first comes first.
        let tasks = [
            (
                Task::Repair,
                self.is_damaged.then_some(self.no_repair_before),
            ),
            (Task::Sync, sync_at),
            (Task::Look, self.look_at),
            (Task::Compare, self.compare_at),
            // What has time waits until there is nothing else.
            (Task::Tidy, self.tidy_at.filter(|_| sync_at.is_none())),
        ];
        tasks
            .into_iter()
            .filter_map(|(task, at)| Some((at?.max(ready_at), task)))
            .min_by_key(|(at, _)| *at)
    }

    /// A sync has ended that cost so much; at its end it is `now`.
    pub(super) fn synced(&mut self, now: Instant, cost: Duration, is_success: bool) {
        self.is_pending = false;
        self.sync_budget.spend(now, cost);
        self.not_before = match self.pace.min_sync_period {
            Some(period) => now + period,
            None => {
                let [least, most] = SYNC_PAUSES;
                let affordable_at = self.sync_budget.affordable_at();
                affordable_at.clamp(now + least, now + most)
            }
        };
        self.retry_at = (!is_success).then_some(now + self.pace.sync_period);
        self.tidy_at = is_success.then_some(now + TIDY_DELAY);
    }

    /// The sync that has failed just now may succeed in a moment.
    pub(super) fn retry_soon(&mut self, now: Instant) {
        let soon = now + HELD_RETRY;
        self.retry_at = self.retry_at.map(|at| at.min(soon));
    }

    /// The tables have been looked at for repair, which used so much of the CPU; at the end of that
    /// it is `now`.
    pub(super) fn repaired(&mut self, now: Instant, used: Duration, is_success: bool) {
        self.is_damaged = !is_success;
        self.repair_budget.spend(now, used);
        let retry_at = if is_success {
            self.failed_repairs = 0;
            now
        } else {
            let pause = REPAIR_RETRY * 2_u32.saturating_pow(self.failed_repairs);
            self.failed_repairs = (self.failed_repairs + 1).min(REPAIR_DOUBLINGS);
            now + pause.min(self.pace.sync_period)
        };
        self.no_repair_before = self.repair_budget.affordable_at().max(retry_at);
        self.tidy_at.get_or_insert(now + TIDY_DELAY);
    }

    /// A family's table was looked at because of something: how many times within a minute, for
    /// the same culprits.
    pub(super) fn streak(&mut self, family: IpFamily, cause: &Cause, now: Instant) -> usize {
        let culprits: BTreeSet<_> = match cause {
            Cause::Touched(incident) => {
                let names = incident.culprits.iter();
                names.map(|culprit| culprit.name.clone()).collect()
            }
            Cause::Comparison | Cause::OtherFamily => BTreeSet::new(),
        };
        let is_over = |streak: &Streak| now.saturating_duration_since(streak.since) > STREAK;
        self.streaks.retain(|streak| !is_over(streak));
        let same = |streak: &&mut Streak| streak.family == family && streak.culprits == culprits;
        if let Some(streak) = self.streaks.iter_mut().find(same) {
            streak.n_repairs += 1;
            return streak.n_repairs;
        }
        if self.streaks.len() == CULPRITS_MAX {
            self.streaks.remove(0);
        }
        self.streaks.push(Streak {
            family,
            culprits,
            n_repairs: 1,
            since: now,
        });
        1
    }

    /// All tables have been compared as a whole.
    pub(super) fn compared(&mut self, now: Instant) {
        self.compare_at = Some(now + self.pace.comparison_period);
    }

    /// Whether changes by others are told.
    pub(super) fn watched(&mut self, is_watched: bool, now: Instant) {
        self.look_at = (!is_watched).then_some(now + self.pace.sync_period);
    }

    pub(super) fn is_watched(&self) -> bool {
        self.look_at.is_none()
    }

    pub(super) fn tidied(&mut self) {
        self.tidy_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes all the time for a minute, with syncs that cost so much: how many there were, and
    /// their share of the time.
    fn syncs_in_a_minute(cost: Duration) -> (u32, f64) {
        let start = Instant::now();
        let mut schedule = Schedule::new(Pace::default(), start);
        let (mut now, mut n_syncs) = (start, 0);
        while now < start + Duration::from_secs(60) {
            schedule.changed();
            let (at, task) = schedule.next(Some(start)).unwrap();
            assert_eq!(task, Task::Sync);
            now = now.max(at) + cost;
            n_syncs += 1;
            schedule.watched(true, now);
            schedule.synced(now, cost, true);
        }
        let share = (cost * n_syncs).as_secs_f64() / (now - start).as_secs_f64();
        (n_syncs, share)
    }

    #[test]
    fn syncs_have_a_twentieth_of_the_time() {
        let (n_syncs, _) = syncs_in_a_minute(Duration::from_micros(20));
        assert!((11_000..=12_000).contains(&n_syncs), "{n_syncs}");
        let (n_syncs, share) = syncs_in_a_minute(Duration::from_millis(1));
        assert!((2_900..=3_100).contains(&n_syncs), "{n_syncs}");
        assert!((0.049..=0.052).contains(&share), "{share}");
        // A second is all that anybody has to wait.
        let (n_syncs, _) = syncs_in_a_minute(Duration::from_millis(500));
        assert!((40..=42).contains(&n_syncs), "{n_syncs}");
    }

    #[test]
    fn a_lone_change_waits_for_nothing() {
        let start = Instant::now();
        let mut schedule = Schedule::new(Pace::default(), start);
        schedule.synced(start, Duration::from_millis(700), true);
        schedule.changed();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(schedule.next(Some(start)), Some((after(1), Task::Sync)));
        // A pause that was not taken is made up for in the end.
        let (took, later) = (Duration::from_millis(40), after(10));
        schedule.synced(later, took, true);
        let soon = later + SYNC_PAUSES[0];
        schedule.changed();
        assert_eq!(schedule.next(Some(start)), Some((soon, Task::Sync)));
    }

    #[test]
    fn a_period_that_is_given_is_kept() {
        let start = Instant::now();
        let period = Duration::from_secs(3);
        let pace = Pace {
            min_sync_period: Some(period),
            ..Pace::default()
        };
        let mut schedule = Schedule::new(pace, start);
        for cost in [Duration::ZERO, Duration::from_secs(2)] {
            schedule.changed();
            schedule.synced(start, cost, true);
            schedule.changed();
            let due = (start + period, Task::Sync);
            assert_eq!(schedule.next(Some(start)), Some(due));
        }
    }

    /// Ten a second for ten minutes: at first each is repaired at once, and in the long run repairs
    /// have a twentieth of the time.
    #[test]
    fn repairs_are_prompt_now_and_then_and_bounded_in_a_fight() {
        let start = Instant::now();
        let mut schedule = Schedule::new(Pace::default(), start);
        schedule.watched(true, start);
        let took = Duration::from_millis(20);
        let (mut n_prompt, mut spent) = (0, Duration::ZERO);
        let mut now = start;
        while now < start + Duration::from_secs(600) {
            schedule.damaged();
            let (at, task) = schedule.next(Some(start)).unwrap();
            assert_eq!(task, Task::Repair);
            n_prompt += usize::from(at <= now && n_prompt == (spent.as_millis() / 20) as usize);
            now = now.max(at) + took;
            spent += took;
            schedule.repaired(now, took, true);
            schedule.tidied();
            now += Duration::from_millis(80);
        }
        assert!((20..=40).contains(&n_prompt), "{n_prompt} at once");
        let bound = Duration::from_secs(600) / 20 + Duration::from_millis(500);
        assert!(spent <= bound + took, "{spent:?}");
        assert!(spent > bound / 2, "{spent:?}");
    }
}
