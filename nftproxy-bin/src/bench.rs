//! What `make bench` measures of the program's parts.

use std::ffi::OsStr;
use std::path::Path;

use clap::Parser;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nftproxy_core::engine;
use nftproxy_core::model;
use tokio::sync::mpsc;

use crate::config::{ConfigFlags, Settings};
use crate::metrics::Metrics;
use crate::source::Event;
use crate::source::api::{self, Object};
use crate::source::convert::{Objects, Services, Slices};

pub use crate::source::api::Encoding;

/// From a frame of a watch to the model, for a Service.
///
/// # Errors
///
/// If the frame is not that of a Service. One that no proxy serves, as it is headless, is none.
pub fn service(encoding: Encoding, frame: &[u8]) -> Result<Option<model::Service>, String> {
    let convert = Services {
        allow_external_ips: true,
    };
    let object = object::<core::Service>(encoding, frame)?;
    match Objects::new(convert).applied(&object).ok_or("no name")? {
        Event::Cluster(engine::Event::ServiceApplied(service)) => Ok(Some(service)),
        Event::Cluster(engine::Event::ServiceDeleted(_)) => Ok(None),
        other => Err(format!("{other:?}")),
    }
}

/// The same for an EndpointSlice.
///
/// # Errors
///
/// If the frame is not that of a slice. One of names rather than addresses is none.
pub fn slice(
    encoding: Encoding,
    frame: &[u8],
    node_name: &str,
) -> Result<Option<model::EndpointSlice>, String> {
    let convert = Slices {
        node_name: node_name.to_owned(),
        places: None,
    };
    let object = object::<EndpointSlice>(encoding, frame)?;
    match Objects::new(convert).applied(&object).ok_or("no name")? {
        Event::SliceApplied { slice, .. } => Ok(Some(slice)),
        Event::Cluster(engine::Event::SliceDeleted(_)) => Ok(None),
        other => Err(format!("{other:?}")),
    }
}

fn object<K: Object>(encoding: Encoding, frame: &[u8]) -> Result<K, String> {
    api::object_in(encoding, frame).map_err(|error| error.to_string())
}

/// The flags of `nftproxy run` that count here.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: ConfigFlags,
}

/// One node's lists and watches, without anything that becomes of them.
pub struct Follower(mpsc::Receiver<Event>);

impl Follower {
    /// Starts following, as `nftproxy run --kubeconfig` does, in tasks of the current runtime.
    ///
    /// # Errors
    ///
    /// If the kubeconfig cannot be used.
    pub fn start(kubeconfig: &Path, node_name: &str) -> anyhow::Result<Self> {
        let arguments = [OsStr::new("follow"), OsStr::new("--kubeconfig")];
        let arguments = arguments.into_iter().chain([kubeconfig.as_os_str()]);
        let flags = Flags::try_parse_from(arguments)?;
        let (sender, receiver) = mpsc::channel(crate::cmd::run::EVENT_QUEUE);
        let metrics = Metrics::new(&[], &[]);
        api::start(
            &Settings::load(&flags.config)?,
            node_name,
            &sender,
            &metrics.api,
        )?;
        Ok(Self(receiver))
    }

    /// Returns once the lists that rules need are complete. What comes is thrown away.
    pub async fn wait_for_lists(&mut self) {
        let (mut has_services, mut has_slices) = (false, false);
        while !(has_services && has_slices) {
            match self.0.recv().await {
                Some(Event::Cluster(engine::Event::ServicesListed(_))) => has_services = true,
                Some(Event::Cluster(engine::Event::SlicesListed(_))) => has_slices = true,
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Throws away whatever comes, for ever.
    pub async fn drain(mut self) {
        while self.0.recv().await.is_some() {}
    }
}
