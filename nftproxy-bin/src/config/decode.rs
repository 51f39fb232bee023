//! Decoding of a configuration document with the tolerance kube-proxy has.
//!
//! kube-proxy decodes strictly first and, when strictness is the only problem, once more leniently.
//! The same result comes from one lenient pass that notes what a strict one would have refused:
//! [`decode`] drops fields the type does not have, lets the last of duplicate keys win, treats
//! `null` as absent, and returns the path of every stray it met. A value of the wrong type is an
//! error that names its path. Knows nothing of which fields exist; that is the type's business.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StringDeserializer;
use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

/// Why a document cannot be decoded, with the path of the field where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DecodeError {
    path: Option<String>,
    reason: String,
}

impl DecodeError {
    fn at(mut self, path: &str) -> Self {
        if self.path.is_none() && !path.is_empty() {
            self.path = Some(path.to_owned());
        }
        self
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{path}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl std::error::Error for DecodeError {}

impl serde::de::Error for DecodeError {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self {
            path: None,
            reason: reason.to_string(),
        }
    }
}

/// Decodes a YAML or JSON document, returning the value and the strays a strict decoder refuses,
/// such as ``unknown field `conntrack.maxx` ``. Only the first document of a YAML stream counts.
pub(crate) fn decode<T: DeserializeOwned>(text: &str) -> Result<(T, Vec<String>), DecodeError> {
    // JSON indented with tabs is not YAML, so JSON gets its own attempt.
    let document = match serde_json::from_str(text) {
        Ok(document) => document,
        Err(_) => first_yaml_document(text)?,
    };
    let strays = RefCell::default();
    let node = Node {
        value: &document,
        path: String::new(),
        strays: &strays,
    };
    let value = T::deserialize(node)?;
    Ok((value, strays.into_inner()))
}

fn first_yaml_document(text: &str) -> Result<Document, DecodeError> {
    match serde_norway::Deserializer::from_str(text).next() {
        Some(document) => Document::deserialize(document).map_err(DecodeError::custom),
        None => Ok(Document::Null),
    }
}

/// A parsed document that still has its duplicate keys and their order.
#[derive(Debug)]
enum Document {
    Null,
    Bool(bool),
    Integer(i64),
    BigInteger(u64),
    Float(f64),
    Text(String),
    List(Vec<Document>),
    Map(Vec<(String, Document)>),
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain YAML or JSON value")
    }

    fn visit_unit<E>(self) -> Result<Document, E> {
        Ok(Document::Null)
    }

