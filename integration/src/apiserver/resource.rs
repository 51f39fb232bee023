//! The resources the server has, with what their paths, lists, selectors and bookmarks need.
//!
//! It must not know how objects are stored. Entry point: [`Resource`].

use anyhow::Context;
use serde_json::{Value, json};

/// A kind of object the server holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// `v1` Service.
    Services,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlices,
    /// `v1` Node.
    Nodes,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidrs,
}

impl Resource {
    /// Every resource, in the order of their discriminants.
    pub const ALL: [Self; 4] = [
        Self::Services,
        Self::EndpointSlices,
        Self::Nodes,
        Self::ServiceCidrs,
    ];

    /// The resource an object with a kind belongs to.
    pub(super) fn of(object: &Value) -> anyhow::Result<Self> {
        let kind = object["kind"].as_str().context("object without a kind")?;
        Self::ALL
            .into_iter()
            .find(|resource| resource.kind() == kind)
            .with_context(|| format!("no resource of kind {kind}"))
    }

    /// The kind of one object.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
            Self::ServiceCidrs => "ServiceCIDR",
        }
    }

    /// The API group and version.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Services | Self::Nodes => "v1",
            Self::EndpointSlices => "discovery.k8s.io/v1",
            Self::ServiceCidrs => "networking.k8s.io/v1",
        }
    }

    /// The name of the resource in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Nodes => "nodes",
            Self::ServiceCidrs => "servicecidrs",
        }
    }

    pub(super) fn group_path(self) -> &'static str {
        match self {
            Self::Services | Self::Nodes => "/api/v1/",
            Self::EndpointSlices => "/apis/discovery.k8s.io/v1/",
            Self::ServiceCidrs => "/apis/networking.k8s.io/v1/",
        }
    }

    pub(super) fn is_namespaced(self) -> bool {
        match self {
            Self::Services | Self::EndpointSlices => true,
            Self::Nodes | Self::ServiceCidrs => false,
        }
    }

    /// The fields a field selector may name.
    pub(super) fn selectable_fields(self) -> &'static [&'static str] {
        match self {
            Self::Services => &[
                "metadata.name",
                "metadata.namespace",
                "spec.clusterIP",
                "spec.type",
            ],
            Self::EndpointSlices => &["metadata.name", "metadata.namespace"],
            Self::Nodes | Self::ServiceCidrs => &["metadata.name"],
        }
    }

    /// The object of a bookmark: an empty one with the fields the Go types never omit.
    pub(super) fn bookmark(self, version: u64) -> Value {
        let mut object = match self {
            Self::Services => json!({"spec": {}, "status": {"loadBalancer": {}}}),
            Self::EndpointSlices => json!({"addressType": "", "endpoints": null, "ports": null}),
            Self::Nodes => json!({"spec": {}, "status": {
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
                "nodeInfo": {
                    "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "",
                    "osImage": "", "containerRuntimeVersion": "", "kubeletVersion": "",
                    "kubeProxyVersion": "", "operatingSystem": "", "architecture": "",
                },
            }}),
            Self::ServiceCidrs => json!({"spec": {"cidrs": null}, "status": {}}),
        };
        object["metadata"] = json!({"resourceVersion": version.to_string()});
        self.with_kind(object)
    }

    /// Adds the kind and group version, which items of a list do without.
    pub(super) fn with_kind(self, mut object: Value) -> Value {
        object["kind"] = self.kind().into();
        object["apiVersion"] = self.api_version().into();
        object
    }
}
