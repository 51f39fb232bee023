//! The API server of the soak and what it stores: objects outlive the server, as in a cluster.
//!
//! It must not know what the objects mean. Entry point: [`Api`].

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use integration::apiserver::{ApiServer, Encodings, Resource, StreamingLists};
use integration::netns::Namespace;
use serde_json::{Value, json};

/// What tells objects apart: the place of their [`Resource`] in [`Resource::ALL`], namespace, name.
pub(crate) type Key = (usize, String, String);

/// More versions than a server steps forward by itself before it is restarted.
const VERSIONS: u64 = 1000;

/// A server that can stop and come back, and its objects.
pub(crate) struct Api {
    server: Option<ApiServer>,
    addr: SocketAddr,
    /// Each object with the resourceVersion of its last change.
    objects: BTreeMap<Key, (Value, u64)>,
    versions: [u64; Resource::ALL.len()],
}

impl Api {
    /// Starts a server without objects on the loopback interface of the namespace.
    pub(crate) fn start(host: &Namespace) -> Result<Self> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = host.run(|| ApiServer::bind(addr))?;
        server.set_streaming_lists(StreamingLists::Served);
        Ok(Self {
            addr: server.addr(),
            server: Some(server),
            objects: BTreeMap::new(),
            versions: [1; Resource::ALL.len()],
        })
    }

    /// Where clients find it, whether it is there or not.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Its port, likewise.
    pub(crate) fn port(&self) -> u16 {
        self.addr.port()
    }

    /// The server, unless it is stopped.
    pub(crate) fn server(&self) -> Option<&ApiServer> {
        self.server.as_ref()
    }

    /// Closes its port and all connections. Objects can still be changed, as through another
    /// server of the cluster.
    pub(crate) fn stop(&mut self) {
        self.server = None;
    }

    /// Brings it back where it was, with the objects as they are by now, and without history.
    pub(crate) fn restart(&mut self, host: &Namespace, encodings: Encodings) -> Result<()> {
        if self.server.is_some() {
            return Ok(());
        }
        let mut lists = Vec::new();
        for (kind, resource) in Resource::ALL.into_iter().enumerate() {
            // Versions are the whole cluster's, and other things have changed meanwhile.
            self.versions[kind] += VERSIONS;
            let items: Vec<_> = self
                .objects
                .iter()
                .filter(|(key, _)| key.0 == kind)
                .map(|(_, (object, version))| {
                    let mut object = object.clone();
                    object["metadata"]["resourceVersion"] = version.to_string().into();
                    object
                })
                .collect();
            let version = self.versions[kind].to_string();
            let list = json!({"metadata": {"resourceVersion": version}, "items": items});
            lists.push((resource, list.to_string()));
        }
        // No client may find it empty: real servers answer when they have read what is stored.
        let server = host.run(|| ApiServer::bind_with_lists(self.addr, lists))?;
        server.set_streaming_lists(StreamingLists::Served);
        server.set_encodings(encodings);
        self.server = Some(server);
        Ok(())
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&mut self, object: Value) -> Result<()> {
        let key = key(&object)?;
        let kind = key.0;
        let version = match &self.server {
            Some(server) => server.upsert(object.clone())?,
            None => self.versions[kind] + 1,
        };
        self.versions[kind] = version;
        self.objects.insert(key, (object, version));
        Ok(())
    }

    /// Deletes an object; nothing if there is none.
    pub(crate) fn delete(&mut self, key: &Key) -> Result<()> {
        if self.objects.remove(key).is_none() {
            return Ok(());
        }
        let (kind, namespace, name) = key;
        self.versions[*kind] = match &self.server {
            Some(server) => server.delete(Resource::ALL[*kind], namespace, name)?,
            None => self.versions[*kind] + 1,
        };
        Ok(())
    }

    /// The objects of a kind.
    pub(crate) fn objects(&self, resource: Resource) -> impl Iterator<Item = (&Key, &Value)> {
        self.objects
            .iter()
            .filter(move |(key, _)| Resource::ALL[key.0] == resource)
            .map(|(key, (object, _))| (key, object))
    }
}

/// What tells an object from others.
fn key(object: &Value) -> Result<Key> {
    let kind = object["kind"].as_str();
    let kind = Resource::ALL
        .iter()
        .position(|resource| kind == Some(resource.kind()));
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    Ok((
        kind.context("an object of an unknown kind")?,
        text("namespace").to_owned(),
        text("name").to_owned(),
    ))
}

/// One of the ways that servers answer.
pub(crate) fn any_encodings(rng: &mut fastrand::Rng) -> Encodings {
    let all = [Encodings::Both, Encodings::Json, Encodings::JsonRegardless];
    all[rng.usize(..all.len())]
}
