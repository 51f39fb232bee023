//! Which TCP endpoints there are at all, ready or not, and which have come or gone.

use super::counted::{Counted, Turnover};
use super::{EndpointAddress, EndpointSlice, Family, Protocol, V4, V6};

/// What has come and gone in both families.
pub(crate) struct Turnovers {
    pub(crate) v4: Turnover<EndpointAddress<V4>>,
    pub(crate) v6: Turnover<EndpointAddress<V6>>,
}

/// The TCP endpoints of all slices.
#[derive(Debug, Default)]
pub(super) struct Presence {
    v4: Counted<EndpointAddress<V4>>,
    v6: Counted<EndpointAddress<V6>>,
}

impl Presence {
    /// A slice is there.
    pub(super) fn add(&mut self, slice: &EndpointSlice) {
        endpoints::<V4>(slice).for_each(|endpoint| self.v4.add(endpoint));
        endpoints::<V6>(slice).for_each(|endpoint| self.v6.add(endpoint));
    }

    /// A slice that was there is not any more.
    pub(super) fn remove(&mut self, slice: &EndpointSlice) {
        endpoints::<V4>(slice).for_each(|endpoint| self.v4.remove(endpoint));
        endpoints::<V6>(slice).for_each(|endpoint| self.v6.remove(endpoint));
    }

    /// What has come and gone since the last call.
    pub(super) fn drain(&mut self) -> Turnovers {
        Turnovers {
            v4: self.v4.drain(),
            v6: self.v6.drain(),
        }
    }
}

fn endpoints<F: Family>(slice: &EndpointSlice) -> impl Iterator<Item = EndpointAddress<F>> {
    let ports = slice.ports.iter();
    let ports = ports.filter(|port| port.protocol == Protocol::Tcp);
    let endpoints = F::endpoints(&slice.endpoints).unwrap_or_default();
    ports.flat_map(move |port| {
        endpoints.iter().map(|endpoint| EndpointAddress {
            address: endpoint.address,
            port: port.port,
        })
    })
}
