//! What must be done to a table so that it becomes the desired ruleset.
//!
//! A [`Delta`] is complete: whoever applies it makes no decision of its own.

pub(crate) mod sizes;

use std::collections::{BTreeMap, BTreeSet};

use crate::compile::{Remembered, pick_rules};
use crate::counts::Counts as Counted;
use crate::model::Family;
use crate::ruleset::element::Element;
use crate::ruleset::name::{ChainName, Pick, SetName};
use crate::ruleset::schema::base_chain;
use crate::ruleset::{Comment, FamilyRuleset, Rule, SetOptions, Skeleton, Table};
pub use sizes::Sizes;
use sizes::{count, outgrown, sizes_for};

/// One atomic change of a family's table, in the order of its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta<F: Family> {
    /// Another proxy's table of the same family, which goes in the same moment; if it is gone
    /// already, so much the better.
    pub take_over: Option<Table>,
    /// What becomes of the table itself.
    pub table: TableChange,
    /// How many elements sets and maps are to take. Those of a new table are created so; those of one
    /// that stays are deleted and created anew, once the chains below are empty. All that is to be
    /// in them is among the elements to add.
    pub sizes: Sizes,
    /// How its sets and maps are declared, if it is made.
    pub set_options: SetOptions,
    /// Sets and maps to create, beside those that come with the table.
    pub add_sets: Vec<SetName>,
    /// Chains to create, empty at first.
    pub add_chains: Vec<ChainName>,
    /// Chains to empty, and their new rules; those that were just created too.
    pub set_rules: Vec<(ChainName, Vec<Rule>)>,
    /// Elements of `affinity` to delete, if they still exist: rules add them and time takes them.
    pub forget: Vec<Element<F>>,
    /// Elements to delete. All exist.
    pub delete_elements: Vec<Element<F>>,
    /// Elements to add. None exist, once those above are gone.
    pub add_elements: Vec<Element<F>>,
    /// Elements of `affinity` to add that no rule of this table has written: it was made anew, or
    /// another proxy's memory is taken over. None exist.
    pub remember: Vec<Remembered<F>>,
    /// Chains to delete that nothing refers to.
    pub delete_chains: Vec<ChainName>,
    /// A line that tells of the table, in the place of the one before; see [`crate::provenance`].
    pub about: Option<Comment>,
}

/// What becomes of the table and its sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableChange {
    /// It exists with all its sets, and stays.
    Keep,
    /// It stays, and is claimed: the process that held it has left it to whoever comes.
    Claim,
    /// It is created, with all its sets.
    Create,
    /// It exists in a form that cannot be changed into ours, so it is deleted and created.
    Recreate,
}

impl TableChange {
    /// The table is made in place of one that cannot stay, if there is one.
    pub(crate) fn in_place_of<F: Family>(unusable: Option<&Observed<F>>) -> Self {
        match unusable {
            Some(_) => Self::Recreate,
            None => Self::Create,
        }
    }

    /// Whether nothing is left of what there was.
    pub fn is_new(self) -> bool {
        match self {
            Self::Keep | Self::Claim => false,
            Self::Create | Self::Recreate => true,
        }
    }
}

impl<F: Family> Default for Delta<F> {
    fn default() -> Self {
        Self {
            take_over: None,
            table: TableChange::Keep,
            sizes: Sizes::new(),
            set_options: SetOptions::default(),
            add_sets: Vec::new(),
            add_chains: Vec::new(),
            set_rules: Vec::new(),
            forget: Vec::new(),
            delete_elements: Vec::new(),
            add_elements: Vec::new(),
            remember: Vec::new(),
            delete_chains: Vec::new(),
            about: None,
        }
    }
}

