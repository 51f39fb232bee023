//! Follows one kind of object on an API server: lists it, watches it, and starts over when it must.
//!
//! ```text
//!          ┌── streaming list ──┐   initial events, then changes
//!  start ──┼── one list ────────┼──▶ watch ──▶ from the last version, for ever
//!          └── pages ───────────┘      │
//!    ▲                                 │ the version is too old
//!    └─────────────────────────────────┘
//! ```
//!
//! The first way that the server does not refuse is taken. Objects become events as they come and
//! are not kept; those that are gone are told of once a list is complete, so that nothing goes out
//! of force before.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::Event;
use super::convert::{Convert, applied};
use super::pace::Pace;
use super::server::{Answer, Failure, Server};
use super::wire::Wire;
use super::wire::frame::{Encoding, ListReader, WatchEvent, WatchReader, WireError};
use crate::error::chain;

/// Objects on a page, where there have to be pages.
const PAGE_SIZE: u32 = 500;
/// A watch is asked to end after this or up to twice as long, as client-go has it, so that servers
/// can spread their watches anew.
const WATCH_SECONDS: u64 = 300;
/// And is given up so much later.
const WATCH_GRACE: Duration = Duration::from_secs(30);
/// A list, or the first events of a watch, that stands still for so long will not go on.
const STALL: Duration = Duration::from_secs(30);
/// A streaming list says within this when it is complete, or the server does not know of such.
const END_OF_LIST: Duration = Duration::from_secs(10);
/// A watch that ends earlier without any event is a failure.
const SHORT: Duration = Duration::from_secs(1);
/// Those who waited for the same server do not go on in the same moment.
const AFTER_OUTAGE: Duration = Duration::from_millis(100);
/// Deepest trouble with lists before they are asked for in pages.
const LIST_FAILURES: u32 = 2;

/// What is followed.
#[derive(Debug)]
pub(super) struct Resource {
    /// As objects name it.
    pub(super) kind: &'static str,
    /// Below the server's URL.
    pub(super) path: &'static str,
    /// What objects are chosen by.
    pub(super) label_selector: Option<String>,
    pub(super) field_selector: Option<String>,
}

/// How the first list is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Stream,
    List,
    Pages,
}

/// What several reflectors of one server know together.
#[derive(Debug, Clone)]
pub(super) struct Recovery(watch::Sender<u64>);

impl Recovery {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    /// The server is there.
    fn tell(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// Waits, but no longer than until somebody finds the server there.
    async fn wait(&self, pause: Duration) {
        let mut told = self.0.subscribe();
        if timeout(pause, told.changed()).await.is_ok() {
            tokio::time::sleep(AFTER_OUTAGE.mul_f64(fastrand::f64())).await;
        }
    }
}

/// Why following has come to a halt.
enum Halt {
    /// Nobody takes events any more.
    Closed,
    /// The version is not known to the server any more.
    Expired(String),
    Failed(Failure),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused {
                code: 410, cause, ..
            } => Self::Expired(cause),
            failure => Self::Failed(failure),
        }
    }
}

impl From<WireError> for Halt {
    fn from(error: WireError) -> Self {
        Self::Failed(Failure::broken(chain(&error)))
    }
}

/// Follows one kind of object.
pub(super) struct Reflector<W, C: Convert<W::Object>>
where
    W: Wire,
{
    server: Arc<Server>,
    resource: Resource,
    convert: C,
    events: mpsc::Sender<Event>,
    recovery: Recovery,
    pace: Pace,
    method: Method,
    n_list_failures: u32,
    /// What has been seen; `None` without a complete list.
    version: Option<String>,
    /// The version that a list is to have at least: what was seen before. Nothing after it has
    /// expired, so that the server says the newest.
    not_older_than: Option<String>,
    wire: PhantomData<W>,
}

impl<W: Wire, C: Convert<W::Object>> Reflector<W, C> {
    pub(super) fn new(
        server: Arc<Server>,
        resource: Resource,
        convert: C,
        events: mpsc::Sender<Event>,
        recovery: Recovery,
    ) -> Self {
        Self {
            server,
            resource,
            convert,
            events,
            recovery,
            pace: Pace::default(),
            method: Method::Stream,
            n_list_failures: 0,
            version: None,
            not_older_than: Some("0".into()),
            wire: PhantomData,
        }
    }

