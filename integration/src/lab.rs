//! The network the packet tests and the demo run in: two nodes, their pods and an outside client.
//!
//! It is plain routing, and knows nothing of Services or of the proxy under test: that one runs in
//! [`Lab::node`]. Read [`Lab::new`] first. Addresses end alike in both families.
//!
//! ```text
//!                      fabric: bridge br0, no addresses
//!            ┌──────────── node  client  node2 ────────────┐
//!            │                     │                       │
//!          eth0                  eth0                     eth0
//!    192.0.2.10, .11         192.0.2.100              192.0.2.20
//!   2001:db8:1::10, ::11   2001:db8:1::100          2001:db8:1::20
//!          node                 client                   node2
//!     pod1  pod2  pod3    (everyone's default             pod1
//!   10.244.1.1 on each     route; drops what           10.244.2.1
//!  fd00:10:244:1::1         is not for it)           fd00:10:244:2::1
//!      │     │     │                                       │
//!    eth0  eth0  eth0                                     eth0
//!   pods[0]  [1]  [2]                                  remote_pod
//!   10.244.1.11  .12  .13                             10.244.2.11
//!   fd00:10:244:1::11 ::12 ::13                     fd00:10:244:2::11
//! ```
//!
//! Each line is a veth pair, named on both ends as drawn. The nodes forward and route each other's
//! pod network (`10.244.N.0/24`, `fd00:10:244:N::/64`) directly. The client's default route is the
//! node, so that whatever cluster, external or load-balancer IP it asks for arrives there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::netns::Namespace;

/// The IPv4 and the IPv6 address of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dual {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// Both addresses, IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// The node's primary address, and what it uses as source towards the outer segment.
pub const NODE: Dual = outer(10, 0x10);
/// The node's second address on the same interface; never a source unless asked for.
pub const NODE_SECOND: Dual = outer(11, 0x11);
/// The other node.
pub const NODE2: Dual = outer(20, 0x20);
/// The outside host.
pub const CLIENT: Dual = outer(100, 0x100);
/// The node's side of each pod link: the pods' gateway, and the node's source towards them.
pub const POD_GATEWAY: Dual = pod(1, 1, 0x1);
/// The pods on the node, in the order of [`Lab::pods`].
pub const PODS: [Dual; 3] = [pod(1, 11, 0x11), pod(1, 12, 0x12), pod(1, 13, 0x13)];
/// The other node's side of its pod link.
pub const REMOTE_GATEWAY: Dual = pod(2, 1, 0x1);
/// The pod on the other node.
pub const REMOTE_POD: Dual = pod(2, 11, 0x11);

/// `192.0.2.H` and `2001:db8:1::H`, the latter read as hexadecimal.
const fn outer(host_v4: u8, host_v6: u16) -> Dual {
    Dual {
        v4: Ipv4Addr::new(192, 0, 2, host_v4),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, host_v6),
    }
}

/// `10.244.N.H` and `fd00:10:244:N::H`, the latter read as hexadecimal.
const fn pod(node: u8, host_v4: u8, host_v6: u16) -> Dual {
    Dual {
        v4: Ipv4Addr::new(10, 244, node, host_v4),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, node as u16, 0, 0, 0, host_v6),
    }
}

/// The running network; dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    /// The router the proxy runs on.
    pub node: Namespace,
    /// The outside host.
    pub client: Namespace,
    /// The other node, without a proxy.
    pub node2: Namespace,
    /// The pods on [`node`](Self::node).
    pub pods: [Namespace; 3],
    /// The pod on [`node2`](Self::node2).
    pub remote_pod: Namespace,
    fabric: Namespace,
}

impl Lab {
    /// Builds the network in a fraction of a second; every address is usable when it returns.
    ///
    /// # Errors
    ///
    /// Fails without the right to create network namespaces, and without `ip` of iproute2.
    pub fn new() -> Result<Self> {
        let fabric = Namespace::new("fabric")?;
        let lab = Self {
            node: host("node")?,
            client: host("client")?,
            node2: host("node2")?,
            pods: [host("pods[0]")?, host("pods[1]")?, host("pods[2]")?],
            remote_pod: host("remote_pod")?,
            fabric,
        };
        lab.join_outer_segment()?;
        for node in [&lab.node, &lab.node2] {
            node.sysctl("net.ipv4.ip_forward", "1")?;
            node.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        }

        batch(&lab.client, &outer_interface(CLIENT, NODE))?;

        batch(&lab.node, &outer_interface(NODE, CLIENT))?;
        let Dual { v4, v6 } = NODE_SECOND;
        // Being deprecated keeps it from being picked as source, which IPv6 leaves open among
        // equals; it stays a full address for everything that arrives.
        batch(
            &lab.node,
            &format!(
                "addr add {v4}/24 dev eth0
                 addr add {v6}/64 dev eth0 nodad preferred_lft 0"
            ),
        )?;
        batch(&lab.node, &routes_to_pods_of(2, NODE2))?;
        for (index, (pod, address)) in lab.pods.iter().zip(PODS).enumerate() {
            add_pod(
                &lab.node,
                &format!("pod{}", index + 1),
                POD_GATEWAY,
                pod,
                address,
            )?;
        }

        batch(&lab.node2, &outer_interface(NODE2, CLIENT))?;
        batch(&lab.node2, &routes_to_pods_of(1, NODE))?;
        add_pod(
            &lab.node2,
            "pod1",
            REMOTE_GATEWAY,
            &lab.remote_pod,
            REMOTE_POD,
        )?;
        Ok(lab)
    }

