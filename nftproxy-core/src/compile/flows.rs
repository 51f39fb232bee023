//! Flows that changed rules do not reach.
//!
//! The rules decide over the first packet of a flow. What is decided stays, for UDP as long as the
//! flow goes on, so whatever changes for a UDP destination has to be told to connection tracking.
//! Other connections end by themselves when they lead astray, but for those that nobody has answered
//! yet: if one began while the rules were missing, each packet that is sent again goes that way, too.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::port::{self, PortRules};
use super::{Compilation, query, usable};
use crate::model::{EndpointAddress, Family, Node, Protocol, State};
use crate::ruleset::element::Destination;

/// What syncs have left behind in connection tracking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftovers<F: Family> {
    /// Flows to Services, as they are or were.
    pub flows: Vec<StaleFlows<F>>,
    /// Ranges (address, prefix length), disjoint, in order. What nobody has ever translated or
    /// answered there may have started before the rules that would have led or stopped it:
    /// ServiceCIDRs that have just become known, and addresses of Services that the kernel did not
    /// lead as it does now. It goes for all protocols.
    pub one_way: Vec<(F::Address, u8)>,
}

impl<F: Family> Leftovers<F> {
    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        let Self { flows, one_way } = self;
        flows.is_empty() && one_way.is_empty()
    }
}

/// Where UDP flows were sent to at first, and which of them may stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleFlows<F: Family> {
    /// The address that packets are sent to.
    pub address: F::Address,
    /// The port that they are sent to.
    pub port: NonZeroU16,
    /// What decides.
    pub keep: Keep<F>,
}

/// Which flows to a destination may stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep<F: Family> {
    /// Those to these endpoints, in order. Without any, flows that were led somewhere are
    /// forgotten, and those that were not are left alone.
    pub serving: Box<[EndpointAddress<F>]>,
    /// Those from these ranges (address, prefix length), if only some sources may come. A flow
    /// that was answered is a connection, which changed ranges do not cut.
    #[expect(clippy::type_complexity, reason = "a list that may be absent")]
    pub sources: Option<Box<[(F::Address, u8)]>>,
    /// Only those that were answered: the others may have begun while the rules were damaged, and
    /// have a source to which nobody can answer.
    pub answered_only: bool,
}

impl<F: Family> StaleFlows<F> {
    /// Whether a flow to this destination is one that must not stay. `reply_source` is where its
    /// answers come from: an endpoint, or the destination itself if nobody led it anywhere.
    pub fn condemn(
        &self,
        source: F::Address,
        is_answered: bool,
        reply_source: (F::Address, u16),
    ) -> bool {
        let Self {
            address,
            port,
            keep,
        } = self;
        if !is_answered && (keep.answered_only || !keep.allows(source)) {
            return true;
        }
        if keep.serving.is_empty() {
            return reply_source != (*address, port.get());
        }
        let leads_to =
            |endpoint: &EndpointAddress<F>| reply_source == (endpoint.address, endpoint.port.get());
        !keep.serving.iter().any(leads_to)
    }
}

impl<F: Family> Default for Keep<F> {
    fn default() -> Self {
        Self {
            serving: Box::default(),
            sources: None,
            answered_only: false,
        }
    }
}

impl<F: Family> Keep<F> {
    /// Whether new connections from an address are let through.
    pub fn allows(&self, source: F::Address) -> bool {
        self.sources
            .as_ref()
            .is_none_or(|sources| contains::<F>(sources, source))
    }
}

/// Whether one of the prefixes (address, length) contains the address.
pub(crate) fn contains<F: Family>(prefixes: &[(F::Address, u8)], address: F::Address) -> bool {
    prefixes
        .iter()
        .any(|(first, len)| (*first..=F::last_of_prefix(*first, *len)).contains(&address))
}

impl<F: Family> Compilation<F> {
    /// Has nothing remembered for [`Compilation::take_stale_flows`], as nobody will call it.
    pub fn ignore_flows(&mut self) {
        self.ignores_flows = true;
        self.stale_flows.clear();
        self.misled.clear();
    }

    pub(crate) fn ignores_flows(&self) -> bool {
        self.ignores_flows
    }

