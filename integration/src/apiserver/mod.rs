//! A mock of the Kubernetes API server: the list and watch protocol over plain HTTP, and the
//! misfortunes a client must survive (cut watches, compaction, refusals), each on demand.
//!
//! It knows nothing of nftproxy and does not interpret objects beyond their metadata and the
//! fields which selectors can name.
//! Read [`ApiServer`] first; `answer` is the HTTP side, `store` holds the objects with their
//! history, `watch` turns changes into events.

mod answer;
mod filter;
mod resource;
mod status;
mod store;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::sync::oneshot;

pub use resource::Resource;
use store::{Change, Store};
use watch::Watcher;

/// One request as the server received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method in capitals.
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// The decoded query parameters.
    pub query: BTreeMap<String, String>,
}

/// A running server; dropping it closes the port and every connection.
///
/// The listening socket is bound on the calling thread, and so lives in the network namespace
/// of that thread.
/// Every [`Resource`] counts its own resourceVersions, since clients must not compare them across
/// resources; a recorded list or stream keeps those it was recorded with.
pub struct ApiServer {
    addr: SocketAddr,
    shared: Arc<Shared>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl ApiServer {
    /// Starts a server on a free port of the IPv4 loopback address.
    pub fn start() -> io::Result<Self> {
        Self::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts a server on `addr`.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let shared = Arc::new(Shared::default());
        let router = answer::router(shared.clone());
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("apiserver".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = axum::serve(listener, router) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            addr,
            shared,
            running: Some((stop, thread)),
        })
    }

    /// The address the server listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The base URL of the server.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// A kubeconfig file for this server, without credentials.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: mock\n  cluster:\n    server: {}\n\
             users:\n\
             - name: mock\n  user: {{}}\n\
             contexts:\n\
             - name: mock\n  context:\n    cluster: mock\n    user: mock\n\
             current-context: mock\n",
            self.url()
        )
    }

    /// Replaces everything the server knows of `resource` by a list as a real server answered it.
    ///
    /// This sets the scene before a client connects: open watches see no events of it, and
    /// versions older than the list have expired.
    pub fn load_list(&self, resource: Resource, list: &str) -> anyhow::Result<()> {
        let list = serde_json::from_str(list)
            .with_context(|| format!("parsing a list of {}", resource.plural()))?;
        let store = Store::from_list(&list)
            .with_context(|| format!("reading a list of {}", resource.plural()))?;
        *self.shared.lock().store_mut(resource) = store;
        Ok(())
    }

    /// Creates or replaces an object, which must carry its kind, and returns the
    /// resourceVersion it was given.
    pub fn upsert(&self, object: Value) -> anyhow::Result<u64> {
        let resource = Resource::of(&object)?;
        let mut state = self.shared.lock();
        let version = state.store(resource).next_version();
        state.put(resource, object, version)?;
        Ok(version)
    }

    /// Deletes an object; `namespace` is empty for resources without one.
    ///
    /// Returns the resourceVersion of the deletion.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> anyhow::Result<u64> {
        let mut state = self.shared.lock();
        let version = state.store(resource).next_version();
        state.remove(resource, &store::key(namespace, name), version)?;
        Ok(version)
    }

    /// Applies a recorded watch stream, one event a line, and passes it on to open watches.
    ///
    /// Events keep their resourceVersion as long as it is newer than what the server has;
    /// otherwise they get the next one.
    pub fn replay(&self, resource: Resource, stream: &str) -> anyhow::Result<()> {
        for line in stream.lines() {
            self.replay_event(resource, line)
                .with_context(|| format!("replaying {} event {line}", resource.plural()))?;
        }
        Ok(())
    }

    fn replay_event(&self, resource: Resource, line: &str) -> anyhow::Result<()> {
        let mut event: Value = serde_json::from_str(line)?;
        let object = event["object"].take();
        let recorded = store::version(&object)?;
        let mut state = self.shared.lock();
        let version = recorded.max(state.store(resource).next_version());
        match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => state.put(resource, object, version),
            Some("DELETED") => state.remove(resource, &store::key_of(&object)?, version),
            Some("BOOKMARK") => {
                state.store_mut(resource).advance_to(recorded);
                state.bookmark(resource);
                Ok(())
            }
            other => bail!("unknown event type {other:?}"),
        }
    }

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
        let mut state = self.shared.lock();
        for resource in Resource::ALL {
            state.bookmark(resource);
        }
    }

    /// Switches streaming lists (`sendInitialEvents`) on or off; they are off at first.
    pub fn set_streaming_lists(&self, on: bool) {
        self.shared.lock().streaming_lists = on;
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
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            // The thread waits for the other end to go; a panic there has been reported already.
            drop(stop);
            drop(thread.join());
        }
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    watch_opened: Condvar,
}

impl Shared {
    /// A panic elsewhere does not matter here: the test which caused it fails anyway.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct State {
    stores: [Store; Resource::ALL.len()],
    watchers: Vec<Watcher>,
    n_watches: u64,
    requests: Vec<Request>,
    refuse: bool,
    streaming_lists: bool,
    expired_watch_is_http_error: bool,
}

impl State {
    fn store(&self, resource: Resource) -> &Store {
        &self.stores[resource as usize]
    }

    fn store_mut(&mut self, resource: Resource) -> &mut Store {
        &mut self.stores[resource as usize]
    }

    fn put(&mut self, resource: Resource, object: Value, version: u64) -> anyhow::Result<()> {
        let change = self.store_mut(resource).put(object, version)?;
        self.publish(resource, &change);
        Ok(())
    }

    fn remove(&mut self, resource: Resource, key: &str, version: u64) -> anyhow::Result<()> {
        let change = self
            .store_mut(resource)
            .remove(key, version)
            .with_context(|| format!("no {} {key} to delete", resource.kind()))?;
        self.publish(resource, &change);
        Ok(())
    }

    fn publish(&mut self, resource: Resource, change: &Change) {
        for watcher in self.watchers_of(resource) {
            watcher.change(change);
        }
    }

    fn bookmark(&mut self, resource: Resource) {
        let version = self.store(resource).version();
        for watcher in self.watchers_of(resource) {
            watcher.bookmark(version);
        }
    }

    /// Ends a watch in good order, as its timeout asks.
    fn end_watch(&mut self, id: u64) {
        if let Some(i) = self.watchers.iter().position(|watcher| watcher.id == id) {
            let watcher = self.watchers.swap_remove(i);
            watcher.bookmark(self.store(watcher.resource).version());
        }
    }

    fn watchers_of(&mut self, resource: Resource) -> impl Iterator<Item = &Watcher> {
        self.watchers.retain(Watcher::is_open);
        self.watchers
            .iter()
            .filter(move |watcher| watcher.resource == resource)
    }

    fn open_watches(&self) -> usize {
        self.watchers.iter().filter(|w| w.is_open()).count()
    }
}
