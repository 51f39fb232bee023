//! Whether the rules keep up with the cluster.
//!
//! The loop says when something changed and when a family was synced; whoever serves health checks
//! asks. Nothing here knows what a change is, or how the answer is served. Read [`Health`] first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nftproxy_core::model::IpFamily;
use tokio::time::Instant;

/// How many sync periods a change may wait: one for the retry of a failed sync, and one to spare.
const PATIENCE_IN_SYNC_PERIODS: u32 = 2;

/// The proxy's health; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    patience: Duration,
    waiting: Arc<Mutex<Waiting>>,
}

/// Since when each family has had a change to sync.
#[derive(Debug, Default)]
struct Waiting {
    v4: Option<Instant>,
    v6: Option<Instant>,
}

impl Waiting {
    fn of(&mut self, family: IpFamily) -> &mut Option<Instant> {
        match family {
            IpFamily::V4 => &mut self.v4,
            IpFamily::V6 => &mut self.v6,
        }
    }
}

impl Health {
    /// Nothing waits yet. `sync_period` is the time after which a failed sync is retried.
    pub(crate) fn new(sync_period: Duration) -> Self {
        Self {
            patience: sync_period.saturating_mul(PATIENCE_IN_SYNC_PERIODS),
            waiting: Arc::default(),
        }
    }

    /// There is something to sync in a family. If there was before, it goes on waiting.
    pub(crate) fn changed(&self, family: IpFamily) {
        self.waiting().of(family).get_or_insert_with(Instant::now);
    }

    /// A family is in step with everything said to have changed.
    pub(crate) fn synced(&self, family: IpFamily) {
        *self.waiting().of(family) = None;
    }

    /// Whether no change has been waiting for too long, in either family.
    pub(crate) fn is_healthy(&self) -> bool {
        let Waiting { v4, v6 } = *self.waiting();
        let is_patient =
            |since: Option<Instant>| since.is_none_or(|since| since.elapsed() < self.patience);
        is_patient(v4) && is_patient(v6)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every state of it is a valid one.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SYNC_PERIOD: Duration = Duration::from_secs(30);
    const MOMENT: Duration = Duration::from_millis(1);

    /// O-118: the first change counts, and the limit itself is too long.
    #[tokio::test(start_paused = true)]
    async fn a_change_may_wait_for_two_sync_periods() {
        let health = Health::new(SYNC_PERIOD);
        advance(10 * SYNC_PERIOD).await;
        assert!(health.is_healthy(), "nothing waits");
        health.changed(IpFamily::V4);
        advance(SYNC_PERIOD).await;
        health.changed(IpFamily::V4);
        advance(SYNC_PERIOD - MOMENT).await;
        assert!(health.is_healthy());
        advance(MOMENT).await;
        assert!(!health.is_healthy());
        health.synced(IpFamily::V4);
        assert!(health.is_healthy());

        health.changed(IpFamily::V4);
        advance(2 * SYNC_PERIOD - MOMENT).await;
        assert!(health.is_healthy(), "it is another change");
    }

    /// O-118: one stale family is enough, and the other cannot make up for it.
    #[tokio::test(start_paused = true)]
    async fn each_family_waits_for_itself() {
        for (stale, other) in [(IpFamily::V4, IpFamily::V6), (IpFamily::V6, IpFamily::V4)] {
            let health = Health::new(SYNC_PERIOD);
            health.changed(stale);
            health.changed(other);
            advance(SYNC_PERIOD).await;
            health.synced(other);
            advance(SYNC_PERIOD).await;
            assert!(!health.is_healthy(), "{stale}");
        }
    }
}