    /// The UDP destinations of which flows may lead astray since the last call, with the endpoints
    /// that may keep theirs. `node_port_ips` are the addresses that accept NodePorts.
    pub fn take_stale_flows(&mut self, node_port_ips: &[IpAddr]) -> Vec<StaleFlows<F>> {
        let node_port_ips: Vec<_> = node_port_ips
            .iter()
            .copied()
            .filter_map(F::address)
            .collect();
        let mut flows = Vec::new();
        for (destination, keep) in std::mem::take(&mut self.stale_flows) {
            let Destination {
                address,
                protocol,
                port,
            } = destination;
            let addresses = match address {
                Some(address) => vec![address],
                // Where the address and port are a Service's own, its flows are not the NodePort's.
                None => node_port_ips
                    .iter()
                    .copied()
                    .filter(|ip| {
                        let own = Destination {
                            address: Some(*ip),
                            protocol,
                            port,
                        };
                        self.claims.owner(&own).is_none()
                    })
                    .collect(),
            };
            flows.extend(addresses.into_iter().map(|address| StaleFlows {
                address,
                port,
                keep: keep.clone(),
            }));
        }
        flows
    }

    /// Notes that the kernel did not lead these destinations, or led them otherwise than it does
    /// now. Flows that began meanwhile are as stale as those that a change leaves behind.
    pub(crate) fn note_misled_flows(
        &mut self,
        state: &State,
        node: &Node,
        destinations: impl IntoIterator<Item = Destination<F>>,
    ) {
        if self.ignores_flows {
            return;
        }
        for destination in destinations {
            self.misled.insert(destination.address);
            if destination.protocol == Protocol::Udp {
                let keep = self.keep(state, node, &destination).unwrap_or_default();
                let keep = Keep {
                    answered_only: true,
                    ..keep
                };
                self.stale_flows.insert(destination, keep);
            }
        }
    }

    /// The addresses that [`Compilation::note_misled_flows`] was told of since the last call.
    pub(crate) fn take_misled(&mut self, node_port_ips: &[IpAddr]) -> BTreeSet<F::Address> {
        let misled = std::mem::take(&mut self.misled);
        let node_ports = misled.contains(&None).then_some(node_port_ips);
        let node_ports = node_ports.into_iter().flatten();
        let node_ports = node_ports.filter_map(|ip| F::address(*ip));
        misled.iter().flatten().copied().chain(node_ports).collect()
    }

    /// All destinations that are led somewhere or refused.
    pub(crate) fn destinations(&self) -> Vec<Destination<F>> {
        let ports = self.services.values().flat_map(|service| &service.ports);
        let routes = ports.flat_map(|rules| &rules.routes);
        routes.map(|route| route.destination).collect()
    }

    /// Which flows to a destination may stay; `None` if it is nobody's.
    fn keep(&self, state: &State, node: &Node, destination: &Destination<F>) -> Option<Keep<F>> {
        let claim = self.claims.owner(destination)?;
        let ports = &self.services.get(&claim.service)?.ports;
        let rules = ports.iter().find(|rules| rules.comment == claim.port)?;
        let is_it = |route: &&port::Route<F>| route.destination == *destination;
        let route = rules.routes.iter().find(is_it)?;
        let (service, slices) = state.service_and_slices(&claim.service);
        let service = service?;
        let port = query::port_of_comment(service, &claim.port)?;
        let usable = usable::<F>(service, port, slices, node.zone.as_deref(), state.filter());
        Some(Keep {
            serving: usable.serving.into(),
            sources: route.restricted.then(|| rules.sources.clone()),
            answered_only: false,
        })
    }

    /// Notes what UDP destinations a port had and has. What it lost leads nowhere.
    pub(super) fn note_stale_flows(
        &mut self,
        old: Option<&PortRules<F>>,
        new: Option<(&PortRules<F>, &[EndpointAddress<F>])>,
    ) {
        if self.ignores_flows {
            return;
        }
        let is_udp = |route: &&port::Route<F>| route.destination.protocol == Protocol::Udp;
        for route in old.iter().flat_map(|old| &old.routes).filter(is_udp) {
            let keep = self.stale_flows.entry(route.destination).or_default();
            // What a sync that failed wanted to keep does not count any more. Whoever has the
            // destination now is compiled in this update, too.
            if self.claims.owner(&route.destination).is_none() {
                *keep = Keep::default();
            }
        }
        if let Some((new, serving)) = new {
            for route in new.routes.iter().filter(is_udp) {
                let sources = route.restricted.then(|| new.sources.clone());
                let keep = Keep {
                    serving: serving.into(),
                    sources,
                    answered_only: false,
                };
                self.stale_flows.insert(route.destination, keep);
            }
        }
    }
}
