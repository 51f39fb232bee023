//! One open watch: changes to event lines, as its filter sees them.
//!
//! It must not know of other watches or of the objects as a whole. Entry point: [`Watcher`].

use std::io;

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::filter::Filter;
use super::resource::Resource;
use super::store::{Change, with_version};

/// The body of a watch response: event lines, or the error which cuts it short.
pub(super) type Line = io::Result<String>;

pub(super) struct Watcher {
    pub(super) id: u64,
    pub(super) resource: Resource,
    pub(super) filter: Filter,
    /// Changes up to this version are none of its business.
    pub(super) after: u64,
    pub(super) wants_bookmarks: bool,
    /// Dropping it ends the response in good order once all lines are out.
    pub(super) lines: UnboundedSender<Line>,
}

impl Watcher {
    /// Whether the client is still there, as far as the server knows.
    pub(super) fn is_open(&self) -> bool {
        !self.lines.is_closed()
    }

    pub(super) fn initial(&self, object: &Value) {
        if self.filter.matches(object) {
            self.send("ADDED", self.resource.with_kind(object.clone()));
        }
    }

    /// Sends a change as the filter sees it: an object which stops matching is deleted, one which
    /// starts matching is added.
    pub(super) fn change(&self, change: &Change) {
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

    pub(super) fn bookmark(&self, version: u64) {
        if self.wants_bookmarks {
            self.send("BOOKMARK", self.resource.bookmark(version));
        }
    }

    /// Marks the end of the initial events of a streaming list.
    pub(super) fn initial_events_end(&self, version: u64) {
        if self.wants_bookmarks {
            let mut object = self.resource.bookmark(version);
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
            self.send("BOOKMARK", object);
        }
    }

    pub(super) fn cut(self) {
        self.push(Err(io::Error::from(io::ErrorKind::ConnectionAborted)));
    }

    fn send(&self, kind: &str, object: Value) {
        self.push(Ok(event_line(kind, &object)));
    }

    fn push(&self, line: Line) {
        // It fails when the client has gone, which is the client's right.
        drop(self.lines.send(line));
    }
}

pub(super) fn event_line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}
