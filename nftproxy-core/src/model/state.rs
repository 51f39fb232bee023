//! The state of the cluster, and what of it has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::presence::{Presence, Turnovers};
use super::{EndpointSlice, Family, Filter, Service, ServiceName, SliceName};

/// Services, EndpointSlices and ServiceCIDRs, as last seen, in any order of arrival.
///
/// Each change marks the Service concerned as dirty; [`State::take_dirty`] hands the marks over.
/// A change that rules cannot depend on marks nothing. Slices of an unknown Service are kept, as
/// the Service may arrive later.
///
/// A [`Filter`] decides which Services it is about: others are kept aside, and nobody sees them.
#[derive(Debug, Default)]
pub struct State {
    by_name: BTreeMap<ServiceName, Entry>,
    /// Services that the filter leaves to others.
    disowned: BTreeMap<ServiceName, Service>,
    filter: Option<Arc<dyn Filter>>,
    /// Which Service each slice is filed under.
    service_of_slice: BTreeMap<SliceName, ServiceName>,
    service_cidrs: BTreeMap<Box<str>, Box<[IpNet]>>,
    dirty: BTreeSet<ServiceName>,
    /// Which endpoints there are, if anybody asks.
    presence: Option<Box<Presence>>,
}

/// What is known of a Service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) name: &'a ServiceName,
    /// Another one whenever something of it changed, or the filter is asked anew; so are slices.
    pub(crate) service: Option<&'a Arc<Service>>,
    /// In order of name.
    pub(crate) slices: &'a [Arc<EndpointSlice>],
}

/// What is known under a Service's name; never nothing.
#[derive(Debug, Default)]
struct Entry {
    /// Shared, as are slices, with those who remember what they have seen.
    service: Option<Arc<Service>>,
    /// In order of name.
    slices: Vec<Arc<EndpointSlice>>,
}

impl Entry {
    fn slice(&self, name: &SliceName) -> Result<usize, usize> {
        self.slices.binary_search_by(|slice| slice.name.cmp(name))
    }
}

impl State {
    /// A state that knows nothing, and sees what comes through a filter.
    pub fn with_filter(filter: Arc<dyn Filter>) -> Self {
        Self {
            filter: Some(filter),
            ..Self::default()
        }
    }

    /// Keeps account of which endpoints there are, from before the first one on.
    pub(crate) fn track_presence(&mut self) {
        self.presence = Some(Box::default());
    }

    /// The TCP endpoints that have come and gone since the last call: those that slices have at all,
    /// ready or not. Nothing, unless somebody keeps account.
    pub(crate) fn take_presence(&mut self) -> Option<Turnovers> {
        Some(self.presence.as_mut()?.drain())
    }

    /// The filter, if there is one.
    pub fn filter(&self) -> Option<&dyn Filter> {
        self.filter.as_deref()
    }

    /// Asks the filter about every Service again, and marks all as dirty, as its answers about
    /// endpoints may have changed too.
    pub fn refilter(&mut self) {
        let known = self
            .by_name
            .iter()
            .filter(|(_, entry)| entry.service.is_some());
        let names: Vec<_> = known
            .map(|(name, _)| name)
            .chain(self.disowned.keys())
            .cloned()
            .collect();
        for name in names {
            self.refilter_service(&name);
        }
    }

    /// The same for one Service.
    pub fn refilter_service(&mut self, name: &ServiceName) {
        let owned = self
            .by_name
            .get_mut(name)
            .and_then(|entry| entry.service.take());
        let Some(service) = owned
            .map(Arc::unwrap_or_clone)
            .or_else(|| self.disowned.remove(name))
        else {
            return;
        };
        self.dirty.insert(name.clone());
        self.apply_service(service);
    }

    /// Adds or replaces a Service.
    pub fn apply_service(&mut self, service: Service) {
        if self.filter().is_some_and(|filter| !filter.owns(&service)) {
            self.delete_service(&service.name);
            self.disowned.insert(service.name.clone(), service);
            return;
        }
        self.disowned.remove(&service.name);
        let name = service.name.clone();
        let entry = self.by_name.entry(name.clone()).or_default();
        if entry.service.as_deref() != Some(&service) {
            entry.service = Some(Arc::new(service));
            self.dirty.insert(name);
        }
    }

    /// Removes a Service; its slices are kept.
    pub fn delete_service(&mut self, name: &ServiceName) {
        self.disowned.remove(name);
        let Some(entry) = self.by_name.get_mut(name) else {
            return;
        };
        if entry.service.take().is_some() {
            self.dirty.insert(name.clone());
        }
        if entry.slices.is_empty() {
            self.by_name.remove(name);
        }
    }

