//! An API server of Kubernetes for tests: the list and watch protocol in JSON and protobuf, over
//! plain HTTP or TLS, and the misfortunes a client must survive, each on demand.
//!
//! It knows nothing of nftproxy and does not interpret objects beyond their metadata, the fields
//! which selectors can name, and what the tables for protobuf need.
//! Read [`ApiServer`] first: here it is started and given objects, in `control` it is made to
//! misbehave and asked what it has seen.
//! From a connection to an answer: `listen`, `connection`, `answer`, then `list` or `stream`;
//! `store` holds the objects with their history, `watch` turns changes into events, and
//! `encoding` writes both.

mod answer;
mod body;
mod cache;
mod connection;
mod control;
mod encoding;
mod fault;
mod filter;
mod list;
mod listen;
mod options;
mod protobuf;
mod query;
mod record;
mod resource;
mod status;
mod store;
mod stream;
mod target;
mod watch;

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::background::Background;
use crate::tls::Tls;

use cache::Cache;
use connection::Connection;
pub use encoding::{Encoding, Encodings};
pub use fault::{Fault, Rule, Verb};
pub use options::StreamingLists;
pub use record::{Counters, Request};
pub use resource::Resource;
pub use status::Status;
use store::{Change, Store};
use watch::Watcher;

/// A running server; dropping it closes the port and every connection.
///
/// The listening socket is bound on the calling thread, and so lives in the network namespace
/// of that thread.
/// Every [`Resource`] counts its own resourceVersions, since clients must not compare them across
/// resources; a recorded list or stream keeps those it was recorded with.
pub struct ApiServer {
    background: Background,
    shared: Arc<Shared>,
    tls: Option<Tls>,
}

impl ApiServer {
    /// Starts a server on a free port of the IPv4 loopback address.
    pub fn start() -> io::Result<Self> {
        Self::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts a server on `addr`.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        Self::serve(addr, None, None, Shared::default())
    }

    /// Starts a server on `addr` that knows what lists say from its first answer on; see
    /// [`ApiServer::load_list`].
    pub fn bind_with_lists(
        addr: SocketAddr,
        lists: impl IntoIterator<Item = (Resource, String)>,
    ) -> anyhow::Result<Self> {
        let shared = Shared::default();
        for (resource, list) in lists {
            shared.lock().load_list(resource, &list)?;
        }
        Ok(Self::serve(addr, None, None, shared)?)
    }

    /// Starts a server on `addr` which speaks nothing but TLS.
    pub fn bind_tls(addr: SocketAddr, tls: &Tls) -> anyhow::Result<Self> {
        let acceptor = tls.acceptor()?;
        let shared = Shared::default();
        Ok(Self::serve(
            addr,
            Some(acceptor),
            Some(tls.clone()),
            shared,
        )?)
    }

    fn serve(
        addr: SocketAddr,
        acceptor: Option<TlsAcceptor>,
        tls: Option<Tls>,
        shared: Shared,
    ) -> io::Result<Self> {
        let shared = Arc::new(shared);
        let serving = shared.clone();
        let background = Background::start("apiserver", addr, move |socket| {
            listen::serve(socket, acceptor.clone(), serving.clone());
        })?;
        Ok(Self {
            background,
            shared,
            tls,
        })
    }

    /// The address the server listens on.
    pub fn addr(&self) -> SocketAddr {
        self.background.addr()
    }

    /// The base URL of the server.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addr())
    }

    /// A kubeconfig file for this server, with the authority to trust, and with the token that is
    /// required at the moment as the only credential.
    pub fn kubeconfig(&self) -> String {
        let authority = self.tls.as_ref().map_or(String::new(), |tls| {
            let data = BASE64.encode(&tls.authority);
            format!("    certificate-authority-data: {data}\n")
        });
        let user = match &self.shared.lock().token {
            Some(token) => json!({"token": token}),
            None => json!({}),
        };
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: mock\n  cluster:\n    server: {}\n{authority}\
             users:\n\
             - name: mock\n  user: {user}\n\
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
        self.shared.lock().load_list(resource, list)
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
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    watch_opened: Condvar,
    request_came: Condvar,
    body_bytes: [Arc<AtomicU64>; Resource::ALL.len()],
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
    cache: Cache,
    connections: Vec<Arc<Connection>>,
    requests: Vec<Request>,
    counters: [Counters; Resource::ALL.len()],
    bookmarks: Option<AbortHandle>,
    rules: Vec<Rule>,
    refuse: bool,
    is_frozen: bool,
    delay: Duration,
    token: Option<String>,
    encodings: Encodings,
    compresses: bool,
    streaming_lists: StreamingLists,
    expired_watch_is_http_error: bool,
    caches_not_ready: Vec<Resource>,
    unknown_fields: BTreeSet<String>,
}

impl State {
    fn store(&self, resource: Resource) -> &Store {
        &self.stores[resource as usize]
    }

    fn store_mut(&mut self, resource: Resource) -> &mut Store {
        &mut self.stores[resource as usize]
    }

    fn load_list(&mut self, resource: Resource, list: &str) -> anyhow::Result<()> {
        let list = serde_json::from_str(list)
            .with_context(|| format!("parsing a list of {}", resource.plural()))?;
        *self.store_mut(resource) = Store::from_list(&list)
            .with_context(|| format!("reading a list of {}", resource.plural()))?;
        self.cache.clear();
        Ok(())
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

    fn bookmark_all(&mut self) {
        for resource in Resource::ALL {
            self.bookmark(resource);
        }
    }

    /// Ends a watch in good order, as its timeout asks.
    fn end_watch(&mut self, id: u64) {
        if let Some(i) = self.watchers.iter().position(|watcher| watcher.id == id) {
            let mut watcher = self.watchers.swap_remove(i);
            watcher.bookmark(self.store(watcher.resource).version());
        }
    }

    fn watchers_of(&mut self, resource: Resource) -> impl Iterator<Item = &mut Watcher> {
        self.watchers.retain(Watcher::is_open);
        self.watchers
            .iter_mut()
            .filter(move |watcher| watcher.resource == resource)
    }

    fn open_watches(&self) -> usize {
        self.watchers.iter().filter(|w| w.is_open()).count()
    }
}
