//! Full syncs: the table is listed, and compared with everything. Entry point: `Syncer::full`.

use std::collections::BTreeSet;
use std::time::Instant;

use super::flows::has_misled_all;
use super::{Installed, Report, Syncer, Timings};
use crate::apply::{ApplyError, Kernel, Refusal};
use crate::compile::{Note, Seeds, skeleton};
use crate::diff::sizes::{self, Occupancy};
use crate::diff::{Delta, Observed, TableChange, anew, changed_skeleton, diff};
use crate::model::{Family, Node, ServiceName, State};
use crate::ruleset::Skeleton;
use crate::ruleset::element::{Element, Key};
use crate::ruleset::name::SetName;

/// So many elements the kernel may refuse before a full sync gives up.
const REFUSED_MAX: usize = 16;

impl<F: Family, K: Kernel<F>> Syncer<F, K> {
    /// Lists the table and compares it with everything. An element that the kernel refuses time and
    /// again is left out, so that it hurts nobody else.
    pub(super) fn full(
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
        let committed = self.commit_full(&mut delta, &mut timings);
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
        self.installed = Some(Installed {
            node: node.clone(),
            service_cidrs,
            features,
            skeleton: skeleton.without_picks(),
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
        self.note_misled_flows(state, node, &delta.delete_elements, come, is_all);
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
}
