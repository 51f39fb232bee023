//! Large Services of which few endpoints change.
//!
//! A Service is compiled as a whole, from all its endpoints: of a large one that would be nearly all
//! that a change costs. So it is remembered what a large one was compiled from, and where nothing
//! but some endpoints differs, and each of them counts by itself, only these are looked at. Entry
//! points: [`Origin::of`], [`Origin::touched`] and [`Touched::slots`].

use std::sync::Arc;

use super::port::PortRules;
use super::slots;
use super::usable::{Candidate, candidates_at};
use crate::model::{
    Endpoint, EndpointAddress, EndpointSlice, Family, Filter, Known, Locality, Protocol, Service,
    ServicePort,
};

/// From how many endpoints on a Service is large.
const LARGE: usize = 128;
/// One of so many endpoints at most is few.
const FEW: usize = 16;

/// What a large Service was compiled from.
#[derive(Debug)]
pub(super) struct Origin {
    service: Arc<Service>,
    /// In order of name.
    slices: Vec<Arc<EndpointSlice>>,
}

/// The endpoints in which a Service differs from what it was compiled from.
#[derive(Debug)]
pub(super) struct Touched<'a, F: Family> {
    before: &'a [Arc<EndpointSlice>],
    after: &'a [Arc<EndpointSlice>],
    /// In order, each once.
    addresses: Vec<F::Address>,
}

impl Origin {
    /// What to remember of a Service that is compiled now; `None` if it is not large.
    pub(super) fn of<F: Family>(known: &Known<'_>) -> Option<Box<Self>> {
        let service = known.service?;
        (n_endpoints::<F>(known.slices) >= LARGE).then(|| {
            Box::new(Self {
                service: service.clone(),
                slices: known.slices.to_vec(),
            })
        })
    }

    /// What differs now; `None` if that is more than few endpoints.
    pub(super) fn touched<'a, F: Family>(&'a self, known: &Known<'a>) -> Option<Touched<'a, F>> {
        if !Arc::ptr_eq(&self.service, known.service?) {
            return None;
        }
        let few = n_endpoints::<F>(known.slices) / FEW;
        touched(&self.slices, known.slices, few)
    }
}

fn n_endpoints<F: Family>(slices: &[Arc<EndpointSlice>]) -> usize {
    let slices = slices.iter();
    slices.map(|slice| endpoints::<F>(slice).len()).sum()
}

fn endpoints<F: Family>(slice: &EndpointSlice) -> &[Endpoint<F>] {
    F::endpoints(&slice.endpoints).unwrap_or_default()
}

/// `None` if it is more than `few`.
fn touched<'a, F: Family>(
    before: &'a [Arc<EndpointSlice>],
    after: &'a [Arc<EndpointSlice>],
    few: usize,
) -> Option<Touched<'a, F>> {
    let mut addresses = Vec::new();
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let (gone, come) = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some(a), Some(b)) if a.name == b.name => (old.next(), new.next()),
            (Some(a), Some(b)) if b.name < a.name => (None, new.next()),
            (Some(_), _) => (old.next(), None),
            (None, Some(_)) => (None, new.next()),
        };
        let (gone_endpoints, come_endpoints) = [gone, come]
            .map(|slice| slice.map_or(&[][..], |slice| endpoints::<F>(slice)))
            .into();
        match (gone, come) {
            (Some(gone), Some(come)) if Arc::ptr_eq(gone, come) => {}
            (Some(gone), Some(come)) if gone.ports == come.ports => {
                differing(gone_endpoints, come_endpoints, &mut addresses);
            }
            _ => {
                let both = gone_endpoints.iter().chain(come_endpoints);
                addresses.extend(both.map(|endpoint| endpoint.address));
            }
        }
        if addresses.len() > few {
            return None;
        }
    }
    addresses.sort();
    addresses.dedup();
    Some(Touched {
        before,
        after,
        addresses,
    })
}

/// Appends the addresses at which there are other endpoints than there were; both are in order of
/// address.
fn differing<F: Family>(
    mut before: &[Endpoint<F>],
    mut after: &[Endpoint<F>],
    addresses: &mut Vec<F::Address>,
) {
    loop {
        match (before, after) {
            ([a, old @ ..], [b, new @ ..]) => {
                if a != b {
                    addresses.push(a.address.min(b.address));
                }
                if a.address <= b.address {
                    before = old;
                }
                if b.address <= a.address {
                    after = new;
                }
            }
            ([], left) | (left, []) => {
                addresses.extend(left.iter().map(|endpoint| endpoint.address));
                return;
            }
        }
    }
}

