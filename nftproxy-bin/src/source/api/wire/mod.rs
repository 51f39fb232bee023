//! Objects as they come over the wire: just what the proxy needs of them, in either encoding.
//!
//! Decoding yields objects of `k8s-openapi` with most fields left empty, so that one conversion
//! and one validation serve both encodings, and manifests. What is not needed is skipped unread.

pub(super) mod message;
mod meta;
mod node;
pub(super) mod protobuf;
mod recorded;
mod service;
mod service_cidr;
mod slice;

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::value::RawValue;

use self::message::{Json, Text, message};
use self::meta::Metadata;
use self::protobuf::{Fields, Unreadable, unwrap};
pub(in crate::source) use self::recorded::Recorded;
use super::failure::Failure;
use super::status::Status;
use crate::config::PROTOBUF;

/// How what the server sends is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Also of whoever names no type of content.
    Json,
    /// That of Kubernetes.
    Protobuf,
}

impl Encoding {
    /// What an answer's content type says.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let value = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
        let text = String::from_utf8_lossy(value.unwrap_or_default()).to_lowercase();
        match text.split(';').next().unwrap_or_default().trim() {
            PROTOBUF => Ok(Self::Protobuf),
            // Simple front ends name none.
            "application/json" | "text/json" | "" => Ok(Self::Json),
            other => Err(Failure::Unreadable(format!(
                "its content type is {other:?}"
            ))),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Protobuf => "protobuf",
        }
    }
}

/// The annotation of the bookmark after the last object of a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// A kind of object that can be decoded.
pub(crate) trait Object: Sized {
    /// Decodes an object. In protobuf it has no envelope.
    fn decode(encoding: Encoding, bytes: &[u8]) -> Result<Self, Unreadable>;
    /// One of which nothing but the metadata is known.
    fn bare(metadata: ObjectMeta) -> Self;
    fn metadata(&self) -> &ObjectMeta;
}

/// Makes an [`Object`] of a type that is a message with metadata.
macro_rules! object {
    ($type:ty) => {
        impl $crate::source::api::wire::Object for $type {
            fn decode(
                encoding: $crate::source::api::wire::Encoding,
                bytes: &[u8],
            ) -> Result<Self, $crate::source::api::wire::protobuf::Unreadable> {
                $crate::source::api::wire::message::decode(encoding, bytes)
            }

            fn bare(metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Self {
                Self {
                    metadata,
                    ..Self::default()
                }
            }

            fn metadata(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &self.metadata
            }
        }
    };
}
use object;

/// What a watch says.
#[derive(Debug)]
pub(super) enum WatchEvent<K> {
    /// An object was added or changed.
    Applied(Item<K>),
    Deleted(K),
    /// Everything up to this version has been said.
    Bookmark {
        version: String,
        /// Whether it ends the objects of a streaming list.
        ends_list: bool,
    },
    Error(Status),
    /// Of a type that we do not know.
    Other(String),
}

/// An object, or one that cannot be read but for its name.
#[derive(Debug)]
pub(super) enum Item<K> {
    Good(K),
    Bad(K, Unreadable),
}

impl<K: Object> Item<K> {
    /// Decodes an item of a list. It is an error if not even its name can be read.
    pub(super) fn decode(encoding: Encoding, bytes: &[u8]) -> Result<Self, Unreadable> {
        match K::decode(encoding, bytes) {
            Ok(object) => Ok(Self::Good(object)),
            Err(error) => {
                let bare = K::bare(Metadata::of_object(encoding, bytes)?.into());
                Ok(Self::Bad(bare, error))
            }
        }
    }

    pub(super) fn object(&self) -> &K {
        match self {
            Self::Good(object) | Self::Bad(object, _) => object,
        }
    }
}

impl<K: Object> WatchEvent<K> {
    /// Decodes a frame of a watch.
    pub(super) fn decode(encoding: Encoding, frame: &[u8]) -> Result<Self, Unreadable> {
        match encoding {
            Encoding::Json => {
                let event: JsonEvent<'_> = serde_json::from_slice(frame)?;
                Self::new(encoding, &event.kind, event.object.get().as_bytes())
            }
            Encoding::Protobuf => {
                let mut kind = "";
                let mut object: &[u8] = &[];
                let mut fields = Fields::new(frame);
                while let Some((number, value)) = fields.next()? {
                    match number {
                        1 => kind = value.str()?,
                        // A RawExtension, whose only field is the object.
                        2 => object = Fields::only(value.bytes()?, 1)?,
                        _ => {}
                    }
                }
                Self::new(encoding, kind, object)
            }
        }
    }

    fn new(encoding: Encoding, kind: &str, object: &[u8]) -> Result<Self, Unreadable> {
        let bare = match encoding {
            Encoding::Json => object,
            Encoding::Protobuf => unwrap(object)?,
        };
        Ok(match kind {
            "ADDED" | "MODIFIED" => Self::Applied(Item::decode(encoding, bare)?),
            // The last state of what is gone does not matter.
            "DELETED" => Self::Deleted(K::bare(Metadata::of_object(encoding, bare)?.into())),
            "BOOKMARK" => {
                let metadata = Metadata::of_object(encoding, bare)?;
                Self::Bookmark {
                    ends_list: metadata.annotations.ends_list(),
                    version: metadata.resource_version.unwrap_or_default(),
                }
            }
            "ERROR" => Self::Error(Status::decode(encoding, object)?),
            other => Self::Other(other.to_owned()),
        })
    }
}

/// The object that a frame of a watch says was added or changed.
pub(crate) fn object_in<K: Object>(encoding: Encoding, frame: &[u8]) -> Result<K, Unreadable> {
    match WatchEvent::decode(encoding, frame)? {
        WatchEvent::Applied(Item::Good(object)) => Ok(object),
        WatchEvent::Applied(Item::Bad(_, error)) => Err(error),
        _ => Err(Unreadable::new("there is no object in it")),
    }
}

#[derive(Deserialize)]
struct JsonEvent<'a> {
    #[serde(rename = "type")]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What a list says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ListMeta {
    pub(super) version: String,
    /// Set if there are more pages.
    pub(super) next: Option<String>,
}

message!(ListMeta {
    2 "resourceVersion" version: Text,
    3 "continue" next: Text,
});

impl ListMeta {
    /// Reads it from a list in JSON, of which the items may be left out.
    pub(super) fn from_json_list(bytes: &[u8]) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        struct List {
            kind: Option<String>,
            metadata: Option<Json<ListMeta>>,
        }
        let list: List = serde_json::from_slice(bytes)?;
        let kind = list.kind.unwrap_or_default();
        if !kind.is_empty() && !kind.ends_with("List") {
            return Err(Unreadable(format!("it is a {kind} instead of a list")));
        }
        let Some(Json(mut meta)) = list.metadata else {
            return Err(Unreadable::new("a list without metadata"));
        };
        meta.next = meta.next.filter(|next| !next.is_empty());
        Ok(meta)
    }
}

#[cfg(test)]
mod tests;
