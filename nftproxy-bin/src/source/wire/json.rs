//! JSON: where an object is in what was received. Nothing is decoded here.

use super::frame::WireError;

/// Finds the end of an object while it comes: counts braces outside of strings.
#[derive(Debug, Default)]
pub(super) struct ObjectScanner {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl ObjectScanner {
    /// Goes over `bytes`, which go on where those before ended, and returns how many of them belong
    /// to the object if it ends there.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' => self.depth += 1,
                b'}' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// Finds the objects of a list while it comes.
#[derive(Debug, Default)]
pub(super) struct ListScanner {
    /// The list without its items.
    frame: Vec<u8>,
    place: Place,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// Where the last string of the frame started.
    string_start: usize,
    /// Whether the value that comes is that of `items`.
    is_items: bool,
}

/// Where in a list the next byte is.
#[derive(Debug, Default)]
enum Place {
    /// Before the items, or after.
    #[default]
    Frame,
    /// Between two items.
    Items,
    /// In an item, of which so much has been looked at.
    Item(ObjectScanner, usize),
}

impl ListScanner {
    /// Takes what it can from the start of `bytes`, calls `take` with each object's text, and
    /// returns how many bytes it took.
    pub(super) fn scan(
        &mut self,
        bytes: &[u8],
        take: &mut dyn FnMut(&[u8]) -> Result<(), WireError>,
    ) -> Result<usize, WireError> {
        let mut at = 0;
        loop {
            match &mut self.place {
                Place::Frame => {
                    let Some(byte) = bytes.get(at) else { break };
                    at += 1;
                    self.in_frame(*byte)?;
                }
                Place::Items => {
                    let Some(byte) = bytes.get(at) else { break };
                    match byte {
                        b'{' => {
                            self.place = Place::Item(ObjectScanner::default(), 0);
                            continue;
                        }
                        b']' => {
                            self.frame.push(b']');
                            self.place = Place::Frame;
                        }
                        b',' | b' ' | b'\n' | b'\r' | b'\t' => {}
                        _ => return Err(WireError::Malformed("a list of something else")),
                    }
                    at += 1;
                }
                Place::Item(scanner, seen) => {
                    let item = &bytes[at..];
                    match scanner.scan(&item[*seen..]) {
                        Some(end) => {
                            let end = *seen + end;
                            take(&item[..end])?;
                            at += end;
                            self.place = Place::Items;
                        }
                        None => {
                            super::frame::check_length(item.len())?;
                            *seen = item.len();
                            break;
                        }
                    }
                }
            }
        }
        Ok(at)
    }

    fn in_frame(&mut self, byte: u8) -> Result<(), WireError> {
        super::frame::check_length(self.frame.len())?;
        self.frame.push(byte);
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(());
        }
        match byte {
            b'"' => {
                self.in_string = true;
                self.string_start = self.frame.len();
            }
            b':' if self.depth == 1 => {
                self.is_items = self.frame[self.string_start..].starts_with(b"items\"");
            }
            b',' if self.depth == 1 => self.is_items = false,
            b'[' if self.depth == 1 && self.is_items => self.place = Place::Items,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        Ok(())
    }

    /// The list without its items.
    pub(super) fn frame(&self) -> &[u8] {
        &self.frame
    }
}
