//! One kind of object, followed for ever: a list, then watches that go on from it.
//!
//! A list is asked for in the way that costs the server least: as a stream, from its cache in one
//! piece, or in pages; what a server refuses is remembered for a while. Objects are handed on as
//! they come, and stay in force until a whole list says which are left.
//! Entry point: [`Reflector::run`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::backoff;
use super::client::{Client, Response};
use super::failure::Failure;
use super::frames::Frames;
use super::list::List;
use super::query::Query;
use super::recorder::Recorder;
use super::recovery::{Recovery, Streak};
use super::status::Status;
use super::ways::{Refused, Way};
use super::wire::protobuf::Unreadable;
use super::wire::{Encoding, Item, ListMeta, Object, WatchEvent};
use crate::error::chain;
use crate::source::Event;
use crate::source::convert::{Convert, Objects};

/// Objects in a page, as Go's clients ask for.
const PAGE_SIZE: usize = 500;
/// Watches end after a time between this and twice as much, so that those of many nodes do not
/// begin anew together.
const WATCH_TIME: Duration = Duration::from_secs(300);
/// How long after its time the server may take to end a watch.
const WATCH_MARGIN: Duration = Duration::from_secs(30);
/// While a list is coming, there is no silence longer than this.
const LIST_SILENCE: Duration = Duration::from_secs(30);
/// A watch that lived so long has worked, even if nothing happened.
const LIFE: Duration = Duration::from_secs(5);
/// One that ends sooner has hardly begun.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// So many short watches in a row may end with events; more are a failure.
const MAX_SHORT: u32 = 2;
/// How often a server is asked for a kind that it does not have.
const ABSENCE: Duration = Duration::from_secs(600);
/// Watches that many nodes lost together begin anew over this time.
const SPREAD: Duration = Duration::from_millis(500);

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub(super) kind: &'static str,
    pub(super) path: &'static str,
    pub(super) labels: String,
    pub(super) fields: String,
    /// Whether the field selector only saves traffic, so that a server may do without.
    pub(super) can_do_without_fields: bool,
    /// Whether a server may not have the kind at all.
    pub(super) is_optional: bool,
}

impl Resource {
    /// What kube-proxy calls whoever follows the kind, in its log.
    fn controller(&self) -> &'static str {
        match self.kind {
            "Service" => "service config",
            "EndpointSlice" => "endpoint slice config",
            "ServiceCIDR" => "serviceCIDR config",
            _ => "node config",
        }
    }
}

/// Why a watch is over, if it did not fail.
struct Watched {
    lived: Duration,
    n_events: usize,
}

/// What a list has brought so far.
struct Listing<N> {
    names: BTreeSet<N>,
    n_bytes: usize,
    start: Instant,
}

pub(super) struct Reflector<K: Object, C: Convert<K>> {
    client: Arc<Client>,
    recovery: Arc<Recovery>,
    resource: Resource,
    objects: Objects<K, C>,
    events: Sender<Event>,
    /// Up to where everything is known; none before a list is complete.
    version: Option<String>,
    /// What a new list must not be older than; none if anything is good enough, empty if it must
    /// be the latest.
    not_older_than: Option<String>,
    /// Whether the server may have been restored to a state before that version, or made anew: it
    /// would take a watch from there, and be silent until it gets there.
    is_version_doubtful: bool,
    /// By server.
    refused: Vec<Refused>,
    /// The way to list in the next attempt, if it is not to be the best: the server is in trouble,
    /// and one way is tried at a time.
    next_way: Option<Way>,
    server: usize,
    /// Whether a list was complete ever.
    is_synced: bool,
    streak: Streak,
    n_short: u32,
    kind: std::marker::PhantomData<fn() -> K>,
}

/// Ends a watch for good.
struct NobodyListens;

