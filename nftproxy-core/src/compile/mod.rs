//! From state to ruleset, at once or change by change.
//!
//! [`compile`] does the whole; [`Compilation`] does the same incrementally, and is what the proxy
//! runs. Nothing here does input or output; a Service that cannot be expressed leaves a [`Note`].

mod affinity;
mod balance;
mod chosen;
mod claims;
mod flows;
mod health_check;
mod inherit;
mod maglev;
mod no_local;
mod note;
mod origin;
mod port;
mod query;
mod seeds;
mod skeleton;
mod slots;
mod update;
mod usable;

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU16, NonZeroU32};

use indexmap::IndexMap;

use crate::model::counted::Counted;
use crate::model::{Family, Node, Protocol, ServiceName, State, V4, V6};
use crate::ruleset::element::{Destination, Element};
use crate::ruleset::name::Pick;
use crate::ruleset::{FamilyRuleset, Skeleton};
use origin::Origin;
use port::PortRules;

pub(crate) use balance::weighted;
pub use claims::{Claim, ClaimKind, Claims, claims_of};
pub(crate) use flows::contains;
pub use flows::{Keep, Leftovers, StaleFlows};
pub use health_check::{HealthCheck, health_check};
pub use inherit::{Learned, Remembered};
pub use no_local::{NoLocalEndpoints, no_local_endpoints};
pub use note::Note;
pub(crate) use port::destinations;
pub use query::Liveness;
pub use seeds::Seeds;
pub use skeleton::{Features, pick as pick_rules, skeleton};
pub use update::Changes;
pub(crate) use usable::candidates;
pub use usable::{Usable, usable};

/// The rulesets of both families, and what could not be put into them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// `table ip nftproxy`
    pub v4: FamilyRuleset<V4>,
    /// `table ip6 nftproxy`
    pub v6: FamilyRuleset<V6>,
    /// In order of Service.
    pub notes: BTreeSet<Note>,
}

/// Compiles the whole state.
///
/// ```
/// # use nftproxy_core::compile::compile;
/// # use nftproxy_core::model::{Node, Protocol, Service, ServiceName, ServicePort, State};
/// # use nftproxy_core::render;
/// # let name = ServiceName::new("shop", "api").unwrap();
/// # let port = ServicePort::new(Protocol::Tcp, 80.try_into()?);
/// let mut state = State::default();
/// state.apply_service(Service::at(name, [10, 96, 0, 20].into(), [port]));
/// let compiled = compile(&state, &Node::default());
/// assert!(compiled.notes.is_empty());
/// // It has no endpoints.
/// let script = render::ruleset(&compiled.v4);
/// assert!(script.contains("10.96.0.20 . tcp . 80 comment \"shop/api\" : goto refuse"));
/// # Ok::<(), std::num::TryFromIntError>(())
/// ```
pub fn compile(state: &State, node: &Node) -> Compiled {
    let all: BTreeSet<_> = state
        .services()
        .map(|service| service.name.clone())
        .collect();
    let mut notes = BTreeSet::new();
    let v4 = compile_family(state, node, &all, &mut notes);
    let v6 = compile_family(state, node, &all, &mut notes);
    Compiled { v4, v6, notes }
}

fn compile_family<F: Family>(
    state: &State,
    node: &Node,
    all: &BTreeSet<ServiceName>,
    notes: &mut BTreeSet<Note>,
) -> FamilyRuleset<F> {
    let mut compilation = Compilation::default();
    compilation.update(state, node, all, &Seeds::default());
    notes.extend(compilation.notes().cloned());
    let service_cidrs = state.service_cidrs::<F>();
    compilation.ruleset(skeleton::<F>(node, &service_cidrs, &compilation.features()))
}

/// What is compiled of a Service.
#[derive(Debug)]
struct CompiledService<F: Family> {
    /// Its ClusterIP, if it has ports to go with it.
    cluster_ip: Option<F::Address>,
    /// Its claims, whether they won or not, in order.
    claims: Vec<(Destination<F>, Claim)>,
    ports: Vec<PortRules<F>>,
    /// What the ports were compiled from, if that helps.
    origin: Option<Box<Origin>>,
}

impl<F: Family> Default for CompiledService<F> {
    fn default() -> Self {
        Self {
            cluster_ip: None,
            claims: Vec::new(),
            ports: Vec::new(),
            origin: None,
        }
    }
}

