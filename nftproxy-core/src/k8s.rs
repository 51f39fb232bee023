//! From Kubernetes objects to the model.
//!
//! Conversion is total: whatever an API server or a file may hold becomes something, or is left
//! out with a [`Problem`]. The objects are only read, so that the caller can drop them at once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{self as core, ServiceSpec};
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::{
    ClusterIps, Endpoint, EndpointSlice, Family, Hints, Kept, Locality, NodeHint, NodeInfo,
    Protocol, Service, ServiceName, ServicePort, SliceEndpoints, SliceName, SlicePort,
    TrafficPolicy, V4, V6,
};

/// Services with this label belong to another proxy.
pub const LABEL_SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Slices with this label are of no concern to proxies.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// Names the Service of a slice.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The zone of a node.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

/// The timeout of session affinity if none is given, in seconds.
const DEFAULT_AFFINITY_TIMEOUT: NonZeroU32 = NonZeroU32::new(10800).expect("it is not zero");

/// Something in an object that could not be used; the rest of the object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `Service namespace/name` and the like.
    pub object: String,
    /// What it is, with the field.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.message)
    }
}

/// The name of a Service.
pub fn service_name(service: &core::Service) -> ServiceName {
    let (namespace, name) = identity(&service.metadata);
    ServiceName::new(namespace, name)
}

/// The name of a slice.
pub fn slice_name(slice: &discovery::EndpointSlice) -> SliceName {
    let (namespace, name) = identity(&slice.metadata);
    SliceName::new(namespace, name)
}

fn identity(metadata: &ObjectMeta) -> (&str, &str) {
    (
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

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
    let name = service_name(object);
    let mut problem = |message| {
        problems.push(Problem {
            object: format!("Service {name}"),
            message,
        });
    };
    let created = object.metadata.creation_timestamp.as_ref();
    Some(Service {
        created: created.map_or(0, |time| time.0.as_second()),
        cluster_ips: cluster_ips(spec, &mut problem),
        external_ips: addresses(
            spec.external_ips.iter().flatten().map(String::as_str),
            "spec.externalIPs",
            &mut problem,
        ),
        load_balancer_ips: load_balancer_ips(object, &mut problem),
        source_ranges: source_ranges(spec, &mut problem),
        internal_traffic_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_traffic_policy: external_traffic_policy(spec),
        session_affinity: session_affinity(spec),
        health_check_node_port: health_check_node_port(spec),
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
    if families.is_empty() {
        let text = spec.cluster_ip.as_deref().unwrap_or_default();
        match parse_ip(text) {
            Some(IpAddr::V4(ip)) => ips.v4 = Some(ip),
            Some(IpAddr::V6(ip)) => ips.v6 = Some(ip),
            None => problem(format!("spec.clusterIP: {text:?} is not an IP address")),
        }
        return ips;
    }
    for (family, text) in families.iter().zip(spec.cluster_ips.iter().flatten()) {
        match (family.as_str(), parse_ip(text)) {
            ("IPv4", Some(IpAddr::V4(ip))) => ips.v4 = ips.v4.or(Some(ip)),
            ("IPv6", Some(IpAddr::V6(ip))) => ips.v6 = ips.v6.or(Some(ip)),
            (_, None) => problem(format!("spec.clusterIPs: {text:?} is not an IP address")),
            (family, Some(ip)) => problem(format!("spec.clusterIPs: {ip} is not {family}")),
        }
    }
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

fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") {
        TrafficPolicy::Local
    } else {
        TrafficPolicy::Cluster
    }
}

/// `Local` counts only where Kubernetes lets the field be set.
fn external_traffic_policy(spec: &ServiceSpec) -> TrafficPolicy {
    let is_external = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
        || spec
            .external_ips
            .as_ref()
            .is_some_and(|ips| !ips.is_empty());
    if is_external {
        policy(spec.external_traffic_policy.as_deref())
    } else {
        TrafficPolicy::Cluster
    }
}

/// Load balancers need to know only under policy `Local` which nodes can serve.
fn health_check_node_port(spec: &ServiceSpec) -> Option<NonZeroU16> {
    let is_load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let is_local = external_traffic_policy(spec) == TrafficPolicy::Local;
    let port = spec.health_check_node_port.and_then(port_number)?;
    (is_load_balancer && is_local).then_some(port)
}

fn session_affinity(spec: &ServiceSpec) -> Option<NonZeroU32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    let timeout = config.and_then(|config| config.timeout_seconds);
    let timeout = timeout
        .and_then(|seconds| u32::try_from(seconds).ok())
        .and_then(NonZeroU32::new);
    Some(timeout.unwrap_or(DEFAULT_AFFINITY_TIMEOUT))
}

fn service_port(port: &core::ServicePort, problem: &mut impl FnMut(String)) -> Option<ServicePort> {
    let name = port.name.as_deref().unwrap_or_default();
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        problem(format!(
            "spec.ports: port {name:?} has an unknown protocol {:?}",
            port.protocol
        ));
        return None;
    };
    let Some(number) = port_number(port.port) else {
        problem(format!(
            "spec.ports: port {name:?} has number {}",
            port.port
        ));
        return None;
    };
    Some(ServicePort {
        name: name.into(),
        protocol,
        port: number,
        node_port: port.node_port.and_then(port_number),
    })
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    text.map_or(Some(Protocol::Tcp), Protocol::from_kubernetes)
}

