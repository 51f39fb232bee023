//! Kubernetes Services as one atomic nftables ruleset.

pub mod apply;
pub mod compile;
pub mod diff;
#[cfg(feature = "k8s")]
pub mod k8s;
pub mod model;
pub mod render;
pub mod ruleset;
pub mod sync;
pub mod trace;
