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

    /// Notes that nothing is remembered any more that [`Compilation::may_remember`] refuses.
    pub fn affinity_swept(&mut self) {
        self.is_affinity_stale = false;
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
        let owner = [destination, &node_port]
            .into_iter()
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
pub(super) fn forgets<F: Family>(old: &PortRules<F>, new: Option<&PortRules<F>>) -> bool {
    if old.affinity.is_none() {
        return false;
    }
    let Some(new) = new.filter(|new| new.affinity.is_some()) else {
        return true;
    };
    let is_lost = |old: &[EndpointAddress<F>], new: &[EndpointAddress<F>]| {
        old.iter().any(|endpoint| !new.contains(endpoint))
    };
    old.routes.iter().any(|route| !new.routes.contains(route))
        || is_lost(&old.cluster, &new.cluster)
        || is_lost(&old.local, &new.local)
}
