//! How long to wait after a failure, and what to say of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The pause after the first failure, as client-go has it; it doubles with each that follows.
const FIRST: Duration = Duration::from_millis(800);
/// No pause is longer, unless the server asks for it.
const LONGEST: Duration = Duration::from_secs(30);
/// For so long after it went away a server is asked often, so that the rules are in step soon after
/// a restart.
const PATIENCE: Duration = Duration::from_secs(60);
/// No pause is longer meanwhile.
const LONGEST_AT_FIRST: Duration = Duration::from_millis(1600);
/// Whatever a server asks for, it is asked again after this.
const LONGEST_ASKED_FOR: Duration = Duration::from_secs(600);
/// So many causes of a streak are told.
const CAUSES_MAX: usize = 16;

/// The failures of one watch since it worked last.
#[derive(Debug, Default)]
pub(super) struct Pace {
    n_failures: u32,
    first_at: Option<Instant>,
    causes: BTreeSet<String>,
}

impl Pace {
    /// It failed. Returns how long to wait; `is_outage` if the server was not there at all, rather
    /// than refusing.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        is_outage: bool,
        retry_after: Option<Duration>,
    ) -> Duration {
        let first_at = *self.first_at.get_or_insert(now);
        let longest = if is_outage && now.duration_since(first_at) < PATIENCE {
            LONGEST_AT_FIRST
        } else {
            LONGEST
        };
        let pause = FIRST * 2_u32.saturating_pow(self.n_failures.min(10));
        self.n_failures += 1;
        // The nodes of a cluster are not to come back together.
        let pause = pause.min(longest).mul_f64(0.5 + fastrand::f64() / 2.0);
        let asked_for = retry_after.unwrap_or_default().min(LONGEST_ASKED_FOR);
        let jitter = asked_for.mul_f64(fastrand::f64() / 10.0);
        pause.max(asked_for + jitter)
    }

    /// Whether to say this cause: it has not been said since it worked last.
    pub(super) fn is_news(&mut self, cause: &str) -> bool {
        self.causes.len() < CAUSES_MAX && self.causes.insert(cause.to_owned())
    }

    /// It works. Returns for how long it did not, if that was told.
    pub(super) fn worked(&mut self, now: Instant) -> Option<Duration> {
        let Self {
            first_at, causes, ..
        } = std::mem::take(self);
        (!causes.is_empty()).then(|| now.duration_since(first_at.unwrap_or(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_start_anew() {
        let mut pace = Pace::default();
        let now = Instant::now();
        let mut longest = FIRST;
        for _ in 0..10 {
            let pause = pace.failed(now, false, None);
            assert!(
                pause <= longest && pause >= longest / 2,
                "{pause:?} {longest:?}"
            );
            longest = (longest * 2).min(LONGEST);
        }
        assert_eq!(longest, LONGEST);
        pace.worked(now);
        assert!(pace.failed(now, false, None) <= FIRST);
    }

    #[test]
    fn a_server_that_is_gone_is_asked_often_for_a_minute() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        let start = now;
        while now - start < PATIENCE {
            let pause = pace.failed(now, true, None);
            assert!(pause <= LONGEST_AT_FIRST);
            now += pause;
        }
        assert!(pace.failed(now, true, None) >= LONGEST / 2);
    }

    #[test]
    fn what_a_server_asks_for_is_honoured() {
        let mut pace = Pace::default();
        let asked = Duration::from_secs(7);
        let pause = pace.failed(Instant::now(), true, Some(asked));
        assert!(pause >= asked && pause < asked * 2, "{pause:?}");
        let pause = pace.failed(Instant::now(), true, Some(Duration::from_secs(1 << 40)));
        assert!(pause < LONGEST_ASKED_FOR * 2);
    }

    #[test]
    fn each_cause_is_said_once_until_it_works() {
        let mut pace = Pace::default();
        assert!(pace.is_news("refused"));
        assert!(!pace.is_news("refused"));
        assert!(pace.is_news("401"));
        assert!(!pace.is_news("refused"), "though there was another");
        pace.failed(Instant::now(), true, None);
        assert!(pace.worked(Instant::now()).is_some());
        assert!(pace.worked(Instant::now()).is_none());
        assert!(pace.is_news("refused"));
    }
}
