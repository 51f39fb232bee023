//! What this node is: its settings, its Node object and its interfaces, made into a
//! [`model::Node`].

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use nftproxy_core::engine;
use nftproxy_core::model::{self, IpFamily, NodeInfo, NodePortAddresses};
use tracing::{info, warn};

use crate::config;

/// The settings that decide what the node is to the rules.
#[derive(Debug, Clone)]
pub(crate) struct NodeSettings {
    pub(crate) bind_address: IpAddr,
    pub(crate) detect_local: config::DetectLocal,
    pub(crate) node_port_addresses: config::NodePortAddresses,
    pub(crate) masquerade_bit: u8,
    pub(crate) masquerade_all: bool,
}

/// What is known of this node, and the [`model::Node`] that follows.
pub(crate) struct ThisNode {
    settings: NodeSettings,
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
        settings: NodeSettings,
        info: Option<NodeInfo>,
        interface_ips: fn() -> io::Result<Vec<IpAddr>>,
    ) -> Self {
        let mut this = Self {
            settings,
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

    /// What the node was waited for, if it still lacks that.
    pub(crate) fn lacks(&self) -> Option<&'static str> {
        match &self.info {
            None => Some("to exist"),
            Some(_) if !self.is_expected => None,
            Some(info) if info.ips.is_empty() => Some("to be assigned IPs"),
            Some(_) => None,
        }
    }

    /// What the engine is to be told of this host's addresses.
    pub(crate) fn addresses_event(&self) -> engine::Event {
        engine::Event::LocalAddressesChanged(self.local_ips.clone())
    }

    /// What the engine is to be told of the node. An object without addresses may still get some.
    pub(crate) fn event(&self) -> engine::Event {
        let is_known = self.info.as_ref().is_some_and(|info| !info.ips.is_empty());
        if is_known {
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
            .filter_map(|family| node_ip(settings, info, family))
            .collect(),
        masquerade_all: settings.masquerade_all,
        masquerade_mark: Some(1 << settings.masquerade_bit),
    }
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
            let ip = node_ip(settings, info, family).filter(|ip| !ip.is_loopback());
            primary = ip.map(IpNet::from);
            primary.as_slice()
        }
        config::NodePortAddresses::Cidrs(cidrs) => cidrs,
    };
    NodePortAddresses::within(ranges, interface_ips, family)
}

/// The node's address in a family: a bind address of that family counts for it.
fn node_ip(settings: &NodeSettings, info: &NodeInfo, family: IpFamily) -> Option<IpAddr> {
    let bind_address = settings.bind_address;
    if IpFamily::of(bind_address) == family && !bind_address.is_unspecified() {
        return Some(bind_address);
    }
    info.ip(family)
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
