//! From Kubernetes objects to events, whether they come from an API server or from files.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nftproxy_core::engine;
use nftproxy_core::k8s::{self, Problem};
use nftproxy_core::model::{NameError, ServiceName, SliceName, check_subdomain};
use tracing::{info, warn};

use super::Event;

/// When a pod or Service changed that a slice was changed for; its controller writes it.
pub(crate) const ANNOTATION_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The cluster autoscaler's taint of a node that it is about to delete.
const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// How objects of a kind become events.
pub(crate) trait Convert<K> {
    /// What tells objects of the kind apart.
    type Name: Ord + Clone;

    /// The kind, as objects have it.
    const KIND: &'static str;

    /// The object's metadata.
    fn metadata(object: &K) -> &ObjectMeta;
    /// The object's name, unless the API server would not have it.
    fn name(&self, object: &K) -> Result<Self::Name, NameError>;
    /// What it means that the object of this name is there. Problems are noted by the caller.
    fn applied(&self, name: Self::Name, object: &K, problems: &mut Vec<Problem>) -> Event;
    /// What it means that it is gone.
    fn deleted(&self, name: Self::Name) -> Event;
    /// What it means that there are just these.
    fn listed(&self, names: BTreeSet<Self::Name>) -> Event;
}

/// Is told of an object, as `Service namespace/name`, and of what is wrong with it.
type Tell = Box<dyn Fn(&str, &str) + Send + Sync>;

/// Converts the objects of a kind, and says once what of an object could not be used, however often
/// the object comes, and once that it can be.
pub(crate) struct Objects<K, C: Convert<K>> {
    convert: C,
    /// What is wrong with objects, of those that have a name.
    wrong: BTreeMap<C::Name, BTreeSet<String>>,
    /// Who else is told of what is wrong: which object, and what.
    tell: Tell,
    kind: PhantomData<fn() -> K>,
}

impl<K, C: Convert<K>> Objects<K, C> {
    pub(crate) fn new(convert: C) -> Self {
        Self {
            convert,
            wrong: BTreeMap::new(),
            tell: Box::new(|_, _| {}),
            kind: PhantomData,
        }
    }

    /// The same, which also tells somebody else.
    pub(crate) fn telling(convert: C, tell: impl Fn(&str, &str) + Send + Sync + 'static) -> Self {
        Self {
            tell: Box::new(tell),
            ..Self::new(convert)
        }
    }

    /// The object's name; `None` if the API server would not have it.
    pub(crate) fn name(&self, object: &K) -> Option<C::Name> {
        self.convert.name(object).ok()
    }

    /// The event that an object is there; `None` if it has no name that it could have.
    pub(crate) fn applied(&mut self, object: &K) -> Option<Event> {
        let label = || k8s::describe(C::KIND, C::metadata(object));
        let name = match self.convert.name(object) {
            Ok(name) => name,
            Err(error) => {
                warn!(
                    object = label(),
                    "metadata: {error}; the object is left out"
                );
                return None;
            }
        };
        let mut problems = Vec::new();
        let event = self.convert.applied(name.clone(), object, &mut problems);
        if !(problems.is_empty() && self.wrong.is_empty()) {
            let problems = problems.into_iter().map(|problem| problem.message);
            self.note(name, &label(), problems.collect());
        }
        Some(event)
    }

    fn note(&mut self, name: C::Name, label: &str, problems: BTreeSet<String>) {
        let known = self.wrong.remove(&name).unwrap_or_default();
        for message in problems.difference(&known) {
            warn!(object = label, "{message}");
            (self.tell)(label, message);
        }
        for message in known.difference(&problems) {
            info!(object = label, "no longer: {message}");
        }
        if !problems.is_empty() {
            self.wrong.insert(name, problems);
        }
    }

    /// The event that an object is gone.
    pub(crate) fn deleted(&mut self, name: C::Name) -> Event {
        self.wrong.remove(&name);
        self.convert.deleted(name)
    }

    /// The event that there are just these objects.
    pub(crate) fn listed(&mut self, names: BTreeSet<C::Name>) -> Event {
        self.wrong.retain(|name, _| names.contains(name));
        self.convert.listed(names)
    }
}

/// Conversion of Services.
pub(crate) struct Services {
    /// Whether `spec.externalIPs` counts: the feature gate `AllowServiceExternalIPs`.
    pub(crate) allow_external_ips: bool,
}

impl Convert<core::Service> for Services {
    type Name = ServiceName;

    const KIND: &'static str = "Service";

    fn metadata(object: &core::Service) -> &ObjectMeta {
        &object.metadata
    }

    fn name(&self, object: &core::Service) -> Result<ServiceName, NameError> {
        k8s::service_name(object)
    }

