//! Tells clients of endpoints that are gone, so that their connections end rather than hang.
//!
//! An endpoint is gone when no slice has it any more; one that terminates, or is not ready, is still
//! there. What is gone is listed after the sync that leads nobody there any more, and what is back is
//! taken out before the sync that leads clients there again. Time takes the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::outcome::Outcome;
use crate::apply::ApplyError;
use crate::apply::netlink::GoneTable;
use crate::model::counted::Turnover;
use crate::model::presence::Turnovers;
use crate::model::{EndpointAddress, Family, State, V4, V6};

/// For how long clients are told. Whoever is silent for longer finds out by itself.
const TOLD_FOR: Duration = Duration::from_secs(300);
/// When to try again what has failed.
const RETRY: Duration = Duration::from_secs(1);
/// No more endpoints than that are listed; a kernel's memory is not a client's to fill.
const LISTED_MAX: usize = 65_536;

/// The endpoints that are gone, in both families.
#[derive(Debug)]
pub(super) struct FailFast {
    table: GoneTable,
    v4: Side<V4>,
    v6: Side<V6>,
    retry_at: Option<Instant>,
}

impl FailFast {
    /// One that knows nothing of the table yet, if there is one.
    pub(super) fn new(table: GoneTable) -> Self {
        Self {
            table,
            v4: Side::default(),
            v6: Side::default(),
            retry_at: None,
        }
    }

    /// Takes out what is back. To be called right before a sync or a repair.
    pub(super) fn before_sync(
        &mut self,
        state: &mut State,
        now: Instant,
        outcomes: &mut Vec<Outcome>,
    ) {
        if let Some(Turnovers { v4, v6 }) = state.take_presence() {
            let v4 = self.v4.turn_over(&mut self.table, v4, now);
            let v6 = self.v6.turn_over(&mut self.table, v6, now);
            self.conclude([v4.err(), v6.err()], now, outcomes);
        }
    }

    /// Lists what is gone. To be called after a sync that succeeded.
    pub(super) fn after_sync(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        let v4 = self.v4.list_gone(&mut self.table, now);
        let v6 = self.v6.list_gone(&mut self.table, now);
        self.conclude([v4.err(), v6.err()], now, outcomes);
    }

    /// When [`FailFast::tidy`] is to be called.
    pub(super) fn next(&self) -> Option<Instant> {
        let ends = [self.v4.first_end, self.v6.first_end, self.retry_at];
        ends.into_iter().flatten().min()
    }

    /// Deletes what nobody needs any more, and tries again what has failed.
    pub(super) fn tidy(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        self.retry_at = None;
        let v4 = self.v4.tidy(&mut self.table, now);
        let v6 = self.v6.tidy(&mut self.table, now);
        self.conclude([v4.err(), v6.err()], now, outcomes);
    }

    fn conclude(
        &mut self,
        errors: [Option<ApplyError>; 2],
        now: Instant,
        outcomes: &mut Vec<Outcome>,
    ) {
        for error in errors.into_iter().flatten() {
            self.retry_at = Some(now + RETRY);
            outcomes.push(Outcome::FailFastFailed { error });
        }
    }
}

/// One family's part.
#[derive(Debug)]
struct Side<F: Family> {
    /// What the table has, and until when.
    listed: BTreeMap<EndpointAddress<F>, Instant>,
    /// When the first of it goes.
    first_end: Option<Instant>,
    /// What is gone, but may be led to until the next sync.
    gone: BTreeSet<EndpointAddress<F>>,
    table: Known,
}

/// What is known of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Known {
    /// Nothing: a process before this one may have left it.
    #[default]
    Nothing,
    /// It is not what it should be, or may not be.
    Wrong,
    /// It has what is listed; it is not there if that is nothing.
    Right,
}

impl<F: Family> Default for Side<F> {
    fn default() -> Self {
        Self {
            listed: BTreeMap::new(),
            first_end: None,
            gone: BTreeSet::new(),
            table: Known::default(),
        }
    }
}

impl<F: Family> Side<F> {
    fn turn_over(
        &mut self,
        table: &mut GoneTable,
        turnover: Turnover<EndpointAddress<F>>,
        now: Instant,
    ) -> Result<(), ApplyError> {
        let Turnover { come, gone } = turnover;
        if self.table == Known::Nothing {
            // How long each is listed already does not matter; the first time, all that is there has
            // just come. What cannot be read is deleted.
            let listed = table.list::<F>().unwrap_or_default().into_iter();
            self.listed = listed.map(|at| (at, now + TOLD_FOR)).collect();
            self.table = Known::Wrong;
        }
        self.gone.extend(gone);
        let mut back = Vec::new();
        for endpoint in come {
            self.gone.remove(&endpoint);
            if self.listed.remove(&endpoint).is_some() {
                back.push(endpoint);
            }
        }
        if !back.is_empty() {
            // The last one takes the table with it.
            let stays = self.table == Known::Right && !self.listed.is_empty();
            if !stays || table.take_out(&back).is_err() {
                self.table = Known::Wrong;
            }
        }
        self.mend(table, now)
    }

    fn list_gone(&mut self, table: &mut GoneTable, now: Instant) -> Result<(), ApplyError> {
        let room = LISTED_MAX.saturating_sub(self.listed.len());
        let gone: Vec<_> = std::mem::take(&mut self.gone)
            .into_iter()
            .take(room)
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        let was_there = self.table == Known::Right && !self.listed.is_empty();
        self.listed
            .extend(gone.iter().map(|at| (*at, now + TOLD_FOR)));
        let gone: Vec<_> = gone.into_iter().map(|at| (at, TOLD_FOR)).collect();
        // Somebody else may have deleted the table.
        if !was_there || table.add(&gone).is_err() {
            self.table = Known::Wrong;
        }
        self.mend(table, now)
    }

    fn tidy(&mut self, table: &mut GoneTable, now: Instant) -> Result<(), ApplyError> {
        let n_before = self.listed.len();
        self.listed.retain(|_, until| *until > now);
        if self.listed.is_empty() && n_before > 0 {
            self.table = Known::Wrong;
        }
        self.mend(table, now)
    }

    /// Makes the table what it should be, if it may not be. To be called after each change of what is
    /// listed.
    fn mend(&mut self, table: &mut GoneTable, now: Instant) -> Result<(), ApplyError> {
        self.first_end = self.listed.values().min().copied();
        if self.table != Known::Wrong {
            return Ok(());
        }
        if self.listed.is_empty() {
            table.remove::<F>()?;
        } else {
            let left = |(at, until): (&_, &Instant)| {
                let left = until.saturating_duration_since(now);
                // The kernel takes nought for no limit.
                (*at, left.max(Duration::from_millis(1)))
            };
            let listed: Vec<_> = self.listed.iter().map(left).collect();
            table.make(&listed)?;
        }
        self.table = Known::Right;
        Ok(())
    }
}
