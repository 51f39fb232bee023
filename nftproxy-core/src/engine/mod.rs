//! A node's proxy: all that happens between "something changed" and "the kernel agrees", for both
//! families.
//!
//! ```text
//!  Event ──▶ apply ──▶ State, Node ──▶ Syncer, one per family ──▶ kernel
//!                          ▲                     │
//!     next ──▶ Due ──▶ perform ──▶ Outcome … ◀───┴──▶ Forgetter ──▶ connection tracking
//! ```
//!
//! An [`Engine`] is driven by its owner: events go in by [`Engine::apply`], [`Engine::next`] says
//! what is due and when, and [`Engine::perform`] does it and returns what happened as data. It has
//! no thread, no clock and no runtime of its own, and logs nothing. [`crate::driver`] drives one on
//! a plain thread, for whoever wants just that.
//!
//! ```no_run
//! use std::time::Instant;
//!
//! use nftproxy_core::engine::{Engine, Event, Options};
//!
//! # fn events_until(_: Option<Instant>) -> Option<Event> { None }
//! let mut engine = Engine::open(Options::default(), Instant::now())?;
//! loop {
//!     let due = engine.next(Instant::now());
//!     if let Some(event) = events_until(due.map(|due| due.at)) {
//!         engine.apply(event, Instant::now());
//!     } else if let Some(due) = due {
//!         for outcome in engine.perform(due.task, Instant::now()) {
//!             println!("{outcome:?}");
//!         }
//!     }
//! #   break;
//! }
//! # Ok::<(), nftproxy_core::apply::ApplyError>(())
//! ```
//!
//! Nothing is written before both first lists, of Services and of slices, are complete: half a list
//! would cut off what the kernel already serves.

mod budget;
mod cpu;
mod event;
mod fail_fast;
pub mod flows;
mod half;
mod health;
mod health_check;
mod options;
mod outcome;
mod query;
mod schedule;
mod take;
mod tasks;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::apply::netlink::conntrack::Conntrack;
use crate::apply::netlink::{GoneTable, Monitor, Netlink};
use crate::apply::{ApplyError, Kernel};
use crate::model::{IpFamily, Node, State, V4, V6};
use fail_fast::FailFast;
use flows::{FlowTable, Forgetter};
use half::Half;
use schedule::Schedule;

pub use event::Event;
pub use health::Health;
pub use health_check::{HealthCheckAnswer, HealthChecks};
pub use options::{Families, FlowOption, Options};
pub use outcome::{Cause, Outcome};
pub use schedule::{Due, Pace, Task};

/// What an engine works on: the kernel, or something in memory in its place.
#[derive(Debug)]
pub struct Kernels<K4, K6, T> {
    /// The IPv4 table; `None` if there is to be none.
    pub v4: Option<K4>,
    /// The IPv6 table; `None` if there is to be none.
    pub v6: Option<K6>,
    /// Connection tracking, where flows are to be forgotten by the engine itself.
    pub flows: Option<T>,
}

/// The proxy of one node, or one of several; see the [module](self).
///
/// The type parameters are where rules and flows go, which is the kernel but in tests.
#[derive(Debug)]
pub struct Engine<K4 = Netlink, K6 = Netlink, T = Conntrack> {
    state: State,
    node: Node,
    local_addresses: Vec<IpAddr>,
    v4: Option<Half<V4, K4>>,
    v6: Option<Half<V6, K6>>,
    forgetter: Option<Forgetter<T>>,
    schedule: Schedule,
    started: Instant,
    /// When the first sync may start without the node being known.
    node_by: Instant,
    is_node_known: bool,
    services_listed: bool,
    slices_listed: bool,
    /// Counts events.
    revision: u64,
    /// Up to which of them both families agree.
    synced_revision: u64,
    health: Health,
    trims_heap: bool,
    /// The kernel's generation after our last commit, where nobody tells of others'.
    generation: Option<u32>,
    monitor: Option<Monitor>,
    fail_fast: Option<FailFast>,
}

impl Engine {
    /// An engine on the real kernel, that knows nothing yet. It starts at `now`, and changes
    /// nothing before its first sync.
    ///
    /// # Errors
    ///
    /// If there are no sockets to be had, this process may not change nftables, the kernel lacks it
    /// for a family, or the network namespace cannot be entered. A retry does not help.
    pub fn open(options: Options, now: Instant) -> Result<Self, ApplyError> {
        use std::os::fd::AsFd;
        let namespace = options.namespace.as_ref().map(AsFd::as_fd);
        let open = || Netlink::open_table(options.table.clone(), namespace);
        // Without it, the kernel is asked now and then.
        let mut monitor = Monitor::open(&options.table, namespace).ok();
        let mut kernels = Kernels {
            v4: options.families.has_v4().then(open).transpose()?,
            v6: options.families.has_v6().then(open).transpose()?,
            flows: (options.flows == FlowOption::Forget)
                .then(|| Conntrack::open_in(namespace))
                .transpose()?,
        };
        // To ask needs the same permission as to change.
        if let Some(v4) = &mut kernels.v4 {
            v4.check::<V4>()?;
        }
        if let Some(v6) = &mut kernels.v6 {
            v6.check::<V6>()?;
        }
        if options.holds_tables {
            for netlink in kernels.v4.iter_mut().chain(&mut kernels.v6) {
                netlink.hold()?;
            }
        }
        if let Some(monitor) = &mut monitor {
            let netlinks = kernels.v4.iter_mut().chain(&mut kernels.v6);
            netlinks.for_each(|netlink| monitor.know(netlink));
        }
        let gone = GoneTable::open(&options.table, namespace)?;
        let fails_fast = options.fails_fast;
        let mut engine = Self::new(kernels, options, now);
        engine.monitor = monitor;
        if fails_fast {
            engine.fail_fast(gone);
        } else {
            gone.discard();
        }
        Ok(engine)
    }
}

