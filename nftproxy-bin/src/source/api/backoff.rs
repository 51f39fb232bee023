//! How long to wait after a failure.
//!
//! Two wishes meet here: one node must not hammer a server, nor may thousands come back in the same
//! moment; and after a short outage, nobody should wait long for a server that is there again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The first pause, which doubles with each failure, as in Go's clients.
const FIRST: Duration = Duration::from_millis(800);
/// With chance at its most, half a minute.
const LONGEST: Duration = Duration::from_secs(24);
/// While an outage is this young, whoever looks for the server does so often.
pub(super) const YOUNG: Duration = Duration::from_secs(75);
const LONGEST_WHILE_YOUNG: Duration = Duration::from_millis(1200);

/// The pause after the `n`th failure in a row, counted from 0: the full one and, by chance, up
/// to a quarter more.
pub(super) fn pause(n: u32) -> Duration {
    spread(full(n))
}

/// The same for the one who looks for a server that has been away for so long.
pub(super) fn search_pause(n: u32, outage: Duration) -> Duration {
    let longest = if outage < YOUNG {
        LONGEST_WHILE_YOUNG
    } else {
        LONGEST
    };
    spread(full(n).min(longest))
}

fn full(n: u32) -> Duration {
    FIRST.saturating_mul(2_u32.saturating_pow(n)).min(LONGEST)
}

fn spread(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + 0.25 * random())
}

/// A part of this time, by chance.
pub(super) fn part_of(time: Duration) -> Duration {
    time.mul_f64(random())
}

/// From 0 to 1. Each `RandomState` has keys of its own.
fn random() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_within(pause: Duration, full: f64) -> bool {
        (full..=full * 1.25).contains(&pause.as_secs_f64())
    }

    /// O-90
    #[test]
    fn pauses_double_up_to_half_a_minute() {
        for (n, full) in [
            (0, 0.8),
            (1, 1.6),
            (4, 12.8),
            (5, 24.0),
            (6, 24.0),
            (99, 24.0),
        ] {
            for _ in 0..100 {
                assert!(is_within(pause(n), full), "{n}");
            }
        }
    }

    #[test]
    fn the_search_slows_down_once_an_outage_is_old() {
        let minute = Duration::from_secs(60);
        assert!(is_within(search_pause(0, Duration::ZERO), 0.8));
        assert!(is_within(search_pause(40, minute), 1.2));
        assert!(is_within(search_pause(40, 2 * minute), 24.0));
    }

    #[test]
    fn pauses_differ() {
        let pauses: std::collections::BTreeSet<_> = (0..100).map(|_| pause(0)).collect();
        assert!(pauses.len() > 90);
    }
}
