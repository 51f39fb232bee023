//! A share of the time for work that comes as it pleases.

use std::time::{Duration, Instant};

/// Each piece of work is worth a pause of so many times what it cost, so that all of it together has
/// a twentieth of the time.
const PAUSE: u32 = 19;

/// Lets work have a twentieth of the time in the long run, and more for a moment.
#[derive(Debug)]
pub(super) struct Budget {
    /// Pauses of so much together may be owed, so that what comes now and then need not wait.
    credit: Duration,
    /// No more than that is owed, whatever was done.
    debt_max: Duration,
    /// When all pauses so far would be over, had they been kept.
    paused_until: Instant,
}

impl Budget {
    /// A budget with its whole credit.
    pub(super) fn new(credit: Duration, debt_max: Duration, now: Instant) -> Self {
        Self {
            credit,
            debt_max,
            paused_until: now,
        }
    }

    /// Something has been done that cost so much; at its end it is `now`.
    pub(super) fn spend(&mut self, now: Instant, cost: Duration) {
        let owed = self.paused_until + cost * (1 + PAUSE);
        let paused_until = owed.max(now + cost * PAUSE);
        self.paused_until = paused_until.min(now + self.debt_max);
    }

    /// When the next piece of work may begin; long ago, maybe.
    pub(super) fn affordable_at(&self) -> Instant {
        let at = self.paused_until.checked_sub(self.credit);
        at.unwrap_or(self.paused_until)
    }
}
