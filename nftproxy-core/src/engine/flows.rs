//! Has flows forgotten that changed rules do not reach: mostly of UDP.
//!
//! [`Forgetter`] collects what syncs left behind, looks for it in connection tracking, and deletes
//! what still leads astray a moment later. It is driven like the engine, and may be driven by
//! another thread, as looking through a large table takes its time. That time is bounded: what comes
//! now and then is looked for at once, and what comes all the time is gathered between looks.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::cpu;
use crate::apply::ApplyError;
use crate::apply::netlink::conntrack::{Conntrack, Flow};
use crate::compile::{Leftovers, StaleFlows};
use crate::model::{Family, V4, V6};

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long it takes at most from the kernel's consent to a sync to what the sync says here.
const SETTLE: Duration = Duration::from_millis(10);

/// Looking takes a twentieth of a core in the long run. Half a second of it may go ahead of its
/// pauses, so that what was lost with the table is looked for before TCP asks again, which it does
/// after a second;
const LOOK_CREDIT: Duration = Duration::from_millis(9500);
/// and no rest is longer than that, as flows go astray meanwhile.
const REST_MAX: Duration = Duration::from_secs(1);

/// Flows of one family that are to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flows {
    /// IPv4.
    V4(Leftovers<V4>),
    /// IPv6.
    V6(Leftovers<V6>),
}

/// A family whose flows can be told from those of the other.
pub(super) trait FlowFamily: Family {
    fn flows(leftovers: Leftovers<Self>) -> Flows;
}

impl FlowFamily for V4 {
    fn flows(leftovers: Leftovers<V4>) -> Flows {
        Flows::V4(leftovers)
    }
}

impl FlowFamily for V6 {
    fn flows(leftovers: Leftovers<V6>) -> Flows {
        Flows::V6(leftovers)
    }
}

/// Where the kernel keeps its flows: [`Conntrack`], or something else in tests.
pub trait FlowTable {
    /// Finds the flows that are stale.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked; it may be tried again.
    fn find_stale<F: Family>(
        &mut self,
        stale: &[StaleFlows<F>],
    ) -> Result<Vec<Flow<F>>, ApplyError>;

    /// Finds the flows of TCP, UDP and SCTP into these ranges (address, prefix length) that nobody
    /// has ever answered or translated.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked; it may be tried again.
    fn find_one_way<F: Family>(
        &mut self,
        ranges: &[(F::Address, u8)],
    ) -> Result<Vec<Flow<F>>, ApplyError>;

    /// Deletes the entries of flows. One that is gone already is no error.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; some may be deleted then.
    fn delete<F: Family>(&mut self, flows: &[Flow<F>]) -> Result<(), ApplyError>;
}

impl FlowTable for Conntrack {
    fn find_stale<F: Family>(
        &mut self,
        stale: &[StaleFlows<F>],
    ) -> Result<Vec<Flow<F>>, ApplyError> {
        Self::find_stale(self, stale)
    }

    fn find_one_way<F: Family>(
        &mut self,
        ranges: &[(F::Address, u8)],
    ) -> Result<Vec<Flow<F>>, ApplyError> {
        Self::find_one_way(self, ranges)
    }

    fn delete<F: Family>(&mut self, flows: &[Flow<F>]) -> Result<(), ApplyError> {
        Self::delete(self, flows)
    }
}

/// Forgets flows; see the [module](self).
///
/// ```no_run
/// use std::time::Instant;
///
/// use nftproxy_core::apply::netlink::conntrack::Conntrack;
/// use nftproxy_core::engine::flows::Forgetter;
/// # use nftproxy_core::engine::flows::Flows;
///
/// # fn example(flows: Flows) -> Result<(), nftproxy_core::apply::ApplyError> {
/// let mut forgetter = Forgetter::new(Conntrack::open()?);
/// // What an `Outcome::FlowsLeft` has.
/// forgetter.add(flows, Instant::now());
/// while let Some(at) = forgetter.next() {
///     std::thread::sleep(at.saturating_duration_since(Instant::now()));
///     println!("{} flows forgotten", forgetter.perform(Instant::now())?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Forgetter<T = Conntrack> {
    table: T,
    v4: Side<V4>,
    v6: Side<V6>,
    /// When the next step is due, if there is anything to do.
    due_at: Option<Instant>,
    /// What looking may cost, from the first look on.
    budget: Option<Budget>,
}

impl<T: FlowTable> Forgetter<T> {
    /// One that has nothing to do yet.
    pub fn new(table: T) -> Self {
        Self {
            table,
            v4: Side::default(),
            v6: Side::default(),
            due_at: None,
            budget: None,
        }
    }

