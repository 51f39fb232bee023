//! From an API server to events: what is followed there.

use std::sync::Arc;

use nftproxy_core::k8s::{LABEL_HEADLESS, LABEL_SERVICE_PROXY_NAME};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;

use super::Event;
use super::convert::{Convert, Nodes, ServiceCidrs, Services, Slices};
use super::reflector::{Recovery, Reflector, Resource};
use super::server::Server;
use super::wire::{self, Wire};

/// Follows all that the proxy needs, as tasks that run until the receiver is gone. They end early
/// only by a panic.
pub(crate) fn start(
    server: Server,
    node_name: &str,
    allow_external_ips: bool,
    events: &Sender<Event>,
) -> JoinSet<()> {
    let mut tasks = Tasks {
        server: Arc::new(server),
        events: events.clone(),
        recovery: Recovery::new(),
        tasks: JoinSet::new(),
    };
    tasks.follow::<wire::Service, _>(
        Resource {
            kind: "Service",
            path: "/api/v1/services",
            label_selector: Some(format!("!{LABEL_SERVICE_PROXY_NAME}")),
            field_selector: Some("spec.clusterIP!=None".into()),
        },
        Services { allow_external_ips },
    );
    tasks.follow::<wire::EndpointSlice, _>(
        Resource {
            kind: "EndpointSlice",
            path: "/apis/discovery.k8s.io/v1/endpointslices",
            label_selector: Some(format!("!{LABEL_HEADLESS}")),
            field_selector: None,
        },
        Slices {
            node_name: node_name.to_owned(),
        },
    );
    tasks.follow::<wire::ServiceCidr, _>(
        Resource {
            kind: "ServiceCIDR",
            path: "/apis/networking.k8s.io/v1/servicecidrs",
            label_selector: None,
            field_selector: None,
        },
        ServiceCidrs,
    );
    tasks.follow::<wire::Node, _>(
        Resource {
            kind: "Node",
            path: "/api/v1/nodes",
            label_selector: None,
            field_selector: Some(format!("metadata.name={node_name}")),
        },
        Nodes,
    );
    tasks.tasks
}

struct Tasks {
    server: Arc<Server>,
    events: Sender<Event>,
    recovery: Recovery,
    tasks: JoinSet<()>,
}

impl Tasks {
    fn follow<W, C>(&mut self, resource: Resource, convert: C)
    where
        W: Wire + Send + 'static,
        W::Object: Send + Sync,
        C: Convert<W::Object> + Send + Sync + 'static,
        C::Name: Send + Sync,
    {
        let reflector = Reflector::<W, C>::new(
            self.server.clone(),
            resource,
            convert,
            self.events.clone(),
            self.recovery.clone(),
        );
        self.tasks.spawn(reflector.run());
    }
}
