//! One family's side of the engine: a failure in one family does not delay the other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::flows::{FlowFamily, Flows};
use super::outcome::Outcome;
use crate::apply::netlink::trim_heap;
use crate::apply::{ApplyError, Kernel};
use crate::model::{Node, NodePortAddresses, ServiceName, State};
use crate::sync::Syncer;

/// Elements in a sync that is worth giving memory back after.
const LARGE: usize = 10_000;

#[derive(Debug)]
pub(super) struct Half<F: FlowFamily, K> {
    pub(super) syncer: Syncer<F, K>,
    /// Dirty Services that this family has yet to sync.
    pub(super) dirty: BTreeSet<ServiceName>,
    pub(super) has_synced: bool,
    failed: bool,
    /// A sync was large, and its memory has not been given back.
    is_heap_untidy: bool,
}

impl<F: FlowFamily, K: Kernel<F>> Half<F, K> {
    pub(super) fn new(kernel: K, tracks_flows: bool) -> Self {
        let mut syncer = Syncer::new(kernel);
        if !tracks_flows {
            syncer.ignore_flows();
        }
        Self {
            syncer,
            dirty: BTreeSet::new(),
            has_synced: false,
            failed: false,
            is_heap_untidy: false,
        }
    }

    /// Syncs, and says what came of it; the flows that are left behind, if any.
    ///
    /// `local_addresses` are those of this host.
    pub(super) fn sync(
        &mut self,
        state: &State,
        node: &Node,
        local_addresses: &[IpAddr],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<Option<Flows>, ApplyError> {
        let family = F::FAMILY;
        let mut report = match self.syncer.sync(state, node, &self.dirty) {
            Ok(report) => report,
            Err(error) => {
                self.failed = true;
                return Err(error);
            }
        };
        self.has_synced = true;
        self.is_heap_untidy |= report.full || report.counts.elements() > LARGE;
        let appeared = std::mem::take(&mut report.appeared);
        let went = std::mem::take(&mut report.went);
        if report.is_repair {
            let counts = report.counts;
            outcomes.push(Outcome::Repaired { family, counts });
        }
        outcomes.push(Outcome::Synced {
            family,
            report,
            changed: std::mem::take(&mut self.dirty),
            is_recovery: std::mem::take(&mut self.failed),
        });
        outcomes.extend(
            appeared
                .into_iter()
                .map(|note| Outcome::NoteAppeared { family, note }),
        );
        outcomes.extend(
            went.into_iter()
                .map(|note| Outcome::NoteWent { family, note }),
        );
        Ok(self.leftovers(node, local_addresses))
    }

    fn leftovers(&mut self, node: &Node, local_addresses: &[IpAddr]) -> Option<Flows> {
        let node_port_ips: Vec<_> = match node.node_port_addresses::<F>() {
            NodePortAddresses::Only(ips) => ips.iter().copied().collect(),
            NodePortAddresses::All => local_addresses
                .iter()
                .copied()
                .filter(|ip| !ip.is_loopback())
                .collect(),
        };
        let leftovers = self.syncer.take_leftovers(&node_port_ips);
        (!leftovers.is_empty()).then(|| F::flows(leftovers))
    }

    /// Does what has time.
    pub(super) fn tidy(&mut self, trims_heap: bool, outcomes: &mut Vec<Outcome>) {
        let family = F::FAMILY;
        if std::mem::take(&mut self.is_heap_untidy) && trims_heap {
            trim_heap();
        }
        if let Err(error) = self.syncer.sweep_affinity() {
            outcomes.push(Outcome::TidyFailed { family, error });
        }
        match self.syncer.delete_unused_picks() {
            Ok(0) => {}
            Ok(count) => outcomes.push(Outcome::ChainsDeleted { family, count }),
            Err(error) => outcomes.push(Outcome::TidyFailed { family, error }),
        }
    }
}
