//! When to do what. Everything here is a function of times that the owner hands in.

use std::time::{Duration, Instant};

/// How long after a sync unused pick chains are deleted; see
/// [`Syncer::delete_unused_picks`](crate::sync::Syncer::delete_unused_picks).
const TIDY_DELAY: Duration = Duration::from_secs(1);

/// When to sync, as kube-proxy has it: a lone change at once; after that, what changes within
/// `min_sync_period` together at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// No sync starts earlier than this after the one before has ended (`minSyncPeriod`).
    pub min_sync_period: Duration,
    /// A failed sync is retried after this, or as soon as something else changes (`syncPeriod`).
    pub sync_period: Duration,
}

impl Default for Pace {
    /// kube-proxy's defaults: 1 s and 30 s.
    fn default() -> Self {
        Self {
            min_sync_period: Duration::from_secs(1),
            sync_period: Duration::from_secs(30),
        }
    }
}

/// Something for the owner to have done by [`Engine::perform`](super::Engine::perform).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Bring the tables in step.
    Sync,
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

/// What is to be done of syncing and tidying, and when.
#[derive(Debug)]
pub(super) struct Schedule {
    pace: Pace,
    /// Something changed that is not yet synced.
    is_pending: bool,
    not_before: Instant,
    retry_at: Option<Instant>,
    tidy_at: Option<Instant>,
}

impl Schedule {
    pub(super) fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            is_pending: false,
            not_before: now,
            retry_at: None,
            tidy_at: None,
        }
    }

    /// There is something to sync.
    pub(super) fn changed(&mut self) {
        self.is_pending = true;
    }

    pub(super) fn is_pending(&self) -> bool {
        self.is_pending
    }

    /// Whether nothing has changed since a sync that succeeded.
    pub(super) fn is_in_step(&self) -> bool {
        !self.is_pending && self.retry_at.is_none()
    }

    /// The next task, given when syncs may start at all.
    pub(super) fn next(&self, ready_at: Option<Instant>) -> Option<(Instant, Task)> {
        let wanted_at = if self.is_pending {
            Some(self.not_before)
        } else {
            self.retry_at
        };
        match wanted_at {
            Some(at) => Some((at.max(ready_at?), Task::Sync)),
            None => self.tidy_at.map(|at| (at, Task::Tidy)),
        }
    }

    /// A sync has ended.
    pub(super) fn synced(&mut self, now: Instant, is_success: bool) {
        self.is_pending = false;
        self.not_before = now + self.pace.min_sync_period;
        self.retry_at = (!is_success).then_some(now + self.pace.sync_period);
        self.tidy_at = is_success.then_some(now + TIDY_DELAY);
    }

    pub(super) fn tidied(&mut self) {
        self.tidy_at = None;
    }
}
