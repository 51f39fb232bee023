//! Which endpoints a Service port may use.
//!
//! The rules are those of kube-proxy's `CategorizeEndpoints`: ready endpoints, else those that
//! still serve while they terminate; topology hints as long as every ready endpoint has them.

use std::borrow::Borrow;
use std::sync::Arc;

use crate::model::{
    Endpoint, EndpointAddress, EndpointSlice, EndpointView, Family, Filter, Hints, Locality,
    NodeHint, Protocol, Service, ServicePort,
};

/// The usable endpoints of a Service port, each list without duplicates and in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usable<F: Family> {
    /// For policy `Cluster`; empty only if no endpoint anywhere can serve.
    pub cluster: Vec<EndpointAddress<F>>,
    /// For policy `Local`.
    pub local: Vec<EndpointAddress<F>>,
    /// Of a UDP port, all that serve, ready or not: their flows are left alone.
    pub serving: Vec<EndpointAddress<F>>,
    /// Addresses in either list that may be on this node, so that they may reach themselves.
    pub hairpin: Vec<F::Address>,
    /// The first list is that of all endpoints that are ready, and none of them has hints: whether
    /// one is in it has nothing to do with the others.
    pub(crate) is_plain: bool,
}

/// One copy of an endpoint.
#[derive(Clone, Copy)]
pub(crate) struct Candidate<'a, F: Family> {
    pub(crate) at: EndpointAddress<F>,
    pub(crate) endpoint: &'a Endpoint<F>,
}

impl<F: Family> Candidate<'_, F> {
    /// Better copies of the same endpoint come first. Whether it terminates decides over all
    /// else: a copy that does not is newer than one that does.
    fn rank(&self) -> (bool, bool, bool) {
        (
            self.endpoint.terminating,
            !self.endpoint.ready,
            !self.endpoint.serving,
        )
    }

    /// What a filter sees of it.
    fn view(&self, protocol: Protocol) -> EndpointView {
        let Endpoint {
            address,
            ready,
            serving,
            terminating,
            locality,
            hints: _,
        } = self.endpoint;
        EndpointView {
            address: (*address).into(),
            port: self.at.port,
            protocol,
            ready: *ready,
            serving: *serving,
            terminating: *terminating,
            locality: *locality,
        }
    }

    fn serves_while_terminating(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }
}

/// Picks the usable endpoints of a port out of a Service's slices.
///
/// `slices` come in a fixed order; among equal copies of an endpoint the first wins. `zone` is this
/// node's. `filter` is the one of [`State::filter`](crate::model::State::filter), or `None`.
///
/// ```
/// # use nftproxy_core::compile::usable;
/// # use nftproxy_core::model::{Service, ServiceName, ServicePort, Protocol, V4};
/// # let service = Service::new(ServiceName::new("shop", "api").unwrap());
/// # let port = ServicePort {
/// #     name: Default::default(),
/// #     protocol: Protocol::Tcp,
/// #     port: 80.try_into()?,
/// #     node_port: None,
/// # };
/// # use nftproxy_core::model::EndpointSlice;
/// let slices: [EndpointSlice; 0] = [];
/// let usable = usable::<V4>(&service, &port, &slices, Some("zone-a"), None);
/// assert!(usable.cluster.is_empty());
/// # Ok::<(), std::num::TryFromIntError>(())
/// ```
pub fn usable<F: Family>(
    service: &Service,
    port: &ServicePort,
    slices: &[impl Borrow<EndpointSlice>],
    zone: Option<&str>,
    filter: Option<&dyn Filter>,
) -> Usable<F> {
    let candidates = candidates::<F>(service, port, slices, filter);
    let ready: Vec<_> = candidates
        .iter()
        .filter(|candidate| candidate.endpoint.ready)
        .collect();

    let cluster = if ready.is_empty() {
        let terminating = candidates
            .iter()
            .filter(|candidate| candidate.serves_while_terminating());
        terminating.map(|candidate| candidate.at).collect()
    } else {
        hinted(&ready, zone)
    };

    let on_this_node =
        |candidate: &&Candidate<'_, F>| candidate.endpoint.locality == Locality::Local;
    let mut local: Vec<_> = ready
        .iter()
        .filter(|candidate| on_this_node(candidate))
        .map(|candidate| candidate.at)
        .collect();
    if local.is_empty() {
        local = candidates
            .iter()
            .filter(|candidate| candidate.serves_while_terminating())
            .filter(on_this_node)
            .map(|candidate| candidate.at)
            .collect();
    }

    let mut hairpin: Vec<_> = candidates
        .iter()
        .filter(|candidate| candidate.endpoint.locality != Locality::Remote)
        .filter(|candidate| {
            cluster.binary_search(&candidate.at).is_ok()
                || local.binary_search(&candidate.at).is_ok()
        })
        .map(|candidate| candidate.at.address)
        .collect();
    hairpin.dedup();
    let serving = candidates
        .iter()
        .filter(|candidate| port.protocol == Protocol::Udp && candidate.endpoint.serving);
    Usable {
        is_plain: !ready.is_empty()
            && ready
                .iter()
                .all(|candidate| candidate.endpoint.hints.is_none()),
        serving: serving.map(|candidate| candidate.at).collect(),
        cluster,
        local,
        hairpin,
    }
}

