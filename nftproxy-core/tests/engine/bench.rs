//! An engine on kernels in memory.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nftproxy_core::apply::fake::FakeKernel;
use nftproxy_core::apply::netlink::conntrack::Flow;
use nftproxy_core::apply::{ApplyError, Committed, Kernel, Scope};
use nftproxy_core::compile::StaleFlows;
use nftproxy_core::diff::{Delta, Observed};
use nftproxy_core::engine::flows::FlowTable;
use nftproxy_core::engine::{Due, Engine, Event, Kernels, Options, Outcome, Pace};
use nftproxy_core::model::{Family, V4, V6};
use nftproxy_core::ruleset::element::Element;

use crate::common::mk_node;

pub(crate) const PACE: Pace = Pace {
    min_sync_period: Some(SECOND),
    sync_period: Duration::from_secs(30),
    comparison_period: Duration::from_secs(3600),
};
pub(crate) const SECOND: Duration = Duration::from_secs(1);
/// What a sync of a kernel in memory may take in real time.
pub(crate) const MOMENT: Duration = Duration::from_millis(100);

/// A kernel in memory that the test can look into while the engine has it.
#[derive(Clone, Debug)]
pub(crate) struct Shared<F: Family> {
    pub(crate) fake: Arc<Mutex<FakeKernel<F>>>,
    is_broken: Arc<AtomicBool>,
    pub(crate) is_forbidden: Arc<AtomicBool>,
    /// Commits have to wait for others.
    pub(crate) is_slow: Arc<AtomicBool>,
}

impl<F: Family> Default for Shared<F> {
    fn default() -> Self {
        Self {
            fake: Arc::default(),
            is_broken: Arc::default(),
            is_forbidden: Arc::default(),
            is_slow: Arc::default(),
        }
    }
}

impl<F: Family> Shared<F> {
    pub(crate) fn commits(&self) -> usize {
        // The line that tells of a table is none of its rules.
        let commits = &self.fake.lock().unwrap().commits;
        commits
            .iter()
            .filter(|counts| counts.operations() > 0)
            .count()
    }

    /// Makes every commit fail, or none from now on.
    pub(crate) fn set_broken(&self, is_broken: bool) {
        self.is_broken.store(is_broken, Ordering::Relaxed);
    }
}

impl<F: Family> Kernel<F> for Shared<F> {
    fn list(&mut self) -> Result<Option<Observed<F>>, ApplyError> {
        self.fake.lock().unwrap().list()
    }

    fn list_part(&mut self, scope: &Scope) -> Result<Option<Observed<F>>, ApplyError> {
        self.fake.lock().unwrap().list_part(scope)
    }

    fn generation(&mut self) -> Result<Option<u32>, ApplyError> {
        self.fake.lock().unwrap().generation()
    }

    fn list_affinity(&mut self) -> Result<Vec<Element<F>>, ApplyError> {
        self.fake.lock().unwrap().list_affinity()
    }

    fn commit(&mut self, delta: &Delta<F>) -> Result<Committed, ApplyError> {
        if delta.is_empty() {
            return Ok(Committed::default());
        }
        if self.is_forbidden.load(Ordering::Relaxed) {
            return Err(ApplyError::NotPermitted);
        }
        if self.is_slow.load(Ordering::Relaxed) {
            std::thread::sleep(SECOND);
        }
        let mut fake = self.fake.lock().unwrap();
        if self.is_broken.load(Ordering::Relaxed) {
            fake.fail_next(12);
        }
        fake.commit(delta)
    }
}

/// Connection tracking without any flows, that counts how often it was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct NoFlows(pub(crate) Arc<Mutex<usize>>);

impl FlowTable for NoFlows {
    fn find_stale<F: Family>(&mut self, _: &[StaleFlows<F>]) -> Result<Vec<Flow<F>>, ApplyError> {
        *self.0.lock().unwrap() += 1;
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

pub(crate) type TestEngine = Engine<Shared<V4>, Shared<V6>, NoFlows>;

/// An engine, its kernels, and a clock that stands still unless the test turns it.
pub(crate) struct Bench {
    pub(crate) engine: TestEngine,
    pub(crate) v4: Shared<V4>,
    pub(crate) v6: Shared<V6>,
    pub(crate) flows: NoFlows,
    pub(crate) now: Instant,
}

pub(crate) fn options() -> Options {
    Options {
        node: mk_node(),
        pace: PACE,
        ..Options::default()
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(options())
    }

    pub(crate) fn with(options: Options) -> Self {
        let (v4, v6, flows) = (Shared::default(), Shared::default(), NoFlows::default());
        let kernels = Kernels {
            v4: Some(v4.clone()),
            v6: Some(v6.clone()),
            flows: Some(flows.clone()),
        };
        let now = Instant::now();
        let mut engine = Engine::new(kernels, options, now);
        engine.apply(Event::Watched(true), now);
        Self {
            engine,
            v4,
            v6,
            flows,
            now,
        }
    }

    pub(crate) fn apply(&mut self, event: Event) {
        self.engine.apply(event, self.now);
    }

    pub(crate) fn complete_lists(&mut self) {
        self.apply(Event::ServicesListed(BTreeSet::new()));
        self.apply(Event::SlicesListed(BTreeSet::new()));
    }

    pub(crate) fn next(&self) -> Option<Due> {
        self.engine.next(self.now)
    }

    /// Turns the clock, and has everything done that is due on the way.
    pub(crate) fn pass(&mut self, time: Duration) -> Vec<Outcome> {
        let end = self.now + time;
        let mut outcomes = Vec::new();
        while let Some(due) = self.next().filter(|due| due.at <= end) {
            self.now = due.at;
            outcomes.extend(self.engine.perform(due.task, self.now));
        }
        self.now = end;
        outcomes
    }

    /// Has everything done that is due now.
    pub(crate) fn settle(&mut self) -> Vec<Outcome> {
        self.pass(Duration::ZERO)
    }

    pub(crate) fn commits(&self) -> (usize, usize) {
        (self.v4.commits(), self.v6.commits())
    }
}
