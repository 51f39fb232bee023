//! Real packets through the real binary: who answers, who is refused, who waits in vain, and which
//! source the endpoint sees.
//!
//! Rule numbers such as S-60 are those of the project's list of kube-proxy semantics. `table` has
//! what holds in a steady state, as data; `changes` what holds while Services change; `others` what
//! holds beside software that shares the host. None of them looks at the rules themselves, except
//! to compare packets with what `trace` makes of the rules. Read `bed` first.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod affinity;
mod bed;
mod changes;
mod flows;
mod health;
mod others;
mod sources;
mod table;