enum Stop {
    Failed(Failure),
    NobodyListens,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<NobodyListens> for Stop {
    fn from(_: NobodyListens) -> Self {
        Self::NobodyListens
    }
}

impl From<Unreadable> for Stop {
    fn from(error: Unreadable) -> Self {
        Failure::Unreadable(error.to_string()).into()
    }
}

impl<K: Object, C: Convert<K>> Reflector<K, C> {
    pub(super) fn new(
        client: Arc<Client>,
        recovery: Arc<Recovery>,
        resource: Resource,
        convert: C,
        events: Sender<Event>,
        recorder: Recorder,
    ) -> Self {
        let refused = vec![Refused::default(); client.n_servers()];
        Self {
            client,
            recovery,
            resource,
            objects: Objects::telling(convert, move |object, message| {
                recorder.record_problem(object, message);
            }),
            events,
            version: None,
            not_older_than: None,
            is_version_doubtful: false,
            refused,
            next_way: None,
            server: 0,
            is_synced: false,
            streak: Streak::default(),
            n_short: 0,
            kind: std::marker::PhantomData,
        }
    }

    /// Runs until nobody receives events any more.
    pub(super) async fn run(mut self) {
        let controller = self.resource.controller();
        info!("Starting {controller} controller");
        info!(controller, "Waiting for caches to sync");
        loop {
            let result = match self.version.clone() {
                None => self.list().await,
                Some(version) => self.watch(version).await,
            };
            let failure = match result {
                Ok(Some(watched)) => match self.judge(&watched) {
                    Some(failure) => failure,
                    None => {
                        if watched.lived < WATCH_TIME {
                            // The server stops, perhaps, and has told all nodes.
                            sleep(backoff::part_of(SPREAD)).await;
                        }
                        continue;
                    }
                },
                Ok(None) => continue,
                Err(Stop::NobodyListens) => return,
                Err(Stop::Failed(failure)) => failure,
            };
            self.recover(failure).await;
        }
    }

    /// Says what went wrong, and waits until it is time for another attempt.
    async fn recover(&mut self, failure: Failure) {
        let kind = self.resource.kind;
        self.is_version_doubtful |= failure.is_of_server();
        if matches!(failure, Failure::Unreachable) {
            // It has been logged for all, and the next request waits for its turn.
            return;
        }
        if self.resource.is_optional && failure.is_absent() {
            if self.recovery.is_news(kind, &failure.cause()) {
                info!(kind, "the API server has none of this kind");
            }
            sleep(ABSENCE + backoff::part_of(ABSENCE)).await;
            return;
        }
        if self.recovery.is_news(kind, &failure.cause()) {
            warn!(kind, error = %failure, "watch failed; retrying");
        } else {
            debug!(kind, error = %failure, "watch failed; retrying");
        }
        if self.resumes_too_late(&failure) {
            let had_version = self.version.take().is_some();
            self.not_older_than = Some(String::new());
            if had_version && self.streak.expires() {
                return;
            }
        }
        self.recovery.wait(&mut self.streak, &failure).await;
    }

    /// Whether the version that we asked for is one that the server does not have, or not yet.
    fn resumes_too_late(&self, failure: &Failure) -> bool {
        let is_too_new = matches!(
            failure,
            Failure::Answer { code: 504, message, .. } if message.contains("resource version")
        );
        failure.is_expired() || is_too_new
    }

    /// Whether a watch that ended in good order is a failure all the same.
    fn judge(&mut self, watched: &Watched) -> Option<Failure> {
        let is_short = watched.lived < SHORT_LIFE;
        self.n_short = if is_short { self.n_short + 1 } else { 0 };
        let has_worked = watched.lived >= LIFE
            || (watched.n_events > 0 && (!is_short || self.n_short <= MAX_SHORT));
        if has_worked {
            self.works();
            None
        } else {
            Some(Failure::Short)
        }
    }

    fn is_failing(&self) -> bool {
        self.streak.goes_on()
    }

    /// The server is as it should be.
    fn works(&mut self) {
        if self.recovery.is_over(self.resource.kind) {
            info!(kind = self.resource.kind, "watch works again");
        }
        self.streak = Streak::default();
    }

    /// The server answers, which others may be waiting for.
    fn answers(&self) {
        if self.is_failing() {
            self.recovery.works();
        }
    }

