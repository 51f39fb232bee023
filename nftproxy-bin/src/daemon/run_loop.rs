//! The glue around the engine: events in, outcomes to the log and to whoever follows.
//!
//! What is due and when, what is retried, and what a sync leaves behind is the engine's business.
//! Entry point: [`Proxy::run`].

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use nftproxy_core::apply::{ApplyError, Kernel};
use nftproxy_core::engine::flows::{FlowTable, Flows};
use nftproxy_core::engine::{self, Engine, HealthChecks, Outcome, Task};
use nftproxy_core::model::{V4, V6};
use tokio::sync::mpsc::{Receiver, UnboundedSender};
use tokio::time::sleep_until;
use tracing::{info, warn};

use super::loopback;
use super::node::{ThisNode, UnfitNode};
use super::notify::{READY, notify};
use super::report;
use super::standing::Standing;
use super::tally::Tally;
use crate::leftovers;
use crate::source::Event;
use crate::source::api::Recorder;

/// Who is told what has to be synced, and what was.
pub(crate) struct Followers {
    /// Forgets UDP flows.
    pub(crate) flows: Sender<Flows>,
    /// Serves health-check node ports.
    pub(crate) health_check_node_ports: UnboundedSender<HealthChecks>,
    /// Serves NodePorts on loopback, if it is asked for.
    pub(crate) loopback: Option<UnboundedSender<loopback::Changes>>,
    /// Tells those who look at Services of what is left out.
    pub(crate) recorder: Recorder,
    /// Whether what kube-proxy left in its other modes is removed, once our rules are there.
    pub(crate) removes_leftovers: bool,
}

