//! What a kernel is known to hold at a start, so that slots stay where they are. Entry point:
//! [`Seeds::of`].

use std::collections::BTreeMap;

use super::port::Route;
use crate::model::{EndpointAddress, Family, TrafficPolicy};
use crate::ruleset::FamilyRuleset;
use crate::ruleset::element::{Data, Destination, Key};
use crate::ruleset::name::SlotMap;

/// Slots that a kernel is known to hold, to be kept where possible.
#[derive(Debug)]
pub struct Seeds<F: Family>(BTreeMap<(SlotMap, Destination<F>), Vec<EndpointAddress<F>>>);

impl<F: Family> Default for Seeds<F> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<F: Family> Seeds<F> {
    /// Takes the slots out of a ruleset.
    pub fn of(ruleset: &FamilyRuleset<F>) -> Self {
        let mut seeds = BTreeMap::<_, Vec<_>>::new();
        // In order of key, so that the slots of a destination come in order.
        for element in &ruleset.elements {
            if let (Key::Slot(destination, _), Data::Endpoint(endpoint), Some(map)) =
                (element.key(), element.data(), SlotMap::of(element.set()))
            {
                seeds
                    .entry((map, *destination))
                    .or_default()
                    .push(*endpoint);
            }
        }
        Self(seeds)
    }
}

impl<F: Family> Seeds<F> {
    /// The slots of the first of these destinations that has any, cluster-wide and local.
    pub(super) fn of_routes(
        &self,
        routes: &[Route<F>],
    ) -> (&[EndpointAddress<F>], &[EndpointAddress<F>]) {
        let find = |policy: TrafficPolicy| {
            routes
                .iter()
                .find_map(|route| self.0.get(&(route.slot_map(policy)?, route.destination)))
                .map_or(&[][..], Vec::as_slice)
        };
        (find(TrafficPolicy::Cluster), find(TrafficPolicy::Local))
    }
}
