//! The time of day, for those who read: answers, metrics, Events and log lines. Nothing is decided
//! by it.

use jiff::Timestamp;

/// Now.
#[expect(
    clippy::disallowed_methods,
    reason = "people and other programs want to know when, and durations are measured elsewhere"
)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
