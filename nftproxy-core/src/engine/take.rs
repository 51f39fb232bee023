//! From an event to the state. Entry point: `Engine::take`.

use std::collections::BTreeSet;
use std::time::Instant;

use super::flows::FlowTable;
use super::{Engine, Event};
use crate::apply::Kernel;
use crate::model::{EndpointSlice, IpFamily, Service, V4, V6};

impl<K4: Kernel<V4>, K6: Kernel<V6>, T: FlowTable> Engine<K4, K6, T> {
    /// Puts an event into the state; whether something has changed beyond dirty Services.
    pub(super) fn take(&mut self, event: Event, now: Instant) -> bool {
        match event {
            Event::ServiceApplied(service) => self.state.apply_service(service),
            Event::ServiceDeleted(name) => self.state.delete_service(&name),
            Event::ServicesListed(names) => {
                self.state.retain_services(|name| names.contains(name));
                // An empty list is complete as well.
                return !std::mem::replace(&mut self.services_listed, true);
            }
            Event::SliceApplied(slice) => self.state.apply_slice(slice),
            Event::SliceDeleted(name) => self.state.delete_slice(&name),
            Event::SlicesListed(names) => {
                self.state.retain_slices(|name| names.contains(name));
                return !std::mem::replace(&mut self.slices_listed, true);
            }
            Event::Replaced { services, slices } => return self.replace(services, slices),
            Event::ServiceCidrApplied(name, cidrs) => {
                self.state.apply_service_cidr(&name, cidrs);
                return true;
            }
            Event::ServiceCidrDeleted(name) => {
                self.state.delete_service_cidr(&name);
                return true;
            }
            Event::ServiceCidrsListed(names) => {
                self.state.retain_service_cidrs(|name| names.contains(name));
                return true;
            }
            Event::NodeChanged(node) => {
                let is_news = self.node != node;
                self.node = node;
                return !std::mem::replace(&mut self.is_node_known, true) || is_news;
            }
            Event::NodeGuessed(node) => {
                let is_news = self.node != node;
                self.node = node;
                return is_news;
            }
            Event::LocalAddressesChanged(addresses) => self.local_addresses = addresses,
            Event::FilterChanged(None) => self.state.refilter(),
            Event::FilterChanged(Some(names)) => {
                names
                    .iter()
                    .for_each(|name| self.state.refilter_service(name));
            }
            Event::Distrusted => {
                self.distrust();
                return true;
            }
            Event::Touched(incident) => {
                let family = incident.family;
                let is_ours = match family {
                    IpFamily::V4 => self.v4.as_mut().is_some_and(|v4| v4.touched(incident)),
                    IpFamily::V6 => self.v6.as_mut().is_some_and(|v6| v6.touched(incident)),
                };
                if is_ours {
                    self.health.damaged(family, now);
                    self.schedule.damaged();
                }
            }
            Event::Watched(is_watched) => {
                self.schedule.watched(is_watched, now);
                // What happened until now was not told.
                self.distrust();
                return self.has_synced();
            }
        }
        false
    }

    fn replace(&mut self, services: Vec<Service>, slices: Vec<EndpointSlice>) -> bool {
        let service_names: BTreeSet<_> = services
            .iter()
            .map(|service| service.name.clone())
            .collect();
        let slice_names: BTreeSet<_> = slices.iter().map(|slice| slice.name.clone()).collect();
        services
            .into_iter()
            .for_each(|service| self.state.apply_service(service));
        slices
            .into_iter()
            .for_each(|slice| self.state.apply_slice(slice));
        self.state
            .retain_services(|name| service_names.contains(name));
        self.state.retain_slices(|name| slice_names.contains(name));
        let was_listed = self.is_listed();
        (self.services_listed, self.slices_listed) = (true, true);
        !was_listed
    }
}
