//! Keeps a kernel's table in step with the state.
//!
//! An ordinary sync compiles the dirty Services and sends the difference; it neither lists the
//! kernel nor walks all Services. A full one lists the table and compares it with everything: the
//! first, the one after a failure, and one now and then. Where it is known what others have touched,
//! [`Syncer::repair`] looks at just that.

mod take_over;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::apply::{ApplyError, Committed, Kernel, Refusal, Scope};
use crate::compile::{
    Changes, Compilation, Features, Leftovers, Note, Remembered, Seeds, contains, skeleton,
};
use crate::diff::sizes::{self, Occupancy};
use crate::diff::{Counts, Delta, Holder, Observed, TableChange, anew, changed_skeleton, diff};
use crate::model::{Family, Node, ServiceName, State};
use crate::provenance::{self, Digest};
use crate::ruleset::element::{Destination, Element, Key};
use crate::ruleset::name::{ChainName, Pick, SetName};
use crate::ruleset::{Comment, FamilyRuleset, Skeleton, Table};

/// So many elements the kernel may refuse before a full sync gives up.
const REFUSED_MAX: usize = 16;

/// Keeps one family's table in step.
#[derive(Debug)]
pub struct Syncer<F: Family, K> {
    kernel: K,
    compilation: Compilation<F>,
    /// What the compilation is of; `None` before the first.
    compiled_for: Option<Node>,
    /// Services that changed but are not compiled yet, as the kernel could not be listed.
    pending: BTreeSet<ServiceName>,
    /// What the kernel is known to hold beside elements; `None` if it is not known.
    installed: Option<Installed<F>>,
    /// What the kernel refused of the table as it is.
    refused: BTreeSet<Note>,
    /// The notes that were reported as being in force.
    reported: BTreeSet<Note>,
    /// Another proxy's table that the next full sync takes over, and where NodePorts are.
    predecessor: Option<(Table, Vec<F::Address>)>,
    /// ServiceCIDRs that were among the [`Leftovers`] since the table was whole.
    known_service_cidrs: Vec<(F::Address, u8)>,
    /// The digest of the elements in the kernel, if it is known without looking at all of them.
    digest: Option<Digest>,
    /// The line in the table, if it is known.
    about: Option<Comment>,
}

#[derive(Debug)]
struct Installed<F: Family> {
    node: Node,
    service_cidrs: Vec<(F::Address, u8)>,
    features: Features,
    skeleton: Skeleton,
    /// Pick chains, needed or not.
    picks: BTreeSet<Pick>,
    occupancy: Occupancy,
}

/// What a sync did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether the table was listed and compared as a whole.
    pub full: bool,
    /// What was sent.
    pub counts: Counts,
    /// The size of the batch.
    pub committed: Committed,
    /// What is left out of the Services since this sync.
    pub appeared: BTreeSet<Note>,
    /// What is no longer left out since this sync.
    pub went: BTreeSet<Note>,
    /// What was not as expected, in a full sync after the first or a repair: somebody else changed
    /// the table, or a commit had failed.
    pub is_repair: bool,
    /// Nothing had been synced before.
    pub is_first: bool,
    /// The table was made, or made anew.
    pub is_new_table: bool,
    /// How many entries of session affinity were carried over from another proxy's table, if it was
    /// deleted in favour of this one.
    pub taken_over: Option<usize>,
    /// Where the time went.
    pub timings: Timings,
}

/// Where the time of a sync went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Listing the table, in a full sync, and what affinity remembers, where some must go.
    pub list: Duration,
    /// From state to ruleset; in an ordinary sync, to the delta.
    pub compile: Duration,
    /// Comparing rulesets, in a full sync.
    pub diff: Duration,
    /// Encoding the delta.
    pub encode: Duration,
    /// Sending the batch, and waiting for the kernel's consent.
    pub kernel: Duration,
}

impl Timings {
    /// The whole sync.
    pub fn total(&self) -> Duration {
        let Self {
            list,
            compile,
            diff,
            encode,
            kernel,
        } = *self;
        list + compile + diff + encode + kernel
    }
}