    /// Takes what a sync left behind, after that sync succeeded.
    pub fn add(&mut self, flows: Flows, now: Instant) {
        match flows {
            Flows::V4(leftovers) => self.v4.todo.add(leftovers),
            Flows::V6(leftovers) => self.v6.todo.add(leftovers),
        }
        // What has been found waits for its moment; all else waits for the rest after a look only.
        if self.v4.found.is_empty() && self.v6.found.is_empty() {
            self.due_at = Some(self.next_look(now));
        }
    }

    fn next_look(&self, now: Instant) -> Instant {
        let budget = self.budget.as_ref();
        budget.map_or(now, |budget| budget.affordable_at().max(now))
    }

    fn budget(&mut self, now: Instant) -> &mut Budget {
        let new = || Budget::new(LOOK_CREDIT, LOOK_CREDIT + REST_MAX, now);
        self.budget.get_or_insert_with(new)
    }

    /// When [`Forgetter::perform`] is to be called; `None` if there is nothing to do.
    pub fn next(&self) -> Option<Instant> {
        self.due_at
    }

    /// Does one step, and returns how many flows were deleted.
    ///
    /// What it finds, it deletes in the step after the next moment: a sync may have led some of it
    /// there meanwhile, and is given the time to say so.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked or refuses; all of it will be tried again, together with what
    /// comes meanwhile.
    pub fn perform(&mut self, now: Instant) -> Result<usize, ApplyError> {
        let may_look = self.next_look(now) == now;
        let start = Instant::now();
        let (used, (v4, v6)) = cpu::used_by(|| {
            let v4 = self.v4.step(&mut self.table, may_look);
            let v6 = self.v6.step(&mut self.table, may_look);
            (v4, v6)
        });
        if may_look {
            self.budget(now).spend(now + start.elapsed(), used);
        }
        let is_failure = v4.is_err() || v6.is_err();
        let is_found = !self.v4.found.is_empty() || !self.v6.found.is_empty();
        let is_left = !self.v4.todo.is_empty() || !self.v6.todo.is_empty();
        self.due_at = match () {
            () if is_failure => Some(now + RETRY),
            () if is_found => Some(now + SETTLE),
            () => is_left.then(|| self.next_look(now)),
        };
        Ok(v4? + v6?)
    }
}

/// One family's part.
#[derive(Debug)]
struct Side<F: Family> {
    todo: Todo<F>,
    /// What is being looked for, until it is deleted.
    asked: Todo<F>,
    found: Vec<Flow<F>>,
}

impl<F: Family> Default for Side<F> {
    fn default() -> Self {
        Self {
            todo: Todo::default(),
            asked: Todo::default(),
            found: Vec::new(),
        }
    }
}

impl<F: Family> Side<F> {
    /// Deletes what was found, or else looks for what is to be done, if it may; how many were
    /// deleted.
    fn step(&mut self, table: &mut impl FlowTable, may_look: bool) -> Result<usize, ApplyError> {
        let result = match (self.found.is_empty(), may_look) {
            (false, _) => self.delete_found(table),
            (true, true) => self.look(table),
            (true, false) => return Ok(0),
        };
        let undone = std::mem::take(&mut self.asked);
        match &result {
            Err(_) => {
                self.found.clear();
                self.todo.put_back(undone);
            }
            // It counts as done when it is deleted.
            Ok(_) if !self.found.is_empty() => self.asked = undone,
            Ok(_) => {}
        }
        result
    }

    fn look(&mut self, table: &mut impl FlowTable) -> Result<usize, ApplyError> {
        if self.todo.is_empty() {
            return Ok(0);
        }
        self.asked = std::mem::take(&mut self.todo);
        let mut n_deleted = 0;
        if !self.asked.one_way.is_empty() {
            let ranges: Vec<_> = self.asked.one_way.iter().copied().collect();
            let found = table.find_one_way::<F>(&ranges)?;
            table.delete(&found)?;
            n_deleted = found.len();
        }
        let flows: Vec<_> = self.asked.by_destination.values().cloned().collect();
        if !flows.is_empty() {
            self.found = table.find_stale(&flows)?;
        }
        Ok(n_deleted)
    }

    fn delete_found(&mut self, table: &mut impl FlowTable) -> Result<usize, ApplyError> {
        let newer = &self.todo.by_destination;
        let mut found = std::mem::take(&mut self.found);
        found.retain(|flow| {
            newer
                .get(&flow.destination)
                .is_none_or(|flows| flow.is_stale(flows))
        });
        table.delete(&found)?;
        Ok(found.len())
    }
}

/// What is yet to be done in one family.
#[derive(Debug)]
struct Todo<F: Family> {
    /// For each destination only the latest counts, which bounds it.
    by_destination: BTreeMap<(F::Address, NonZeroU16), StaleFlows<F>>,
    one_way: BTreeSet<(F::Address, u8)>,
}

impl<F: Family> Default for Todo<F> {
    fn default() -> Self {
        Self {
            by_destination: BTreeMap::new(),
            one_way: BTreeSet::new(),
        }
    }
}

