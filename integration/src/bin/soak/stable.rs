//! The Services that never change, which must be served all the time, and those who serve.
//!
//! Entry points: [`objects`], [`serve`] and [`targets`].

use std::net::SocketAddr;

use anyhow::Result;
use integration::lab::{Dual, Lab, NODE, PODS, REMOTE_POD};
use integration::manifest::{
    Conditions, ENDPOINT_PORT, Endpoint, SERVICE_PORT, cluster_ip, external_ip, load_balancer_ip,
    node_port, service, slices,
};
use integration::traffic::{Protocol, Server};
use serde_json::{Value, json};

/// The protocols that are tried; not every kernel has SCTP.
pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// The numbers of the Services, as in [`service`]; others must use larger ones.
const NUMBERS: std::ops::RangeInclusive<u8> = 1..=3;

/// The one without an endpoint on the other node.
const LOCAL: u8 = 3;

/// The Services and their slices: one is plain, one has session affinity, and one has endpoints on
/// this node only, and serves connections from outside by these.
pub(crate) fn objects() -> Vec<Value> {
    let on = |node, address| Endpoint {
        address,
        node: Some(node),
        conditions: Conditions::READY,
        for_zone: None,
        for_node: None,
    };
    let everywhere = [
        on("node", PODS[0]),
        on("node", PODS[1]),
        on("node2", REMOTE_POD),
    ];
    let mut objects = Vec::new();
    for number in NUMBERS {
        let name = format!("stable-{number}");
        let mut service = service(&name, number);
        let spec = &mut service["spec"];
        match number {
            2 => spec["sessionAffinity"] = "ClientIP".into(),
            LOCAL => spec["externalTrafficPolicy"] = "Local".into(),
            _ => {}
        }
        if number == 2 {
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 60}});
        }
        objects.push(service);
        let endpoints = if number == LOCAL {
            &everywhere[..2]
        } else {
            &everywhere
        };
        objects.extend(slices(&name, endpoints));
    }
    objects
}

/// Starts the servers that are the endpoints.
pub(crate) fn serve(lab: &Lab) -> Result<Vec<Server>> {
    let hosts = [
        (&lab.pods[0], PODS[0], "pod1"),
        (&lab.pods[1], PODS[1], "pod2"),
        (&lab.remote_pod, REMOTE_POD, "remote"),
    ];
    let mut servers = Vec::new();
    for (host, address, name) in hosts {
        for protocol in PROTOCOLS {
            for ip in address.both() {
                let to = (ip, ENDPOINT_PORT).into();
                servers.push(Server::start(host, name, protocol, to)?);
            }
        }
    }
    Ok(servers)
}

/// Every destination in one family, of each kind, for a source that may be sent to the pod on the
/// other node, or not: sending that one back to itself is up to the proxy of its own node.
pub(crate) fn targets(is_ipv6: bool, may_be_remote: bool) -> Vec<SocketAddr> {
    let ip = |address: Dual| address.both()[usize::from(is_ipv6)];
    NUMBERS
        .filter(|number| may_be_remote || *number == LOCAL)
        .flat_map(|number| {
            [
                (cluster_ip(number), SERVICE_PORT),
                (external_ip(number), SERVICE_PORT),
                (load_balancer_ip(number), SERVICE_PORT),
                (NODE, node_port(number)),
            ]
        })
        .map(|(address, port)| (ip(address), port).into())
        .collect()
}
