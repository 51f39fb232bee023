//! The body of a list to its items, as the bytes come: no more than one item is held.

use bytes::{Buf, Bytes, BytesMut};

use super::frames::MAX_FRAME;
use super::wire::message::decode;
use super::wire::protobuf::{MAGIC, Tag, Unreadable, varint};
use super::wire::{Encoding, ListMeta};

/// A list that is being read.
pub(super) enum List {
    Json(Json),
    Protobuf(Protobuf),
}

impl List {
    pub(super) fn new(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Json => Self::Json(Json::default()),
            Encoding::Protobuf => Self::Protobuf(Protobuf::default()),
        }
    }

    /// Takes more bytes, and hands out the items that are complete with them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Bytes>, Unreadable> {
        let mut items = Vec::new();
        match self {
            Self::Json(list) => list.push(bytes, &mut items)?,
            Self::Protobuf(list) => list.push(bytes, &mut items)?,
        }
        Ok(items)
    }

    /// What the list says of itself, when its body has ended. It is an error if it ended early.
    pub(super) fn finish(self) -> Result<ListMeta, Unreadable> {
        match self {
            Self::Json(list) => ListMeta::from_json_list(&list.rest),
            Self::Protobuf(list) => list.finish(),
        }
    }
}

/// A list in JSON. What is not an item is collected, and parsed at the end.
#[derive(Default)]
pub(super) struct Json {
    rest: Vec<u8>,
    item: BytesMut,
    /// How many brackets are open, those around items included.
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// The text of the last string at depth 1, and whether it is being read.
    key: Vec<u8>,
    in_items: bool,
}

/// The depth within the array of items.
const ITEMS_DEPTH: usize = 2;

impl Json {
    fn push(&mut self, bytes: &[u8], items: &mut Vec<Bytes>) -> Result<(), Unreadable> {
        // Where what has not been copied yet begins.
        let mut start = 0;
        for (index, byte) in bytes.iter().enumerate() {
            if self.in_string {
                if self.is_escaped {
                    self.is_escaped = false;
                } else if *byte == b'\\' {
                    self.is_escaped = true;
                } else if *byte == b'"' {
                    self.in_string = false;
                }
                if self.depth == 1 && self.in_string {
                    self.key.push(*byte);
                }
                continue;
            }
            match byte {
                b'"' => {
                    self.in_string = true;
                    if self.depth == 1 {
                        self.key.clear();
                    }
                }
                b'{' | b'[' => {
                    if self.in_items && self.depth == ITEMS_DEPTH {
                        // Commas and spaces between items are nobody's.
                        start = index;
                    }
                    self.depth += 1;
                    if *byte == b'[' && self.depth == ITEMS_DEPTH && self.key == b"items" {
                        self.rest.extend_from_slice(&bytes[start..=index]);
                        self.in_items = true;
                    }
                }
                b'}' | b']' => {
                    self.depth = self
                        .depth
                        .checked_sub(1)
                        .ok_or_else(|| Unreadable::new("a list with a bracket too many"))?;
                    if self.in_items && self.depth == ITEMS_DEPTH {
                        self.item.extend_from_slice(&bytes[start..=index]);
                        items.push(self.item.split().freeze());
                    } else if self.in_items && self.depth < ITEMS_DEPTH {
                        self.in_items = false;
                        start = index;
                    }
                }
                _ => {}
            }
        }
        if !self.in_items {
            self.rest.extend_from_slice(&bytes[start..]);
        } else if self.depth > ITEMS_DEPTH {
            self.item.extend_from_slice(&bytes[start..]);
        }
        if self.rest.len().max(self.item.len()) > MAX_FRAME {
            return Err(Unreadable::new("a list with an item that does not end"));
        }
        Ok(())
    }
}

/// A list in protobuf: the envelope, and in it the list's fields.
#[derive(Default)]
pub(super) struct Protobuf {
    bytes: BytesMut,
    has_started: bool,
    /// How much of the list itself is still to come; none outside of it.
    n_left: Option<u64>,
    meta: ListMeta,
}

