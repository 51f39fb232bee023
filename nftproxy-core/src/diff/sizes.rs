//! Sets and maps that are made with a size, and made anew when they are full.
//!
//! A set that is declared with a size has a hash table of that size at once, which halves what it
//! costs the kernel to fill it; one without a size grows as it is filled. But the former takes no
//! element more than its size. So it is made with room to spare, and if that is used up, it is made
//! anew in the same batch, twice as large: the rules that use it are emptied, it is deleted, created
//! under the same name and filled, and the rules are put back. Packets see either the old or the new
//! one. `affinity`, which rules fill, is never touched.

use std::collections::BTreeMap;

use super::Delta;
use crate::compile::pick_rules;
use crate::model::Family;
use crate::ruleset::element::Element;
use crate::ruleset::name::{ChainName, Pick, SetName};
use crate::ruleset::schema::schema;
use crate::ruleset::{Rule, Skeleton};

/// Sets and maps with fewer elements grow fast enough by themselves.
const SIZED_FROM: usize = 1_000;

/// How many elements sets and maps take at most, of those that have a size.
pub type Sizes = BTreeMap<SetName, u32>;

/// How many elements each set has.
pub(crate) type ElementCounts = BTreeMap<SetName, usize>;

/// How many of these elements each set has.
pub(crate) fn count<'a, F: Family>(
    elements: impl IntoIterator<Item = &'a Element<F>>,
) -> ElementCounts {
    let mut counts = ElementCounts::new();
    // Elements of one set come together, most of the time.
    let mut run: Option<(SetName, usize)> = None;
    for element in elements {
        match &mut run {
            Some((set, n)) if *set == element.set() => *n += 1,
            _ => {
                if let Some((set, n)) = run.replace((element.set(), 1)) {
                    *counts.entry(set).or_default() += n;
                }
            }
        }
    }
    if let Some((set, n)) = run {
        *counts.entry(set).or_default() += n;
    }
    counts
}

/// The sizes to make sets with that have so many elements.
pub(crate) fn sizes_for(counts: &ElementCounts) -> Sizes {
    let sized = counts
        .iter()
        .filter_map(|(set, n)| Some((*set, size_for(*set, *n)?)));
    sized.collect()
}

/// The larger sizes of those sets that must have them, if they are to have so many elements.
pub(crate) fn outgrown(sizes: &Sizes, counts: &ElementCounts) -> Sizes {
    let is_full =
        |(set, n): &(&SetName, &usize)| sizes.get(set).is_some_and(|size| **n > *size as usize);
    let full = counts.iter().filter(is_full);
    // One that we would have made without a size has somebody else's.
    let ours = full.filter(|(set, _)| !schema(**set).is_dynamic());
    ours.filter_map(|(set, n)| Some((*set, with_room(*n)?)))
        .collect()
}

/// A power of two that leaves room for a quarter more than there is; `None` if it needs no size.
fn size_for(set: SetName, n: usize) -> Option<u32> {
    let schema = schema(set);
    if n < SIZED_FROM || schema.is_interval() || schema.is_dynamic() {
        return None;
    }
    with_room(n)
}

fn with_room(n: usize) -> Option<u32> {
    let wanted = n.saturating_add(n / 4).checked_next_power_of_two()?;
    u32::try_from(wanted).ok()
}

/// How full the sets are that have a size.
#[derive(Debug, Default)]
pub(crate) struct Occupancy {
    sizes: Sizes,
    counts: ElementCounts,
}

impl Occupancy {
    /// With these sizes, and so many elements in any sets.
    pub(crate) fn new(sizes: Sizes, mut counts: ElementCounts) -> Self {
        counts.retain(|set, _| sizes.contains_key(set));
        Self { sizes, counts }
    }

