//! What the API server fills in where an object leaves it open, of the fields that a proxy reads:
//! `SetDefaults_…` of `pkg/apis/core/v1` and `pkg/apis/discovery/v1`, and what creating a Service
//! does to its ClusterIPs.
//!
//! What it allocates (ClusterIPs, nodePorts, health-check node ports) is left open, as nobody can
//! tell what it would be. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ClientIPConfig, Endpoints, Node, Service, ServiceSpec, SessionAffinityConfig,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use nftproxy_core::k8s::parse_ip;

/// `DefaultClientIPServiceAffinitySeconds`
const AFFINITY_SECONDS: i32 = 10_800;

pub(super) fn service(service: &mut Service) {
    let Some(spec) = &mut service.spec else {
        return;
    };
    fill(&mut spec.type_, "ClusterIP");
    fill(&mut spec.session_affinity, "None");
    affinity(spec);
    for port in spec.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
        match &port.target_port {
            None | Some(IntOrString::Int(0)) => {
                port.target_port = Some(IntOrString::Int(port.port));
            }
            Some(IntOrString::String(name)) if name.is_empty() => {
                port.target_port = Some(IntOrString::Int(port.port));
            }
            Some(_) => {}
        }
    }
    let kind = spec.type_.as_deref();
    let has_external_ips = spec
        .external_ips
        .as_ref()
        .is_some_and(|ips| !ips.is_empty());
    let is_balancer = kind == Some("LoadBalancer");
    if is_balancer || kind == Some("NodePort") || has_external_ips {
        fill(&mut spec.external_traffic_policy, "Cluster");
    }
    if kind != Some("ExternalName") {
        fill(&mut spec.internal_traffic_policy, "Cluster");
        cluster_ips(spec);
    }
    let status = service.status.as_mut();
    let ingress = status.and_then(|status| status.load_balancer.as_mut()?.ingress.as_mut());
    for ingress in ingress.into_iter().flatten().filter(|_| is_balancer) {
        if ingress.ip.as_ref().is_some_and(|ip| !ip.is_empty()) {
            fill(&mut ingress.ip_mode, "VIP");
        }
    }
}

fn affinity(spec: &mut ServiceSpec) {
    match spec.session_affinity.as_deref() {
        Some("None") => spec.session_affinity_config = None,
        Some("ClientIP") => {
            let config = spec
                .session_affinity_config
                .get_or_insert_with(SessionAffinityConfig::default);
            let client_ip = config.client_ip.get_or_insert_with(ClientIPConfig::default);
            client_ip.timeout_seconds.get_or_insert(AFFINITY_SECONDS);
        }
        _ => {}
    }
}

/// Settles `clusterIP`, `clusterIPs` and `ipFamilies` by what there is of them. The API server would
/// refuse `clusterIPs` without `clusterIP`; what is meant is plain.
fn cluster_ips(spec: &mut ServiceSpec) {
    let ips = spec.cluster_ips.get_or_insert_default();
    ips.retain(|ip| !ip.is_empty());
    match (&spec.cluster_ip, ips.first()) {
        (Some(ip), None) if !ip.is_empty() => ips.push(ip.clone()),
        (None, Some(ip)) => spec.cluster_ip = Some(ip.clone()),
        (Some(given), Some(ip)) if given.is_empty() => spec.cluster_ip = Some(ip.clone()),
        _ => {}
    }
    let families = spec.ip_families.get_or_insert_default();
    // The families of headless Services are up to the cluster.
    if families.is_empty() {
        families.extend(ips.iter().filter_map(|ip| {
            let family = match parse_ip(ip)? {
                IpAddr::V4(_) => "IPv4",
                IpAddr::V6(_) => "IPv6",
            };
            Some(family.to_owned())
        }));
        // One that is no address is told of by the conversion, which needs no families for it.
        if families.len() != ips.len() {
            families.clear();
        }
    }
    if ips.is_empty() {
        spec.cluster_ips = None;
    }
    spec.ip_families.take_if(|families| families.is_empty());
}

pub(super) fn slice(slice: &mut EndpointSlice) {
    for port in slice.ports.iter_mut().flatten() {
        port.name.get_or_insert_default();
        fill(&mut port.protocol, "TCP");
    }
}