    fn applied(
        &self,
        name: ServiceName,
        object: &core::Service,
        problems: &mut Vec<Problem>,
    ) -> Event {
        match k8s::service(object, problems) {
            Some(mut service) => {
                if !self.allow_external_ips {
                    service.external_ips = Box::default();
                }
                engine::Event::ServiceApplied(service).into()
            }
            None => engine::Event::ServiceDeleted(name).into(),
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

    const KIND: &'static str = "EndpointSlice";

    fn metadata(object: &EndpointSlice) -> &ObjectMeta {
        &object.metadata
    }

    fn name(&self, object: &EndpointSlice) -> Result<SliceName, NameError> {
        k8s::slice_name(object)
    }

    fn applied(
        &self,
        name: SliceName,
        object: &EndpointSlice,
        problems: &mut Vec<Problem>,
    ) -> Event {
        self.note_places(object);
        match k8s::endpoint_slice(object, &self.node_name, problems) {
            Some(slice) => Event::SliceApplied {
                slice,
                triggered: triggered(&object.metadata),
            },
            None => engine::Event::SliceDeleted(name).into(),
        }
    }

    fn deleted(&self, name: Self::Name) -> Event {
        engine::Event::SliceDeleted(name).into()
    }

    fn listed(&self, names: BTreeSet<Self::Name>) -> Event {
        engine::Event::SlicesListed(names).into()
    }
}

/// When the pod or Service changed that a slice was changed for.
fn triggered(metadata: &ObjectMeta) -> Option<Timestamp> {
    let annotations = metadata.annotations.as_ref()?;
    annotations.get(ANNOTATION_TRIGGER_TIME)?.parse().ok()
}

/// The name of an object that is in no namespace.
fn subdomain(metadata: &ObjectMeta) -> Result<String, NameError> {
    let name = metadata.name.as_deref().unwrap_or_default();
    check_subdomain(name)?;
    Ok(name.to_owned())
}

/// Conversion of ServiceCIDRs.
pub(crate) struct ServiceCidrs;

impl Convert<ServiceCIDR> for ServiceCidrs {
    type Name = String;

    const KIND: &'static str = "ServiceCIDR";

    fn metadata(object: &ServiceCIDR) -> &ObjectMeta {
        &object.metadata
    }

    fn name(&self, object: &ServiceCIDR) -> Result<String, NameError> {
        subdomain(&object.metadata)
    }

    fn applied(&self, name: String, object: &ServiceCIDR, problems: &mut Vec<Problem>) -> Event {
        engine::Event::ServiceCidrApplied(name, k8s::service_cidrs(object, problems)).into()
    }

    fn deleted(&self, name: String) -> Event {
        engine::Event::ServiceCidrDeleted(name).into()
    }

    fn listed(&self, names: BTreeSet<String>) -> Event {
        engine::Event::ServiceCidrsListed(names).into()
    }
}

/// Whether a node stays, as far as its object tells.
fn is_eligible(node: &core::Node) -> bool {
    let spec = node.spec.as_ref();
    let taints = spec.and_then(|spec| spec.taints.as_deref());
    let mut keys = taints.unwrap_or_default().iter().map(|taint| &taint.key);
    let is_to_go = keys.any(|key| key == TAINT_TO_BE_DELETED);
    node.metadata.deletion_timestamp.is_none() && !is_to_go
}

/// Conversion of this node's object, the only one that is watched.
pub(crate) struct Nodes;

impl Convert<core::Node> for Nodes {
    type Name = String;

    const KIND: &'static str = "Node";

    fn metadata(object: &core::Node) -> &ObjectMeta {
        &object.metadata
    }

    fn name(&self, object: &core::Node) -> Result<String, NameError> {
        subdomain(&object.metadata)
    }

    fn applied(&self, _: String, object: &core::Node, problems: &mut Vec<Problem>) -> Event {
        Event::NodeApplied {
            info: k8s::node_info(object, problems),
            is_eligible: is_eligible(object),
        }
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
            let event = Objects::new(Services { allow_external_ips }).applied(&object);
            let Some(Event::Cluster(engine::Event::ServiceApplied(service))) = event else {
                panic!("{event:?}")
            };
            assert_eq!(service.external_ips.len(), expected);
        }
    }

    /// O-97: a node that is to go is not eligible, whatever the taint's value and effect.
    #[test]
    fn a_node_that_is_to_go_is_not_eligible() {
        let taint = |key: &str| serde_json::json!({"taints": [{"key": "a"}, {"key": key}]});
        for (metadata, spec, expected) in [
            (serde_json::json!({}), serde_json::json!({}), true),
            (
                serde_json::json!({}),
                taint("node.kubernetes.io/not-ready"),
                true,
            ),
            (serde_json::json!({}), taint(TAINT_TO_BE_DELETED), false),
            (
                serde_json::json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
                serde_json::json!({}),
                false,
            ),
        ] {
            let object = serde_json::json!({"metadata": metadata, "spec": spec});
            let object = serde_json::from_value(object).unwrap();
            let event = Nodes.applied("node-1".into(), &object, &mut Vec::new());
            let Event::NodeApplied { is_eligible, .. } = event else {
                panic!("a node is applied")
            };
            assert_eq!(is_eligible, expected, "{object:?}");
        }
    }
}
