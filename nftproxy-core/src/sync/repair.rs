//! Repairs of a part of the table that others have touched. Entry point: [`Syncer::repair`].

use std::collections::BTreeSet;
use std::time::Instant;

use super::flows::has_misled_all;
use super::{Report, Syncer, Timings};
use crate::apply::{ApplyError, Kernel, Scope};
use crate::diff::{changed_skeleton, diff};
use crate::model::{Family, Node, ServiceName, State};
use crate::ruleset::FamilyRuleset;
use crate::ruleset::element::Element;
use crate::ruleset::name::SetName;

impl<F: Family, K: Kernel<F>> Syncer<F, K> {
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
        // So are chains whose names are ours.
        let skeleton = std::mem::take(&mut installed.skeleton);
        installed.skeleton = changed_skeleton(&observed.ruleset.skeleton, skeleton).without_picks();
        timings.diff += start.elapsed();
        let node = installed.node.clone();
        if scope.has_set(SetName::Affinity) {
            self.compilation.distrust_affinity();
        }
        let committed = self
            .commit(&mut delta, timings)
            .map_err(|error| self.explain(state, error, &delta))?;
        let (gone, come) = (&delta.delete_elements, &delta.add_elements);
        self.note_misled_flows(state, &node, gone, come, has_misled_all(&delta));
        let report = self.report(false, &delta, committed, *timings);
        Ok(Some(Report {
            is_repair: !delta.is_empty(),
            ..report
        }))
    }
}
