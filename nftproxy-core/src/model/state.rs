//! The state of the cluster, and what of it has changed.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{EndpointSlice, Family, Service, ServiceName, SliceName};

/// Services, EndpointSlices and ServiceCIDRs, as last seen, in any order of arrival.
///
/// Each change marks the Service concerned as dirty; [`State::take_dirty`] hands the marks over.
/// A change that rules cannot depend on marks nothing. Slices of an unknown Service are kept, as
/// the Service may arrive later.
#[derive(Debug, Default)]
pub struct State {
    services: BTreeMap<ServiceName, Service>,
    slices: BTreeMap<SliceName, EndpointSlice>,
    /// Which slices belong to a Service: the index of `slices` by their `service` field.
    slices_by_service: BTreeMap<ServiceName, BTreeSet<SliceName>>,
    service_cidrs: BTreeMap<Box<str>, Box<[IpNet]>>,
    dirty: BTreeSet<ServiceName>,
}

impl State {
    /// Adds or replaces a Service.
    pub fn apply_service(&mut self, service: Service) {
        let name = service.name.clone();
        if self.services.get(&name) != Some(&service) {
            self.services.insert(name.clone(), service);
            self.dirty.insert(name);
        }
    }

    /// Removes a Service; its slices are kept.
    pub fn delete_service(&mut self, name: &ServiceName) {
        if self.services.remove(name).is_some() {
            self.dirty.insert(name.clone());
        }
    }

    /// Removes the Services that `keep` refuses: the end of a complete list.
    pub fn retain_services(&mut self, keep: impl Fn(&ServiceName) -> bool) {
        let gone: Vec<_> = self
            .services
            .keys()
            .filter(|name| !keep(name))
            .cloned()
            .collect();
        for name in gone {
            self.delete_service(&name);
        }
    }

    /// Adds or replaces a slice. If it has moved to another Service, both are affected.
    pub fn apply_slice(&mut self, mut slice: EndpointSlice) {
        // Who looks for the endpoints of a Service sorts them all, and finds most of it done.
        slice.endpoints.sort();
        match self.slices.get(&slice.name) {
            Some(old) if *old == slice => return,
            Some(old) if old.service != slice.service => self.delete_slice(&slice.name.clone()),
            _ => {}
        }
        self.slices_by_service
            .entry(slice.service.clone())
            .or_default()
            .insert(slice.name.clone());
        self.dirty.insert(slice.service.clone());
        self.slices.insert(slice.name.clone(), slice);
    }

    /// Removes a slice.
    pub fn delete_slice(&mut self, name: &SliceName) {
        let Some(slice) = self.slices.remove(name) else {
            return;
        };
        if let Some(names) = self.slices_by_service.get_mut(&slice.service) {
            names.remove(name);
            if names.is_empty() {
                self.slices_by_service.remove(&slice.service);
            }
        }
        self.dirty.insert(slice.service);
    }

    /// Removes the slices that `keep` refuses: the end of a complete list.
    pub fn retain_slices(&mut self, keep: impl Fn(&SliceName) -> bool) {
        let gone: Vec<_> = self
            .slices
            .keys()
            .filter(|name| !keep(name))
            .cloned()
            .collect();
        for name in gone {
            self.delete_slice(&name);
        }
    }

    /// Adds or replaces the `spec.cidrs` of a ServiceCIDR object.
    pub fn apply_service_cidr(&mut self, name: &str, cidrs: impl IntoIterator<Item = IpNet>) {
        self.service_cidrs
            .insert(name.into(), cidrs.into_iter().collect());
    }

    /// Removes a ServiceCIDR object.
    pub fn delete_service_cidr(&mut self, name: &str) {
        self.service_cidrs.remove(name);
    }

    /// Removes the ServiceCIDR objects that `keep` refuses: the end of a complete list.
    pub fn retain_service_cidrs(&mut self, keep: impl Fn(&str) -> bool) {
        self.service_cidrs.retain(|name, _| keep(name));
    }

    /// Marks every Service as dirty, for when something changed that all depend on.
    pub fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.services.keys().cloned());
    }

    /// The Services whose rules may have changed since the last call, in order of name.
    pub fn take_dirty(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.dirty)
    }

    /// Whether [`State::take_dirty`] would return anything.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// A Service by name.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name)
    }

    /// All Services, in order of name.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Service> {
        self.services.values()
    }

    /// The slices of a Service, in order of slice name.
    pub fn slices(&self, service: &ServiceName) -> impl Iterator<Item = &EndpointSlice> {
        let names = self.slices_by_service.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name))
    }

    /// The ranges of all ServiceCIDRs in one family (address, prefix length), merged, in order.
    pub fn service_cidrs<F: Family>(&self) -> Vec<(F::Address, u8)> {
        let all: Vec<IpNet> = self
            .service_cidrs
            .values()
            .flatten()
            .map(IpNet::trunc)
            .collect();
        IpNet::aggregate(&all)
            .iter()
            .filter_map(F::prefix)
            .collect()
    }
}
