//! The cluster that all benchmarks here work on. It measures nothing itself.
//!
//! Entry point: [`Cluster::new`]. Addresses count up from 10.96.0.1 for ClusterIPs and from
//! 10.244.0.0 for endpoints.

#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use nftproxy_core::compile::{Changes, Compilation, Seeds, compile};
use nftproxy_core::diff::{Delta, Holder, Observed, Sizes, diff};
use nftproxy_core::model::{
    ClusterIps, Endpoint, EndpointSlice, Locality, Node, PortName, Protocol, Service, ServiceName,
    ServicePort, SliceEndpoints, SliceName, SlicePort, State, V4,
};
use nftproxy_core::ruleset::FamilyRuleset;

const FIRST_CLUSTER_IP: u32 = 0x0a60_0001;
const FIRST_ENDPOINT: u32 = 0x0af4_0000;
/// What an endpoint is replaced by; no cluster here has as many endpoints before it.
const SPARE_ENDPOINT: u32 = 0x0aff_0000;
const SERVICE_PORT: NonZeroU16 = NonZeroU16::new(80).expect("80 is not 0");
const ENDPOINT_PORT: NonZeroU16 = NonZeroU16::new(8080).expect("8080 is not 0");

/// IPv4 Services of one port each, and equally many endpoints for each of them.
pub(crate) struct Cluster {
    pub(crate) state: State,
    pub(crate) node: Node,
    n_endpoints: u32,
}

impl Cluster {
    pub(crate) fn new(n_services: u32, n_endpoints: u32) -> Self {
        let mut cluster = Self {
            state: State::default(),
            node: Node::default(),
            n_endpoints,
        };
        for number in 0..n_services {
            cluster.state.apply_service(service(number));
            cluster.apply_slice(number, FIRST_ENDPOINT + number * n_endpoints);
        }
        cluster
    }

    /// Compiles all Services from nothing.
    pub(crate) fn ruleset(&self) -> FamilyRuleset<V4> {
        compile(&self.state, &self.node).v4
    }

    /// What creates the whole table.
    pub(crate) fn creation(&self) -> Delta<V4> {
        diff(None, &self.ruleset())
    }

    /// Replaces the first endpoint of a Service by one that no Service has, or back.
    pub(crate) fn replace_endpoint(&mut self, number: u32, forth: bool) {
        let first = if forth {
            SPARE_ENDPOINT
        } else {
            FIRST_ENDPOINT + number * self.n_endpoints
        };
        self.apply_slice(number, first);
    }

    /// Compiles what has changed since the last call, at first everything.
    pub(crate) fn update(&mut self, compilation: &mut Compilation<V4>) -> Changes<V4> {
        let dirty = self.state.take_dirty();
        compilation.update(&self.state, &self.node, &dirty, &Seeds::default())
    }

    fn apply_slice(&mut self, number: u32, first_endpoint: u32) {
        let others = FIRST_ENDPOINT + number * self.n_endpoints;
        let addresses = (0..self.n_endpoints).map(|index| match index {
            0 => first_endpoint,
            _ => others + index,
        });
        self.state.apply_slice(EndpointSlice {
            name: SliceName::new("bench", &format!("service-{number}-1"))
                .expect("it is a legal name"),
            service: service_name(number),
            ports: Box::new([SlicePort {
                name: PortName::new("http").expect("it is a legal name"),
                protocol: Protocol::Tcp,
                port: ENDPOINT_PORT,
            }]),
            endpoints: SliceEndpoints::V4(addresses.map(endpoint).collect()),
        });
    }
}

/// A kernel's answer that holds just this ruleset.
pub(crate) fn observed(ruleset: FamilyRuleset<V4>) -> Observed<V4> {
    Observed {
        ruleset,
        foreign: Vec::new(),
        sizes: Sizes::new(),
        holder: Holder::Nobody,
        about: None,
        counts: Default::default(),
        remembered: Vec::new(),
    }
}

fn service_name(number: u32) -> ServiceName {
    ServiceName::new("bench", &format!("service-{number}")).expect("it is a legal name")
}

fn service(number: u32) -> Service {
    Service {
        cluster_ips: ClusterIps {
            v4: Some(Ipv4Addr::from(FIRST_CLUSTER_IP + number)),
            v6: None,
        },
        ports: Box::new([ServicePort {
            name: PortName::new("http").expect("it is a legal name"),
            protocol: Protocol::Tcp,
            port: SERVICE_PORT,
            node_port: None,
        }]),
        ..Service::new(service_name(number))
    }
}

fn endpoint(address: u32) -> Endpoint<V4> {
    Endpoint {
        address: Ipv4Addr::from(address),
        ready: true,
        serving: true,
        terminating: false,
        locality: Locality::Remote,
        hints: None,
    }
}
