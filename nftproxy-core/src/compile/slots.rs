//! Which slot each endpoint has.

use std::collections::BTreeMap;

use crate::model::{EndpointAddress, Family};

/// Gives each wanted endpoint a slot, so that as few slots change as possible.
///
/// `current` is what the slots hold now, `wanted` is sorted and without duplicates. An endpoint
/// that stays keeps its slot, a new one takes a hole or comes last, and the last one moves into a
/// hole that is left: slots `0..wanted.len()` are always dense, and one endpoint more or less
/// changes at most two of them.
pub(super) fn assign<F: Family>(
    current: &[EndpointAddress<F>],
    wanted: &[EndpointAddress<F>],
) -> Box<[EndpointAddress<F>]> {
    if current.is_empty() {
        return wanted.into();
    }
    let mut placed = vec![false; wanted.len()];
    // Slots are in order but for what changed since they were first assigned, so most of the time
    // the next one is right there.
    let mut next = 0;
    let mut stays = |endpoint: &EndpointAddress<F>| {
        let index = if wanted.get(next) == Some(endpoint) {
            next
        } else {
            let Ok(index) = wanted.binary_search(endpoint) else {
                return false;
            };
            index
        };
        next = index + 1;
        !std::mem::replace(&mut placed[index], true)
    };
    let slots = current.iter().enumerate();
    let holes: Vec<_> = slots
        .filter(|(_, endpoint)| !stays(endpoint))
        .map(|(slot, _)| slot)
        .collect();
    let new = wanted.iter().zip(&placed);
    let new = new.filter(|(_, placed)| !**placed).map(|(new, _)| *new);
    refill(current, &holes, new)
}

/// Takes endpoints out of the slots that `holes` names, in order, and gives new ones a slot each.
pub(super) fn refill<F: Family>(
    current: &[EndpointAddress<F>],
    mut holes: &[usize],
    new: impl IntoIterator<Item = EndpointAddress<F>>,
) -> Box<[EndpointAddress<F>]> {
    let mut slots = current.to_vec();
    for endpoint in new {
        match holes.split_first() {
            Some((hole, others)) => {
                slots[*hole] = endpoint;
                holes = others;
            }
            None => slots.push(endpoint),
        }
    }
    // More holes than new endpoints: each is filled from the end.
    while let (Some((first, but_first)), Some((last, but_last))) =
        (holes.split_first(), holes.split_last())
    {
        if last + 1 == slots.len() {
            slots.pop();
            holes = but_last;
        } else {
            slots.swap_remove(*first);
            holes = but_first;
        }
    }
    slots.into()
}

/// The same for endpoints that each want several slots: `wanted` is sorted, and has each as often as
/// it wants them.
///
/// Slots `0..wanted.len()` are always dense, and one that holds what may stay is left alone.
pub(super) fn assign_repeated<F: Family>(
    current: &[EndpointAddress<F>],
    wanted: &[EndpointAddress<F>],
) -> Box<[EndpointAddress<F>]> {
    let mut left = BTreeMap::<EndpointAddress<F>, usize>::new();
    for endpoint in wanted {
        *left.entry(*endpoint).or_default() += 1;
    }
    // Slots beyond the last one go in any case.
    let stay = current.iter().take(wanted.len()).map(|endpoint| {
        let left = left.get_mut(endpoint).filter(|left| **left > 0)?;
        *left -= 1;
        Some(*endpoint)
    });
    let stay: Vec<_> = stay.collect();
    let mut new = left
        .into_iter()
        .flat_map(|(endpoint, left)| std::iter::repeat_n(endpoint, left));
    let mut slots: Vec<_> = stay
        .into_iter()
        .filter_map(|stays| stays.or_else(|| new.next()))
        .collect();
    slots.extend(new);
    slots.into()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;
    use crate::model::V4;

    fn endpoint(n: u8) -> EndpointAddress<V4> {
        EndpointAddress {
            address: [10, 0, 0, n].into(),
            port: NonZeroU16::new(80).unwrap(),
        }
    }

    fn endpoints(numbers: impl IntoIterator<Item = u8>) -> Vec<EndpointAddress<V4>> {
        numbers.into_iter().map(endpoint).collect()
    }

    #[test]
    fn a_new_endpoint_takes_the_hole() {
        let slots = assign(&endpoints([3, 1, 2]), &endpoints([1, 3, 4]));
        assert_eq!(*slots, *endpoints([3, 1, 4]));
    }

    #[test]
    fn the_last_moves_into_a_hole_that_is_left() {
        let slots = assign(&endpoints([1, 2, 3, 4]), &endpoints([2, 3, 4]));
        assert_eq!(*slots, *endpoints([4, 2, 3]));
    }

    #[test]
    fn duplicate_slots_are_mended() {
        let slots = assign(&endpoints([1, 1, 2]), &endpoints([1, 2]));
        assert_eq!(*slots, *endpoints([1, 2]));
    }

    proptest! {
        #[test]
        fn repeated_slots_hold_what_is_wanted_and_change_little(
            current in vec(0_u8..10, 0..30),
            wanted in vec(0_u8..10, 0..30),
        ) {
            let current = endpoints(current);
            let mut wanted = endpoints(wanted);
            wanted.sort();
            let slots = assign_repeated(&current, &wanted);

            let mut sorted = slots.to_vec();
            sorted.sort();
            prop_assert_eq!(&sorted, &wanted);
            prop_assert_eq!(&*assign_repeated(&slots, &wanted), &*slots, "it is settled");
            let stay = slots.iter().zip(&current).filter(|(new, old)| new == old).count();
            let of = |endpoint: &EndpointAddress<V4>, all: &[EndpointAddress<V4>]| {
                all.iter().filter(|other| *other == endpoint).count()
            };
            let kept = &current[..current.len().min(wanted.len())];
            let can_stay: usize = (0..10)
                .map(endpoint)
                .map(|endpoint| of(&endpoint, kept).min(of(&endpoint, &wanted)))
                .sum();
            prop_assert!(stay >= can_stay);
        }

        #[test]
        fn slots_hold_what_is_wanted_and_change_little(
            current in vec(0_u8..40, 0..30),
            wanted in btree_set(0_u8..40, 0..30),
        ) {
            let current = endpoints(current);
            let wanted = endpoints(wanted);
            let slots = assign(&current, &wanted);

            let mut sorted = slots.to_vec();
            sorted.sort();
            prop_assert_eq!(&sorted, &wanted);
            prop_assert_eq!(&*assign(&slots, &wanted), &*slots, "it is settled");
            let stay = slots.iter().zip(&current).filter(|(new, old)| new == old).count();
            let new = wanted.iter().filter(|endpoint| !current.contains(endpoint)).count();
            // Whatever is not new stays, but for those that had to move down from the end.
            let beyond = current.iter().skip(wanted.len()).count();
            prop_assert!(stay + new + beyond >= wanted.len());
        }
    }
}
