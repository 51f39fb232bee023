//! What this node is: its settings, its Node object and its interfaces, made into a
//! [`model::Node`].

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nftproxy_core::engine;
use nftproxy_core::model::{self, IpFamily, NodeInfo, NodePortAddresses};
use tracing::{debug, error, info, warn};

use crate::check::{self, Families, Unfit};
use crate::config;

/// How long to wait for the Node object and its addresses, once all else is there.
pub(crate) const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// How much longer to wait for its pod CIDRs, where these tell pods.
const POD_CIDR_PATIENCE: Duration = Duration::from_secs(300);

/// The settings that decide what the node is to the rules.
#[derive(Debug, Clone)]
pub(crate) struct NodeSettings {
    pub(crate) bind_address: IpAddr,
    pub(crate) detect_local: config::DetectLocal,
    pub(crate) node_port_addresses: config::NodePortAddresses,
    pub(crate) masquerade_bit: u8,
    pub(crate) masquerade_all: bool,
    /// Whether connections are counted.
    pub(crate) counts: bool,
    /// As [`model::Node::hashes`].
    pub(crate) hashes: bool,
}

impl NodeSettings {
    pub(crate) fn new(settings: &config::Settings) -> Self {
        Self {
            bind_address: settings.bind_address,
            detect_local: settings.detect_local.clone(),
            node_port_addresses: settings.node_port_addresses.clone(),
            masquerade_bit: settings.masquerade_bit,
            masquerade_all: settings.masquerade_all,
            counts: false,
            hashes: true,
        }
    }
}

/// What the Node object was waited for, and has not come.
enum Lack {
    Node,
    Ips,
    /// Of a node whose pods these tell.
    PodCidrs,
}

/// Why there is no proxy of this node, in kube-proxy's words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnfitNode {
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error("timeout waiting for node {0:?} to exist")]
    NoNode(String),
    #[error("timeout waiting for PodCIDR allocation on node {0:?}")]
    NoPodCidrs(String),
}

/// What is known of this node, and the [`model::Node`] that follows.
pub(crate) struct ThisNode {
    name: String,
    settings: NodeSettings,
    families: Families,
    /// `None` until it is known.
    info: Option<NodeInfo>,
    /// Whether a Node object is to come.
    is_expected: bool,
    interface_ips: fn() -> io::Result<Vec<IpAddr>>,
    /// What that said last.
    local_ips: Vec<IpAddr>,
}

impl ThisNode {
    /// `info` is given where no Node object will come.
    pub(crate) fn new(
        name: String,
        settings: NodeSettings,
        families: Families,
        info: Option<NodeInfo>,
        interface_ips: fn() -> io::Result<Vec<IpAddr>>,
    ) -> Self {
        let mut this = Self {
            name,
            settings,
            families,
            is_expected: info.is_none(),
            info,
            interface_ips,
            local_ips: Vec::new(),
        };
        this.read_addresses();
        this
    }

    /// Asks the host for its addresses.
    pub(crate) fn read_addresses(&mut self) {
        self.local_ips = (self.interface_ips)().unwrap_or_else(|error| {
            warn!(%error, "the addresses of this host cannot be read; NodePorts stay unreachable");
            Vec::new()
        });
    }

    /// The node as far as it is known.
    pub(crate) fn node(&self) -> model::Node {
        let unknown = NodeInfo::default();
        let info = self.info.as_ref().unwrap_or(&unknown);
        node(&self.settings, info, &self.local_ips)
    }

    /// Takes what the Node object says; whether that is news.
    pub(crate) fn learn(&mut self, info: NodeInfo) -> bool {
        let known = self.info.as_ref().map_or(&[][..], |info| &info.ips);
        let info = with_addresses(info, known);
        if self.info.as_ref() == Some(&info) {
            return false;
        }
        let ips_before = self.info.as_ref().map(|info| &info.ips);
        let zone = info.zone.as_deref();
        match ips_before {
            Some(ips) if *ips == info.ips => info!(zone, "the node has changed"),
            Some(ips) if !ips.is_empty() => {
                info!(NodeIPs = ?info.ips, zone, "NodeIPs changed for the node");
            }
            _ if !info.ips.is_empty() => {
                info!(NodeIPs = ?info.ips, zone, "Successfully retrieved NodeIPs");
            }
            _ => info!(zone, "the node has no addresses yet"),
        }
        self.info = Some(info);
        true
    }

