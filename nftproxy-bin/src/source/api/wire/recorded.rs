//! Lists as a server has sent them in protobuf, kept in files.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use super::protobuf::{Fields, MAGIC, Unreadable};
use super::{Encoding, Object};

/// The objects of a recorded list, or a single one.
#[derive(Debug)]
pub(in crate::source) enum Recorded {
    Services(Vec<core::Service>),
    Slices(Vec<EndpointSlice>),
    Nodes(Vec<core::Node>),
    ServiceCidrs(Vec<ServiceCIDR>),
    /// Of a kind that nobody needs.
    Others,
}

impl Recorded {
    /// Whether these are bytes to read.
    pub(in crate::source) fn is_recorded(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// Reads all of it.
    pub(in crate::source) fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let unknown = bytes.strip_prefix(MAGIC).unwrap_or_default();
        // A `runtime.Unknown`: a `TypeMeta`, and the object.
        let (mut api_version, mut kind, mut object): (&str, &str, &[u8]) = ("", "", &[]);
        let mut fields = Fields::new(unknown);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => {
                    let mut meta = Fields::new(value.bytes()?);
                    while let Some((number, value)) = meta.next()? {
                        match number {
                            1 => api_version = value.str()?,
                            2 => kind = value.str()?,
                            _ => {}
                        }
                    }
                }
                2 => object = value.bytes()?,
                _ => {}
            }
        }
        let list = kind.strip_suffix("List");
        let is_list = list.is_some();
        Ok(match (api_version, list.unwrap_or(kind)) {
            ("v1", "Service") => Self::Services(items(object, is_list)?),
            ("v1", "Node") => Self::Nodes(items(object, is_list)?),
            ("discovery.k8s.io/v1", "EndpointSlice") => Self::Slices(items(object, is_list)?),
            ("networking.k8s.io/v1", "ServiceCIDR") => Self::ServiceCidrs(items(object, is_list)?),
            (_, "") => return Err(Unreadable::new("an object in protobuf without a kind")),
            _ => Self::Others,
        })
    }
}

fn items<K: Object>(object: &[u8], is_list: bool) -> Result<Vec<K>, Unreadable> {
    if !is_list {
        return Ok(vec![K::decode(Encoding::Protobuf, object)?]);
    }
    let mut items = Vec::new();
    let mut fields = Fields::new(object);
    while let Some((number, value)) = fields.next()? {
        if number == 2 {
            items.push(K::decode(Encoding::Protobuf, value.bytes()?)?);
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: &[u8] =
        include_bytes!("../../../../../integration/fixtures/cluster-small/list-services.pb");

    #[test]
    fn recorded_lists_are_read_whole() {
        let Recorded::Services(services) = Recorded::read(SERVICES).unwrap() else {
            panic!("no Services");
        };
        assert!(services.len() > 10);
        assert!(
            services
                .iter()
                .all(|service| service.metadata.name.is_some())
        );
        for end in (10..SERVICES.len() - 10).step_by(101) {
            assert!(Recorded::read(&SERVICES[..end]).is_err(), "{end}");
        }
        assert!(Recorded::read(MAGIC).is_err());
    }
}
