//! What this node is, and how the operator wants it treated.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Family, InterfaceName, IpFamily};

/// This node, as far as rules depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Value of the node label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// How traffic of this node's pods is told from other traffic.
    pub detect_local: DetectLocal,
    /// Which local addresses accept NodePort connections, IPv4.
    pub node_port_addresses_v4: NodePortAddresses,
    /// Which local addresses accept NodePort connections, IPv6.
    pub node_port_addresses_v6: NodePortAddresses,
    /// The node's own address in each family, where known. A load balancer may put a Service's
    /// address on the node; source ranges with the node's address let such traffic pass.
    pub ips: Vec<IpAddr>,
    /// Masquerade every connection to a ClusterIP.
    pub masquerade_all: bool,
    /// The packet mark that asks for masquerading, a single bit (host byte order). With `None`,
    /// marks are left alone, and what is to be masqueraded is told by where it was sent to.
    pub masquerade_mark: Option<u32>,
    /// Whether new connections are counted: those to each Service port, to each endpoint, and those
    /// that are refused or dropped, by reason. A change of it makes the tables anew.
    pub counts: bool,
    /// Whether rules may hash clients' addresses. Where they may not, as the kernel cannot, Services
    /// that ask for it have their endpoints chosen at random, by the same weights.
    pub hashes: bool,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            zone: None,
            detect_local: DetectLocal::Cidrs(Vec::new()),
            node_port_addresses_v4: NodePortAddresses::All,
            node_port_addresses_v6: NodePortAddresses::All,
            ips: Vec::new(),
            masquerade_all: false,
            masquerade_mark: Some(1 << 14),
            counts: false,
            hashes: true,
        }
    }
}

impl Node {
    /// The detector of one family.
    pub fn detector<F: Family>(&self) -> Detector<F> {
        match &self.detect_local {
            DetectLocal::Cidrs(cidrs) => {
                let prefixes: Vec<_> = cidrs.iter().filter_map(F::prefix).collect();
                if prefixes.is_empty() {
                    Detector::None
                } else {
                    Detector::Prefixes(prefixes)
                }
            }
            DetectLocal::BridgeInterface(name) => Detector::Interface(name.clone()),
            DetectLocal::InterfaceNamePrefix(prefix) => Detector::InterfacePrefix(prefix.clone()),
        }
    }

    /// The NodePort addresses of one family.
    pub fn node_port_addresses<F: Family>(&self) -> &NodePortAddresses {
        match F::FAMILY {
            super::IpFamily::V4 => &self.node_port_addresses_v4,
            super::IpFamily::V6 => &self.node_port_addresses_v6,
        }
    }
}

/// What matters of a Node object. [`Node`] is made of it together with the operator's wishes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeInfo {
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// `status.addresses`: internal ones in order, then external ones.
    pub ips: Vec<IpAddr>,
    /// `spec.podCIDRs`
    pub pod_cidrs: Vec<IpNet>,
}

impl NodeInfo {
    /// The node's first address in a family.
    pub fn ip(&self, family: IpFamily) -> Option<IpAddr> {
        let mut ips = self.ips.iter().copied();
        ips.find(|ip| IpFamily::of(*ip) == family)
    }
}

/// `detectLocalMode` with what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectLocal {
    /// Modes `ClusterCIDR` and `NodeCIDR`: the source address is in one of these.
    Cidrs(Vec<IpNet>),
    /// Mode `BridgeInterface`: the packet came in through this interface.
    BridgeInterface(InterfaceName),
    /// Mode `InterfaceNamePrefix`: the packet came in through an interface named so.
    InterfaceNamePrefix(InterfaceName),
}

/// How one family tells its pods' traffic; see [`Node::detector`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detector<F: Family> {
    /// Nobody is known to be a pod.
    None,
    /// Source address in one of these prefixes (address, length); never empty.
    Prefixes(Vec<(F::Address, u8)>),
    /// Input interface of this name.
    Interface(InterfaceName),
    /// Input interface whose name starts so.
    InterfacePrefix(InterfaceName),
}

/// Which of the node's addresses accept NodePort connections, in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every local address but loopback.
    All,
    /// Just these, which may be none.
    Only(BTreeSet<IpAddr>),
}

impl NodePortAddresses {
    /// Those of this host's addresses that lie in one of a family's ranges, as the field
    /// `nodePortAddresses` has it: without a range, or with the range of everything, all of them.
    ///
    /// ```
    /// # use nftproxy_core::model::{IpFamily, NodePortAddresses};
    /// let ranges = ["192.0.2.0/24".parse()?];
    /// let addresses = [[127, 0, 0, 1].into(), [192, 0, 2, 10].into(), [10, 0, 0, 1].into()];
    /// assert_eq!(
    ///     NodePortAddresses::within(&ranges, &addresses, IpFamily::V4),
    ///     NodePortAddresses::Only([[192, 0, 2, 10].into()].into())
    /// );
    /// assert_eq!(
    ///     NodePortAddresses::within(&ranges, &addresses, IpFamily::V6),
    ///     NodePortAddresses::All
    /// );
    /// # Ok::<(), ipnet::AddrParseError>(())
    /// ```
    pub fn within(ranges: &[IpNet], addresses: &[IpAddr], family: IpFamily) -> Self {
        let ranges: Vec<_> = ranges
            .iter()
            .filter(|range| IpFamily::of(range.addr()) == family)
            .collect();
        if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
            return Self::All;
        }
        let accepted = addresses
            .iter()
            .filter(|ip| !ip.is_loopback() && ranges.iter().any(|range| range.contains(*ip)));
        Self::Only(accepted.copied().collect())
    }
}
