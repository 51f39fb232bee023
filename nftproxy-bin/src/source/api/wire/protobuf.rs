//! The encoding of Protocol Buffers, as far as fields can be told apart and skipped.
//!
//! Nothing is copied. Every length is checked against what is there.

use std::fmt;

/// What an object in protobuf starts with.
pub(super) const MAGIC: &[u8] = b"k8s\0";

/// Why something cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable(pub(super) String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<serde_json::Error> for Unreadable {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

impl Unreadable {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }
}

fn unreadable<T>(text: &str) -> Result<T, Unreadable> {
    Err(Unreadable::new(text))
}

/// The fields of a message, in the order of the wire.
pub(crate) struct Fields<'a>(&'a [u8]);

/// The value of a field.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Of a type that no field of ours has.
    Fixed,
}

/// The number of a field and the type of its value.
pub(crate) struct Tag {
    pub(crate) number: u32,
    /// Whether a length follows, and as many bytes.
    pub(crate) has_length: bool,
    wire_type: u8,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// The value of a message's only interesting field; empty if it is absent.
    pub(crate) fn only(message: &'a [u8], wanted: u32) -> Result<&'a [u8], Unreadable> {
        let mut found: &[u8] = &[];
        let mut fields = Self::new(message);
        while let Some((number, value)) = fields.next()? {
            if number == wanted {
                found = value.bytes()?;
            }
        }
        Ok(found)
    }

    /// The next field; none at the end of the message.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Unreadable> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = Tag::new(self.varint()?)?;
        let value = match tag.wire_type {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return unreadable("a field of an unknown type"),
        };
        Ok(Some((tag.number, value)))
    }

    fn varint(&mut self) -> Result<u64, Unreadable> {
        match varint(self.0)? {
            Some((value, length)) => {
                self.0 = &self.0[length..];
                Ok(value)
            }
            None => unreadable("it ends within a number"),
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Unreadable> {
        let length = usize::try_from(length).ok();
        let Some((taken, rest)) = length.and_then(|length| self.0.split_at_checked(length)) else {
            return unreadable("it ends within a field");
        };
        self.0 = rest;
        Ok(taken)
    }
}

impl Tag {
    pub(crate) fn new(varint: u64) -> Result<Self, Unreadable> {
        let wire_type = (varint & 7) as u8;
        match u32::try_from(varint >> 3) {
            Ok(number) if number > 0 => Ok(Self {
                number,
                has_length: wire_type == 2,
                wire_type,
            }),
            _ => unreadable("a field number that cannot be"),
        }
    }
}

/// Reads a number and how many bytes it takes; none if more bytes are needed.
pub(crate) fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Unreadable> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() >= 10 {
        return unreadable("a number that does not end");
    }
    Ok(None)
}

impl<'a> Value<'a> {
    pub(crate) fn bytes(self) -> Result<&'a [u8], Unreadable> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => unreadable("a number instead of text"),
        }
    }

    pub(crate) fn str(self) -> Result<&'a str, Unreadable> {
        match std::str::from_utf8(self.bytes()?) {
            Ok(text) => Ok(text),
            Err(_) => unreadable("text that is not UTF-8"),
        }
    }

    pub(crate) fn string(self) -> Result<String, Unreadable> {
        self.str().map(str::to_owned)
    }

    /// Text that Go writes even if it is empty, where JSON has no field at all.
    pub(crate) fn optional_string(self) -> Result<Option<String>, Unreadable> {
        let text = self.str()?;
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    pub(crate) fn int64(self) -> Result<i64, Unreadable> {
        match self {
            Self::Varint(value) => Ok(value.cast_signed()),
            _ => unreadable("text instead of a number"),
        }
    }

    pub(crate) fn int32(self) -> Result<i32, Unreadable> {
        // Negative numbers are encoded as if they had 64 bits.
        match i32::try_from(self.int64()?) {
            Ok(value) => Ok(value),
            Err(_) => unreadable("a number that is too large"),
        }
    }

    pub(crate) fn bool(self) -> Result<bool, Unreadable> {
        Ok(self.int64()? != 0)
    }
}

/// The message within `k8s\0` and a `runtime.Unknown`.
pub(crate) fn unwrap(bytes: &[u8]) -> Result<&[u8], Unreadable> {
    match bytes.strip_prefix(MAGIC) {
        Some(unknown) => Fields::only(unknown, 2),
        None => unreadable("it does not start as an object in protobuf does"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_apart() {
        let message = [
            0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 1, 2, 3, 4, 0x20, 1,
        ];
        let mut fields = Fields::new(&message);
        let (number, value) = fields.next().unwrap().unwrap();
        assert_eq!((number, value.int32().unwrap()), (1, 150));
        let (number, value) = fields.next().unwrap().unwrap();
        assert_eq!((number, value.str().unwrap()), (2, "hi"));
        assert_eq!(fields.next().unwrap().unwrap().0, 3);
        let (number, value) = fields.next().unwrap().unwrap();
        assert_eq!((number, value.bool().unwrap()), (4, true));
        assert!(fields.next().unwrap().is_none());
    }

    #[test]
    fn what_is_cut_or_wrong_is_an_error() {
        let cases: [&[u8]; 8] = [
            &[0x08],
            &[0x08, 0x80],
            &[0x12, 5, 1],
            &[
                0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
            &[0x0b],
            &[0x00, 1],
            &[0x09, 1],
            &[0x80; 11],
        ];
        for bytes in cases {
            assert!(Fields::new(bytes).next().is_err(), "{bytes:?}");
        }
        assert_eq!(Value::Varint(u64::MAX).int32().unwrap(), -1);
        assert!(Value::Varint(1 << 40).int32().is_err());
        assert!(Value::Bytes(&[0xff]).str().is_err());
        assert!(unwrap(b"k8s").is_err());
    }
}
