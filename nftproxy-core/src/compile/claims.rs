//! Who owns a destination that several Service ports claim.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::port::RouteKind;
use crate::model::{Family, ServiceName};
use crate::ruleset::element::Destination;

/// A Service port's claim to a destination. The smallest claim wins: a ClusterIP before other
/// addresses, then the oldest Service, then by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) kind: RouteKind,
    pub(super) created: i64,
    pub(super) service: ServiceName,
    /// `namespace/name:port`
    pub(super) port: Arc<str>,
}

/// All claims, with those that lost kept apart, as they are few.
#[derive(Debug, Default)]
pub(super) struct Claims<F: Family> {
    owners: BTreeMap<Destination<F>, Claim>,
    losers: BTreeMap<Destination<F>, BTreeSet<Claim>>,
}

impl<F: Family> Claims<F> {
    /// Who owns the destination.
    pub(super) fn owner(&self, destination: &Destination<F>) -> Option<&Claim> {
        self.owners.get(destination)
    }

    /// Adds a claim. Returns the Service that loses the destination by it.
    pub(super) fn add(
        &mut self,
        destination: Destination<F>,
        mut claim: Claim,
    ) -> Option<ServiceName> {
        match self.owners.entry(destination) {
            Entry::Vacant(entry) => {
                entry.insert(claim);
                None
            }
            Entry::Occupied(mut entry) => {
                let displaced = (claim < *entry.get()).then(|| {
                    std::mem::swap(entry.get_mut(), &mut claim);
                    claim.service.clone()
                });
                self.losers.entry(destination).or_default().insert(claim);
                displaced
            }
        }
    }

    /// Removes a claim. Returns the Service that gets the destination by it.
    pub(super) fn remove(
        &mut self,
        destination: &Destination<F>,
        claim: &Claim,
    ) -> Option<ServiceName> {
        let losers = self.losers.get_mut(destination);
        if self.owners.get(destination) != Some(claim) {
            losers?.remove(claim);
            self.forget_if_uncontested(destination);
            return None;
        }
        match losers.and_then(BTreeSet::pop_first) {
            None => {
                self.owners.remove(destination);
                None
            }
            Some(heir) => {
                let service = heir.service.clone();
                self.owners.insert(*destination, heir);
                self.forget_if_uncontested(destination);
                Some(service)
            }
        }
    }

    fn forget_if_uncontested(&mut self, destination: &Destination<F>) {
        if self.losers.get(destination).is_some_and(BTreeSet::is_empty) {
            self.losers.remove(destination);
        }
    }
}
