//! The first sync in the place of another proxy. Entry point: [`Syncer::take_over`].

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Syncer, Timings};
use crate::apply::{ApplyError, Committed, Kernel};
use crate::diff::{Delta, TableChange};
use crate::model::Family;
use crate::ruleset::Table;
use crate::ruleset::element::Element;
use crate::ruleset::name::SetName;

impl<F: Family, K: Kernel<F>> Syncer<F, K> {
    /// Has the next full sync that succeeds delete another proxy's table of this family in the same
    /// transaction, if there is one, and carry over what it remembers of clients with session
    /// affinity. No packet finds neither table, or both. `node_port_ips` are where this node has
    /// its NodePorts.
    pub fn take_over(&mut self, table: Table, node_port_ips: Vec<F::Address>) {
        self.predecessor = Some((table, node_port_ips));
    }

    /// Commits the delta of a full sync, and with it what becomes of the other proxy's table.
    ///
    /// A new table with source ranges is made in two steps: first all of it that no packet meets, and
    /// then its base chains. The kernel shows the elements of a set of ranges at the very end of a
    /// commit, long after rules and other sets, and meanwhile the rule that drops whoever is not in it
    /// would drop everybody.
    pub(super) fn commit_full(
        &mut self,
        delta: &mut Delta<F>,
        timings: &mut Timings,
    ) -> Result<Committed, ApplyError> {
        let is_range = |element: &Element<F>| element.set() == SetName::AllowedSources;
        if delta.table != TableChange::Create || !delta.add_elements.iter().any(is_range) {
            return self.commit_taking_over(delta, timings);
        }
        let mut hooks = delta.split_off_hooks();
        let table = self.commit(delta, timings)?;
        let result = self.commit_taking_over(&mut hooks, timings);
        delta.rejoin(hooks);
        Ok(table.and(result?))
    }

    fn commit_taking_over(
        &mut self,
        delta: &mut Delta<F>,
        timings: &mut Timings,
    ) -> Result<Committed, ApplyError> {
        let start = Instant::now();
        self.find_predecessor(delta)?;
        timings.list += start.elapsed();
        let committed = self.commit(delta, timings);
        match committed {
            Err(ApplyError::Refused(_)) if !delta.remember.is_empty() => {
                // That clients keep their endpoints is not worth holding the rest up.
                delta.remember.clear();
                self.commit(delta, timings)
            }
            _ => committed,
        }
    }

    /// Adds another proxy's table that is to go, if there is one, and what is to be remembered of
    /// it.
    fn find_predecessor(&mut self, delta: &mut Delta<F>) -> Result<(), ApplyError> {
        let Some((table, node_port_ips)) = &self.predecessor else {
            return Ok(());
        };
        let learned = match self.kernel.list_predecessor(table) {
            Ok(None) => return Ok(()),
            Ok(Some(learned)) => learned,
            // It is changing, for its proxy still runs; that must not hold the table up.
            Err(error) if error.is_retryable() => Vec::new(),
            Err(error) => return Err(error),
        };
        delta.take_over = Some(table.clone());
        let mut inherited = self.compilation.inherit(&learned, node_port_ips);
        let has_memory = !delta.table.is_new() && !delta.add_sets.contains(&SetName::Affinity);
        // What this table remembers itself was learned by rules that are in force.
        let known = match has_memory && !inherited.is_empty() {
            true => self.kernel.list_affinity()?,
            false => Vec::new(),
        };
        let remembered = delta.remember.iter().map(|it| &it.element);
        let known: BTreeSet<_> = known
            .iter()
            .chain(remembered)
            .map(Element::identity)
            .collect();
        inherited.retain(|new| !known.contains(&new.element.identity()));
        delta.remember.extend(inherited);
        Ok(())
    }
}
