//! A kernel in memory, for tests.
//!
//! It is as strict as the real one where our deltas could go wrong: it refuses to add what exists,
//! to delete what does not, and to leave anything that points nowhere; and a refused delta leaves
//! nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use super::{ApplyError, Committed, Kernel, Operation, Refusal, Scope, Verb};
use crate::compile::{Learned, Remembered, pick_rules};
use crate::counts;
use crate::diff::{Counts, Delta, Holder, Observed, Sizes, TableChange};
use crate::model::Family;
use crate::ruleset::element::{Data, Element, Key};
use crate::ruleset::expr::Expr;
use crate::ruleset::name::{ChainName, SetName};
use crate::ruleset::{self, Comment, FamilyRuleset, Rule, SetOptions, Skeleton};

/// One family's table in memory.
#[derive(Debug, Clone)]
pub struct FakeKernel<F: Family> {
    table: Option<Table<F>>,
    fail: Option<i32>,
    /// Something in the table that is not ours, until it is made anew.
    pub foreign: Option<String>,
    /// Tables of other proxies by name, with what they remember.
    pub predecessors: BTreeMap<Box<str>, Vec<Learned<F>>>,
    /// What it refuses to add.
    pub unacceptable: BTreeSet<(SetName, Key<F>)>,
    /// How often [`Kernel::list`] was called.
    pub lists: usize,
    /// How often [`Kernel::list_part`] was called.
    pub partial_lists: usize,
    /// How often anybody committed anything to any table.
    pub generation: u32,
    /// The size of each commit that succeeded, in order.
    pub commits: Vec<Counts>,
}

#[derive(Debug, Clone)]
struct Table<F: Family> {
    set_options: SetOptions,
    about: Option<Comment>,
    sets: BTreeSet<SetName>,
    sizes: Sizes,
    chains: BTreeMap<ChainName, Vec<Rule>>,
    elements: BTreeMap<(SetName, Key<F>), Element<F>>,
    affinity: BTreeMap<(SetName, Key<F>), Element<F>>,
}

impl<F: Family> Default for FakeKernel<F> {
    fn default() -> Self {
        Self {
            table: None,
            fail: None,
            foreign: None,
            predecessors: BTreeMap::new(),
            unacceptable: BTreeSet::new(),
            lists: 0,
            partial_lists: 0,
            generation: 1,
            commits: Vec::new(),
        }
    }
}

impl<F: Family> FakeKernel<F> {
    /// Makes the next commit fail with this error number.
    pub fn fail_next(&mut self, errno: i32) {
        self.fail = Some(errno);
    }

    /// Remembers an endpoint, as a rule would: an element of `affinity`.
    pub fn learn(&mut self, element: Element<F>) {
        if let Some(table) = &mut self.table {
            table.affinity.insert(element.identity(), element);
        }
    }

    /// Deletes the table, as `nft flush ruleset` would.
    pub fn flush(&mut self) {
        self.table = None;
        self.generation += 1;
    }

    /// Deletes elements, as `nft delete element` would.
    pub fn delete_elements(&mut self, is_damaged: impl Fn(&Element<F>) -> bool) {
        if let Some(table) = &mut self.table {
            table.elements.retain(|_, element| !is_damaged(element));
        }
        self.generation += 1;
    }

    /// Deletes the rules of a chain, as `nft flush chain` would.
    pub fn flush_chain(&mut self, chain: ChainName) {
        if let Some(rules) = self
            .table
            .as_mut()
            .and_then(|table| table.chains.get_mut(&chain))
        {
            rules.clear();
        }
        self.generation += 1;
    }

    /// How many elements sets take at most, of those that have a size.
    pub fn sizes(&self) -> Sizes {
        let table = self.table.as_ref();
        table.map(|table| table.sizes.clone()).unwrap_or_default()
    }

    /// What its own line tells of the table.
    pub fn about(&self) -> Option<Comment> {
        self.table.as_ref()?.about.clone()
    }