impl<F: Family> Delta<F> {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let Self {
            take_over,
            table,
            sizes,
            set_options: _,
            add_sets,
            add_chains,
            set_rules,
            forget,
            delete_elements,
            add_elements,
            remember,
            delete_chains,
            about,
        } = self;
        take_over.is_none()
            && *table == TableChange::Keep
            && sizes.is_empty()
            && add_sets.is_empty()
            && add_chains.is_empty()
            && set_rules.is_empty()
            && forget.is_empty()
            && delete_elements.is_empty()
            && add_elements.is_empty()
            && remember.is_empty()
            && delete_chains.is_empty()
            && about.is_none()
    }

    /// Takes out of what makes a table that by which packets meet it: its base chains, and what is to
    /// happen in the same moment.
    pub(crate) fn split_off_hooks(&mut self) -> Self {
        let is_base = |chain: &ChainName| base_chain(*chain).is_some();
        let (add_chains, others) = self.add_chains.drain(..).partition(is_base);
        self.add_chains = others;
        let rules = self.set_rules.drain(..);
        let (set_rules, others) = rules.partition(|(chain, _)| is_base(chain));
        self.set_rules = others;
        Self {
            take_over: self.take_over.take(),
            set_options: self.set_options,
            add_chains,
            set_rules,
            remember: std::mem::take(&mut self.remember),
            ..Self::default()
        }
    }

    /// Puts back what [`Delta::split_off_hooks`] has taken.
    pub(crate) fn rejoin(&mut self, hooks: Self) {
        self.take_over = hooks.take_over;
        self.add_chains.extend(hooks.add_chains);
        self.set_rules.extend(hooks.set_rules);
        self.remember = hooks.remember;
    }

    /// How much there is to do.
    pub fn counts(&self) -> Counts {
        Counts {
            chains: self.add_chains.len() + self.delete_chains.len(),
            rules: self.set_rules.iter().map(|(_, rules)| rules.len()).sum(),
            deleted_elements: self.forget.len() + self.delete_elements.len(),
            added_elements: self.add_elements.len() + self.remember.len(),
        }
    }

    /// Adds what makes pick chains exist that do not yet.
    pub fn add_picks(&mut self, picks: impl IntoIterator<Item = Pick>) {
        for pick in picks {
            self.add_chains.push(ChainName::Pick(pick));
            self.set_picks([pick]);
        }
    }

    /// Adds what gives pick chains their rules.
    fn set_picks(&mut self, picks: impl IntoIterator<Item = Pick>) {
        let rules = picks
            .into_iter()
            .map(|pick| (ChainName::Pick(pick), pick_rules::<F>(pick)));
        self.set_rules.extend(rules);
    }

    /// Adds what turns the fixed chains of `observed` into those of `desired`. Chains that others
    /// may lead to are left, though they are not desired, and so are sets.
    pub fn change_skeleton(&mut self, observed: &Skeleton, desired: &Skeleton) {
        self.add_sets
            .extend(desired.sets.difference(&observed.sets).copied());
        let gone = observed
            .chains
            .keys()
            .filter(|chain| !desired.chains.contains_key(chain) && !is_left(**chain));
        self.delete_chains.extend(gone);
        for (chain, rules) in &desired.chains {
            match observed.chains.get(chain) {
                Some(current) if current == rules => continue,
                Some(_) => {}
                None => self.add_chains.push(*chain),
            }
            self.set_rules.push((*chain, rules.clone()));
        }
    }
}

/// Whether a fixed chain stays when it is not desired any more. Only base chains cost anything when
/// idle, and nothing can refer to them. Others are left, for the same reason as pick chains in
/// [`diff`].
fn is_left(chain: ChainName) -> bool {
    base_chain(chain).is_none()
}

/// The fixed chains that there are once those of `observed` have been changed into `desired`.
pub(crate) fn changed_skeleton(observed: &Skeleton, mut desired: Skeleton) -> Skeleton {
    desired.sets.extend(&observed.sets);
    for (chain, rules) in &observed.chains {
        if is_left(*chain) && !desired.chains.contains_key(chain) {
            desired.chains.insert(*chain, rules.clone());
        }
    }
    desired
}

