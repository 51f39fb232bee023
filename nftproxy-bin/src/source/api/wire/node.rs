//! Nodes.

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::meta::Metadata;
use super::protobuf::{Fields, Unreadable, Value};
use super::{Encoding, Object};

#[derive(Deserialize)]
struct Json {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<JsonSpec>,
    status: Option<JsonStatus>,
}

#[derive(Deserialize)]
struct JsonSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<JsonTaint>>,
}

#[derive(Deserialize)]
struct JsonTaint {
    #[serde(default)]
    key: String,
}

#[derive(Deserialize)]
struct JsonStatus {
    addresses: Option<Vec<JsonAddress>>,
}

#[derive(Deserialize)]
struct JsonAddress {
    #[serde(rename = "type", default)]
    type_: String,
    #[serde(default)]
    address: String,
}

impl Object for Node {
    fn decode(encoding: Encoding, bytes: &[u8]) -> Result<Self, Unreadable> {
        match encoding {
            Encoding::Json => Ok(serde_json::from_slice::<Json>(bytes)?.into()),
            Encoding::Protobuf => {
                let mut object = Self::default();
                let mut fields = Fields::new(bytes);
                while let Some((number, value)) = fields.next()? {
                    match number {
                        1 => object.metadata = Metadata::from_protobuf(value.bytes()?)?.into(),
                        2 => object.spec = Some(spec(value)?),
                        3 => object.status = Some(status(value)?),
                        _ => {}
                    }
                }
                Ok(object)
            }
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

fn spec(value: Value<'_>) -> Result<NodeSpec, Unreadable> {
    let mut spec = NodeSpec::default();
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next()? {
        match number {
            5 => {
                let key = Value::Bytes(Fields::only(value.bytes()?, 1)?).string()?;
                spec.taints.get_or_insert_default().push(taint(key));
            }
            7 => spec.pod_cidrs.get_or_insert_default().push(value.string()?),
            _ => {}
        }
    }
    Ok(spec)
}

/// Of a taint the key alone matters.
fn taint(key: String) -> Taint {
    Taint {
        key,
        ..Taint::default()
    }
}

fn status(value: Value<'_>) -> Result<NodeStatus, Unreadable> {
    let mut addresses = Vec::new();
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next()? {
        if number == 5 {
            let mut address = NodeAddress::default();
            let mut fields = Fields::new(value.bytes()?);
            while let Some((number, value)) = fields.next()? {
                match number {
                    1 => address.type_ = value.string()?,
                    2 => address.address = value.string()?,
                    _ => {}
                }
            }
            addresses.push(address);
        }
    }
    Ok(with_addresses(addresses))
}

fn with_addresses(addresses: Vec<NodeAddress>) -> NodeStatus {
    NodeStatus {
        addresses: Some(addresses),
        ..NodeStatus::default()
    }
}

impl From<Json> for Node {
    fn from(json: Json) -> Self {
        Self {
            metadata: json.metadata.into(),
            spec: json.spec.map(|spec| NodeSpec {
                pod_cidrs: spec.pod_cidrs,
                taints: spec.taints.map(|taints| {
                    let keys = taints.into_iter().map(|taint| taint.key);
                    keys.map(taint).collect()
                }),
                ..NodeSpec::default()
            }),
            status: json.status.map(|status| {
                let addresses = status.addresses.unwrap_or_default().into_iter();
                with_addresses(
                    addresses
                        .map(|address| NodeAddress {
                            type_: address.type_,
                            address: address.address,
                        })
                        .collect(),
                )
            }),
        }
    }
}
