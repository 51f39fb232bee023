//! What session affinity remembers and must not, or may keep in a table that is made anew.
//!
//! Rules write it, so it is listed when it matters. Entry points: `Syncer::commit`, which forgets
//! in the batch that takes an endpoint away, and [`Syncer::sweep_affinity`].

use std::time::Instant;

use super::{Syncer, Timings};
use crate::apply::{ApplyError, Committed, Kernel};
use crate::compile::Remembered;
use crate::diff::Delta;
use crate::model::Family;
use crate::ruleset::element::{Destination, Element, Key};
use crate::ruleset::name::SetName;

impl<F: Family, K: Kernel<F>> Syncer<F, K> {
    /// Commits a delta. If an endpoint went that clients may be remembered for, they are forgotten
    /// in the same batch, and once more after it, for those that got it meanwhile.
    pub(super) fn commit(
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

    /// What is remembered and may be. Where that cannot be read, as the map is not ours, it is
    /// nothing.
    pub(super) fn memory(&mut self) -> Vec<Remembered<F>> {
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
}

/// The destination of an element of `sticky`.
fn sticky_address<F: Family>(element: &Element<F>) -> Option<Destination<F>> {
    match (element.set(), element.key()) {
        (SetName::Sticky, Key::Destination(destination)) => Some(*destination),
        _ => None,
    }
}
