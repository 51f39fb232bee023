//! Services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{self as core, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::address::special;
use super::balancing::balancing;
use super::{
    LABEL_SERVICE_PROXY_NAME, Problem, describe, label, parse_cidr, parse_ip, port_number,
    protocol, service_name,
};
use crate::model::{ClusterIps, Kept, PortName, Service, ServicePort, TrafficPolicy};

/// The timeout of session affinity if none is given, in seconds.
const DEFAULT_AFFINITY_TIMEOUT: NonZeroU32 = NonZeroU32::new(10_800).expect("it is not zero");
/// The longest timeout of session affinity, in seconds: a day.
const MAX_AFFINITY_TIMEOUT: NonZeroU32 = NonZeroU32::new(86_400).expect("it is not zero");

/// Which Services are for this proxy, and what of them its embedder wants to see.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceOptions {
    /// The label `service.kubernetes.io/service-proxy-name` that Services for this proxy have;
    /// `None` for the cluster's default proxy, whose Services have no such label.
    pub proxy_name: Option<String>,
    /// Labels to keep in [`Service::kept`], by key.
    pub labels: Vec<String>,
    /// Annotations to keep in [`Service::kept`], by key.
    pub annotations: Vec<String>,
}

impl ServiceOptions {
    fn kept(&self, metadata: &ObjectMeta) -> Option<Box<Kept>> {
        let keep = |keys: &[String], from: Option<&BTreeMap<String, String>>| {
            let keys = keys.iter().filter_map(|key| from?.get_key_value(key));
            keys.map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                .collect()
        };
        let kept = Kept {
            labels: keep(&self.labels, metadata.labels.as_ref()),
            annotations: keep(&self.annotations, metadata.annotations.as_ref()),
        };
        (kept != Kept::default()).then(|| Box::new(kept))
    }
}

/// Converts a Service for the cluster's default proxy. `None` if it is not for us to proxy: it is
/// headless, an external name, or labelled for another proxy.
pub fn service(object: &core::Service, problems: &mut Vec<Problem>) -> Option<Service> {
    service_with(object, &ServiceOptions::default(), problems)
}

/// Converts a Service. `None` if it is not for this proxy: it is headless, an external name, or
/// labelled for another one.
///
/// ```
/// # use nftproxy_core::k8s::{ServiceOptions, service_with};
/// # let object = serde_json::from_str(
/// #     r#"{
/// #       "metadata": {
/// #         "namespace": "shop",
/// #         "name": "api",
/// #         "labels": {"service.kubernetes.io/service-proxy-name": "my-cni"},
/// #         "annotations": {"my-cni/weight": "3"}
/// #       },
/// #       "spec": {"clusterIP": "10.96.0.20", "ports": [{"port": 80}]}
/// #     }"#,
/// # )?;
/// let options = ServiceOptions {
///     proxy_name: Some("my-cni".into()),
///     annotations: vec!["my-cni/weight".into()],
///     ..ServiceOptions::default()
/// };
/// let service = service_with(&object, &options, &mut Vec::new()).expect("it is labelled for us");
/// assert_eq!(service.annotation("my-cni/weight"), Some("3"));
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn service_with(
    object: &core::Service,
    options: &ServiceOptions,
    problems: &mut Vec<Problem>,
) -> Option<Service> {
    if label(&object.metadata, LABEL_SERVICE_PROXY_NAME) != options.proxy_name.as_deref() {
        return None;
    }
    let spec = object.spec.as_ref()?;
    let is_external_name = spec.type_.as_deref() == Some("ExternalName");
    if is_external_name || matches!(spec.cluster_ip.as_deref(), None | Some("" | "None")) {
        return None;
    }
    let label = describe("Service", &object.metadata);
    let mut problem = |message| {
        problems.push(Problem {
            object: label.clone(),
            message,
        });
    };
    let name = match service_name(object) {
        Ok(name) => name,
        Err(error) => {
            problem(format!("metadata: {error}"));
            return None;
        }
    };
    let created = object.metadata.creation_timestamp.as_ref();
    Some(Service {
        created: created.map_or(0, |time| time.0.as_second()),
        cluster_ips: cluster_ips(spec, &mut problem),
        external_ips: external_ips(spec, &mut problem),
        load_balancer_ips: load_balancer_ips(object, &mut problem),
        source_ranges: source_ranges(spec, &mut problem),
        internal_traffic_policy: policy(
            spec.internal_traffic_policy.as_deref(),
            "spec.internalTrafficPolicy",
            &mut problem,
        ),
        external_traffic_policy: external_traffic_policy(spec, &mut problem),
        session_affinity: session_affinity(spec, &mut problem),
        balancing: balancing(&object.metadata, &mut problem),
        health_check_node_port: health_check_node_port(spec, &mut problem),
        ports: spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| service_port(port, &mut problem))
            .collect(),
        kept: options.kept(&object.metadata),
        name,
    })
}

