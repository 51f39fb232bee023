//! EndpointSlices.

use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::meta::Metadata;
use super::protobuf::{Fields, Unreadable, Value};
use super::{Encoding, Object};

impl Object for EndpointSlice {
    fn decode(encoding: Encoding, bytes: &[u8]) -> Result<Self, Unreadable> {
        match encoding {
            Encoding::Json => Ok(serde_json::from_slice::<Json>(bytes)?.into()),
            Encoding::Protobuf => from_protobuf(bytes),
        }
    }

    fn bare(metadata: ObjectMeta) -> Self {
        Self {
            metadata,
            ..Self::default()
        }
    }

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

fn from_protobuf(bytes: &[u8]) -> Result<EndpointSlice, Unreadable> {
    let mut slice = EndpointSlice::default();
    let mut fields = Fields::new(bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => slice.metadata = Metadata::from_protobuf(value.bytes()?)?.into(),
            2 => slice
                .endpoints
                .get_or_insert_default()
                .push(endpoint(value)?),
            3 => slice.ports.get_or_insert_default().push(port(value)?),
            4 => slice.address_type = value.string()?,
            _ => {}
        }
    }
    Ok(slice)
}

fn endpoint(value: Value<'_>) -> Result<Endpoint, Unreadable> {
    let mut endpoint = Endpoint::default();
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => endpoint.addresses.push(value.string()?),
            2 => endpoint.conditions = Some(conditions(value)?),
            6 => endpoint.node_name = Some(value.string()?),
            8 => endpoint.hints = Some(hints(value)?),
            _ => {}
        }
    }
    Ok(endpoint)
}

fn conditions(value: Value<'_>) -> Result<EndpointConditions, Unreadable> {
    let mut conditions = EndpointConditions::default();
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => conditions.ready = Some(value.bool()?),
            2 => conditions.serving = Some(value.bool()?),
            3 => conditions.terminating = Some(value.bool()?),
            _ => {}
        }
    }
    Ok(conditions)
}

fn hints(value: Value<'_>) -> Result<EndpointHints, Unreadable> {
    let mut hints = EndpointHints::default();
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next()? {
        let name = |value: Value<'_>| Value::Bytes(Fields::only(value.bytes()?, 1)?).string();
        match number {
            1 => hints
                .for_zones
                .get_or_insert_default()
                .push(ForZone { name: name(value)? }),
            2 => hints
                .for_nodes
                .get_or_insert_default()
                .push(ForNode { name: name(value)? }),
            _ => {}
        }
    }
    Ok(hints)
}

fn port(value: Value<'_>) -> Result<EndpointPort, Unreadable> {
    let mut port = EndpointPort::default();
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => port.name = Some(value.string()?),
            2 => port.protocol = Some(value.string()?),
            3 => port.port = Some(value.int32()?),
            _ => {}
        }
    }
    Ok(port)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    #[serde(default)]
    metadata: Metadata,
    address_type: Option<String>,
    endpoints: Option<Vec<JsonEndpoint>>,
    ports: Option<Vec<JsonPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonEndpoint {
    addresses: Option<Vec<String>>,
    conditions: Option<JsonConditions>,
    node_name: Option<String>,
    hints: Option<JsonHints>,
}

#[derive(Deserialize)]
struct JsonConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonHints {
    for_zones: Option<Vec<JsonName>>,
    for_nodes: Option<Vec<JsonName>>,
}

#[derive(Deserialize)]
struct JsonName {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct JsonPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i32>,
}

impl From<Json> for EndpointSlice {
    fn from(json: Json) -> Self {
        let endpoints = json.endpoints.map(|endpoints| {
            let endpoints = endpoints.into_iter().map(Into::into);
            endpoints.collect()
        });
        let ports = json.ports.map(|ports| {
            let ports = ports.into_iter().map(|port| EndpointPort {
                name: port.name,
                protocol: port.protocol,
                port: port.port,
                ..EndpointPort::default()
            });
            ports.collect()
        });
        Self {
            metadata: json.metadata.into(),
            address_type: json.address_type.unwrap_or_default(),
            endpoints,
            ports,
        }
    }
}

impl From<JsonEndpoint> for Endpoint {
    fn from(json: JsonEndpoint) -> Self {
        Self {
            addresses: json.addresses.unwrap_or_default(),
            conditions: json.conditions.map(|conditions| EndpointConditions {
                ready: conditions.ready,
                serving: conditions.serving,
                terminating: conditions.terminating,
            }),
            node_name: json.node_name,
            hints: json.hints.map(|hints| EndpointHints {
                for_zones: hints.for_zones.map(|zones| {
                    let zones = zones.into_iter();
                    zones.map(|JsonName { name }| ForZone { name }).collect()
                }),
                for_nodes: hints.for_nodes.map(|nodes| {
                    let nodes = nodes.into_iter();
                    nodes.map(|JsonName { name }| ForNode { name }).collect()
                }),
            }),
            ..Self::default()
        }
    }
}
