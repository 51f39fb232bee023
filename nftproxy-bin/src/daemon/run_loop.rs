//! The proxy's one loop: events in, syncs out.
//!
//! A lone event is synced at once. After a sync, none follows for the minimum sync period, and
//! what arrives meanwhile is synced together. A failed sync is retried after the sync period, or
//! as soon as something else changes.
//!
//! Others act on what a sync did, in the background: [`Followers`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::Sender;
use std::time::Duration;

use nftproxy_core::apply::netlink::trim_heap;
use nftproxy_core::apply::{ApplyError, Kernel};
use nftproxy_core::model::{self, Family, NodePortAddresses, ServiceName, State, V4, V6};
use nftproxy_core::sync::{Report, Syncer};
use tokio::sync::mpsc::{Receiver, UnboundedSender};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use super::flows::{FlowFamily, Flows};
use super::health::Health;
use super::health_check_node_port;
use super::node::{self, NodeSettings};
use crate::source::{Event, NodeInfo};

/// How long to wait for the Node object, once all else is there.
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// How long after a sync unused pick chains are deleted; see
/// [`Syncer::delete_unused_picks`].
const TIDY_DELAY: Duration = Duration::from_secs(1);

/// When to sync.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// No sync starts earlier than this after the one before has ended.
    pub(crate) min_sync_period: Duration,
    /// A failed sync is retried after this.
    pub(crate) sync_period: Duration,
}

/// Elements in a sync that is worth giving memory back after.
const LARGE: usize = 10_000;

/// What is to be done next, and when.
struct Schedule {
    started: Instant,
    /// Something changed that is not yet synced.
    is_pending: bool,
    not_before: Instant,
    retry_at: Option<Instant>,
    tidy_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Task {
    Sync,
    Tidy,
}

impl Schedule {
    fn starting_at(started: Instant) -> Self {
        Self {
            started,
            is_pending: false,
            not_before: started,
            retry_at: None,
            tidy_at: None,
        }
    }

    /// The next task, given when syncs may start at all.
    fn next(&self, ready_at: Option<Instant>) -> Option<(Instant, Task)> {
        let wanted_at = if self.is_pending {
            Some(self.not_before)
        } else {
            self.retry_at
        };
        match wanted_at {
            Some(at) => Some((at.max(ready_at?), Task::Sync)),
            None => self.tidy_at.map(|at| (at, Task::Tidy)),
        }
    }

    fn synced(&mut self, now: Instant, pace: Pace, is_success: bool) {
        self.is_pending = false;
        self.not_before = now + pace.min_sync_period;
        self.retry_at = (!is_success).then_some(now + pace.sync_period);
        self.tidy_at = is_success.then_some(now + TIDY_DELAY);
    }
}

/// Who is told what has to be synced, and what was.
pub(crate) struct Followers {
    /// Forgets UDP flows.
    pub(crate) flows: Sender<Flows>,
    /// Serves health-check node ports.
    pub(crate) health_check_node_ports: UnboundedSender<health_check_node_port::Update>,
    /// Knows how long changes have waited.
    pub(crate) health: Health,
}

/// The proxy of one node.
pub(crate) struct Proxy<K4, K6> {
    state: State,
    v4: Half<V4, K4>,
    /// `None` on a host without IPv6.
    v6: Option<Half<V6, K6>>,
    settings: NodeSettings,
    /// `None` until it is known.
    node_info: Option<NodeInfo>,
    /// Whether a Node object is expected, which would tell the node's addresses.
    awaits_node: bool,
    interface_ips: fn() -> std::io::Result<Vec<IpAddr>>,
    /// What that said last.
    local_ips: Vec<IpAddr>,
    followers: Followers,
    /// Derived from settings, node and addresses, and kept until one of them changes.
    node: Option<model::Node>,
    services_listed: bool,
    slices_listed: bool,
}

/// One family's side: a failure in one family does not delay the other.
struct Half<F: Family, K> {
    syncer: Syncer<F, K>,
    /// Dirty Services that this family has yet to sync.
    dirty: BTreeSet<ServiceName>,
    failed: bool,
    /// A sync was large, and its memory has not been given back.
    is_heap_untidy: bool,
}

impl<F: FlowFamily, K: Kernel<F>> Half<F, K> {
    fn new(kernel: K) -> Self {
        Self {
            syncer: Syncer::new(kernel),
            dirty: BTreeSet::new(),
            failed: false,
            is_heap_untidy: false,
        }
    }

