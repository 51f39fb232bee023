//! What was encoded once and is sent to all who ask for the same, as from a server's watch cache.
//!
//! It must not know what is in it. Entry point: [`Cache`].

use std::collections::BTreeMap;

use bytes::Bytes;

use super::encoding::Encoding;
use super::query::Query;
use super::resource::Resource;

/// Bodies by what was asked for.
#[derive(Default)]
pub(super) struct Cache(BTreeMap<Key, (u64, Vec<Bytes>)>);

/// What was asked for, and in which encoding.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    resource: &'static str,
    namespace: Option<String>,
    query: Query,
    is_protobuf: bool,
}

impl Key {
    pub(super) fn new(
        resource: Resource,
        namespace: Option<&str>,
        query: &Query,
        encoding: Encoding,
    ) -> Self {
        let mut query = query.clone();
        // Each client has its own, and it changes nothing.
        query.remove("timeoutSeconds");
        Self {
            resource: resource.plural(),
            namespace: namespace.map(str::to_owned),
            query,
            is_protobuf: encoding == Encoding::Protobuf,
        }
    }
}

impl Cache {
    /// The parts of a body, made anew if the store's version is another by now.
    pub(super) fn get<E>(
        &mut self,
        key: Key,
        version: u64,
        make: impl FnOnce() -> Result<Vec<Bytes>, E>,
    ) -> Result<Vec<Bytes>, E> {
        if let Some((of, parts)) = self.0.get(&key)
            && *of == version
        {
            return Ok(parts.clone());
        }
        let parts = make()?;
        self.0.insert(key, (version, parts.clone()));
        Ok(parts)
    }

    /// Forgets everything: the store is another one, whose version may be the same.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
