//! From an API server's watch streams to events.
//!
//! Each object is converted as it arrives and dropped; nothing here stores any. A stream that
//! breaks is resumed or listed again by `kube`, with backoff, and the end of a list says which
//! objects are left, so nothing is lost on the way.

use std::collections::BTreeSet;
use std::fmt::Debug;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use nftproxy_core::k8s::{LABEL_HEADLESS, LABEL_SERVICE_PROXY_NAME};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use super::Event;
use super::convert::{Convert, Nodes, ServiceCidrs, Services, Slices, applied};
use crate::error::chain;

/// Objects per page of a list. What a page takes while it is decoded lies between the objects that
/// are kept, so that large pages leave large holes in memory; small ones take more round trips.
const PAGE_SIZE: u32 = 100;

/// Starts watching all that the proxy needs, as tasks that run until the receiver is gone.
pub(crate) fn start(
    client: &Client,
    node_name: &str,
    allow_external_ips: bool,
    events: &Sender<Event>,
) {
    let services = watcher::Config::default()
        .labels(&format!("!{LABEL_SERVICE_PROXY_NAME}"))
        .fields("spec.clusterIP!=None");
    tokio::spawn(watch(
        Api::<core::Service>::all(client.clone()),
        services,
        Services { allow_external_ips },
        events.clone(),
    ));

    let slices = watcher::Config::default().labels(&format!("!{LABEL_HEADLESS}"));
    let convert = Slices {
        node_name: node_name.to_owned(),
    };
    tokio::spawn(watch(
        Api::<EndpointSlice>::all(client.clone()),
        slices,
        convert,
        events.clone(),
    ));

    let api = Api::<ServiceCIDR>::all(client.clone());
    tokio::spawn(watch(
        api,
        watcher::Config::default(),
        ServiceCidrs,
        events.clone(),
    ));

    let this_node = watcher::Config::default().fields(&format!("metadata.name={node_name}"));
    tokio::spawn(watch(
        Api::<core::Node>::all(client.clone()),
        this_node,
        Nodes,
        events.clone(),
    ));
}

/// Follows one kind of object. Ends when nobody receives events any more.
async fn watch<K, C>(api: Api<K>, config: watcher::Config, convert: C, events: Sender<Event>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    C: Convert<K>,
{
    let kind = K::kind(&());
    let stream = watcher(api, config.page_size(PAGE_SIZE)).default_backoff();
    pin_mut!(stream);
    let mut listed = BTreeSet::new();
    let mut is_failing = false;
    while let Some(result) = stream.next().await {
        let event = match result {
            Err(error) => {
                // The stream goes on by itself. Say it once, not at each attempt.
                if !is_failing {
                    warn!(%kind, error = %chain(&error), "watch failed; retrying");
                }
                is_failing = true;
                continue;
            }
            Ok(watcher::Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed.insert(convert.name(&object));
                applied(&convert, &object)
            }
            Ok(watcher::Event::InitDone) => {
                info!(%kind, count = listed.len(), "list complete");
                convert.listed(std::mem::take(&mut listed))
            }
            Ok(watcher::Event::Apply(object)) => applied(&convert, &object),
            Ok(watcher::Event::Delete(object)) => convert.deleted(convert.name(&object)),
        };
        if std::mem::take(&mut is_failing) {
            info!(%kind, "watch works again");
        }
        if events.send(event).await.is_err() {
            return;
        }
    }
}
