//! What the calling thread has used of the CPU. Entry point: [`used_by`].

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// What the work used of the CPU, the kernel's part included, and its result.
///
/// On a machine with much to do that may be far less than the time until its end.
pub(super) fn used_by<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let before = used();
    let result = work();
    (used().saturating_sub(before), result)
}

fn used() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else {
        return Duration::ZERO;
    };
    duration(usage.user_time()) + duration(usage.system_time())
}

fn duration(time: TimeVal) -> Duration {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or_default();
    let micros = u64::try_from(time.tv_usec()).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Instant;

    use super::*;

    #[test]
    fn waiting_uses_nothing() {
        let wait = || sleep(Duration::from_millis(300));
        assert!(used_by(wait).0 < Duration::from_millis(100));
        let work = || {
            let start = used();
            let deadline = Instant::now() + Duration::from_secs(60);
            while used() < start + Duration::from_millis(20) && Instant::now() < deadline {}
        };
        assert!(used_by(work).0 >= Duration::from_millis(20));
    }
}
