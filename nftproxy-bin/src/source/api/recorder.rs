//! Events for people who look at objects with kubectl, limited and merged as Kubernetes' own
//! recorder does it.
//!
//! What happens again within [`SERIES`] is one Event that counts; each object gets a burst of them
//! and then one now and then. Nobody waits for an Event, and one that cannot be written is lost.
//! Entry point: [`Recorder`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::client::{Client, Question};
use super::failure::Failure;
use super::limit::Limit;

use crate::wall_clock;

/// What may wait to be written.
const QUEUE: usize = 256;
/// How long after its last occurrence a series is over.
const SERIES: Duration = Duration::from_secs(6 * 60);
/// Events of an object that may come at once.
const BURST: u32 = 25;
/// How long it takes until there may be one more.
const REFILL: Duration = Duration::from_secs(300);
/// How long the end of the process may wait for what is left to write.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Events per second, and at once.
const QPS: f32 = 5.0;
const QPS_BURST: u32 = 10;
/// As kube-proxy's Events have it: whoever filters by it goes on finding them.
const CONTROLLER: &str = "kube-proxy";

/// What an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Regarding {
    Node(String),
    Service { namespace: String, name: String },
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Occurrence {
    pub(crate) regarding: Regarding,
    pub(crate) is_warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) action: &'static str,
    /// May be empty.
    pub(crate) note: String,
}

/// Has Events written. Clones write to the same place; the default writes nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder(Option<mpsc::Sender<Message>>);

#[derive(Debug)]
enum Message {
    Occurred(Occurrence),
    /// Somebody waits until all before is written.
    Flush(tokio::sync::oneshot::Sender<()>),
}

impl Recorder {
    /// Writes by this client, as a task.
    pub(super) fn start(client: Arc<Client>, instance: String) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(run(client, instance, receiver));
        Self(Some(sender))
    }

    /// Something happened. If too much did, it is lost.
    pub(crate) fn record(&self, occurrence: Occurrence) {
        if let Some(sender) = &self.0
            && sender.try_send(Message::Occurred(occurrence)).is_err()
        {
            debug!("an Event is lost");
        }
    }

    /// Something of a Service cannot be used. Other objects have controllers for owners, which read
    /// no Events.
    pub(super) fn record_problem(&self, object: &str, message: &str) {
        let name = object.strip_prefix("Service ");
        let Some((namespace, name)) = name.and_then(|name| name.split_once('/')) else {
            return;
        };
        self.record(Occurrence {
            regarding: Regarding::Service {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
            is_warning: true,
            reason: "Ignored",
            action: "SyncProxyRules",
            note: message.to_owned(),
        });
    }

    /// Waits until what was recorded is written, but not for long.
    pub(crate) async fn flush(&self) {
        let Some(sender) = &self.0 else { return };
        let (done, is_done) = tokio::sync::oneshot::channel();
        if sender.try_send(Message::Flush(done)).is_ok() {
            let _ = timeout(LAST_WORDS, is_done).await;
        }
    }
}

async fn run(client: Arc<Client>, instance: String, mut messages: Receiver<Message>) {
    let mut merger = Merger::default();
    // Lists and watches do not wait for Events, which have what kube-proxy's client for them has.
    let limit = Limit::new(QPS, QPS_BURST);
    while let Some(message) = messages.recv().await {
        let occurrence = match message {
            Message::Occurred(occurrence) => occurrence,
            Message::Flush(done) => {
                // Whoever waited may be gone.
                let _ = done.send(());
                continue;
            }
        };
        let merged = merger.merge(&occurrence, Instant::now(), wall_clock::now());
        if merged == Merged::Dropped {
            continue;
        }
        limit.take().await;
        let written = match merged {
            Merged::Dropped => Ok(()),
            Merged::New { name, at } => create(&client, &instance, &occurrence, &name, at).await,
            Merged::Again { name, count, at } => {
                count_up(&client, &occurrence, &name, count, at).await
            }
        };
        if let Err(Failure::Unreachable) = &written {
            // It has been said, and is said once.
            debug!(reason = occurrence.reason, "an Event is lost");
        } else if let Err(error) = written {
            warn!(%error, reason = occurrence.reason, "an Event cannot be written");
        }
    }
}