/// All endpoints of the port, the best copy of each, in order of address and port.
pub(crate) fn candidates<'a, F: Family>(
    service: &Service,
    port: &ServicePort,
    slices: &'a [impl Borrow<EndpointSlice>],
    filter: Option<&dyn Filter>,
) -> Vec<Candidate<'a, F>> {
    candidates_among(service, port, slices, filter, |endpoints| [endpoints])
}

/// The same of those at these addresses, which come in order.
pub(super) fn candidates_at<'a, F: Family>(
    service: &Service,
    port: &ServicePort,
    slices: &'a [impl Borrow<EndpointSlice>],
    filter: Option<&dyn Filter>,
    addresses: &[F::Address],
) -> Vec<Candidate<'a, F>> {
    candidates_among(service, port, slices, filter, |endpoints| {
        addresses.iter().map(|address| {
            let first = endpoints.partition_point(|endpoint| endpoint.address < *address);
            let at = endpoints[first..].iter();
            let n = at
                .take_while(|endpoint| endpoint.address == *address)
                .count();
            &endpoints[first..first + n]
        })
    })
}

/// The same of those that `choose` chooses among a slice's.
fn candidates_among<'a, F: Family, I: IntoIterator<Item = &'a [Endpoint<F>]>>(
    service: &Service,
    port: &ServicePort,
    slices: &'a [impl Borrow<EndpointSlice>],
    filter: Option<&dyn Filter>,
    choose: impl Fn(&'a [Endpoint<F>]) -> I,
) -> Vec<Candidate<'a, F>> {
    let mut candidates = Vec::new();
    for slice in slices.iter().map(Borrow::borrow) {
        let Some(endpoints) = F::endpoints(&slice.endpoints) else {
            continue;
        };
        let served = |slice_port: &&crate::model::SlicePort| {
            slice_port.name == port.name && slice_port.protocol == port.protocol
        };
        for slice_port in slice.ports.iter().filter(served) {
            for chosen in choose(endpoints) {
                candidates.extend(chosen.iter().map(|endpoint| Candidate {
                    at: EndpointAddress {
                        address: endpoint.address,
                        port: slice_port.port,
                    },
                    endpoint,
                }));
            }
        }
    }
    if let Some(filter) = filter {
        candidates.retain(|candidate| filter.allows(service, &candidate.view(port.protocol)));
    }
    in_order(candidates)
}

/// Sorts candidates, and leaves the best copy of each; the first one, if several are as good.
fn in_order<F: Family>(candidates: Vec<Candidate<'_, F>>) -> Vec<Candidate<'_, F>> {
    // Those of one slice are in order already, and most Services have one.
    if candidates.is_sorted_by(|a, b| a.at < b.at) {
        return candidates;
    }
    // Sorting small keys takes a fraction of the time that sorting the candidates takes.
    let mut keys: Vec<_> = (0_u32..)
        .zip(&candidates)
        .map(|(index, candidate)| (F::sort_key(candidate.at), index))
        .collect();
    keys.sort_unstable();
    keys.chunk_by(|(a, _), (b, _)| a == b)
        .filter_map(|copies| {
            let copies = copies.iter().map(|(_, index)| candidates[*index as usize]);
            copies.min_by_key(Candidate::rank)
        })
        .collect()
}

/// The ready endpoints that topology hints leave: those for this node, else those for its zone,
/// else all. A kind of hint counts only if every ready endpoint has it.
fn hinted<F: Family>(ready: &[&Candidate<'_, F>], zone: Option<&str>) -> Vec<EndpointAddress<F>> {
    let for_node =
        |hints: &Hints| (hints.node != NodeHint::None).then_some(hints.node == NodeHint::ThisNode);
    let for_zone = |hints: &Hints| {
        let zone = zone.filter(|zone| !zone.is_empty())?;
        (!hints.zones.is_empty()).then(|| hints.zones.iter().any(|hinted| **hinted == *zone))
    };
    let all = || ready.iter().map(|candidate| candidate.at).collect();
    select(ready, for_node)
        .or_else(|| select(ready, for_zone))
        .unwrap_or_else(all)
}

/// The endpoints whose hint is fulfilled; `None` if one has no such hint, or none is fulfilled.
fn select<F: Family>(
    ready: &[&Candidate<'_, F>],
    fulfilled: impl Fn(&Hints) -> Option<bool>,
) -> Option<Vec<EndpointAddress<F>>> {
    let mut selected = Vec::new();
    for candidate in ready {
        if fulfilled(candidate.endpoint.hints.as_ref().map(Arc::as_ref)?)? {
            selected.push(candidate.at);
        }
    }
    (!selected.is_empty()).then_some(selected)
}