impl<F: Family> Todo<F> {
    fn add(&mut self, leftovers: Leftovers<F>) {
        let Leftovers { flows, one_way } = leftovers;
        for flow in flows {
            self.add_flow(flow);
        }
        self.one_way.extend(one_way);
    }

    fn add_flow(&mut self, mut flow: StaleFlows<F>) {
        let destination = (flow.address, flow.port);
        // What changes later does not lead those right that began before.
        let before = self.by_destination.get(&destination);
        flow.keep.answered_only |= before.is_some_and(|before| before.keep.answered_only);
        self.by_destination.insert(destination, flow);
    }

    /// Takes back what could not be done; what came meanwhile is newer.
    fn put_back(&mut self, undone: Self) {
        let newer = std::mem::replace(&mut self.by_destination, undone.by_destination);
        for flow in newer.into_values() {
            self.add_flow(flow);
        }
        self.one_way.extend(undone.one_way);
    }

    fn is_empty(&self) -> bool {
        self.by_destination.is_empty() && self.one_way.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::compile::Keep;

    /// A table that holds no flows, fails as often as it is told, and remembers what it was asked.
    #[derive(Default)]
    struct Fake {
        n_failures: usize,
        asked: Vec<Vec<Ipv4Addr>>,
    }

    impl FlowTable for Fake {
        fn find_stale<F: Family>(
            &mut self,
            stale: &[StaleFlows<F>],
        ) -> Result<Vec<Flow<F>>, ApplyError> {
            let addresses = stale.iter().map(|flows| flows.address.into());
            let addresses = addresses.filter_map(<V4 as Family>::address).collect();
            self.asked.push(addresses);
            if self.n_failures > 0 {
                self.n_failures -= 1;
                return Err(ApplyError::Unstable);
            }
            Ok(Vec::new())
        }

        fn find_one_way<F: Family>(
            &mut self,
            _: &[(F::Address, u8)],
        ) -> Result<Vec<Flow<F>>, ApplyError> {
            Ok(Vec::new())
        }

        fn delete<F: Family>(&mut self, _: &[Flow<F>]) -> Result<(), ApplyError> {
            Ok(())
        }
    }

    fn flows_to(address: [u8; 4]) -> Flows {
        Flows::V4(Leftovers {
            flows: vec![StaleFlows {
                address: address.into(),
                port: NonZeroU16::MIN,
                keep: Keep::default(),
            }],
            one_way: Vec::new(),
        })
    }

    /// S-125: what fails is tried again, together with what has come since, until it works.
    #[test]
    fn s125_failures_are_retried() {
        let mut forgetter = Forgetter::new(Fake {
            n_failures: 1,
            ..Fake::default()
        });
        let (first, second) = ([10, 96, 0, 1], [10, 96, 0, 2]);
        let mut now = Instant::now();
        assert_eq!(forgetter.next(), None);
        forgetter.add(flows_to(first), now);
        assert_eq!(forgetter.next(), Some(now));
        forgetter.perform(now).unwrap_err();
        assert_eq!(forgetter.next(), Some(now + RETRY));
        now += RETRY / 2;
        forgetter.add(flows_to(second), now);
        assert_eq!(forgetter.next(), Some(now), "what is new does not wait");
        forgetter.perform(now).unwrap();
        assert_eq!(forgetter.next(), None);
        let asked = [vec![first], vec![first, second]];
        let asked = asked.map(|asked| asked.into_iter().map(Ipv4Addr::from).collect::<Vec<_>>());
        assert_eq!(forgetter.table.asked, asked);
    }

    /// What comes while it rests is looked for at once, when the rest is over.
    #[test]
    fn looks_take_a_twentieth_of_the_time() {
        let mut forgetter = Forgetter::new(Fake::default());
        let addresses: Vec<_> = (1..=20).map(|n| [10, 96, 0, n]).collect();
        let mut now = Instant::now();
        let second = Duration::from_secs(1);
        forgetter.budget(now);
        now += second / 2;
        forgetter.budget(now).spend(now, second / 2);
        forgetter.add(flows_to(addresses[0]), now);
        assert_eq!(forgetter.next(), Some(now), "half a second may go ahead");
        forgetter.budget(now).spend(now, second);
        forgetter.add(flows_to(addresses[0]), now);
        let rested_at = now + REST_MAX;
        for address in &addresses[1..] {
            now += second / 1000;
            forgetter.add(flows_to(*address), now);
            assert_eq!(forgetter.next(), Some(rested_at), "the longest rest");
        }
        forgetter.perform(rested_at).unwrap();
        assert_eq!(forgetter.next(), None);
        let asked: Vec<_> = forgetter.table.asked.iter().map(Vec::len).collect();
        assert_eq!(asked, [20]);
    }
}
