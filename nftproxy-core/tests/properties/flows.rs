//! UDP flows over the life of a cluster: they keep going where they went, until they are forgotten.
//! The test plays connection tracking's part.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nftproxy_core::compile::StaleFlows;
use nftproxy_core::model::{Node, NodePortAddresses, State};
use nftproxy_core::sync::Syncer;
use nftproxy_core::trace::{Outcome, Packet, trace};
use proptest::sample::Index;

use crate::cluster::Event;
use crate::common::{NODE_IP, SECOND_NODE_IP, Twin, both, is_local};
use crate::oracle::{self, Fate};
use crate::packet::PacketChoice;
use crate::{Flaky, Mishap};

/// What happens, and datagrams after that, each with the draw that decides where it goes, and
/// whether it is answered.
pub(crate) type Episode = (Vec<Event>, Mishap, Vec<(PacketChoice, Index, bool)>);

/// A cluster, a kernel, and the flows it knows.
pub(crate) struct World<F: Twin> {
    state: State,
    node: Node,
    syncer: Syncer<F, Flaky<F>>,
    flows: Vec<Flow<F>>,
    /// Whether the last sync succeeded.
    is_in_step: bool,
}

#[derive(Debug)]
struct Flow<F: Twin> {
    packet: Packet<F>,
    is_answered: bool,
    reply_source: (F::Address, u16),
}

impl<F: Twin> World<F> {
    pub(crate) fn new(node: Node) -> Self {
        Self {
            state: State::default(),
            node,
            syncer: Syncer::new(Flaky::default()),
            flows: Vec::new(),
            is_in_step: true,
        }
    }

    pub(crate) fn go_through(&mut self, (events, mishap, datagrams): &Episode) {
        match mishap {
            // What goes while nobody looks is not known, so let nothing go.
            Mishap::Restart if self.is_in_step => {
                let kernel = std::mem::take(self.syncer.kernel_mut());
                self.syncer = Syncer::new(kernel);
            }
            _ => events.iter().for_each(|event| {
                event.apply_while_running(&mut self.state, &mut self.node);
            }),
        }
        if let Mishap::Commits(commits) = mishap {
            self.syncer.kernel_mut().fail_commits = *commits;
        }
        let dirty = self.state.take_dirty();
        let result = self.syncer.sync(&self.state, &self.node, &dirty);
        self.syncer.kernel_mut().fail_commits = 0;
        self.is_in_step = result.is_ok();
        if let Ok(report) = result {
            self.check_flows(report.full);
        }
        for (packet, draw, is_answered) in datagrams {
            self.send(packet.packet(), draw, *is_answered);
        }
    }

    /// S-119 to S-124: what leads astray is forgotten, and nothing else. Where the whole table was
    /// looked at, what was missing in it may have misled whatever nobody has answered.
    fn check_flows(&mut self, is_full: bool) {
        let stale = self
            .syncer
            .take_leftovers(&node_port_ips::<F>(&self.node))
            .flows;
        let stale: BTreeMap<_, StaleFlows<F>> = stale
            .into_iter()
            .map(|flows| ((flows.address, flows.port.get()), flows))
            .collect();
        let (state, node) = (&self.state, &self.node);
        self.flows.retain(|flow| {
            let Flow {
                packet,
                is_answered,
                reply_source,
            } = flow;
            let is_forgotten = stale
                .get(&(packet.destination, packet.destination_port))
                .is_some_and(|flows| flows.condemn(packet.source, *is_answered, *reply_source));
            let fate = oracle::flow(state, node, packet, *is_answered, *reply_source);
            let is_doubtful = is_full && !is_answered;
            if fate == Fate::Forgotten || !is_doubtful {
                assert_eq!(is_forgotten, fate == Fate::Forgotten, "{flow:?}");
            }
            !is_forgotten
        });
    }

    fn send(&mut self, packet: Packet<F>, draw: &Index, is_answered: bool) {
        let known = |flow: &&mut Flow<F>| {
            (flow.packet.source, flow.packet.destination) == (packet.source, packet.destination)
                && flow.packet.destination_port == packet.destination_port
        };
        if let Some(flow) = self.flows.iter_mut().find(known) {
            flow.is_answered |= is_answered;
            return;
        }
        let Some(ruleset) = self.syncer.kernel().kernel.ruleset() else {
            return;
        };
        let outcomes = trace(&ruleset, &packet, &is_local::<F>).unwrap();
        let outcomes: Vec<_> = outcomes.into_keys().collect();
        let reply_source = match draw.get(&outcomes) {
            Outcome::Endpoint { endpoint, .. } => (endpoint.address, endpoint.port.get()),
            Outcome::Pass { .. } => (packet.destination, packet.destination_port),
            Outcome::Drop | Outcome::Refuse { .. } => return,
        };
        self.flows.push(Flow {
            packet,
            is_answered,
            reply_source,
        });
    }
}

/// The addresses that accept NodePorts.
fn node_port_ips<F: Twin>(node: &Node) -> Vec<IpAddr> {
    match node.node_port_addresses::<F>() {
        NodePortAddresses::All => [NODE_IP, SECOND_NODE_IP]
            .into_iter()
            .flat_map(both)
            .collect(),
        NodePortAddresses::Only(ips) => {
            ips.iter().copied().filter(|ip| !ip.is_loopback()).collect()
        }
    }
}