    /// How long to wait for what is expected of the Node object.
    pub(crate) fn patience(&self) -> Duration {
        match (self.is_expected, &self.settings.detect_local) {
            (false, _) => Duration::ZERO,
            (true, config::DetectLocal::NodeCidr) => NODE_PATIENCE + POD_CIDR_PATIENCE,
            (true, _) => NODE_PATIENCE,
        }
    }

    /// Whether there is nothing left to wait for.
    pub(crate) fn is_complete(&self) -> bool {
        self.lacks().is_none()
    }

    fn lacks(&self) -> Option<Lack> {
        let is_by_node = self.settings.detect_local == config::DetectLocal::NodeCidr;
        match &self.info {
            _ if !self.is_expected => None,
            None => Some(Lack::Node),
            Some(info) if is_by_node && info.pod_cidrs.is_empty() => Some(Lack::PodCidrs),
            Some(info) if info.ips.is_empty() => Some(Lack::Ips),
            Some(_) => None,
        }
    }

    /// Looks whether the proxy can be of use here, with what is known now; what is wrong, and is no
    /// reason to end, is logged.
    ///
    /// # Errors
    ///
    /// If it cannot, or there is no way to tell the node's pods.
    pub(crate) fn judge(&self) -> Result<(), UnfitNode> {
        let is_by_node = self.settings.detect_local == config::DetectLocal::NodeCidr;
        match self.lacks() {
            Some(Lack::Node) if is_by_node => return Err(UnfitNode::NoNode(self.name.clone())),
            Some(Lack::PodCidrs) => return Err(UnfitNode::NoPodCidrs(self.name.clone())),
            Some(Lack::Node) => error!("Timed out waiting for node to exist; going on without"),
            Some(Lack::Ips) => {
                error!("Timed out waiting for node to be assigned IPs; going on without");
            }
            None => {}
        }
        let unknown = NodeInfo::default();
        let info = self.info.as_ref().unwrap_or(&unknown);
        let primary = self.families.primary(info);
        if config::node_ip(self.settings.bind_address, info, primary).is_loopback() {
            info!(
                "Can't determine this node's IP, assuming loopback; if this is incorrect, please \
                 set the --bind-address flag"
            );
        }
        let problems = self.families.judge(info)?;
        if self.families.is_dual_stack() {
            info!("primary ipFamily" = %primary, "kube-proxy running in dual-stack mode");
        } else {
            info!(ipFamily = %primary, "kube-proxy running in single-stack mode");
        }
        if !problems.is_empty() {
            error!(err = check::list(&problems), "{}", check::INCOMPLETE);
        }
        self.log_detection(info, primary);
        Ok(())
    }

    fn log_detection(&self, info: &NodeInfo, primary: IpFamily) {
        let has_primary = |cidrs: &[IpNet]| {
            let mut cidrs = cidrs.iter();
            cidrs.any(|cidr| IpFamily::of(cidr.addr()) == primary)
        };
        let mode = match &self.settings.detect_local {
            config::DetectLocal::ClusterCidr(cidrs) => {
                if !has_primary(cidrs) {
                    info!(
                        ipFamily = %primary, clusterCIDRs = ?cidrs,
                        "Detect-local-mode set to ClusterCIDR, but no cluster CIDR specified for \
                         primary IP family"
                    );
                }
                "ClusterCIDR"
            }
            config::DetectLocal::NodeCidr => {
                if !has_primary(&info.pod_cidrs) {
                    info!(
                        ipFamily = %primary, podCIDRs = ?info.pod_cidrs,
                        "Detect-local-mode set to NodeCIDR, but no PodCIDR defined at node for \
                         primary IP family"
                    );
                }
                "NodeCIDR"
            }
            config::DetectLocal::BridgeInterface(_) => "BridgeInterface",
            config::DetectLocal::InterfaceNamePrefix(_) => "InterfaceNamePrefix",
        };
        debug!(localDetectMode = mode, "DetectLocalMode");
    }

