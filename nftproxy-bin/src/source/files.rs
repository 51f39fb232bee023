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
///
/// The lists are complete when each file could be read once: what the kernel serves from before is
/// not cut off by a file that cannot be read.
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
    let mut names = Names::default();
    let mut is_listed = false;
    loop {
        report(&update, is_listed);
        let mut batch: Vec<_> = update
            .changes
            .into_iter()
            .filter_map(|change| converter.event(change))
            .collect();
        if !is_listed {
            batch.iter().for_each(|event| names.take(event));
            is_listed = source.is_complete();
            if is_listed {
                let Names { services, slices } = std::mem::take(&mut names);
                batch.push(engine::Event::ServicesListed(services).into());
                batch.push(engine::Event::SlicesListed(slices).into());
            }
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

/// What there is when the lists are complete.
#[derive(Default)]
struct Names {
    services: BTreeSet<ServiceName>,
    slices: BTreeSet<SliceName>,
}

impl Names {
    fn take(&mut self, event: &Event) {
        match event {
            Event::Cluster(engine::Event::ServiceApplied(service)) => {
                self.services.insert(service.name.clone());
            }
            Event::Cluster(engine::Event::ServiceDeleted(name)) => {
                self.services.remove(name);
            }
            Event::SliceApplied { slice, .. } => {
                self.slices.insert(slice.name.clone());
            }
            Event::Cluster(engine::Event::SliceDeleted(name)) => {
                self.slices.remove(name);
            }
            _ => {}
        }
    }
}

fn report(update: &Update, is_listed: bool) {
    let so = if is_listed {
        "the last good state of this file stays in force"
    } else {
        "until all files have been read, the rules stay as they are"
    };
    for problem in &update.problems {
        warn!("{problem}; {so}");
    }
    for path in &update.recovered {
        info!("{}: good again", path.display());
    }
    let n_changes = update.changes.len();
    if n_changes > 0 {
        info!(n_changes, "manifests changed");
    }
}
