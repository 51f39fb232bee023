//! Metadata: names, versions, and the few labels that mean something to a proxy.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use nftproxy_core::k8s::{
    LABEL_HEADLESS, LABEL_SERVICE_NAME, LABEL_SERVICE_PROXY_NAME, LABEL_ZONE,
};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::protobuf::{Fields, Unreadable, Value};
use super::{Encoding, INITIAL_EVENTS_END};
use crate::source::convert::ANNOTATION_TRIGGER_TIME;

/// The labels that are kept.
const LABELS: [&str; 4] = [
    LABEL_SERVICE_PROXY_NAME,
    LABEL_HEADLESS,
    LABEL_SERVICE_NAME,
    LABEL_ZONE,
];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    pub(super) resource_version: Option<String>,
    creation_timestamp: Option<Timestamp>,
    deletion_timestamp: Option<Timestamp>,
    labels: Kept,
    pub(super) annotations: Kept,
}

/// The few labels or annotations that matter.
#[derive(Debug, Default)]
pub(super) struct Kept(BTreeMap<String, String>);

impl Kept {
    pub(super) fn ends_list(&self) -> bool {
        self.0
            .get(INITIAL_EVENTS_END)
            .is_some_and(|value| value == "true")
    }

    fn wants(key: &str) -> bool {
        LABELS.contains(&key) || key == INITIAL_EVENTS_END || key == ANNOTATION_TRIGGER_TIME
    }

    fn insert_protobuf(&mut self, entry: Value<'_>) -> Result<(), Unreadable> {
        let (mut key, mut value) = ("", "");
        let mut fields = Fields::new(entry.bytes()?);
        while let Some((number, text)) = fields.next()? {
            match number {
                1 => key = text.str()?,
                2 => value = text.str()?,
                _ => {}
            }
        }
        if Self::wants(key) {
            self.0.insert(key.to_owned(), value.to_owned());
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeptVisitor;

        impl<'de> Visitor<'de> for KeptVisitor {
            type Value = Kept;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("labels")
            }

            fn visit_unit<E>(self) -> Result<Kept, E> {
                Ok(Kept::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kept, A::Error> {
                let mut kept = Kept::default();
                while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    if Kept::wants(&key) {
                        let value: Option<String> = map.next_value()?;
                        kept.0.insert(key.into_owned(), value.unwrap_or_default());
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(kept)
            }
        }

        deserializer.deserialize_any(KeptVisitor)
    }
}

impl Metadata {
    pub(super) fn from_protobuf(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut metadata = Self::default();
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => metadata.name = value.optional_string()?,
                3 => metadata.namespace = value.optional_string()?,
                6 => metadata.resource_version = value.optional_string()?,
                8 => metadata.creation_timestamp = time(value)?,
                9 => metadata.deletion_timestamp = time(value)?,
                11 => metadata.labels.insert_protobuf(value)?,
                12 => metadata.annotations.insert_protobuf(value)?,
                _ => {}
            }
        }
        Ok(metadata)
    }

    /// Reads nothing of an object but its metadata. It is an error if it has none.
    pub(super) fn of_object(encoding: Encoding, bytes: &[u8]) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        struct Bare {
            metadata: Metadata,
        }
        match encoding {
            Encoding::Json => Ok(serde_json::from_slice::<Bare>(bytes)?.metadata),
            Encoding::Protobuf => Self::from_protobuf(Fields::only(bytes, 1)?),
        }
    }
}

/// A `Time`; one of seconds before the year 1 and the like is none.
fn time(value: Value<'_>) -> Result<Option<Timestamp>, Unreadable> {
    let mut seconds = 0;
    let mut fields = Fields::new(value.bytes()?);
    while let Some((number, value)) = fields.next()? {
        if number == 1 {
            seconds = value.int64()?;
        }
    }
    // Go's zero time is encoded as no fields.
    Ok(Timestamp::from_second(seconds)
        .ok()
        .filter(|_| seconds != 0))
}

impl From<Metadata> for ObjectMeta {
    fn from(metadata: Metadata) -> Self {
        let (labels, annotations) = (metadata.labels.0, metadata.annotations.0);
        Self {
            name: metadata.name,
            namespace: metadata.namespace,
            resource_version: metadata.resource_version,
            creation_timestamp: metadata.creation_timestamp.map(Time),
            deletion_timestamp: metadata.deletion_timestamp.map(Time),
            annotations: (!annotations.is_empty()).then_some(annotations),
            labels: (!labels.is_empty()).then_some(labels),
            ..Self::default()
        }
    }
}