    /// Syncs, then tells the followers. `local_ips` are the addresses on this host's interfaces.
    fn sync(
        &mut self,
        state: &State,
        node: &model::Node,
        local_ips: &[IpAddr],
        followers: &Followers,
    ) -> Result<(), ApplyError> {
        match self.syncer.sync(state, node, &self.dirty) {
            Ok(report) => {
                let recovered = std::mem::take(&mut self.failed);
                self.is_heap_untidy |= report.full || report.counts.elements() > LARGE;
                log_report(F::FAMILY, &report, recovered);
                followers.health.synced(F::FAMILY);
                self.forget_flows(node, local_ips, followers);
                self.hand_over_health_checks(state, node, followers);
                self.dirty.clear();
                Ok(())
            }
            Err(error) => {
                self.failed = true;
                Err(error)
            }
        }
    }

    /// Has the flows forgotten that the last sync leaves behind.
    fn forget_flows(&mut self, node: &model::Node, local_ips: &[IpAddr], followers: &Followers) {
        let node_port_ips: Vec<_> = match node.node_port_addresses::<F>() {
            NodePortAddresses::Only(ips) => ips.iter().copied().collect(),
            NodePortAddresses::All => local_ips
                .iter()
                .copied()
                .filter(|ip| !ip.is_loopback())
                .collect(),
        };
        let leftovers = self.syncer.take_leftovers(&node_port_ips);
        if !leftovers.is_empty() && followers.flows.send(F::flows(leftovers)).is_err() {
            warn!(family = %F::FAMILY, "stale UDP flows are no longer deleted");
        }
    }

    /// Has the health-check node ports follow the last sync.
    fn hand_over_health_checks(&self, state: &State, node: &model::Node, followers: &Followers) {
        let update = health_check_node_port::Update::new::<F>(state, node, &self.dirty);
        if followers.health_check_node_ports.send(update).is_err() {
            warn!(family = %F::FAMILY, "health-check node ports no longer follow changes");
        }
    }

    fn tidy(&mut self) {
        if std::mem::take(&mut self.is_heap_untidy) {
            trim_heap();
        }
        if let Err(error) = self.syncer.sweep_affinity() {
            debug!(family = %F::FAMILY, %error, "what affinity remembers is looked at later");
        }
        match self.syncer.delete_unused_picks() {
            Ok(0) => {}
            Ok(n) => debug!(family = %F::FAMILY, n, "deleted unused pick chains"),
            Err(error) => debug!(family = %F::FAMILY, %error, "unused pick chains stay for now"),
        }
    }
}

fn log_report(family: model::IpFamily, report: &Report, recovered: bool) {
    let Report {
        full,
        counts,
        committed,
        appeared,
        went,
        is_repair: _,
        timings,
    } = report;
    for note in appeared {
        warn!(%family, "{note}");
    }
    for note in went {
        info!(%family, "no longer: {note}");
    }
    let elapsed = timings.total();
    let is_event = *full || recovered;
    if is_event {
        info!(
            %family, full, added = counts.added_elements, deleted = counts.deleted_elements,
            bytes = committed.bytes, ?elapsed, "synced"
        );
    } else {
        debug!(
            %family, full, added = counts.added_elements, deleted = counts.deleted_elements,
            bytes = committed.bytes, ?elapsed, "synced"
        );
    }
}

impl<K4: Kernel<V4>, K6: Kernel<V6>> Proxy<K4, K6> {
    /// A proxy that knows nothing yet. `node_info` is given where no Node object will come.
    pub(crate) fn new(
        kernel_v4: K4,
        kernel_v6: Option<K6>,
        settings: NodeSettings,
        node_info: Option<NodeInfo>,
        interface_ips: fn() -> std::io::Result<Vec<IpAddr>>,
        followers: Followers,
    ) -> Self {
        Self {
            state: State::default(),
            v4: Half::new(kernel_v4),
            v6: kernel_v6.map(Half::new),
            settings,
            awaits_node: node_info.is_none(),
            node_info,
            interface_ips,
            local_ips: Vec::new(),
            followers,
            node: None,
            services_listed: false,
            slices_listed: false,
        }
    }

    /// Runs until all senders of events are gone, or the kernel refuses in a way that no retry can
    /// mend.
    pub(crate) async fn run(
        mut self,
        mut events: Receiver<Event>,
        pace: Pace,
    ) -> Result<(), ApplyError> {
        let mut schedule = Schedule::starting_at(Instant::now());
        loop {
            let wake = schedule.next(self.ready_at(schedule.started));
            let at = wake.map_or_else(Instant::now, |(at, _)| at);
            tokio::select! {
                biased;
                event = events.recv() => {
                    let Some(event) = event else { return Ok(()) };
                    self.apply(event);
                    while let Ok(event) = events.try_recv() {
                        self.apply(event);
                    }
                    if self.node.is_none() || self.state.is_dirty() {
                        schedule.is_pending = true;
                        self.announce_change();
                    }
                }
                () = sleep_until(at), if wake.is_some() => match wake {
                    Some((_, Task::Sync)) => {
                        let is_success = self.sync()?;
                        schedule.synced(Instant::now(), pace, is_success);
                    }
                    Some((_, Task::Tidy)) => {
                        self.v4.tidy();
                        self.v6.iter_mut().for_each(Half::tidy);
                        schedule.tidy_at = None;
                    }
                    None => {}
                }
            }
        }
    }