    /// Follows until nobody takes events any more.
    pub(super) async fn run(mut self) {
        loop {
            let result = match (&self.version, self.method) {
                (Some(version), _) => {
                    let version = version.clone();
                    self.watch(&version).await
                }
                (None, Method::Stream) => self.stream().await,
                (None, Method::List) => self.list(None).await,
                (None, Method::Pages) => self.list(Some(PAGE_SIZE)).await,
            };
            match result {
                Ok(()) => {}
                Err(Halt::Closed) => return,
                Err(Halt::Expired(cause)) => self.start_over(&cause),
                Err(Halt::Failed(failure)) => {
                    if !self.does_without(&failure) {
                        self.pause(&failure).await;
                    }
                }
            }
        }
    }

    /// Lists anew: what was seen is too old.
    fn start_over(&mut self, cause: &str) {
        info!(kind = self.resource.kind, cause, "listing again");
        // From a cache, the same could come again.
        self.not_older_than = None;
        self.version = None;
    }

    /// Whether the failure says that this server does not know the way that was taken; the next one
    /// is taken at once then.
    fn does_without(&mut self, failure: &Failure) -> bool {
        let kind = self.resource.kind;
        if self.version.is_some() {
            return false;
        }
        let code = match failure {
            Failure::Refused { code, .. } => *code,
            Failure::Broken { .. } | Failure::Unreachable { .. } => 0,
        };
        if code == 400 && self.resource.field_selector.is_some() && kind != "Node" {
            // Servers before 1.32. What they send too much is sorted out here.
            info!(
                kind,
                cause = failure.cause(),
                "asking without a field selector"
            );
            self.resource.field_selector = None;
            return true;
        }
        let is_refusal = matches!(code, 400 | 404 | 405 | 406 | 413 | 415 | 422);
        match self.method {
            Method::Stream if is_refusal && code != 404 => {
                debug!(kind, cause = failure.cause(), "no streaming lists here");
                self.method = Method::List;
                true
            }
            Method::List => {
                self.n_list_failures += 1;
                let is_pages = is_refusal && code != 404 || self.n_list_failures >= LIST_FAILURES;
                if is_pages {
                    debug!(kind, cause = failure.cause(), "listing in pages");
                    self.method = Method::Pages;
                }
                is_pages && is_refusal
            }
            Method::Stream | Method::Pages => false,
        }
    }

    async fn pause(&mut self, failure: &Failure) {
        let is_outage = matches!(failure, Failure::Unreachable { .. });
        let pause = self
            .pace
            .failed(Instant::now(), is_outage, failure.retry_after());
        let (kind, cause) = (self.resource.kind, failure.cause());
        if self.pace.is_news(cause) {
            warn!(kind, cause, "watch failed; retrying");
        } else {
            debug!(kind, cause, ?pause, "watch failed; retrying");
        }
        if is_outage && failure.retry_after().is_none() {
            self.recovery.wait(pause).await;
            // Somebody else may be there now, who can do more.
            if self.version.is_none() && self.method != Method::Stream {
                self.method = Method::Stream;
                self.n_list_failures = 0;
            }
        } else {
            tokio::time::sleep(pause).await;
        }
    }

    fn worked(&mut self) {
        if let Some(outage) = self.pace.worked(Instant::now()) {
            info!(kind = self.resource.kind, ?outage, "watch works again");
        }
    }

    fn query(&self, more: &str) -> String {
        let mut query = format!("{}?{more}", self.resource.path);
        for (name, selector) in [
            ("labelSelector", &self.resource.label_selector),
            ("fieldSelector", &self.resource.field_selector),
        ] {
            if let Some(selector) = selector {
                query.push_str(&format!("&{name}={}", encode(selector)));
            }
        }
        query
    }

    async fn get(&self, more: &str) -> Result<Answer, Halt> {
        let answer = self.server.get(&self.query(more)).await?;
        self.recovery.tell();
        Ok(answer)
    }

