//! JSON objects as Kubernetes' protobuf.
//!
//! It is written from the tables in `schema` and shares nothing with any client's decoder, so
//! that each checks the other.
//! What the tables do not know is an error and never left out in silence.
//! It must not know of HTTP. Entry points: [`object`] and [`watch_event`].

mod schema;

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde_json::{Map, Value};

use schema::{Field, Kind, LIST_META, Message, Presence};

const MAGIC: &[u8] = b"k8s\0";

/// An object or list with its kind, as a response body: four bytes, then a `runtime.Unknown`.
pub(super) fn object(object: &Value) -> anyhow::Result<Vec<u8>> {
    let kind = object["kind"].as_str().context("object without a kind")?;
    let raw = match kind.strip_suffix("List") {
        Some(kind) => list(object, kind),
        None => message_of(kind).and_then(|message| {
            let fields = object.as_object().context("no object")?;
            message_with(message, fields, &["kind", "apiVersion"])
        }),
    }
    .with_context(|| format!("encoding a {kind}"))?;

    let mut type_meta = Writer::default();
    type_meta.bytes(1, object["apiVersion"].as_str().unwrap_or("").as_bytes());
    type_meta.bytes(2, kind.as_bytes());
    let mut unknown = Writer(MAGIC.to_vec());
    unknown.bytes(1, &type_meta.0);
    unknown.bytes(2, &raw);
    // The encoding and the type of the content, which are empty for what is no container.
    unknown.bytes(3, b"");
    unknown.bytes(4, b"");
    Ok(unknown.0)
}

/// One frame of a watch: the length in four bytes, then a `WatchEvent` around an [`object`].
pub(super) fn watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Writer::default();
    raw.bytes(1, object);
    let mut event = Writer::default();
    event.bytes(1, kind.as_bytes());
    event.bytes(2, &raw.0);
    let length = u32::try_from(event.0.len()).expect("an event has less than 4 GiB");
    let mut frame = length.to_be_bytes().to_vec();
    frame.append(&mut event.0);
    frame
}

fn message_of(kind: &str) -> anyhow::Result<&'static Message> {
    schema::of_kind(kind).context("no message of this kind is known")
}

fn list(list: &Value, kind: &str) -> anyhow::Result<Vec<u8>> {
    let message = Kind::Nested(message_of(kind)?);
    let items = list["items"].as_array().context("list without items")?;
    let mut writer = Writer::default();
    writer.value(1, Kind::Nested(&LIST_META), &list["metadata"])?;
    for item in items {
        writer
            .value(2, message, item)
            .with_context(|| format!("item {}", item["metadata"]["name"]))?;
    }
    Ok(writer.0)
}

/// The fields of a message; those in `elsewhere` are said in another place.
fn message_with(
    message: &Message,
    object: &Map<String, Value>,
    elsewhere: &[&str],
) -> anyhow::Result<Vec<u8>> {
    let is_known = |name: &str| message.fields.iter().any(|field| field.name == name);
    if let Some((name, _)) = object
        .iter()
        .find(|(name, value)| !value.is_null() && !is_known(name) && !elsewhere.contains(&&***name))
    {
        bail!("no field {name} is known");
    }
    let mut writer = Writer::default();
    for field in message.fields {
        let value = object.get(field.name).unwrap_or(&Value::Null);
        writer
            .field(field, value)
            .with_context(|| field.name.to_owned())?;
    }
    Ok(writer.0)
}

