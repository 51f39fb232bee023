//! What matters of this node's Node object.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use nftproxy_core::k8s::{LABEL_ZONE, parse_cidr, parse_ip};
use nftproxy_core::model::IpFamily;

/// What matters of a Node object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct NodeInfo {
    /// Label `topology.kubernetes.io/zone`.
    pub(crate) zone: Option<String>,
    /// `status.addresses`: internal ones in order, then external ones.
    pub(crate) ips: Vec<IpAddr>,
    /// `spec.podCIDRs`
    pub(crate) pod_cidrs: Vec<IpNet>,
}

impl NodeInfo {
    /// Reads a Node object.
    pub(crate) fn of(node: &core::Node) -> Self {
        let addresses = node
            .status
            .as_ref()
            .and_then(|status| status.addresses.as_deref());
        let of_type = |wanted: &'static str| {
            let addresses = addresses.unwrap_or_default().iter();
            addresses
                .filter(move |address| address.type_ == wanted)
                .filter_map(|address| parse_ip(&address.address))
        };
        let spec = node.spec.as_ref();
        let pod_cidrs = spec
            .and_then(|spec| spec.pod_cidrs.as_deref())
            .unwrap_or_default();
        Self {
            zone: node
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(LABEL_ZONE))
                .cloned(),
            ips: of_type("InternalIP").chain(of_type("ExternalIP")).collect(),
            pod_cidrs: pod_cidrs
                .iter()
                .filter_map(|cidr| parse_cidr(cidr))
                .collect(),
        }
    }

    /// The node's address in a family: a bind address of that family counts for it.
    pub(crate) fn ip(&self, family: IpFamily, bind_address: IpAddr) -> Option<IpAddr> {
        let of_family = |ip: &IpAddr| IpFamily::of(*ip) == family;
        if of_family(&bind_address) && !bind_address.is_unspecified() {
            return Some(bind_address);
        }
        self.ips.iter().copied().find(of_family)
    }
}