    /// What the engine is to be told of this host's addresses.
    pub(crate) fn addresses_event(&self) -> engine::Event {
        engine::Event::LocalAddressesChanged(self.local_ips.clone())
    }

    /// What the engine is to be told of the node. An object that lacks something may still get it.
    pub(crate) fn event(&self) -> engine::Event {
        if self.is_complete() {
            engine::Event::NodeChanged(self.node())
        } else {
            engine::Event::NodeGuessed(self.node())
        }
    }
}

/// Makes the model's node. `interface_ips` are the addresses on this host's interfaces.
pub(crate) fn node(
    settings: &NodeSettings,
    info: &NodeInfo,
    interface_ips: &[IpAddr],
) -> model::Node {
    let node_port_addresses = |family| node_port_addresses(settings, info, interface_ips, family);
    model::Node {
        zone: info.zone.clone().filter(|zone| !zone.is_empty()),
        detect_local: match &settings.detect_local {
            config::DetectLocal::ClusterCidr(cidrs) => model::DetectLocal::Cidrs(cidrs.clone()),
            config::DetectLocal::NodeCidr => model::DetectLocal::Cidrs(info.pod_cidrs.clone()),
            config::DetectLocal::BridgeInterface(name) => {
                model::DetectLocal::BridgeInterface(name.clone())
            }
            config::DetectLocal::InterfaceNamePrefix(prefix) => {
                model::DetectLocal::InterfaceNamePrefix(prefix.clone())
            }
        },
        node_port_addresses_v4: node_port_addresses(IpFamily::V4),
        node_port_addresses_v6: node_port_addresses(IpFamily::V6),
        ips: [IpFamily::V4, IpFamily::V6]
            .into_iter()
            .map(|family| config::node_ip(settings.bind_address, info, family))
            .collect(),
        masquerade_all: settings.masquerade_all,
        masquerade_mark: Some(1 << settings.masquerade_bit),
        counts: settings.counts,
        hashes: settings.hashes,
    }
}

/// What is known of the node, if it was at these addresses before. A family without any keeps those:
/// a Node that is made anew has none for a while, and NodePorts would be at whatever address.
pub(crate) fn with_addresses(mut info: NodeInfo, known: &[IpAddr]) -> NodeInfo {
    for family in [IpFamily::V4, IpFamily::V6] {
        if info.ip(family).is_none() {
            let known = known.iter().filter(|ip| IpFamily::of(**ip) == family);
            info.ips.extend(known);
        }
    }
    info
}

