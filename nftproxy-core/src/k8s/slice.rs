//! EndpointSlices.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{self as discovery, EndpointPort};

use super::address::special;
use super::{
    LABEL_HEADLESS, LABEL_SERVICE_NAME, Problem, describe, has_label, identity, label, parse_ip,
    port_number, protocol, slice_name,
};
use crate::model::{
    Endpoint, EndpointSlice, Family, Hints, Locality, NodeHint, PortName, ServiceName,
    SliceEndpoints, SlicePort, V4, V6, check_label_value, check_subdomain,
};

/// Converts a slice, as seen from the node of this name. `None` if it is of no Service, or not for
/// proxies.
pub fn endpoint_slice(
    object: &discovery::EndpointSlice,
    node_name: &str,
    problems: &mut Vec<Problem>,
) -> Option<EndpointSlice> {
    if has_label(&object.metadata, LABEL_HEADLESS) {
        return None;
    }
    let service = label(&object.metadata, LABEL_SERVICE_NAME).filter(|name| !name.is_empty())?;
    let (namespace, _) = identity(&object.metadata);
    let described = describe("EndpointSlice", &object.metadata);
    let mut problem = |message| {
        problems.push(Problem {
            object: described.clone(),
            message,
        });
    };
    let name = match slice_name(object) {
        Ok(name) => name,
        Err(error) => {
            problem(format!("metadata: {error}"));
            return None;
        }
    };
    let service = match ServiceName::new(namespace, service) {
        Ok(service) => service,
        Err(error) => {
            problem(format!(
                "label {LABEL_SERVICE_NAME} names no Service: {error}"
            ));
            return None;
        }
    };
    let endpoints = object.endpoints.as_deref().unwrap_or_default();
    let endpoints = match object.address_type.as_str() {
        "IPv4" => SliceEndpoints::V4(convert_endpoints::<V4>(endpoints, node_name, &mut problem)),
        "IPv6" => SliceEndpoints::V6(convert_endpoints::<V6>(endpoints, node_name, &mut problem)),
        other => {
            problem(format!("addressType {other:?} is not supported"));
            return None;
        }
    };
    let ports = object
        .ports
        .iter()
        .flatten()
        .filter_map(|port| slice_port(port, &mut problem))
        .collect();
    Some(EndpointSlice {
        service,
        name,
        ports,
        endpoints,
    })
}

/// Ports without a name or a number serve nothing. The API server hands out none without a name.
fn slice_port(port: &EndpointPort, problem: &mut impl FnMut(String)) -> Option<SlicePort> {
    let name = match PortName::new(port.name.as_deref()?) {
        Ok(name) => name,
        Err(error) => {
            problem(format!("ports: {error}"));
            return None;
        }
    };
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        problem(format!(
            "ports: port {:?} has an unknown protocol {:?}",
            name.as_str(),
            port.protocol.as_deref().unwrap_or_default()
        ));
        return None;
    };
    let number = port.port.filter(|number| *number != 0)?;
    let Some(number) = port_number(number) else {
        problem(format!(
            "ports: port {:?} has number {number}",
            name.as_str()
        ));
        return None;
    };
    Some(SlicePort {
        name,
        protocol,
        port: number,
    })
}

fn convert_endpoints<F: Family>(
    endpoints: &[discovery::Endpoint],
    node_name: &str,
    problem: &mut impl FnMut(String),
) -> Box<[Endpoint<F>]> {
    // Endpoints of a slice have few different hints, so they share them.
    let mut seen_hints: Vec<Arc<Hints>> = Vec::new();
    endpoints
        .iter()
        .filter_map(|endpoint| {
            let Some(text) = endpoint.addresses.first() else {
                problem("endpoints: one has no address".into());
                return None;
            };
            let Some(address) = parse_ip(text).and_then(F::address) else {
                problem(format!(
                    "endpoints: {text:?} is not an {} address",
                    F::FAMILY
                ));
                return None;
            };
            if let Some(what) = special(address.into()) {
                problem(format!("endpoints: {address} is {what}"));
                return None;
            }
            let conditions = endpoint.conditions.as_ref();
            let locality = match endpoint.node_name.as_deref() {
                None => Locality::Unknown,
                Some(name) if name == node_name => Locality::Local,
                Some(name) => {
                    if let Err(error) = check_subdomain(name) {
                        problem(format!("endpoints: nodeName of {address}: {error}"));
                    }
                    Locality::Remote
                }
            };
            let hints = hints(endpoint, node_name, &mut seen_hints, problem);
            Some(Endpoint {
                address,
                ready: conditions
                    .and_then(|conditions| conditions.ready)
                    .unwrap_or(true),
                serving: conditions
                    .and_then(|conditions| conditions.serving)
                    .unwrap_or(true),
                terminating: conditions
                    .and_then(|conditions| conditions.terminating)
                    .unwrap_or(false),
                locality,
                hints,
            })
        })
        .collect()
}

fn hints(
    endpoint: &discovery::Endpoint,
    node_name: &str,
    seen: &mut Vec<Arc<Hints>>,
    problem: &mut impl FnMut(String),
) -> Option<Arc<Hints>> {
    let hints = endpoint.hints.as_ref()?;
    let zones: Box<[Box<str>]> = hints
        .for_zones
        .iter()
        .flatten()
        .filter_map(|zone| match check_label_value(&zone.name) {
            Ok(()) => Some(zone.name.as_str().into()),
            Err(error) => {
                problem(format!("endpoints: hints.forZones: {error}"));
                None
            }
        })
        .collect();
    let nodes = hints.for_nodes.as_deref().unwrap_or_default();
    let node = match nodes {
        [] => NodeHint::None,
        nodes if nodes.iter().any(|node| node.name == node_name) => NodeHint::ThisNode,
        _ => NodeHint::OtherNodes,
    };
    if zones.is_empty() && node == NodeHint::None {
        return None;
    }
    let hints = Hints { zones, node };
    if let Some(shared) = seen.iter().find(|shared| ***shared == hints) {
        return Some(shared.clone());
    }
    let shared = Arc::new(hints);
    seen.push(shared.clone());
    Some(shared)
}