    /// Lists, in the best way that the server takes; a streamed list goes on as a watch.
    async fn list(&mut self) -> Result<Option<Watched>, Stop> {
        let best = self.refused[self.server].best_way();
        let first = self.next_way.take().map_or(best, |way| way.max(best));
        let mut way = first;
        loop {
            let result = match way {
                Way::Streamed => self.stream(None).await.map(Some),
                Way::Cached | Way::Paged => self.list_in_pages(way).await.map(|()| None),
            };
            match result {
                Ok(watched) => {
                    if way != first {
                        self.refused[self.server].remember(first, way);
                    }
                    return Ok(watched);
                }
                Err(Stop::Failed(failure)) if self.drops_fields(&failure) => {}
                Err(Stop::Failed(failure)) if failure.is_refusal() => {
                    debug!(kind = self.resource.kind, ?way, error = %failure, "list refused");
                    let next = way.next();
                    match next {
                        Some(next) if !self.is_failing() || !failure.is_trouble() => way = next,
                        _ => {
                            self.next_way = next;
                            return Err(failure.into());
                        }
                    }
                }
                Err(stop) => return Err(stop),
            }
        }
    }

    /// Whether it was the field selector that the server refused, and we can do without.
    fn drops_fields(&mut self, failure: &Failure) -> bool {
        let Failure::Answer {
            code: 400, message, ..
        } = failure
        else {
            return false;
        };
        let refused = &mut self.refused[self.server].fields;
        let is_it =
            message.contains("field label not supported") || message.contains("field selector");
        if !self.resource.can_do_without_fields || refused.is_some() || !is_it {
            return false;
        }
        let (kind, selector) = (self.resource.kind, &self.resource.fields);
        info!(
            kind,
            selector, "the API server has no such field selector; going on without"
        );
        *refused = Some(Instant::now());
        true
    }

    fn query(&self) -> Query {
        let mut query = Query::new(self.resource.path);
        query.add("labelSelector", &self.resource.labels);
        if self.refused[self.server].fields.is_none() {
            query.add("fieldSelector", &self.resource.fields);
        }
        query
    }

    async fn get(&mut self, query: &Query) -> Result<(Response, Encoding), Stop> {
        let response = self.client.get(query.as_str()).await?;
        self.server = response.server;
        let encoding = Encoding::of(&response.headers)?;
        self.answers();
        Ok((response, encoding))
    }

    async fn list_in_pages(&mut self, way: Way) -> Result<(), Stop> {
        let mut listing = Listing::new();
        let mut next: Option<String> = None;
        // Without a limit, once the server has forgotten the list whose pages we turn.
        let mut is_whole = way == Way::Cached;
        loop {
            let mut query = self.query();
            if let Some(next) = &next {
                query.add("limit", &PAGE_SIZE.to_string());
                query.add("continue", next);
            } else if !is_whole {
                query.add("limit", &PAGE_SIZE.to_string());
            } else if way == Way::Cached {
                let version = self.not_older_than.as_deref().unwrap_or("0");
                query.add("resourceVersion", version);
            }
            let (meta, encoding) = match self.page(&query, &mut listing).await {
                Err(Stop::Failed(failure)) if failure.is_expired() && next.is_some() => {
                    next = None;
                    is_whole = true;
                    listing.names.clear();
                    continue;
                }
                page => page?,
            };
            next = meta.next;
            if next.is_none() {
                let how = if way == Way::Cached {
                    "whole"
                } else {
                    "in pages"
                };
                self.listed(listing, &meta.version, encoding, how).await?;
                return Ok(());
            }
        }
    }

    async fn page(
        &mut self,
        query: &Query,
        listing: &mut Listing<C::Name>,
    ) -> Result<(ListMeta, Encoding), Stop> {
        let (mut response, encoding) = self.get(query).await?;
        let mut list = List::new(encoding);
        while let Some(chunk) = chunk(&mut response, LIST_SILENCE)
            .await
            .map_err(Failure::of_list)?
        {
            listing.n_bytes += chunk.len();
            for item in list.push(&chunk)? {
                self.item(Item::decode(encoding, &item)?, Some(listing))
                    .await?;
            }
        }
        Ok((list.finish()?, encoding))
    }

