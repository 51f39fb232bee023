//! Session affinity over the life of a cluster: clients come back while endpoints come and go. The
//! test plays the kernel's part, which remembers where the rules say so.

use std::num::NonZeroU32;

use nftproxy_core::apply::Kernel;
use nftproxy_core::apply::fake::FakeKernel;
use nftproxy_core::model::{EndpointAddress, Node, Protocol, State};
use nftproxy_core::ruleset::element::{Destination, Element};
use nftproxy_core::ruleset::name::ChainName;
use nftproxy_core::sync::Syncer;
use nftproxy_core::trace::{Outcome, Outcomes, Packet, Step, possible, trace};
use proptest::sample::Index;

use crate::cluster::Event;
use crate::common::{Twin, is_local};
use crate::oracle::{self, Fate};
use crate::packet::PacketChoice;

/// What happens, whether the proxy is started anew then, and connections after that, each with the
/// draw that decides where it goes.
pub(crate) type Episode = (Vec<Event>, bool, Vec<(PacketChoice, Index)>);

/// A cluster, a kernel, and what clients got.
pub(crate) struct World<F: Twin> {
    state: State,
    node: Node,
    syncer: Syncer<F, FakeKernel<F>>,
    choices: Vec<Choice<F>>,
}

/// What is remembered.
struct Choice<F: Twin> {
    packet: Packet<F>,
    endpoint: EndpointAddress<F>,
    /// The Service port it was made for, and whether at its NodePort.
    owner: Option<(String, bool)>,
    element: Element<F>,
}

impl<F: Twin> World<F> {
    pub(crate) fn new(node: Node) -> Self {
        Self {
            state: State::default(),
            node,
            syncer: Syncer::new(FakeKernel::default()),
            choices: Vec::new(),
        }
    }

    pub(crate) fn go_through(&mut self, (events, restarts, connections): &Episode) {
        for event in events {
            event.apply_while_running(&mut self.state, &mut self.node);
        }
        if *restarts {
            self.syncer = Syncer::new(std::mem::take(self.syncer.kernel_mut()));
        }
        let dirty = self.state.take_dirty();
        self.syncer.sync(&self.state, &self.node, &dirty).unwrap();
        self.check_memory();
        for (packet, draw) in connections {
            self.connect(packet.packet(), draw);
        }
    }

    /// S-98 to S-100: what is remembered and must not be is gone with the sync, and what may stay
    /// has stayed. Then S-101: who comes back gets the same.
    fn check_memory(&mut self) {
        let memory = self.syncer.kernel_mut().list_affinity().unwrap();
        let (state, node) = (&self.state, &self.node);
        self.choices.retain(|choice| {
            let Choice {
                packet, endpoint, ..
            } = choice;
            let is_remembered = memory.contains(&choice.element);
            let has_same_owner = choice.owner == oracle::addressee_name(state, node, packet);
            let fate = oracle::memory(state, node, packet, *endpoint);
            let text = choice.element.nft();
            match fate {
                Fate::Forgotten => assert!(!is_remembered, "{text} must be forgotten"),
                Fate::Kept if has_same_owner => assert!(is_remembered, "{text} must be kept"),
                Fate::Kept | Fate::Open => {}
            }
            is_remembered
        });
        for choice in &self.choices {
            self.check_outcomes(&choice.packet);
        }
    }

    /// Traces a packet with what is remembered, and compares.
    fn check_outcomes(&self, packet: &Packet<F>) -> Outcomes<F> {
        let mut ruleset = self.syncer.kernel().ruleset().unwrap();
        let memory = self.choices.iter().map(|choice| choice.element.clone());
        ruleset.elements.extend(memory);
        let outcomes = trace(&ruleset, packet, &is_local::<F>).unwrap();

        let is_same = |choice: &&Choice<F>| choice.packet == *packet;
        let remembered = self.choices.iter().find(is_same);
        let remembered = remembered.map(|choice| choice.endpoint);
        let expected = oracle::outcomes_for_known(&self.state, &self.node, packet, remembered);
        assert_eq!(possible(&outcomes), expected, "{packet:?}");
        outcomes
    }

    fn connect(&mut self, packet: Packet<F>, draw: &Index) {
        let outcomes: Vec<_> = self.check_outcomes(&packet).into_iter().collect();
        let (outcome, steps) = draw.get(&outcomes);
        let Some(endpoint) = endpoint_of(outcome) else {
            return;
        };
        let wanted = oracle::affinity(&self.state, &self.node, &packet);
        assert_eq!(remembered_for(steps), wanted, "{packet:?}");
        if wanted.is_none() {
            return;
        }
        let destination = Destination {
            address: Some(packet.destination),
            protocol: Protocol::from_number(packet.protocol).unwrap(),
            port: packet.destination_port.try_into().unwrap(),
        };
        let element = Element::remembered(packet.source, destination, endpoint);
        self.syncer.kernel_mut().learn(element.clone());
        self.choices.retain(|choice| choice.packet != packet);
        self.choices.push(Choice {
            owner: oracle::addressee_name(&self.state, &self.node, &packet),
            packet,
            endpoint,
            element,
        });
    }
}

fn endpoint_of<F: Twin>(outcome: &Outcome<F>) -> Option<EndpointAddress<F>> {
    match outcome {
        Outcome::Endpoint { endpoint, .. } => Some(*endpoint),
        Outcome::Pass { .. } | Outcome::Drop | Outcome::Refuse { .. } => None,
    }
}

/// For how long the rules that a packet met have it remembered.
fn remembered_for(steps: &[Step]) -> Option<NonZeroU32> {
    steps.iter().find_map(|step| match step.chain {
        ChainName::RememberFor(seconds) => Some(seconds),
        _ => None,
    })
}