/// The elements of one family, kept up to date change by change.
///
/// It holds per Service what is needed to find the difference, not the elements themselves.
#[derive(Debug)]
pub struct Compilation<F: Family> {
    services: IndexMap<ServiceName, CompiledService<F>>,
    claims: Claims<F>,
    cluster_ips: Counted<F::Address>,
    hairpin: Counted<F::Address>,
    picks: Counted<Pick>,
    /// NodePorts whose owner has session affinity.
    sticky_node_ports: BTreeSet<(Protocol, NonZeroU16)>,
    /// How many routes have source ranges.
    n_restricted: usize,
    /// Timeouts of session affinity.
    affinity_timeouts: Counted<NonZeroU32>,
    /// Session affinity may remember what it must not.
    is_affinity_stale: bool,
    /// Addresses that Services with affinity had, since there was nothing stale.
    lost_sticky: BTreeSet<Destination<F>>,
    /// UDP destinations whose flows may lead astray, and which may stay.
    stale_flows: BTreeMap<Destination<F>, Keep<F>>,
    /// Addresses, and `None` for NodePorts, that the kernel did not lead as it should.
    misled: BTreeSet<Option<F::Address>>,
    /// Nobody asks for the above.
    ignores_flows: bool,
    node_port_ips: BTreeSet<F::Address>,
    /// What is left out, by Service; only Services of which something is.
    notes: BTreeMap<ServiceName, BTreeSet<Note>>,
    /// The above has changed since [`Compilation::take_notes_changed`].
    notes_changed: bool,
}

impl<F: Family> Default for Compilation<F> {
    fn default() -> Self {
        Self {
            services: IndexMap::new(),
            claims: Claims::default(),
            cluster_ips: Counted::default(),
            hairpin: Counted::default(),
            picks: Counted::default(),
            sticky_node_ports: BTreeSet::new(),
            n_restricted: 0,
            affinity_timeouts: Counted::default(),
            is_affinity_stale: false,
            lost_sticky: BTreeSet::new(),
            stale_flows: BTreeMap::new(),
            misled: BTreeSet::new(),
            ignores_flows: false,
            node_port_ips: BTreeSet::new(),
            notes: BTreeMap::new(),
            notes_changed: false,
        }
    }
}

impl<F: Family> Compilation<F> {
    /// Which optional chains the elements need.
    pub fn features(&self) -> Features {
        Features {
            source_ranges: self.n_restricted > 0,
            affinity: self.affinity_timeouts.iter().collect(),
        }
    }

    /// What is left out of the Services now, in order of Service.
    pub fn notes(&self) -> impl Iterator<Item = &Note> {
        self.notes.values().flatten()
    }

    /// Whether [`Compilation::notes`] may have changed since the last call.
    pub(crate) fn take_notes_changed(&mut self) -> bool {
        std::mem::take(&mut self.notes_changed)
    }

    /// The pick chains that the elements refer to, in no order that means anything.
    pub fn picks(&self) -> impl Iterator<Item = Pick> {
        self.picks.iter()
    }

    /// All elements, with a skeleton, as a ruleset.
    pub fn ruleset(&self, skeleton: Skeleton) -> FamilyRuleset<F> {
        FamilyRuleset {
            skeleton,
            picks: self.picks.iter().collect(),
            elements: self.elements().into_iter().collect(),
        }
    }

    /// All elements, in no order that matters.
    pub(crate) fn elements(&self) -> Vec<Element<F>> {
        let (mut delete, mut elements) = (Vec::new(), Vec::new());
        let shared = self.cluster_ips.len() + self.hairpin.len() + self.node_port_ips.len();
        let of_ports = self.ports().map(PortRules::n_elements_about).sum::<usize>();
        elements.reserve(of_ports + shared);
        for rules in self.ports() {
            port::diff(None, Some(rules), &mut delete, &mut elements);
        }
        elements.extend(self.shared_elements());
        elements
    }

    /// Those elements that are wanted.
    pub(crate) fn elements_that(
        &self,
        mut is_wanted: impl FnMut(&Element<F>) -> bool,
    ) -> Vec<Element<F>> {
        let (mut delete, mut of_port) = (Vec::new(), Vec::new());
        let mut elements = Vec::new();
        for rules in self.ports() {
            port::diff(None, Some(rules), &mut delete, &mut of_port);
            elements.extend(of_port.drain(..).filter(&mut is_wanted));
        }
        elements.extend(self.shared_elements().filter(is_wanted));
        elements
    }

    fn ports(&self) -> impl Iterator<Item = &port::PortRules<F>> {
        self.services.values().flat_map(|service| &service.ports)
    }

    /// Elements that several Service ports may need.
    fn shared_elements(&self) -> impl Iterator<Item = Element<F>> {
        let cluster_ips = self.cluster_ips.iter().map(Element::cluster_ip);
        let hairpin = self.hairpin.iter().map(Element::hairpin);
        let node_port_ips = self.node_port_ips.iter().copied();
        cluster_ips
            .chain(hairpin)
            .chain(node_port_ips.map(Element::node_port_ip))
    }
}
