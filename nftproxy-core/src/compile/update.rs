//! Change by change: what dirty Services come to now, and in what that differs from before.
//!
//! Claims go first, as they decide who has a destination; then each Service that they or its own
//! objects touch is compiled as a whole. Entry point: [`Compilation::update`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::affinity::forgets;
use super::chosen::{Chosen, Source};
use super::claims::claims_of;
use super::origin::Origin;
use super::port::{self, PortRules, Route};
use super::seeds::Seeds;
use super::{Compilation, Note, balance, query};
use crate::model::counted::Turnover;
use crate::model::{
    EndpointAddress, Family, Known, Node, NodePortAddresses, Service, ServiceName, ServicePort,
    ServicePortName, State,
};
use crate::ruleset::Comment;
use crate::ruleset::element::{Destination, Element};
use crate::ruleset::name::Pick;

/// What a change of the state means for one family's elements.
#[derive(Debug)]
pub struct Changes<F: Family> {
    /// Elements to delete; they are all known to exist.
    pub delete: Vec<Element<F>>,
    /// Elements to add; none of their keys exist, once those to delete are gone.
    pub add: Vec<Element<F>>,
}

impl<F: Family> Default for Changes<F> {
    fn default() -> Self {
        Self {
            delete: Vec::new(),
            add: Vec::new(),
        }
    }
}

impl<F: Family> Changes<F> {
    fn replace(&mut self, old: Option<&PortRules<F>>, new: Option<&PortRules<F>>) {
        port::diff(old, new, &mut self.delete, &mut self.add);
    }
}

impl<F: Family> Compilation<F> {
    /// Compiles the dirty Services again, and those that win or lose a destination by it.
    ///
    /// The cost depends on these Services only, not on how many there are, unless a NodePort with
    /// session affinity comes or goes. `seeds` matter only
    /// for Services that are new here.
    pub fn update(
        &mut self,
        state: &State,
        node: &Node,
        dirty: &BTreeSet<ServiceName>,
        seeds: &Seeds<F>,
    ) -> Changes<F> {
        let mut changes = Changes::default();
        self.update_into(state, node, dirty.iter(), seeds, Some(&mut changes));
        changes
    }