    /// When the first sync may start: nothing is written before the first lists are complete, as
    /// half a list would cut Services off that the kernel already serves.
    fn ready_at(&self, started: Instant) -> Option<Instant> {
        let has_ips = self
            .node_info
            .as_ref()
            .is_some_and(|info| !info.ips.is_empty());
        let is_node_known = has_ips || !self.awaits_node;
        let patience = if is_node_known {
            Duration::ZERO
        } else {
            NODE_PATIENCE
        };
        self.is_listed().then_some(started + patience)
    }

    fn is_listed(&self) -> bool {
        self.services_listed && self.slices_listed
    }

    /// Starts the clock of a change that is to be synced. What the first lists hold does not wait
    /// before they are complete: a slow API server is no fault of the proxy.
    fn announce_change(&self) {
        if self.is_listed() {
            self.followers.health.changed(V4::FAMILY);
            if self.v6.is_some() {
                self.followers.health.changed(V6::FAMILY);
            }
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::ServiceApplied(service) => self.state.apply_service(service),
            Event::ServiceDeleted(name) => self.state.delete_service(&name),
            Event::ServicesListed(names) => {
                self.state.retain_services(|name| names.contains(name));
                self.become_ready(|proxy| &mut proxy.services_listed);
            }
            Event::SliceApplied(slice) => self.state.apply_slice(slice),
            Event::SliceDeleted(name) => self.state.delete_slice(&name),
            Event::SlicesListed(names) => {
                self.state.retain_slices(|name| names.contains(name));
                self.become_ready(|proxy| &mut proxy.slices_listed);
            }
            Event::ServiceCidrApplied(name, cidrs) => {
                self.state.apply_service_cidr(&name, cidrs);
                self.node = None;
            }
            Event::ServiceCidrDeleted(name) => {
                self.state.delete_service_cidr(&name);
                self.node = None;
            }
            Event::ServiceCidrsListed(names) => {
                self.state.retain_service_cidrs(|name| names.contains(name));
                self.node = None;
            }
            Event::NodeApplied(info) => {
                if self.node_info.as_ref() != Some(&info) {
                    info!(ips = ?info.ips, zone = info.zone, "this node is known");
                    self.node_info = Some(info);
                    self.node = None;
                }
            }
            // The last that was known of it still holds for the rules.
            Event::NodeDeleted => warn!("the object of this node does not exist"),
            Event::AddressesChanged => self.node = None,
        }
    }

    fn become_ready(&mut self, listed: fn(&mut Self) -> &mut bool) {
        if !std::mem::replace(listed(self), true) {
            // An empty list is complete as well.
            self.node = None;
        }
    }

