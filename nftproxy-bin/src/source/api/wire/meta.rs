//! Metadata: names, versions, and the few labels that mean something to a proxy.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use nftproxy_core::k8s::{
    ANNOTATION_BALANCING, ANNOTATION_WEIGHTS, LABEL_HEADLESS, LABEL_SERVICE_NAME,
    LABEL_SERVICE_PROXY_NAME, LABEL_ZONE,
};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::message::{Json, Kind, Name, One, Text, decode, message};
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

/// The annotations that are kept.
const ANNOTATIONS: [&str; 4] = [
    INITIAL_EVENTS_END,
    ANNOTATION_TRIGGER_TIME,
    ANNOTATION_BALANCING,
    ANNOTATION_WEIGHTS,
];

#[derive(Debug, Default)]
pub(super) struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    pub(super) resource_version: Option<String>,
    creation_timestamp: Option<Timestamp>,
    deletion_timestamp: Option<Timestamp>,
    labels: Kept,
    pub(super) annotations: Kept,
}

message!(Metadata {
    1 "name" name: Text,
    3 "namespace" namespace: Text,
    6 "resourceVersion" resource_version: Text,
    8 "creationTimestamp" creation_timestamp: Moment,
    9 "deletionTimestamp" deletion_timestamp: Moment,
    11 "labels" labels: Labels,
    12 "annotations" annotations: Labels,
});

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
        LABELS.contains(&key) || ANNOTATIONS.contains(&key)
    }
}

/// Labels or annotations, of which few are kept.
pub(super) struct Labels;

impl Kind<Kept> for Labels {
    type Json = Kept;

    fn protobuf(field: &mut Kept, value: Value<'_>) -> Result<(), Unreadable> {
        let (mut key, mut content) = ("", "");
        let mut fields = Fields::new(value.bytes()?);
        while let Some((number, text)) = fields.next()? {
            match number {
                1 => key = text.str()?,
                2 => content = text.str()?,
                _ => {}
            }
        }
        if Kept::wants(key) {
            field.0.insert(key.to_owned(), content.to_owned());
        }
        Ok(())
    }

    fn json(field: &mut Kept, json: Kept) {
        *field = json;
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

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kept, A::Error> {
                let mut kept = Kept::default();
                while let Some(Name(key)) = map.next_key()? {
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

        deserializer.deserialize_map(KeptVisitor)
    }
}

impl Metadata {
    /// Reads nothing of an object but its metadata. It is an error if it has none.
    pub(super) fn of_object(encoding: Encoding, bytes: &[u8]) -> Result<Self, Unreadable> {
        #[derive(Default)]
        struct Bare {
            metadata: Option<Metadata>,
        }
        message!(Bare {
            1 "metadata" metadata: One,
        });
        let bare: Bare = decode(encoding, bytes)?;
        bare.metadata
            .ok_or_else(|| Unreadable::new("an object without metadata"))
    }
}

/// A `Time`; one of seconds before the year 1 and the like is none.
pub(super) struct Moment;

impl Kind<Option<Timestamp>> for Moment {
    type Json = Timestamp;

    fn protobuf(field: &mut Option<Timestamp>, value: Value<'_>) -> Result<(), Unreadable> {
        let mut seconds = 0;
        let mut fields = Fields::new(value.bytes()?);
        while let Some((number, value)) = fields.next()? {
            if number == 1 {
                seconds = value.int64()?;
            }
        }
        // Go's zero time is encoded as no fields.
        let time = Timestamp::from_second(seconds).ok();
        *field = time.filter(|_| seconds != 0);
        Ok(())
    }

    fn json(field: &mut Option<Timestamp>, json: Timestamp) {
        *field = Some(json);
    }
}

/// The metadata of an object.
pub(super) struct Meta;

impl Kind<ObjectMeta> for Meta {
    type Json = Json<Metadata>;

    fn protobuf(field: &mut ObjectMeta, value: Value<'_>) -> Result<(), Unreadable> {
        let metadata: Metadata = decode(Encoding::Protobuf, value.bytes()?)?;
        *field = metadata.into();
        Ok(())
    }

    fn json(field: &mut ObjectMeta, Json(metadata): Json<Metadata>) {
        *field = metadata.into();
    }
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