pub(super) fn endpoints(endpoints: &mut Endpoints) {
    let subsets = endpoints.subsets.iter_mut().flatten();
    for port in subsets.flat_map(|subset| subset.ports.iter_mut().flatten()) {
        fill(&mut port.protocol, "TCP");
    }
}

/// Settles `podCIDR` and `podCIDRs`, the first of which is the older field.
pub(super) fn node(node: &mut Node) {
    let Some(spec) = &mut node.spec else {
        return;
    };
    let cidrs = spec.pod_cidrs.get_or_insert_default();
    if let (Some(cidr), true) = (&spec.pod_cidr, cidrs.is_empty()) {
        cidrs.push(cidr.clone());
    }
    spec.pod_cidrs.take_if(|cidrs| cidrs.is_empty());
}

/// Go knows no difference between a string that is absent and one that is empty.
fn fill(field: &mut Option<String>, default: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(default.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;

    /// A field as written, what it is in the object that holds it, and as the API server has it.
    #[track_caller]
    fn check<K: serde::Serialize + serde::de::DeserializeOwned>(
        complete: fn(&mut K),
        cases: &[(Value, &str, Value)],
    ) {
        for (given, pointer, expected) in cases {
            let mut object: K = from_value(given.clone()).unwrap();
            complete(&mut object);
            let value = to_value(&object).unwrap();
            let found = value.pointer(pointer).unwrap_or(&Value::Null);
            assert_eq!(found, expected, "{pointer} of {given}");
            // What is complete stays as it is.
            let mut again: K = from_value(value.clone()).unwrap();
            complete(&mut again);
            assert_eq!(to_value(&again).unwrap(), value, "{given}");
        }
    }

    fn spec(spec: Value) -> Value {
        json!({"spec": spec})
    }

    #[test]
    fn services_come_out_as_the_api_server_hands_them_out() {
        let given = |field: &str, value: Value| spec(json!({field: value}));
        let ports = |port: Value| spec(json!({"ports": [port]}));
        let ingress = |kind: &str, ingress: Value| json!({"spec": {"type": kind}, "status": {"loadBalancer": {"ingress": [ingress]}}});
        let timeout = "/spec/sessionAffinityConfig/clientIP/timeoutSeconds";
        let mode = "/status/loadBalancer/ingress/0/ipMode";
        check(
            service,
            &[
                (spec(json!({})), "/spec/type", json!("ClusterIP")),
                (given("type", json!("")), "/spec/type", json!("ClusterIP")),
                (
                    given("type", json!("NodePort")),
                    "/spec/type",
                    json!("NodePort"),
                ),
                (spec(json!({})), "/spec/sessionAffinity", json!("None")),
                (
                    given("sessionAffinity", json!("ClientIP")),
                    timeout,
                    json!(10800),
                ),
                (
                    spec(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {}})),
                    timeout,
                    json!(10800),
                ),
                (
                    spec(json!({
                        "sessionAffinity": "ClientIP",
                        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}},
                    })),
                    timeout,
                    json!(7),
                ),
                (
                    spec(json!({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}})),
                    "/spec/sessionAffinityConfig",
                    Value::Null,
                ),
                (
                    ports(json!({"port": 80})),
                    "/spec/ports/0/protocol",
                    json!("TCP"),
                ),
                (
                    ports(json!({"port": 53, "protocol": "UDP"})),
                    "/spec/ports/0/protocol",
                    json!("UDP"),
                ),
                (
                    ports(json!({"port": 80})),
                    "/spec/ports/0/targetPort",
                    json!(80),
                ),
                (
                    ports(json!({"port": 80, "targetPort": 0})),
                    "/spec/ports/0/targetPort",
                    json!(80),
                ),
                (
                    ports(json!({"port": 80, "targetPort": ""})),
                    "/spec/ports/0/targetPort",
                    json!(80),
                ),
                (
                    ports(json!({"port": 80, "targetPort": "http"})),
                    "/spec/ports/0/targetPort",
                    json!("http"),
                ),
                (
                    spec(json!({})),
                    "/spec/internalTrafficPolicy",
                    json!("Cluster"),
                ),
                (
                    given("internalTrafficPolicy", json!("Local")),
                    "/spec/internalTrafficPolicy",
                    json!("Local"),
                ),
                (
                    given("type", json!("ExternalName")),
                    "/spec/internalTrafficPolicy",
                    Value::Null,
                ),
                (spec(json!({})), "/spec/externalTrafficPolicy", Value::Null),
                (
                    given("type", json!("NodePort")),
                    "/spec/externalTrafficPolicy",
                    json!("Cluster"),
                ),
                (
                    given("type", json!("LoadBalancer")),
                    "/spec/externalTrafficPolicy",
                    json!("Cluster"),
                ),
                (
                    given("externalIPs", json!(["198.51.100.1"])),
                    "/spec/externalTrafficPolicy",
                    json!("Cluster"),
                ),
                (
                    spec(json!({"type": "NodePort", "externalTrafficPolicy": "Local"})),
                    "/spec/externalTrafficPolicy",
                    json!("Local"),
                ),
                (
                    given("clusterIP", json!("10.96.0.1")),
                    "/spec/clusterIPs",
                    json!(["10.96.0.1"]),
                ),
                (
                    given("clusterIP", json!("10.96.0.1")),
                    "/spec/ipFamilies",
                    json!(["IPv4"]),
                ),
                (
                    given("clusterIPs", json!(["fd00::1", "10.96.0.1"])),
                    "/spec/clusterIP",
                    json!("fd00::1"),
                ),
                (
                    given("clusterIPs", json!(["fd00::1", "10.96.0.1"])),
                    "/spec/ipFamilies",
                    json!(["IPv6", "IPv4"]),
                ),
                (
                    spec(json!({"clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv6"]})),
                    "/spec/ipFamilies",
                    json!(["IPv6"]),
                ),
                (
                    given("clusterIP", json!("None")),
                    "/spec/clusterIPs",
                    json!(["None"]),
                ),
                (
                    given("clusterIP", json!("None")),
                    "/spec/ipFamilies",
                    Value::Null,
                ),
                (spec(json!({})), "/spec/clusterIP", Value::Null),
                (spec(json!({})), "/spec/clusterIPs", Value::Null),
                (
                    ingress("LoadBalancer", json!({"ip": "192.0.2.9"})),
                    mode,
                    json!("VIP"),
                ),
                (
                    ingress(
                        "LoadBalancer",
                        json!({"ip": "192.0.2.9", "ipMode": "Proxy"}),
                    ),
                    mode,
                    json!("Proxy"),
                ),
                (
                    ingress("LoadBalancer", json!({"hostname": "lb"})),
                    mode,
                    Value::Null,
                ),
                (
                    ingress("NodePort", json!({"ip": "192.0.2.9"})),
                    mode,
                    Value::Null,
                ),
                (json!({}), "/spec", Value::Null),
            ],
        );
    }

    #[test]
    fn slices_come_out_as_the_api_server_hands_them_out() {
        let port = |port: Value| json!({"addressType": "IPv4", "endpoints": [], "ports": [port]});
        check(
            slice,
            &[
                (port(json!({"port": 80})), "/ports/0/name", json!("")),
                (
                    port(json!({"name": "http"})),
                    "/ports/0/name",
                    json!("http"),
                ),
                (port(json!({"port": 80})), "/ports/0/protocol", json!("TCP")),
                (
                    port(json!({"protocol": "SCTP"})),
                    "/ports/0/protocol",
                    json!("SCTP"),
                ),
                (port(json!({"name": "http"})), "/ports/0/port", Value::Null),
            ],
        );
    }

    #[test]
    fn endpoints_and_nodes_come_out_as_the_api_server_hands_them_out() {
        let port = |port: Value| json!({"subsets": [{"ports": [port]}]});
        check(
            endpoints,
            &[
                (
                    port(json!({"port": 80})),
                    "/subsets/0/ports/0/protocol",
                    json!("TCP"),
                ),
                (
                    port(json!({"port": 80, "protocol": "UDP"})),
                    "/subsets/0/ports/0/protocol",
                    json!("UDP"),
                ),
            ],
        );
        check(
            node,
            &[
                (
                    spec(json!({"podCIDR": "10.244.1.0/24"})),
                    "/spec/podCIDRs",
                    json!(["10.244.1.0/24"]),
                ),
                (
                    spec(json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.2.0/24"]})),
                    "/spec/podCIDRs",
                    json!(["10.244.2.0/24"]),
                ),
                (spec(json!({})), "/spec/podCIDRs", Value::Null),
                (json!({}), "/spec", Value::Null),
            ],
        );
    }
}