    /// Hands an object on.
    async fn item(
        &mut self,
        item: Item<K>,
        listing: Option<&mut Listing<C::Name>>,
    ) -> Result<(), NobodyListens> {
        if let Some(listing) = listing {
            listing.names.extend(self.objects.name(item.object()));
        }
        match item {
            Item::Good(object) => match self.objects.applied(&object) {
                Some(event) => self.send(event).await,
                None => Ok(()),
            },
            Item::Bad(object, error) => {
                let metadata = object.metadata();
                let namespace = metadata.namespace.as_deref().unwrap_or_default();
                let name = metadata.name.as_deref().unwrap_or_default();
                warn!(
                    kind = self.resource.kind,
                    namespace, name, %error,
                    "the object cannot be read; what was known of it stays in force"
                );
                Ok(())
            }
        }
    }

    async fn send(&self, event: Event) -> Result<(), NobodyListens> {
        self.events.send(event).await.map_err(|_| NobodyListens)
    }

    /// A list is complete.
    async fn listed(
        &mut self,
        listing: Listing<C::Name>,
        version: &str,
        encoding: Encoding,
        how: &str,
    ) -> Result<(), Stop> {
        if version.is_empty() {
            return Err(Failure::Unreadable("a list without a version".into()).into());
        }
        info!(
            kind = self.resource.kind,
            count = listing.names.len(),
            bytes = listing.n_bytes,
            encoding = encoding.name(),
            how,
            ms = u64::try_from(listing.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            "list complete"
        );
        self.client.metrics().listed(self.resource.kind);
        let event = self.objects.listed(listing.names);
        self.send(event).await?;
        if !std::mem::replace(&mut self.is_synced, true) {
            info!(controller = self.resource.controller(), "Caches are synced");
        }
        self.learned(version);
        Ok(())
    }

    /// All up to this version is known.
    fn learned(&mut self, version: &str) {
        self.is_version_doubtful = false;
        self.version = Some(version.to_owned());
        self.not_older_than = Some(version.to_owned());
    }

    /// Watches from a version on.
    async fn watch(&mut self, version: String) -> Result<Option<Watched>, Stop> {
        if self.is_version_doubtful {
            self.confirm(&version).await?;
        }
        match self.stream(Some(version)).await {
            Err(Stop::Failed(failure)) if self.drops_fields(&failure) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Asks whether the server has come as far as a version: as little as can be asked with one.
    async fn confirm(&mut self, version: &str) -> Result<(), Stop> {
        let mut query = self.query();
        query.add("limit", "1");
        query.add("resourceVersion", version);
        query.add("resourceVersionMatch", "NotOlderThan");
        match self.get(&query).await {
            // The connection can be used again once all of the answer has been read.
            Ok((mut response, _)) => while chunk(&mut response, LIST_SILENCE).await?.is_some() {},
            // It does not know how to answer that.
            Err(Stop::Failed(Failure::Answer { code: 400, .. })) => {}
            Err(stop) => return Err(stop),
        }
        self.is_version_doubtful = false;
        Ok(())
    }

    /// Watches from a version on, or, without one, from a list that comes first.
    async fn stream(&mut self, version: Option<String>) -> Result<Watched, Stop> {
        let time = WATCH_TIME + backoff::part_of(WATCH_TIME);
        let mut query = self.query();
        query.add("watch", "true");
        query.add("allowWatchBookmarks", "true");
        query.add("timeoutSeconds", &time.as_secs().to_string());
        let mut listing = None;
        if let Some(version) = &version {
            query.add("resourceVersion", version);
        } else {
            let not_older_than = self.not_older_than.as_deref().unwrap_or_default();
            query.add("sendInitialEvents", "true");
            query.add("resourceVersionMatch", "NotOlderThan");
            query.add("resourceVersion", not_older_than);
            listing = Some(Listing::new());
        }
        let (mut response, encoding) = self.get(&query).await?;
        self.client.metrics().watching(self.resource.kind);
        let start = Instant::now();
        let end = start + time + WATCH_MARGIN;
        let mut frames = Frames::new(encoding);
        let mut n_events = 0;
        loop {
            while let Some(frame) = frames.next()? {
                n_events += 1;
                self.event(&frame, encoding, &mut listing).await?;
            }
            let patience = match &listing {
                Some(_) => LIST_SILENCE,
                None => end.saturating_duration_since(Instant::now()),
            };
            let is_proving = self.is_failing() && listing.is_none();
            let chunk = tokio::select! {
                chunk = chunk(&mut response, patience) => chunk,
                // It need not end before we may say that it works.
                () = sleep_until(start + LIFE), if is_proving => {
                    self.works();
                    continue;
                }
            };
            match chunk {
                Ok(Some(chunk)) => {
                    if let Some(listing) = &mut listing {
                        listing.n_bytes += chunk.len();
                    }
                    frames.push(&chunk);
                }
                Ok(None) => break,
                Err(Failure::Silent(_)) if listing.is_none() => break,
                Err(failure) if listing.is_some() => return Err(failure.of_list().into()),
                Err(failure) => return Err(failure.into()),
            }
        }
        if let Some(frame) = frames.rest() {
            n_events += 1;
            self.event(&frame, encoding, &mut listing).await?;
        }
        if listing.is_some() {
            return Err(Failure::NoList.into());
        }
        Ok(Watched {
            lived: start.elapsed(),
            n_events,
        })
    }

    /// Takes one event of a watch.
    async fn event(
        &mut self,
        frame: &[u8],
        encoding: Encoding,
        listing: &mut Option<Listing<C::Name>>,
    ) -> Result<(), Stop> {
        let version = match WatchEvent::decode(encoding, frame)? {
            WatchEvent::Applied(item) => {
                let version = version_of(item.object());
                self.item(item, listing.as_mut()).await?;
                version
            }
            WatchEvent::Deleted(object) => {
                if let Some(name) = self.objects.name(&object) {
                    if let Some(listing) = listing {
                        listing.names.remove(&name);
                    }
                    let event = self.objects.deleted(name);
                    self.send(event).await?;
                }
                version_of(&object)
            }
            WatchEvent::Bookmark { version, ends_list } => {
                if ends_list && let Some(listing) = listing.take() {
                    self.listed(listing, &version, encoding, "streamed").await?;
                    return Ok(());
                }
                version
            }
            WatchEvent::Error(status) => return Err(refusal(status).into()),
            WatchEvent::Other(kind) => {
                debug!(kind = self.resource.kind, "an event of type {kind:?}");
                return Ok(());
            }
        };
        // While a list comes, versions say nothing of what is still to come.
        if listing.is_none() {
            if !version.is_empty() {
                self.learned(&version);
            }
            if self.is_failing() && self.n_short <= MAX_SHORT {
                self.works();
            }
        }
        Ok(())
    }
}

impl<N> Listing<N> {
    fn new() -> Self {
        Self {
            names: BTreeSet::new(),
            n_bytes: 0,
            start: Instant::now(),
        }
    }
}

/// More of an answer's body; none at its end.
async fn chunk(response: &mut Response, patience: Duration) -> Result<Option<Bytes>, Failure> {
    loop {
        match timeout(patience, response.body.frame()).await {
            // Trailers say nothing.
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(chunk) => return Ok(Some(chunk)),
                Err(_) => continue,
            },
            Ok(Some(Err(error))) => return Err(Failure::Broken(chain(&error))),
            Ok(None) => return Ok(None),
            Err(_) => return Err(Failure::Silent("nothing more".into())),
        }
    }
}

fn version_of(object: &impl Object) -> String {
    object
        .metadata()
        .resource_version
        .clone()
        .unwrap_or_default()
}

/// What an event that is an error comes down to.
fn refusal(status: Status) -> Failure {
    Failure::Answer {
        code: if status.code == 0 { 500 } else { status.code },
        reason: status.reason,
        message: status.message,
        retry_after: status.retry_after,
    }
}