impl<K4: Kernel<V4>, K6: Kernel<V6>, T: FlowTable> Engine<K4, K6, T> {
    /// An engine on these kernels, that knows nothing yet. It starts at `now`.
    ///
    /// What `options` says of table, namespace and families is the kernels' business here.
    pub fn new(kernels: Kernels<K4, K6, T>, options: Options, now: Instant) -> Self {
        let Options {
            table: _,
            namespace: _,
            families: _,
            holds_tables: _,
            fails_fast: _,
            node,
            node_patience,
            pace,
            takes_over,
            filter,
            flows,
            trims_heap,
        } = options;
        let tracks_flows = flows != FlowOption::Ignore;
        Self {
            state: filter.map_or_else(State::default, State::with_filter),
            node,
            local_addresses: Vec::new(),
            v4: kernels
                .v4
                .map(|kernel| Half::new(kernel, tracks_flows, takes_over.clone())),
            v6: kernels
                .v6
                .map(|kernel| Half::new(kernel, tracks_flows, takes_over)),
            forgetter: kernels
                .flows
                .filter(|_| flows == FlowOption::Forget)
                .map(Forgetter::new),
            schedule: Schedule::new(pace, now),
            started: now,
            node_by: now + node_patience,
            is_node_known: node_patience == Duration::ZERO,
            services_listed: false,
            slices_listed: false,
            revision: 0,
            synced_revision: 0,
            health: Health::new(pace.sync_period),
            trims_heap,
            generation: None,
            monitor: None,
            fail_fast: None,
        }
    }

    /// Has clients told of endpoints that are gone, by this table. To be called before the first
    /// event.
    pub fn fail_fast(&mut self, table: GoneTable) {
        self.state.track_presence();
        self.fail_fast = Some(FailFast::new(table));
    }

    /// Takes an event. It costs what the object costs to store; nothing is sent.
    pub fn apply(&mut self, event: Event, now: Instant) {
        // What others do to the tables is nothing that could be in the kernel.
        let is_news = !matches!(event, Event::Touched(_) | Event::Watched(_));
        self.revision += u64::from(is_news);
        let is_for_all = self.take(event, now);
        if is_for_all || self.state.is_dirty() {
            self.schedule.changed();
        }
        if self.schedule.is_pending() && self.is_listed() {
            // What the first lists hold does not count before: a slow API server is no fault of
            // the proxy.
            if self.v4.is_some() {
                self.health.changed(IpFamily::V4, now);
            }
            if self.v6.is_some() {
                self.health.changed(IpFamily::V6, now);
            }
        }
        self.note_revision();
    }

    /// What is to be done next, and when; `None` if nothing is, until the next event. Asking costs
    /// nothing.
    pub fn next(&self, now: Instant) -> Option<Due> {
        let flows_at = self.forgetter.as_ref().and_then(Forgetter::next);
        let flows = flows_at.map(|at| (at, Task::ForgetFlows));
        let gone_at = self.fail_fast.as_ref().and_then(FailFast::next);
        let gone = gone_at.map(|at| (at, Task::Tidy));
        let tasks = [self.schedule.next(self.ready_at()), flows, gone];
        // Of two that are due by now the first comes first: no sync waits for flows.
        let due = tasks.into_iter().flatten().map(|(at, task)| Due {
            task,
            at: at.max(now),
        });
        due.min_by_key(|due| due.at)
    }

    /// When the first sync may start.
    fn ready_at(&self) -> Option<Instant> {
        let at = if self.is_node_known {
            self.started
        } else {
            self.node_by
        };
        self.is_listed().then_some(at)
    }

    fn is_listed(&self) -> bool {
        self.services_listed && self.slices_listed
    }

    /// Notes up to where the kernel has everything.
    fn note_revision(&mut self) {
        if self.has_synced() && self.schedule.is_in_step() {
            self.synced_revision = self.revision;
        }
    }

    /// Whether each family has been synced at least once.
    pub fn has_synced(&self) -> bool {
        self.v4.as_ref().is_none_or(|v4| v4.has_synced)
            && self.v6.as_ref().is_none_or(|v6| v6.has_synced)
    }

    /// How many events were applied, but for [`Event::Touched`] and [`Event::Watched`].
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many of the events, from the first on, are in the kernel in both families.
    pub fn synced_revision(&self) -> u64 {
        self.synced_revision
    }

    /// Whether the rules keep up; the handle may go to other threads.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What of the cluster is known.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// This node, as the rules see it.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Takes out what hears of changes by others, to be read by the owner, who says so by
    /// [`Event::Watched`] and hands on what is heard by [`Event::Touched`]. `None` if there is no
    /// such thing to be had, or a task was performed already.
    pub fn take_monitor(&mut self) -> Option<Monitor> {
        self.monitor.take()
    }

    /// Takes out what forgets flows, to be driven elsewhere; from then on
    /// [`Outcome::FlowsLeft`] says what it is to be given.
    pub fn take_forgetter(&mut self) -> Option<Forgetter<T>> {
        self.forgetter.take()
    }
}