    /// The same; `dirty` comes in order. Without `changes` for when nobody asks what changes, as
    /// everything is going to be compared.
    pub(crate) fn update_into<'a>(
        &mut self,
        state: &'a State,
        node: &Node,
        dirty: impl ExactSizeIterator<Item = &'a ServiceName>,
        seeds: &Seeds<F>,
        mut changes: Option<&mut Changes<F>>,
    ) {
        let dirty = state.known(dirty);
        self.services
            .reserve(dirty.len().saturating_sub(self.services.len()));
        // Services that win or lose by what dirty ones claim.
        let mut affected = BTreeSet::new();
        let mut node_ports = BTreeSet::new();
        for known in &dirty {
            self.update_claims(known, &mut affected, &mut node_ports);
        }
        self.update_sticky_node_ports(state, &node_ports, &mut affected);
        affected.retain(|name| {
            dirty
                .binary_search_by(|known| known.name.cmp(name))
                .is_err()
        });
        let affected = state.known(affected.iter());
        for known in dirty.iter().chain(&affected) {
            self.update_service(known, state, node, seeds, changes.as_deref_mut());
        }
        let node_port_ips = self.update_node_port_ips(node).map(Element::node_port_ip);
        if let Some(changes) = changes {
            let cluster_ips = self.cluster_ips.drain().map(Element::cluster_ip);
            let hairpin = self.hairpin.drain().map(Element::hairpin);
            for Turnover { come, gone } in [cluster_ips, hairpin, node_port_ips] {
                changes.delete.extend(gone);
                changes.add.extend(come);
            }
        }
        self.cluster_ips.settle();
        self.hairpin.settle();
        // Their chains come and go by themselves.
        self.picks.settle();
        self.affinity_timeouts.settle();
    }

    /// Brings a Service's claims up to date. Adds the Services that win or lose by it to
    /// `affected`, with those that now lose to another one than before, and its NodePorts of before
    /// and after to `node_ports`.
    fn update_claims(
        &mut self,
        known: &Known<'_>,
        affected: &mut BTreeSet<ServiceName>,
        node_ports: &mut BTreeSet<Destination<F>>,
    ) {
        let service = known.service;
        let claims = service.map(|service| claims_of::<F>(service));
        let claims = claims.unwrap_or_default();
        let compiled = self.services.entry(known.name.clone()).or_default();
        let old = std::mem::replace(&mut compiled.claims, claims);
        let claims = &compiled.claims;
        let both = old.iter().chain(claims).map(|(destination, _)| destination);
        node_ports.extend(both.filter(|destination| destination.address.is_none()));
        for (destination, claim) in &old {
            if claims
                .binary_search_by(|(other, _)| other.cmp(destination))
                .map(|at| &claims[at].1)
                != Ok(claim)
                && let Some(heir) = self.claims.remove(destination, claim)
            {
                affected.insert(heir);
                affected.extend(self.claims.losers(destination).cloned());
            }
        }
        for (destination, claim) in claims {
            if old
                .binary_search_by(|(other, _)| other.cmp(destination))
                .map(|at| &old[at].1)
                != Ok(claim)
                && let Some(displaced) = self.claims.add(*destination, claim.clone())
            {
                affected.insert(displaced);
                affected.extend(self.claims.losers(destination).cloned());
            }
        }
    }

    /// Finds out which of these NodePorts have affinity now. Where that has changed, the Services
    /// that own an address at the same port are `affected`.
    fn update_sticky_node_ports(
        &mut self,
        state: &State,
        node_ports: &BTreeSet<Destination<F>>,
        affected: &mut BTreeSet<ServiceName>,
    ) {
        let mut changed = BTreeSet::new();
        for destination in node_ports {
            let port = (destination.protocol, destination.port);
            let owner = self.claims.owner(destination);
            let is_sticky = owner
                .and_then(|owner| state.service(&owner.service))
                .is_some_and(|service| service.session_affinity.is_some());
            let has_changed = if is_sticky {
                self.sticky_node_ports.insert(port)
            } else {
                self.sticky_node_ports.remove(&port)
            };
            if has_changed {
                changed.insert(port);
            }
        }
        if !changed.is_empty() {
            affected.extend(self.claims.at_ports(&changed).cloned());
        }
    }

    fn update_service(
        &mut self,
        known: &Known<'_>,
        state: &State,
        node: &Node,
        seeds: &Seeds<F>,
        mut changes: Option<&mut Changes<F>>,
    ) {
        let Known {
            name,
            service,
            slices,
        } = *known;
        let service = service.map(Arc::as_ref);
        let mut notes = BTreeSet::new();
        let (mut old_ports, old_cluster_ip, origin) = match self.services.get_mut(name) {
            Some(compiled) => (
                std::mem::take(&mut compiled.ports),
                compiled.cluster_ip.take(),
                compiled.origin.take(),
            ),
            None => (Vec::new(), None, None),
        };
        let touched = origin.as_ref().and_then(|origin| origin.touched(known));

        let service_ports = service.map(|service| &*service.ports).unwrap_or_default();
        let mut ports = Vec::with_capacity(service_ports.len());
        let mut taken = BTreeSet::new();
        for port in service_ports {
            let Some(service) = service else { break };
            let source = Source {
                node,
                service,
                slices,
                filter: state.filter(),
                touched: touched.as_ref(),
            };
            let mut routes = port::routes::<F>(service, port);
            let Some(first) = routes.first() else {
                continue;
            };
            if !node.hashes && balance::wants_hash(service.balancing.as_deref()) {
                notes.insert(Note::NoHash {
                    service_port: ServicePortName {
                        service: name.clone(),
                        port: port.name.as_str().into(),
                    },
                });
            }
            let comment = self.comment(name, service, port, &first.destination);
            routes.retain(|route| {
                let loser = || ServicePortName {
                    service: name.clone(),
                    port: port.name.as_str().into(),
                };
                let winner = match self.claims.owner(&route.destination) {
                    Some(owner) if owner.service != *name || owner.port != comment => {
                        query::service_port_name(state, &owner.service, &owner.port)
                    }
                    // Ports with equal comments have the same claim; the first one has it.
                    _ if service_ports.len() == 1 || taken.insert(route.destination) => {
                        return true;
                    }
                    _ => loser(),
                };
                notes.insert(Note::Conflict {
                    loser: loser(),
                    winner,
                    destination: route.destination.into(),
                });
                false
            });
            // The protocol may have changed under the same name; the slots can stay all the same.
            let old = old_ports
                .iter()
                .position(|old| old.comment == comment)
                .map(|at| old_ports.remove(at));
            let (rules, serving) =
                self.port_rules(&source, port, comment, routes, old.as_ref(), seeds);
            self.note_stale_flows(old.as_ref(), Some((&rules, &serving)));
            if let Some(changes) = &mut changes {
                changes.replace(old.as_ref(), Some(&rules));
            }
            self.is_affinity_stale |= forgets(old.as_ref(), Some(&rules));
            self.count(old.as_ref(), Some(&rules));
            ports.push(rules);
        }
        for old in &old_ports {
            if let Some(changes) = &mut changes {
                changes.replace(Some(old), None);
            }
            self.note_stale_flows(Some(old), None);
            self.is_affinity_stale |= forgets(Some(old), None);
            self.count(Some(old), None);
        }

        self.set_notes(name, notes);
        let cluster_ip = service
            .filter(|service| !service.ports.is_empty())
            .and_then(Service::cluster_ip::<F>);
        cluster_ip
            .into_iter()
            .for_each(|address| self.cluster_ips.add(address));
        old_cluster_ip
            .into_iter()
            .for_each(|address| self.cluster_ips.remove(address));
        if cluster_ip.is_none() && ports.is_empty() {
            self.services.swap_remove(name);
        } else if let Some(compiled) = self.services.get_mut(name) {
            compiled.ports = ports;
            compiled.cluster_ip = cluster_ip;
            compiled.origin = Origin::of::<F>(known);
        }
    }

    /// The comment of a port. Mostly it is in the port's claim already.
    fn comment(
        &self,
        name: &ServiceName,
        service: &Service,
        port: &ServicePort,
        destination: &Destination<F>,
    ) -> Comment {
        let owner = self.claims.owner(destination);
        let own = owner.filter(|owner| owner.service == *name && service.ports.len() == 1);
        own.map_or_else(|| port::comment(service, port), |own| own.port.clone())
    }

    fn set_notes(&mut self, name: &ServiceName, notes: BTreeSet<Note>) {
        let old = if notes.is_empty() {
            self.notes.remove(name)
        } else if self.notes.get(name) == Some(&notes) {
            return;
        } else {
            self.notes_changed = true;
            self.notes.insert(name.clone(), notes)
        };
        self.notes_changed |= old.is_some();
    }

    /// A port's rules, and all endpoints that serve.
    fn port_rules(
        &self,
        source: &Source<'_, F>,
        port: &ServicePort,
        comment: Comment,
        mut routes: Vec<Route<F>>,
        old: Option<&PortRules<F>>,
        seeds: &Seeds<F>,
    ) -> (PortRules<F>, Vec<EndpointAddress<F>>) {
        let Source { node, service, .. } = *source;
        let sources = port::sources::<F>(service, node);
        // The range of everything, given or put together, is no restriction.
        if sources.iter().any(|(_, len)| *len == 0) {
            routes.iter_mut().for_each(|route| route.restricted = false);
        }
        for route in &mut routes {
            let Destination { protocol, port, .. } = route.destination;
            route.beside_sticky = route.destination.address.is_some()
                && self.sticky_node_ports.contains(&(protocol, port));
        }
        let Chosen {
            cluster,
            local,
            hairpin,
            is_plain,
            serving,
        } = Chosen::of(source, port, &routes, old, seeds);
        let rules = PortRules {
            affinity: service.session_affinity,
            draw: balance::draw(service.balancing.as_deref(), node),
            is_unmarked: node.masquerade_mark.is_none(),
            sources: sources.into(),
            comment,
            cluster,
            local,
            is_plain,
            hairpin,
            routes: routes.into(),
        };
        (rules, serving)
    }

    /// Brings up to date what is counted over all ports.
    fn count(&mut self, old: Option<&PortRules<F>>, new: Option<&PortRules<F>>) {
        let old_hairpin = old.map_or(&[][..], |rules| &rules.hairpin);
        let new_hairpin = new.map_or(&[][..], |rules| &rules.hairpin);
        not_in(old_hairpin, new_hairpin).for_each(|come| self.hairpin.add(*come));
        not_in(new_hairpin, old_hairpin).for_each(|gone| self.hairpin.remove(*gone));
        if let Some(new) = new {
            picks_of(new).for_each(|pick| self.picks.add(pick));
            self.n_restricted += n_restricted(new);
            new.affinity
                .into_iter()
                .for_each(|seconds| self.affinity_timeouts.add(seconds));
        }
        if let Some(old) = old {
            picks_of(old).for_each(|pick| self.picks.remove(pick));
            self.n_restricted -= n_restricted(old);
            old.affinity
                .into_iter()
                .for_each(|seconds| self.affinity_timeouts.remove(seconds));
        }
    }

    fn update_node_port_ips(&mut self, node: &Node) -> Turnover<F::Address> {
        let wanted: BTreeSet<_> = match node.node_port_addresses::<F>() {
            NodePortAddresses::All => BTreeSet::new(),
            NodePortAddresses::Only(ips) => ips
                .iter()
                .copied()
                .filter(|ip| !IpAddr::is_loopback(ip))
                .filter_map(F::address)
                .collect(),
        };
        let turnover = Turnover {
            come: wanted.difference(&self.node_port_ips).copied().collect(),
            gone: self.node_port_ips.difference(&wanted).copied().collect(),
        };
        self.node_port_ips = wanted;
        turnover
    }
}

fn n_restricted<F: Family>(rules: &PortRules<F>) -> usize {
    rules.routes.iter().filter(|route| route.restricted).count()
}

fn picks_of<F: Family>(rules: &PortRules<F>) -> impl Iterator<Item = Pick> {
    let is_sticky = rules.affinity.is_some();
    rules.slot_tables().flat_map(move |table| {
        let n = u32::try_from(table.endpoints.len())
            .ok()
            .and_then(|n| n.try_into().ok());
        let pick = |n, sticky| Pick {
            map: table.map,
            draw: rules.draw,
            n,
            sticky,
        };
        let plain = n.map(|n| pick(n, false));
        // A sticky one leads on to the plain one.
        let sticky = n.filter(|_| is_sticky).map(|n| pick(n, true));
        plain.into_iter().chain(sticky)
    })
}

/// What `things` have that `others` have not; both are in order.
fn not_in<'a, T: Ord>(others: &'a [T], things: &'a [T]) -> impl Iterator<Item = &'a T> {
    let mut others = others.iter().peekable();
    things.iter().filter(move |thing| {
        while others.next_if(|other| other < thing).is_some() {}
        others.peek() != Some(thing)
    })
}