    async fn send(&self, event: Event) -> Result<(), Halt> {
        self.events.send(event).await.map_err(|_| Halt::Closed)
    }

    async fn apply(&self, object: W, names: &mut BTreeSet<C::Name>) -> Result<(), Halt> {
        let object = object.into_object();
        names.insert(self.convert.name(&object));
        self.send(applied(&self.convert, &object)).await
    }

    /// A list is complete.
    async fn complete(&mut self, listed: Listed<C::Name>, version: String) -> Result<(), Halt> {
        let Listed {
            names,
            how,
            encoding,
            bytes,
            started,
        } = listed;
        info!(
            kind = self.resource.kind,
            count = names.len(),
            how,
            %encoding,
            bytes,
            took = ?started.elapsed(),
            "list complete"
        );
        self.n_list_failures = 0;
        self.not_older_than = Some(version.clone());
        self.version = Some(version);
        self.send(self.convert.listed(names)).await
    }

    /// Lists, all at once or in pages.
    async fn list(&mut self, page_size: Option<u32>) -> Result<(), Halt> {
        let how = if page_size.is_some() {
            "in pages"
        } else {
            "at once"
        };
        let mut listed = Listed::new(how);
        let mut page = String::new();
        loop {
            let query = match (page_size, page.as_str(), &self.not_older_than) {
                (Some(size), "", _) => format!("limit={size}"),
                (Some(size), page, _) => format!("limit={size}&continue={}", encode(page)),
                (None, _, Some(version)) => format!("resourceVersion={}", encode(version)),
                (None, ..) => "resourceVersion=".into(),
            };
            let Answer { encoding, mut body } = self.get(&query).await?;
            listed.encoding = encoding;
            let mut reader = ListReader::new(encoding);
            let mut objects = Vec::new();
            while let Some(chunk) = next(&mut body, STALL).await? {
                listed.bytes += chunk.len();
                reader.read(&chunk, &mut objects)?;
                for object in objects.drain(..) {
                    self.apply(object, &mut listed.names).await?;
                }
            }
            let metadata = reader.finish()?;
            if metadata.continue_.is_empty() || page_size.is_none() {
                let version = metadata.resource_version;
                if version.is_empty() {
                    return Err(Failure::broken("received a list without a version").into());
                }
                return self.complete(listed, version).await;
            }
            page = metadata.continue_;
        }
    }

    /// Lists by a watch, and goes on watching.
    async fn stream(&mut self) -> Result<(), Halt> {
        let version = match self.not_older_than.as_deref() {
            // The newest, which such a server has at hand.
            None | Some("0") => String::new(),
            Some(version) => format!("&resourceVersion={}", encode(version)),
        };
        let query = format!(
            "{}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan{version}",
            watch_query()
        );
        self.follow(&query, true).await
    }

    async fn watch(&mut self, version: &str) -> Result<(), Halt> {
        let query = format!("{}&resourceVersion={}", watch_query(), encode(version));
        self.follow(&query, false).await
    }

    /// Takes the events of a watch, until it ends.
    async fn follow(&mut self, query: &str, is_list: bool) -> Result<(), Halt> {
        let started = Instant::now();
        let mut listed = is_list.then(|| Listed::new("streamed"));
        let answer = self.get(query).await;
        let Answer { encoding, mut body } = match answer {
            Err(Halt::Failed(failure)) if is_list => return Err(Halt::Failed(failure)),
            answer => answer?,
        };
        if let Some(listed) = &mut listed {
            listed.encoding = encoding;
        }
        let mut reader = WatchReader::new(encoding);
        let (mut events, mut n_events) = (Vec::new(), 0_u64);
        let end = started + Duration::from_secs(WATCH_SECONDS * 2) + WATCH_GRACE;
        loop {
            let patience = match &listed {
                Some(_) => END_OF_LIST,
                None => end.saturating_duration_since(Instant::now()),
            };
            let chunk = match next(&mut body, patience).await {
                Err(_) if listed.is_some() && n_events > 0 && self.is_stream_unknown(&listed) => {
                    return Err(Failure::Refused {
                        code: 422,
                        cause: "the end of the streaming list was not told".into(),
                        retry_after: None,
                    }
                    .into());
                }
                chunk => chunk?,
            };
            let Some(chunk) = chunk else { break };
            if let Some(listed) = &mut listed {
                listed.bytes += chunk.len();
            }
            reader.read(&chunk, &mut events)?;
            for event in events.drain(..) {
                n_events += 1;
                self.take(event, &mut listed).await?;
            }
            if listed.is_none() {
                self.worked();
            }
        }
        if listed.is_some() {
            return Err(Failure::broken("the watch ended before its list was complete").into());
        }
        if !reader.is_between_events() {
            return Err(WireError::Cut.into());
        }
        if n_events == 0 && started.elapsed() < SHORT {
            return Err(Failure::broken("the watch ended at once, without an event").into());
        }
        self.worked();
        Ok(())
    }

