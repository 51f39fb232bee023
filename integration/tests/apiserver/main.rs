//! The API server of tests against raw HTTP and against the client the proxy uses.
//!
//! The yardstick is what a real server answered: the recorded lists and watch streams.

#![allow(
    clippy::unwrap_used,
    reason = "clippy takes helpers outside of `#[test]` functions for ordinary code"
)]

mod cluster;
mod encodings;
mod faults;
mod follow;
mod forward_proxy;
mod http;
mod protocol;
mod streaming;
mod tls;
