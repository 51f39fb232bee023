//! The body of a watch to its frames, as the bytes come.

use bytes::{Buf, Bytes, BytesMut};

use super::wire::Encoding;
use super::wire::protobuf::Unreadable;

/// No object is as large; etcd takes one and a half MiB.
pub(super) const MAX_FRAME: usize = 32 << 20;

/// Bytes that have come and are not read yet.
pub(super) struct Frames {
    encoding: Encoding,
    bytes: BytesMut,
    /// How far there is no end of a line, in JSON.
    n_searched: usize,
}

impl Frames {
    pub(super) fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            bytes: BytesMut::new(),
            n_searched: 0,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Unreadable> {
        let frame = match self.encoding {
            Encoding::Json => self.next_line(),
            Encoding::Protobuf => self.next_message()?,
        };
        if frame.is_none() && self.bytes.len() > MAX_FRAME {
            return Err(Unreadable::new("an event that does not end"));
        }
        Ok(frame)
    }

    fn next_line(&mut self) -> Option<Bytes> {
        loop {
            let rest = &self.bytes[self.n_searched..];
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                self.n_searched = self.bytes.len();
                return None;
            };
            let line = self.bytes.split_to(self.n_searched + end).freeze();
            self.bytes.advance(1);
            self.n_searched = 0;
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }

    fn next_message(&mut self) -> Result<Option<Bytes>, Unreadable> {
        let Some(length) = self.bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(Unreadable::new("an event that is too large"));
        }
        if self.bytes.len() < 4 + length {
            return Ok(None);
        }
        self.bytes.advance(4);
        Ok(Some(self.bytes.split_to(length).freeze()))
    }

    /// What is left when the body has ended in good order: a line needs no end there.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        let rest = self.bytes.split().freeze();
        self.n_searched = 0;
        (self.encoding == Encoding::Json && !rest.trim_ascii().is_empty()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a stream in pieces of this size, and returns its frames.
    fn frames(encoding: Encoding, stream: &[u8], size: usize) -> Vec<Bytes> {
        let mut frames = Frames::new(encoding);
        let mut found = Vec::new();
        for piece in stream.chunks(size) {
            frames.push(piece);
            while let Some(frame) = frames.next().unwrap() {
                found.push(frame);
            }
        }
        found.extend(frames.rest());
        found
    }

    #[test]
    fn frames_are_whole_however_they_come() {
        for size in [1, 2, 3, 100] {
            let lines = frames(Encoding::Json, b"{}\n\r\n\n{\"a\":1}\n{2}", size);
            assert_eq!(lines, ["{}", "{\"a\":1}", "{2}"], "{size}");
            let stream = b"\0\0\0\x02ab\0\0\0\0\0\0\0\x01c\0\0";
            let messages = frames(Encoding::Protobuf, stream, size);
            assert_eq!(messages, ["ab", "", "c"], "{size}");
        }
    }

    #[test]
    fn frames_that_cannot_be_are_refused() {
        let mut frames = Frames::new(Encoding::Protobuf);
        frames.push(b"{\"ty");
        assert!(frames.next().is_err());
        let mut frames = Frames::new(Encoding::Json);
        frames.push(&vec![b' '; MAX_FRAME + 1]);
        assert!(frames.next().is_err());
    }
}