    /// The table as a ruleset.
    pub fn ruleset(&self) -> Option<FamilyRuleset<F>> {
        let table = self.table.as_ref()?;
        let (picks, fixed): (Vec<_>, Vec<_>) = table
            .chains
            .iter()
            .map(|(chain, rules)| (*chain, rules.clone()))
            .partition(|(chain, rules)| match chain {
                ChainName::Pick(pick) => *rules == pick_rules::<F>(*pick),
                _ => false,
            });
        Some(FamilyRuleset {
            skeleton: Skeleton {
                set_options: table.set_options,
                sets: table.sets.clone(),
                chains: fixed.into_iter().collect(),
            },
            picks: picks
                .into_iter()
                .filter_map(|(chain, _)| match chain {
                    ChainName::Pick(pick) => Some(pick),
                    _ => None,
                })
                .collect(),
            elements: table.elements.values().cloned().collect(),
        })
    }
}

impl<F: Family> Kernel<F> for FakeKernel<F> {
    fn list(&mut self) -> Result<Option<Observed<F>>, ApplyError> {
        self.lists += 1;
        Ok(self.ruleset().map(|ruleset| Observed {
            ruleset,
            foreign: self.foreign.iter().cloned().collect(),
            sizes: self.sizes(),
            holder: Holder::Nobody,
            about: self.about(),
            counts: counts::Counts::default(),
            remembered: Vec::new(),
        }))
    }

    fn list_part(&mut self, scope: &Scope) -> Result<Option<Observed<F>>, ApplyError> {
        self.partial_lists += 1;
        let sizes = self.sizes();
        Ok(self.ruleset().map(|mut ruleset| {
            let mut scratch = Vec::new();
            let elements = &mut ruleset.elements;
            elements.retain(|element| scope.contains(element, &mut scratch));
            Observed {
                ruleset,
                foreign: self.foreign.iter().cloned().collect(),
                sizes,
                holder: Holder::Nobody,
                about: self.about(),
                counts: counts::Counts::default(),
                remembered: Vec::new(),
            }
        }))
    }

    fn generation(&mut self) -> Result<Option<u32>, ApplyError> {
        Ok(Some(self.generation))
    }

    fn list_affinity(&mut self) -> Result<Vec<Element<F>>, ApplyError> {
        Ok(self
            .table
            .iter()
            .flat_map(|table| table.affinity.values().cloned())
            .collect())
    }

    fn list_memory(&mut self) -> Result<Vec<Remembered<F>>, ApplyError> {
        let remembered = |element| Remembered {
            element,
            timeout: Duration::from_secs(10_800),
            expires: Duration::from_secs(10_800),
        };
        Ok(self.list_affinity()?.into_iter().map(remembered).collect())
    }

    fn list_predecessor(
        &mut self,
        table: &ruleset::Table,
    ) -> Result<Option<Vec<Learned<F>>>, ApplyError> {
        Ok(self.predecessors.get(table.name()).cloned())
    }

    fn commit(&mut self, delta: &Delta<F>) -> Result<Committed, ApplyError> {
        if let Some(errno) = self.fail.take() {
            return Err(refused::<F>(Operation::Batch, errno));
        }
        let is_unacceptable =
            |element: &Element<F>| self.unacceptable.contains(&element.identity());
        if let Some(index) = delta.add_elements.iter().position(is_unacceptable) {
            let operation = element(Verb::Add, &delta.add_elements[index]);
            let mut error = refused::<F>(operation, EINVAL);
            if let ApplyError::Refused(refusal) = &mut error {
                refusal.culprit = Some(index);
            }
            return Err(error);
        }
        let table = apply(self.table.clone(), delta)?;
        table.check()?;
        self.table = Some(table);
        if delta.table.is_new() {
            self.foreign = None;
        }
        if let Some(table) = &delta.take_over {
            self.predecessors.remove(table.name());
        }
        self.generation += 1;
        self.commits.push(delta.counts());
        Ok(Committed::default())
    }
}

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const ENFILE: i32 = 23;

fn refused<F: Family>(operation: Operation, errno: i32) -> ApplyError {
    ApplyError::Refused(Box::new(Refusal {
        family: F::FAMILY,
        table: None,
        operation,
        service_port: None,
        kernel_message: None,
        culprit: None,
        source: io::Error::from_raw_os_error(errno),
    }))
}

fn element<F: Family>(verb: Verb, element: &Element<F>) -> Operation {
    Operation::Element {
        verb,
        set: element.set(),
        element: element.nft().into(),
    }
}

