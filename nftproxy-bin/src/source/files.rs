//! From manifest files to events, followed as they change.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use super::Event;
use super::convert::{Nodes, Objects, Places, ServiceCidrs, Services, Slices};
use super::manifests::{Change, Object, ObjectKey, ObjectKind, Source, Update, Watcher};
use nftproxy_core::engine;
use nftproxy_core::model::{ServiceName, SliceName};

/// Turns what a source says into events, for the node of this name.
pub(crate) struct Converter {
    services: Objects<Service, Services>,
    slices: Objects<EndpointSlice, Slices>,
    service_cidrs: Objects<ServiceCIDR, ServiceCidrs>,
    nodes: Objects<Node, Nodes>,
    node_name: String,
}

impl Converter {
    pub(crate) fn new(node_name: &str, allow_external_ips: bool) -> Self {
        Self {
            services: Objects::new(Services { allow_external_ips }),
            slices: Objects::new(Slices {
                node_name: node_name.to_owned(),
                places: None,
            }),
            service_cidrs: Objects::new(ServiceCidrs),
            nodes: Objects::new(Nodes),
            node_name: node_name.to_owned(),
        }
    }

    /// The same, noting where endpoints are.
    pub(crate) fn noting(mut self, places: Places) -> Self {
        self.slices = Objects::new(Slices {
            node_name: self.node_name.clone(),
            places: Some(places),
        });
        self
    }

    /// The event that a change amounts to; `None` for a Node that is not this one, and for objects
    /// whose names the API server would not have.
    pub(crate) fn event(&mut self, change: Change) -> Option<Event> {
        match change {
            Change::Apply(Object::Service(object)) => self.services.applied(&object),
            Change::Apply(Object::EndpointSlice(object)) => self.slices.applied(&object),
            Change::Apply(Object::ServiceCidr(object)) => self.service_cidrs.applied(&object),
            Change::Apply(Object::Node(object)) => {
                let name = object.metadata.name.as_deref();
                (name == Some(&self.node_name)).then(|| self.nodes.applied(&object))?
            }
            Change::Delete(key) => self.deleted(key),
        }
    }

    fn deleted(&mut self, key: ObjectKey) -> Option<Event> {
        let ObjectKey {
            kind,
            namespace,
            name,
        } = key;
        Some(match kind {
            ObjectKind::Service => self
                .services
                .deleted(ServiceName::new(&namespace, &name).ok()?),
            ObjectKind::EndpointSlice => {
                self.slices.deleted(SliceName::new(&namespace, &name).ok()?)
            }
            ObjectKind::ServiceCidr => self.service_cidrs.deleted(name),
            ObjectKind::Node => (name == self.node_name).then(|| self.nodes.deleted(name))?,
        })
    }
}

/// Reads the manifests and follows their changes, until the receiver is gone.
pub(crate) async fn follow(
    mut source: Source,
    mut watcher: Watcher,
    mut converter: Converter,
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
            Event::SliceApplied { slice, .. } => {
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