/// The size of a [`Delta`], in kernel operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Chains created or deleted.
    pub chains: usize,
    /// Rules written.
    pub rules: usize,
    /// Elements deleted.
    pub deleted_elements: usize,
    /// Elements added.
    pub added_elements: usize,
}

impl Counts {
    /// Elements deleted or added.
    pub fn elements(&self) -> usize {
        self.deleted_elements + self.added_elements
    }

    /// All of it.
    pub fn operations(&self) -> usize {
        self.chains + self.rules + self.elements()
    }
}

/// A table as it was found in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed<F: Family> {
    /// What of it we understand. Pick chains with other rules than they should have are among the
    /// fixed chains.
    pub ruleset: FamilyRuleset<F>,
    /// What of it cannot stay or be mended piece by piece, in words: objects that are not ours,
    /// sets of another type, base chains at another place, sets that are missing.
    pub foreign: Vec<String>,
    /// How many elements sets and maps take at most, of those that have a size.
    pub sizes: Sizes,
    /// Who keeps others from changing it.
    pub holder: Holder,
    /// What its own line tells of it.
    pub about: Option<Comment>,
    /// What it has counted, if that was in a listing that was read; the kernel is asked apart.
    pub counts: Counted<F>,
    /// Whom session affinity leads where, likewise. Rules write it, so it is no part of the ruleset.
    pub remembered: Vec<Element<F>>,
}

/// Who keeps others from changing a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Holder {
    /// Nobody, and so it stays: the kernel lets no table change in that.
    #[default]
    Nobody,
    /// Somebody did, and has left it to whoever claims it.
    Gone,
    /// Whoever asks.
    Us,
    /// The process whose netlink socket has this number, which is mostly the process id.
    Another(u32),
}

/// What was found of a table, object by object.
pub(crate) struct Parts<F: Family> {
    /// Rules by chain, in order.
    pub(crate) chains: BTreeMap<ChainName, Vec<Rule>>,
    /// Sets and maps that have the type they should have.
    pub(crate) sets: BTreeSet<SetName>,
    /// As in [`Observed::sizes`].
    pub(crate) sizes: Sizes,
    /// Those of them whose elements count.
    pub(crate) counted: BTreeSet<SetName>,
    /// Their elements, in any order.
    pub(crate) elements: Vec<Element<F>>,
    /// As in [`Observed::foreign`].
    pub(crate) foreign: Vec<String>,
    /// As in [`Observed::holder`].
    pub(crate) holder: Holder,
    /// As in [`Observed::about`].
    pub(crate) about: Option<Comment>,
    /// As in [`Observed::counts`].
    pub(crate) counts: Counted<F>,
    /// As in [`Observed::remembered`].
    pub(crate) remembered: Vec<Element<F>>,
}

impl<F: Family> Default for Parts<F> {
    fn default() -> Self {
        Self {
            chains: BTreeMap::new(),
            sets: BTreeSet::new(),
            sizes: Sizes::new(),
            counted: BTreeSet::new(),
            elements: Vec::new(),
            foreign: Vec::new(),
            holder: Holder::Nobody,
            about: None,
            counts: Counted::default(),
            remembered: Vec::new(),
        }
    }
}

impl<F: Family> Parts<F> {
    /// What all of it amounts to.
    pub(crate) fn finish(mut self) -> Observed<F> {
        for set in SetName::ALL {
            if !self.sets.contains(&set) {
                self.foreign.push(format!("set {set} is missing"));
            }
        }
        // As most do.
        let counts = self.counted.len() > SetName::COUNTED.len() / 2;
        let set_options = SetOptions { counts };
        for set in &self.sets {
            if self.counted.contains(set) != set_options.counts(*set) {
                let how = if self.counted.contains(set) {
                    "counts connections, and others do not"
                } else {
                    "does not count connections, and others do"
                };
                self.foreign.push(format!("set {set} {how}"));
            }
        }
        let mut picks = BTreeSet::new();
        let mut fixed = BTreeMap::new();
        for (chain, rules) in self.chains {
            match chain {
                ChainName::Pick(pick) if rules == pick_rules::<F>(pick) => {
                    picks.insert(pick);
                }
                chain => {
                    fixed.insert(chain, rules);
                }
            }
        }
        let optional = self.sets.into_iter();
        let ruleset = FamilyRuleset {
            skeleton: Skeleton {
                set_options,
                sets: optional
                    .filter(|set| SetName::OPTIONAL.contains(set))
                    .collect(),
                chains: fixed,
            },
            picks,
            elements: self.elements.into_iter().collect(),
        };
        Observed {
            ruleset,
            foreign: self.foreign,
            sizes: self.sizes,
            holder: self.holder,
            about: self.about,
            counts: self.counts,
            remembered: self.remembered,
        }
    }
}