/// Bytes of one message, field after field.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn field(&mut self, field: &Field, value: &Value) -> anyhow::Result<()> {
        match (field.presence, field.kind) {
            (Presence::IfSet | Presence::Repeated, _) if value.is_null() => Ok(()),
            (Presence::Repeated, kind) => value
                .as_array()
                .context("no array")?
                .iter()
                .try_for_each(|value| self.value(field.number, kind, value)),
            (_, Kind::Map(values)) => {
                value
                    .as_object()
                    .context("no object")?
                    .iter()
                    .try_for_each(|(key, value)| {
                        let mut entry = Self::default();
                        entry.bytes(1, key.as_bytes());
                        entry
                            .value(2, *values, value)
                            .with_context(|| key.clone())?;
                        self.bytes(field.number, &entry.0);
                        Ok(())
                    })
            }
            (_, kind) => self.value(field.number, kind, value),
        }
    }

    /// One value; null is the zero of its kind.
    fn value(&mut self, number: u32, kind: Kind, value: &Value) -> anyhow::Result<()> {
        match kind {
            Kind::Text => self.bytes(number, text(value)?.as_bytes()),
            Kind::Int => self.int(number, int(value)?),
            Kind::Bool if value.is_null() => self.int(number, 0),
            Kind::Bool => self.int(number, value.as_bool().context("no boolean")?.into()),
            Kind::Quantity => {
                let mut quantity = Self::default();
                quantity.bytes(1, text(value)?.as_bytes());
                self.bytes(number, &quantity.0);
            }
            Kind::Time => self.bytes(number, &time(value)?),
            Kind::IntOrString => self.bytes(number, &int_or_string(value)?),
            Kind::Json => {
                let mut json = Self::default();
                json.bytes(1, value.to_string().as_bytes());
                self.bytes(number, &json.0);
            }
            Kind::Nested(message) => {
                let none = Map::new();
                let fields = match value {
                    Value::Null => &none,
                    value => value.as_object().context("no object")?,
                };
                self.bytes(number, &message_with(message, fields, &[])?);
            }
            Kind::Map(_) => bail!("a map cannot be the value of a map or an array"),
        }
        Ok(())
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn int(&mut self, number: u32, value: i64) {
        self.varint(u64::from(number) << 3);
        // Negative numbers take ten bytes, as protobuf has it for plain integers.
        self.varint(value.cast_unsigned());
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

fn text(value: &Value) -> anyhow::Result<&str> {
    match value {
        Value::Null => Ok(""),
        value => value.as_str().context("no text"),
    }
}

fn int(value: &Value) -> anyhow::Result<i64> {
    match value {
        Value::Null => Ok(0),
        value => value.as_i64().context("no integer"),
    }
}

fn time(value: &Value) -> anyhow::Result<Vec<u8>> {
    let mut writer = Writer::default();
    if !value.is_null() {
        let time: Timestamp = text(value)?.parse().context("no time")?;
        writer.int(1, time.as_second());
        writer.int(2, time.subsec_nanosecond().into());
    }
    Ok(writer.0)
}

fn int_or_string(value: &Value) -> anyhow::Result<Vec<u8>> {
    let (kind, number, text) = match value {
        Value::String(text) => (1, 0, text.as_str()),
        value => (0, int(value)?, ""),
    };
    let mut writer = Writer::default();
    writer.int(1, kind);
    writer.int(2, number);
    writer.bytes(3, text.as_bytes());
    Ok(writer.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures::{self, with_sorted_fields};

    fn recorded(file: &str) -> Vec<u8> {
        with_sorted_fields(&std::fs::read(fixtures::path(file)).unwrap())
    }

    fn recorded_events(name: &str) -> Vec<Value> {
        let stream = fixtures::read(&format!("watchlist-{name}.jsonl"));
        let events = stream
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        events.collect()
    }

    #[test]
    fn watches_are_as_recorded_byte_for_byte() {
        for name in ["services", "endpointslices", "nodes", "servicecidrs"] {
            let expected = recorded(&format!("watchlist-{name}.pb"));
            let mut rest = &expected[..];
            for event in recorded_events(name) {
                let kind = event["type"].as_str().unwrap();
                let frame = watch_event(kind, &object(&event["object"]).unwrap());
                let (start, end) = rest.split_at(frame.len().min(rest.len()));
                assert!(frame == start, "{event}");
                rest = end;
            }
            assert!(rest.is_empty(), "{name}");
        }
    }

    #[test]
    fn lists_are_as_recorded_byte_for_byte() {
        for (name, kind, api_version, version) in [
            ("services", "ServiceList", "v1", "140"),
            (
                "endpointslices",
                "EndpointSliceList",
                "discovery.k8s.io/v1",
                "130",
            ),
            ("nodes", "NodeList", "v1", "136"),
            (
                "servicecidrs",
                "ServiceCIDRList",
                "networking.k8s.io/v1",
                "65",
            ),
        ] {
            let without_kind = |mut event: Value| {
                let object = event["object"].as_object_mut().unwrap();
                object.remove("kind");
                object.remove("apiVersion");
                event["object"].take()
            };
            let items: Vec<_> = recorded_events(name)
                .into_iter()
                .take_while(|event| event["type"] == "ADDED")
                .map(without_kind)
                .collect();
            let list = json!({
                "kind": kind,
                "apiVersion": api_version,
                "metadata": {"resourceVersion": version},
                "items": items,
            });
            let expected = recorded(&format!("list-{name}.pb"));
            assert!(object(&list).unwrap() == expected, "{name}");
        }
    }

    #[test]
    fn what_the_tables_do_not_know_is_an_error_with_its_place() {
        for (spec, message) in [
            (
                json!({"novelty": 1}),
                "encoding a Service: spec: no field novelty is known",
            ),
            (
                json!({"clusterIP": 1}),
                "encoding a Service: spec: clusterIP: no text",
            ),
            (
                json!({"ports": [{"port": "80"}]}),
                "encoding a Service: spec: ports: port: no integer",
            ),
            (
                json!({"selector": {"a": 1}}),
                "encoding a Service: spec: selector: a: no text",
            ),
        ] {
            let service = json!({"kind": "Service", "apiVersion": "v1", "spec": spec});
            assert_eq!(format!("{:#}", object(&service).unwrap_err()), message);
        }
        let unknown = object(&json!({"kind": "Pod"})).unwrap_err();
        assert_eq!(
            format!("{unknown:#}"),
            "encoding a Pod: no message of this kind is known"
        );
    }

    #[test]
    fn numbers_may_be_negative_and_times_exact() {
        assert_eq!(
            time(&json!("1970-01-01T00:00:01.5Z")).unwrap(),
            [8, 1, 16, 0x80, 0xca, 0xb5, 0xee, 1]
        );
        let mut writer = Writer::default();
        writer.int(3, -1);
        assert_eq!(
            writer.0,
            [24, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]
        );
    }
}