fn port_number(number: i32) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}

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
    let name = slice_name(object);
    let mut problem = |message| {
        problems.push(Problem {
            object: format!("EndpointSlice {name}"),
            message,
        });
    };
    let endpoints = object.endpoints.as_deref().unwrap_or_default();
    let endpoints = match object.address_type.as_str() {
        "IPv4" => SliceEndpoints::V4(convert_endpoints::<V4>(endpoints, node_name, &mut problem)),
        "IPv6" => SliceEndpoints::V6(convert_endpoints::<V6>(endpoints, node_name, &mut problem)),
        other => {
            problem(format!("addressType {other} is not supported"));
            return None;
        }
    };
    let ports = object
        .ports
        .iter()
        .flatten()
        .filter_map(slice_port)
        .collect();
    Some(EndpointSlice {
        service: ServiceName::new(namespace, service),
        name,
        ports,
        endpoints,
    })
}

/// Ports without a name or a number serve nothing.
fn slice_port(port: &discovery::EndpointPort) -> Option<SlicePort> {
    Some(SlicePort {
        name: port.name.as_deref()?.into(),
        protocol: protocol(port.protocol.as_deref())?,
        port: port_number(port.port?)?,
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
            let conditions = endpoint.conditions.as_ref();
            let locality = match endpoint.node_name.as_deref() {
                None => Locality::Unknown,
                Some(name) if name == node_name => Locality::Local,
                Some(_) => Locality::Remote,
            };
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
                hints: hints(endpoint, node_name, &mut seen_hints),
            })
        })
        .collect()
}

fn hints(
    endpoint: &discovery::Endpoint,
    node_name: &str,
    seen: &mut Vec<Arc<Hints>>,
) -> Option<Arc<Hints>> {
    let hints = endpoint.hints.as_ref()?;
    let zones: Box<[Box<str>]> = hints
        .for_zones
        .iter()
        .flatten()
        .map(|zone| zone.name.as_str().into())
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

/// The ranges of a ServiceCIDR.
pub fn service_cidrs(object: &ServiceCIDR, problems: &mut Vec<Problem>) -> Vec<IpNet> {
    let texts = object
        .spec
        .as_ref()
        .and_then(|spec| spec.cidrs.as_deref())
        .unwrap_or_default();
    let (_, name) = identity(&object.metadata);
    let ranges = texts.iter().filter_map(|text| {
        let range = parse_cidr(text);
        if range.is_none() {
            let message = format!("spec.cidrs: {text:?} is not a CIDR");
            problems.push(Problem {
                object: format!("ServiceCIDR {name}"),
                message,
            });
        }
        range
    });
    ranges.collect()
}

/// What matters of a Node object.
pub fn node_info(object: &core::Node) -> NodeInfo {
    let status = object.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_deref());
    let of_type = |wanted: &'static str| {
        let addresses = addresses.unwrap_or_default().iter();
        addresses
            .filter(move |address| address.type_ == wanted)
            .filter_map(|address| parse_ip(&address.address))
    };
    let spec = object.spec.as_ref();
    let pod_cidrs = spec.and_then(|spec| spec.pod_cidrs.as_deref());
    NodeInfo {
        zone: label(&object.metadata, LABEL_ZONE).map(Into::into),
        ips: of_type("InternalIP").chain(of_type("ExternalIP")).collect(),
        pod_cidrs: pod_cidrs
            .unwrap_or_default()
            .iter()
            .filter_map(|cidr| parse_cidr(cidr))
            .collect(),
    }
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn has_label(metadata: &ObjectMeta, key: &str) -> bool {
    label(metadata, key).is_some()
}

/// Reads an IP address as Kubernetes does: leading zeros are decimal, and an IPv4-mapped IPv6
/// address counts as IPv4.
///
/// ```
/// # use nftproxy_core::k8s::parse_ip;
/// assert_eq!(parse_ip("172.30.0.041"), Some([172, 30, 0, 41].into()));
/// assert_eq!(parse_ip("::ffff:10.0.0.1"), Some([10, 0, 0, 1].into()));
/// assert_eq!(parse_ip("10.0.0.256"), None);
/// ```
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let address: Ipv6Addr = text.parse().ok()?;
        return Some(
            address
                .to_ipv4_mapped()
                .map_or(IpAddr::V6(address), IpAddr::V4),
        );
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?;
    }
    parts
        .next()
        .is_none()
        .then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// Reads a CIDR as Kubernetes does: leniently as [`parse_ip`], host bits cleared.
///
/// ```
/// # use nftproxy_core::k8s::parse_cidr;
/// assert_eq!(parse_cidr("203.0.113.007/025").unwrap().to_string(), "203.0.113.0/25");
/// assert_eq!(parse_cidr("203.0.113.0"), None);
/// ```
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length: u8 = decimal(length)?;
    // An IPv4-mapped range counts its bits from the start of the IPv6 address.
    let length = match (parse_ip(address)?, address.contains(':')) {
        (IpAddr::V4(_), true) => length.checked_sub(96)?,
        _ => length,
    };
    Some(IpNet::new(parse_ip(address)?, length).ok()?.trunc())
}

fn decimal(text: &str) -> Option<u8> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}
