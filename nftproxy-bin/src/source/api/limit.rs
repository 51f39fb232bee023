//! How many requests there may be: `clientConnection.qps` and `burst`, as Go's clients count them.
//!
//! Entry point: [`Limit::take`].

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A bucket of tokens, one a request.
pub(super) struct Limit {
    /// Tokens a second; none means no limit.
    rate: Option<f64>,
    burst: f64,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    /// Below zero, requests are waiting for tokens to come.
    tokens: f64,
    at: Instant,
}

impl Limit {
    /// `qps` is in requests a second; zero or less lifts the limit.
    pub(super) fn new(qps: f32, burst: u32) -> Self {
        // A bucket that holds no token would never give one.
        let burst = f64::from(burst.max(1));
        Self {
            rate: (qps > 0.0).then(|| f64::from(qps)),
            burst,
            bucket: Mutex::new(Bucket {
                tokens: burst,
                at: Instant::now(),
            }),
        }
    }

    /// Waits until one more request may be sent. First come, first served.
    pub(super) async fn take(&self) {
        if let Some(at) = self.reserve() {
            sleep_until(at).await;
        }
    }

    fn reserve(&self) -> Option<Instant> {
        let rate = self.rate?;
        let now = Instant::now();
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let new = now.duration_since(bucket.at).as_secs_f64() * rate;
        bucket.tokens = (bucket.tokens + new).min(self.burst) - 1.0;
        bucket.at = now;
        let missing = -bucket.tokens;
        (missing > 0.0).then(|| now + Duration::from_secs_f64(missing / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn seconds_for(limit: &Limit, n_requests: usize) -> f64 {
        let start = Instant::now();
        for _ in 0..n_requests {
            limit.take().await;
        }
        start.elapsed().as_secs_f64()
    }

    /// O-19, O-20
    #[tokio::test(start_paused = true)]
    async fn a_burst_is_free_and_the_rest_has_its_pace() {
        let limit = Limit::new(5.0, 10);
        assert!(seconds_for(&limit, 10).await < 0.01);
        let seconds = seconds_for(&limit, 5).await;
        assert!((0.99..1.1).contains(&seconds), "{seconds}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(seconds_for(&limit, 10).await < 0.01);
        assert!(seconds_for(&Limit::new(-1.0, 0), 1000).await < 0.01);
        let seconds = seconds_for(&Limit::new(1.0, 0), 3).await;
        assert!((1.99..2.1).contains(&seconds), "{seconds}");
    }
}
