//! The beginning of a watch: where it starts, and what it sends before there are changes.
//!
//! It must not know of HTTP. Entry point: [`open`].

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::body::Chunk;
use super::cache::Key;
use super::encoding::Encoding;
use super::fault::Fault;
use super::filter::Filter;
use super::options::{StreamingLists, check_watch};
use super::query::{Query, flag, number};
use super::resource::Resource;
use super::status::Status;
use super::watch::{Finish, Watcher};
use super::{Shared, State};

/// Opens a watch and returns what its client is to be sent.
pub(super) fn open(
    shared: &Arc<Shared>,
    state: &mut State,
    resource: Resource,
    filter: Filter,
    query: &Query,
    encoding: Encoding,
    fault: Option<&Fault>,
) -> Result<UnboundedReceiver<Chunk>, Status> {
    let timeout = number(query, "timeoutSeconds")?.filter(|seconds| *seconds > 0);
    let wanted: u64 = number(query, "resourceVersion")?.unwrap_or(0);
    let is_streaming_list = check_watch(query, state.streaming_lists)?;
    let has_no_initial_events = !is_streaming_list
        && state.streaming_lists == StreamingLists::Served
        && query.contains_key("sendInitialEvents");
    let store = &state.stores[resource as usize];
    let (chunks, receiver) = mpsc::unbounded_channel();
    let mut watcher = Watcher {
        id: state.n_watches,
        resource,
        filter,
        encoding,
        after: wanted,
        wants_bookmarks: flag(query, "allowWatchBookmarks"),
        chunks: Some(chunks),
        finish: fault.and_then(Finish::of),
    };
    watcher.finish_if_due();
    if is_streaming_list && state.streaming_lists == StreamingLists::WithoutStorage {
        watcher.fail(&Status::internal(
            "a watch stream was requested by the client but the required storage feature \
             RequestWatchProgress is disabled",
        ));
    } else if is_streaming_list || (wanted == 0 && !has_no_initial_events) {
        let key = Key::new(resource, watcher.filter.namespace(), query, encoding);
        let encoded = state.cache.get(key, store.version(), || {
            let matching = store
                .objects()
                .values()
                .filter(|o| watcher.filter.matches(o));
            let events = matching
                .map(|object| encoding.event("ADDED", &resource.with_kind(Value::clone(object))));
            events.collect()
        });
        match encoded {
            Ok(events) if watcher.finish.is_none() => watcher.encoded(events),
            // One by one up to the end that is set, or to the one that cannot be encoded.
            _ => {
                for object in store.objects().values() {
                    watcher.initial(object);
                }
            }
        }
        if is_streaming_list {
            watcher.initial_events_end(store.version());
        }
    } else if wanted == 0 {
        // From now on: nothing that has been is of interest.
        watcher.after = store.version();
    } else if wanted < store.horizon() {
        let status = Status::expired(format!(
            "too old resource version: {wanted} ({})",
            store.horizon()
        ));
        if state.expired_watch_is_http_error {
            return Err(status);
        }
        watcher.fail(&status);
    } else {
        for change in store.history() {
            watcher.change(change);
        }
    }
    if watcher.is_open() {
        if let Some(seconds) = timeout {
            let (id, shared) = (watcher.id, shared.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                shared.lock().end_watch(id);
            });
        }
        state.n_watches += 1;
        state.watchers.push(watcher);
        shared.watch_opened.notify_all();
    }
    Ok(receiver)
}