/// The ClusterIP of each family: `clusterIPs[i]` for the first i with `ipFamilies[i]`, or
/// `clusterIP` in objects from before dual-stack.
fn cluster_ips(spec: &ServiceSpec, problem: &mut impl FnMut(String)) -> ClusterIps {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let mut ips = ClusterIps::default();
    // No range of ServiceCIDRs holds such, and the host itself would be cut off.
    let mut parse = |field: &str, text: &str| match parse_ip(text) {
        None => {
            problem(format!("{field}: {text:?} is not an IP address"));
            None
        }
        Some(ip) if ip.is_unspecified() || ip.is_loopback() => {
            problem(format!("{field}: {ip} cannot be a ClusterIP"));
            None
        }
        ip => ip,
    };
    if families.is_empty() {
        let text = spec.cluster_ip.as_deref().unwrap_or_default();
        match parse("spec.clusterIP", text) {
            Some(IpAddr::V4(ip)) => ips.v4 = Some(ip),
            Some(IpAddr::V6(ip)) => ips.v6 = Some(ip),
            None => {}
        }
        return ips;
    }
    let mut mismatches = Vec::new();
    for (family, text) in families.iter().zip(spec.cluster_ips.iter().flatten()) {
        match (family.as_str(), parse("spec.clusterIPs", text)) {
            ("IPv4", Some(IpAddr::V4(ip))) => ips.v4 = ips.v4.or(Some(ip)),
            ("IPv6", Some(IpAddr::V6(ip))) => ips.v6 = ips.v6.or(Some(ip)),
            (_, None) => {}
            (family, Some(ip)) => {
                mismatches.push(format!("spec.clusterIPs: {ip} is not {family:?}"))
            }
        }
    }
    mismatches.into_iter().for_each(problem);
    ips
}

fn addresses<'a>(
    texts: impl Iterator<Item = &'a str>,
    field: &str,
    problem: &mut impl FnMut(String),
) -> Box<[IpAddr]> {
    texts
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .filter_map(|text| {
            let ip = parse_ip(text);
            if ip.is_none() {
                problem(format!("{field}: {text:?} is not an IP address"));
            }
            ip
        })
        .collect()
}

fn external_ips(spec: &ServiceSpec, problem: &mut impl FnMut(String)) -> Box<[IpAddr]> {
    const FIELD: &str = "spec.externalIPs";
    let texts = spec.external_ips.iter().flatten().map(String::as_str);
    let ips = addresses(texts, FIELD, problem);
    let mut is_usable = |ip: &IpAddr| match special(*ip) {
        None => true,
        Some(what) => {
            problem(format!("{FIELD}: {ip} is {what}"));
            false
        }
    };
    ips.into_iter().filter(|ip| is_usable(ip)).collect()
}

/// Ingress addresses that traffic arrives with. With ipMode `Proxy` it does not: the load balancer
/// sends it to node ports or endpoints.
fn load_balancer_ips(object: &core::Service, problem: &mut impl FnMut(String)) -> Box<[IpAddr]> {
    let status = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = status
        .and_then(|status| status.ingress.as_deref())
        .unwrap_or_default();
    let texts = ingress
        .iter()
        .filter(|ingress| matches!(ingress.ip_mode.as_deref(), None | Some("VIP")))
        .filter_map(|ingress| ingress.ip.as_deref());
    addresses(texts, "status.loadBalancer.ingress", problem)
}