impl<F: Family> Touched<'_, F> {
    /// The slots for policy `Cluster`, if nothing else changes about the endpoints of a port that had
    /// these rules; `None` if they have to be looked at as a whole.
    pub(super) fn slots(
        &self,
        service: &Service,
        port: &ServicePort,
        filter: Option<&dyn Filter>,
        old: &PortRules<F>,
    ) -> Option<Box<[EndpointAddress<F>]>> {
        // Who asks for a UDP port's endpoints asks for those as well that only serve.
        if !old.is_plain || port.protocol == Protocol::Udp || service.balancing.is_some() {
            return None;
        }
        self.replaced(service, port, filter, &old.cluster)
    }

    /// The same for slots that hold all endpoints that were ready, if these have no hints.
    fn replaced(
        &self,
        service: &Service,
        port: &ServicePort,
        filter: Option<&dyn Filter>,
        old: &[EndpointAddress<F>],
    ) -> Option<Box<[EndpointAddress<F>]>> {
        let at = |slices| candidates_at(service, port, slices, filter, &self.addresses);
        let (before, after): (Vec<_>, Vec<_>) = (at(self.before), at(self.after));
        let counts_by_itself = |candidate: &Candidate<'_, F>| {
            // What may be on this node is in other lists, too.
            candidate.endpoint.hints.is_none() && candidate.endpoint.locality == Locality::Remote
        };
        if !before.iter().chain(&after).all(counts_by_itself) {
            return None;
        }
        let ready = |candidates: Vec<Candidate<'_, F>>| -> Vec<_> {
            let ready = candidates
                .iter()
                .filter(|candidate| candidate.endpoint.ready);
            ready.map(|candidate| candidate.at).collect()
        };
        let (before, after) = (ready(before), ready(after));
        let gone = |at: &EndpointAddress<F>| {
            before.binary_search(at).is_ok() && after.binary_search(at).is_err()
        };
        let come = after.iter().filter(|at| before.binary_search(at).is_err());
        let n_gone = before.iter().filter(|at| gone(at)).count();
        let holes = old.iter().enumerate().filter(|(_, at)| gone(at));
        let holes: Vec<_> = holes.map(|(slot, _)| slot).take(n_gone).collect();
        let slots = slots::refill(old, &holes, come.copied());
        // Where none is left, those that terminate may serve.
        (holes.len() == n_gone && !slots.is_empty()).then_some(slots)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::compile::usable;
    use crate::model::{Hints, NodeHint, ServiceName, SliceName, SlicePort, V4};

    fn service() -> Service {
        let port = ServicePort::new(Protocol::Tcp, 80.try_into().unwrap());
        let name = ServiceName::new("shop", "api").unwrap();
        Service::at(name, [10, 96, 0, 20].into(), [port])
    }

    fn slice(name: usize, port: u16, endpoints: Vec<Endpoint<V4>>) -> Arc<EndpointSlice> {
        let mut endpoints = endpoints;
        endpoints.sort_by_key(|endpoint| endpoint.address);
        Arc::new(EndpointSlice {
            name: SliceName::new("shop", &format!("api-{name}")).unwrap(),
            service: service().name,
            ports: [SlicePort::new(Protocol::Tcp, port.try_into().unwrap())].into(),
            endpoints: endpoints.into_iter().collect(),
        })
    }

    fn remote(last: u8) -> Endpoint<V4> {
        Endpoint {
            locality: Locality::Remote,
            ..Endpoint::ready([10, 244, 1, last].into())
        }
    }

    /// Mostly one that counts by itself.
    fn endpoint() -> impl Strategy<Value = Endpoint<V4>> {
        let conditions = vec![
            (true, true, false),
            (true, true, false),
            (false, true, false),
            (false, true, true),
            (false, false, true),
        ];
        let hints = prop_oneof![
            9 => Just(None),
            1 => Just(Some(Arc::new(Hints {
                zones: ["zone-a".into()].into(),
                node: NodeHint::None,
            }))),
        ];
        let locality = prop_oneof![
            8 => Just(Locality::Remote),
            1 => Just(Locality::Local),
            1 => Just(Locality::Unknown),
        ];
        (0_u8..8, select(conditions), locality, hints).prop_map(
            |(last, (ready, serving, terminating), locality, hints)| Endpoint {
                ready,
                serving,
                terminating,
                locality,
                hints,
                ..remote(last)
            },
        )
    }

    fn slices() -> impl Strategy<Value = Vec<Option<Arc<EndpointSlice>>>> {
        let known = (select(vec![8080, 8080, 8080, 8081]), vec(endpoint(), 0..5));
        vec(option::weighted(0.8, known), 4).prop_map(|slices| {
            let slices = slices.into_iter().enumerate();
            slices
                .map(|(name, known)| known.map(|(port, endpoints)| slice(name, port, endpoints)))
                .collect()
        })
    }

    /// The slots after a change, if they follow from what was touched; and what else there is.
    fn replaced(
        before: &[Arc<EndpointSlice>],
        after: &[Arc<EndpointSlice>],
        old: &[EndpointAddress<V4>],
    ) -> Option<Box<[EndpointAddress<V4>]>> {
        let service = service();
        let touched = touched::<V4>(before, after, usize::MAX).expect("any number is few");
        touched.replaced(&service, &service.ports[0], None, old)
    }

    fn all_usable(slices: &[Arc<EndpointSlice>]) -> usable::Usable<V4> {
        let service = service();
        usable::usable(&service, &service.ports[0], slices, Some("zone-a"), None)
    }

    #[test]
    fn an_endpoint_is_replaced_by_another() {
        let before = [
            slice(1, 80, vec![remote(1), remote(2)]),
            slice(2, 80, vec![remote(3)]),
        ];
        let after = [before[0].clone(), slice(2, 80, vec![remote(4)])];
        let old = slots::assign(&[], &all_usable(&before).cluster);
        let addresses = |slots: &[EndpointAddress<V4>]| {
            let last = |at: &EndpointAddress<V4>| at.address.octets()[3];
            slots.iter().map(last).collect::<Vec<_>>()
        };
        let slots = replaced(&before, &after, &old).unwrap();
        assert_eq!(addresses(&slots), [1, 2, 4]);
        let gone = [after[0].clone()];
        assert_eq!(addresses(&replaced(&after, &gone, &slots).unwrap()), [1, 2]);
        // Another slice has it as well.
        let copied = [before[0].clone(), slice(2, 80, vec![remote(2)])];
        let slots = replaced(&gone, &copied, &[old[0], old[1]]).unwrap();
        assert_eq!(addresses(&slots), [1, 2]);
        assert_eq!(replaced(&gone, &[], &[old[0], old[1]]), None);
    }

    #[test]
    fn many_endpoints_are_not_few() {
        let before = [slice(1, 80, (1..=20).map(remote).collect())];
        let after = |n: u8| [slice(1, 80, (1..=20 - n).map(remote).collect())];
        assert!(touched::<V4>(&before, &after(1), 1).is_some());
        assert!(touched::<V4>(&before, &after(2), 1).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_was_touched_comes_to_the_same_as_everything(
            before in slices(),
            changes in slices(),
            is_changed in vec(proptest::bool::weighted(0.3), 4),
            is_reversed in any::<bool>(),
        ) {
            let after = before.iter().zip(&changes).zip(&is_changed);
            let after = after.map(|((before, change), is)| if *is { change } else { before });
            let after: Vec<_> = after.flatten().cloned().collect();
            let before: Vec<_> = before.into_iter().flatten().collect();
            let was = all_usable(&before);
            if was.is_plain {
                let mut wanted = was.cluster.clone();
                if is_reversed {
                    wanted.reverse();
                }
                let slots = replaced(&before, &after, &wanted);
                let is = all_usable(&after);
                if let Some(slots) = slots {
                    prop_assert_eq!(slots, slots::assign(&wanted, &is.cluster));
                    prop_assert!(is.is_plain);
                    prop_assert_eq!(was.local, is.local);
                    prop_assert_eq!(was.hairpin, is.hairpin);
                }
            }
        }
    }
}