impl Protobuf {
    fn push(&mut self, bytes: &[u8], items: &mut Vec<Bytes>) -> Result<(), Unreadable> {
        self.bytes.extend_from_slice(bytes);
        if !self.has_started {
            if self.bytes.len() < MAGIC.len() {
                return Ok(());
            }
            if !self.bytes.starts_with(MAGIC) {
                return Err(Unreadable::new("a list that does not start as one"));
            }
            self.bytes.advance(MAGIC.len());
            self.has_started = true;
        }
        loop {
            if self.n_left == Some(0) {
                self.n_left = None;
            }
            // A tag and, as all fields here have one, a length.
            let Some((tag, tag_length)) = varint(&self.bytes)? else {
                return Ok(());
            };
            let tag = Tag::new(tag)?;
            if !tag.has_length {
                return Err(Unreadable::new("a list with a number in it"));
            }
            let Some((length, length_length)) = varint(&self.bytes[tag_length..])? else {
                return Ok(());
            };
            let head = tag_length + length_length;
            if self.n_left.is_none() && tag.number == 2 {
                self.bytes.advance(head);
                self.n_left = Some(length);
                continue;
            }
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > MAX_FRAME {
                return Err(Unreadable::new("a list with an item that is too large"));
            }
            if self.bytes.len() < head + length {
                return Ok(());
            }
            self.bytes.advance(head);
            let field = self.bytes.split_to(length).freeze();
            if let Some(n_left) = self.n_left {
                let taken = (head + length) as u64;
                let Some(n_left) = n_left.checked_sub(taken) else {
                    return Err(Unreadable::new("a list with an item beyond its end"));
                };
                self.n_left = Some(n_left);
                match tag.number {
                    1 => self.meta = decode(Encoding::Protobuf, &field)?,
                    2 => items.push(field),
                    _ => {}
                }
            }
        }
    }

    fn finish(self) -> Result<ListMeta, Unreadable> {
        if !self.has_started || self.n_left.is_some_and(|n| n > 0) || !self.bytes.is_empty() {
            return Err(Unreadable::new("a list that ends early"));
        }
        Ok(self.meta)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Feeds a list in pieces of this size.
    fn read(
        encoding: Encoding,
        body: &[u8],
        size: usize,
    ) -> Result<(Vec<Bytes>, ListMeta), Unreadable> {
        let mut list = List::new(encoding);
        let mut items = Vec::new();
        for piece in body.chunks(size) {
            items.extend(list.push(piece)?);
        }
        Ok((items, list.finish()?))
    }

    const JSON: &[u8] =
        include_bytes!("../../../../integration/fixtures/cluster-small/endpointslices.json");
    const PROTOBUF: &[u8] =
        include_bytes!("../../../../integration/fixtures/cluster-small/list-endpointslices.pb");

    #[test]
    fn items_are_whole_however_they_come() {
        let whole: Value = serde_json::from_slice(JSON).unwrap();
        let expected = whole["items"].as_array().unwrap();
        for size in [1, 7, 1000, usize::MAX] {
            let (items, meta) = read(Encoding::Json, JSON, size).unwrap();
            assert_eq!(meta.version, whole["metadata"]["resourceVersion"]);
            assert_eq!(items.len(), expected.len());
            for (item, expected) in items.iter().zip(expected) {
                assert_eq!(&serde_json::from_slice::<Value>(item).unwrap(), expected);
            }
            let (items, meta) = read(Encoding::Protobuf, PROTOBUF, size).unwrap();
            assert_eq!(items.len(), expected.len());
            assert!(!meta.version.is_empty());
            assert_eq!(meta.next, None);
        }
    }

    #[test]
    fn json_may_be_written_in_any_way() {
        let body = br#" { "x": {"items": [1]}, "items" : [ {"a": "]}\"{"} , {"b": [{}]} ],
            "y": "items", "z": [[1]], "metadata": {"resourceVersion": "7", "continue": "c"} } "#;
        for size in [1, 2, 1000] {
            let (items, meta) = read(Encoding::Json, body, size).unwrap();
            assert_eq!(items, [r#"{"a": "]}\"{"}"#, r#"{"b": [{}]}"#]);
            assert_eq!(meta.version, "7");
            assert_eq!(meta.next.as_deref(), Some("c"));
        }
        let empty = br#"{"kind":"ServiceList","metadata":{"resourceVersion":"7"},"items":null}"#;
        assert_eq!(read(Encoding::Json, empty, 9).unwrap().0.len(), 0);
    }

    #[test]
    fn lists_that_end_early_are_errors() {
        for end in (0..JSON.len() - 1).step_by(97) {
            assert!(read(Encoding::Json, &JSON[..end], 1000).is_err(), "{end}");
        }
        // The envelope's last fields are empty, and so may be missing.
        for end in (0..PROTOBUF.len() - 10).step_by(97) {
            assert!(
                read(Encoding::Protobuf, &PROTOBUF[..end], 1000).is_err(),
                "{end}"
            );
        }
        assert!(read(Encoding::Json, br#"{"kind":"Status"}"#, 9).is_err());
        assert!(read(Encoding::Json, b"}", 9).is_err());
        assert!(read(Encoding::Protobuf, b"<html></html>", 9).is_err());
    }
}
