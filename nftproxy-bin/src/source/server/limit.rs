//! How many requests there may be: `kubeAPIQPS` and `kubeAPIBurst`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where the configuration says nothing, as client-go has it.
const DEFAULT_QPS: f32 = 5.0;
const DEFAULT_BURST: u32 = 10;

/// A bucket of tokens, of which each request takes one.
#[derive(Debug)]
pub(super) struct Limit {
    /// Tokens per second; `None` lifts the limit.
    rate: Option<f64>,
    burst: f64,
    /// Tokens at a time; below zero, somebody waits.
    bucket: Mutex<(f64, Instant)>,
}

impl Limit {
    pub(super) fn new(qps: f32, burst: u32, now: Instant) -> Self {
        let qps = if qps == 0.0 { DEFAULT_QPS } else { qps };
        let burst = if burst == 0 { DEFAULT_BURST } else { burst };
        Self {
            rate: (qps > 0.0).then_some(qps.into()),
            burst: burst.into(),
            bucket: Mutex::new((burst.into(), now)),
        }
    }

    /// Takes a token, and says how long it takes until it is there.
    pub(super) fn take(&self, now: Instant) -> Duration {
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, at) = *bucket;
        let grown = tokens + now.saturating_duration_since(at).as_secs_f64() * rate;
        let left = grown.min(self.burst) - 1.0;
        *bucket = (left, now);
        Duration::try_from_secs_f64(-left.min(0.0) / rate).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_the_rest_waits() {
        let start = Instant::now();
        let limit = Limit::new(2.0, 3, start);
        let waits: Vec<_> = (0..5).map(|_| limit.take(start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 500, 1000]);
        let later = start + Duration::from_secs(10);
        let waits: Vec<_> = (0..4).map(|_| limit.take(later).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 500], "no more than the burst is saved");
    }

    #[test]
    fn a_negative_rate_lifts_the_limit() {
        let now = Instant::now();
        let limit = Limit::new(-1.0, 1, now);
        assert!((0..100).all(|_| limit.take(now).is_zero()));
        // And zero is client-go's default.
        let limit = Limit::new(0.0, 0, now);
        assert!((0..10).all(|_| limit.take(now).is_zero()));
        assert_eq!(limit.take(now), Duration::from_millis(200));
    }
}
