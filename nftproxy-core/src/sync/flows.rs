//! What syncs leave behind in connection tracking. Entry point: [`Syncer::take_leftovers`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Syncer;
use crate::apply::Kernel;
use crate::compile::{Leftovers, contains};
use crate::diff::Delta;
use crate::model::{Family, Node, State};
use crate::ruleset::element::{Element, Key};

impl<F: Family, K: Kernel<F>> Syncer<F, K> {
    /// Has nothing kept for [`Syncer::take_leftovers`], as nobody will call it.
    pub fn ignore_flows(&mut self) {
        self.compilation.ignore_flows();
    }

    /// The flows that the syncs since the last call left behind; see
    /// [`take_stale_flows`](crate::compile::Compilation::take_stale_flows). To be called after a sync that succeeded: before, new
    /// packets of a flow would be led the old way again.
    /// Nothing after [`Syncer::ignore_flows`].
    pub fn take_leftovers(&mut self, node_port_ips: &[IpAddr]) -> Leftovers<F> {
        if self.compilation.ignores_flows() {
            return Leftovers {
                flows: Vec::new(),
                one_way: Vec::new(),
            };
        }
        let service_cidrs = self
            .installed
            .as_ref()
            .map_or(&[][..], |installed| &installed.service_cidrs);
        let is_new = |cidr: &&_| !self.known_service_cidrs.contains(cidr);
        let mut one_way: Vec<_> = service_cidrs.iter().filter(is_new).copied().collect();
        self.known_service_cidrs = service_cidrs.to_vec();
        let mut misled = self.compilation.take_misled(node_port_ips);
        misled.retain(|address| !contains::<F>(&one_way, *address));
        let whole = F::ADDRESS_LEN as u8 * 8;
        one_way.extend(misled.into_iter().map(|address| (address, whole)));
        one_way.sort();
        Leftovers {
            flows: self.compilation.take_stale_flows(node_port_ips),
            one_way,
        }
    }

    /// Notes the flows that began while some elements were there that should not have been, others
    /// were missing, or anything was.
    pub(super) fn note_misled_flows(
        &mut self,
        state: &State,
        node: &Node,
        gone: &[Element<F>],
        come: &[Element<F>],
        is_all: bool,
    ) {
        let destination = |element: &Element<F>| match element.key() {
            Key::Destination(destination)
            | Key::Slot(destination, _)
            | Key::Source(destination, ..) => Some(*destination),
            Key::Address(_) | Key::Hairpin(_) | Key::Client(..) => None,
        };
        let mut destinations: BTreeSet<_> =
            gone.iter().chain(come).filter_map(destination).collect();
        // An address that was missing decides for whatever is there.
        let is_address =
            |element: &Element<F>| matches!(element.key(), Key::Address(_) | Key::Hairpin(_));
        let is_all = is_all || come.iter().any(is_address);
        if is_all {
            destinations.extend(self.compilation.destinations());
            self.known_service_cidrs.clear();
        }
        self.compilation
            .note_misled_flows(state, node, destinations);
    }
}

/// Whether any flow may have been led otherwise than the rules say that are in force now.
pub(super) fn has_misled_all<F: Family>(delta: &Delta<F>) -> bool {
    delta.table.is_new() || !delta.set_rules.is_empty()
}
