//! How this proxy stands: what each family last achieved, and whether the node wants traffic.
//!
//! The loop writes it, the health server reads it. Whether rules keep up is the library's
//! [`Health`] to say. Entry point: [`Standing`].

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use nftproxy_core::engine::Health;
use nftproxy_core::model::IpFamily;

use crate::wall_clock;

/// Shared by whoever writes it and whoever reads it.
#[derive(Debug)]
pub(crate) struct Standing {
    health: Health,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    is_node_eligible: bool,
    families: Vec<FamilyStanding>,
}

/// What a family last achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FamilyStanding {
    pub(crate) family: IpFamily,
    /// When it was last in step; before the first time, when it began to try.
    pub(crate) last_updated: Timestamp,
    /// Whether it has ever been in step.
    pub(crate) has_synced: bool,
    /// Whether no change has been waiting for too long.
    pub(crate) is_healthy: bool,
}

impl Standing {
    /// The loop is about to start. A node is not eligible before its object is seen, if one will
    /// come.
    pub(crate) fn new(health: Health, families: &[IpFamily], expects_node: bool) -> Self {
        let families = families.iter().map(|family| FamilyStanding {
            family: *family,
            last_updated: wall_clock::now(),
            has_synced: false,
            is_healthy: true,
        });
        Self {
            health,
            state: Mutex::new(State {
                is_node_eligible: !expects_node,
                families: families.collect(),
            }),
        }
    }

    /// A family is in step now.
    pub(crate) fn synced(&self, family: IpFamily) {
        for standing in &mut self.state().families {
            if standing.family == family {
                standing.last_updated = wall_clock::now();
                standing.has_synced = true;
            }
        }
    }

    /// What the Node object says.
    pub(crate) fn set_node_eligible(&self, is_eligible: bool) {
        self.state().is_node_eligible = is_eligible;
    }

    pub(crate) fn is_node_eligible(&self) -> bool {
        self.state().is_node_eligible
    }

    /// All families, in order.
    pub(crate) fn families(&self, now: Instant) -> Vec<FamilyStanding> {
        let mut families = self.state().families.clone();
        for standing in &mut families {
            standing.is_healthy = self.health.is_family_healthy(standing.family, now);
        }
        families
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every state of it is a valid one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
