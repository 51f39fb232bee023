//! The objects of one resource with the changes since the last compaction.
//!
//! It must not know of selectors, watches or HTTP. Entry point: [`Store`].

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use serde_json::Value;

/// Objects by [`key`], which sorts them as etcd does and as lists return them.
pub(super) type Objects = BTreeMap<String, Arc<Value>>;

/// One object before and after a write; absent before its creation and after its deletion.
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) key: String,
    pub(super) before: Option<Arc<Value>>,
    pub(super) after: Option<Arc<Value>>,
}

pub(super) struct Store {
    version: u64,
    /// The oldest version whose state and following changes are still known.
    horizon: u64,
    /// Without kind and apiVersion, as in a list.
    objects: Objects,
    /// The changes after `horizon`, oldest first.
    history: Vec<Arc<Change>>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            // Clients read version 0 as "any version".
            version: 1,
            horizon: 1,
            objects: Objects::new(),
            history: Vec::new(),
        }
    }
}

impl Store {
    pub(super) fn from_list(list: &Value) -> anyhow::Result<Self> {
        let version = version(list)?;
        let objects = list["items"]
            .as_array()
            .context("list without items")?
            .iter()
            .map(|item| Ok((key_of(item)?, Arc::new(without_kind(item.clone())))))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            version,
            horizon: version,
            objects,
            history: Vec::new(),
        })
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn next_version(&self) -> u64 {
        self.version + 1
    }

    pub(super) fn horizon(&self) -> u64 {
        self.horizon
    }

    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Moves on to a later version without a change, as writes to other resources do.
    pub(super) fn advance_to(&mut self, version: u64) {
        self.version = self.version.max(version);
    }

    pub(super) fn compact(&mut self) {
        self.version = self.next_version();
        self.horizon = self.version;
        self.history.clear();
    }

    /// Writes an object as of `version`, which must be newer than the store's.
    pub(super) fn put(&mut self, object: Value, version: u64) -> anyhow::Result<Arc<Change>> {
        let key = key_of(&object)?;
        let after = Arc::new(with_version(without_kind(object), version));
        let before = self.objects.insert(key.clone(), after.clone());
        Ok(self.record(Change {
            version,
            key,
            before,
            after: Some(after),
        }))
    }

    /// Deletes an object as of `version`, which must be newer than the store's.
    pub(super) fn remove(&mut self, key: &str, version: u64) -> Option<Arc<Change>> {
        let before = self.objects.remove(key)?;
        Some(self.record(Change {
            version,
            key: key.to_owned(),
            before: Some(before),
            after: None,
        }))
    }

    fn record(&mut self, change: Change) -> Arc<Change> {
        self.version = change.version;
        let change = Arc::new(change);
        self.history.push(change.clone());
        change
    }

    /// The changes since the last compaction, oldest first.
    pub(super) fn history(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.history.iter().map(AsRef::as_ref)
    }

    /// The objects as they were at `version`, which must not be older than the horizon.
    pub(super) fn objects_at(&self, version: u64) -> Objects {
        let mut objects = self.objects.clone();
        for change in self.history().rev() {
            if change.version <= version {
                break;
            }
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        objects
    }
}

/// `namespace/name`, or the name alone for an object without a namespace.
pub(super) fn key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    }
}

pub(super) fn key_of(object: &Value) -> anyhow::Result<String> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().context("object without a name")?;
    Ok(key(metadata["namespace"].as_str().unwrap_or(""), name))
}

/// The resourceVersion of an object or list.
pub(super) fn version(object: &Value) -> anyhow::Result<u64> {
    object["metadata"]["resourceVersion"]
        .as_str()
        .context("no resourceVersion")?
        .parse()
        .context("resourceVersion is not a number")
}

pub(super) fn with_version(mut object: Value, version: u64) -> Value {
    object["metadata"]["resourceVersion"] = version.to_string().into();
    object
}

fn without_kind(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    object
}
