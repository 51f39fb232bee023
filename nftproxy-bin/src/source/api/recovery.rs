//! What one watch learns serves all: whoever waits after a failure is woken when a request of
//! another works again, and one of them looks for the server more often than the others.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::backoff;
use super::failure::Failure;

/// Whoever is woken by another need not ask often: it waits as if it had failed so often before.
const PATIENCE: u32 = 2;

/// What all watches share.
pub(super) struct Recovery {
    /// Counts the times that something worked again.
    works: tokio::sync::watch::Sender<u64>,
    is_searching: AtomicBool,
    /// Why watches fail now, by kind, as it was logged.
    causes: Mutex<BTreeMap<&'static str, String>>,
}

/// One watch's failures in a row.
#[derive(Default)]
pub(super) struct Streak {
    n_failures: u32,
    since: Option<Instant>,
    has_expired: bool,
}

impl Streak {
    /// Whether there was a failure, and nothing has worked since.
    pub(super) fn goes_on(&self) -> bool {
        self.n_failures > 0
    }

    /// Counts versions that the server has forgotten. Whether nobody need wait for that: nothing is
    /// wrong but that we were away for too long; more of the same would be.
    pub(super) fn expires(&mut self) -> bool {
        self.n_failures = self.n_failures.saturating_add(1);
        self.since.get_or_insert_with(Instant::now);
        !std::mem::replace(&mut self.has_expired, true)
    }
}

impl Recovery {
    pub(super) fn new() -> Self {
        Self {
            works: tokio::sync::watch::Sender::new(0),
            is_searching: AtomicBool::new(false),
            causes: Mutex::default(),
        }
    }

    /// Tells those who wait that the server is there.
    pub(super) fn works(&self) {
        self.works.send_modify(|n| *n += 1);
    }

    /// A watch fails for this cause. Whether that is news: neither known of it, nor of another.
    pub(super) fn is_news(&self, kind: &'static str, cause: &str) -> bool {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = causes.values().any(|known| known == cause);
        causes.insert(kind, cause.to_owned());
        !is_known
    }

    /// A watch works. Whether that is news: it is the last one that failed for its cause.
    pub(super) fn is_over(&self, kind: &'static str) -> bool {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        causes.remove(kind).is_some_and(|cause| {
            let mut others = causes.values();
            !others.any(|other| *other == cause)
        })
    }

    /// Waits as long as it must be before the next attempt.
    pub(super) async fn wait(&self, streak: &mut Streak, failure: &Failure) {
        let n_failures = streak.n_failures;
        streak.n_failures = n_failures.saturating_add(1);
        let since = *streak.since.get_or_insert_with(Instant::now);
        // The server knows why; nobody wakes us earlier.
        let least = failure.retry_after().map_or(Duration::ZERO, |pause| {
            pause.max(backoff::pause(0)) + backoff::part_of(pause / 4)
        });
        if !failure.is_outage() {
            sleep(backoff::pause(n_failures).max(least)).await;
            return;
        }
        if n_failures == 0 && failure.is_broken() {
            // All nodes lost the server in the same moment; most likely another is there.
            sleep(backoff::part_of(Duration::from_millis(500))).await;
            return;
        }
        let mut works = self.works.subscribe();
        let search = self.search();
        let pause = match &search {
            Some(_) => backoff::search_pause(n_failures, since.elapsed()),
            None => backoff::pause(n_failures.saturating_add(PATIENCE)),
        };
        let start = Instant::now();
        sleep(least).await;
        tokio::select! {
            () = sleep_until(start + pause.max(least)) => {}
            // Nobody sends any more when everything ends.
            _ = works.changed() => {}
        }
    }

    /// Makes the caller the one who searches, if nobody does. It lasts for a pause, so that the
    /// next one may be another's.
    fn search(&self) -> Option<Search<'_>> {
        let was_searching = self.is_searching.swap(true, Ordering::Relaxed);
        (!was_searching).then(|| Search(self))
    }
}

struct Search<'a>(&'a Recovery);