fn node_port_addresses(
    settings: &NodeSettings,
    info: &NodeInfo,
    interface_ips: &[IpAddr],
    family: IpFamily,
) -> NodePortAddresses {
    let primary;
    let ranges = match &settings.node_port_addresses {
        config::NodePortAddresses::Primary => {
            let ip = config::node_ip(settings.bind_address, info, family);
            primary = Some(IpNet::from(ip)).filter(|_| !ip.is_loopback());
            primary.as_slice()
        }
        config::NodePortAddresses::Cidrs(cidrs) => cidrs,
    };
    NodePortAddresses::within(ranges, interface_ips, family)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(addresses: config::NodePortAddresses) -> NodeSettings {
        NodeSettings {
            bind_address: [0, 0, 0, 0].into(),
            detect_local: config::DetectLocal::NodeCidr,
            node_port_addresses: addresses,
            masquerade_bit: 14,
            masquerade_all: false,
            counts: false,
            hashes: true,
        }
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn only(texts: &[&str]) -> NodePortAddresses {
        NodePortAddresses::Only(ips(texts).into_iter().collect())
    }

    const INTERFACES: [&str; 5] = [
        "127.0.0.1",
        "::1",
        "192.0.2.10",
        "192.0.2.11",
        "2001:db8::10",
    ];

    /// O-71, O-73
    #[test]
    fn primary_is_the_first_address_of_each_family() {
        let info = NodeInfo {
            ips: ips(&["192.0.2.10", "192.0.2.11", "2001:db8::10"]),
            ..NodeInfo::default()
        };
        let node = node(
            &settings(config::NodePortAddresses::Primary),
            &info,
            &ips(&INTERFACES),
        );
        assert_eq!(node.node_port_addresses_v4, only(&["192.0.2.10"]));
        assert_eq!(node.node_port_addresses_v6, only(&["2001:db8::10"]));
    }

    /// O-74, O-95
    #[test]
    fn addresses_that_are_gone_are_kept() {
        let with = |texts: &[&str]| NodeInfo {
            ips: ips(texts),
            ..NodeInfo::default()
        };
        let known = ips(&["192.0.2.10", "192.0.2.11", "2001:db8::10"]);
        let learned = |texts: &[&str]| with_addresses(with(texts), &known).ips;
        assert_eq!(learned(&[]), known);
        assert_eq!(
            learned(&["192.0.2.12"]),
            ips(&["192.0.2.12", "2001:db8::10"])
        );
        assert_eq!(
            learned(&["2001:db8::12", "192.0.2.10"]),
            ips(&["2001:db8::12", "192.0.2.10"])
        );
    }

    /// O-72
    #[test]
    fn a_bind_address_counts_as_the_primary_one() {
        let info = NodeInfo {
            ips: ips(&["192.0.2.10"]),
            ..NodeInfo::default()
        };
        let mut settings = settings(config::NodePortAddresses::Primary);
        settings.bind_address = [192, 0, 2, 11].into();
        let node = node(&settings, &info, &ips(&INTERFACES));
        assert_eq!(node.node_port_addresses_v4, only(&["192.0.2.11"]));
    }

    /// O-72: where no address is known, loopback counts for ranges of sources, and for nothing else.
    #[test]
    fn a_node_without_addresses_is_at_loopback() {
        let node = node(
            &settings(config::NodePortAddresses::Primary),
            &NodeInfo::default(),
            &ips(&INTERFACES),
        );
        assert_eq!(node.ips, ips(&["127.0.0.1", "::1"]));
        assert_eq!(node.node_port_addresses_v4, NodePortAddresses::All);
        assert_eq!(node.node_port_addresses_v6, NodePortAddresses::All);
    }

    #[test]
    fn a_family_without_primary_address_accepts_all() {
        let info = NodeInfo {
            ips: ips(&["192.0.2.10"]),
            ..NodeInfo::default()
        };
        let node = node(
            &settings(config::NodePortAddresses::Primary),
            &info,
            &ips(&INTERFACES),
        );
        assert_eq!(node.node_port_addresses_v6, NodePortAddresses::All);
    }

    #[test]
    fn ranges_select_interface_addresses_but_loopback() {
        let ranges = ["192.0.2.11/32", "127.0.0.0/8", "2001:db8:ffff::/48"];
        let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let settings = settings(config::NodePortAddresses::Cidrs(ranges));
        let node = node(&settings, &NodeInfo::default(), &ips(&INTERFACES));
        assert_eq!(node.node_port_addresses_v4, only(&["192.0.2.11"]));
        assert_eq!(
            node.node_port_addresses_v6,
            only(&[]),
            "no interface has one in the range"
        );
    }

    #[test]
    fn the_range_of_everything_accepts_all() {
        let settings = settings(config::NodePortAddresses::Cidrs(vec![
            "0.0.0.0/0".parse().unwrap(),
        ]));
        let node = node(&settings, &NodeInfo::default(), &ips(&INTERFACES));
        assert_eq!(node.node_port_addresses_v4, NodePortAddresses::All);
    }
}
