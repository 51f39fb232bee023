//! The ways to list, and which of them a server refuses.

use std::time::Duration;

use tokio::time::Instant;

/// A server that is better by then is asked again for what it refused.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The ways to list, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    Streamed,
    Cached,
    Paged,
}

impl Way {
    pub(super) fn next(self) -> Option<Self> {
        match self {
            Self::Streamed => Some(Self::Cached),
            Self::Cached => Some(Self::Paged),
            Self::Paged => None,
        }
    }
}

/// What one server is known to refuse.
#[derive(Debug, Clone, Default)]
pub(super) struct Refused {
    streams: Option<Instant>,
    cached: Option<Instant>,
    pub(super) fields: Option<Instant>,
}

impl Refused {
    /// The best way that the server may take.
    pub(super) fn best_way(&self) -> Way {
        let lately = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < REMEMBERED);
        match (lately(self.streams), lately(self.cached)) {
            (false, _) => Way::Streamed,
            (true, false) => Way::Cached,
            (true, true) => Way::Paged,
        }
    }

    /// The server refused what is better than `way`, from `first` on.
    pub(super) fn remember(&mut self, first: Way, way: Way) {
        let now = Some(Instant::now());
        if first <= Way::Streamed && way > Way::Streamed {
            self.streams = now;
        }
        if first <= Way::Cached && way > Way::Cached {
            self.cached = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_passed_over_for_an_hour() {
        let mut refused = Refused::default();
        assert_eq!(refused.best_way(), Way::Streamed);
        refused.remember(Way::Streamed, Way::Cached);
        assert_eq!(refused.best_way(), Way::Cached);
        refused.remember(Way::Cached, Way::Paged);
        assert_eq!(refused.best_way(), Way::Paged);
        tokio::time::sleep(REMEMBERED).await;
        assert_eq!(refused.best_way(), Way::Streamed);
    }
}
