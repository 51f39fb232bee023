//! From API servers' watch streams to events.
//!
//! Each object is converted as it arrives and dropped; nothing here stores any. A watch that
//! breaks is resumed where it was, or listed again, and the end of a list says which objects are
//! left, so nothing is lost on the way.
//!
//! ```text
//! access ── url, proxy, tls, credentials ──┐
//!                                          ▼
//! reflector ── query ──▶ client ── limit ──▶ connect ──▶ API server
//!     ▲  │                                                  │
//!     │  └── recovery, backoff                              │
//!     └──────── wire ◀── frames, list ◀─────────────────────┘
//! ```

mod access;
mod backoff;
mod client;
mod connect;
mod credentials;
mod exec;
mod failure;
mod frames;
mod limit;
mod list;
mod proxy;
mod query;
mod recorder;
mod recovery;
mod reflector;
mod status;
mod tls;
mod url;
mod ways;
pub(in crate::source) mod wire;

use std::sync::Arc;

use http::HeaderValue;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use nftproxy_core::k8s::{LABEL_HEADLESS, LABEL_SERVICE_PROXY_NAME};
use tokio::sync::mpsc::Sender;

use self::access::Access;
use self::client::Client;
use self::limit::Limit;
pub(crate) use self::recorder::{Occurrence, Recorder, Regarding};
use self::recovery::Recovery;
use self::reflector::{Reflector, Resource};
pub use self::wire::Encoding;
pub(crate) use self::wire::{Object, object_in};
use super::Event;
use super::convert::{Nodes, Places, ServiceCidrs, Services, Slices};
use crate::config::Settings;
use crate::metrics::{ApiMetrics, Metrics};

/// Starts watching all that the proxy needs, as tasks that run until the receiver is gone. Returns
/// who writes Events there.
///
/// # Errors
///
/// Fails if the settings, or the files that they name, cannot be used. A server that cannot be
/// reached is no error: it is waited for.
pub(crate) fn start(
    settings: &Settings,
    node_name: &str,
    events: &Sender<Event>,
    metrics: &ApiMetrics,
) -> anyhow::Result<Recorder> {
    let client = client(settings, metrics)?;
    let host = nix::unistd::gethostname()?;
    let recorder = Recorder::start(client.clone(), host.to_string_lossy().into_owned());
    follow(settings, node_name, events, client, &recorder, None);
    Ok(recorder)
}

/// The same for somebody who looks and writes nothing. In `places` it is noted where endpoints are.
///
/// # Errors
///
/// As [`start`].
pub(crate) fn look(
    settings: &Settings,
    node_name: &str,
    events: &Sender<Event>,
    places: Places,
) -> anyhow::Result<()> {
    let client = client(settings, &Metrics::new(&[], &[]).api)?;
    let nobody = Recorder::default();
    follow(settings, node_name, events, client, &nobody, Some(places));
    Ok(())
}

fn client(settings: &Settings, metrics: &ApiMetrics) -> anyhow::Result<Arc<Client>> {
    let accept = HeaderValue::try_from(settings.accept.as_str())?;
    let limit = Limit::new(settings.qps, settings.burst);
    let access = Access::new(settings)?;
    Ok(Arc::new(Client::new(
        access,
        accept,
        limit,
        metrics.clone(),
    )))
}

fn follow(
    settings: &Settings,
    node_name: &str,
    events: &Sender<Event>,
    client: Arc<Client>,
    recorder: &Recorder,
    places: Option<Places>,
) {
    let recovery = Arc::new(Recovery::new());

    macro_rules! follow {
        ($object:ty, $convert:expr, $resource:expr) => {
            tokio::spawn(
                Reflector::<$object, _>::new(
                    client.clone(),
                    recovery.clone(),
                    $resource,
                    $convert,
                    events.clone(),
                    recorder.clone(),
                )
                .run(),
            )
        };
    }
    follow!(
        core::Service,
        Services {
            allow_external_ips: settings.feature_gates.allow_service_external_ips,
        },
        Resource {
            kind: "Service",
            path: "/api/v1/services",
            labels: format!("!{LABEL_SERVICE_PROXY_NAME}"),
            // Servers before 1.32 do not know it; headless Services are left out here as well.
            fields: "spec.clusterIP!=None".to_owned(),
            can_do_without_fields: true,
            is_optional: false,
        }
    );
    follow!(
        EndpointSlice,
        Slices {
            node_name: node_name.to_owned(),
            places,
        },
        Resource {
            kind: "EndpointSlice",
            path: "/apis/discovery.k8s.io/v1/endpointslices",
            labels: format!("!{LABEL_HEADLESS}"),
            fields: String::new(),
            can_do_without_fields: false,
            is_optional: false,
        }
    );
    follow!(
        ServiceCIDR,
        ServiceCidrs,
        Resource {
            kind: "ServiceCIDR",
            path: "/apis/networking.k8s.io/v1/servicecidrs",
            labels: String::new(),
            fields: String::new(),
            can_do_without_fields: false,
            // Servers before 1.33 have none.
            is_optional: true,
        }
    );
    follow!(
        core::Node,
        Nodes,
        Resource {
            kind: "Node",
            path: "/api/v1/nodes",
            labels: String::new(),
            fields: format!("metadata.name={node_name}"),
            can_do_without_fields: false,
            is_optional: false,
        }
    );
}

/// Reads the bodies of lists and watches, for fuzzing only. They come in pieces of this size.
#[cfg(fuzzing)]
pub(crate) mod fuzz {
    use super::frames::Frames;
    use super::list::List;
    use super::wire::{Item, WatchEvent};
    use super::{Encoding, Object};

    /// The objects of a list as far as it can be read.
    pub(crate) fn list<K: Object>(encoding: Encoding, body: &[u8], size: usize) -> Vec<K> {
        let mut list = List::new(encoding);
        let mut objects = Vec::new();
        for piece in body.chunks(size) {
            let Ok(items) = list.push(piece) else {
                return objects;
            };
            for item in items {
                if let Ok(Item::Good(object)) = Item::decode(encoding, &item) {
                    objects.push(object);
                }
            }
        }
        let _ = list.finish();
        objects
    }

    /// The objects that a watch says were added or changed.
    pub(crate) fn watch<K: Object>(encoding: Encoding, body: &[u8], size: usize) -> Vec<K> {
        let mut frames = Frames::new(encoding);
        let mut objects = Vec::new();
        let mut take = |frame: &[u8]| {
            if let Ok(WatchEvent::Applied(Item::Good(object))) = WatchEvent::decode(encoding, frame)
            {
                objects.push(object);
            }
        };
        for piece in body.chunks(size) {
            frames.push(piece);
            while let Ok(Some(frame)) = frames.next() {
                take(&frame);
            }
        }
        if let Some(frame) = frames.rest() {
            take(&frame);
        }
        objects
    }
}

#[cfg(test)]
mod tests;
