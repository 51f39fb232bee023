//! Which endpoints a Service port has, and in which slots. Entry point: [`Chosen::of`].

use std::sync::Arc;

use super::balance;
use super::origin::Touched;
use super::port::{PortRules, Route};
use super::seeds::Seeds;
use super::usable::usable;
use crate::model::{
    EndpointAddress, EndpointSlice, Family, Filter, Node, Service, ServicePort, TrafficPolicy,
};

/// What a Service port is compiled from.
#[derive(Clone, Copy)]
pub(super) struct Source<'a, F: Family> {
    pub(super) node: &'a Node,
    pub(super) service: &'a Service,
    pub(super) slices: &'a [Arc<EndpointSlice>],
    pub(super) filter: Option<&'a dyn Filter>,
    /// In what it differs from what the rules that it has were compiled from, if that is known.
    pub(super) touched: Option<&'a Touched<'a, F>>,
}

/// The endpoints of a Service port.
pub(super) struct Chosen<F: Family> {
    /// As in [`PortRules::cluster`].
    pub(super) cluster: Box<[EndpointAddress<F>]>,
    /// As in [`PortRules::local`].
    pub(super) local: Box<[EndpointAddress<F>]>,
    /// As in [`PortRules::hairpin`].
    pub(super) hairpin: Box<[F::Address]>,
    /// As in [`super::Usable::is_plain`].
    pub(super) is_plain: bool,
    /// All that serve, of UDP.
    pub(super) serving: Vec<EndpointAddress<F>>,
}

impl<F: Family> Chosen<F> {
    /// The endpoints for these routes. Those that stay keep the slots that they have in `old`, or in
    /// `seeds` if there is no `old`.
    pub(super) fn of(
        source: &Source<'_, F>,
        port: &ServicePort,
        routes: &[Route<F>],
        old: Option<&PortRules<F>>,
        seeds: &Seeds<F>,
    ) -> Self {
        Self::of_touched(source, port, old)
            .unwrap_or_else(|| Self::of_all(source, port, routes, old, seeds))
    }

    /// With a look at those only that were touched; `None` if that is not enough.
    fn of_touched(
        source: &Source<'_, F>,
        port: &ServicePort,
        old: Option<&PortRules<F>>,
    ) -> Option<Self> {
        let (touched, old) = source.touched.zip(old)?;
        Some(Self {
            cluster: touched.slots(source.service, port, source.filter, old)?,
            local: old.local.clone(),
            hairpin: old.hairpin.clone(),
            // It is so only for what was plain, and has no use for those that only serve.
            is_plain: true,
            serving: Vec::new(),
        })
    }

    fn of_all(
        source: &Source<'_, F>,
        port: &ServicePort,
        routes: &[Route<F>],
        old: Option<&PortRules<F>>,
        seeds: &Seeds<F>,
    ) -> Self {
        let Source {
            node,
            service,
            slices,
            filter,
            touched: _,
        } = *source;
        let usable = usable::<F>(service, port, slices, node.zone.as_deref(), filter);
        let (cluster, local) = match old {
            Some(old) => (&*old.cluster, &*old.local),
            None => seeds.of_routes(routes),
        };
        let balancing = service.balancing.as_deref();
        let mut policies = routes.iter().map(|route| route.policy);
        let local = if policies.any(|policy| policy == TrafficPolicy::Local) {
            balance::slots(balancing, local, &usable.local)
        } else {
            Box::default()
        };
        Self {
            cluster: balance::slots(balancing, cluster, &usable.cluster),
            local,
            hairpin: usable.hairpin.into(),
            is_plain: usable.is_plain,
            serving: usable.serving,
        }
    }
}
