//! ServiceCIDRs.

use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};
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
}

#[derive(Deserialize)]
struct JsonSpec {
    cidrs: Option<Vec<String>>,
}

impl Object for ServiceCIDR {
    fn decode(encoding: Encoding, bytes: &[u8]) -> Result<Self, Unreadable> {
        match encoding {
            Encoding::Json => {
                let json: Json = serde_json::from_slice(bytes)?;
                Ok(Self {
                    metadata: json.metadata.into(),
                    spec: json.spec.map(|spec| ServiceCIDRSpec { cidrs: spec.cidrs }),
                    status: None,
                })
            }
            Encoding::Protobuf => {
                let mut object = Self::default();
                let mut fields = Fields::new(bytes);
                while let Some((number, value)) = fields.next()? {
                    match number {
                        1 => object.metadata = Metadata::from_protobuf(value.bytes()?)?.into(),
                        2 => object.spec = Some(spec(value)?),
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

fn spec(value: Value<'_>) -> Result<ServiceCIDRSpec, Unreadable> {
    let mut spec = ServiceCIDRSpec::default();
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next()? {
        if number == 1 {
            spec.cidrs.get_or_insert_default().push(value.string()?);
        }
    }
    Ok(spec)
}