impl<F: Family, K: Kernel<F>> Syncer<F, K> {
    /// A syncer that knows nothing of the kernel yet.
    pub fn new(kernel: K) -> Self {
        Self {
            kernel,
            compilation: Compilation::default(),
            compiled_for: None,
            pending: BTreeSet::new(),
            installed: None,
            refused: BTreeSet::new(),
            reported: BTreeSet::new(),
            predecessor: None,
            known_service_cidrs: Vec::new(),
            digest: None,
            about: None,
        }
    }

    /// The kernel.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// The kernel, to be changed behind the syncer's back in tests.
    pub fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// What is compiled, to be asked.
    pub fn compilation(&self) -> &Compilation<F> {
        &self.compilation
    }

    /// What is left out of the Services, in order of Service, as of the last sync that succeeded.
    pub fn notes(&self) -> impl Iterator<Item = &Note> {
        self.reported.iter()
    }

    /// Has nothing kept for [`Syncer::take_leftovers`], as nobody will call it.
    pub fn ignore_flows(&mut self) {
        self.compilation.ignore_flows();
    }

    /// Makes the next sync a full one, for when somebody else may have changed the table.
    pub fn distrust(&mut self) {
        self.installed = None;
    }

    /// Whether the table is taken to be as the last sync left it.
    pub fn trusts(&self) -> bool {
        self.installed.is_some()
    }

    /// A number that changes with each commit of anybody; see [`Kernel::generation`].
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn generation(&mut self) -> Result<Option<u32>, ApplyError> {
        self.kernel.generation()
    }

    /// Sets right what others did to the table as the last sync left it. That costs what the scope
    /// costs to look at; what has changed in the cluster since waits for [`Syncer::sync`].
    ///
    /// If the table is not known well enough for that, it is a full sync, `dirty` included; and the
    /// report says so.
    ///
    /// # Errors
    ///
    /// As [`Syncer::sync`].
    pub fn repair(
        &mut self,
        scope: &Scope,
        state: &State,
        node: &Node,
        dirty: &BTreeSet<ServiceName>,
    ) -> Result<Report, ApplyError> {
        let mut timings = Timings::default();
        if *scope != Scope::Everything && self.installed.is_some() {
            match self.repair_part(scope, state, &mut timings) {
                Ok(Some(report)) => return Ok(report),
                Ok(None) => {}
                Err(error) if error.is_retryable() => {}
                Err(error) => {
                    self.distrust();
                    return Err(error);
                }
            }
        }
        self.distrust();
        self.full(state, node, dirty, timings)
    }

    /// Sets right a part of the table; `None` if it is not only a part that is wrong.
    fn repair_part(
        &mut self,
        scope: &Scope,
        state: &State,
        timings: &mut Timings,
    ) -> Result<Option<Report>, ApplyError> {
        let start = Instant::now();
        let observed = self.kernel.list_part(scope)?;
        let observed = observed.map(|it| self.judge_holder(it)).transpose()?;
        timings.list += start.elapsed();
        let (Some(observed), Some(installed)) = (observed, &mut self.installed) else {
            return Ok(None);
        };
        if !observed.foreign.is_empty() {
            return Ok(None);
        }
        let start = Instant::now();
        let mut scratch = Vec::new();
        let is_touched = |element: &Element<F>| scope.contains(element, &mut scratch);
        let elements = self.compilation.elements_that(is_touched);
        let desired = FamilyRuleset {
            skeleton: installed.skeleton.clone(),
            picks: installed.picks.clone(),
            elements: elements.into_iter().collect(),
        };
        self.about.clone_from(&observed.about);
        // One of ours that nothing needs is as good as if we had left it.
        installed.picks.extend(&observed.ruleset.picks);
        let mended = observed.ruleset.skeleton.spoiled_picks();
        installed.picks.extend(mended);
        timings.compile += start.elapsed();
        let start = Instant::now();
        let mut delta = diff(Some(&observed), &desired);
        timings.diff += start.elapsed();
        let node = installed.node.clone();
        if scope.has_set(SetName::Affinity) {
            self.compilation.distrust_affinity();
        }
        let committed = self
            .commit(&mut delta, timings)
            .map_err(|error| self.explain(state, error, &delta))?;
        let changed = delta.delete_elements.iter().chain(&delta.add_elements);
        self.note_misled_flows(state, &node, changed, has_misled_all(&delta));
        let report = self.report(false, &delta, committed, *timings);
        Ok(Some(Report {
            is_repair: !delta.is_empty(),
            ..report
        }))
    }