/// Decides what becomes of an occurrence.
#[derive(Default)]
struct Merger {
    series: BTreeMap<Occurrence, Series>,
    budgets: BTreeMap<Regarding, Budget>,
}

struct Series {
    name: String,
    count: u32,
    last: Instant,
    /// The count that was written last.
    written: u32,
}

struct Budget {
    left: u32,
    refilled: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Merged {
    New {
        name: String,
        at: Timestamp,
    },
    Again {
        name: String,
        count: u32,
        at: Timestamp,
    },
    Dropped,
}

impl Merger {
    fn merge(&mut self, occurrence: &Occurrence, now: Instant, at: Timestamp) -> Merged {
        self.series
            .retain(|_, series| now.duration_since(series.last) < SERIES);
        self.budgets
            .retain(|_, budget| now.duration_since(budget.refilled) < REFILL * BURST);
        if let Some(series) = self.series.get_mut(occurrence) {
            series.count += 1;
            series.last = now;
            // Of many, the powers of two are told: all are in the last.
            if series.count < 2 * series.written {
                return Merged::Dropped;
            }
            series.written = series.count;
            return Merged::Again {
                name: series.name.clone(),
                count: series.count,
                at,
            };
        }
        if !self.has_budget(&occurrence.regarding, now) {
            return Merged::Dropped;
        }
        let object = match &occurrence.regarding {
            Regarding::Node(name) | Regarding::Service { name, .. } => name,
        };
        let name = format!("{object}.{:x}", at.as_nanosecond());
        let series = Series {
            name: name.clone(),
            count: 1,
            last: now,
            written: 1,
        };
        self.series.insert(occurrence.clone(), series);
        Merged::New { name, at }
    }

    fn has_budget(&mut self, regarding: &Regarding, now: Instant) -> bool {
        let budget = self.budgets.entry(regarding.clone()).or_insert(Budget {
            left: BURST,
            refilled: now,
        });
        while budget.left < BURST && now.duration_since(budget.refilled) >= REFILL {
            budget.left += 1;
            budget.refilled += REFILL;
        }
        if budget.left == BURST {
            budget.refilled = now;
        }
        let Some(left) = budget.left.checked_sub(1) else {
            return false;
        };
        budget.left = left;
        true
    }
}

impl Regarding {
    fn namespace(&self) -> &str {
        match self {
            // Nodes have none.
            Self::Node(_) => "default",
            Self::Service { namespace, .. } => namespace,
        }
    }

    fn reference(&self) -> Value {
        match self {
            Self::Node(name) => json!({"kind": "Node", "name": name, "apiVersion": "v1"}),
            Self::Service { namespace, name } => {
                json!({"kind": "Service", "namespace": namespace, "name": name, "apiVersion": "v1"})
            }
        }
    }

