//! From Kubernetes objects to events, whether they come from an API server or from files.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use nftproxy_core::engine;
use nftproxy_core::k8s::{self, Problem};
use nftproxy_core::model::{ServiceName, SliceName};
use tracing::warn;

use super::Event;

/// When a pod or Service changed that a slice was changed for; its controller writes it.
pub(crate) const ANNOTATION_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The cluster autoscaler's taint of a node that it is about to delete.
const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

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

/// Converts an object and logs what of it could not be used.
pub(crate) fn applied<K>(convert: &impl Convert<K>, object: &K) -> Event {
    applied_and_told(convert, object, |_| {})
}

/// The same, and tells somebody else.
pub(crate) fn applied_and_told<K>(
    convert: &impl Convert<K>,
    object: &K,
    tell: impl Fn(&Problem),
) -> Event {
    let mut problems = Vec::new();
    let event = convert.applied(object, &mut problems);
    for problem in problems {
        tell(&problem);
        let Problem { object, message } = problem;
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

/// Conversion of EndpointSlices.
pub(crate) struct Slices {
    /// The node that is local.
    pub(crate) node_name: String,
}

impl Convert<EndpointSlice> for Slices {
    type Name = SliceName;

    fn name(&self, object: &EndpointSlice) -> Self::Name {
        k8s::slice_name(object)
    }

    fn applied(&self, object: &EndpointSlice, problems: &mut Vec<Problem>) -> Event {
        match k8s::endpoint_slice(object, &self.node_name, problems) {
            Some(slice) => Event::SliceApplied {
                slice,
                triggered: triggered(&object.metadata),
            },
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

/// When the pod or Service changed that a slice was changed for.
fn triggered(metadata: &ObjectMeta) -> Option<Timestamp> {
    let annotations = metadata.annotations.as_ref()?;
    annotations.get(ANNOTATION_TRIGGER_TIME)?.parse().ok()
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

    fn name(&self, object: &core::Node) -> String {
        name(&object.metadata)
    }

    fn applied(&self, object: &core::Node, _: &mut Vec<Problem>) -> Event {
        Event::NodeApplied {
            info: k8s::node_info(object),
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
            let event = applied(&Services { allow_external_ips }, &object);
            let Event::Cluster(engine::Event::ServiceApplied(service)) = event else {
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
            let bytes = serde_json::to_vec(&object).unwrap();
            let object = serde_json::from_slice(&bytes).unwrap();
            let Event::NodeApplied { is_eligible, .. } = applied(&Nodes, &object) else {
                panic!("a node is applied")
            };
            assert_eq!(is_eligible, expected, "{object:?}");
        }
    }
}
