//! Verdict maps of others: what their elements may do, the chains that ask them do.

use std::collections::{BTreeMap, BTreeSet};

use super::{Act, Conduct};

/// A table's verdict maps, as far as they have been read.
#[derive(Debug, Default)]
pub(crate) struct VerdictMaps {
    /// Chains, and the maps that their rules ask.
    asked: BTreeSet<(String, String)>,
    /// What elements may do, by map. A map without elements is not here.
    elements: BTreeMap<String, Conduct>,
}

impl VerdictMaps {
    /// A rule of the chain asks the map.
    pub(crate) fn ask(&mut self, chain: &str, map: &str) {
        self.asked.insert((chain.to_owned(), map.to_owned()));
    }

    /// The map has an element, which may do something.
    pub(crate) fn element(&mut self, map: &str) -> &mut Conduct {
        self.elements.entry(map.to_owned()).or_default()
    }

    /// Forgets what was read of a map, as that is not all of it.
    pub(crate) fn forget(&mut self, map: &str) {
        self.elements.remove(map);
    }

    /// The maps that rules ask.
    pub(crate) fn asked(&self) -> BTreeSet<String> {
        self.asked.iter().map(|(_, map)| map.clone()).collect()
    }

    /// Adds to each chain what the maps may do that it asks.
    pub(crate) fn resolve(&self, chains: &mut BTreeMap<String, Conduct>) {
        for (chain, map) in &self.asked {
            let conduct = chains.entry(chain.clone()).or_default();
            match self.elements.get(map) {
                Some(elements) => conduct.add(elements),
                None => {
                    conduct.acts.insert(Act::VerdictMap);
                }
            }
        }
        chains.retain(|_, conduct| *conduct != Conduct::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_do_what_the_maps_do_that_they_ask() {
        let mut maps = VerdictMaps::default();
        for (chain, map) in [("a", "known"), ("b", "empty"), ("c", "harmless")] {
            maps.ask(chain, map);
        }
        maps.element("known").acts.insert(Act::Drop);
        maps.element("known").leads_to.insert("d".into());
        maps.element("harmless");
        let mut chains = BTreeMap::new();
        maps.resolve(&mut chains);
        let known = Conduct {
            acts: [Act::Drop].into(),
            leads_to: ["d".to_owned()].into(),
        };
        let unknown = Conduct {
            acts: [Act::VerdictMap].into(),
            ..Conduct::default()
        };
        let expected = [("a".to_owned(), known), ("b".to_owned(), unknown)];
        assert_eq!(chains, expected.into());
    }
}