    fn path(&self) -> String {
        let namespace = self.namespace();
        format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events")
    }
}

async fn create(
    client: &Client,
    instance: &str,
    occurrence: &Occurrence,
    name: &str,
    at: Timestamp,
) -> Result<(), Failure> {
    let question = Question {
        method: Method::POST,
        path: occurrence.regarding.path(),
        body: Some(("application/json", event(instance, occurrence, name, at))),
    };
    client.ask(&question).await.map(drop)
}

fn event(instance: &str, occurrence: &Occurrence, name: &str, at: Timestamp) -> Bytes {
    let Occurrence {
        regarding,
        is_warning,
        reason,
        action,
        note,
    } = occurrence;
    let mut event = json!({
        "kind": "Event",
        "apiVersion": "events.k8s.io/v1",
        "metadata": {"name": name, "namespace": regarding.namespace()},
        "eventTime": micro_time(at),
        "reportingController": CONTROLLER,
        "reportingInstance": format!("{CONTROLLER}-{instance}"),
        "action": action,
        "reason": reason,
        "regarding": regarding.reference(),
        "type": if *is_warning { "Warning" } else { "Normal" },
    });
    if !note.is_empty() {
        event["note"] = note.as_str().into();
    }
    event.to_string().into()
}

async fn count_up(
    client: &Client,
    occurrence: &Occurrence,
    name: &str,
    count: u32,
    at: Timestamp,
) -> Result<(), Failure> {
    let series = json!({"series": {"count": count, "lastObservedTime": micro_time(at)}});
    let question = Question {
        method: Method::PATCH,
        path: format!("{}/{name}", occurrence.regarding.path()),
        body: Some((
            "application/strategic-merge-patch+json",
            series.to_string().into(),
        )),
    };
    client.ask(&question).await.map(drop)
}

/// Kubernetes' `MicroTime`.
fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(note: &str) -> Occurrence {
        Occurrence {
            regarding: Regarding::Node("node-1".into()),
            is_warning: false,
            reason: "Starting",
            action: "StartKubeProxy",
            note: note.into(),
        }
    }

    /// O-84: as recorded of kube-proxy, but for what the API server adds.
    #[test]
    fn the_event_is_kube_proxys() {
        let at = "2026-11-25T02:40:46.131023Z".parse().unwrap();
        let event = event("vm", &occurrence(""), "node-1.18eb29720568928c", at);
        let event: Value = serde_json::from_slice(&event).unwrap();
        let recorded = include_str!("../../testdata/kube-proxy-http/events.json");
        let recorded: Value = serde_json::from_str(recorded).unwrap();
        let recorded = &recorded["items"][0];
        for field in [
            "eventTime",
            "reportingController",
            "reportingInstance",
            "action",
            "reason",
            "regarding",
            "type",
            "note",
        ] {
            assert_eq!(event.get(field), recorded.get(field), "{field}");
        }
        assert_eq!(event["metadata"]["name"], recorded["metadata"]["name"]);
        assert_eq!(event["metadata"]["namespace"], "default");
        assert_eq!(event["apiVersion"], "events.k8s.io/v1");
    }

    /// O-84: what happens again is a series, until it has not for a while.
    #[test]
    fn repetitions_are_one_event_that_counts() {
        let (mut merger, now) = (Merger::default(), Instant::now());
        let at: Timestamp = "2026-11-25T02:40:46.131023Z".parse().unwrap();
        let name = format!("node-1.{:x}", at.as_nanosecond());
        let merged = merger.merge(&occurrence("a"), now, at);
        assert_eq!(
            merged,
            Merged::New {
                name: name.clone(),
                at
            }
        );
        let counts: Vec<_> = (0..8)
            .filter_map(|_| match merger.merge(&occurrence("a"), now, at) {
                Merged::Again { count, .. } => Some(count),
                Merged::Dropped => None,
                Merged::New { .. } => panic!("it is a series"),
            })
            .collect();
        assert_eq!(counts, [2, 4, 8]);
        let later = now + SERIES;
        assert!(matches!(
            merger.merge(&occurrence("a"), later, at),
            Merged::New { .. }
        ));
    }

    #[test]
    fn an_object_has_a_budget() {
        let (mut merger, now) = (Merger::default(), Instant::now());
        let mut n_new = |from: u32, now| {
            let notes = (from..from + 100).map(|note| occurrence(&note.to_string()));
            let merged =
                notes.map(|occurrence| merger.merge(&occurrence, now, Timestamp::UNIX_EPOCH));
            merged.filter(|merged| *merged != Merged::Dropped).count()
        };
        assert_eq!(n_new(0, now), 25);
        assert_eq!(n_new(100, now + REFILL), 1);
        assert_eq!(n_new(200, now + 3 * REFILL), 2);
    }
}