/// Why the loop has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error(transparent)]
    Unfit(#[from] UnfitNode),
    #[error("syncing the rules")]
    Apply(#[from] ApplyError),
}

/// The proxy of one node.
pub(crate) struct Proxy<K4, K6, T> {
    engine: Engine<K4, K6, T>,
    this_node: ThisNode,
    followers: Followers,
    standing: Arc<Standing>,
    tally: Tally,
    /// After how long a failed sync is tried again, if nothing changes before.
    sync_period: Duration,
    /// Whether the proxy has turned out to be of use on this node.
    is_judged: bool,
    /// Whether all families have been in step.
    is_ready: bool,
}

impl<K4: Kernel<V4>, K6: Kernel<V6>, T: FlowTable> Proxy<K4, K6, T> {
    pub(crate) fn new(
        engine: Engine<K4, K6, T>,
        this_node: ThisNode,
        followers: Followers,
        standing: Arc<Standing>,
        tally: Tally,
        sync_period: Duration,
    ) -> Self {
        Self {
            engine,
            this_node,
            followers,
            standing,
            tally,
            sync_period,
            is_judged: false,
            is_ready: false,
        }
    }

    /// Runs until all senders of events are gone, the node turns out to be none for this proxy, or
    /// the kernel refuses in a way that no retry can mend.
    pub(crate) async fn run(mut self, mut events: Receiver<Event>) -> Result<(), Ended> {
        self.apply(self.this_node.addresses_event());
        loop {
            let due = self.engine.next(now());
            let at = due.map_or_else(now, |due| due.at);
            tokio::select! {
                biased;
                event = events.recv() => {
                    let Some(event) = event else { return Ok(()) };
                    self.take(event);
                    while let Ok(event) = events.try_recv() {
                        self.take(event);
                    }
                    let due = self.engine.next(now());
                    if due.is_some_and(|due| due.task == Task::Sync) {
                        self.tally.queued();
                    }
                }
                () = sleep_until(at.into()), if due.is_some() => {
                    if let Some(due) = due {
                        self.perform(due.task)?;
                    }
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Cluster(event) => self.apply(event),
            Event::SliceApplied {
                mut slice,
                triggered,
            } => {
                if let Some(at) = triggered {
                    self.tally.triggered(at, &mut slice, self.engine.state());
                }
                self.apply(engine::Event::SliceApplied(slice));
            }
            Event::NodeApplied { info, is_eligible } => {
                self.standing.set_node_eligible(is_eligible);
                if self.this_node.learn(info) {
                    self.apply(self.this_node.event());
                }
            }
            // The last that was known of it still holds for the rules.
            Event::NodeDeleted => warn!("Node is being deleted, or does not exist"),
            Event::AddressesChanged => {
                self.this_node.read_addresses();
                self.apply(self.this_node.addresses_event());
                self.apply(self.this_node.event());
            }
        }
    }

    fn apply(&mut self, event: engine::Event) {
        self.tally.event(&event);
        self.engine.apply(event, now());
    }

    fn perform(&mut self, task: Task) -> Result<(), Ended> {
        if task == Task::Sync && !self.is_judged {
            self.this_node.judge()?;
            self.is_judged = true;
        }
        let started = std::time::Instant::now();
        let outcomes = self.engine.perform(task, now());
        let took = started.elapsed();
        self.tally.performed(&outcomes, took, self.engine.state());
        for outcome in outcomes {
            report::log(&outcome);
            report::record(&outcome, &self.followers.recorder);
            match outcome {
                Outcome::Synced {
                    family, changed, ..
                } => {
                    self.standing.synced(family);
                    if let Some(loopback) = &self.followers.loopback {
                        let changes = loopback::changes(self.engine.state(), family, &changed);
                        if loopback.send(changes).is_err() {
                            warn!(%family, "NodePorts on loopback no longer follow changes");
                        }
                    }
                    let checks = self.engine.health_checks(family, &changed);
                    if self.followers.health_check_node_ports.send(checks).is_err() {
                        warn!(%family, "health-check node ports no longer follow changes");
                    }
                }
                Outcome::FlowsLeft(flows) => self.hand_over(flows),
                Outcome::Failed { error, .. } if !error.is_retryable() => return Err(error.into()),
                Outcome::Failed { family, .. } => {
                    let due = self.engine.next(now());
                    let retry = due.map_or(self.sync_period, |due| due.at.duration_since(now()));
                    info!(ipFamily = %family, retryingTime = ?rounded(retry), "Sync failed");
                }
                _ => {}
            }
        }
        self.finish_start();
        Ok(())
    }

    /// What is done once, when all families are in step.
    fn finish_start(&mut self) {
        if !self.is_ready && self.engine.has_synced() {
            self.is_ready = true;
            if self.followers.removes_leftovers {
                leftovers::remove_other_modes_in_background();
            }
            notify(READY);
        }
    }

    fn hand_over(&self, flows: Flows) {
        if self.followers.flows.send(flows).is_err() {
            warn!("stale flows are no longer deleted");
        }
    }
}

/// To tenths of a second, for people.
fn rounded(duration: Duration) -> Duration {
    Duration::from_millis((duration.as_millis() as u64 + 50) / 100 * 100)
}

/// Tokio's clock, which tests can turn.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;
    use std::sync::{Arc, Mutex};

    use clap::{Args, Command, FromArgMatches};
    use nftproxy_core::apply::Committed;
    use nftproxy_core::apply::fake::FakeKernel;
    use nftproxy_core::apply::netlink::conntrack::Conntrack;
    use nftproxy_core::diff::{Delta, Observed};
    use nftproxy_core::engine::{FlowOption, Kernels, Options};
    use nftproxy_core::model::{
        Endpoint, EndpointSlice, Family, IpFamily, NodeInfo, Protocol, Service, ServiceName,
        SliceName, SlicePort,
    };
    use nftproxy_core::ruleset::element::Element;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;
    use tokio::time::sleep;

    use super::super::node::{NODE_PATIENCE, NodeSettings};
    use super::*;
    use crate::check::Families;
    use crate::config::{ConfigFlags, Settings};
    use crate::metrics::Metrics;

    /// A fake kernel that the test can look into while the loop has it.
    #[derive(Clone, Default)]
    struct Shared<F: Family> {
        fake: Arc<Mutex<FakeKernel<F>>>,
        is_forbidden: Arc<Mutex<bool>>,
    }

    impl<F: Family> Shared<F> {
        fn commits(&self) -> usize {
            self.fake.lock().unwrap().commits.len()
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
            if *self.is_forbidden.lock().unwrap() {
                return Err(ApplyError::NotPermitted);
            }
            if delta.is_empty() {
                return Ok(Committed::default());
            }
            self.fake.lock().unwrap().commit(delta)
        }

        fn generation(&mut self) -> Result<Option<u32>, ApplyError> {
            self.fake.lock().unwrap().generation()
        }
    }

    struct Fixture {
        v4: Shared<V4>,
        events: mpsc::Sender<Event>,
        checks: mpsc::UnboundedReceiver<HealthChecks>,
        metrics: Metrics,
        stopped: JoinHandle<Result<(), Ended>>,
    }

    const NODE_IP: [u8; 4] = [192, 0, 2, 10];
    /// The host has it as well.
    const OTHER_IP: [u8; 4] = [192, 0, 2, 11];

    /// A loop that runs in the background, on a node of which nothing is known yet.
    fn start() -> Fixture {
        start_with(&["--detect-local-mode=NodeCIDR"], &[IpFamily::V4])
    }

    /// The same with these flags, on a host that has rules for these families.
    fn start_with(arguments: &[&str], supported: &[IpFamily]) -> Fixture {
        let command = ConfigFlags::augment_args(Command::new("a")).no_binary_name(true);
        let matches = command.try_get_matches_from(arguments).unwrap();
        let flags = ConfigFlags::from_arg_matches(&matches).unwrap();
        let settings = Settings::load(&flags).unwrap();
        let this_node = ThisNode::new(
            "a".to_owned(),
            NodeSettings::new(&settings),
            Families::new(&settings, supported),
            None,
            || Ok(vec![NODE_IP.into(), OTHER_IP.into()]),
        );
        let v4 = Shared::<V4>::default();
        let kernels = Kernels {
            v4: Some(v4.clone()),
            v6: None::<Shared<V6>>,
            flows: None::<Conntrack>,
        };
        let options = Options {
            node: this_node.node(),
            node_patience: this_node.patience(),
            flows: FlowOption::HandOver,
            ..Options::default()
        };
        let (events, receiver) = mpsc::channel(16);
        let (updates, checks) = mpsc::unbounded_channel();
        let followers = Followers {
            flows: std::sync::mpsc::channel().0,
            health_check_node_ports: updates,
            loopback: None,
            recorder: Recorder::default(),
            removes_leftovers: false,
        };
        let engine = Engine::new(kernels, options, now());
        let metrics = Metrics::new(&[IpFamily::V4], &[]);
        let standing = Standing::new(engine.health().clone(), &[IpFamily::V4], true);
        let tally = Tally::new(metrics.clone(), &[IpFamily::V4]);
        let standing = Arc::new(standing);
        let period = Duration::from_secs(30);
        let proxy = Proxy::new(engine, this_node, followers, standing, tally, period);
        Fixture {
            v4,
            events,
            checks,
            metrics,
            stopped: tokio::spawn(proxy.run(receiver)),
        }
    }

    impl Fixture {
        async fn send(&self, event: impl Into<Event>) {
            self.events.send(event.into()).await.unwrap();
        }

        async fn complete_lists(&self) {
            self.send(engine::Event::ServicesListed(BTreeSet::new()))
                .await;
            self.send(engine::Event::SlicesListed(BTreeSet::new()))
                .await;
            sleep(Duration::from_millis(1)).await;
        }

        fn script(&self) -> String {
            let ruleset = self.v4.fake.lock().unwrap().ruleset().unwrap();
            nftproxy_core::render::ruleset(&ruleset)
        }
    }

    fn info(ips: &[[u8; 4]], zone: &str) -> Event {
        Event::NodeApplied {
            info: NodeInfo {
                zone: Some(zone.to_owned()),
                ips: ips.iter().copied().map(IpAddr::from).collect(),
                pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            },
            is_eligible: true,
        }
    }

    /// O-70: an absent Node object delays the first sync, but not for ever.
    #[tokio::test(start_paused = true)]
    async fn an_unknown_node_delays_the_first_sync() {
        let fixture = start_with(&[], &[IpFamily::V4]);
        fixture.complete_lists().await;
        sleep(NODE_PATIENCE - Duration::from_secs(1)).await;
        assert_eq!(fixture.v4.commits(), 0);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(fixture.v4.commits(), 1);
    }

    /// O-70: one without addresses may still get some; what it says counts all the same.
    #[tokio::test(start_paused = true)]
    async fn a_node_without_addresses_is_waited_for() {
        let fixture = start();
        fixture.complete_lists().await;
        fixture.send(info(&[], "a")).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(fixture.v4.commits(), 0);
        fixture.send(info(&[NODE_IP], "a")).await;
        sleep(Duration::from_millis(1)).await;
        assert_eq!(fixture.v4.commits(), 1);
        let script = fixture.script();
        assert!(script.contains("node-port-ips { 192.0.2.10 }"), "{script}");

        let fixture = start_with(&["--cluster-cidr=10.244.0.0/16"], &[IpFamily::V4]);
        fixture.complete_lists().await;
        fixture.send(info(&[], "a")).await;
        sleep(NODE_PATIENCE).await;
        assert!(fixture.script().contains("ip saddr != 10.244.0.0/16"));
    }

    /// O-70, O-76: where the node's networks are to tell pods and do not come, or where its family is
    /// none that there are rules for, the loop ends, and what the kernel has stays as it was.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_cannot_be_served_ends_the_loop() {
        let fixture = start();
        fixture.complete_lists().await;
        sleep(NODE_PATIENCE + Duration::from_secs(299)).await;
        assert!(!fixture.stopped.is_finished());
        sleep(Duration::from_secs(2)).await;
        assert_eq!(fixture.v4.commits(), 0);
        let ended = fixture.stopped.await.unwrap().unwrap_err();
        assert_eq!(ended.to_string(), "timeout waiting for node \"a\" to exist");

        let fixture = start_with(&["--cluster-cidr=fd00::/8"], &[IpFamily::V4]);
        fixture.complete_lists().await;
        fixture.send(info(&[NODE_IP], "a")).await;
        sleep(Duration::from_millis(1)).await;
        assert_eq!(fixture.v4.commits(), 0);
        let ended = fixture.stopped.await.unwrap().unwrap_err();
        assert_eq!(
            ended.to_string(),
            "kube-proxy configuration is incorrect: cluster is IPv4-only but clusterCIDRs contains \
             only IPv6 addresses"
        );
    }

    /// O-92 to O-96: ranges, addresses and pod CIDRs are followed; what is the same again, and a taint,
    /// are no work; and the end of the object leaves what is known.
    #[tokio::test(start_paused = true)]
    async fn the_node_is_followed() {
        let fixture = start();
        fixture.complete_lists().await;
        let commits = async |event: Event| {
            // What has time, such as the digest of the change before, is done by then.
            sleep(Duration::from_secs(5)).await;
            let before = fixture.v4.commits();
            fixture.send(event).await;
            sleep(Duration::from_millis(500)).await;
            (fixture.v4.commits() - before, fixture.script())
        };
        let (n, script) = commits(info(&[NODE_IP], "a")).await;
        assert_eq!(n, 1);
        assert!(script.contains("node-port-ips { 192.0.2.10 }"), "{script}");
        assert_eq!(commits(info(&[NODE_IP], "a")).await.0, 0);
        let mut with_taint = info(&[NODE_IP], "a");
        if let Event::NodeApplied { is_eligible, .. } = &mut with_taint {
            *is_eligible = false;
        }
        assert_eq!(commits(with_taint).await.0, 0);

        let (n, script) = commits(info(&[OTHER_IP], "a")).await;
        assert_eq!(n, 1);
        assert!(script.contains("node-port-ips { 192.0.2.11 }"), "{script}");

        let mut with_other_pods = info(&[OTHER_IP], "a");
        if let Event::NodeApplied { info: node, .. } = &mut with_other_pods {
            node.pod_cidrs = vec!["10.244.2.0/24".parse().unwrap()];
        }
        let (n, script) = commits(with_other_pods).await;
        assert_eq!(n, 1);
        assert!(script.contains("ip saddr != 10.244.2.0/24"), "{script}");

        let cidrs = vec!["10.96.0.0/16".parse().unwrap()];
        let range = engine::Event::ServiceCidrApplied("kubernetes".into(), cidrs);
        let (n, script) = commits(range.into()).await;
        assert_eq!(n, 1);
        assert!(script.contains("10.96.0.0/16"), "{script}");

        let (n, after) = commits(Event::NodeDeleted).await;
        assert_eq!((n, after), (0, script));
    }

    /// O-120
    #[tokio::test(start_paused = true)]
    async fn health_check_node_ports_are_told_of_each_sync() {
        let mut fixture = start();
        fixture.send(info(&[NODE_IP], "a")).await;
        fixture.complete_lists().await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(fixture.checks.try_recv().unwrap().changed, []);
        let name = ServiceName::new("test", "web").unwrap();
        fixture
            .send(engine::Event::ServiceApplied(Service::new(name.clone())))
            .await;
        sleep(Duration::from_secs(5)).await;
        let checks = fixture.checks.try_recv().unwrap();
        assert_eq!(checks.family, IpFamily::V4);
        assert_eq!(checks.changed, [(name, None)]);
        assert!(fixture.checks.try_recv().is_err());
    }

    /// Where log lines go in a test.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// O-101, O-167, O-168: a failure is told of in kube-proxy's words, and tried again.
    #[tokio::test(start_paused = true)]
    async fn a_failed_sync_is_told_of_and_tried_again() {
        const ENOMEM: i32 = 12;
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let fixture = start();
        fixture.v4.fake.lock().unwrap().fail_next(ENOMEM);
        fixture.send(info(&[NODE_IP], "a")).await;
        fixture.complete_lists().await;
        sleep(Duration::from_secs(1)).await;
        let text = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        for words in [
            "nftables sync failed",
            "Sync failed ipFamily=IPv4 retryingTime=30s",
        ] {
            assert!(text().contains(words), "{words}: {}", text());
        }
        assert_eq!(fixture.v4.commits(), 0);
        sleep(Duration::from_secs(30)).await;
        assert_eq!(fixture.v4.commits(), 1);
    }

    /// What no retry can mend ends the process, rather than leaving it up and useless.
    #[tokio::test(start_paused = true)]
    async fn a_lasting_refusal_ends_the_loop() {
        let fixture = start();
        *fixture.v4.is_forbidden.lock().unwrap() = true;
        fixture.send(info(&[NODE_IP], "a")).await;
        fixture.complete_lists().await;
        let ended = fixture.stopped.await.unwrap();
        let is_refused = matches!(ended, Err(Ended::Apply(ApplyError::NotPermitted)));
        assert!(is_refused, "{ended:?}");
    }

    impl Fixture {
        /// The values of the series whose names start like this.
        fn series(&self, prefix: &str) -> Vec<String> {
            let text = String::from_utf8(self.metrics.expose("").bytes).unwrap();
            let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
            lines.map(str::to_owned).collect()
        }

        async fn slice(&self, name: &str, port: u16, age: Option<i64>) {
            let service = ServiceName::new("test", "web").unwrap();
            let endpoints = vec![Endpoint::<V4>::ready([192, 0, 2, 20].into())];
            let ports = [SlicePort::new(Protocol::Tcp, port.try_into().unwrap())];
            let mut slice = EndpointSlice::of(&service, ports, endpoints.into_iter().collect());
            slice.name = SliceName::new("test", name).unwrap();
            let triggered =
                age.map(|age| crate::wall_clock::now() - jiff::SignedDuration::from_secs(age));
            self.send(Event::SliceApplied { slice, triggered }).await;
        }
    }

    /// O-129: what was triggered since the start is measured once it is in the kernel, once for each
    /// change; what nobody noted, what is older, and what changes nothing is not.
    #[tokio::test(start_paused = true)]
    async fn network_programming_is_measured() {
        let fixture = start();
        fixture.send(info(&[NODE_IP], "a")).await;
        fixture.complete_lists().await;
        let count = "kubeproxy_network_programming_duration_seconds_count";
        fixture.slice("a", 80, None).await;
        fixture.slice("b", 80, Some(3600)).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(fixture.series(count), [""; 0]);
        // It happens after the start, by a clock that is a little ahead.
        fixture.slice("c", 80, Some(-1)).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(fixture.series(count), ["{ip_family=\"IPv4\"} 1"]);
        fixture.slice("c", 80, Some(-1)).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(fixture.series(count), ["{ip_family=\"IPv4\"} 1"]);
        fixture.slice("c", 81, Some(-1)).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(fixture.series(count), ["{ip_family=\"IPv4\"} 2"]);
    }

    /// O-124 to O-128, O-130 to O-133, O-137; O-102: the first sync is full, and others are partial.
    #[tokio::test(start_paused = true)]
    async fn syncs_and_changes_are_counted() {
        let fixture = start();
        let value = |name: &str| fixture.series(&format!("kubeproxy_sync_{name}"));
        let v4 = |value: &str| format!("{{ip_family=\"IPv4\"}} {value}");
        // The start of the loop counts as a request.
        assert_eq!(value("proxy_rules_last_queued_timestamp_seconds").len(), 1);
        assert_eq!(value("proxy_rules_last_timestamp_seconds"), [""; 0]);
        let name = ServiceName::new("test", "web").unwrap();
        let service = engine::Event::ServiceApplied(Service::new(name));
        fixture.send(service.clone()).await;
        fixture.send(service).await;
        fixture.slice("a", 80, None).await;
        sleep(Duration::from_millis(1)).await;
        assert_eq!(value("proxy_rules_service_changes_total"), [" 2"]);
        assert_eq!(value("proxy_rules_service_changes_pending"), [" 1"]);
        assert_eq!(value("proxy_rules_endpoint_changes_pending"), [" 1"]);
        fixture.send(info(&[NODE_IP], "a")).await;
        fixture.complete_lists().await;
        assert_eq!(value("proxy_rules_service_changes_pending"), [" 0"]);
        assert_eq!(value("proxy_rules_endpoint_changes_pending"), [" 0"]);
        assert_eq!(value("proxy_rules_endpoint_changes_total"), [" 1"]);
        assert_eq!(value("full_proxy_rules_duration_seconds_count"), [v4("1")]);
        assert_eq!(value("partial_proxy_rules_duration_seconds_count"), [""; 0]);
        assert_eq!(value("proxy_rules_last_timestamp_seconds").len(), 1);
        sleep(Duration::from_secs(5)).await;
        fixture.slice("b", 80, None).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(
            value("partial_proxy_rules_duration_seconds_count"),
            [v4("1")]
        );
        assert_eq!(value("proxy_rules_duration_seconds_count"), [v4("2")]);
        let failures = "proxy_rules_nftables_sync_failures_total";
        assert_eq!(value(failures), [v4("0")]);
        *fixture.v4.is_forbidden.lock().unwrap() = true;
        fixture.slice("c", 81, None).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(value(failures), [v4("1")]);
        assert_eq!(value("proxy_rules_duration_seconds_count"), [v4("3")]);
    }
}
