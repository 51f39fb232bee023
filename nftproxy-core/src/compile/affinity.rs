//! Whom session affinity may lead where it did before.
//!
//! What clients were remembered for is known to the kernel only; here is decided what of it may
//! stay, and when it has to be looked at. Entry point: [`Compilation::may_remember`].

use super::Compilation;
use super::port::PortRules;
use crate::model::{EndpointAddress, Family};
use crate::ruleset::element::{Data, Destination, Element, Key};

impl<F: Family> Compilation<F> {
    /// Whether session affinity may remember endpoints that are no longer usable, since the last
    /// call of [`Compilation::affinity_swept`].
    pub fn is_affinity_stale(&self) -> bool {
        self.is_affinity_stale
    }

    /// Notes that anything may be remembered.
    pub fn distrust_affinity(&mut self) {
        self.is_affinity_stale = true;
    }

    /// Notes that clients may be remembered at addresses that Services have just lost, so that this
    /// is not taken for what NodePorts of the same number remember.
    pub(crate) fn distrust_affinity_at(&mut self, lost: impl IntoIterator<Item = Destination<F>>) {
        self.distrust_affinity();
        self.lost_sticky.extend(lost);
    }

    /// Notes that nothing is remembered any more that [`Compilation::may_remember`] refuses.
    pub fn affinity_swept(&mut self) {
        self.is_affinity_stale = false;
        self.lost_sticky.clear();
    }

    /// Whether a client that is known to have got an endpoint at a destination may get it again.
    pub fn may_remember(&self, element: &Element<F>) -> bool {
        let (Key::Client(_, destination), Data::Endpoint(endpoint)) =
            (element.key(), element.data())
        else {
            return false;
        };
        let node_port = Destination {
            address: None,
            ..*destination
        };
        // Nobody here knows which addresses are the node's.
        let may_be_node_port = !self.lost_sticky.contains(destination);
        let owner = [Some(destination), may_be_node_port.then_some(&node_port)]
            .into_iter()
            .flatten()
            .find_map(|destination| Some((destination, self.claims.owner(destination)?)));
        let Some((destination, owner)) = owner else {
            return false;
        };
        let ports = self
            .services
            .get(&owner.service)
            .map(|service| &service.ports);
        // What clients on this node had beyond what is local, under policy Local, is forgotten with
        // the rest, as it cannot be told whose it is.
        ports
            .into_iter()
            .flatten()
            .any(|rules| rules.affinity.is_some() && rules.leads_to(destination, endpoint))
    }
}

/// Whether something may be remembered for `old` that must not be for `new`.
pub(super) fn forgets<F: Family>(old: Option<&PortRules<F>>, new: Option<&PortRules<F>>) -> bool {
    // An address takes over what a NodePort of its number had there.
    let old_routes = old.map_or(&[][..], |old| &old.routes);
    let mut routes = new.into_iter().flat_map(|new| &new.routes);
    if routes.any(|route| route.beside_sticky && !old_routes.contains(route)) {
        return true;
    }
    let Some(old) = old.filter(|old| old.affinity.is_some()) else {
        return false;
    };
    let Some(new) = new.filter(|new| new.affinity.is_some()) else {
        return true;
    };
    let is_lost = |old: &[EndpointAddress<F>], new: &[EndpointAddress<F>]| {
        // Most are where they were.
        let mut slots = old.iter().enumerate();
        slots.any(|(slot, endpoint)| new.get(slot) != Some(endpoint) && !new.contains(endpoint))
    };
    old.routes.iter().any(|route| !new.routes.contains(route))
        || is_lost(&old.cluster, &new.cluster)
        || is_lost(&old.local, &new.local)
}