/// Finds what turns the table that was found (`None`: there is none) into the desired one.
///
/// Pick chains that nothing needs any more are left: they do no harm, and kernels before 6.2
/// refuse to delete a chain in the batch that deletes the last element pointing to it.
pub fn diff<F: Family>(observed: Option<&Observed<F>>, desired: &FamilyRuleset<F>) -> Delta<F> {
    let FamilyRuleset {
        skeleton,
        picks,
        elements,
    } = desired;
    let observed = match observed {
        Some(observed)
            if observed.foreign.is_empty()
                && observed.ruleset.skeleton.set_options == skeleton.set_options =>
        {
            observed
        }
        unusable => {
            let elements = elements.iter().cloned().collect();
            let table = TableChange::in_place_of(unusable);
            return anew(table, skeleton, picks.iter().copied(), elements);
        }
    };
    let mut delta = Delta {
        set_options: skeleton.set_options,
        ..Delta::default()
    };
    if observed.holder == Holder::Gone {
        delta.table = TableChange::Claim;
    }
    let current = &observed.ruleset;
    delta.change_skeleton(&current.skeleton, skeleton);
    let spoiled = current.skeleton.spoiled_picks();
    let missing = picks.difference(&current.picks);
    delta.add_picks(missing.filter(|pick| !spoiled.contains(pick)).copied());
    // Needed or not: one with its rules can be needed again, and be deleted as unused.
    delta.set_picks(spoiled);
    delta.delete_elements = current.elements.difference(elements).cloned().collect();
    delta.add_elements = elements.difference(&current.elements).cloned().collect();
    let outgrown = if observed.sizes.is_empty() {
        Sizes::new()
    } else {
        outgrown(&observed.sizes, &count(elements))
    };
    if !outgrown.is_empty() {
        let is_in = |element: &&Element<F>| outgrown.contains_key(&element.set());
        let elements: Vec<_> = elements.iter().filter(is_in).cloned().collect();
        let skeleton = changed_skeleton(&current.skeleton, skeleton.clone());
        let picks = picks.union(&current.picks).copied();
        delta.remake_sets(outgrown, &skeleton, picks, elements);
    }
    delta
}

/// What makes the table. `elements` come in any order.
pub(crate) fn anew<F: Family>(
    table: TableChange,
    skeleton: &Skeleton,
    picks: impl IntoIterator<Item = Pick>,
    mut elements: Vec<Element<F>>,
) -> Delta<F> {
    // Elements of one set share messages. Within a set their order is of no use to the kernel.
    elements.sort_unstable_by_key(Element::set);
    let mut delta = Delta {
        table,
        sizes: sizes_for(&count(&elements)),
        set_options: skeleton.set_options,
        add_elements: elements,
        ..Delta::default()
    };
    delta.change_skeleton(&Skeleton::default(), skeleton);
    delta.add_picks(picks);
    delta
}

/// Calls `f` with each run of elements of the same set.
pub(crate) fn for_each_set<F: Family>(
    elements: &[Element<F>],
    mut f: impl FnMut(SetName, &[Element<F>]),
) {
    for run in elements.chunk_by(|a, b| a.set() == b.set()) {
        f(run[0].set(), run);
    }
}
