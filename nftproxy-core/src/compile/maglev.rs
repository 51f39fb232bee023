//! Maglev's lookup tables.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section
//! 3.4. Every endpoint has an order of preference over all slots; in turns, each takes the first
//! that is free. What each gets is equal to within one slot, and when an endpoint goes, most of
//! what others had stays theirs.

use crate::jhash::{jhash, scale};
use crate::model::{EndpointAddress, Family};

/// Table sizes: up to how many endpoints, and how many slots. They are prime, so that each way of
/// going through a table in equal steps meets all of it.
const SIZES: [(usize, u32); 3] = [(4, 1_009), (16, 10_007), (usize::MAX, 65_537)];

/// Seeds of the two hashes that make an endpoint's order of preference. All nodes have the same.
const SEED_OFFSET: u32 = 0x6f66_6673;
const SEED_SKIP: u32 = 0x736b_6970;

/// How many slots a table for so many endpoints has.
fn size(n: usize) -> u32 {
    let size = SIZES.iter().find(|(most, _)| n <= *most);
    size.map_or(0, |(_, size)| *size)
}

/// Where an endpoint looks for free slots.
struct Preference {
    next: u32,
    skip: u32,
}

impl Preference {
    fn new<F: Family>(endpoint: &EndpointAddress<F>, size: u32) -> Self {
        let mut bytes = Vec::with_capacity(F::ADDRESS_LEN + 2);
        F::write_address(endpoint.address, &mut bytes);
        bytes.extend(endpoint.port.get().to_be_bytes());
        Self {
            next: scale(jhash(&bytes, SEED_OFFSET), size),
            skip: 1 + scale(jhash(&bytes, SEED_SKIP), size - 1),
        }
    }
}

