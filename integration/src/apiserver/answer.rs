//! The HTTP side: a request to an answer, or to the misfortune that awaits it.
//!
//! It must not change objects. Entry point: [`answer`].

use std::future;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY};
use http::request::Parts;
use http::{Method, Response};
use serde_json::{Value, json};

use super::body::{Body, Ending};
use super::cache::Key;
use super::encoding::{Encoding, negotiate};
use super::fault::{Fault, Verb, strike};
use super::filter::Filter;
use super::list::list;
use super::options::check_list;
use super::query::{self, Query, flag, text};
use super::record::Request;
use super::resource::Resource;
use super::status::Status;
use super::stream;
use super::target::Target;
use super::{Shared, State};

/// Lists and objects from this size on are compressed for those who can read it.
const COMPRESSED_FROM: usize = 128 << 10;

/// A request that has been recorded.
struct Call {
    target: Option<Target>,
    verb: Verb,
    is_get: bool,
    query: Query,
    encoding: Option<Encoding>,
    reads_gzip: bool,
}

/// Answers a request, from a client that showed this certificate.
pub(super) async fn answer(
    shared: Arc<Shared>,
    parts: Parts,
    client_certificate: Option<Vec<u8>>,
) -> Response<Body> {
    let target = Target::parse(parts.uri.path());
    let resource = target.as_ref().and_then(Target::resource);
    let query = query::parse(parts.uri.query().unwrap_or(""));
    let verb = match target {
        Some(Target::Collection { .. }) if flag(&query, "watch") => Verb::Watch,
        Some(Target::Collection { .. }) => Verb::List,
        _ => Verb::Get,
    };
    let mut request = Request::new(&parts, query.clone(), client_certificate);
    let (call, fault, refusal, delay, number) = {
        let mut state = shared.lock();
        let encoding = negotiate(
            request.header("accept"),
            verb == Verb::Watch,
            state.encodings,
        );
        request.encoding = encoding;
        let call = Call {
            target,
            verb,
            is_get: parts.method == Method::GET,
            query,
            encoding,
            reads_gzip: request
                .header("accept-encoding")
                .is_some_and(|value| value.contains("gzip")),
        };
        let fault = strike(&mut state.rules, resource, verb);
        let refusal = refusal(&state, &request);
        if let Some(resource) = resource {
            let counters = &mut state.counters[resource as usize];
            *match verb {
                Verb::Get => &mut counters.gets,
                Verb::List => &mut counters.lists,
                Verb::Watch => &mut counters.watches,
            } += 1;
        }
        state.requests.push(request);
        shared.request_came.notify_all();
        let number = state.requests.len() - 1;
        (call, fault, refusal, state.delay, number)
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let response = match (fault, refusal) {
        (Some(Fault::Silence), _) => future::pending().await,
        (
            Some(Fault::Verbatim {
                status,
                headers,
                body,
            }),
            _,
        ) => verbatim(status, headers, body),
        (Some(Fault::Refuse(status)), _) | (_, Some(status)) => failure(&status, call.encoding),
        (fault, None) => {
            let response = good_answer(&shared, &call, fault.as_ref())
                .unwrap_or_else(|status| failure(&status, call.encoding));
            match fault {
                Some(Fault::Cut { after }) => response.map(|body| body.limited(after, Ending::Cut)),
                Some(Fault::Truncate { after }) => {
                    response.map(|body| body.limited(after, Ending::Truncated))
                }
                _ => response,
            }
        }
    };
    shared.lock().requests[number].status = Some(response.status().as_u16());
    match resource {
        Some(resource) => {
            let bytes = shared.body_bytes[resource as usize].clone();
            response.map(|body| body.counted(bytes))
        }
        None => response,
    }
}

/// Why the server refuses whatever is asked of it.
fn refusal(state: &State, request: &Request) -> Option<Status> {
    if state.refuse {
        return Some(Status::of(503));
    }
    let token = state.token.as_ref()?;
    let has_token = request
        .header("authorization")
        .and_then(|value| value.strip_prefix("Bearer "))
        .is_some_and(|given| given == token);
    (!has_token).then(|| Status::of(401))
}

fn good_answer(
    shared: &Arc<Shared>,
    call: &Call,
    fault: Option<&Fault>,
) -> Result<Response<Body>, Status> {
    let target = call.target.as_ref().ok_or_else(|| Status::of(404))?;
    if !call.is_get {
        return Err(Status::of(405));
    }
    let encoding = match target {
        // As in a real server it is JSON whatever is asked for.
        Target::Version => Encoding::Json,
        _ => call.encoding.ok_or_else(|| Status::of(406))?,
    };
    let mut state = shared.lock();
    let body = match target {
        Target::Version => encode(encoding, &version())?,
        Target::Object { resource, key } => {
            let object = state.store(*resource).objects().get(key).ok_or_else(|| {
                Status::not_found(format!("{} {key:?} not found", resource.plural()))
            })?;
            encode(encoding, &resource.with_kind(Value::clone(object)))?
        }
        Target::Collection {
            resource,
            namespace,
        } => {
            let filter = Filter::parse(
                *resource,
                namespace.as_deref(),
                &call.query,
                &state.unknown_fields,
            )?;
            check_cache(&state, *resource, call)?;
            if call.verb == Verb::Watch {
                let chunks = stream::open(
                    shared,
                    &mut state,
                    *resource,
                    filter,
                    &call.query,
                    encoding,
                    fault,
                )?;
                let mut response = Response::new(Body::stream(chunks));
                set_content_type(&mut response, encoding.content_type(true));
                return Ok(response);
            }
            check_list(&call.query, state.streaming_lists)?;
            let State { stores, cache, .. } = &mut *state;
            let store = &stores[*resource as usize];
            let key = Key::new(*resource, filter.namespace(), &call.query, encoding);
            let mut parts = cache.get(key, store.version(), || {
                let list = list(store, *resource, &filter, &call.query)?;
                encode(encoding, &list).map(|body| vec![body])
            })?;
            parts.pop().unwrap_or_default()
        }
    };
    let compresses = state.compresses && call.reads_gzip;
    drop(state);
    Ok(if compresses && body.len() >= COMPRESSED_FROM {
        let mut response = whole(gzip(&body), encoding);
        let headers = response.headers_mut();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        response
    } else {
        whole(body, encoding)
    })
}

/// A cache that is not ready has no answer to what must come from it: watches, and lists of a
/// version that is not the latest.
fn check_cache(state: &State, resource: Resource, call: &Call) -> Result<(), Status> {
    let needs_cache = call.verb == Verb::Watch
        || (text(&call.query, "resourceVersion").is_some()
            && text(&call.query, "continue").is_none());
    if needs_cache && state.caches_not_ready.contains(&resource) {
        return Err(Status::of(429)
            .message("storage is (re)initializing")
            .retry_after(1));
    }
    Ok(())
}

fn encode(encoding: Encoding, value: &Value) -> Result<Bytes, Status> {
    let body = encoding.object(value);
    body.map_err(|e| Status::internal(format!("{e:#}")))
}

fn version() -> Value {
    json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2", "platform": "linux/amd64"})
}

fn failure(status: &Status, encoding: Option<Encoding>) -> Response<Body> {
    let encoding = encoding.unwrap_or(Encoding::Json);
    let body = encoding.object(&status.object());
    let mut response = whole(body.expect("every encoding knows the Status"), encoding);
    *response.status_mut() = status.code;
    if let Some(seconds) = status.seconds_to_wait() {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// An answer as a test wants it; if that is none of HTTP's, it is a mistake and says so.
fn verbatim(status: u16, headers: Vec<(&str, String)>, body: Bytes) -> Response<Body> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    builder.body(body.into()).unwrap_or_else(|e| {
        let status = Status::internal(format!("the fault is no answer: {e}"));
        failure(&status, None)
    })
}

fn whole(body: Bytes, encoding: Encoding) -> Response<Body> {
    let mut response = Response::new(body.into());
    set_content_type(&mut response, encoding.content_type(false));
    response
}

fn set_content_type(response: &mut Response<Body>, content_type: &'static str) {
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, value);
}

/// As little effort as a kube-apiserver makes.
fn gzip(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(body).and_then(|()| encoder.finish());
    written.expect("memory takes everything").into()
}
