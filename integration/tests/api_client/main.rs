//! The real binary before API servers of all kinds, in all conditions.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes helpers outside of `#[test]` functions for ordinary code"
)]

mod absence;
mod backoff;
mod bed;
mod credentials;
mod lists;
