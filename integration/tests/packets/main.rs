//! Real packets through the real binary: who answers, who is refused, who waits in vain, and which
//! source the endpoint sees.
//!
//! Rule numbers such as S-60 are those of the project's list of kube-proxy semantics. `table` has
//! what holds in a steady state, as data, and `sampled` compares random Services with the oracle of
//! the library's property tests; `services`, `ports`, `endpoints`, `distribution` and `nodes`
//! follow what the end-to-end tests of Kubernetes do; `changes` and `flows` have what holds for
//! traffic that exists already, and `damage` what it notices of others' hands in the table; `others` what holds beside software that shares the host. None of
//! them looks at the rules themselves, except to compare packets with what `trace` makes of the
//! rules. Read `bed` first.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod affinity;
#[path = "../../../nftproxy-core/tests/properties/balancing.rs"]
mod balancing;
mod bed;
mod changes;
mod choice;
mod common;
mod counts;
mod damage;
mod distribution;
mod endpoints;
mod explained;
mod fail_fast;
mod flows;
mod health;
mod loopback;
mod nodes;
#[path = "../../../nftproxy-core/tests/properties/oracle.rs"]
#[allow(
    dead_code,
    reason = "what outlives the rules is the property tests' own matter"
)]
mod oracle;
mod others;
mod ports;
mod protocols;
mod sampled;
mod sctp;
mod services;
mod sources;
mod table;
mod takeover;
