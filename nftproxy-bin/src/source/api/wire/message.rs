//! Messages whose fields are said once, and read in either encoding.
//!
//! Entry points: [`message`], which says them, and [`decode`].

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::Encoding;
use super::protobuf::{Fields, Unreadable, Value};

/// Something with fields. Those that do not count are skipped unread.
pub(crate) trait Message: Default {
    /// Takes a field of protobuf.
    fn field(&mut self, number: u32, value: Value<'_>) -> Result<(), Unreadable>;
    /// Takes the next value of a JSON object, whose name has been read.
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Says which fields of a type are read: the number in protobuf, the name in JSON, the field of
/// the structure, and its [`Kind`].
macro_rules! message {
    ($type:ty { $($number:literal $name:literal $field:ident: $kind:ty,)* }) => {
        impl $crate::source::api::wire::message::Message for $type {
            fn field(
                &mut self,
                number: u32,
                value: $crate::source::api::wire::protobuf::Value<'_>,
            ) -> Result<(), $crate::source::api::wire::protobuf::Unreadable> {
                use $crate::source::api::wire::message::take;
                match number {
                    $($number => take::<$kind, _>(&mut self.$field, value),)*
                    _ => Ok(()),
                }
            }

            fn member<'de, A: serde::de::MapAccess<'de>>(
                &mut self,
                name: &str,
                map: &mut A,
            ) -> Result<(), A::Error> {
                use $crate::source::api::wire::message::set;
                match name {
                    $($name => set::<$kind, _, _>(&mut self.$field, map),)*
                    _ => map.next_value::<serde::de::IgnoredAny>().map(drop),
                }
            }
        }
    };
}
pub(crate) use message;

/// Decodes a message. In protobuf it has no envelope.
pub(crate) fn decode<M: Message>(encoding: Encoding, bytes: &[u8]) -> Result<M, Unreadable> {
    match encoding {
        Encoding::Json => Ok(serde_json::from_slice::<Json<M>>(bytes)?.0),
        Encoding::Protobuf => {
            let mut message = M::default();
            let mut fields = Fields::new(bytes);
            while let Some((number, value)) = fields.next()? {
                message.field(number, value)?;
            }
            Ok(message)
        }
    }
}

/// How a field is written, and what becomes of it. `null` is as good as no field.
pub(crate) trait Kind<T> {
    type Json: for<'de> Deserialize<'de>;

    fn protobuf(field: &mut T, value: Value<'_>) -> Result<(), Unreadable>;
    fn json(field: &mut T, json: Self::Json);
}

/// Reads a value of protobuf into a field.
pub(crate) fn take<K: Kind<T>, T>(field: &mut T, value: Value<'_>) -> Result<(), Unreadable> {
    K::protobuf(field, value)
}

/// Reads the next value of a JSON object into a field.
pub(crate) fn set<'de, K: Kind<T>, T, A: MapAccess<'de>>(
    field: &mut T,
    map: &mut A,
) -> Result<(), A::Error> {
    if let Some(json) = map.next_value::<Option<K::Json>>()? {
        K::json(field, json);
    }
    Ok(())
}

/// Text, which Go writes even if it is empty, where JSON has no field at all.
pub(crate) struct Text;
/// Text that may be empty or absent, which is not the same: in Go a pointer.
pub(crate) struct Pointer;
pub(crate) struct Number;
pub(crate) struct Flag;
/// A list of texts.
pub(crate) struct Texts;
/// Another message.
pub(crate) struct One;
/// A list of messages.
pub(crate) struct Many;

impl Kind<Option<String>> for Text {
    type Json = String;

    fn protobuf(field: &mut Option<String>, value: Value<'_>) -> Result<(), Unreadable> {
        let text = value.str()?;
        *field = (!text.is_empty()).then(|| text.to_owned());
        Ok(())
    }

    fn json(field: &mut Option<String>, json: String) {
        *field = Some(json);
    }
}

impl Kind<String> for Text {
    type Json = String;

    fn protobuf(field: &mut String, value: Value<'_>) -> Result<(), Unreadable> {
        *field = value.string()?;
        Ok(())
    }

    fn json(field: &mut String, json: String) {
        *field = json;
    }
}

impl Kind<Option<String>> for Pointer {
    type Json = String;

    fn protobuf(field: &mut Option<String>, value: Value<'_>) -> Result<(), Unreadable> {
        *field = Some(value.string()?);
        Ok(())
    }

    fn json(field: &mut Option<String>, json: String) {
        *field = Some(json);
    }
}

impl<T: From<i32>> Kind<T> for Number {
    type Json = i32;

    fn protobuf(field: &mut T, value: Value<'_>) -> Result<(), Unreadable> {
        *field = value.int32()?.into();
        Ok(())
    }

    fn json(field: &mut T, json: i32) {
        *field = json.into();
    }
}

impl Kind<Option<bool>> for Flag {
    type Json = bool;

    fn protobuf(field: &mut Option<bool>, value: Value<'_>) -> Result<(), Unreadable> {
        *field = Some(value.bool()?);
        Ok(())
    }

    fn json(field: &mut Option<bool>, json: bool) {
        *field = Some(json);
    }
}

impl Kind<Vec<String>> for Texts {
    type Json = Vec<String>;

    fn protobuf(field: &mut Vec<String>, value: Value<'_>) -> Result<(), Unreadable> {
        field.push(value.string()?);
        Ok(())
    }

    fn json(field: &mut Vec<String>, json: Vec<String>) {
        *field = json;
    }
}

impl Kind<Option<Vec<String>>> for Texts {
    type Json = Vec<String>;

    fn protobuf(field: &mut Option<Vec<String>>, value: Value<'_>) -> Result<(), Unreadable> {
        Self::protobuf(field.get_or_insert_default(), value)
    }

    fn json(field: &mut Option<Vec<String>>, json: Vec<String>) {
        *field = Some(json);
    }
}

impl<M: Message> Kind<Option<M>> for One {
    type Json = Json<M>;

    fn protobuf(field: &mut Option<M>, value: Value<'_>) -> Result<(), Unreadable> {
        *field = Some(decode(Encoding::Protobuf, value.bytes()?)?);
        Ok(())
    }

    fn json(field: &mut Option<M>, json: Json<M>) {
        *field = Some(json.0);
    }
}

impl<M: Message> Kind<Option<Vec<M>>> for Many {
    type Json = Vec<Json<M>>;

    fn protobuf(field: &mut Option<Vec<M>>, value: Value<'_>) -> Result<(), Unreadable> {
        let message = decode(Encoding::Protobuf, value.bytes()?)?;
        field.get_or_insert_default().push(message);
        Ok(())
    }

    fn json(field: &mut Option<Vec<M>>, json: Vec<Json<M>>) {
        *field = Some(json.into_iter().map(|Json(message)| message).collect());
    }
}

/// A message that is read from JSON.
#[derive(Default)]
pub(crate) struct Json<M>(pub(crate) M);

impl<'de, M: Message> Deserialize<'de> for Json<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MessageVisitor<M>(PhantomData<M>);

        impl<'de, M: Message> Visitor<'de> for MessageVisitor<M> {
            type Value = Json<M>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<M>, A::Error> {
                let mut message = M::default();
                while let Some(Name(name)) = map.next_key()? {
                    message.member(&name, &mut map)?;
                }
                Ok(Json(message))
            }
        }

        deserializer.deserialize_map(MessageVisitor(PhantomData))
    }
}

/// The name of a member, borrowed if it can be.
pub(super) struct Name<'de>(pub(super) Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(text.into()))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(text.to_owned().into()))
            }
        }

        deserializer.deserialize_str(NameVisitor)
    }
}
