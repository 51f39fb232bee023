//! The HTTP side: paths, query parameters, lists and watch responses.
//!
//! It must not change objects. Entry point: [`router`].

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{self, Query};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::filter::Filter;
use super::resource::Resource;
use super::status::Status;
use super::store::{self, Store};
use super::watch::{Watcher, event_line};
use super::{Request, Shared, State};

type Parameters = BTreeMap<String, String>;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(answer).with_state(shared)
}

async fn answer(
    extract::State(shared): extract::State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(query): Query<Parameters>,
) -> Result<Response, Status> {
    let mut state = shared.lock();
    state.requests.push(Request {
        method: method.to_string(),
        path: uri.path().to_owned(),
        query: query.clone(),
    });
    if state.refuse {
        return Err(Status::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "the server is currently unable to handle the request",
        ));
    }
    let target = Target::parse(uri.path())
        .ok_or_else(|| Status::not_found("the server could not find the requested resource"))?;
    if method != Method::GET {
        return Err(Status::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        ));
    }
    match target {
        Target::Version => Ok(Json(version()).into_response()),
        Target::Object { resource, key } => {
            let object = state.store(resource).objects().get(&key).ok_or_else(|| {
                Status::not_found(format!("{} {key:?} not found", resource.plural()))
            })?;
            Ok(Json(resource.with_kind(Value::clone(object))).into_response())
        }
        Target::Collection {
            resource,
            namespace,
        } => {
            let filter = Filter::parse(resource, namespace.as_deref(), &query)?;
            if flag(&query, "watch") {
                watch(&shared, &mut state, resource, filter, &query)
            } else {
                Ok(Json(list(&state, resource, &filter, &query)?).into_response())
            }
        }
    }
}

/// What a path names.
enum Target {
    Version,
    Object {
        resource: Resource,
        key: String,
    },
    Collection {
        resource: Resource,
        namespace: Option<String>,
    },
}

impl Target {
    fn parse(path: &str) -> Option<Self> {
        if path == "/version" {
            return Some(Self::Version);
        }
        Resource::ALL.into_iter().find_map(|resource| {
            let segments: Vec<_> = path
                .strip_prefix(resource.group_path())?
                .split('/')
                .collect();
            let (namespace, rest) = match segments.as_slice() {
                ["namespaces", namespace, rest @ ..] if resource.is_namespaced() => {
                    (Some(*namespace), rest)
                }
                rest => (None, rest),
            };
            match rest {
                [plural] if *plural == resource.plural() => Some(Self::Collection {
                    resource,
                    namespace: namespace.map(str::to_owned),
                }),
                [plural, name]
                    if *plural == resource.plural()
                        && namespace.is_some() == resource.is_namespaced() =>
                {
                    Some(Self::Object {
                        resource,
                        key: store::key(namespace.unwrap_or(""), name),
                    })
                }
                _ => None,
            }
        })
    }
}

fn version() -> Value {
    json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2", "platform": "linux/amd64"})
}

fn list(
    state: &State,
    resource: Resource,
    filter: &Filter,
    query: &Parameters,
) -> Result<Value, Status> {
    let wanted = number(query, "resourceVersion")?;
    let limit = match number(query, "limit")? {
        // A real server answers "any version" from its cache, in one piece.
        Some(limit) if limit > 0 && wanted != Some(0) => Some(limit),
        _ => None,
    };
    let store = state.store(resource);
    let start = ListStart::parse(store, query, wanted, limit.is_some())?;
    let objects = store.objects_at(start.version);
    let mut rest = objects
        .iter()
        .filter(|(key, object)| **key > start.after && filter.is_in_namespace(object))
        .peekable();
    let mut items: Vec<&Value> = Vec::new();
    let mut last = "";
    while limit.is_none_or(|limit| items.len() < limit)
        && let Some((key, object)) = rest.next()
    {
        if filter.matches(object) {
            items.push(object);
        }
        last = key;
    }
    let mut metadata = json!({"resourceVersion": start.version.to_string()});
    // The real server looks no further than the limit either: what is left may all be filtered
    // out, the last page is then empty, and only without selectors is the rest counted.
    if rest.peek().is_some() {
        metadata["continue"] = format_continue(start.version, last).into();
        if !filter.has_selectors() {
            metadata["remainingItemCount"] = rest.count().into();
        }
    }
    Ok(json!({
        "kind": format!("{}List", resource.kind()),
        "apiVersion": resource.api_version(),
        "metadata": metadata,
        "items": items,
    }))
}

/// Where a list starts: a snapshot, and the key it goes on after.
struct ListStart {
    version: u64,
    after: String,
}

