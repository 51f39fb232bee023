//! Random packets, as proptest strategies: a choice names what both families have.

use nftproxy_core::trace::Packet;
use proptest::prelude::*;
use proptest::sample::select;

use crate::cluster::{ENDPOINTS, VIRTUAL_ADDRESSES};
use crate::common::{NODE_IP, OTHER_NODE_IP, SECOND_NODE_IP, Twin};

/// A packet of either family.
#[derive(Debug, Clone)]
pub(crate) struct PacketChoice {
    source: &'static str,
    destination: &'static str,
    protocol: u8,
    port: u16,
    interface: Option<&'static str>,
}

impl PacketChoice {
    pub(crate) fn packet<F: Twin>(&self) -> Packet<F> {
        Packet {
            source: F::parse(self.source),
            destination: F::parse(self.destination),
            protocol: self.protocol,
            destination_port: self.port,
            input_interface: self.interface.map(Into::into),
            mark: 0,
        }
    }
}

/// Any packet.
pub(crate) fn packet() -> impl Strategy<Value = PacketChoice> {
    let outside = ["192.0.2.1", "192.0.2.1", "192.0.2.200", "203.0.113.1"];
    let sources = [&ENDPOINTS[..], &[NODE_IP], &outside].concat();
    let others = [
        NODE_IP,
        SECOND_NODE_IP,
        OTHER_NODE_IP,
        "127.0.0.1",
        "10.96.9.9",
        "10.244.1.1",
    ];
    let destinations = [&VIRTUAL_ADDRESSES[..], &VIRTUAL_ADDRESSES[..], &others].concat();
    let interfaces = [None, Some("eth0"), Some("veth1"), Some("veth2")];
    (
        select(sources),
        select(destinations),
        select(&[6, 6, 6, 17, 17, 132, 1][..]),
        select(&[80, 80, 81, 30080, 30081][..]),
        select(interfaces.to_vec()),
    )
        .prop_map(
            |(source, destination, protocol, port, interface)| PacketChoice {
                source,
                destination,
                protocol,
                port,
                interface,
            },
        )
}

/// The first packet of a connection that one of few clients makes to a Service, or to a node.
pub(crate) fn connection(protocols: &'static [u8]) -> impl Strategy<Value = PacketChoice> {
    let clients = [
        ("10.244.1.1", Some("veth1")),
        (NODE_IP, None),
        ("192.0.2.1", Some("eth0")),
        ("192.0.2.200", Some("eth0")),
    ];
    let nodes = [NODE_IP, NODE_IP, OTHER_NODE_IP];
    (
        select(clients.to_vec()),
        select([&VIRTUAL_ADDRESSES[..], &nodes].concat()),
        select(protocols),
        select(&[80, 80, 30080, 30081][..]),
    )
        .prop_map(
            |((source, interface), destination, protocol, port)| PacketChoice {
                source,
                destination,
                protocol,
                port,
                interface,
            },
        )
}