    /// Whether a streaming list stands still that has told of objects: a server that does not know
    /// such lists tells of them, too.
    fn is_stream_unknown(&self, listed: &Option<Listed<C::Name>>) -> bool {
        listed
            .as_ref()
            .is_some_and(|listed| !listed.names.is_empty())
    }

    async fn take(
        &mut self,
        event: WatchEvent<W>,
        listed: &mut Option<Listed<C::Name>>,
    ) -> Result<(), Halt> {
        match event {
            WatchEvent::Applied(object) => {
                let version = object.metadata().resource_version.clone();
                match listed {
                    Some(listed) => self.apply(object, &mut listed.names).await,
                    None => {
                        self.apply(object, &mut BTreeSet::new()).await?;
                        self.seen(version);
                        Ok(())
                    }
                }
            }
            WatchEvent::Deleted(object) => {
                let version = object.metadata().resource_version.clone();
                let name = self.convert.name(&object.into_object());
                if let Some(listed) = listed {
                    listed.names.remove(&name);
                }
                self.send(self.convert.deleted(name)).await?;
                if listed.is_none() {
                    self.seen(version);
                }
                Ok(())
            }
            WatchEvent::Bookmark {
                version,
                ends_initial_events,
            } => match listed.take() {
                Some(list) if ends_initial_events => self.complete(list, version).await,
                Some(list) => {
                    *listed = Some(list);
                    Ok(())
                }
                None => {
                    self.seen(version);
                    Ok(())
                }
            },
            WatchEvent::Error(status) => {
                let failure = Failure::of_status(500, Some(&status), None);
                // Servers that cannot stream lists say so in many ways.
                let is_first = listed.as_ref().is_some_and(|list| list.names.is_empty());
                match failure {
                    Failure::Unreachable { cause, .. } if is_first && status.code == 500 => {
                        Err(Failure::Refused {
                            code: 422,
                            cause,
                            retry_after: None,
                        }
                        .into())
                    }
                    failure => Err(failure.into()),
                }
            }
        }
    }

    fn seen(&mut self, version: String) {
        if !version.is_empty() {
            self.not_older_than = Some(version.clone());
            self.version = Some(version);
        }
    }
}

/// A list that is being made.
struct Listed<N> {
    names: BTreeSet<N>,
    how: &'static str,
    encoding: Encoding,
    bytes: usize,
    started: Instant,
}

impl<N: Ord> Listed<N> {
    fn new(how: &'static str) -> Self {
        Self {
            names: BTreeSet::new(),
            how,
            encoding: Encoding::Json,
            bytes: 0,
            started: Instant::now(),
        }
    }
}

fn encode(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

fn watch_query() -> String {
    let seconds = WATCH_SECONDS + fastrand::u64(0..WATCH_SECONDS);
    format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}")
}

/// The next piece of an answer; `None` at its end.
async fn next(
    body: &mut hyper::body::Incoming,
    patience: Duration,
) -> Result<Option<hyper::body::Bytes>, Failure> {
    loop {
        let frame = timeout(patience, body.frame()).await.map_err(|_| {
            Failure::unreachable(format!("nothing has come for {} s", patience.as_secs()))
        })?;
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame.map_err(|error| Failure::unreachable(chain(&error)))?;
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
}