impl ListStart {
    fn parse(
        store: &Store,
        query: &Parameters,
        wanted: Option<u64>,
        has_limit: bool,
    ) -> Result<Self, Status> {
        if let Some(token) = query.get("continue").filter(|token| !token.is_empty()) {
            if wanted.is_some_and(|wanted| wanted != 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (version, after) = parse_continue(token)
                .filter(|(version, _)| *version <= store.version())
                .ok_or_else(|| Status::bad_request("continue key is not valid"))?;
            if version < store.horizon() {
                return Err(Status::expired(
                    "The provided continue parameter is too old to display a consistent list \
                     result.",
                ));
            }
            return Ok(Self { version, after });
        }

        let is_exact = match query.get("resourceVersionMatch").map(String::as_str) {
            Some("Exact") => true,
            Some("NotOlderThan") => false,
            // With a limit, a version alone has always meant that very version.
            None => has_limit,
            Some(other) => {
                return Err(Status::bad_request(format!(
                    "resourceVersionMatch: Unsupported value: {other:?}"
                )));
            }
        };
        let current = store.version();
        let version = match wanted {
            Some(wanted) if wanted > current => {
                return Err(Status::new(
                    StatusCode::GATEWAY_TIMEOUT,
                    "Timeout",
                    format!("Too large resource version: {wanted}, current: {current}"),
                ));
            }
            Some(wanted) if is_exact => wanted,
            _ => current,
        };
        if version < store.horizon() {
            return Err(Status::expired(
                "The resourceVersion for the provided list is too old.",
            ));
        }
        Ok(Self {
            version,
            after: String::new(),
        })
    }
}

/// A continue token: the version of the snapshot and the last key looked at.
fn format_continue(version: u64, last: &str) -> String {
    format!("{version}:{last}")
}

fn parse_continue(token: &str) -> Option<(u64, String)> {
    let (version, last) = token.split_once(':')?;
    Some((version.parse().ok()?, last.to_owned()))
}

fn watch(
    shared: &Arc<Shared>,
    state: &mut State,
    resource: Resource,
    filter: Filter,
    query: &Parameters,
) -> Result<Response, Status> {
    let timeout = number(query, "timeoutSeconds")?.filter(|seconds| *seconds > 0);
    let wanted: u64 = number(query, "resourceVersion")?.unwrap_or(0);
    let is_streaming_list = flag(query, "sendInitialEvents");
    if is_streaming_list {
        if query.get("resourceVersionMatch").map(String::as_str) != Some("NotOlderThan") {
            return Err(Status::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "Invalid",
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
                 resourceVersionMatch to NotOlderThan",
            ));
        }
        if !state.streaming_lists {
            return Ok(watch_error(&Status::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                "a watch stream was requested by the client but the required storage feature \
                 RequestWatchProgress is disabled",
            )));
        }
    }
    let store = state.store(resource);
    let starts_with_objects = is_streaming_list || wanted == 0;
    if !starts_with_objects && wanted < store.horizon() {
        let status = Status::expired(format!(
            "too old resource version: {wanted} ({})",
            store.horizon()
        ));
        return if state.expired_watch_is_http_error {
            Err(status)
        } else {
            Ok(watch_error(&status))
        };
    }

    let (lines, mut receiver) = mpsc::unbounded_channel();
    let watcher = Watcher {
        id: state.n_watches,
        resource,
        filter,
        after: wanted,
        wants_bookmarks: flag(query, "allowWatchBookmarks"),
        lines,
    };
    if starts_with_objects {
        for object in store.objects().values() {
            watcher.initial(object);
        }
        if is_streaming_list {
            watcher.initial_events_end(store.version());
        }
    } else {
        for change in store.history() {
            watcher.change(change);
        }
    }
    state.n_watches += 1;
    if let Some(seconds) = timeout {
        let (id, shared) = (watcher.id, shared.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            shared.lock().end_watch(id);
        });
    }
    state.watchers.push(watcher);
    shared.watch_opened.notify_all();
    let body = Body::from_stream(stream::poll_fn(move |cx| receiver.poll_recv(cx)));
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// A watch response which is nothing but an ERROR event.
fn watch_error(status: &Status) -> Response {
    let line = event_line("ERROR", &status.object());
    ([(CONTENT_TYPE, "application/json")], line).into_response()
}

/// A boolean parameter, which in Kubernetes is true unless absent or set to false.
fn flag(query: &Parameters, name: &str) -> bool {
    query
        .get(name)
        .is_some_and(|value| !matches!(value.as_str(), "false" | "0"))
}

fn number<T: FromStr>(query: &Parameters, name: &str) -> Result<Option<T>, Status> {
    match query.get(name) {
        Some(value) if !value.is_empty() => value
            .parse()
            .map(Some)
            .map_err(|_| Status::bad_request(format!("{name}: Invalid value: {value:?}"))),
        _ => Ok(None),
    }
}
