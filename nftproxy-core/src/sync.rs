//! Keeps a kernel's table in step with the state.
//!
//! An ordinary sync compiles the dirty Services and sends the difference; it neither lists the
//! kernel nor walks all Services. A full one lists the table and compares it with everything: the
//! first, the one after a failure, and one now and then. Where it is known what others have touched,
//! [`Syncer::repair`] looks at just that.
//!
//! Here is what all of them share: what is known of the kernel, compiling, and the ordinary sync.

mod affinity;
mod flows;
mod full;
mod repair;
mod report;
mod take_over;
mod tidy;

use std::collections::BTreeSet;
use std::time::Instant;

use crate::apply::{ApplyError, Committed, Kernel};
use crate::compile::{Changes, Compilation, Features, Note, Seeds, skeleton};
use crate::diff::sizes::Occupancy;
use crate::diff::{Delta, Holder, Observed, changed_skeleton};
use crate::model::{Family, Node, ServiceName, State};
use crate::provenance::Digest;
use crate::ruleset::element::Element;
use crate::ruleset::name::Pick;
use crate::ruleset::{Comment, Skeleton, Table};

pub use report::{Report, Timings};

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
    /// ServiceCIDRs that were among the leftovers since the table was whole.
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

/// The notes whose subject none of the others has.
fn without(notes: &BTreeSet<Note>, others: &BTreeSet<Note>) -> BTreeSet<Note> {
    let subjects: BTreeSet<_> = others.iter().map(Note::subject).collect();
    let is_new = |note: &&Note| !subjects.contains(&note.subject());
    notes.iter().filter(is_new).cloned().collect()
}
