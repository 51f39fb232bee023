//! What can be asked of an engine about Services, as of its last sync.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::flows::{FlowFamily, FlowTable};
use super::half::Half;
use super::{Engine, HealthChecks};
use crate::apply::Kernel;
use crate::compile::{Liveness, Note};
use crate::model::{
    EndpointAddress, Family, IpFamily, ServiceAddress, ServiceName, ServicePortName, State, V4, V6,
};
use crate::ruleset::element::Destination;

impl<K4: Kernel<V4>, K6: Kernel<V6>, T: FlowTable> Engine<K4, K6, T> {
    /// What is left out of the Services now, in order of family and Service.
    pub fn notes(&self) -> impl Iterator<Item = (IpFamily, &Note)> {
        let v4 = self.v4.iter().flat_map(|v4| v4.syncer.notes());
        let v6 = self.v6.iter().flat_map(|v6| v6.syncer.notes());
        v4.map(|note| (IpFamily::V4, note))
            .chain(v6.map(|note| (IpFamily::V6, note)))
    }

    /// What these Services want of health-check node ports in a family: those of an
    /// [`Outcome::Synced`](super::Outcome::Synced), say.
    pub fn health_checks(&self, family: IpFamily, changed: &BTreeSet<ServiceName>) -> HealthChecks {
        match family {
            IpFamily::V4 => HealthChecks::new::<V4>(&self.state, &self.node, changed),
            IpFamily::V6 => HealthChecks::new::<V6>(&self.state, &self.node, changed),
        }
    }

    /// Whose an address and port is; `None` if it is no Service's.
    ///
    /// An address with a port that no Service has there may be a NodePort of the node: ask without
    /// the address then.
    pub fn owner(&self, destination: ServiceAddress) -> Option<ServicePortName> {
        match destination.ip {
            None => owner(&self.v4, &self.state, destination)
                .or_else(|| owner(&self.v6, &self.state, destination)),
            Some(IpAddr::V4(_)) => owner(&self.v4, &self.state, destination),
            Some(IpAddr::V6(_)) => owner(&self.v6, &self.state, destination),
        }
    }

    /// What an endpoint is to a destination; `None` if the destination is no Service's. As of the
    /// last sync, but for what terminates.
    pub fn liveness(&self, destination: ServiceAddress, endpoint: SocketAddr) -> Option<Liveness> {
        match endpoint {
            SocketAddr::V4(_) => liveness(&self.v4, &self.state, destination, endpoint),
            SocketAddr::V6(_) => liveness(&self.v6, &self.state, destination, endpoint),
        }
    }
}

fn destination<F: Family>(address: ServiceAddress) -> Option<Destination<F>> {
    let ServiceAddress { ip, protocol, port } = address;
    Some(Destination {
        address: match ip {
            Some(ip) => Some(F::address(ip)?),
            None => None,
        },
        protocol,
        port,
    })
}

fn owner<F: FlowFamily, K: Kernel<F>>(
    half: &Option<Half<F, K>>,
    state: &State,
    address: ServiceAddress,
) -> Option<ServicePortName> {
    let compilation = half.as_ref()?.syncer.compilation();
    compilation.owner(state, &destination(address)?)
}

fn liveness<F: FlowFamily, K: Kernel<F>>(
    half: &Option<Half<F, K>>,
    state: &State,
    address: ServiceAddress,
    endpoint: SocketAddr,
) -> Option<Liveness> {
    let compilation = half.as_ref()?.syncer.compilation();
    let destination = destination(address)?;
    let (Some(address), Ok(port)) = (F::address(endpoint.ip()), endpoint.port().try_into()) else {
        return Some(Liveness::Gone);
    };
    compilation.liveness(state, &destination, EndpointAddress { address, port })
}
