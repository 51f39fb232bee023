//! One family's side of the engine: a failure in one family does not delay the other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::flows::{FlowFamily, Flows};
use super::outcome::{Cause, Outcome};
use crate::apply::netlink::trim_heap;
use crate::apply::{ApplyError, Incident, Kernel, Scope};
use crate::model::{Node, NodePortAddresses, ServiceName, State};
use crate::ruleset::Table;
use crate::sync::{Report, Syncer};

/// Elements in a sync that is worth giving memory back after.
const LARGE: usize = 10_000;

/// What was done to a table.
pub(super) struct Done {
    pub(super) report: Report,
    /// If it agrees now with everything that was applied.
    pub(super) synced: Option<Synced>,
    /// Why the table was looked at, if it was for its own sake.
    pub(super) cause: Option<Cause>,
    /// The flows that are left behind, if any.
    pub(super) flows: Option<Flows>,
}

/// What an ordinary or full sync has beside its report.
pub(super) struct Synced {
    pub(super) changed: BTreeSet<ServiceName>,
    pub(super) is_recovery: bool,
}

#[derive(Debug)]
pub(super) struct Half<F: FlowFamily, K> {
    pub(super) syncer: Syncer<F, K>,
    /// Dirty Services that this family has yet to sync.
    pub(super) dirty: BTreeSet<ServiceName>,
    pub(super) has_synced: bool,
    /// Another proxy's table that the first sync takes over.
    predecessor: Option<Table>,
    failed: bool,
    /// What others did to the table since it was last looked at.
    incident: Option<Incident>,
    /// The table has to be compared as a whole, as that of the other family was gone.
    is_suspect: bool,
    /// A sync was large, and its memory has not been given back.
    is_heap_untidy: bool,
}

impl<F: FlowFamily, K: Kernel<F>> Half<F, K> {
    pub(super) fn new(kernel: K, tracks_flows: bool, predecessor: Option<Table>) -> Self {
        let mut syncer = Syncer::new(kernel);
        if !tracks_flows {
            syncer.ignore_flows();
        }
        Self {
            syncer,
            dirty: BTreeSet::new(),
            has_synced: false,
            predecessor,
            failed: false,
            incident: None,
            is_suspect: false,
            is_heap_untidy: false,
        }
    }

    /// Syncs.
    ///
    /// `local_addresses` are those of this host.
    pub(super) fn sync(
        &mut self,
        state: &State,
        node: &Node,
        local_addresses: &[IpAddr],
    ) -> Result<Done, ApplyError> {
        if let Some(table) = self.predecessor.clone().filter(|_| !self.has_synced) {
            let ips = node_port_ips::<F>(node, local_addresses);
            let ips = ips.into_iter().filter_map(F::address).collect();
            self.syncer.take_over(table, ips);
        }
        let result = self.syncer.sync(state, node, &self.dirty);
        let report = self.noted(result)?;
        let cause = report.is_repair.then_some(Cause::Comparison);
        Ok(self.done(report, true, cause, node, local_addresses))
    }

    /// Sets right what others did. `None` if nobody did anything.
    pub(super) fn repair(
        &mut self,
        state: &State,
        node: &Node,
        local_addresses: &[IpAddr],
    ) -> Result<Option<Done>, ApplyError> {
        let scope = match (&self.incident, self.is_suspect) {
            (None, false) => return Ok(None),
            (_, true) => Scope::Everything,
            (Some(incident), false) => incident.scope.clone(),
        };
        let result = self.syncer.repair(&scope, state, node, &self.dirty);
        let report = self.noted(result)?;
        let cause = match self.incident.take() {
            Some(incident) => Cause::Touched(incident),
            None => Cause::OtherFamily,
        };
        self.is_suspect = false;
        let is_synced = report.full;
        Ok(Some(self.done(
            report,
            is_synced,
            Some(cause),
            node,
            local_addresses,
        )))
    }

    /// Others have touched the table. Returns whether it is to be looked at: before the first sync
    /// it is not known what it should be.
    pub(super) fn touched(&mut self, incident: Incident) -> bool {
        if self.has_synced {
            match &mut self.incident {
                Some(known) => known.merge(incident),
                None => self.incident = Some(incident),
            }
        }
        self.has_synced
    }

    /// The other family's table had to be made anew: this one may be gone, too.
    pub(super) fn suspect(&mut self) {
        self.is_suspect = self.has_synced;
    }

    /// Whether the table is to be looked at.
    pub(super) fn is_doubtful(&self) -> bool {
        self.incident.is_some() || self.is_suspect
    }

    fn noted(&mut self, result: Result<Report, ApplyError>) -> Result<Report, ApplyError> {
        self.failed |= result.is_err();
        result
    }

    fn done(
        &mut self,
        report: Report,
        is_synced: bool,
        cause: Option<Cause>,
        node: &Node,
        local_addresses: &[IpAddr],
    ) -> Done {
        self.is_heap_untidy |= report.full || report.counts.elements() > LARGE;
        if report.full {
            self.incident = None;
            self.is_suspect = false;
        }
        if report.committed.is_overheard {
            self.touched(Incident::unknown(F::FAMILY));
        }
        let synced = is_synced.then(|| {
            self.has_synced = true;
            Synced {
                changed: std::mem::take(&mut self.dirty),
                is_recovery: std::mem::take(&mut self.failed),
            }
        });
        Done {
            report,
            synced,
            cause,
            flows: self.leftovers(node, local_addresses),
        }
    }

    fn leftovers(&mut self, node: &Node, local_addresses: &[IpAddr]) -> Option<Flows> {
        let node_port_ips = node_port_ips::<F>(node, local_addresses);
        let leftovers = self.syncer.take_leftovers(&node_port_ips);
        (!leftovers.is_empty()).then(|| F::flows(leftovers))
    }

    /// Does what has time.
    pub(super) fn tidy(&mut self, trims_heap: bool, outcomes: &mut Vec<Outcome>) {
        let family = F::FAMILY;
        if let Err(error) = self.syncer.sweep_affinity() {
            outcomes.push(Outcome::TidyFailed { family, error });
        }
        match self.syncer.delete_unused_chains() {
            Ok(0) => {}
            Ok(count) => outcomes.push(Outcome::ChainsDeleted { family, count }),
            Err(error) => {
                // Something may use them that nobody here knows of.
                self.syncer.distrust();
                outcomes.push(Outcome::ChainDeletionFailed { family, error });
            }
        }
        if let Err(error) = self.syncer.write_about() {
            outcomes.push(Outcome::TidyFailed { family, error });
        }
        if std::mem::take(&mut self.is_heap_untidy) && trims_heap {
            trim_heap();
        }
    }
}

/// Where this node has NodePorts; of another family, too, if they are at all of its addresses.
fn node_port_ips<F: FlowFamily>(node: &Node, local_addresses: &[IpAddr]) -> Vec<IpAddr> {
    match node.node_port_addresses::<F>() {
        NodePortAddresses::Only(ips) => ips.iter().copied().collect(),
        NodePortAddresses::All => local_addresses
            .iter()
            .copied()
            .filter(|ip| !ip.is_loopback())
            .collect(),
    }
}
