//! From manifest files to events, followed as they change.

use std::collections::BTreeSet;

use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use super::Event;
use super::convert::{Convert, Nodes, Places, ServiceCidrs, Services, Slices, applied};
use super::manifests::{Change, Object, ObjectKey, ObjectKind, Source, Update, Watcher};
use nftproxy_core::engine;
use nftproxy_core::model::{ServiceName, SliceName};

/// Turns what a source says into events, for the node of this name.
pub(crate) struct Converter {
    services: Services,
    slices: Slices,
    node_name: String,
}

impl Converter {
    pub(crate) fn new(node_name: &str, allow_external_ips: bool) -> Self {
        Self {
            services: Services { allow_external_ips },
            slices: Slices {
                node_name: node_name.to_owned(),
                places: None,
            },
            node_name: node_name.to_owned(),
        }
    }

    /// The same, noting where endpoints are.
    pub(crate) fn noting(mut self, places: Places) -> Self {
        self.slices.places = Some(places);
        self
    }

    /// The event that a change amounts to; `None` for a Node that is not this one.
    pub(crate) fn event(&self, change: Change) -> Option<Event> {
        Some(match change {
            Change::Apply(Object::Service(object)) => applied(&self.services, &*object),
            Change::Apply(Object::EndpointSlice(object)) => applied(&self.slices, &*object),
            Change::Apply(Object::ServiceCidr(object)) => applied(&ServiceCidrs, &*object),
            Change::Apply(Object::Node(object)) => self
                .is_this_node(Nodes.name(&object))
                .then(|| applied(&Nodes, &*object))?,
            Change::Delete(ObjectKey {
                kind,
                namespace,
                name,
            }) => match kind {
                ObjectKind::Service => self.services.deleted(ServiceName::new(&namespace, &name)),
                ObjectKind::EndpointSlice => self.slices.deleted(SliceName::new(&namespace, &name)),
                ObjectKind::ServiceCidr => ServiceCidrs.deleted(name),
                ObjectKind::Node => self
                    .is_this_node(name.clone())
                    .then(|| Nodes.deleted(name))?,
            },
        })
    }

    fn is_this_node(&self, name: String) -> bool {
        name == self.node_name
    }
}

/// Reads the manifests and follows their changes, until the receiver is gone.
pub(crate) async fn follow(
    mut source: Source,
    mut watcher: Watcher,
    converter: Converter,
    events: Sender<Event>,
) {
    let mut update = source.load();
    info!(
        objects = update.changes.len(),
        ignored = source.n_ignored(),
        "manifests read"
    );
    let mut is_first = true;
    loop {
        report(&update);
        let mut batch: Vec<_> = update
            .changes
            .into_iter()
            .filter_map(|change| converter.event(change))
            .collect();
        if std::mem::take(&mut is_first) {
            let (services, slices) = names(&batch);
            batch.push(engine::Event::ServicesListed(services).into());
            batch.push(engine::Event::SlicesListed(slices).into());
        }
        for event in batch {
            if events.send(event).await.is_err() {
                return;
            }
        }
        let Some(touched) = watcher.changed().await else {
            return;
        };
        update = source.rescan(&touched);
    }
}

/// What is there from the start: the files are a complete list of themselves.
fn names(events: &[Event]) -> (BTreeSet<ServiceName>, BTreeSet<SliceName>) {
    let mut services = BTreeSet::new();
    let mut slices = BTreeSet::new();
    for event in events {
        match event {
            Event::Cluster(engine::Event::ServiceApplied(service)) => {
                services.insert(service.name.clone());
            }
            Event::Cluster(engine::Event::SliceApplied(slice)) => {
                slices.insert(slice.name.clone());
            }
            _ => {}
        }
    }
    (services, slices)
}

fn report(update: &Update) {
    for problem in &update.problems {
        warn!("{problem}; the last good state of this file stays in force");
    }
    for path in &update.recovered {
        info!("{}: good again", path.display());
    }
    let n_changes = update.changes.len();
    if n_changes > 0 {
        info!(n_changes, "manifests changed");
    }
}