fn source_ranges(spec: &ServiceSpec, problem: &mut impl FnMut(String)) -> Box<[IpNet]> {
    let texts = spec.load_balancer_source_ranges.iter().flatten();
    texts
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
        .filter_map(|text| {
            let range = parse_cidr(text);
            if range.is_none() {
                problem(format!(
                    "spec.loadBalancerSourceRanges: {text:?} is not a CIDR"
                ));
            }
            range
        })
        .collect()
}

/// Anything that is unknown counts as `Cluster`.
fn policy(text: Option<&str>, field: &str, problem: &mut impl FnMut(String)) -> TrafficPolicy {
    match text {
        Some("Local") => TrafficPolicy::Local,
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some(other) => {
            problem(format!(
                "{field}: {other:?} is unknown, and counts as Cluster"
            ));
            TrafficPolicy::Cluster
        }
    }
}

/// Whether Kubernetes lets `externalTrafficPolicy` be set.
fn is_external(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
        || spec
            .external_ips
            .as_ref()
            .is_some_and(|ips| !ips.is_empty())
}

fn external_traffic_policy(spec: &ServiceSpec, problem: &mut impl FnMut(String)) -> TrafficPolicy {
    if !is_external(spec) {
        return TrafficPolicy::Cluster;
    }
    let text = spec.external_traffic_policy.as_deref();
    policy(text, "spec.externalTrafficPolicy", problem)
}

/// Load balancers need to know only under policy `Local` which nodes can serve.
fn health_check_node_port(
    spec: &ServiceSpec,
    problem: &mut impl FnMut(String),
) -> Option<NonZeroU16> {
    let is_load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
    if !(is_load_balancer && is_local) {
        return None;
    }
    optional_port(
        spec.health_check_node_port,
        || "spec.healthCheckNodePort".into(),
        problem,
    )
}

fn session_affinity(spec: &ServiceSpec, problem: &mut impl FnMut(String)) -> Option<NonZeroU32> {
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {}
        None | Some("" | "None") => return None,
        Some(other) => {
            problem(format!(
                "spec.sessionAffinity: {other:?} is unknown, and counts as None"
            ));
            return None;
        }
    }
    let config = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = config.and_then(|config| config.timeout_seconds) else {
        return Some(DEFAULT_AFFINITY_TIMEOUT);
    };
    let timeout = u32::try_from(seconds).ok().and_then(NonZeroU32::new);
    let timeout = timeout.filter(|timeout| *timeout <= MAX_AFFINITY_TIMEOUT);
    Some(timeout.unwrap_or_else(|| {
        problem(format!(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not from 1 to \
             {MAX_AFFINITY_TIMEOUT}, and counts as {DEFAULT_AFFINITY_TIMEOUT}"
        ));
        DEFAULT_AFFINITY_TIMEOUT
    }))
}

fn service_port(port: &core::ServicePort, problem: &mut impl FnMut(String)) -> Option<ServicePort> {
    let name = port.name.as_deref().unwrap_or_default();
    let name = match PortName::new(name) {
        Ok(name) => name,
        Err(error) => {
            problem(format!("spec.ports: {error}"));
            return None;
        }
    };
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        problem(format!(
            "spec.ports: port {:?} has an unknown protocol {:?}",
            name.as_str(),
            port.protocol.as_deref().unwrap_or_default()
        ));
        return None;
    };
    let Some(number) = port_number(port.port) else {
        problem(format!(
            "spec.ports: port {:?} has number {}",
            name.as_str(),
            port.port
        ));
        return None;
    };
    let field = || format!("spec.ports: nodePort of port {:?}", name.as_str());
    Some(ServicePort {
        protocol,
        port: number,
        node_port: optional_port(port.node_port, field, problem),
        name,
    })
}

/// A port that may be absent, which 0 stands for as well.
fn optional_port(
    number: Option<i32>,
    field: impl Fn() -> String,
    problem: &mut impl FnMut(String),
) -> Option<NonZeroU16> {
    let number = number.filter(|number| *number != 0)?;
    let port = port_number(number);
    if port.is_none() {
        problem(format!("{}: {number} is not a port", field()));
    }
    port
}
