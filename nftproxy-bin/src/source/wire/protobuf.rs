//! Kubernetes' protobuf: where an object is in what was received. Nothing is copied.

use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::ListMeta;
use super::frame::WireError;

/// What every object starts with.
const MAGIC: &[u8] = b"k8s\0";
/// `runtime.Unknown.typeMeta`
const UNKNOWN_TYPE_META: u32 = 1;
/// `runtime.Unknown.raw`
const UNKNOWN_RAW: u32 = 2;
/// `WatchEvent.type`
const EVENT_TYPE: u32 = 1;
/// `WatchEvent.object`, a `RawExtension`
const EVENT_OBJECT: u32 = 2;
/// `RawExtension.raw`
const EXTENSION_RAW: u32 = 1;
/// `metadata` and `items` of each list
const LIST_METADATA: u32 = 1;
const LIST_ITEMS: u32 = 2;
/// `TypeMeta.kind`
const TYPE_META_KIND: u32 = 2;

/// A field, with what its value is made of.
struct Field<'a> {
    number: u32,
    /// Empty if it is not one of bytes.
    value: &'a [u8],
    /// Bytes that it takes in all.
    len: usize,
}

/// The start of a field of bytes: number, length of the start, length of the value.
fn start(bytes: &[u8]) -> Result<Option<(u32, WireType, usize)>, WireError> {
    let mut rest = bytes;
    // What is incomplete looks like what is wrong, up to the longest number there is.
    match decode_key(&mut rest) {
        Ok((number, wire_type)) => Ok(Some((number, wire_type, bytes.len() - rest.len()))),
        Err(_) if bytes.len() < 10 => Ok(None),
        Err(error) => Err(WireError::Protobuf(error)),
    }
}

/// The length at the start of `bytes`, and how many bytes that takes.
fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, WireError> {
    let mut rest = bytes;
    match decode_varint(&mut rest) {
        Ok(length) => {
            let length = usize::try_from(length).map_err(|_| WireError::TooLong(usize::MAX))?;
            Ok(Some((length, bytes.len() - rest.len())))
        }
        Err(_) if bytes.len() < 10 => Ok(None),
        Err(error) => Err(WireError::Protobuf(error)),
    }
}

/// The field at the start of `bytes`; `None` if more has to come.
fn field(bytes: &[u8]) -> Result<Option<Field<'_>>, WireError> {
    let Some((number, wire_type, head)) = start(bytes)? else {
        return Ok(None);
    };
    let rest = &bytes[head..];
    let (value, len) = match wire_type {
        WireType::LengthDelimited => {
            let Some((length, head)) = length(rest)? else {
                return Ok(None);
            };
            super::frame::check_length(length)?;
            match rest.get(head..head + length) {
                Some(value) => (value, head + length),
                None => return Ok(None),
            }
        }
        WireType::Varint => match self::length(rest)? {
            Some((_, len)) => (&[][..], len),
            None => return Ok(None),
        },
        WireType::SixtyFourBit if rest.len() >= 8 => (&[][..], 8),
        WireType::ThirtyTwoBit if rest.len() >= 4 => (&[][..], 4),
        WireType::SixtyFourBit | WireType::ThirtyTwoBit => return Ok(None),
        WireType::StartGroup | WireType::EndGroup => {
            return Err(WireError::Malformed("a protobuf group"));
        }
    };
    Ok(Some(Field {
        number,
        value,
        len: head + len,
    }))
}

/// The value of a field of a complete message; empty if there is none.
fn value(mut bytes: &[u8], wanted: u32) -> Result<&[u8], WireError> {
    let mut found = &[][..];
    while !bytes.is_empty() {
        let Some(field) = field(bytes)? else {
            return Err(WireError::Malformed("protobuf that ends too early"));
        };
        if field.number == wanted {
            found = field.value;
        }
        bytes = &bytes[field.len..];
    }
    Ok(found)
}

/// The message of an object, without its envelope.
pub(super) fn object(bytes: &[u8]) -> Result<&[u8], WireError> {
    let unknown = bytes
        .strip_prefix(MAGIC)
        .ok_or(WireError::Malformed("an object without k8s in front"))?;
    value(unknown, UNKNOWN_RAW)
}

/// Type and object of a watch event.
pub(super) fn event(bytes: &[u8]) -> Result<(&str, &[u8]), WireError> {
    let kind = std::str::from_utf8(value(bytes, EVENT_TYPE)?)
        .map_err(|_| WireError::Malformed("an event whose type is not text"))?;
    let extension = value(bytes, EVENT_OBJECT)?;
    Ok((kind, object(value(extension, EXTENSION_RAW)?)?))
}

/// Finds the objects of a list while it comes.
#[derive(Debug, Default)]
pub(super) struct ListScanner {
    has_begun: bool,
    /// Bytes of the list that are still to come, once it has begun.
    left: Option<usize>,
    pub(super) metadata: ListMeta,
}

impl ListScanner {
    /// Takes what it can from the start of `bytes`, calls `take` with each object's message, and
    /// returns how many bytes it took.
    pub(super) fn scan(
        &mut self,
        bytes: &[u8],
        take: &mut dyn FnMut(&[u8]) -> Result<(), WireError>,
    ) -> Result<usize, WireError> {
        let mut at = 0;
        if !self.has_begun {
            let Some(magic) = bytes.get(..MAGIC.len()) else {
                return Ok(0);
            };
            if magic != MAGIC {
                return Err(WireError::Malformed("a list without k8s in front"));
            }
            self.has_begun = true;
            at = MAGIC.len();
        }
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.left {
                // In the envelope.
                None | Some(0) => {
                    let Some((number, wire_type, head)) = start(rest)? else {
                        break;
                    };
                    if (number, wire_type) == (UNKNOWN_RAW, WireType::LengthDelimited) {
                        let Some((length, len)) = length(&rest[head..])? else {
                            break;
                        };
                        self.left = Some(length);
                        at += head + len;
                        continue;
                    }
                    let Some(field) = field(rest)? else { break };
                    if field.number == UNKNOWN_TYPE_META {
                        let kind = value(field.value, TYPE_META_KIND)?;
                        if !kind.ends_with(b"List") {
                            return Err(WireError::NoList);
                        }
                    }
                    at += field.len;
                }
                Some(left) => {
                    let Some(field) = field(rest)? else { break };
                    match field.number {
                        LIST_METADATA => {
                            self.metadata =
                                ListMeta::decode(field.value).map_err(WireError::Protobuf)?;
                        }
                        LIST_ITEMS => take(field.value)?,
                        _ => {}
                    }
                    at += field.len;
                    self.left = Some(
                        left.checked_sub(field.len)
                            .ok_or(WireError::Malformed("a list that is longer than it says"))?,
                    );
                }
            }
        }
        Ok(at)
    }

    /// Whether all of it has come.
    pub(super) fn is_complete(&self) -> bool {
        self.left == Some(0)
    }
}