    /// What an empty document is.
    fn visit_none<E>(self) -> Result<Document, E> {
        Ok(Document::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Document, E> {
        Ok(Document::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Document, E> {
        Ok(Document::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Document, E> {
        Ok(i64::try_from(value).map_or(Document::BigInteger(value), Document::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Document, E> {
        Ok(Document::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Document, E> {
        Ok(Document::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Document, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Document::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Document, A::Error> {
        let mut map = Vec::new();
        while let Some((key, value)) = entries.next_entry::<Document, Document>()? {
            let key = match key {
                Document::Text(key) => key,
                Document::Bool(key) => key.to_string(),
                Document::Integer(key) => key.to_string(),
                _ => return Err(A::Error::custom("a mapping key must be a string")),
            };
            map.push((key, value));
        }
        Ok(Document::Map(map))
    }
}

/// A place in the document, as a deserializer that knows its path.
struct Node<'a> {
    value: &'a Document,
    path: String,
    strays: &'a RefCell<Vec<String>>,
}

impl<'a> Node<'a> {
    fn field(&self, key: &str, value: &'a Document) -> Self {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        Self {
            value,
            path,
            strays: self.strays,
        }
    }

    fn item(&self, index: usize, value: &'a Document) -> Self {
        Self {
            value,
            path: format!("{}[{index}]", self.path),
            strays: self.strays,
        }
    }

    /// The entries that count: without nulls, and only the last of duplicate keys.
    fn fields(&self, map: &'a [(String, Document)]) -> Vec<(&'a str, Node<'a>)> {
        let mut fields = Vec::new();
        for (index, (key, value)) in map.iter().enumerate() {
            let node = self.field(key, value);
            if map[index + 1..].iter().any(|(later, _)| later == key) {
                self.strays
                    .borrow_mut()
                    .push(format!("duplicate field `{}`", node.path));
            } else if !matches!(value, Document::Null) {
                fields.push((key.as_str(), node));
            }
        }
        fields
    }
}

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Document::Null => visitor.visit_unit(),
            Document::Bool(value) => visitor.visit_bool(*value),
            Document::Integer(value) => visitor.visit_i64(*value),
            Document::BigInteger(value) => visitor.visit_u64(*value),
            Document::Float(value) => visitor.visit_f64(*value),
            Document::Text(value) => visitor.visit_str(value),
            Document::List(list) => {
                let items: Vec<_> = list
                    .iter()
                    .enumerate()
                    .map(|(index, value)| self.item(index, value))
                    .collect();
                visitor.visit_seq(Items(items.into_iter()))
            }
            Document::Map(map) => visitor.visit_map(Fields {
                rest: self.fields(map).into_iter(),
                value: None,
            }),
        }
        .map_err(|error: DecodeError| error.at(&self.path))
    }

    /// Go's YAML decoder follows YAML 1.1, where these unquoted words are booleans too.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Document::Text(word) => match word.as_str() {
                "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => visitor.visit_bool(true),
                "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => visitor.visit_bool(false),
                _ => self.deserialize_any(visitor),
            },
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Document::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    /// Derived structs would also take their fields from a list, in order; Go would not. An empty
    /// document, or item of a list, is a struct without fields.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.value {
            Document::Null => visitor.visit_map(Fields::default()),
            Document::List(_) => {
                Err(DecodeError::invalid_type(Unexpected::Seq, &visitor).at(&self.path))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    /// Derived structs ask for this exactly where they have no such field.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.strays
            .borrow_mut()
            .push(format!("unknown field `{}`", self.path));
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier
    }
}

struct Items<'a>(std::vec::IntoIter<Node<'a>>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = DecodeError;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, DecodeError> {
        self.0.next().map(|node| seed.deserialize(node)).transpose()
    }
}

#[derive(Default)]
struct Fields<'a> {
    rest: std::vec::IntoIter<(&'a str, Node<'a>)>,
    value: Option<Node<'a>>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = DecodeError;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, DecodeError> {
        let Some((key, node)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some(node);
        seed.deserialize(StringDeserializer::new(key.to_owned()))
            .map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<S::Value, DecodeError> {
        let node = self
            .value
            .take()
            .ok_or_else(|| DecodeError::custom("a key comes first"))?;
        let path = node.path.clone();
        // Types that convert after decoding fail outside the node, so the path is added here too.
        seed.deserialize(node).map_err(|error| error.at(&path))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Sample {
        plain: i32,
        pointer: Option<i32>,
        switch: bool,
        rate: f32,
        names: Vec<String>,
        gates: BTreeMap<String, bool>,
        nested: Option<Box<Sample>>,
    }

    fn sample(text: &str) -> (Sample, Vec<String>) {
        decode(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn o_2_strays_are_named_and_dropped() {
        let text =
            "plain: 1\nPlain: 2\nplain: 3\nnested: {extra: {a: 1}}\nnames: [a]\nnames: [b]\n";
        let (value, strays) = sample(text);
        assert_eq!(value.plain, 3);
        assert_eq!(value.names, ["b"]);
        let expected = [
            "duplicate field `plain`",
            "duplicate field `names`",
            "unknown field `Plain`",
            "unknown field `nested.extra`",
        ];
        assert_eq!(strays, expected);
    }

    #[test]
    fn o_3_null_is_absent_and_an_explicit_zero_is_not() {
        let (value, strays) =
            sample("plain: null\npointer: ~\nnames:\ngates: null\nnested: null\n");
        assert_eq!(value, Sample::default());
        assert!(strays.is_empty());
        assert_eq!(sample("pointer: 0").0.pointer, Some(0));
    }

    #[test]
    fn o_1_json_and_yaml_are_both_read() {
        let json = "{\n\t\"switch\": true,\n\t\"rate\": 5\n}";
        let expected = Sample {
            switch: true,
            rate: 5.0,
            ..Sample::default()
        };
        assert_eq!(sample(json).0, expected);
        assert_eq!(
            sample("switch: yes\nrate: 5.0\n---\nplain: 1\n").0,
            expected
        );
        assert_eq!(sample("{switch: on, rate: 5}").0, expected);
    }

    #[test]
    fn o_1_a_wrong_type_names_the_field() {
        let cases = [
            (
                "plain: x",
                "plain: invalid type: string \"x\", expected i32",
            ),
            (
                "plain: 3000000000",
                "plain: invalid value: integer `3000000000`, expected i32",
            ),
            ("nested: {nested: {switch: 1}}", "nested.nested.switch: "),
            (
                "nested: [1]",
                "nested: invalid type: sequence, expected struct Sample",
            ),
            ("switch: maybe", "switch: invalid type: string \"maybe\""),
            (
                "names: [a, 1]",
                "names[1]: invalid type: integer `1`, expected a string",
            ),
            (
                "gates: {A: true, B: 3}",
                "gates.B: invalid type: integer `3`",
            ),
        ];
        for (text, expected) in cases {
            let error = decode::<Sample>(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        assert!(decode::<Sample>("a: [").is_err());
    }
}