    /// Syncs both families; whether both succeeded.
    fn sync(&mut self) -> Result<bool, ApplyError> {
        let node = match self.node.take() {
            Some(node) => node,
            None => self.derive_node(),
        };
        let dirty = self.state.take_dirty();
        self.v4.dirty.extend(dirty.iter().cloned());
        let v4 = self
            .v4
            .sync(&self.state, &node, &self.local_ips, &self.followers);
        let v6 = self.v6.as_mut().map_or(Ok(()), |v6| {
            v6.dirty.extend(dirty);
            v6.sync(&self.state, &node, &self.local_ips, &self.followers)
        });
        let results = [v4, v6];
        self.node = Some(node);
        let mut is_success = true;
        for result in results {
            match result {
                Ok(()) => {}
                Err(error) if error.is_retryable() => {
                    is_success = false;
                    error!(error = %format!("{:#}", anyhow::Error::from(error)), "sync failed");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(is_success)
    }

    fn derive_node(&mut self) -> model::Node {
        self.local_ips = (self.interface_ips)().unwrap_or_else(|error| {
            warn!(%error, "the addresses of this host cannot be read; NodePorts stay unreachable");
            Vec::new()
        });
        let unknown = NodeInfo::default();
        let info = self.node_info.as_ref().unwrap_or_else(|| {
            warn!(
                "this node's object did not come in time; going on without its addresses and zone"
            );
            &unknown
        });
        node::node(&self.settings, info, &self.local_ips)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use nftproxy_core::apply::Committed;
    use nftproxy_core::apply::fake::FakeKernel;
    use nftproxy_core::diff::{Delta, Observed};
    use nftproxy_core::model::{ClusterIps, IpFamily, Service};
    use nftproxy_core::ruleset::element::Element;
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    use super::*;
    use crate::config;

    const PACE: Pace = Pace {
        min_sync_period: Duration::from_secs(1),
        sync_period: Duration::from_secs(30),
    };

    /// A fake kernel that the test can look into while the loop has it.
    #[derive(Clone, Default)]
    struct Shared<F: Family> {
        fake: Arc<Mutex<FakeKernel<F>>>,
        is_broken: Arc<AtomicBool>,
    }

    impl<F: Family> Shared<F> {
        fn commits(&self) -> usize {
            self.fake.lock().unwrap().commits.len()
        }

        fn fail_next(&self) {
            self.fake.lock().unwrap().fail_next(nix::libc::ENOMEM);
        }

        /// Makes every commit fail, or none from now on.
        fn set_broken(&self, is_broken: bool) {
            self.is_broken.store(is_broken, Ordering::Relaxed);
        }
    }

    impl<F: Family> Kernel<F> for Shared<F> {
        fn list(&mut self) -> Result<Option<Observed<F>>, ApplyError> {
            self.fake.lock().unwrap().list()
        }

        fn list_affinity(&mut self) -> Result<Vec<Element<F>>, ApplyError> {
            self.fake.lock().unwrap().list_affinity()
        }

        fn commit(&mut self, delta: &Delta<F>) -> Result<Committed, ApplyError> {
            if delta.is_empty() {
                return Ok(Committed::default());
            }
            if self.is_broken.load(Ordering::Relaxed) {
                self.fail_next();
            }
            self.fake.lock().unwrap().commit(delta)
        }
    }

    struct Fixture {
        v4: Shared<V4>,
        v6: Shared<V6>,
        events: mpsc::Sender<Event>,
        health_check_node_ports: mpsc::UnboundedReceiver<health_check_node_port::Update>,
        health: Health,
    }

    /// A loop that runs in the background, and knows the node if it is told so.
    fn start(is_node_known: bool) -> Fixture {
        let settings = NodeSettings {
            bind_address: [0, 0, 0, 0].into(),
            detect_local: config::DetectLocal::NodeCidr,
            node_port_addresses: config::NodePortAddresses::Primary,
            masquerade_bit: 14,
            masquerade_all: false,
        };
        let info = NodeInfo {
            ips: vec![[192, 0, 2, 10].into()],
            ..NodeInfo::default()
        };
        let (v4, v6) = (Shared::default(), Shared::default());
        let (events, receiver) = mpsc::channel(16);
        let info = is_node_known.then_some(info);
        let (flows, _) = std::sync::mpsc::channel();
        let (updates, health_check_node_ports) = mpsc::unbounded_channel();
        let health = Health::new(PACE.sync_period);
        let followers = Followers {
            flows,
            health_check_node_ports: updates,
            health: health.clone(),
        };
        let no_ips = || Ok(Vec::new());
        let kernel_v6 = Some(v6.clone());
        let proxy = Proxy::new(v4.clone(), kernel_v6, settings, info, no_ips, followers);
        tokio::spawn(proxy.run(receiver, PACE));
        Fixture {
            v4,
            v6,
            events,
            health_check_node_ports,
            health,
        }
    }

    impl Fixture {
        async fn send(&self, event: Event) {
            self.events.send(event).await.unwrap();
        }

        async fn complete_lists(&self) {
            self.send(Event::ServicesListed(BTreeSet::new())).await;
            self.send(Event::SlicesListed(BTreeSet::new())).await;
            sleep(Duration::from_millis(1)).await;
        }
    }

    fn service(number: u8) -> Event {
        Event::ServiceApplied(Service {
            cluster_ips: ClusterIps {
                v4: Some(Ipv4Addr::new(10, 96, 0, number)),
                v6: None,
            },
            ports: Box::new([nftproxy_core::model::ServicePort {
                name: "".into(),
                protocol: nftproxy_core::model::Protocol::Tcp,
                port: 80.try_into().unwrap(),
                node_port: None,
            }]),
            ..Service::new(ServiceName::new("test", &format!("service-{number}")))
        })
    }

    /// O-91
    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_before_both_lists_are_complete() {
        let fixture = start(true);
        fixture.send(service(1)).await;
        fixture
            .send(Event::ServicesListed(
                [ServiceName::new("test", "service-1")].into(),
            ))
            .await;
        sleep(Duration::from_secs(3600)).await;
        assert_eq!((fixture.v4.commits(), fixture.v6.commits()), (0, 0));
        fixture.send(Event::SlicesListed(BTreeSet::new())).await;
        sleep(Duration::from_millis(1)).await;
        assert_eq!((fixture.v4.commits(), fixture.v6.commits()), (1, 1));
    }

    /// O-70: an absent Node object delays the first sync, but not for ever.
    #[tokio::test(start_paused = true)]
    async fn an_unknown_node_delays_the_first_sync() {
        let fixture = start(false);
        fixture.complete_lists().await;
        sleep(NODE_PATIENCE - Duration::from_secs(1)).await;
        assert_eq!(fixture.v4.commits(), 0);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(fixture.v4.commits(), 1);
    }

    /// O-99
    #[tokio::test(start_paused = true)]
    async fn a_lone_event_is_synced_at_once_and_a_burst_together() {
        let fixture = start(true);
        fixture.complete_lists().await;
        sleep(Duration::from_secs(10)).await;
        fixture.send(service(1)).await;
        sleep(Duration::from_millis(1)).await;
        assert_eq!(fixture.v4.commits(), 2, "the first was of the empty lists");
        for number in 2..12 {
            fixture.send(service(number)).await;
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(fixture.v4.commits(), 2, "the minimum period is not over");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(fixture.v4.commits(), 3);
        assert_eq!(
            fixture.v6.commits(),
            1,
            "there is nothing for it in that family"
        );
    }

    /// O-101, O-104
    #[tokio::test(start_paused = true)]
    async fn a_failed_sync_is_retried_and_holds_the_other_family_not_up() {
        let fixture = start(true);
        fixture.v4.fail_next();
        fixture.complete_lists().await;
        assert_eq!((fixture.v4.commits(), fixture.v6.commits()), (0, 1));
        sleep(PACE.sync_period - Duration::from_secs(1)).await;
        assert_eq!(fixture.v4.commits(), 0);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(fixture.v4.commits(), 1);
    }

    /// O-101: a change brings the retry forward.
    #[tokio::test(start_paused = true)]
    async fn a_change_brings_the_retry_forward() {
        let fixture = start(true);
        fixture.v4.fail_next();
        fixture.complete_lists().await;
        fixture.send(service(1)).await;
        sleep(PACE.min_sync_period + Duration::from_millis(1)).await;
        assert_eq!(fixture.v4.commits(), 1);
    }

    /// O-103, O-118: changes count against the health once they could be synced, the first too.
    #[tokio::test(start_paused = true)]
    async fn a_family_that_cannot_be_synced_makes_the_proxy_unhealthy() {
        let fixture = start(true);
        fixture.send(service(1)).await;
        sleep(10 * PACE.sync_period).await;
        assert!(fixture.health.is_healthy(), "the lists are not complete");
        fixture.v4.set_broken(true);
        fixture.complete_lists().await;
        sleep(2 * PACE.sync_period - Duration::from_secs(1)).await;
        assert!(fixture.health.is_healthy());
        sleep(Duration::from_secs(1)).await;
        assert!(!fixture.health.is_healthy());
        fixture.v4.set_broken(false);
        sleep(PACE.sync_period).await;
        assert!(fixture.health.is_healthy());
    }

    /// O-120, O-122: what changed before a failed sync is handed over with the one that succeeds.
    #[tokio::test(start_paused = true)]
    async fn health_check_node_ports_follow_successful_syncs_only() {
        let mut fixture = start(true);
        fixture.complete_lists().await;
        sleep(Duration::from_secs(10)).await;
        let handed_over = |fixture: &mut Fixture| {
            let updates = &mut fixture.health_check_node_ports;
            let mut changed = Vec::new();
            while let Ok(update) = updates.try_recv() {
                if update.family == IpFamily::V4 {
                    changed.push(update.changed.len());
                }
            }
            changed
        };
        assert_eq!(handed_over(&mut fixture), [0], "there is no Service yet");

        fixture.v4.set_broken(true);
        for number in [1, 2] {
            fixture.send(service(number)).await;
            sleep(Duration::from_secs(2)).await;
        }
        assert_eq!(handed_over(&mut fixture), [0_usize; 0]);
        fixture.v4.set_broken(false);
        fixture.send(service(3)).await;
        sleep(Duration::from_secs(2)).await;
        assert_eq!(handed_over(&mut fixture), [3]);
        fixture.send(service(4)).await;
        sleep(Duration::from_secs(2)).await;
        assert_eq!(handed_over(&mut fixture), [1]);
    }
}
