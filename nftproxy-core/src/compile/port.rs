//! One Service port's part of the ruleset.

use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnet::IpNet;

use super::ClaimKind;
use crate::model::{EndpointAddress, Family, Node, Service, ServicePort, TrafficPolicy};
use crate::ruleset::Comment;
use crate::ruleset::element::{Destination, Element, Role};
use crate::ruleset::expr::Verdict;
use crate::ruleset::name::{ChainName, Draw, Pick, SlotMap};

/// A destination of a Service port, and what decides over connections to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route<F: Family> {
    /// Where connections are sent to.
    pub(super) destination: Destination<F>,
    /// By which field it became one.
    pub(super) kind: ClaimKind,
    /// The traffic policy for this kind.
    pub(super) policy: TrafficPolicy,
    /// Whether only the port's [`PortRules::sources`] may reach it.
    pub(super) restricted: bool,
    /// Whether it is an address at the number of a NodePort with affinity.
    pub(super) beside_sticky: bool,
}

/// All that the ruleset holds for one Service port in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortRules<F: Family> {
    /// `namespace/name:port`, cut to what a comment can hold.
    pub(super) comment: Comment,
    /// The destinations, without those that another Service port has taken.
    pub(super) routes: Box<[Route<F>]>,
    /// Slots for policy `Cluster`; none if no endpoint can serve.
    pub(super) cluster: Box<[EndpointAddress<F>]>,
    /// Slots for policy `Local`; none if no route has it.
    pub(super) local: Box<[EndpointAddress<F>]>,
    /// As in [`super::Usable::is_plain`].
    pub(super) is_plain: bool,
    /// How one of the slots is chosen.
    pub(super) draw: Draw,
    /// For how long a client keeps its endpoint, seconds.
    pub(super) affinity: Option<NonZeroU32>,
    /// There is no mark that asks for masquerading.
    pub(super) is_unmarked: bool,
    /// Who may reach restricted routes: address and prefix length, disjoint, in order.
    pub(super) sources: Box<[(F::Address, u8)]>,
    /// Endpoints that may be on this node.
    pub(super) hairpin: Box<[F::Address]>,
}

/// One destination's slots in one map.
pub(super) struct SlotTable<'a, F: Family> {
    pub(super) map: SlotMap,
    pub(super) destination: Destination<F>,
    pub(super) endpoints: &'a [EndpointAddress<F>],
}

/// The comment for a port's elements: `namespace/name:port`, or `namespace/name` if it is unnamed.
pub(super) fn comment(service: &Service, port: &ServicePort) -> Comment {
    let service = service.name.as_str();
    if port.name.is_empty() {
        return Comment::new(service);
    }
    Comment::new(&[service, ":", port.name.as_str()].concat())
}

/// The destinations of a port, in order of precedence, each once.
pub(super) fn routes<F: Family>(service: &Service, port: &ServicePort) -> Vec<Route<F>> {
    let Some(cluster_ip) = service.cluster_ip::<F>() else {
        return Vec::new();
    };
    let is_restricted = service
        .source_ranges
        .iter()
        .any(|range| F::prefix(range).is_some());
    let of_family = |ips: &[IpAddr]| {
        ips.iter()
            .copied()
            .filter_map(F::address)
            .collect::<Vec<_>>()
    };
    let (external_ips, load_balancer_ips) = (
        of_family(&service.external_ips),
        of_family(&service.load_balancer_ips),
    );
    let n_routes = 1 + external_ips.len() + load_balancer_ips.len();
    let mut routes: Vec<Route<F>> =
        Vec::with_capacity(n_routes + usize::from(port.node_port.is_some()));
    let mut add = |address, kind, policy, number, restricted| {
        let destination = Destination {
            address,
            protocol: port.protocol,
            port: number,
        };
        match routes
            .iter_mut()
            .find(|route| route.destination == destination)
        {
            // An address that is given twice has the source ranges of either.
            Some(route) => route.restricted |= restricted,
            None => routes.push(Route {
                destination,
                kind,
                policy,
                restricted,
                beside_sticky: false,
            }),
        }
    };
    let (internal, external) = (
        service.internal_traffic_policy,
        service.external_traffic_policy,
    );
    add(
        Some(cluster_ip),
        ClaimKind::ClusterIp,
        internal,
        port.port,
        false,
    );
    for address in external_ips {
        add(
            Some(address),
            ClaimKind::External,
            external,
            port.port,
            false,
        );
    }
    for address in load_balancer_ips {
        add(
            Some(address),
            ClaimKind::External,
            external,
            port.port,
            is_restricted,
        );
    }
    if let Some(node_port) = port.node_port {
        add(None, ClaimKind::External, external, node_port, false);
    }
    routes
}

