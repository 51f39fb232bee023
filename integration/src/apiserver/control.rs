//! What a server can be made to do, and what it has seen.
//!
//! It must not know how a fault is played. Entry point: [`ApiServer`].

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::ApiServer;
use super::encoding::Encodings;
use super::fault::Rule;
use super::options::StreamingLists;
use super::record::{Counters, Request};
use super::resource::Resource;

impl ApiServer {
    /// Cuts every open watch without ending its response properly, as a lost connection does.
    ///
    /// Events sent just before may be lost with it; a client which resumes gets them again.
    pub fn disconnect_watches(&self) {
        for watcher in self.shared.lock().watchers.drain(..) {
            watcher.cut();
        }
    }

    /// Forgets all history: every resourceVersion given out so far is too old to watch from, and
    /// every continue token has expired.
    ///
    /// Watches already open go on. Versions step forward by one, as if something else had been
    /// written since, so that even a client which has seen everything is behind.
    pub fn compact(&self) {
        let mut state = self.shared.lock();
        for resource in Resource::ALL {
            state.store_mut(resource).compact();
        }
    }

    /// Answers 503 to every new request while `on`; open watches are left alone.
    pub fn refuse(&self, on: bool) {
        self.shared.lock().refuse = on;
    }

    /// Sends a bookmark to every open watch which asked for bookmarks.
    pub fn bookmark(&self) {
        self.shared.lock().bookmark_all();
    }

    /// Chooses what becomes of streaming lists (`sendInitialEvents`).
    pub fn set_streaming_lists(&self, streaming: StreamingLists) {
        self.shared.lock().streaming_lists = streaming;
    }

    /// Chooses how a watch from an expired resourceVersion is answered: with HTTP status 410, or
    /// (at first) with status 200 and a single ERROR event. Real servers do either.
    pub fn set_expired_watch_is_http_error(&self, on: bool) {
        self.shared.lock().expired_watch_is_http_error = on;
    }

    /// All requests since the start, in order of arrival, refused ones included.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// How many watches are open now.
    pub fn open_watches(&self) -> usize {
        self.shared.lock().open_watches()
    }

    /// Waits until at least `n` watches are open; false if that took longer than `timeout`.
    #[must_use]
    pub fn wait_for_watches(&self, n: usize, timeout: Duration) -> bool {
        let (_state, result) = self
            .shared
            .watch_opened
            .wait_timeout_while(self.shared.lock(), timeout, |state| {
                state.open_watches() < n
            })
            .unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }

    /// Has requests meet with a fault until it is spent or the server is healed.
    ///
    /// Of several rules for one request the oldest counts.
    pub fn inject(&self, rule: impl Into<Rule>) {
        self.shared.lock().rules.push(rule.into());
    }

    /// Forgets all rules about faults.
    pub fn heal(&self) {
        self.shared.lock().rules.clear();
    }

    /// Answers 401 to whoever does not send this bearer token; with none, everybody is let in.
    pub fn require_token(&self, token: Option<&str>) {
        self.shared.lock().token = token.map(str::to_owned);
    }

    /// Chooses the encodings of answers.
    pub fn set_encodings(&self, encodings: Encodings) {
        self.shared.lock().encodings = encodings;
    }

    /// Whether lists and objects from 128 KiB on are compressed for clients that accept gzip, as
    /// they are by a kube-apiserver; off at first.
    pub fn set_compression(&self, on: bool) {
        self.shared.lock().compresses = on;
    }

    /// Whether the watch cache of a resource is ready, as all are at first.
    ///
    /// Until it is, watches and lists of a given resourceVersion are answered 429.
    pub fn set_cache_ready(&self, resource: Resource, on: bool) {
        let not_ready = &mut self.shared.lock().caches_not_ready;
        not_ready.retain(|other| *other != resource);
        if !on {
            not_ready.push(resource);
        }
    }

    /// Has field selectors that name this field answered 400, as a server does that is too old to
    /// know it (`spec.clusterIP` before 1.32).
    pub fn forget_field_label(&self, field: &str) {
        self.shared.lock().unknown_fields.insert(field.to_owned());
    }

    /// Adds a delay to each answer, as a long way to the server does.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// While `on`, new connections are accepted, but nothing is ever read from them; those stay
    /// so. Connections that are open already are left alone.
    pub fn freeze(&self, on: bool) {
        self.shared.lock().is_frozen = on;
    }

    /// Neither reads from nor writes to any open connection from now on, without closing it, as
    /// if the other host had vanished.
    pub fn silence_connections(&self) {
        for connection in &self.shared.lock().connections {
            connection.silence();
        }
    }

    /// Closes every open connection at once, in the middle of whatever is sent.
    pub fn cut_connections(&self) {
        for connection in &self.shared.lock().connections {
            connection.cut();
        }
    }

    /// Sends a bookmark to every open watch which asked for bookmarks, once every `period`; with
    /// none, only when told to.
    pub fn set_bookmark_period(&self, period: Option<Duration>) {
        let task = period.map(|period| {
            let shared = self.shared.clone();
            let task = self.background.runtime().spawn(async move {
                loop {
                    tokio::time::sleep(period).await;
                    shared.lock().bookmark_all();
                }
            });
            task.abort_handle()
        });
        if let Some(old) = std::mem::replace(&mut self.shared.lock().bookmarks, task) {
            old.abort();
        }
    }

    /// What has been asked of a resource since the start.
    pub fn counters(&self, resource: Resource) -> Counters {
        let mut counters = self.shared.lock().counters[resource as usize];
        let bytes = &self.shared.body_bytes[resource as usize];
        counters.body_bytes = bytes.load(Ordering::Relaxed);
        counters
    }

    /// How many connections are open now.
    pub fn open_connections(&self) -> usize {
        self.shared.lock().connections.len()
    }

    /// Waits until at least `n` requests have come since the start; false if that took longer
    /// than `timeout`.
    #[must_use]
    pub fn wait_for_requests(&self, n: usize, timeout: Duration) -> bool {
        let (_state, result) = self
            .shared
            .request_came
            .wait_timeout_while(self.shared.lock(), timeout, |state| {
                state.requests.len() < n
            })
            .unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }
}