fn apply<F: Family>(table: Option<Table<F>>, delta: &Delta<F>) -> Result<Table<F>, ApplyError> {
    let Delta {
        take_over: _,
        table: change,
        sizes,
        set_options,
        add_sets,
        add_chains,
        set_rules,
        forget,
        delete_elements,
        add_elements,
        remember,
        delete_chains,
        about,
    } = delta;
    let empty = || Table {
        set_options: *set_options,
        about: None,
        sets: BTreeSet::new(),
        sizes: Sizes::new(),
        chains: BTreeMap::new(),
        elements: BTreeMap::new(),
        affinity: BTreeMap::new(),
    };
    let mut table = match (change, table) {
        (TableChange::Keep | TableChange::Claim, Some(table)) => table,
        (TableChange::Create, None) | (TableChange::Recreate, Some(_)) => empty(),
        (TableChange::Create, Some(_)) => {
            return Err(refused::<F>(Operation::Table(Verb::Add), EEXIST));
        }
        (_, None) => return Err(refused::<F>(Operation::Batch, ENOENT)),
    };
    for set in add_sets {
        if !table.sets.insert(*set) {
            return Err(refused::<F>(Operation::Set(*set), EEXIST));
        }
    }
    for chain in add_chains {
        if table.chains.insert(*chain, Vec::new()).is_some() {
            return Err(refused::<F>(Operation::Chain(Verb::Add, *chain), EEXIST));
        }
    }
    for (chain, _) in set_rules {
        let Some(current) = table.chains.get_mut(chain) else {
            return Err(refused::<F>(Operation::Chain(Verb::Flush, *chain), ENOENT));
        };
        current.clear();
    }
    for (set, size) in sizes {
        let rules = table.chains.values().flatten();
        if rules.flat_map(Rule::sets).any(|used| used == *set) {
            return Err(refused::<F>(Operation::Set(*set), EBUSY));
        }
        table.elements.retain(|(of, _), _| of != set);
        table.sizes.insert(*set, *size);
    }
    for (chain, rules) in set_rules {
        table.chains.insert(*chain, rules.clone());
    }
    for element in forget {
        table.affinity.remove(&element.identity());
    }
    for gone in delete_elements {
        if table.elements.remove(&gone.identity()).is_none() {
            return Err(refused::<F>(element(Verb::Delete, gone), ENOENT));
        }
    }
    for come in add_elements {
        if table
            .elements
            .insert(come.identity(), come.clone())
            .is_some()
        {
            return Err(refused::<F>(element(Verb::Add, come), EEXIST));
        }
    }
    for (set, size) in &table.sizes {
        let n = table.elements.keys().filter(|(of, _)| of == set).count();
        if n > *size as usize {
            return Err(refused::<F>(Operation::Set(*set), ENFILE));
        }
    }
    for remembered in remember {
        let come = &remembered.element;
        if table
            .affinity
            .insert(come.identity(), come.clone())
            .is_some()
        {
            return Err(refused::<F>(element(Verb::Add, come), EEXIST));
        }
    }
    for chain in delete_chains {
        if table.chains.remove(chain).is_none() {
            return Err(refused::<F>(Operation::Chain(Verb::Delete, *chain), ENOENT));
        }
    }
    if about.is_some() {
        table.about.clone_from(about);
    }
    Ok(table)
}

impl<F: Family> Table<F> {
    /// Nothing may point to a chain that is not there.
    fn check(&self) -> Result<(), ApplyError> {
        let from_elements = self
            .elements
            .values()
            .filter_map(|element| match element.data() {
                Data::Verdict(verdict) => verdict.chain(),
                _ => None,
            });
        let from_rules = self
            .chains
            .values()
            .flatten()
            .flat_map(|rule| &rule.exprs)
            .filter_map(|expr| match expr {
                Expr::Verdict(verdict) => verdict.chain(),
                _ => None,
            });
        match from_elements
            .chain(from_rules)
            .find(|chain| !self.chains.contains_key(chain))
        {
            // The real one says so when it looks for the chain.
            Some(_) => Err(refused::<F>(Operation::Batch, ENOENT)),
            None => Ok(()),
        }
    }
}