    fn join_outer_segment(&self) -> Result<()> {
        // Nobody queries for multicast groups here, and neighbour discovery needs them flooded.
        let mut commands = "link add br0 up type bridge mcast_snooping 0\n".to_owned();
        let members = [
            ("node", &self.node),
            ("client", &self.client),
            ("node2", &self.node2),
        ];
        for (port, member) in members {
            let path = member.path();
            commands +=
                &format!("link add {port} master br0 up type veth peer name eth0 netns {path}\n");
        }
        batch(&self.fabric, &commands)
    }
}

/// A namespace in which the interfaces to come get the settings all hosts share.
fn host(label: &str) -> Result<Namespace> {
    let namespace = Namespace::new(label)?;
    for (family, name) in [
        // Checking for duplicates would hold back each address for a second or more.
        ("ipv6", "accept_dad"),
        ("ipv6", "accept_ra"),
        // Client and nodes share a segment: a redirect would lead the client around the proxy.
        ("ipv4", "send_redirects"),
        ("ipv4", "accept_redirects"),
        ("ipv6", "accept_redirects"),
        // Replies may well take another way than the request.
        ("ipv4", "rp_filter"),
    ] {
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net.{family}.conf.{scope}.{name}"), "0")?;
        }
    }
    // Without these, only the first few of many rejected probes would hear of it. The masks name
    // the ICMP types that are rate limited; type 0 is unused in IPv6.
    namespace.sysctl("net.ipv4.icmp_ratemask", "0")?;
    namespace.sysctl("net.ipv6.icmp.ratemask", "0")?;
    Ok(namespace)
}

/// `ip` commands that make a host's interface on the outer segment usable.
fn outer_interface(address: Dual, gateway: Dual) -> String {
    format!(
        "link set eth0 up
         addr add {}/24 dev eth0
         addr add {}/64 dev eth0 nodad
         route add default via {}
         route add default via {}
         ",
        address.v4, address.v6, gateway.v4, gateway.v6
    )
}

/// `ip` commands that route the pods of node number `node` to that node.
fn routes_to_pods_of(node: u8, gateway: Dual) -> String {
    format!(
        "route add 10.244.{node}.0/24 via {}
         route add fd00:10:244:{node}::/64 via {}
         ",
        gateway.v4, gateway.v6
    )
}

/// Joins `pod` to `node` by a link of its own; `link` is the name of the node's side.
fn add_pod(
    node: &Namespace,
    link: &str,
    gateway: Dual,
    pod: &Namespace,
    address: Dual,
) -> Result<()> {
    let Dual { v4, v6 } = address;
    let (gateway_v4, gateway_v6) = (gateway.v4, gateway.v6);
    let path = pod.path();
    batch(
        node,
        &format!(
            "link add {link} up type veth peer name eth0 netns {path}
             addr add {gateway_v4}/32 dev {link}
             addr add {gateway_v6}/128 dev {link} nodad
             route add {v4}/32 dev {link} src {gateway_v4}
             route add {v6}/128 dev {link} src {gateway_v6}"
        ),
    )?;
    batch(
        pod,
        &format!(
            "link set eth0 up
             addr add {v4}/32 dev eth0
             addr add {v6}/128 dev eth0 nodad
             route add {gateway_v4}/32 dev eth0
             route add {gateway_v6}/128 dev eth0
             route add default via {gateway_v4}
             route add default via {gateway_v6}"
        ),
    )
}

/// Runs many `ip` commands, one per line, in one process.
fn batch(namespace: &Namespace, commands: &str) -> Result<()> {
    namespace
        .exec_with_input(&["ip", "-batch", "-"], commands)
        .map(drop)
}
