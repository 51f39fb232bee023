//! One open watch: changes to events, as its filter sees them, up to the end set for it.
//!
//! It must not know of other watches or of the objects as a whole. Entry point: [`Watcher`].

use std::io;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::body::Chunk;
use super::encoding::Encoding;
use super::fault::Fault;
use super::filter::Filter;
use super::resource::Resource;
use super::status::Status;
use super::store::{Change, with_version};

pub(super) struct Watcher {
    pub(super) id: u64,
    pub(super) resource: Resource,
    pub(super) filter: Filter,
    pub(super) encoding: Encoding,
    /// Changes up to this version are none of its business.
    pub(super) after: u64,
    pub(super) wants_bookmarks: bool,
    /// Dropping it ends the response in good order once all chunks are out.
    pub(super) chunks: Option<UnboundedSender<Chunk>>,
    pub(super) finish: Option<Finish>,
}

/// How a watch comes to its end, and after how many events.
pub(super) struct Finish {
    left: usize,
    how: How,
}

enum How {
    End,
    Fail(Status),
    HugeFrame(u32),
    /// It stays open, and there are no more events.
    Nothing,
}

impl Finish {
    /// The end that a fault means, if it is one of watches.
    pub(super) fn of(fault: &Fault) -> Option<Self> {
        let (left, how) = match fault {
            Fault::EndWatch { after } => (*after, How::End),
            Fault::FailWatch { after, status } => (*after, How::Fail(status.clone())),
            Fault::HugeFrame { after, length } => (*after, How::HugeFrame(*length)),
            _ => return None,
        };
        Some(Self { left, how })
    }
}

impl Watcher {
    /// Whether the client is still there, as far as the server knows, and the watch goes on.
    pub(super) fn is_open(&self) -> bool {
        self.chunks
            .as_ref()
            .is_some_and(|chunks| !chunks.is_closed())
    }

    pub(super) fn initial(&mut self, object: &Value) {
        if self.filter.matches(object) {
            self.send("ADDED", self.resource.with_kind(object.clone()));
        }
    }

    /// Sends events that are encoded already.
    pub(super) fn encoded(&mut self, events: Vec<Bytes>) {
        for event in events {
            self.push(Ok(event));
        }
    }

    /// Sends a change as the filter sees it: an object which stops matching is deleted, one which
    /// starts matching is added.
    pub(super) fn change(&mut self, change: &Change) {
        if change.version <= self.after {
            return;
        }
        let before = change.before.as_deref().filter(|o| self.filter.matches(o));
        let after = change.after.as_deref().filter(|o| self.filter.matches(o));
        let (kind, object) = match (before, after) {
            (None, None) => return,
            (None, Some(after)) => ("ADDED", after.clone()),
            (Some(_), Some(after)) => ("MODIFIED", after.clone()),
            // The last state which matched, but with the version of the event: a client which
            // resumes from it must not see the event again.
            (Some(before), None) => ("DELETED", with_version(before.clone(), change.version)),
        };
        self.send(kind, self.resource.with_kind(object));
    }

    pub(super) fn bookmark(&mut self, version: u64) {
        if self.wants_bookmarks {
            self.send("BOOKMARK", self.resource.bookmark(version));
        }
    }

    /// Marks the end of the initial events of a streaming list.
    pub(super) fn initial_events_end(&mut self, version: u64) {
        if self.wants_bookmarks {
            let mut object = self.resource.bookmark(version);
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
            self.send("BOOKMARK", object);
        }
    }

    pub(super) fn cut(mut self) {
        self.push(Err(io::Error::from(io::ErrorKind::ConnectionAborted)));
    }

    /// Sends an ERROR event and ends.
    pub(super) fn fail(&mut self, status: &Status) {
        let event = self.encoding.event("ERROR", &status.object());
        self.push(Ok(event.expect("every encoding knows the Status")));
        self.chunks = None;
    }

    /// Comes to its end if that is due.
    pub(super) fn finish_if_due(&mut self) {
        let Some(finish) = self.finish.take_if(|finish| finish.left == 0) else {
            return;
        };
        match finish.how {
            How::End => self.chunks = None,
            How::Fail(status) => self.fail(&status),
            How::HugeFrame(length) => {
                self.huge_frame(length);
                self.finish = Some(Finish {
                    left: 0,
                    how: How::Nothing,
                });
            }
            How::Nothing => self.finish = Some(finish),
        }
    }

    fn huge_frame(&mut self, length: u32) {
        match self.encoding {
            Encoding::Protobuf => {
                self.push(Ok(Bytes::copy_from_slice(&length.to_be_bytes())));
            }
            Encoding::Json => {
                // The chunks share their memory.
                let filler = Bytes::from(vec![b'a'; 64 << 10]);
                let mut left = length as usize;
                self.push(Ok(Bytes::from_static(b"{\"type\":\"ADDED\",\"object\":\"")));
                while left > 0 {
                    let part = filler.slice(..left.min(filler.len()));
                    left -= part.len();
                    self.push(Ok(part));
                }
            }
        }
    }

    fn send(&mut self, kind: &str, object: Value) {
        match &mut self.finish {
            Some(finish) if finish.left == 0 => return,
            Some(finish) => finish.left -= 1,
            None => {}
        }
        match self.encoding.event(kind, &object) {
            Ok(event) => self.push(Ok(event)),
            Err(e) => self.fail(&Status::internal(format!("{e:#}"))),
        }
        self.finish_if_due();
    }

    fn push(&mut self, chunk: Chunk) {
        if let Some(chunks) = &self.chunks {
            // It fails when the client has gone, which is the client's right.
            drop(chunks.send(chunk));
        }
    }
}
