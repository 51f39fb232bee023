//! Whether the rules keep up with the cluster. Read [`Health`] first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::IpFamily;

/// How many sync periods a change may wait: one for the retry of a failed sync, and one to spare.
const PATIENCE_IN_SYNC_PERIODS: u32 = 2;

/// An instance's health; clones share it, so that a server on another thread can ask.
#[derive(Debug, Clone)]
pub struct Health {
    patience: Duration,
    waiting: Arc<Mutex<Waiting>>,
}

/// Since when each family has been out of step.
#[derive(Debug, Default)]
struct Waiting {
    v4: Since,
    v6: Since,
}

#[derive(Debug, Default)]
struct Since {
    /// There has been a change to sync.
    changed: Option<Instant>,
    /// Others have touched the table, or it could not be listed or changed.
    damaged: Option<Instant>,
}

impl Waiting {
    fn of(&mut self, family: IpFamily) -> &mut Since {
        match family {
            IpFamily::V4 => &mut self.v4,
            IpFamily::V6 => &mut self.v6,
        }
    }
}

impl Health {
    /// Nothing waits yet. `sync_period` is the time after which a failed sync is retried.
    pub fn new(sync_period: Duration) -> Self {
        Self {
            patience: sync_period.saturating_mul(PATIENCE_IN_SYNC_PERIODS),
            waiting: Arc::default(),
        }
    }

    /// There is something to sync in a family; an engine says so itself. If there was before, it goes on waiting.
    pub fn changed(&self, family: IpFamily, now: Instant) {
        self.waiting().of(family).changed.get_or_insert(now);
    }

    /// A family's table may not be what it should be; an engine says so itself. If it was in doubt
    /// before, it goes on being so.
    pub fn damaged(&self, family: IpFamily, now: Instant) {
        self.waiting().of(family).damaged.get_or_insert(now);
    }

    /// A family's table is what it was made; an engine says so itself.
    pub fn mended(&self, family: IpFamily) {
        self.waiting().of(family).damaged = None;
    }

    /// A family is in step with everything said to have changed; an engine says so itself.
    pub fn synced(&self, family: IpFamily) {
        self.waiting().of(family).changed = None;
    }

    /// Whether neither family has been out of step for twice the sync period.
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.is_family_healthy(IpFamily::V4, now) && self.is_family_healthy(IpFamily::V6, now)
    }

    /// Whether for less than twice the sync period a change of this family has been waiting, and
    /// its table been in doubt.
    pub fn is_family_healthy(&self, family: IpFamily, now: Instant) -> bool {
        let mut waiting = self.waiting();
        let Since { changed, damaged } = waiting.of(family);
        let since = [*changed, *damaged].into_iter().flatten().min();
        since.is_none_or(|since| now.saturating_duration_since(since) < self.patience)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every state of it is a valid one.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC_PERIOD: Duration = Duration::from_secs(30);
    const MOMENT: Duration = Duration::from_millis(1);

    /// O-118: the first change counts, and the limit itself is too long.
    #[test]
    fn a_change_may_wait_for_two_sync_periods() {
        let health = Health::new(SYNC_PERIOD);
        let mut now = Instant::now() + 10 * SYNC_PERIOD;
        assert!(health.is_healthy(now), "nothing waits");
        health.changed(IpFamily::V4, now);
        now += SYNC_PERIOD;
        health.changed(IpFamily::V4, now);
        now += SYNC_PERIOD - MOMENT;
        assert!(health.is_healthy(now));
        now += MOMENT;
        assert!(!health.is_healthy(now));
        health.synced(IpFamily::V4);
        assert!(health.is_healthy(now));

        health.changed(IpFamily::V4, now);
        now += 2 * SYNC_PERIOD - MOMENT;
        assert!(health.is_healthy(now), "it is another change");
    }

    /// O-118: rules that others have taken away keep up with nothing, whatever changes or not.
    #[test]
    fn a_damaged_table_has_as_long() {
        let health = Health::new(SYNC_PERIOD);
        let start = Instant::now();
        health.damaged(IpFamily::V4, start);
        health.damaged(IpFamily::V4, start + SYNC_PERIOD);
        health.changed(IpFamily::V4, start + SYNC_PERIOD);
        health.synced(IpFamily::V4);
        assert!(health.is_healthy(start + 2 * SYNC_PERIOD - MOMENT));
        assert!(!health.is_healthy(start + 2 * SYNC_PERIOD));
        health.mended(IpFamily::V4);
        assert!(health.is_healthy(start + 2 * SYNC_PERIOD));
    }

    /// O-118: one stale family is enough, and the other cannot make up for it.
    #[test]
    fn each_family_waits_for_itself() {
        for (stale, other) in [(IpFamily::V4, IpFamily::V6), (IpFamily::V6, IpFamily::V4)] {
            let health = Health::new(SYNC_PERIOD);
            let start = Instant::now();
            health.changed(stale, start);
            health.changed(other, start);
            health.synced(other);
            assert!(!health.is_healthy(start + 2 * SYNC_PERIOD), "{stale}");
        }
    }
}
