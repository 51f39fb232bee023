//! Things that several others need or have, each of which counts once.

use std::collections::BTreeMap;

/// How often each thing is needed, and which ones came or went since the last [`Counted::drain`].
#[derive(Debug)]
pub(crate) struct Counted<T> {
    counts: BTreeMap<T, u32>,
    /// Whether a thing whose count was touched was needed before.
    touched: BTreeMap<T, bool>,
}

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Self {
            counts: BTreeMap::new(),
            touched: BTreeMap::new(),
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

impl<T: Ord + Copy> Counted<T> {
    pub(crate) fn add(&mut self, thing: T) {
        let count = self.counts.entry(thing).or_default();
        self.touched.entry(thing).or_insert(*count > 0);
        *count += 1;
    }

    pub(crate) fn remove(&mut self, thing: T) {
        let Some(count) = self.counts.get_mut(&thing) else {
            return;
        };
        self.touched.entry(thing).or_insert(true);
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&thing);
        }
    }

    /// How many different things are needed.
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }

    /// All that is needed, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> {
        self.counts.keys().copied()
    }

    /// What came and went since the last call, each in order.
    pub(crate) fn drain(&mut self) -> Turnover<T> {
        let mut turnover = Turnover {
            come: Vec::new(),
            gone: Vec::new(),
        };
        for (thing, before) in std::mem::take(&mut self.touched) {
            match (before, self.counts.contains_key(&thing)) {
                (false, true) => turnover.come.push(thing),
                (true, false) => turnover.gone.push(thing),
                _ => {}
            }
        }
        turnover
    }
}