    /// Notes the flows that began while these elements were not as they should be, or anything
    /// was.
    fn note_misled_flows<'a>(
        &mut self,
        state: &State,
        node: &Node,
        changed: impl Iterator<Item = &'a Element<F>>,
        is_all: bool,
    ) {
        let destination = |element: &Element<F>| match element.key() {
            Key::Destination(destination) | Key::Slot(destination, _) => Some(*destination),
            _ => None,
        };
        let mut destinations: BTreeSet<_> = changed.filter_map(destination).collect();
        if is_all {
            destinations.extend(self.compilation.destinations());
            self.known_service_cidrs.clear();
        }
        self.compilation
            .note_misled_flows(state, node, destinations);
    }

    /// Brings the table in step. `dirty` are the Services that changed since the last call,
    /// whether that succeeded or not.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be listed or refuses. The table is unchanged then, and nothing is
    /// forgotten: the next call makes up for it with a full sync.
    pub fn sync(
        &mut self,
        state: &State,
        node: &Node,
        dirty: &BTreeSet<ServiceName>,
    ) -> Result<Report, ApplyError> {
        // What changes the declaration of maps makes the table anew.
        let is_other = |installed: &Installed<F>| installed.node.counts != node.counts;
        if self.installed.as_ref().is_none_or(is_other) {
            self.installed = None;
            return self.full(state, node, dirty, Timings::default());
        }
        let start = Instant::now();
        let mut changes = Changes::default();
        self.compile(state, node, dirty, &Seeds::default(), Some(&mut changes));
        let mut delta = self.element_delta(state, node, changes);
        let mut timings = Timings {
            compile: start.elapsed(),
            ..Timings::default()
        };
        match self.commit(&mut delta, &mut timings) {
            Ok(committed) => {
                self.note_digest(&delta);
                Ok(self.report(false, &delta, committed, timings))
            }
            Err(error) if error.is_retryable() => {
                // The table may not be what it is thought to be.
                self.installed = None;
                self.full(state, node, &BTreeSet::new(), timings)
            }
            Err(error) => {
                self.installed = None;
                Err(self.explain(state, error, &delta))
            }
        }
    }

    /// Keeps the digest in step with an ordinary sync.
    fn note_digest(&mut self, delta: &Delta<F>) {
        if !delta.sizes.is_empty() {
            // It adds what was there already.
            self.digest = None;
        }
        if let Some(digest) = &mut self.digest {
            delta
                .delete_elements
                .iter()
                .for_each(|gone| digest.remove(gone));
            delta.add_elements.iter().for_each(|come| digest.add(come));
        }
    }

    /// Writes into the table what it amounts to, unless that stands there; see
    /// [`crate::provenance`]. After a full sync this takes a look at all elements, else it costs the
    /// same however many there are.
    ///
    /// It is a batch of its own, some time after the last change: a line in each would cost each
    /// sync three messages.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; it is left for another time.
    pub fn write_about(&mut self) -> Result<bool, ApplyError> {
        let Some(installed) = &self.installed else {
            return Ok(false);
        };
        let compilation = &self.compilation;
        let mut digest = *self.digest.get_or_insert_with(|| {
            let mut digest = Digest::default();
            let elements = compilation.elements();
            elements.iter().for_each(|element| digest.add(element));
            digest
        });
        let Installed {
            node,
            service_cidrs,
            features,
            ..
        } = installed;
        digest.add_chains(&skeleton::<F>(node, service_cidrs, features));
        let about = Comment::new(&provenance::line(digest));
        if self.about.as_ref() == Some(&about) {
            return Ok(false);
        }
        self.kernel.commit(&Delta {
            about: Some(about.clone()),
            ..Delta::default()
        })?;
        self.about = Some(about);
        Ok(true)
    }

    /// The flows that the syncs since the last call left behind; see
    /// [`Compilation::take_stale_flows`]. To be called after a sync that succeeded: before, new
    /// packets of a flow would be led the old way again.
    /// Nothing after [`Syncer::ignore_flows`].
    pub fn take_leftovers(&mut self, node_port_ips: &[IpAddr]) -> Leftovers<F> {
        if self.compilation.ignores_flows() {
            return Leftovers {
                flows: Vec::new(),
                one_way: Vec::new(),
            };
        }
        let service_cidrs = self
            .installed
            .as_ref()
            .map_or(&[][..], |installed| &installed.service_cidrs);
        let is_new = |cidr: &&_| !self.known_service_cidrs.contains(cidr);
        let mut one_way: Vec<_> = service_cidrs.iter().filter(is_new).copied().collect();
        self.known_service_cidrs = service_cidrs.to_vec();
        let mut misled = self.compilation.take_misled(node_port_ips);
        misled.retain(|address| !contains::<F>(&one_way, *address));
        let whole = F::ADDRESS_LEN as u8 * 8;
        one_way.extend(misled.into_iter().map(|address| (address, whole)));
        one_way.sort();
        Leftovers {
            flows: self.compilation.take_stale_flows(node_port_ips),
            one_way,
        }
    }

    /// Deletes chains that nothing refers to any more, and returns how many: pick chains, and those
    /// that remember.
    ///
    /// It is a batch of its own, some time after the one that made them unused: kernels before
    /// 6.2 count a chain as referenced for a moment after its last element went.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; the chains are left for another time.
    pub fn delete_unused_chains(&mut self) -> Result<usize, ApplyError> {
        let Some(installed) = &mut self.installed else {
            return Ok(0);
        };
        let used: BTreeSet<_> = self.compilation.picks().collect();
        // A plain one goes after the sticky one that leads to it.
        let leads_here = |pick: &Pick| {
            !pick.sticky
                && installed.picks.contains(&Pick {
                    sticky: true,
                    ..*pick
                })
        };
        let unused: BTreeSet<_> = installed
            .picks
            .difference(&used)
            .filter(|pick| !leads_here(pick))
            .copied()
            .collect();
        let timeouts = &installed.features.affinity;
        let is_forgotten = |chain: &ChainName| match chain {
            ChainName::Remember => timeouts.is_empty(),
            ChainName::RememberFor(seconds) => !timeouts.contains(seconds),
            _ => false,
        };
        let forgotten = installed.skeleton.chains.keys().copied();
        let delete_chains: Vec<_> = unused
            .iter()
            .map(|pick| ChainName::Pick(*pick))
            .chain(forgotten.filter(is_forgotten))
            .collect();
        let count = delete_chains.len();
        self.kernel.commit(&Delta {
            delete_chains,
            ..Delta::default()
        })?;
        installed.picks.retain(|pick| !unused.contains(pick));
        let chains = &mut installed.skeleton.chains;
        chains.retain(|chain, _| !is_forgotten(chain));
        Ok(count)
    }

    /// Lists the table and compares it with everything. An element that the kernel refuses time and
    /// again is left out, so that it hurts nobody else.
    fn full(
        &mut self,
        state: &State,
        node: &Node,
        dirty: &BTreeSet<ServiceName>,
        timings: Timings,
    ) -> Result<Report, ApplyError> {
        if self.pending.is_empty() {
            self.pending.clone_from(dirty);
        } else {
            self.pending.extend(dirty.iter().cloned());
        }
        let (mut refused, mut left_out) = (BTreeSet::new(), BTreeSet::new());
        let mut notes = BTreeSet::new();
        loop {
            match self.try_full(state, node, timings, &left_out, &notes) {
                Ok(report) => return Ok(report),
                Err((error, Some(culprit))) if refused.len() <= REFUSED_MAX => {
                    // The first time, somebody else may have changed the table since it was listed.
                    if !refused.insert(culprit.identity()) {
                        left_out.insert(culprit.identity());
                        notes.insert(self.refused_note(state, &culprit, &error));
                    }
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    fn refused_note(&self, state: &State, culprit: &Element<F>, error: &ApplyError) -> Note {
        let refusal = error.refusal();
        Note::Refused {
            service_port: self.compilation.owner_of(state, culprit),
            set: culprit.set(),
            element: culprit.nft().into(),
            errno: refusal.map_or(0, Refusal::errno),
            kernel_message: refusal.and_then(|refusal| refusal.kernel_message.clone()),
        }
    }

    /// An error with the name of the Service port whose element was refused.
    fn explain(&self, state: &State, mut error: ApplyError, delta: &Delta<F>) -> ApplyError {
        if let ApplyError::Refused(refusal) = &mut error {
            let culprit = refusal
                .culprit
                .and_then(|index| delta.add_elements.get(index));
            refusal.service_port =
                culprit.and_then(|culprit| self.compilation.owner_of(state, culprit));
        }
        error
    }

    /// What a sync that has just succeeded did.
    fn report(
        &mut self,
        full: bool,
        delta: &Delta<F>,
        committed: Committed,
        timings: Timings,
    ) -> Report {
        let (mut appeared, mut went) = (BTreeSet::new(), BTreeSet::new());
        if self.compilation.take_notes_changed() || full {
            let notes = self.compilation.notes().chain(&self.refused);
            let notes: BTreeSet<_> = notes.cloned().collect();
            appeared = without(&notes, &self.reported);
            went = without(&self.reported, &notes);
            self.reported = notes;
        }
        Report {
            full,
            counts: delta.counts(),
            committed,
            appeared,
            went,
            is_repair: false,
            is_first: false,
            is_new_table: delta.table.is_new(),
            taken_over: delta.take_over.is_some().then_some(delta.remember.len()),
            timings,
        }
    }

    /// A full sync, without some elements. An error comes with the element that the kernel refused,
    /// if it said so.
    fn try_full(
        &mut self,
        state: &State,
        node: &Node,
        mut timings: Timings,
        left_out: &BTreeSet<(SetName, Key<F>)>,
        refused: &BTreeSet<Note>,
    ) -> Result<Report, (ApplyError, Option<Element<F>>)> {
        let unexplained = |error| (error, None);
        let start = Instant::now();
        let observed = self.kernel.list().map_err(unexplained)?;
        let observed = observed.map(|it| self.judge_holder(it)).transpose();
        let observed = observed.map_err(unexplained)?;
        timings.list += start.elapsed();

        let start = Instant::now();
        let is_first = self.compiled_for.is_none();
        let seeds = match &observed {
            Some(observed) if is_first => Seeds::of(&observed.ruleset),
            _ => Seeds::default(),
        };
        let dirty = std::mem::take(&mut self.pending);
        self.compile(state, node, &dirty, &seeds, None);
        // The next steps need the memory.
        drop(seeds);
        let service_cidrs = state.service_cidrs::<F>();
        let features = self.compilation.features();
        let mut skeleton = skeleton::<F>(node, &service_cidrs, &features);
        timings.compile += start.elapsed();
        let (mut delta, counts) = self.full_delta(observed.as_ref(), &skeleton, &mut timings);
        if !left_out.is_empty() {
            let is_wanted = |element: &Element<F>| !left_out.contains(&element.identity());
            delta.add_elements.retain(is_wanted);
        }
        if delta.table == TableChange::Recreate {
            let start = Instant::now();
            delta.remember = self.memory();
            timings.list += start.elapsed();
        }

        if observed.is_some() {
            // Endpoints may have gone while nobody looked.
            self.compilation.distrust_affinity();
        }
        let committed = self.commit_taking_over(&mut delta, &mut timings);
        let committed = committed.map_err(|error| {
            let culprit = error.culprit();
            let culprit = culprit.and_then(|index| delta.add_elements.get(index).cloned());
            (self.explain(state, error, &delta), culprit)
        })?;
        let mut picks: BTreeSet<_> = self.compilation.picks().collect();
        let mut sizes = delta.sizes.clone();
        self.digest = None;
        self.about = None;
        if let (false, Some(observed)) = (delta.table.is_new(), observed) {
            self.about = observed.about;
            picks.extend(observed.ruleset.picks);
            picks.extend(observed.ruleset.skeleton.spoiled_picks());
            skeleton = changed_skeleton(&observed.ruleset.skeleton, skeleton);
            for (set, size) in observed.sizes {
                sizes.entry(set).or_insert(size);
            }
        }
        // Pick chains whose rules were others' are mended, and among the others.
        skeleton
            .chains
            .retain(|chain, _| !matches!(chain, ChainName::Pick(_)));
        self.installed = Some(Installed {
            node: node.clone(),
            service_cidrs,
            features,
            skeleton,
            picks,
            occupancy: Occupancy::new(sizes, counts),
        });
        self.refused.clone_from(refused);
        self.predecessor = None;
        let report = self.report(true, &delta, committed, timings);
        // What there is was compiled just now, the first time, and is noted; what is gone is not.
        let come = if is_first {
            &[][..]
        } else {
            &delta.add_elements
        };
        let is_all = !is_first && has_misled_all(&delta);
        let changed = delta.delete_elements.iter().chain(come);
        self.note_misled_flows(state, node, changed, is_all);
        Ok(Report {
            is_repair: !is_first && !delta.is_empty(),
            is_first,
            ..report
        })
    }

    /// What makes the whole table out of what was found of it, and how many elements each set has
    /// then.
    fn full_delta(
        &self,
        observed: Option<&Observed<F>>,
        skeleton: &Skeleton,
        timings: &mut Timings,
    ) -> (Delta<F>, sizes::ElementCounts) {
        let start = Instant::now();
        let compiled = |timings: &mut Timings| {
            timings.compile += start.elapsed();
            Instant::now()
        };
        let (start, result) = match observed {
            Some(observed) if observed.foreign.is_empty() => {
                let desired = self.compilation.ruleset(skeleton.clone());
                let start = compiled(timings);
                let delta = diff(Some(observed), &desired);
                (start, (delta, sizes::count(&desired.elements)))
            }
            unusable => {
                let elements = self.compilation.elements();
                let start = compiled(timings);
                let counts = sizes::count(&elements);
                let table = TableChange::in_place_of(unusable);
                let picks = self.compilation.picks();
                (start, (anew(table, skeleton, picks, elements), counts))
            }
        };
        timings.diff += start.elapsed();
        result
    }

    /// Commits a delta. If an endpoint went that clients may be remembered for, they are forgotten
    /// in the same batch, and once more after it, for those that got it meanwhile.
    fn commit(
        &mut self,
        delta: &mut Delta<F>,
        timings: &mut Timings,
    ) -> Result<Committed, ApplyError> {
        let is_stale = self.compilation.is_affinity_stale();
        let start = Instant::now();
        // A table that is made anew remembers nothing.
        let mut lost = Vec::new();
        if is_stale && !delta.table.is_new() {
            lost.extend(delta.delete_elements.iter().filter_map(sticky_address));
            self.compilation.distrust_affinity_at(lost.iter().copied());
            delta.forget = self.stale_affinity()?;
        }
        timings.list += start.elapsed();
        let committed = self.kernel.commit(delta)?;
        timings.encode += committed.encode;
        timings.kernel += committed.kernel;
        let start = Instant::now();
        if is_stale {
            self.sweep_affinity()?;
            if !delta.forget.is_empty() {
                // There was something, so look again when it is quiet.
                self.compilation.distrust_affinity_at(lost);
            }
        }
        timings.list += start.elapsed();
        Ok(committed)
    }

    /// Forgets what is remembered and must not be, if there may be any.
    ///
    /// A listing can miss elements while the kernel grows the map. So after a sync that found
    /// something, each sync and each call of this looks again, until nothing is found.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be listed or refuses; it will be looked again.
    pub fn sweep_affinity(&mut self) -> Result<(), ApplyError> {
        if !self.compilation.is_affinity_stale() {
            return Ok(());
        }
        let forget = self.stale_affinity()?;
        if forget.is_empty() {
            self.compilation.affinity_swept();
            return Ok(());
        }
        self.kernel.commit(&Delta {
            forget,
            ..Delta::default()
        })?;
        Ok(())
    }

    /// Fails if another process holds the table. A table that is held and should not be, or the other
    /// way round, has to be made anew.
    fn judge_holder(&self, mut observed: Observed<F>) -> Result<Observed<F>, ApplyError> {
        let why = match (observed.holder, self.kernel.holds()) {
            (Holder::Another(port_id), _) => {
                return Err(ApplyError::Held {
                    family: F::FAMILY,
                    port_id,
                });
            }
            (Holder::Nobody, true) => "the table cannot be held any more",
            (Holder::Us | Holder::Gone, false) => "the table is held",
            (Holder::Us | Holder::Gone, true) | (Holder::Nobody, false) => return Ok(observed),
        };
        observed.foreign.push(why.into());
        Ok(observed)
    }

    /// What is remembered and may be. Where that cannot be read, as the map is not ours, it is
    /// nothing.
    fn memory(&mut self) -> Vec<Remembered<F>> {
        let mut memory = self.kernel.list_memory().unwrap_or_default();
        memory.retain(|it| self.compilation.may_remember(&it.element));
        memory
    }

    /// What is remembered and must not be. This lists all that is remembered.
    fn stale_affinity(&mut self) -> Result<Vec<Element<F>>, ApplyError> {
        let mut remembered = self.kernel.list_affinity()?;
        remembered.retain(|element| !self.compilation.may_remember(element));
        Ok(remembered)
    }

    /// Compiles the dirty Services, or all if something changed that all depend on.
    fn compile(
        &mut self,
        state: &State,
        node: &Node,
        dirty: &BTreeSet<ServiceName>,
        seeds: &Seeds<F>,
        changes: Option<&mut Changes<F>>,
    ) {
        let all_depend_on = |node: &Node| {
            let Node {
                zone, ips, hashes, ..
            } = node;
            let is_unmarked = node.masquerade_mark.is_none();
            (zone.clone(), ips.clone(), is_unmarked, *hashes)
        };
        let compiled_for = self.compiled_for.as_ref().map(all_depend_on);
        let mut names: Vec<_> = dirty.iter().collect();
        if compiled_for.is_none() {
            // Nothing is known of those that are gone.
            names = state.services().map(|service| &service.name).collect();
        } else if compiled_for != Some(all_depend_on(node)) {
            names.extend(state.services().map(|service| &service.name));
            names.sort();
            names.dedup();
        }
        self.compilation
            .update_into(state, node, names.into_iter(), seeds, changes);
        if self.compiled_for.as_ref() != Some(node) {
            self.compiled_for = Some(node.clone());
        }
    }

    /// The delta of an ordinary sync. What it assumes to be installed is taken as installed, as a
    /// failure to commit it makes that unknown anyway.
    fn element_delta(&mut self, state: &State, node: &Node, changes: Changes<F>) -> Delta<F> {
        let Changes { delete, add } = changes;
        let mut delta = Delta {
            delete_elements: delete,
            add_elements: add,
            ..Delta::default()
        };
        let Some(installed) = &mut self.installed else {
            return delta;
        };

        let needed = self
            .compilation
            .picks()
            .filter(|pick| !installed.picks.contains(pick));
        let missing: Vec<_> = needed.collect();
        delta.add_picks(missing.iter().copied());
        installed.picks.extend(missing);

        let service_cidrs = state.service_cidrs::<F>();
        let features = self.compilation.features();
        if installed.node != *node
            || installed.service_cidrs != service_cidrs
            || installed.features != features
        {
            let desired = skeleton::<F>(node, &service_cidrs, &features);
            delta.change_skeleton(&installed.skeleton, &desired);
            installed.skeleton = changed_skeleton(&installed.skeleton, desired);
            installed.node = node.clone();
            installed.service_cidrs = service_cidrs;
            installed.features = features;
        }
        let occupancy = &mut installed.occupancy;
        let outgrown = occupancy.change(&delta.delete_elements, &delta.add_elements);
        if !outgrown.is_empty() {
            let is_in = |element: &Element<F>| outgrown.contains_key(&element.set());
            let elements = self.compilation.elements_that(is_in);
            let picks = installed.picks.iter().copied();
            delta.remake_sets(outgrown, &installed.skeleton, picks, elements);
        }
        // Elements of one set share a message.
        delta.delete_elements.sort();
        delta.add_elements.sort();
        delta
    }
}

/// Whether any flow may have been led otherwise than the rules say that are in force now.
fn has_misled_all<F: Family>(delta: &Delta<F>) -> bool {
    delta.table.is_new() || !delta.set_rules.is_empty()
}

/// The destination of an element of `sticky`.
fn sticky_address<F: Family>(element: &Element<F>) -> Option<Destination<F>> {
    match (element.set(), element.key()) {
        (SetName::Sticky, Key::Destination(destination)) => Some(*destination),
        _ => None,
    }
}

/// The notes whose subject none of the others has.
fn without(notes: &BTreeSet<Note>, others: &BTreeSet<Note>) -> BTreeSet<Note> {
    let subjects: BTreeSet<_> = others.iter().map(Note::subject).collect();
    let is_new = |note: &&Note| !subjects.contains(&note.subject());
    notes.iter().filter(is_new).cloned().collect()
}
