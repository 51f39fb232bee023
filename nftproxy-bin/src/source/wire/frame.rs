//! Objects out of an answer as it comes: of lists and of watches, in both encodings.
//!
//! Only what is incomplete is kept, so that the largest object bounds the memory.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Bookmark, ListMeta, Status, Wire, json, protobuf};

/// Says that the initial events of a watch are complete.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// etcd keeps no object over a few MB.
const OBJECT_MAX_LEN: usize = 32 * 1024 * 1024;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Protobuf,
    Json,
}

impl Encoding {
    /// That of a `Content-Type`; `None` if it is neither.
    pub(crate) fn of(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        match essence {
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            "application/json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl std::fmt::Display for Encoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Protobuf => "protobuf",
            Self::Json => "JSON",
        })
    }
}

/// Why an answer could not be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("what was received is not the protobuf of such an object")]
    Protobuf(#[source] prost::DecodeError),
    #[error("what was received is not the JSON of such an object")]
    Json(#[source] serde_json::Error),
    #[error("received {0}")]
    Malformed(&'static str),
    #[error("received something that is no list")]
    NoList,
    #[error("received an object of {0} bytes")]
    TooLong(usize),
    #[error("the answer ended in the middle")]
    Cut,
    #[error("received an event of type {0:?}")]
    EventType(String),
}

/// Refuses what no API server sends.
pub(super) fn check_length(length: usize) -> Result<(), WireError> {
    if length > OBJECT_MAX_LEN {
        return Err(WireError::TooLong(length));
    }
    Ok(())
}

/// Something that happened to an object.
#[derive(Debug, PartialEq)]
pub(crate) enum WatchEvent<W> {
    /// It was added, or changed.
    Applied(W),
    /// It is gone; this is its last state.
    Deleted(W),
    /// Nothing up to this version that was not told.
    Bookmark {
        version: String,
        /// The objects that there were at first have all been told.
        ends_initial_events: bool,
    },
    /// There will be no more.
    Error(Status),
}

/// Decodes an object without envelope.
fn decode<T: prost::Message + Default + serde::de::DeserializeOwned>(
    encoding: Encoding,
    bytes: &[u8],
) -> Result<T, WireError> {
    match encoding {
        Encoding::Protobuf => T::decode(bytes).map_err(WireError::Protobuf),
        Encoding::Json => serde_json::from_slice(bytes).map_err(WireError::Json),
    }
}

/// Reads what an API server says with an error code; `None` if it is somebody else who answered.
pub(crate) fn status(encoding: Option<Encoding>, body: &[u8]) -> Option<Status> {
    match encoding? {
        Encoding::Protobuf => decode(Encoding::Protobuf, protobuf::object(body).ok()?).ok(),
        Encoding::Json => decode(Encoding::Json, body).ok(),
    }
}

/// Reads a list.
#[derive(Debug)]
pub(crate) struct ListReader {
    buffer: Vec<u8>,
    scanner: ListScanner,
}

#[derive(Debug)]
enum ListScanner {
    Protobuf(protobuf::ListScanner),
    Json(json::ListScanner),
}

impl ListReader {
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self {
            buffer: Vec::new(),
            scanner: match encoding {
                Encoding::Protobuf => ListScanner::Protobuf(protobuf::ListScanner::default()),
                Encoding::Json => ListScanner::Json(json::ListScanner::default()),
            },
        }
    }

    /// Takes more of the answer, and appends the objects that are complete by now.
    ///
    /// # Errors
    ///
    /// If it makes no sense; the rest will not either.
    pub(crate) fn read<W: Wire>(
        &mut self,
        bytes: &[u8],
        objects: &mut Vec<W>,
    ) -> Result<(), WireError> {
        self.buffer.extend_from_slice(bytes);
        let encoding = match self.scanner {
            ListScanner::Protobuf(_) => Encoding::Protobuf,
            ListScanner::Json(_) => Encoding::Json,
        };
        let mut take = |object: &[u8]| {
            objects.push(decode(encoding, object)?);
            Ok(())
        };
        let taken = match &mut self.scanner {
            ListScanner::Protobuf(scanner) => scanner.scan(&self.buffer, &mut take)?,
            ListScanner::Json(scanner) => scanner.scan(&self.buffer, &mut take)?,
        };
        self.buffer.drain(..taken);
        Ok(())
    }

    /// The list's version, and where it goes on.
    ///
    /// # Errors
    ///
    /// If the list is not complete.
    pub(crate) fn finish(self) -> Result<ListMeta, WireError> {
        #[derive(Deserialize)]
        struct Frame {
            kind: String,
            #[serde(default)]
            metadata: ListMeta,
        }
        match self.scanner {
            ListScanner::Protobuf(scanner) if scanner.is_complete() => Ok(scanner.metadata),
            ListScanner::Protobuf(_) => Err(WireError::Cut),
            ListScanner::Json(scanner) => {
                let frame: Frame = serde_json::from_slice(scanner.frame()).map_err(|error| {
                    if error.is_eof() {
                        WireError::Cut
                    } else {
                        WireError::Json(error)
                    }
                })?;
                if !frame.kind.ends_with("List") {
                    return Err(WireError::NoList);
                }
                Ok(frame.metadata)
            }
        }
    }
}

/// Reads a watch.
#[derive(Debug)]
pub(crate) struct WatchReader {
    encoding: Encoding,
    buffer: Vec<u8>,
    scanner: json::ObjectScanner,
    /// How much of the buffer the scanner has seen.
    scanned: usize,
}

impl WatchReader {
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            buffer: Vec::new(),
            scanner: json::ObjectScanner::default(),
            scanned: 0,
        }
    }

    /// Takes more of the answer, and appends the events that are complete by now.
    ///
    /// # Errors
    ///
    /// If it makes no sense; the rest will not either.
    pub(crate) fn read<W: Wire>(
        &mut self,
        bytes: &[u8],
        events: &mut Vec<WatchEvent<W>>,
    ) -> Result<(), WireError> {
        self.buffer.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            let rest = &self.buffer[at..];
            let taken = match self.encoding {
                Encoding::Protobuf => {
                    let Some(length) = rest.first_chunk() else {
                        break;
                    };
                    let length = u32::from_be_bytes(*length) as usize;
                    check_length(length)?;
                    let Some(frame) = rest.get(4..4 + length) else {
                        break;
                    };
                    let (kind, object) = protobuf::event(frame)?;
                    events.push(event(self.encoding, kind, object)?);
                    4 + length
                }
                Encoding::Json => {
                    let Some(end) = self.scanner.scan(&rest[self.scanned..]) else {
                        self.scanned = rest.len();
                        check_length(rest.len())?;
                        break;
                    };
                    let end = self.scanned + end;
                    self.scanned = 0;
                    events.push(json_event(&rest[..end])?);
                    end
                }
            };
            at += taken;
        }
        self.buffer.drain(..at);
        Ok(())
    }

    /// Whether the answer may end here.
    pub(crate) fn is_between_events(&self) -> bool {
        self.buffer.iter().all(u8::is_ascii_whitespace)
    }
}

fn json_event<W: Wire>(text: &[u8]) -> Result<WatchEvent<W>, WireError> {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(rename = "type")]
        kind: String,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let Event { kind, object } = serde_json::from_slice(text).map_err(WireError::Json)?;
    event(Encoding::Json, &kind, object.get().as_bytes())
}

fn event<W: Wire>(
    encoding: Encoding,
    kind: &str,
    object: &[u8],
) -> Result<WatchEvent<W>, WireError> {
    Ok(match kind {
        "ADDED" | "MODIFIED" => WatchEvent::Applied(decode(encoding, object)?),
        "DELETED" => WatchEvent::Deleted(decode(encoding, object)?),
        "BOOKMARK" => {
            let bookmark: Bookmark = decode(encoding, object)?;
            let metadata = bookmark.metadata.unwrap_or_default();
            let mark = metadata.annotations.get(INITIAL_EVENTS_END);
            WatchEvent::Bookmark {
                version: metadata.resource_version,
                ends_initial_events: mark.is_some_and(|mark| mark == "true"),
            }
        }
        "ERROR" => WatchEvent::Error(decode(encoding, object)?),
        other => return Err(WireError::EventType(other.into())),
    })
}
