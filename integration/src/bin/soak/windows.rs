//! The times during which connections may fail: from damage to the tables until they are whole.
//!
//! Entry point: [`Windows`].

use std::time::{Duration, Instant};

/// With the process at work, damage may last so long.
const REPAIR: Duration = Duration::from_secs(5);
/// Packets that were on their way when the table became whole, and flows that have to be forgotten
/// first, may still be lost for so long.
const AFTERMATH: Duration = Duration::from_millis(1500);

/// From damage to its repair, in order.
#[derive(Default)]
pub(crate) struct Windows {
    closed: Vec<(Instant, Instant)>,
    open: Option<Window>,
}

#[derive(Clone, Copy)]
struct Window {
    start: Instant,
    /// The last time at which there was a reason not to repair it at once.
    reason: Instant,
}

impl Window {
    fn end(self) -> Instant {
        Instant::now().min(self.reason + REPAIR)
    }
}

impl Windows {
    /// The tables are about to be damaged, perhaps once more.
    pub(crate) fn open(&mut self) {
        let now = Instant::now();
        let start = self.open.map_or(now, |window| window.start);
        self.open = Some(Window { start, reason: now });
    }

    /// The process is not at work. To be called often while that is so.
    pub(crate) fn prolong(&mut self) {
        if let Some(window) = &mut self.open {
            window.reason = Instant::now();
        }
    }

    /// Whether they are damaged for all that is known.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// They were seen whole; how long they were not.
    pub(crate) fn close(&mut self) -> Option<Duration> {
        let window = self.open.take()?;
        self.closed.push((window.start, window.end()));
        Some(window.start.elapsed())
    }

    /// Whether what lasted from one time to another may have failed by the damage.
    pub(crate) fn excuse(&self, from: Instant, to: Instant) -> bool {
        let closed = self.closed.iter().copied();
        let open = self.open.map(|window| (window.start, window.end()));
        closed
            .chain(open)
            .any(|(start, end)| from <= end + AFTERMATH && to >= start)
    }

    /// Forgets those that were over long before.
    pub(crate) fn forget(&mut self) {
        let now = Instant::now();
        let is_recent = |(_, end): &(_, Instant)| now - *end < Duration::from_secs(600);
        self.closed.retain(is_recent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_overlaps_is_excused() {
        let start = Instant::now();
        let mut windows = Windows::default();
        assert!(!windows.excuse(start, start + Duration::from_secs(1)));
        let before = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        windows.open();
        windows.open();
        assert!(!windows.excuse(start, before));
        assert!(windows.excuse(start, Instant::now()));
        assert!(windows.close().is_some_and(|lasted| !lasted.is_zero()));
        assert!(windows.close().is_none() && !windows.is_open());
        let later = Instant::now() + 2 * AFTERMATH;
        assert!(!windows.excuse(later, later));
        windows.forget();
        assert!(windows.excuse(start, later));
    }
}