impl Drop for Search<'_> {
    fn drop(&mut self) {
        self.0.is_searching.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn refusal(code: u16, retry_after: Option<u64>) -> Failure {
        Failure::Answer {
            code,
            reason: String::new(),
            message: String::new(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    async fn seconds(recovery: &Recovery, streak: &mut Streak, failure: &Failure) -> f64 {
        let start = Instant::now();
        recovery.wait(streak, failure).await;
        start.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn watches_that_end_at_once_wait_ever_longer() {
        let recovery = Recovery::new();
        let mut streak = Streak::default();
        for full in [0.8, 1.6, 3.2, 6.4, 12.8, 24.0, 24.0] {
            let waited = seconds(&recovery, &mut streak, &Failure::Short).await;
            assert!((full..full * 1.26 + 0.01).contains(&waited), "{waited}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_searches_and_wakes_the_others() {
        let recovery = Arc::new(Recovery::new());
        let others: Vec<_> = (0..3)
            .map(|_| {
                let recovery = recovery.clone();
                tokio::spawn(async move {
                    let mut streak = Streak {
                        n_failures: 9,
                        ..Streak::default()
                    };
                    seconds(&recovery, &mut streak, &refusal(503, None)).await
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let n_done = others.iter().filter(|other| other.is_finished()).count();
        assert_eq!(n_done, 1, "one searches");
        recovery.works();
        for other in others {
            assert!(other.await.unwrap() < 3.1);
        }
    }

    #[test]
    fn versions_may_expire_once() {
        let mut streak = Streak {
            n_failures: 9,
            ..Streak::default()
        };
        assert!(streak.expires());
        assert!(!streak.expires());
    }

    #[test]
    fn what_all_watches_suffer_is_said_once() {
        let recovery = Recovery::new();
        assert!(recovery.is_news("Service", "a"));
        assert!(!recovery.is_news("Service", "a"));
        assert!(!recovery.is_news("Node", "a"));
        assert!(recovery.is_news("Node", "b"));
        assert!(recovery.is_over("Service"));
        assert!(!recovery.is_news("Service", "b"));
        assert!(!recovery.is_over("Service"));
        assert!(recovery.is_over("Node"));
        assert!(!recovery.is_over("Node"));
    }

    /// What a node does to a server that is in trouble for a minute, and how soon it is back.
    #[tokio::test(start_paused = true)]
    async fn a_minute_of_refusals_is_a_request_a_second_and_no_wait() {
        for retry_after in [None, Some(1)] {
            let recovery = Arc::new(Recovery::new());
            let is_well = Arc::new(AtomicBool::new(false));
            let n_requests = Arc::new(AtomicU32::new(0));
            let watches: Vec<_> = (0..4)
                .map(|_| {
                    let recovery = recovery.clone();
                    let (is_well, n_requests) = (is_well.clone(), n_requests.clone());
                    tokio::spawn(async move {
                        let mut streak = Streak::default();
                        while !is_well.load(Ordering::Relaxed) {
                            n_requests.fetch_add(1, Ordering::Relaxed);
                            recovery.wait(&mut streak, &refusal(503, retry_after)).await;
                        }
                        recovery.works();
                    })
                })
                .collect();
            sleep(Duration::from_secs(60)).await;
            let n_requests = n_requests.load(Ordering::Relaxed);
            assert!((40..70).contains(&n_requests), "{n_requests}");
            is_well.store(true, Ordering::Relaxed);
            let back = Instant::now();
            for watch in watches {
                watch.await.unwrap();
            }
            let seconds = back.elapsed().as_secs_f64();
            assert!(seconds < 1.6, "{seconds}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_honoured_even_if_others_succeed() {
        let recovery = Arc::new(Recovery::new());
        let waker = recovery.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(1)).await;
            waker.works();
        });
        let mut streak = Streak::default();
        let waited = seconds(&recovery, &mut streak, &refusal(429, Some(8))).await;
        assert!((8.0..10.1).contains(&waited), "{waited}");
    }
}
