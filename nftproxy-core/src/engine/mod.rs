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
mod schedule;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::apply::netlink::conntrack::Conntrack;
use crate::apply::netlink::{GoneTable, Monitor, Netlink};
use crate::apply::{ApplyError, Kernel};
use crate::compile::{Liveness, Note};
use crate::model::{
    EndpointAddress, EndpointSlice, Family, IpFamily, Node, Service, ServiceAddress, ServiceName,
    ServicePortName, State, V4, V6,
};
use crate::ruleset::element::Destination;
use fail_fast::FailFast;
use flows::{FlowFamily, FlowTable, Flows, Forgetter};
use half::{Done, Half};
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

    /// Puts an event into the state; whether something has changed beyond dirty Services.
    fn take(&mut self, event: Event, now: Instant) -> bool {
        match event {
            Event::ServiceApplied(service) => self.state.apply_service(service),
            Event::ServiceDeleted(name) => self.state.delete_service(&name),
            Event::ServicesListed(names) => {
                self.state.retain_services(|name| names.contains(name));
                // An empty list is complete as well.
                return !std::mem::replace(&mut self.services_listed, true);
            }
            Event::SliceApplied(slice) => self.state.apply_slice(slice),
            Event::SliceDeleted(name) => self.state.delete_slice(&name),
            Event::SlicesListed(names) => {
                self.state.retain_slices(|name| names.contains(name));
                return !std::mem::replace(&mut self.slices_listed, true);
            }
            Event::Replaced { services, slices } => return self.replace(services, slices),
            Event::ServiceCidrApplied(name, cidrs) => {
                self.state.apply_service_cidr(&name, cidrs);
                return true;
            }
            Event::ServiceCidrDeleted(name) => {
                self.state.delete_service_cidr(&name);
                return true;
            }
            Event::ServiceCidrsListed(names) => {
                self.state.retain_service_cidrs(|name| names.contains(name));
                return true;
            }
            Event::NodeChanged(node) => {
                let is_news = self.node != node;
                self.node = node;
                return !std::mem::replace(&mut self.is_node_known, true) || is_news;
            }
            Event::NodeGuessed(node) => {
                let is_news = self.node != node;
                self.node = node;
                return is_news;
            }
            Event::LocalAddressesChanged(addresses) => self.local_addresses = addresses,
            Event::FilterChanged(None) => self.state.refilter(),
            Event::FilterChanged(Some(names)) => {
                names
                    .iter()
                    .for_each(|name| self.state.refilter_service(name));
            }
            Event::Distrusted => {
                self.distrust();
                return true;
            }
            Event::Touched(incident) => {
                let family = incident.family;
                let is_ours = match family {
                    IpFamily::V4 => self.v4.as_mut().is_some_and(|v4| v4.touched(incident)),
                    IpFamily::V6 => self.v6.as_mut().is_some_and(|v6| v6.touched(incident)),
                };
                if is_ours {
                    self.health.damaged(family, now);
                    self.schedule.damaged();
                }
            }
            Event::Watched(is_watched) => {
                self.schedule.watched(is_watched, now);
                // What happened until now was not told.
                self.distrust();
                return self.has_synced();
            }
        }
        false
    }

    fn replace(&mut self, services: Vec<Service>, slices: Vec<EndpointSlice>) -> bool {
        let service_names: BTreeSet<_> = services
            .iter()
            .map(|service| service.name.clone())
            .collect();
        let slice_names: BTreeSet<_> = slices.iter().map(|slice| slice.name.clone()).collect();
        services
            .into_iter()
            .for_each(|service| self.state.apply_service(service));
        slices
            .into_iter()
            .for_each(|slice| self.state.apply_slice(slice));
        self.state
            .retain_services(|name| service_names.contains(name));
        self.state.retain_slices(|name| slice_names.contains(name));
        let was_listed = self.is_listed();
        (self.services_listed, self.slices_listed) = (true, true);
        !was_listed
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

    /// Does a task, due or not, and returns what came of it, in order.
    ///
    /// Nothing is done to the tables before both lists are complete.
    pub fn perform(&mut self, task: Task, now: Instant) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        // Nobody takes it any more, and the kernel would go on filling it.
        self.monitor = None;
        if task == Task::ForgetFlows {
            self.forget_flows(now, &mut outcomes);
        } else if self.is_listed() {
            if !self.schedule.is_watched() {
                self.look();
            }
            self.perform_on_tables(task, now, &mut outcomes);
            if !self.schedule.is_watched() {
                self.generation = self.ask_generation();
            }
        }
        outcomes
    }

    fn perform_on_tables(&mut self, task: Task, now: Instant, outcomes: &mut Vec<Outcome>) {
        match task {
            Task::ForgetFlows => {}
            Task::Sync => self.sync(now, outcomes),
            Task::Repair => self.repair(now, outcomes),
            Task::Look => {
                self.schedule.watched(false, now);
                if self.has_synced() && !self.trusts() {
                    self.sync(now, outcomes);
                }
            }
            Task::Compare => {
                self.schedule.compared(now);
                self.distrust();
                self.sync(now, outcomes);
            }
            Task::Tidy => {
                if let Some(v4) = &mut self.v4 {
                    v4.tidy(self.trims_heap, outcomes);
                }
                if let Some(v6) = &mut self.v6 {
                    v6.tidy(self.trims_heap, outcomes);
                }
                if let Some(fail_fast) = &mut self.fail_fast {
                    fail_fast.tidy(now, outcomes);
                }
                self.schedule.tidied();
            }
        }
    }

    /// Both families, whatever becomes of the first.
    fn sync(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        self.begin(now, outcomes);
        let (used, (v4, v6)) = cpu::used_by(|| {
            let (state, node, ips) = (&self.state, &self.node, &self.local_addresses);
            let v4 = self.v4.as_mut().map(|v4| v4.sync(state, node, ips));
            if is_new_table(&v4)
                && let Some(v6) = &mut self.v6
            {
                v6.syncer.distrust();
            }
            let v6 = self.v6.as_mut().map(|v6| v6.sync(state, node, ips));
            (v4, v6)
        });
        let mut ended = Ended::default();
        self.conclude(IpFamily::V4, v4, now, &mut ended, outcomes);
        self.conclude(IpFamily::V6, v6, now, &mut ended, outcomes);
        let is_success = ended.failures.is_empty();
        if let Some(fail_fast) = self.fail_fast.as_mut().filter(|_| is_success) {
            fail_fast.after_sync(now + ended.took, outcomes);
        }
        let is_held = ended.failures.iter().any(is_held_by_another);
        outcomes.extend(ended.failures);
        // The kernel takes nobody else's change meanwhile, whether it is at work or waits.
        let cost = used.max(ended.in_kernel);
        self.schedule.synced(now + ended.took, cost, is_success);
        if is_held {
            self.schedule.retry_soon(now + ended.took);
        }
        if is_success && ended.n_full == ended.n_families {
            self.schedule.compared(now);
        }
        self.note_revision();
    }

    /// What others did, in both families.
    fn repair(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        self.begin(now, outcomes);
        let (used, (v4, v6)) = cpu::used_by(|| {
            let (state, node, ips) = (&self.state, &self.node, &self.local_addresses);
            let v4 = self.v4.as_mut();
            let v4 = v4.and_then(|v4| v4.repair(state, node, ips).transpose());
            if is_new_table(&v4)
                && let Some(v6) = &mut self.v6
            {
                v6.suspect();
            }
            let v6 = self.v6.as_mut();
            let v6 = v6.and_then(|v6| v6.repair(state, node, ips).transpose());
            (v4, v6)
        });
        let mut ended = Ended::default();
        self.conclude(IpFamily::V4, v4, now, &mut ended, outcomes);
        self.conclude(IpFamily::V6, v6, now, &mut ended, outcomes);
        let is_success = ended.failures.is_empty();
        outcomes.extend(ended.failures);
        self.schedule.repaired(now + ended.took, used, is_success);
        if self.is_doubtful() {
            self.schedule.damaged();
        }
        self.note_revision();
    }

    /// Says what came of a sync or a repair of a family, and hands on what it left behind.
    fn conclude(
        &mut self,
        family: IpFamily,
        result: Option<Result<Done, ApplyError>>,
        now: Instant,
        ended: &mut Ended,
        outcomes: &mut Vec<Outcome>,
    ) {
        let mut done = match result {
            None => return,
            Some(Ok(done)) => done,
            Some(Err(error)) => {
                self.health.damaged(family, now);
                ended.failures.push(Outcome::Failed { family, error });
                return;
            }
        };
        let took = done.report.timings.total();
        ended.took += took;
        ended.in_kernel += done.report.timings.kernel;
        ended.n_families += 1;
        ended.n_full += usize::from(done.report.full);
        if family == IpFamily::V6
            && done.report.is_repair
            && done.report.is_new_table
            && let Some(v4) = self.v4.as_mut().filter(|_| ended.n_full < 2)
        {
            v4.suspect();
        }
        let is_doubtful = match family {
            IpFamily::V4 => self.v4.as_ref().is_some_and(Half::is_doubtful),
            IpFamily::V6 => self.v6.as_ref().is_some_and(Half::is_doubtful),
        };
        if !is_doubtful {
            self.health.mended(family);
        }
        match done.cause {
            Some(cause) if done.report.is_repair => outcomes.push(Outcome::Repaired {
                family,
                streak: self.schedule.streak(family, &cause, now),
                cause,
                counts: done.report.counts,
                took,
            }),
            Some(cause @ Cause::Touched(_)) => {
                let streak = self.schedule.streak(family, &cause, now);
                if let Cause::Touched(incident) = cause {
                    outcomes.push(Outcome::Harmless { incident, streak });
                }
            }
            _ => {}
        }
        let appeared = std::mem::take(&mut done.report.appeared);
        let went = std::mem::take(&mut done.report.went);
        if let Some(synced) = done.synced {
            self.health.synced(family);
            outcomes.push(Outcome::Synced {
                family,
                report: done.report,
                changed: synced.changed,
                is_recovery: synced.is_recovery,
            });
        }
        let appeared = appeared.into_iter();
        outcomes.extend(appeared.map(|note| Outcome::NoteAppeared { family, note }));
        let went = went.into_iter();
        outcomes.extend(went.map(|note| Outcome::NoteWent { family, note }));
        if let Some(flows) = done.flows {
            self.hand_over(flows, now, outcomes);
        }
        if self.is_doubtful() {
            self.schedule.damaged();
        }
    }

    /// What comes before the tables are changed: endpoints that are back are taken out of those that
    /// are gone, as a repair may lead clients there as well, and both families get the names of dirty
    /// Services.
    fn begin(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        if let Some(fail_fast) = &mut self.fail_fast {
            fail_fast.before_sync(&mut self.state, now, outcomes);
        }
        let dirty = self.state.take_dirty();
        // Most instances have both, and need the names twice.
        if let Some(v4) = &mut self.v4 {
            v4.dirty.extend(dirty.iter().cloned());
        }
        if let Some(v6) = &mut self.v6 {
            v6.dirty.extend(dirty);
        }
    }

    /// Makes the next sync compare the tables as a whole.
    fn distrust(&mut self) {
        if let Some(v4) = &mut self.v4 {
            v4.syncer.distrust();
        }
        if let Some(v6) = &mut self.v6 {
            v6.syncer.distrust();
        }
    }

    fn is_doubtful(&self) -> bool {
        self.v4.as_ref().is_some_and(Half::is_doubtful)
            || self.v6.as_ref().is_some_and(Half::is_doubtful)
    }

    /// Asks whether anybody has committed anything since the last time we did; if so, the tables
    /// are to be compared as a whole.
    fn look(&mut self) {
        let generation = self.ask_generation();
        if self.has_synced() && (generation.is_none() || generation != self.generation) {
            self.distrust();
        }
    }

    /// Whether the tables are taken to be as they were left.
    fn trusts(&self) -> bool {
        self.v4.as_ref().is_none_or(|v4| v4.syncer.trusts())
            && self.v6.as_ref().is_none_or(|v6| v6.syncer.trusts())
    }

    fn ask_generation(&mut self) -> Option<u32> {
        let v4 = self.v4.as_mut().map(|v4| v4.syncer.generation());
        let v6 = || self.v6.as_mut().map(|v6| v6.syncer.generation());
        // It is the same for all families. A failure means that it is not known.
        v4.or_else(v6)?.ok()?
    }

    fn hand_over(&mut self, flows: Flows, now: Instant, outcomes: &mut Vec<Outcome>) {
        match &mut self.forgetter {
            Some(forgetter) => forgetter.add(flows, now),
            None => outcomes.push(Outcome::FlowsLeft(flows)),
        }
    }

    fn forget_flows(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        let Some(forgetter) = &mut self.forgetter else {
            return;
        };
        match forgetter.perform(now) {
            Ok(0) => {}
            Ok(count) => outcomes.push(Outcome::FlowsForgotten { count }),
            Err(error) => outcomes.push(Outcome::FlowsFailed { error }),
        }
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

    /// What is left out of the Services now, in order of family and Service.
    pub fn notes(&self) -> impl Iterator<Item = (IpFamily, &Note)> {
        let v4 = self.v4.iter().flat_map(|v4| v4.syncer.notes());
        let v6 = self.v6.iter().flat_map(|v6| v6.syncer.notes());
        v4.map(|note| (IpFamily::V4, note))
            .chain(v6.map(|note| (IpFamily::V6, note)))
    }

    /// What these Services want of health-check node ports in a family: those of an
    /// [`Outcome::Synced`], say.
    pub fn health_checks(&self, family: IpFamily, changed: &BTreeSet<ServiceName>) -> HealthChecks {
        match family {
            IpFamily::V4 => HealthChecks::new::<V4>(&self.state, &self.node, changed),
            IpFamily::V6 => HealthChecks::new::<V6>(&self.state, &self.node, changed),
        }
    }

    /// Whose an address and port is; `None` if it is no Service's.
    ///
    /// An address with a port that no Service has there may be a NodePort of the node: ask without
    /// the address then.
    pub fn owner(&self, destination: ServiceAddress) -> Option<ServicePortName> {
        match destination.ip {
            None => owner(&self.v4, &self.state, destination)
                .or_else(|| owner(&self.v6, &self.state, destination)),
            Some(IpAddr::V4(_)) => owner(&self.v4, &self.state, destination),
            Some(IpAddr::V6(_)) => owner(&self.v6, &self.state, destination),
        }
    }

    /// What an endpoint is to a destination; `None` if the destination is no Service's. As of the
    /// last sync, but for what terminates.
    pub fn liveness(&self, destination: ServiceAddress, endpoint: SocketAddr) -> Option<Liveness> {
        match endpoint {
            SocketAddr::V4(_) => liveness(&self.v4, &self.state, destination, endpoint),
            SocketAddr::V6(_) => liveness(&self.v6, &self.state, destination, endpoint),
        }
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

/// What a sync or a repair of both families came to.
#[derive(Default)]
struct Ended {
    failures: Vec<Outcome>,
    took: Duration,
    /// The part of it in which the kernel had the batches.
    in_kernel: Duration,
    n_families: usize,
    /// How many of these were compared as a whole.
    n_full: usize,
}

/// Whether it is only that another process has not ended yet.
fn is_held_by_another(outcome: &Outcome) -> bool {
    let Outcome::Failed { error, .. } = outcome else {
        return false;
    };
    matches!(error, ApplyError::Held { .. })
}

/// Whether a table was gone, and is there again.
fn is_new_table(result: &Option<Result<Done, ApplyError>>) -> bool {
    match result {
        Some(Ok(done)) => done.report.is_repair && done.report.is_new_table,
        _ => false,
    }
}

fn destination<F: Family>(address: ServiceAddress) -> Option<Destination<F>> {
    let ServiceAddress { ip, protocol, port } = address;
    Some(Destination {
        address: match ip {
            Some(ip) => Some(F::address(ip)?),
            None => None,
        },
        protocol,
        port,
    })
}

fn owner<F: FlowFamily, K: Kernel<F>>(
    half: &Option<Half<F, K>>,
    state: &State,
    address: ServiceAddress,
) -> Option<ServicePortName> {
    let compilation = half.as_ref()?.syncer.compilation();
    compilation.owner(state, &destination(address)?)
}

fn liveness<F: FlowFamily, K: Kernel<F>>(
    half: &Option<Half<F, K>>,
    state: &State,
    address: ServiceAddress,
    endpoint: SocketAddr,
) -> Option<Liveness> {
    let compilation = half.as_ref()?.syncer.compilation();
    let destination = destination(address)?;
    let (Some(address), Ok(port)) = (F::address(endpoint.ip()), endpoint.port().try_into()) else {
        return Some(Liveness::Gone);
    };
    compilation.liveness(state, &destination, EndpointAddress { address, port })
}