/// The destinations of a port, with the field that each comes from, its traffic policy, and whether
/// only some sources may reach it.
pub(crate) fn destinations<F: Family>(
    service: &Service,
    port: &ServicePort,
) -> impl Iterator<Item = (Destination<F>, ClaimKind, TrafficPolicy, bool)> {
    let routes = routes::<F>(service, port).into_iter();
    routes.map(|route| {
        (
            route.destination,
            route.kind,
            route.policy,
            route.restricted,
        )
    })
}

/// The sources that may reach a Service's load-balancer addresses: address and prefix length,
/// disjoint, in order.
pub(super) fn sources<F: Family>(service: &Service, node: &Node) -> Vec<(F::Address, u8)> {
    if service.source_ranges.is_empty() {
        return Vec::new();
    }
    let of_family: Vec<IpNet> = service
        .source_ranges
        .iter()
        .filter(|range| F::prefix(range).is_some())
        .copied()
        .collect();
    let contains_node = node
        .ips
        .iter()
        .filter(|ip| F::address(**ip).is_some())
        .any(|ip| of_family.iter().any(|range| range.contains(ip)));
    let mut sources = of_family;
    if contains_node {
        // A node that has the address itself talks to the Service from it.
        let own = service
            .load_balancer_ips
            .iter()
            .filter(|ip| F::address(**ip).is_some());
        sources.extend(own.map(|ip| IpNet::from(*ip)));
    }
    IpNet::aggregate(&sources)
        .iter()
        .filter_map(F::prefix)
        .collect()
}

impl<F: Family> Route<F> {
    /// The map that holds the slots for a policy; `None` if the route has none for it.
    ///
    /// A ClusterIP has one set of endpoints for everybody, so it needs no second map.
    pub(super) fn slot_map(&self, policy: TrafficPolicy) -> Option<SlotMap> {
        let node_port = self.destination.address.is_none();
        match (self.kind, self.policy, policy) {
            (ClaimKind::ClusterIp, own, wanted) => (own == wanted).then_some(SlotMap::Endpoints),
            (ClaimKind::External, _, TrafficPolicy::Cluster) if node_port => {
                Some(SlotMap::NodePortEndpoints)
            }
            (ClaimKind::External, _, TrafficPolicy::Cluster) => Some(SlotMap::Endpoints),
            (ClaimKind::External, TrafficPolicy::Cluster, TrafficPolicy::Local) => None,
            (ClaimKind::External, _, TrafficPolicy::Local) if node_port => {
                Some(SlotMap::LocalNodePortEndpoints)
            }
            (ClaimKind::External, _, TrafficPolicy::Local) => Some(SlotMap::LocalEndpoints),
        }
    }
}

impl<F: Family> PortRules<F> {
    /// Whether connections to a destination may get this endpoint. Under policy `Local`, clients
    /// from outside get only what is local; what others get as well does not count.
    pub(super) fn leads_to(
        &self,
        destination: &Destination<F>,
        endpoint: &EndpointAddress<F>,
    ) -> bool {
        let mut routes = self.routes.iter();
        let route = routes.find(|route| route.destination == *destination);
        route.is_some_and(|route| match route.policy {
            TrafficPolicy::Cluster => self.cluster.contains(endpoint),
            TrafficPolicy::Local => self.local.contains(endpoint),
        })
    }

