//! What a path names.
//!
//! It must not know of queries or of what is stored. Entry point: [`Target::parse`].

use super::resource::Resource;
use super::store;

pub(super) enum Target {
    Version,
    Object {
        resource: Resource,
        key: String,
    },
    Collection {
        resource: Resource,
        namespace: Option<String>,
    },
}

impl Target {
    pub(super) fn parse(path: &str) -> Option<Self> {
        if path == "/version" {
            return Some(Self::Version);
        }
        Resource::ALL.into_iter().find_map(|resource| {
            let segments: Vec<_> = path
                .strip_prefix(resource.group_path())?
                .split('/')
                .collect();
            let (namespace, rest) = match segments.as_slice() {
                ["namespaces", namespace, rest @ ..] if resource.is_namespaced() => {
                    (Some(*namespace), rest)
                }
                rest => (None, rest),
            };
            match rest {
                [plural] if *plural == resource.plural() => Some(Self::Collection {
                    resource,
                    namespace: namespace.map(str::to_owned),
                }),
                [plural, name]
                    if *plural == resource.plural()
                        && namespace.is_some() == resource.is_namespaced() =>
                {
                    Some(Self::Object {
                        resource,
                        key: store::key(namespace.unwrap_or(""), name),
                    })
                }
                _ => None,
            }
        })
    }

    pub(super) fn resource(&self) -> Option<Resource> {
        match self {
            Self::Version => None,
            Self::Object { resource, .. } | Self::Collection { resource, .. } => Some(*resource),
        }
    }
}
