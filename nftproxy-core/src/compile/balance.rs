//! Which endpoint has which slots, however a Service wants its endpoints to be chosen.

use super::{maglev, slots};
use crate::model::{Balancing, EndpointAddress, Family, Method, Node};
use crate::ruleset::name::Draw;

/// Slots that weights are spread over, unless there are more endpoints.
const MAX_WEIGHTED_SLOTS: usize = 1000;

/// How a slot is drawn.
pub(super) fn draw(balancing: Option<&Balancing>, node: &Node) -> Draw {
    if node.hashes && wants_hash(balancing) {
        Draw::Hash
    } else {
        Draw::Random
    }
}

/// Whether clients' addresses are to decide.
pub(super) fn wants_hash(balancing: Option<&Balancing>) -> bool {
    match balancing.map_or(Method::Random, |balancing| balancing.method) {
        Method::Random => false,
        Method::SourceHash | Method::Maglev => true,
    }
}

/// Gives the usable endpoints their slots. `current` is what the slots hold now, `usable` is sorted
/// and without duplicates.
///
/// Where a client's slot follows from its address, what slots hold depends on nothing but the
/// endpoints and their weights, so that all nodes that use the same endpoints agree. Where it is
/// drawn at random, few slots change.
pub(super) fn slots<F: Family>(
    balancing: Option<&Balancing>,
    current: &[EndpointAddress<F>],
    usable: &[EndpointAddress<F>],
) -> Box<[EndpointAddress<F>]> {
    let Some(balancing) = balancing else {
        return slots::assign(current, usable);
    };
    let weighted = weighted(balancing, usable);
    match balancing.method {
        Method::Random if weighted.iter().all(|(_, weight)| *weight == 1) => {
            let endpoints: Vec<_> = weighted.into_iter().map(|(endpoint, _)| endpoint).collect();
            slots::assign(current, &endpoints)
        }
        Method::Random => slots::assign_repeated(current, &repeated(&weighted)),
        Method::SourceHash => repeated(&weighted).into(),
        Method::Maglev => maglev::table(&weighted),
    }
}

/// The endpoints that get new connections, each with its weight, without what all weights have in
/// common. An endpoint of weight 0 gets none, unless all have it.
pub(crate) fn weighted<F: Family>(
    balancing: &Balancing,
    usable: &[EndpointAddress<F>],
) -> Vec<(EndpointAddress<F>, u32)> {
    let of = |endpoint: &EndpointAddress<F>| balancing.weight(endpoint.address.into());
    let are_all_zero = usable.iter().all(|endpoint| of(endpoint) == 0);
    let mut weighted: Vec<_> = usable
        .iter()
        .map(|endpoint| {
            let weight = if are_all_zero { 1 } else { of(endpoint) };
            (*endpoint, u32::from(weight))
        })
        .filter(|(_, weight)| *weight > 0)
        .collect();
    let divisor = weighted
        .iter()
        .fold(0, |divisor, (_, weight)| gcd(divisor, *weight));
    for (_, weight) in &mut weighted {
        *weight /= divisor.max(1);
    }
    weighted
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The endpoints in order, each as often as its weight says. Where that is too often, in proportion
/// to it, and each at least once.
fn repeated<F: Family>(weighted: &[(EndpointAddress<F>, u32)]) -> Vec<EndpointAddress<F>> {
    let times = times(
        weighted
            .iter()
            .map(|(_, weight)| *weight as usize)
            .collect(),
    );
    let endpoints = weighted.iter().zip(times);
    endpoints
        .flat_map(|((endpoint, _), times)| std::iter::repeat_n(*endpoint, times))
        .collect()
}

fn times(mut weights: Vec<usize>) -> Vec<usize> {
    let sum: usize = weights.iter().sum();
    let most = MAX_WEIGHTED_SLOTS.max(weights.len());
    if sum <= most {
        return weights;
    }
    for weight in &mut weights {
        *weight = (*weight * most / sum).max(1);
    }
    // Those that had to be raised to one took it from the others.
    let mut surplus = weights.iter().sum::<usize>().saturating_sub(most);
    while surplus > 0 {
        let Some(greatest) = weights.iter_mut().max() else {
            break;
        };
        *greatest -= 1;
        surplus -= 1;
    }
    weights
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::V4;

    fn endpoints(n: u8) -> Vec<EndpointAddress<V4>> {
        let endpoint = |last| EndpointAddress {
            address: [10, 244, 0, last].into(),
            port: NonZeroU16::MIN,
        };
        (1..=n).map(endpoint).collect()
    }

    /// Weights of the first endpoints.
    fn balancing(method: Method, weights: &[u8]) -> Balancing {
        let weights = (1..).zip(weights);
        Balancing {
            method,
            weights: weights
                .map(|(last, weight)| (IpAddr::from([10, 244, 0, last]), *weight))
                .collect(),
        }
    }

    fn counts(slots: &[EndpointAddress<V4>]) -> Vec<usize> {
        let mut counts = BTreeMap::<_, usize>::new();
        slots
            .iter()
            .for_each(|endpoint| *counts.entry(*endpoint).or_default() += 1);
        counts.into_values().collect()
    }

    #[test]
    fn slots_follow_weights_in_lowest_terms() {
        let of = |weights: &[u8], n| {
            let balancing = balancing(Method::Random, weights);
            counts(&slots(Some(&balancing), &[], &endpoints(n)))
        };
        assert_eq!(of(&[3, 1], 2), [3, 1]);
        assert_eq!(of(&[30, 10], 2), [3, 1]);
        assert_eq!(of(&[7, 7, 7], 3), [1, 1, 1]);
        assert_eq!(of(&[3, 0, 2], 4), [3, 2, 1], "the last has none of its own");
        assert_eq!(of(&[0, 0], 2), [1, 1], "better than nobody");
        assert!(of(&[1], 0).is_empty());
    }

    #[test]
    fn slots_are_bounded() {
        let mut weights = [100; 200];
        weights[0] = 1;
        let weighted = balancing(Method::SourceHash, &weights);
        let slots = slots(Some(&weighted), &[], &endpoints(200));
        assert_eq!(slots.len(), 199 * 5 + 1, "{:?}", counts(&slots));
        assert!(slots.is_sorted());
        assert_eq!(times(vec![100_000; 1500]), vec![1; 1500]);
        assert_eq!(times(vec![5000, 1, 1]), [998, 1, 1]);
    }

    #[test]
    fn few_slots_change_with_a_weight() {
        let usable = endpoints(10);
        let before = balancing(Method::Random, &[5, 3, 2, 2]);
        let current = slots(Some(&before), &[], &usable);
        let changed = balancing(Method::Random, &[5, 2, 2, 2]);
        let after = slots(Some(&changed), &current, &usable);
        assert_eq!(counts(&after), [5, 2, 2, 2, 1, 1, 1, 1, 1, 1]);
        let same = current
            .iter()
            .zip(&after)
            .filter(|(old, new)| old == new)
            .count();
        assert!(same >= after.len() - 1, "{same} of {}", after.len());
        assert_eq!(
            slots(Some(&changed), &after, &usable),
            after,
            "it is settled"
        );
    }
}