    /// The slots, per destination.
    pub(super) fn slot_tables(&self) -> impl Iterator<Item = SlotTable<'_, F>> {
        self.routes.iter().flat_map(|route| {
            let table = |policy, endpoints| {
                Some(SlotTable {
                    map: route.slot_map(policy)?,
                    destination: route.destination,
                    endpoints,
                })
            };
            [
                table(TrafficPolicy::Cluster, &*self.cluster),
                table(TrafficPolicy::Local, &*self.local),
            ]
            .into_iter()
            .flatten()
            .filter(|table| !table.endpoints.is_empty())
        })
    }

    /// How many elements there are, so that room can be made; hardly ever more, and mostly no fewer.
    pub(super) fn n_elements_about(&self) -> usize {
        let slots = self.slot_tables().map(|table| table.endpoints.len());
        slots.sum::<usize>() + self.routes.len() * if self.affinity.is_some() { 3 } else { 2 }
    }

    /// The elements but those of slots, in order.
    pub(super) fn fixed_elements(&self) -> Vec<Element<F>> {
        let mut elements = Vec::with_capacity(self.routes.len() * 2);
        self.push_fixed_elements(&mut elements);
        elements.sort();
        elements
    }

    /// Appends the elements but those of slots.
    fn push_fixed_elements(&self, elements: &mut Vec<Element<F>>) {
        for route in &self.routes {
            if let Some(seconds) = self.affinity {
                elements.push(Element::sticky(route.destination, seconds));
            } else if route.beside_sticky {
                // Where the address is one of the node, its connections look like the NodePort's.
                elements.push(Element::not_sticky(route.destination));
            }
            if route.restricted {
                let Route { destination, .. } = *route;
                elements.push(Element::restricted(destination).with_comment(self.comment.clone()));
                let allowed = |prefix: &_| Element::allowed_source(destination, *prefix);
                elements.extend(self.sources.iter().map(allowed));
            }
            self.route_verdicts(route, elements);
        }
    }

    fn route_verdicts(&self, route: &Route<F>, out: &mut Vec<Element<F>>) {
        let Route {
            destination,
            kind,
            policy,
            restricted: _,
            beside_sticky: _,
        } = *route;
        let node_port = destination.address.is_none();
        let mut add = |role, verdict| {
            let element = Element::verdict(role, destination, verdict);
            // The first map that a packet meets says whose it is; the others follow from it.
            out.push(match role {
                Role::Service | Role::Unavailable => element.with_comment(self.comment.clone()),
                Role::External | Role::Local => element,
            });
        };
        // Whatever becomes of it later, the address is not that of a NodePort.
        let mut unavailable = |verdict| {
            if !node_port {
                add(Role::Service, Verdict::Accept);
            }
            add(Role::Unavailable, verdict);
        };
        if self.cluster.is_empty() {
            return unavailable(Verdict::Goto(ChainName::Refuse));
        }
        let (draw, sticky) = (self.draw, self.affinity.is_some());
        let goto_pick = |map: SlotMap, endpoints: &[EndpointAddress<F>]| {
            let n = u32::try_from(endpoints.len())
                .ok()
                .and_then(|n| n.try_into().ok())?;
            let pick = Pick {
                map,
                draw,
                n,
                sticky,
            };
            Some(Verdict::Goto(ChainName::Pick(pick)))
        };
        let (cluster_map, local_map) = if node_port {
            (SlotMap::NodePortEndpoints, SlotMap::LocalNodePortEndpoints)
        } else {
            (SlotMap::Endpoints, SlotMap::LocalEndpoints)
        };
        let pick_cluster = goto_pick(cluster_map, &self.cluster);
        match (kind, policy) {
            (ClaimKind::ClusterIp, TrafficPolicy::Cluster) => {
                pick_cluster
                    .into_iter()
                    .for_each(|pick| add(Role::Service, pick));
            }
            (ClaimKind::ClusterIp, TrafficPolicy::Local) => {
                match goto_pick(cluster_map, &self.local) {
                    Some(pick) => add(Role::Service, pick),
                    None => unavailable(Verdict::Drop),
                }
            }
            (ClaimKind::External, TrafficPolicy::Cluster) => {
                pick_cluster
                    .into_iter()
                    .for_each(|pick| add(Role::External, pick));
            }
            (ClaimKind::External, TrafficPolicy::Local) => {
                pick_cluster
                    .into_iter()
                    .for_each(|pick| add(Role::External, pick));
                match goto_pick(local_map, &self.local) {
                    Some(pick) => add(Role::Local, pick),
                    None => add(Role::Unavailable, Verdict::Drop),
                }
            }
        }
        if kind == ClaimKind::External {
            let it = match node_port {
                true => Element::node_port(destination),
                // Another rule goes on with it.
                false => Element::verdict(Role::Service, destination, Verdict::Return),
            };
            out.push(it.with_comment(self.comment.clone()));
            if policy == TrafficPolicy::Local {
                out.push(Element::external_local(destination));
            }
        }
        if self.is_unmarked && kind == ClaimKind::External {
            out.push(Element::masqueraded(
                destination,
                match policy {
                    TrafficPolicy::Cluster => ChainName::MasqueradeExternal,
                    TrafficPolicy::Local => ChainName::MasqueradeExternalLocal,
                },
            ));
        }
    }
}

