//! Objects as an API server sends them, in both encodings, with just the fields that count here.
//!
//! What is declared here is decoded; all else in an object is skipped unread. The numbers are those
//! of Kubernetes' `generated.proto`, which never change. Entry points: [`Wire`] for the kinds,
//! [`frame`] for how they come out of an answer.

pub(super) mod frame;
mod json;
mod protobuf;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

/// A kind of object.
pub(super) trait Wire: prost::Message + Default + DeserializeOwned {
    /// The same with all fields.
    type Object;

    /// Its name, version and labels.
    fn metadata(&self) -> &ObjectMeta;
    /// The whole type, in which what was not decoded is absent.
    fn into_object(self) -> Self::Object;
}

/// Reads `null` as what is there without the field, as Go does.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ObjectMeta {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    #[serde(deserialize_with = "nullable")]
    pub(super) namespace: String,
    #[prost(string, tag = "6")]
    #[serde(deserialize_with = "nullable")]
    pub(super) resource_version: String,
    #[prost(message, optional, tag = "8")]
    pub(super) creation_timestamp: Option<Time>,
    #[prost(btree_map = "string, string", tag = "11")]
    #[serde(deserialize_with = "nullable")]
    pub(super) labels: BTreeMap<String, String>,
}

/// Seconds since 1970.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let time: meta::Time = Deserialize::deserialize(deserializer)?;
        let seconds = time.0.as_second();
        Ok(Self { seconds })
    }
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<ServiceSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<ServiceStatus>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    ports: Vec<ServicePort>,
    #[prost(string, tag = "3")]
    #[serde(rename = "clusterIP", deserialize_with = "nullable")]
    cluster_ip: String,
    #[prost(string, tag = "4")]
    #[serde(rename = "type", deserialize_with = "nullable")]
    type_: String,
    #[prost(string, repeated, tag = "5")]
    #[serde(rename = "externalIPs", deserialize_with = "nullable")]
    external_ips: Vec<String>,
    #[prost(string, tag = "7")]
    #[serde(deserialize_with = "nullable")]
    session_affinity: String,
    #[prost(string, repeated, tag = "9")]
    #[serde(deserialize_with = "nullable")]
    load_balancer_source_ranges: Vec<String>,
    #[prost(string, tag = "11")]
    #[serde(deserialize_with = "nullable")]
    external_traffic_policy: String,
    #[prost(int32, tag = "12")]
    #[serde(deserialize_with = "nullable")]
    health_check_node_port: i32,
    #[prost(message, optional, tag = "14")]
    session_affinity_config: Option<SessionAffinityConfig>,
    #[prost(string, repeated, tag = "18")]
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    cluster_ips: Vec<String>,
    #[prost(string, repeated, tag = "19")]
    #[serde(deserialize_with = "nullable")]
    ip_families: Vec<String>,
    #[prost(string, optional, tag = "22")]
    internal_traffic_policy: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServicePort {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    protocol: String,
    #[prost(int32, tag = "3")]
    #[serde(deserialize_with = "nullable")]
    port: i32,
    #[prost(int32, tag = "5")]
    #[serde(deserialize_with = "nullable")]
    node_port: i32,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct SessionAffinityConfig {
    #[prost(message, optional, tag = "1")]
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIpConfig>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientIpConfig {
    #[prost(int32, optional, tag = "1")]
    timeout_seconds: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    #[prost(message, optional, tag = "1")]
    load_balancer: Option<LoadBalancerStatus>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct LoadBalancerStatus {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    ingress: Vec<LoadBalancerIngress>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LoadBalancerIngress {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    ip: String,
    #[prost(string, optional, tag = "3")]
    ip_mode: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct EndpointSlice {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "3")]
    #[serde(deserialize_with = "nullable")]
    ports: Vec<EndpointPort>,
    #[prost(string, tag = "4")]
    #[serde(deserialize_with = "nullable")]
    address_type: String,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Endpoint {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    addresses: Vec<String>,
    #[prost(message, optional, tag = "2")]
    conditions: Option<EndpointConditions>,
    #[prost(string, optional, tag = "6")]
    node_name: Option<String>,
    #[prost(message, optional, tag = "8")]
    hints: Option<EndpointHints>,
}

#[derive(Clone, Copy, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct EndpointConditions {
    #[prost(bool, optional, tag = "1")]
    ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    terminating: Option<bool>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EndpointHints {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    for_zones: Vec<Named>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    for_nodes: Vec<Named>,
}

/// `ForZone` and `ForNode`.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct Named {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct EndpointPort {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    port: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<NodeSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<NodeStatus>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[prost(string, repeated, tag = "7")]
    #[serde(rename = "podCIDRs", deserialize_with = "nullable")]
    pod_cidrs: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct NodeStatus {
    #[prost(message, repeated, tag = "5")]
    #[serde(deserialize_with = "nullable")]
    addresses: Vec<NodeAddress>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct NodeAddress {
    #[prost(string, tag = "1")]
    #[serde(rename = "type", deserialize_with = "nullable")]
    type_: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    address: String,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub(super) struct ServiceCidr {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<ServiceCidrSpec>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct ServiceCidrSpec {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "nullable")]
    cidrs: Vec<String>,
}

/// What an API server says when it does not answer what was asked.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    #[prost(string, tag = "3")]
    #[serde(deserialize_with = "nullable")]
    pub(super) message: String,
    #[prost(string, tag = "4")]
    #[serde(deserialize_with = "nullable")]
    pub(super) reason: String,
    #[prost(message, optional, tag = "5")]
    pub(super) details: Option<StatusDetails>,
    #[prost(int32, tag = "6")]
    #[serde(deserialize_with = "nullable")]
    pub(super) code: i32,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StatusDetails {
    #[prost(int32, tag = "5")]
    #[serde(deserialize_with = "nullable")]
    pub(super) retry_after_seconds: i32,
}

/// An object of which nothing counts but the version, and an annotation.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(default)]
struct Bookmark {
    #[prost(message, optional, tag = "1")]
    metadata: Option<BookmarkMeta>,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BookmarkMeta {
    #[prost(string, tag = "6")]
    #[serde(deserialize_with = "nullable")]
    resource_version: String,
    #[prost(btree_map = "string, string", tag = "12")]
    #[serde(deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
}

/// Of a list.
#[derive(Clone, PartialEq, prost::Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "nullable")]
    pub(super) resource_version: String,
    /// What to ask for the next page with; empty on the last.
    #[prost(string, tag = "3")]
    #[serde(rename = "continue", deserialize_with = "nullable")]
    pub(super) continue_: String,
}

/// In Go, what is empty is absent.
fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl From<ObjectMeta> for meta::ObjectMeta {
    fn from(metadata: ObjectMeta) -> Self {
        let ObjectMeta {
            name,
            namespace,
            resource_version,
            creation_timestamp,
            labels,
        } = metadata;
        let created = creation_timestamp
            .and_then(|time| Timestamp::from_second(time.seconds).ok())
            .map(meta::Time);
        Self {
            name: some(name),
            namespace: some(namespace),
            resource_version: some(resource_version),
            creation_timestamp: created,
            labels: Some(labels),
            ..Self::default()
        }
    }
}

static NO_METADATA: ObjectMeta = ObjectMeta {
    name: String::new(),
    namespace: String::new(),
    resource_version: String::new(),
    creation_timestamp: None,
    labels: BTreeMap::new(),
};

impl Wire for Service {
    type Object = core::Service;

    fn metadata(&self) -> &ObjectMeta {
        self.metadata.as_ref().unwrap_or(&NO_METADATA)
    }

    fn into_object(self) -> core::Service {
        core::Service {
            metadata: self.metadata.unwrap_or_default().into(),
            spec: self.spec.map(Into::into),
            status: self.status.map(Into::into),
        }
    }
}

impl From<ServiceSpec> for core::ServiceSpec {
    fn from(spec: ServiceSpec) -> Self {
        let affinity = spec.session_affinity_config;
        Self {
            ports: Some(spec.ports.into_iter().map(Into::into).collect()),
            cluster_ip: some(spec.cluster_ip),
            type_: some(spec.type_),
            external_ips: Some(spec.external_ips),
            session_affinity: some(spec.session_affinity),
            load_balancer_source_ranges: Some(spec.load_balancer_source_ranges),
            external_traffic_policy: some(spec.external_traffic_policy),
            health_check_node_port: Some(spec.health_check_node_port),
            session_affinity_config: affinity.map(|config| core::SessionAffinityConfig {
                client_ip: config.client_ip.map(|config| core::ClientIPConfig {
                    timeout_seconds: config.timeout_seconds,
                }),
            }),
            cluster_ips: Some(spec.cluster_ips),
            ip_families: Some(spec.ip_families),
            internal_traffic_policy: spec.internal_traffic_policy,
            ..Self::default()
        }
    }
}

impl From<ServicePort> for core::ServicePort {
    fn from(port: ServicePort) -> Self {
        Self {
            name: some(port.name),
            protocol: some(port.protocol),
            port: port.port,
            node_port: Some(port.node_port),
            ..Self::default()
        }
    }
}

impl From<ServiceStatus> for core::ServiceStatus {
    fn from(status: ServiceStatus) -> Self {
        let ingress = |ingress: LoadBalancerIngress| core::LoadBalancerIngress {
            ip: some(ingress.ip),
            ip_mode: ingress.ip_mode,
            ..core::LoadBalancerIngress::default()
        };
        let load_balancer = status.load_balancer.map(|status| core::LoadBalancerStatus {
            ingress: Some(status.ingress.into_iter().map(ingress).collect()),
        });
        Self {
            load_balancer,
            ..Self::default()
        }
    }
}

impl Wire for EndpointSlice {
    type Object = discovery::EndpointSlice;

    fn metadata(&self) -> &ObjectMeta {
        self.metadata.as_ref().unwrap_or(&NO_METADATA)
    }

    fn into_object(self) -> discovery::EndpointSlice {
        let port = |port: EndpointPort| discovery::EndpointPort {
            name: port.name,
            protocol: port.protocol,
            port: port.port,
            ..discovery::EndpointPort::default()
        };
        discovery::EndpointSlice {
            metadata: self.metadata.unwrap_or_default().into(),
            address_type: self.address_type,
            endpoints: Some(self.endpoints.into_iter().map(Into::into).collect()),
            ports: Some(self.ports.into_iter().map(port).collect()),
        }
    }
}

impl From<Endpoint> for discovery::Endpoint {
    fn from(endpoint: Endpoint) -> Self {
        let Endpoint {
            addresses,
            conditions,
            node_name,
            hints,
        } = endpoint;
        let conditions = conditions.map(|conditions| discovery::EndpointConditions {
            ready: conditions.ready,
            serving: conditions.serving,
            terminating: conditions.terminating,
        });
        let hints = hints.map(|hints| {
            let zones = hints.for_zones.into_iter();
            let nodes = hints.for_nodes.into_iter();
            discovery::EndpointHints {
                for_zones: Some(
                    zones
                        .map(|Named { name }| discovery::ForZone { name })
                        .collect(),
                ),
                for_nodes: Some(
                    nodes
                        .map(|Named { name }| discovery::ForNode { name })
                        .collect(),
                ),
            }
        });
        Self {
            addresses,
            conditions,
            node_name,
            hints,
            ..Self::default()
        }
    }
}

impl Wire for Node {
    type Object = core::Node;

    fn metadata(&self) -> &ObjectMeta {
        self.metadata.as_ref().unwrap_or(&NO_METADATA)
    }

    fn into_object(self) -> core::Node {
        let address = |address: NodeAddress| core::NodeAddress {
            address: address.address,
            type_: address.type_,
        };
        core::Node {
            metadata: self.metadata.unwrap_or_default().into(),
            spec: self.spec.map(|spec| core::NodeSpec {
                pod_cidrs: Some(spec.pod_cidrs),
                ..core::NodeSpec::default()
            }),
            status: self.status.map(|status| core::NodeStatus {
                addresses: Some(status.addresses.into_iter().map(address).collect()),
                ..core::NodeStatus::default()
            }),
        }
    }
}

impl Wire for ServiceCidr {
    type Object = networking::ServiceCIDR;

    fn metadata(&self) -> &ObjectMeta {
        self.metadata.as_ref().unwrap_or(&NO_METADATA)
    }

    fn into_object(self) -> networking::ServiceCIDR {
        networking::ServiceCIDR {
            metadata: self.metadata.unwrap_or_default().into(),
            spec: self.spec.map(|spec| networking::ServiceCIDRSpec {
                cidrs: Some(spec.cidrs),
            }),
            status: None,
        }
    }
}
