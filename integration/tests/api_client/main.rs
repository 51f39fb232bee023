//! The real binary before API servers that behave badly, or just unlike others.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes helpers outside of `#[test]` functions for ordinary code"
)]

mod backoff;
mod credentials;
mod lists;
mod scripted;