/// Appends what must be deleted and added to get from `old` to `new`.
pub(super) fn diff<F: Family>(
    old: Option<&PortRules<F>>,
    new: Option<&PortRules<F>>,
    delete: &mut Vec<Element<F>>,
    add: &mut Vec<Element<F>>,
) {
    if let (None, Some(rules)) | (Some(rules), None) = (old, new) {
        let out = if new.is_some() { add } else { delete };
        rules.push_fixed_elements(out);
        for SlotTable {
            map,
            destination,
            endpoints,
        } in rules.slot_tables()
        {
            let slots = (0_u32..).zip(endpoints);
            out.extend(slots.map(|(slot, at)| Element::slot(map, destination, slot, *at)));
        }
        return;
    }
    let old_fixed = old.map(PortRules::fixed_elements).unwrap_or_default();
    let new_fixed = new.map(PortRules::fixed_elements).unwrap_or_default();
    let missing_in =
        |elements: &[Element<F>], element: &Element<F>| elements.binary_search(element).is_err();
    delete.extend(
        old_fixed
            .iter()
            .filter(|&gone| missing_in(&new_fixed, gone))
            .cloned(),
    );
    add.extend(
        new_fixed
            .iter()
            .filter(|&come| missing_in(&old_fixed, come))
            .cloned(),
    );

    let old_tables: Vec<_> = old.into_iter().flat_map(PortRules::slot_tables).collect();
    let new_tables: Vec<_> = new.into_iter().flat_map(PortRules::slot_tables).collect();
    slots_not_in(&new_tables, &old_tables, delete);
    slots_not_in(&old_tables, &new_tables, add);
}

/// Appends the slots of `tables` that `others` have not, or hold another endpoint in.
fn slots_not_in<F: Family>(
    others: &[SlotTable<'_, F>],
    tables: &[SlotTable<'_, F>],
    out: &mut Vec<Element<F>>,
) {
    for SlotTable {
        map,
        destination,
        endpoints,
    } in tables
    {
        let other = others
            .iter()
            .find(|other| other.map == *map && other.destination == *destination)
            .map_or(&[][..], |other| other.endpoints);
        for (slot, endpoint) in (0_u32..).zip(endpoints.iter()) {
            if other.get(slot as usize) != Some(endpoint) {
                out.push(Element::slot(*map, *destination, slot, *endpoint));
            }
        }
    }
}