/// Fills a table: which endpoint each slot has. Nothing but the endpoints and their weights decides.
///
/// An endpoint of weight w takes w turns in the time in which the one of the greatest weight W takes
/// W.
pub(super) fn table<F: Family>(
    weighted: &[(EndpointAddress<F>, u32)],
) -> Box<[EndpointAddress<F>]> {
    let size = size(weighted.len());
    let greatest = weighted.iter().map(|(_, weight)| u64::from(*weight)).max();
    let Some(greatest) = greatest.filter(|greatest| *greatest > 0) else {
        return Box::default();
    };
    let mut preferences: Vec<_> = weighted
        .iter()
        .map(|(endpoint, _)| Preference::new(endpoint, size))
        .collect();
    let mut table: Vec<Option<EndpointAddress<F>>> = vec![None; size as usize];
    let mut free = size;
    let mut credits = vec![0; weighted.len()];
    'full: loop {
        let turn = weighted.iter().zip(&mut preferences).zip(&mut credits);
        for (((endpoint, weight), preference), credit) in turn {
            *credit += u64::from(*weight);
            if *credit < greatest {
                continue;
            }
            *credit -= greatest;
            let slot = loop {
                let slot = preference.next;
                preference.next = (slot + preference.skip) % size;
                if let Some(slot) = table.get_mut(slot as usize)
                    && slot.is_none()
                {
                    break slot;
                }
            };
            *slot = Some(*endpoint);
            free -= 1;
            if free == 0 {
                break 'full;
            }
        }
    }
    table.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::{V4, V6};

    fn endpoints(n: u16) -> Vec<(EndpointAddress<V4>, u32)> {
        let endpoint = |number: u16| {
            let [high, low] = number.to_be_bytes();
            EndpointAddress {
                address: [10, 244, high, low].into(),
                port: NonZeroU16::new(8080).unwrap(),
            }
        };
        (1..=n).map(|number| (endpoint(number), 1)).collect()
    }

    fn counts<F: Family>(table: &[EndpointAddress<F>]) -> BTreeMap<EndpointAddress<F>, usize> {
        let mut counts = BTreeMap::new();
        for endpoint in table {
            *counts.entry(*endpoint).or_default() += 1;
        }
        counts
    }

    /// Slots that hold another endpoint though theirs is still there, as a part of all slots.
    fn disrupted(
        before: &[EndpointAddress<V4>],
        after: &[EndpointAddress<V4>],
        gone: EndpointAddress<V4>,
    ) -> f64 {
        assert_eq!(before.len(), after.len());
        let slots = before.iter().zip(after);
        let moved = slots.filter(|(old, new)| **old != gone && old != new);
        moved.count() as f64 / before.len() as f64
    }

    #[test]
    fn sizes_are_prime() {
        for (_, size) in SIZES {
            let mut divisors = (2..size).take_while(|n| n * n <= size);
            assert!(divisors.all(|n| size % n != 0), "{size}");
        }
    }

    /// Section 3.4: "the number of entries of backends differ by at most 1".
    #[test]
    fn endpoints_have_equal_parts_to_within_one_slot() {
        for n in [1, 2, 3, 4, 5, 10, 16, 17, 100, 300, 1000] {
            let table = table(&endpoints(n));
            assert_eq!(table.len(), size(n.into()) as usize);
            let counts = counts(&table);
            assert_eq!(counts.len(), usize::from(n));
            let (least, most) = (counts.values().min(), counts.values().max());
            assert!(
                most.unwrap() - least.unwrap() <= 1,
                "{n}: {least:?} {most:?}"
            );
        }
    }

    /// Section 5.3 finds that few entries change beside those of the backends that failed. Here, on
    /// average over which endpoint it is, at most one slot in a hundred.
    #[test]
    fn at_most_one_client_in_a_hundred_moves_beside_those_of_the_endpoint_that_goes() {
        for n in [2, 3, 4, 6, 8, 12, 16, 18, 32, 64, 100, 200, 300] {
            let all = endpoints(n);
            let before = table(&all);
            let step = all.len().div_ceil(16);
            let moved: Vec<_> = (0..all.len())
                .step_by(step)
                .map(|index| {
                    let mut left = all.clone();
                    let (gone, _) = left.remove(index);
                    // With one endpoint less, the table may be one of the next smaller size.
                    (size(left.len()) == size(all.len()))
                        .then(|| disrupted(&before, &table(&left), gone))
                })
                .collect();
            let Some(moved) = moved.into_iter().collect::<Option<Vec<_>>>() else {
                panic!("{n} is where sizes change")
            };
            let mean = moved.iter().sum::<f64>() / moved.len() as f64;
            let most = moved.iter().copied().fold(0.0, f64::max);
            println!(
                "{n} endpoints: {:.2} %, at most {:.2} %",
                mean * 100.0,
                most * 100.0
            );
            assert!(mean <= 0.01, "{n}: {mean}");
        }
    }

    /// An endpoint that comes back, or takes the place of another, moves no others' clients but
    /// those few.
    #[test]
    fn tables_follow_from_endpoints_alone() {
        let all = endpoints(12);
        let mut reversed = all.clone();
        reversed.reverse();
        assert_eq!(table(&all), table(&all.clone()));
        // The order of turns is that of endpoints; who calls has them sorted.
        assert_ne!(table(&all), table(&reversed));
    }

    #[test]
    fn parts_follow_weights() {
        let mut weighted = endpoints(4);
        for ((_, weight), wanted) in weighted.iter_mut().zip([1, 2, 3, 10]) {
            *weight = wanted;
        }
        let table = table(&weighted);
        for ((endpoint, weight), count) in weighted.iter().zip(counts(&table).values()) {
            let expected = *weight as f64 * table.len() as f64 / 16.0;
            let off = (*count as f64 - expected).abs();
            assert!(off <= 2.0, "{endpoint:?}: {count}, not {expected}");
        }
    }

    #[test]
    fn addresses_of_both_families_and_ports_count() {
        let at = |address: &str, port| EndpointAddress::<V6> {
            address: address.parse().unwrap(),
            port: NonZeroU16::new(port).unwrap(),
        };
        let one = [(at("fd00::1", 80), 1), (at("fd00::2", 80), 1)];
        let other = [(at("fd00::1", 81), 1), (at("fd00::2", 80), 1)];
        let places = |table: &[EndpointAddress<V6>]| -> Vec<bool> {
            table
                .iter()
                .map(|endpoint| endpoint.port.get() == 80 && *endpoint == at("fd00::2", 80))
                .collect()
        };
        assert_ne!(places(&table(&one)), places(&table(&other)));
        assert!(table::<V6>(&[]).is_empty());
    }
}
