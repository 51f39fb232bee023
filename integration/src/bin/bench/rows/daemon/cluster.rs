//! What the API server holds: copies of a recorded Service and a recorded slice, so that objects are
//! as large as real ones.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use integration::apiserver::{ApiServer, Resource};
use integration::fixtures::{self, NODE_NAME};
use serde_json::Value;

use crate::cluster::{ENDPOINTS_PER_SLICE, NODES, Size};
use crate::rows::decode::recorded;

/// The recorded Service that all are copies of: a ClusterIP, one port, nothing special.
const TEMPLATE: &str = "frontend";
/// Within the recorded ServiceCIDR.
const CLUSTER_IPS: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 0);
/// Where endpoints are.
pub(super) const PODS: &str = "10.128.0.0/9";
const ENDPOINTS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// Addresses that endpoints get later.
const LATER_ENDPOINTS: u32 = 1 << 22;

/// A ClusterIP and a verdict for each Service, all slots, and for each endpoint on this node one
/// for what it sends to itself.
pub(super) fn n_elements(size: Size) -> usize {
    let n_endpoints = size.services * size.endpoints;
    let n_local = (0..n_endpoints)
        .filter(|id| node_name(*id) == NODE_NAME)
        .count();
    (2 * size.services + n_endpoints) as usize + n_local
}

/// The `n`th change: a slice of which the first endpoint has an address that was never there.
pub(super) fn changed_slice(size: Size, n: u32) -> Result<Value> {
    let template = slice_template()?;
    let number = n.wrapping_mul(7919) % size.services;
    let first = number * size.endpoints;
    let mut ids: Vec<_> = (first..first + size.endpoints.min(ENDPOINTS_PER_SLICE)).collect();
    // On another node than this one, as the first that it replaces.
    ids[0] = LATER_ENDPOINTS + n * NODES + ids[0] % NODES;
    let name = format!("{TEMPLATE}-{number}");
    Ok(slice_of(&template, &name, 0, &ids))
}

fn slice_template() -> Result<Value> {
    template(Resource::EndpointSlices, |slice| {
        slice["metadata"]["labels"]["kubernetes.io/service-name"] == TEMPLATE
    })
}

/// Gives the server all that it is to hold.
pub(super) fn fill(server: &ApiServer, size: Size) -> Result<()> {
    for (resource, file) in [
        (Resource::Nodes, "nodes.json"),
        (Resource::ServiceCidrs, "servicecidrs.json"),
    ] {
        server.load_list(resource, &fixtures::read(file))?;
    }
    let service = template(Resource::Services, |service| {
        service["metadata"]["name"] == TEMPLATE
    })?;
    let slice = slice_template()?;
    for number in 0..size.services {
        let name = format!("{TEMPLATE}-{number}");
        server.upsert(service_of(&service, &name, number))?;
        let ids: Vec<_> = (number * size.endpoints..(number + 1) * size.endpoints).collect();
        for (part, ids) in ids.chunks(ENDPOINTS_PER_SLICE as usize).enumerate() {
            server.upsert(slice_of(&slice, &name, part, ids))?;
        }
    }
    Ok(())
}

/// The recorded object that copies are made of.
fn template(resource: Resource, is_wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let objects = recorded(&format!("{}.json", resource.plural()))?;
    let object = objects.into_iter().find(|object| is_wanted(object));
    let mut object = object.with_context(|| format!("finding a recorded {}", resource.kind()))?;
    object["apiVersion"] = resource.api_version().into();
    object["kind"] = resource.kind().into();
    Ok(object)
}

fn service_of(template: &Value, name: &str, number: u32) -> Value {
    let mut service = template.clone();
    service["metadata"]["name"] = name.into();
    let cluster_ip = offset(CLUSTER_IPS, number);
    service["spec"]["clusterIPs"] = vec![cluster_ip.clone()].into();
    service["spec"]["clusterIP"] = cluster_ip.into();
    service
}

fn slice_of(template: &Value, service: &str, part: usize, ids: &[u32]) -> Value {
    let mut slice = template.clone();
    slice["metadata"]["name"] = format!("{service}-{part}").into();
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = service.into();
    let endpoint = |id: &u32| {
        let mut endpoint = template["endpoints"][0].clone();
        endpoint["addresses"] = vec![offset(ENDPOINTS, *id)].into();
        endpoint["nodeName"] = node_name(*id).into();
        endpoint["targetRef"]["name"] = format!("{service}-{id}").into();
        endpoint
    };
    slice["endpoints"] = ids.iter().map(endpoint).collect();
    slice
}

fn node_name(id: u32) -> String {
    format!("node-{}", id % NODES)
}

fn offset(base: Ipv4Addr, by: u32) -> String {
    Ipv4Addr::from_bits(base.to_bits() + by).to_string()
}
