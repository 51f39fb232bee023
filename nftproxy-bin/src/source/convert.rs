//! From Kubernetes objects to events, whether they come from an API server or from files.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nftproxy_core::engine;
use nftproxy_core::k8s::{self, Problem};
use nftproxy_core::model::{ServiceName, SliceName};
use tracing::warn;

use super::Event;

/// How objects of a kind become events.
pub(crate) trait Convert<K> {
    /// What tells objects of the kind apart.
    type Name: Ord;

    /// The object's name.
    fn name(&self, object: &K) -> Self::Name;
    /// What it means that the object is there. Problems are noted by the caller.
    fn applied(&self, object: &K, problems: &mut Vec<Problem>) -> Event;
    /// What it means that it is gone.
    fn deleted(&self, name: Self::Name) -> Event;
    /// What it means that there are just these.
    fn listed(&self, names: BTreeSet<Self::Name>) -> Event;
}

/// Converts an object and reports what of it could not be used.
pub(crate) fn applied<K>(convert: &impl Convert<K>, object: &K) -> Event {
    let mut problems = Vec::new();
    let event = convert.applied(object, &mut problems);
    for Problem { object, message } in problems {
        warn!(object, "{message}");
    }
    event
}

/// Conversion of Services.
pub(crate) struct Services {
    /// Whether `spec.externalIPs` counts: the feature gate `AllowServiceExternalIPs`.
    pub(crate) allow_external_ips: bool,
}

impl Convert<core::Service> for Services {
    type Name = ServiceName;

    fn name(&self, object: &core::Service) -> Self::Name {
        k8s::service_name(object)
    }

    fn applied(&self, object: &core::Service, problems: &mut Vec<Problem>) -> Event {
        match k8s::service(object, problems) {
            Some(mut service) => {
                if !self.allow_external_ips {
                    service.external_ips = Box::default();
                }
                engine::Event::ServiceApplied(service).into()
            }
            None => engine::Event::ServiceDeleted(k8s::service_name(object)).into(),
        }
    }

    fn deleted(&self, name: Self::Name) -> Event {
        engine::Event::ServiceDeleted(name).into()
    }

    fn listed(&self, names: BTreeSet<Self::Name>) -> Event {
        engine::Event::ServicesListed(names).into()
    }
}

/// The node of each endpoint's address: nothing that rules need, and what people want to know.
pub(crate) type Places = Arc<Mutex<BTreeMap<IpAddr, String>>>;

/// Conversion of EndpointSlices.
pub(crate) struct Slices {
    /// The node that is local.
    pub(crate) node_name: String,
    /// Where to note the nodes of endpoints, if anybody wants to know.
    pub(crate) places: Option<Places>,
}

impl Slices {
    fn note_places(&self, object: &EndpointSlice) {
        let Some(places) = &self.places else { return };
        let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
        for endpoint in object.endpoints.iter().flatten() {
            let address = endpoint
                .addresses
                .first()
                .and_then(|text| text.parse().ok());
            if let Some((address, node)) = address.zip(endpoint.node_name.as_ref()) {
                places.insert(address, node.clone());
            }
        }
    }
}

impl Convert<EndpointSlice> for Slices {
    type Name = SliceName;

    fn name(&self, object: &EndpointSlice) -> Self::Name {
        k8s::slice_name(object)
    }

    fn applied(&self, object: &EndpointSlice, problems: &mut Vec<Problem>) -> Event {
        self.note_places(object);
        match k8s::endpoint_slice(object, &self.node_name, problems) {
            Some(slice) => engine::Event::SliceApplied(slice).into(),
            None => engine::Event::SliceDeleted(k8s::slice_name(object)).into(),
        }
    }

    fn deleted(&self, name: Self::Name) -> Event {
        engine::Event::SliceDeleted(name).into()
    }

    fn listed(&self, names: BTreeSet<Self::Name>) -> Event {
        engine::Event::SlicesListed(names).into()
    }
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

/// Conversion of ServiceCIDRs.
pub(crate) struct ServiceCidrs;

impl Convert<ServiceCIDR> for ServiceCidrs {
    type Name = String;

    fn name(&self, object: &ServiceCIDR) -> String {
        name(&object.metadata)
    }

    fn applied(&self, object: &ServiceCIDR, problems: &mut Vec<Problem>) -> Event {
        engine::Event::ServiceCidrApplied(
            name(&object.metadata),
            k8s::service_cidrs(object, problems),
        )
        .into()
    }

    fn deleted(&self, name: String) -> Event {
        engine::Event::ServiceCidrDeleted(name).into()
    }

    fn listed(&self, names: BTreeSet<String>) -> Event {
        engine::Event::ServiceCidrsListed(names).into()
    }
}

/// Conversion of this node's object, the only one that is watched.
pub(crate) struct Nodes;

impl Convert<core::Node> for Nodes {
    type Name = String;

    fn name(&self, object: &core::Node) -> String {
        name(&object.metadata)
    }

    fn applied(&self, object: &core::Node, _: &mut Vec<Problem>) -> Event {
        Event::NodeApplied(k8s::node_info(object))
    }

    fn deleted(&self, _: String) -> Event {
        Event::NodeDeleted
    }

    fn listed(&self, names: BTreeSet<String>) -> Event {
        if names.is_empty() {
            Event::NodeDeleted
        } else {
            Event::AddressesChanged
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S-14
    #[test]
    fn external_ips_can_be_switched_off() {
        let object: core::Service = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {
                "clusterIP": "10.96.0.1",
                "externalIPs": ["198.51.100.1"],
                "ports": [{"port": 80}],
            },
        }))
        .unwrap();
        for (allow_external_ips, expected) in [(true, 1), (false, 0)] {
            let event = applied(&Services { allow_external_ips }, &object);
            let Event::Cluster(engine::Event::ServiceApplied(service)) = event else {
                panic!("{event:?}")
            };
            assert_eq!(service.external_ips.len(), expected);
        }
    }
}
