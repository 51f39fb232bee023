//! Things that several others need or have, each of which counts once.

use std::hash::Hash;

use indexmap::IndexMap;
use indexmap::map::Entry;

/// How often each thing is needed, and which ones came or went since the last [`Counted::drain`].
#[derive(Debug)]
pub(crate) struct Counted<T> {
    counts: IndexMap<T, u32>,
    /// Each time that a thing came or went, and whether it had been needed before.
    turns: Vec<(T, bool)>,
}

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Self {
            counts: IndexMap::new(),
            turns: Vec::new(),
        }
    }
}

/// What came and what went.
pub(crate) struct Turnover<T> {
    pub(crate) come: Vec<T>,
    pub(crate) gone: Vec<T>,
}

impl<T> Turnover<T> {
    /// The same of what each thing is to be.
    pub(crate) fn map<U>(self, f: impl Fn(T) -> U) -> Turnover<U> {
        Turnover {
            come: self.come.into_iter().map(&f).collect(),
            gone: self.gone.into_iter().map(f).collect(),
        }
    }
}

impl<T: Ord + Hash + Copy> Counted<T> {
    pub(crate) fn add(&mut self, thing: T) {
        match self.counts.entry(thing) {
            Entry::Occupied(mut entry) => *entry.get_mut() += 1,
            Entry::Vacant(entry) => {
                entry.insert(1);
                self.turns.push((thing, false));
            }
        }
    }

    pub(crate) fn remove(&mut self, thing: T) {
        let Entry::Occupied(mut entry) = self.counts.entry(thing) else {
            return;
        };
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.swap_remove();
            self.turns.push((thing, true));
        }
    }

    /// How many different things are needed.
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }

    /// All that is needed, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> {
        self.counts.keys().copied()
    }

    /// What came and went since the last call, each in order.
    pub(crate) fn drain(&mut self) -> Turnover<T> {
        let mut turnover = Turnover {
            come: Vec::new(),
            gone: Vec::new(),
        };
        // The first turn of a thing tells how it was before all of them.
        self.turns.sort_by_key(|(thing, _)| *thing);
        self.turns.dedup_by_key(|(thing, _)| *thing);
        for (thing, before) in std::mem::take(&mut self.turns) {
            match (before, self.counts.contains_key(&thing)) {
                (false, true) => turnover.come.push(thing),
                (true, false) => turnover.gone.push(thing),
                _ => {}
            }
        }
        turnover
    }

    /// Forgets what came and went.
    pub(crate) fn settle(&mut self) {
        self.turns = Vec::new();
    }
}