    /// Elements go and come; the sets that are too small for that, and get these sizes.
    pub(crate) fn change<F: Family>(&mut self, gone: &[Element<F>], come: &[Element<F>]) -> Sizes {
        if self.sizes.is_empty() {
            return Sizes::new();
        }
        for (set, n) in count(come) {
            self.counts.entry(set).and_modify(|count| *count += n);
        }
        for (set, n) in count(gone) {
            let less = |count: &mut usize| *count = count.saturating_sub(n);
            self.counts.entry(set).and_modify(less);
        }
        let outgrown = outgrown(&self.sizes, &self.counts);
        self.sizes.extend(&outgrown);
        outgrown
    }
}

impl<F: Family> Delta<F> {
    /// Adds what makes sets anew with these sizes. `skeleton` and `picks` are all chains that there
    /// are once the rest of the delta is done, and those that it deletes; `elements` are all that
    /// these sets are to hold.
    pub(crate) fn remake_sets(
        &mut self,
        sizes: Sizes,
        skeleton: &Skeleton,
        picks: impl IntoIterator<Item = Pick>,
        elements: impl IntoIterator<Item = Element<F>>,
    ) {
        let stays = |element: &Element<F>| !sizes.contains_key(&element.set());
        self.delete_elements.retain(stays);
        self.add_elements.retain(stays);
        self.add_elements.extend(elements);
        let uses = |rules: &[Rule]| {
            let mut sets = rules.iter().flat_map(Rule::sets);
            sets.any(|set| sizes.contains_key(&set))
        };
        let known: Vec<_> = self.set_rules.iter().map(|(chain, _)| *chain).collect();
        let of_picks = picks.into_iter();
        let of_picks = of_picks.map(|pick| (ChainName::Pick(pick), pick_rules::<F>(pick)));
        let fixed = skeleton.chains.iter();
        let fixed = fixed.map(|(chain, rules)| (*chain, rules.clone()));
        for (chain, rules) in fixed.chain(of_picks) {
            if known.contains(&chain) || !uses(&rules) {
                continue;
            }
            let is_going = self.delete_chains.contains(&chain);
            let rules = if is_going { Vec::new() } else { rules };
            self.set_rules.push((chain, rules));
        }
        self.sizes = sizes;
        self.set_options = skeleton.set_options;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_room_to_grow() {
        let size = |n| size_for(SetName::Endpoints, n);
        assert_eq!(size(999), None);
        assert_eq!(size(1_000), Some(2_048));
        assert_eq!(size(50_000), Some(65_536));
        assert_eq!(size(60_000), Some(131_072));
        assert_eq!(size(usize::MAX), None);
    }

    #[test]
    fn what_rules_fill_and_what_has_ranges_has_no_size_of_ours() {
        assert_eq!(size_for(SetName::Affinity, 1_000_000), None);
        assert_eq!(size_for(SetName::AllowedSources, 1_000_000), None);
    }

    #[test]
    fn a_set_is_made_anew_when_it_is_more_than_full() {
        let sizes = Sizes::from([(SetName::Endpoints, 2_048), (SetName::Services, 2_048)]);
        let counts =
            |n| ElementCounts::from([(SetName::Endpoints, n), (SetName::NodePorts, 10_000)]);
        assert_eq!(outgrown(&sizes, &counts(2_048)), Sizes::new());
        let larger = Sizes::from([(SetName::Endpoints, 4_096)]);
        assert_eq!(outgrown(&sizes, &counts(2_049)), larger);
    }

    #[test]
    fn a_size_that_somebody_else_gave_is_outgrown_as_well() {
        let sets = [
            SetName::ClusterIps,
            SetName::AllowedSources,
            SetName::Affinity,
        ];
        let sizes = Sizes::from(sets.map(|set| (set, 8)));
        let counts = ElementCounts::from(sets.map(|set| (set, 9)));
        let larger =
            Sizes::from([SetName::ClusterIps, SetName::AllowedSources].map(|set| (set, 16)));
        assert_eq!(outgrown(&sizes, &counts), larger);
    }
}
