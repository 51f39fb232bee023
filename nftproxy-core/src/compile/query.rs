//! What others may ask of a compilation: whose a destination is, and what an endpoint is to it.

use super::usable::candidates;
use super::{Compilation, port};
use crate::model::{
    EndpointAddress, Family, Service, ServiceName, ServicePort, ServicePortName, State,
};
use crate::ruleset::Comment;
use crate::ruleset::element::{Destination, Element, Key};

/// What an endpoint is to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// It is no endpoint of it, or no longer one that serves.
    Gone,
    /// It serves those that it has, and gets no new connections.
    Draining,
    /// It gets new connections.
    Usable,
}

impl<F: Family> Compilation<F> {
    /// The Service port that owns a destination.
    ///
    /// An address and port that no Service port has of its own may still be a NodePort: ask for
    /// the destination without its address then.
    pub fn owner(&self, state: &State, destination: &Destination<F>) -> Option<ServicePortName> {
        let owner = self.claims.owner(destination)?;
        Some(service_port_name(state, &owner.service, &owner.port))
    }

    /// What an endpoint is to a destination; `None` if no Service port owns the destination.
    ///
    /// The cost is that of looking through the Service port's endpoints.
    pub fn liveness(
        &self,
        state: &State,
        destination: &Destination<F>,
        endpoint: EndpointAddress<F>,
    ) -> Option<Liveness> {
        let owner = self.claims.owner(destination)?;
        let (service, slices) = state.service_and_slices(&owner.service);
        let service = service?;
        let port = port_of_comment(service, &owner.port)?;
        let rules = self.services.get(&owner.service)?.ports.iter();
        let is_usable = rules
            .filter(|rules| rules.comment == owner.port)
            .any(|rules| rules.leads_to(destination, &endpoint));
        if is_usable {
            return Some(Liveness::Usable);
        }
        let is_draining = candidates::<F>(service, port, slices, state.filter())
            .iter()
            .any(|candidate| candidate.at == endpoint && candidate.endpoint.serving);
        Some(if is_draining {
            Liveness::Draining
        } else {
            Liveness::Gone
        })
    }

    /// The Service port that an element belongs to.
    pub(crate) fn owner_of(&self, state: &State, element: &Element<F>) -> Option<ServicePortName> {
        let destination = match element.key() {
            Key::Address(_) | Key::Hairpin(_) => return None,
            Key::Destination(destination)
            | Key::Slot(destination, _)
            | Key::Client(_, destination)
            | Key::Source(destination, _, _) => destination,
        };
        self.owner(state, destination)
    }
}

/// The name of the Service port with this comment. Comments are cut to a length, and names are
/// not, so the Service is asked as long as it is there.
pub(super) fn service_port_name(
    state: &State,
    service: &ServiceName,
    comment: &Comment,
) -> ServicePortName {
    let known = state.service(service);
    let port = known.and_then(|service| port_of_comment(service, comment));
    let cut = || {
        let rest = comment
            .as_str()
            .strip_prefix(service.as_str())
            .unwrap_or_default();
        rest.strip_prefix(':').unwrap_or_default()
    };
    ServicePortName {
        service: service.clone(),
        port: port.map_or_else(|| cut().into(), |port| port.name.as_str().into()),
    }
}

pub(super) fn port_of_comment<'a>(
    service: &'a Service,
    comment: &Comment,
) -> Option<&'a ServicePort> {
    service
        .ports
        .iter()
        .find(|port| port::comment(service, port) == *comment)
}
