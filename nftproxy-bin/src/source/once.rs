//! What a cluster asks for at one moment: from an API server or from files.
//!
//! Entry points: [`from_server`] and [`from_files`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use nftproxy_core::engine;
use nftproxy_core::model::{NodeInfo, State};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::convert::Places;
use super::files::Converter;
use super::manifests::{Problem, Source};
use super::{Event, api};
use crate::config::Settings;

/// How long an API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after the rest the ServiceCIDRs may come. Servers before 1.33 have none.
const CIDR_PATIENCE: Duration = Duration::from_secs(3);
const EVENT_QUEUE: usize = 1024;

/// A cluster at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) state: State,
    /// What the Node object says, if there is one.
    pub(crate) node: Option<NodeInfo>,
    /// The node of each endpoint's address, where it is known.
    pub(crate) places: BTreeMap<IpAddr, String>,
    /// What could not be read.
    pub(crate) problems: Vec<Problem>,
}

/// Which lists are complete.
#[derive(Default)]
struct Complete {
    services: bool,
    slices: bool,
    node: bool,
    service_cidrs: bool,
}

impl Snapshot {
    fn take(&mut self, event: Event, complete: &mut Complete) {
        match event {
            Event::Cluster(event) => match event {
                engine::Event::ServiceApplied(service) => self.state.apply_service(service),
                engine::Event::ServiceDeleted(name) => self.state.delete_service(&name),
                engine::Event::SliceApplied(slice) => self.state.apply_slice(slice),
                engine::Event::SliceDeleted(name) => self.state.delete_slice(&name),
                engine::Event::ServiceCidrApplied(name, cidrs) => {
                    self.state.apply_service_cidr(&name, cidrs);
                }
                engine::Event::ServiceCidrDeleted(name) => self.state.delete_service_cidr(&name),
                engine::Event::ServicesListed(names) => {
                    self.state.retain_services(|name| names.contains(name));
                    complete.services = true;
                }
                engine::Event::SlicesListed(names) => {
                    self.state.retain_slices(|name| names.contains(name));
                    complete.slices = true;
                }
                engine::Event::ServiceCidrsListed(names) => {
                    self.state.retain_service_cidrs(|name| names.contains(name));
                    complete.service_cidrs = true;
                }
                _ => {}
            },
            Event::SliceApplied { slice, .. } => self.state.apply_slice(slice),
            Event::NodeApplied { info, .. } => self.node = Some(info),
            Event::NodeDeleted => {
                self.node = None;
                complete.node = true;
            }
            Event::AddressesChanged => complete.node = true,
        }
    }

    fn with_places(mut self, places: &Places) -> Self {
        let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
        self.places = std::mem::take(&mut places);
        self
    }
}

/// Asks the API server that `run` would follow.
///
/// # Errors
///
/// Fails if the settings cannot be used, or the server does not answer in time.
pub(crate) fn from_server(settings: &Settings, node_name: &str) -> anyhow::Result<Snapshot> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let places = Places::default();
    let snapshot = runtime.block_on(async {
        let (sender, mut receiver) = mpsc::channel(EVENT_QUEUE);
        api::look(settings, node_name, &sender, Arc::clone(&places))?;
        let (mut snapshot, mut complete) = (Snapshot::default(), Complete::default());
        let mut deadline = Instant::now() + PATIENCE;
        let mut is_almost = false;
        loop {
            let is_rest_complete = complete.services && complete.slices && complete.node;
            if is_rest_complete && complete.service_cidrs {
                return Ok(snapshot);
            }
            if is_rest_complete && !is_almost {
                is_almost = true;
                deadline = deadline.min(Instant::now() + CIDR_PATIENCE);
            }
            match timeout_at(deadline, receiver.recv()).await {
                Ok(Some(event)) => snapshot.take(event, &mut complete),
                Err(_) if is_almost => {
                    tracing::warn!("the API server says nothing of ServiceCIDRs; taken as none");
                    return Ok(snapshot);
                }
                Ok(None) | Err(_) => {
                    bail!("the API server has not listed everything within {PATIENCE:?}")
                }
            }
        }
    })?;
    Ok(snapshot.with_places(&places))
}

/// Reads files and folders, of which later ones override earlier ones; `-` is standard input.
///
/// # Errors
///
/// Fails if there is nothing at a path.
pub(crate) fn from_files(
    paths: &[PathBuf],
    settings: &Settings,
    node_name: &str,
) -> anyhow::Result<Snapshot> {
    let places = Places::default();
    let allow_external_ips = settings.feature_gates.allow_service_external_ips;
    let mut converter = Converter::new(node_name, allow_external_ips).noting(Arc::clone(&places));
    let (mut snapshot, mut complete) = (Snapshot::default(), Complete::default());
    for path in paths {
        let path = match path.to_str() {
            Some("-") => Path::new("/dev/stdin"),
            _ => path,
        };
        let update = Source::open(path)?.load();
        let changes = update.changes.into_iter();
        for event in changes.filter_map(|change| converter.event(change)) {
            snapshot.take(event, &mut complete);
        }
        snapshot.problems.extend(update.problems);
    }
    Ok(snapshot.with_places(&places))
}