    /// Removes the Services that `keep` refuses: the end of a complete list.
    pub fn retain_services(&mut self, keep: impl Fn(&ServiceName) -> bool) {
        let names = self.services().map(|service| &service.name);
        let gone: Vec<_> = names.filter(|name| !keep(name)).cloned().collect();
        for name in gone {
            self.delete_service(&name);
        }
        self.disowned.retain(|name, _| keep(name));
    }

    /// Adds or replaces a slice. If it has moved to another Service, both are affected.
    pub fn apply_slice(&mut self, mut slice: EndpointSlice) {
        // Who looks for the endpoints of a Service sorts them all, and finds most of it done.
        slice.endpoints.sort();
        let known_as = self.service_of_slice.get(&slice.name);
        if known_as.is_some_and(|service| *service != slice.service) {
            self.delete_slice(&slice.name);
        }
        let entry = self.by_name.entry(slice.service.clone());
        // One copy of the name for all that have it.
        slice.service = entry.key().clone();
        let (name, service) = (slice.name.clone(), slice.service.clone());
        let entry = entry.or_default();
        match entry.slice(&name) {
            Ok(index) if *entry.slices[index] == slice => return,
            Ok(index) => {
                if let Some(presence) = &mut self.presence {
                    presence.add(&slice);
                    presence.remove(&entry.slices[index]);
                }
                entry.slices[index] = Arc::new(slice);
            }
            Err(index) => {
                if let Some(presence) = &mut self.presence {
                    presence.add(&slice);
                }
                // Most Services have one, or one per family.
                entry.slices.reserve_exact(1);
                entry.slices.insert(index, Arc::new(slice));
                self.service_of_slice.insert(name, service.clone());
            }
        }
        self.dirty.insert(service);
    }

    /// Whether applying this slice would change nothing. Its endpoints are put in order, as applying
    /// does.
    pub fn knows_slice(&self, slice: &mut EndpointSlice) -> bool {
        slice.endpoints.sort();
        let mut known = self.slices(&slice.service).iter();
        known.any(|known| **known == *slice)
    }

    /// Removes a slice.
    pub fn delete_slice(&mut self, name: &SliceName) {
        let Some(service) = self.service_of_slice.remove(name) else {
            return;
        };
        if let Some(entry) = self.by_name.get_mut(&service) {
            if let Ok(index) = entry.slice(name) {
                let slice = entry.slices.remove(index);
                if let Some(presence) = &mut self.presence {
                    presence.remove(&slice);
                }
            }
            if entry.slices.is_empty() && entry.service.is_none() {
                self.by_name.remove(&service);
            }
        }
        self.dirty.insert(service);
    }

    /// Removes the slices that `keep` refuses: the end of a complete list.
    pub fn retain_slices(&mut self, keep: impl Fn(&SliceName) -> bool) {
        let names = self.service_of_slice.keys();
        let gone: Vec<_> = names.filter(|name| !keep(name)).cloned().collect();
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
        let names = self.by_name.values().filter_map(|entry| {
            let service = entry.service.as_deref()?;
            Some(service.name.clone())
        });
        self.dirty.extend(names);
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
        self.service_and_slices(name).0
    }

    /// All Services, in order of name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.by_name
            .values()
            .filter_map(|entry| entry.service.as_deref())
    }

    /// The slices of a Service, in order of slice name.
    pub fn slices(&self, service: &ServiceName) -> &[Arc<EndpointSlice>] {
        self.service_and_slices(service).1
    }

    /// A Service by name, and its slices, in order of slice name.
    pub fn service_and_slices(
        &self,
        name: &ServiceName,
    ) -> (Option<&Service>, &[Arc<EndpointSlice>]) {
        match self.by_name.get(name) {
            Some(Entry { service, slices }) => (service.as_deref(), slices),
            None => (None, &[]),
        }
    }

    /// What is known of each of these, which come in order.
    pub(crate) fn known<'a>(
        &'a self,
        names: impl ExactSizeIterator<Item = &'a ServiceName>,
    ) -> Vec<Known<'a>> {
        // Walking along is cheaper than searching, if most of what is passed is wanted.
        let mut entries =
            (names.len() > self.by_name.len() / 4).then(|| self.by_name.iter().peekable());
        let known = |name| {
            let entry = match &mut entries {
                Some(entries) => {
                    while entries
                        .next_if(|(other, _)| *other != name && *other < name)
                        .is_some()
                    {}
                    entries
                        .next_if(|(other, _)| *other == name)
                        .map(|(_, entry)| entry)
                }
                None => self.by_name.get(name),
            };
            Known {
                name,
                service: entry.and_then(|entry| entry.service.as_ref()),
                slices: entry.map_or(&[], |entry| &entry.slices),
            }
        };
        names.map(known).collect()
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
