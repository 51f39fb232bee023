//! From Kubernetes objects to the model.
//!
//! Conversion is total: whatever an API server or a file may hold becomes something, or is left
//! out with a [`Problem`]. The objects are only read, so that the caller can drop them at once.

mod address;
mod balancing;
mod service;
mod slice;

use std::fmt;
use std::num::NonZeroU16;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use self::address::{parse_cidr, parse_ip};
pub use self::balancing::{ANNOTATION_BALANCING, ANNOTATION_WEIGHTS};
pub use self::service::{ServiceOptions, service, service_with};
pub use self::slice::endpoint_slice;
use crate::model::{NameError, NodeInfo, Protocol, ServiceName, SliceName, check_label_value};

/// Services with this label belong to another proxy.
pub const LABEL_SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Slices with this label are of no concern to proxies.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// Names the Service of a slice.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The zone of a node.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

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
///
/// # Errors
///
/// If the API server would not have it.
pub fn service_name(service: &core::Service) -> Result<ServiceName, NameError> {
    let (namespace, name) = identity(&service.metadata);
    ServiceName::new(namespace, name)
}

/// The name of a slice.
///
/// # Errors
///
/// If the API server would not have it.
pub fn slice_name(slice: &discovery::EndpointSlice) -> Result<SliceName, NameError> {
    let (namespace, name) = identity(&slice.metadata);
    SliceName::new(namespace, name)
}

/// Kind and name of an object, on one line whatever the name is.
pub fn describe(kind: &str, metadata: &ObjectMeta) -> String {
    let name = match identity(metadata) {
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    let is_plain = |c: char| c.is_ascii_graphic() && !"\"\\{}".contains(c);
    if !name.is_empty() && name.chars().all(is_plain) {
        format!("{kind} {name}")
    } else {
        format!("{kind} {name:?}")
    }
}

fn identity(metadata: &ObjectMeta) -> (&str, &str) {
    (
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

/// The ranges of a ServiceCIDR.
pub fn service_cidrs(object: &ServiceCIDR, problems: &mut Vec<Problem>) -> Vec<IpNet> {
    let texts = object
        .spec
        .as_ref()
        .and_then(|spec| spec.cidrs.as_deref())
        .unwrap_or_default();
    let ranges = texts.iter().filter_map(|text| {
        let range = parse_cidr(text);
        if range.is_none() {
            let message = format!("spec.cidrs: {text:?} is not a CIDR");
            problems.push(Problem {
                object: describe("ServiceCIDR", &object.metadata),
                message,
            });
        }
        range
    });
    ranges.collect()
}

/// What matters of a Node object.
pub fn node_info(object: &core::Node, problems: &mut Vec<Problem>) -> NodeInfo {
    let mut problem = |message| {
        problems.push(Problem {
            object: describe("Node", &object.metadata),
            message,
        });
    };
    let zone = label(&object.metadata, LABEL_ZONE).filter(|zone| {
        let check = check_label_value(zone);
        if let Err(error) = &check {
            problem(format!("label {LABEL_ZONE}: {error}"));
        }
        check.is_ok()
    });
    let status = object.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_deref());
    let mut ips = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        let addresses = addresses.unwrap_or_default().iter();
        for address in addresses.filter(|address| address.type_ == wanted) {
            match parse_ip(&address.address) {
                Some(ip) => ips.push(ip),
                None => problem(format!(
                    "status.addresses: {:?} is not an IP address",
                    address.address
                )),
            }
        }
    }
    let spec = object.spec.as_ref();
    let mut pod_cidrs = Vec::new();
    for text in spec
        .and_then(|spec| spec.pod_cidrs.as_deref())
        .into_iter()
        .flatten()
    {
        match parse_cidr(text) {
            Some(cidr) => pod_cidrs.push(cidr),
            None => problem(format!("spec.podCIDRs: {text:?} is not a CIDR")),
        }
    }
    NodeInfo {
        zone: zone.map(Into::into),
        ips,
        pod_cidrs,
    }
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn has_label(metadata: &ObjectMeta, key: &str) -> bool {
    label(metadata, key).is_some()
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("") => Some(Protocol::Tcp),
        Some(text) => Protocol::from_kubernetes(text),
    }
}

fn port_number(number: i32) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}
