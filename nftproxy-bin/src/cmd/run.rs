//! `nftproxy run`: keeps this node's rules in step, from an API server or from files.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nftproxy_core::apply::Kernel;
use nftproxy_core::apply::netlink::conntrack::Conntrack;
use nftproxy_core::apply::netlink::{GoneTable, Monitor, Netlink, share_heap};
use nftproxy_core::driver::{forget_in_background, watch_in_background};
use nftproxy_core::engine::flows::{FlowTable, Flows, Forgetter};
use nftproxy_core::engine::{Engine, FlowOption, Kernels, Options, Pace};
use nftproxy_core::host;
use nftproxy_core::model::{IpFamily, V4, V6};
use nftproxy_core::ruleset::Table;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::args::RunArgs;
use crate::check::{self, Finding, Level};
use crate::config::Settings;
use crate::daemon::config_watch::{self, ConfigWatch};
use crate::daemon::flows::Measured;
use crate::daemon::http::health::Health;
use crate::daemon::http::metrics::Pages;
use crate::daemon::http::{self, Failed, Server};
use crate::daemon::logging::Levels;
use crate::daemon::node::{NodeSettings, ThisNode};
use crate::daemon::notify::{STOPPING, notify};
use crate::daemon::run_loop::{Followers, Proxy};
use crate::daemon::shadow::{self, Shadow};
use crate::daemon::standing::Standing;
use crate::daemon::tally::Tally;
use crate::daemon::{health_check_node_port, loopback, report};
use crate::error::chain;
use crate::host_settings;
use crate::leftovers::KUBE_PROXY_TABLE;
use crate::metrics::exposition::Slis;
use crate::metrics::{Metrics, counts};
use crate::source::api::{Occurrence, Recorder, Regarding};
use crate::source::files::{Converter, follow};
use crate::source::manifests::{self, Source};
use crate::source::{Event, addresses, api};

/// Events that may wait for a sync to finish; whoever has more waits with them.
pub(crate) const EVENT_QUEUE: usize = 1024;

/// Runs until told to stop. The rules stay in the kernel.
pub(crate) fn run(args: &RunArgs, settings: &Settings, levels: &Arc<Levels>) -> anyhow::Result<()> {
    share_heap();
    raise_file_limit();
    if args.dry_run.dry_run {
        return run_dry(args, settings, levels);
    }
    let (kernels, monitor) = open_kernels(args, settings)?;
    let host = || {
        host_settings::set_conntrack(&settings.conntrack, false)?;
        host_settings::set_oom_score_adj(settings.oom_score_adj);
        Ok(())
    };
    run_on(kernels, monitor, host, args, settings, levels)
}

/// Runs beside a kube-proxy, with rules in memory only.
fn run_dry(args: &RunArgs, settings: &Settings, levels: &Arc<Levels>) -> anyhow::Result<()> {
    let families = check_kernel(settings, true)?;
    info!("dry run: nothing on this host is changed, and no rule is programmed");
    let has = |family| families.contains(&family).then_some(());
    let kernels = Kernels {
        v4: has(IpFamily::V4).map(|()| Shadow::<V4>::default()),
        v6: has(IpFamily::V6).map(|()| Shadow::<V6>::default()),
        flows: None,
    };
    let comparison = "starting a thread that compares";
    if let Some(v4) = kernels.v4.clone() {
        shadow::compare_in_background(v4).context(comparison)?;
    }
    if let Some(v6) = kernels.v6.clone() {
        shadow::compare_in_background(v6).context(comparison)?;
    }
    let settings = Settings {
        healthz_bind_address: args.dry_run.dry_run_healthz,
        metrics_bind_address: args.dry_run.dry_run_metrics,
        ..settings.clone()
    };
    run_on(kernels, None, || Ok(()), args, &settings, levels)
}

/// Runs on these kernels, after `set_up_host`.
fn run_on<K4, K6>(
    kernels: Kernels<K4, K6, Conntrack>,
    monitor: Option<Monitor>,
    set_up_host: impl FnOnce() -> anyhow::Result<()>,
    args: &RunArgs,
    settings: &Settings,
    levels: &Arc<Levels>,
) -> anyhow::Result<()>
where
    K4: Kernel<V4> + Send + 'static,
    K6: Kernel<V6> + Send + 'static,
{
    let is_dry = args.dry_run.dry_run;
    let node_name = super::node_name(settings)?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node_name, "nftproxy starts"
    );
    info!(version = env!("CARGO_PKG_VERSION"), "Version info");
    for (name, value) in &settings.flags {
        debug!("FLAG: --{name}={value:?}");
    }
    set_up_host()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let families = families(&kernels);
        info!("Using nftables Proxier");
        let min_sync_period = settings.min_sync_period;
        debug!(
            minSyncPeriod = min_sync_period.map_or("by cost".into(), |it| format!("{it:?}")),
            syncPeriod = ?settings.sync_period,
            "NFTables sync params"
        );
        let mark = format!("{:#010x}", 1_u32 << settings.masquerade_bit);
        debug!(mark, "Using nftables mark for masquerade");
        let metrics = Metrics::new(&families, &settings.feature_gates.list());
        let node_info = args
            .manifests
            .is_some()
            .then(|| super::node_info(&args.node));
        let expects_node = node_info.is_none();
        let is_counting = args.count_connections && !is_dry && can_count();
        if is_counting {
            counts::start(&metrics, &families).context("preparing to read counters")?;
        }
        let this_node = ThisNode::new(
            node_name.clone(),
            NodeSettings {
                counts: is_counting,
                hashes: is_dry || can_hash(),
                ..NodeSettings::new(settings)
            },
            check::Families::new(settings, &families),
            node_info,
            host::addresses,
        );
        let takes_over = !is_dry && args.take_over.unwrap_or(expects_node);
        let predecessor = takes_over
            .then(|| Table::new(KUBE_PROXY_TABLE, 0))
            .transpose()
            .context("naming kube-proxy's table")?;
        let options = options(&this_node, predecessor, is_dry, settings);
        let mut engine = Engine::new(kernels, options, Instant::now());
        if !is_dry {
            tell_of_gone(&mut engine, args)?;
        }
        let standing = Standing::new(engine.health().clone(), &families, expects_node);
        let standing = Arc::new(standing);

        // Whoever asks is answered before there is an API server to be reached.
        let http = http::Thread::start().context("starting the thread of the servers")?;
        let mut failures = serve(&http, settings, &metrics, &standing, levels);
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
        let mut recorder = follow_cluster(args, settings, &node_name, &sender, &metrics)?;
        if is_dry {
            // Nobody is to take it for the proxy of this node.
            recorder = Recorder::default();
        }
        recorder.record(of_node(&node_name, false, "Starting"));
        addresses::watch(sender.clone()).context("watching the addresses of this host")?;
        let _watch = monitor
            .map(|monitor| {
                watch_in_background(monitor, move |event| {
                    sender.blocking_send(Event::Cluster(event)).is_ok()
                })
            })
            .transpose()
            .context("starting a thread that watches the tables")?;

        let followers = if is_dry {
            idle_followers()
        } else {
            Followers {
                flows: forget_flows(&metrics)?,
                health_check_node_ports: health_check_node_port::start(
                    http.handle(),
                    engine.health().clone(),
                    node_name.clone(),
                    recorder.clone(),
                ),
                loopback: settings
                    .node_ports_on_loopback
                    .then(|| loopback::start(http.handle())),
                recorder: recorder.clone(),
                removes_leftovers: takes_over,
            }
        };
        let tally = Tally::new(metrics, &families);
        let period = settings.sync_period;
        let proxy = Proxy::new(engine, this_node, followers, standing, tally, period);
        let stopped = on_own_thread(proxy, receiver)?;
        let mut config = watch_config(settings.file.as_deref());
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        tokio::select! {
            _ = terminate.recv() => info!("stopped by SIGTERM; the rules stay in force"),
            _ = interrupt.recv() => info!("stopped by SIGINT; the rules stay in force"),
            () = async {
                match &mut config {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            } => bail!("content of the proxy server's configuration file was updated"),
            Some(failed) = failures.recv() => {
                recorder.record(Occurrence {
                    note: failed.note(),
                    ..of_node(&node_name, true, failed.server.reason())
                });
                recorder.flush().await;
                return Err(failed.into());
            }
            result = stopped => {
                return result.context("the proxy's loop has ended")?;
            }
        }
        notify(STOPPING);
        Ok(())
    })
}

fn watch_config(file: Option<&Path>) -> Option<ConfigWatch> {
    match config_watch::watch(file?) {
        Ok(watch) => Some(watch),
        Err(error) => {
            let error = format!("{error:#}");
            warn!(error, "changes of the configuration file are not noticed");
            None
        }
    }
}

/// kube-proxy's Events of its start.
fn of_node(name: &str, is_warning: bool, reason: &'static str) -> Occurrence {
    Occurrence {
        regarding: Regarding::Node(name.to_owned()),
        is_warning,
        reason,
        action: "StartKubeProxy",
        note: String::new(),
    }
}

/// Many clients of the servers need many files, as Go's programs have them. More than a low limit is
/// a gift, so a refusal hurts nobody.
fn raise_file_limit() {
    let limits = getrlimit(Resource::RLIMIT_NOFILE);
    let raised = limits.and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        debug!(%error, "the limit of open files stays as it is");
    }
}

fn families<K4, K6, T>(kernels: &Kernels<K4, K6, T>) -> Vec<IpFamily> {
    let v4 = kernels.v4.as_ref().map(|_| IpFamily::V4);
    let v6 = kernels.v6.as_ref().map(|_| IpFamily::V6);
    v4.into_iter().chain(v6).collect()
}

/// Starts a thread that forgets stale flows.
fn forget_flows(metrics: &Metrics) -> anyhow::Result<std::sync::mpsc::Sender<Flows>> {
    let conntrack = Conntrack::open().context("opening connection tracking")?;
    let conntrack = Measured::new(conntrack, metrics.proxy.clone());
    let own = metrics.own.clone();
    forget_in_background(Forgetter::new(conntrack), move |outcome| {
        own.flows(outcome);
        report::log(outcome);
    })
    .context("starting a thread for connection tracking")
}

/// Followers that follow nothing, as there are no rules.
fn idle_followers() -> Followers {
    let (health_check_node_ports, mut checks) = mpsc::unbounded_channel();
    tokio::spawn(async move { while checks.recv().await.is_some() {} });
    Followers {
        // No flow is handed over.
        flows: std::sync::mpsc::channel().0,
        health_check_node_ports,
        loopback: None,
        recorder: Recorder::default(),
        removes_leftovers: false,
    }
}

fn options(
    this_node: &ThisNode,
    takes_over: Option<Table>,
    is_dry: bool,
    settings: &Settings,
) -> Options {
    let flows = if is_dry {
        FlowOption::Ignore
    } else {
        FlowOption::HandOver
    };
    Options {
        node: this_node.node(),
        node_patience: this_node.patience(),
        pace: Pace {
            min_sync_period: settings.min_sync_period,
            sync_period: settings.sync_period,
            comparison_period: spread(Pace::default().comparison_period),
        },
        takes_over,
        flows,
        ..Options::default()
    }
}

/// Starts following the cluster, or the manifests that stand in for one.
fn follow_cluster(
    args: &RunArgs,
    settings: &Settings,
    node_name: &str,
    sender: &mpsc::Sender<Event>,
    metrics: &Metrics,
) -> anyhow::Result<Recorder> {
    let Some(path) = &args.manifests else {
        return api::start(settings, node_name, sender, &metrics.api);
    };
    // The watch comes first, so that no change is missed in between.
    let watcher = manifests::watch(path)?;
    let source = Source::open(path)?;
    let allow_external_ips = settings.feature_gates.allow_service_external_ips;
    let converter = Converter::new(node_name, allow_external_ips);
    tokio::spawn(follow(source, watcher, converter, sender.clone()));
    // Nobody reads Events of files.
    Ok(Recorder::default())
}

/// Starts the servers of health and metrics; says if one of them had to start and could not.
fn serve(
    http: &http::Thread,
    settings: &Settings,
    metrics: &Metrics,
    standing: &Arc<Standing>,
    levels: &Arc<Levels>,
) -> mpsc::Receiver<Failed> {
    let (sender, failures) = mpsc::channel(1);
    let gates = settings.feature_gates;
    if let Some(address) = settings.healthz_bind_address {
        let handler = Health {
            standing: standing.clone(),
            metrics: metrics.proxy.clone(),
        };
        let is_hard = settings.bind_address_hard_fail;
        http.serve(Server::Healthz, address, is_hard, handler, sender.clone());
    }
    if let Some(address) = settings.metrics_bind_address {
        let handler = Pages {
            metrics: metrics.clone(),
            slis: Slis::new(),
            configuration: settings.effective.to_json(),
            flags: gates.component_flagz.then(|| settings.flags.clone()),
            has_statusz: gates.component_statusz,
            levels: settings.enable_profiling.then(|| levels.clone()),
        };
        let is_hard = settings.bind_address_hard_fail;
        http.serve(Server::Metrics, address, is_hard, handler, sender);
    }
    failures
}

/// Has clients told of endpoints that are gone, if that is asked for.
fn tell_of_gone<K4: Kernel<V4>, K6: Kernel<V6>, T: FlowTable>(
    engine: &mut Engine<K4, K6, T>,
    args: &RunArgs,
) -> anyhow::Result<()> {
    let gone = GoneTable::open(&Table::default(), None)?;
    if args.fail_fast {
        engine.fail_fast(gone);
    } else {
        gone.discard();
    }
    Ok(())
}

/// Checks the host, and opens connections to its kernel, one for each family whose rules it takes.
/// And whatever hears of changes by others, if that can be had.
fn open_kernels(
    args: &RunArgs,
    settings: &Settings,
) -> anyhow::Result<(Kernels<Netlink, Netlink, Conntrack>, Option<Monitor>)> {
    let families = check_kernel(settings, false)?;
    let open = |family| {
        let is_usable = families.contains(&family);
        is_usable.then(Netlink::open).transpose()
    };
    let mut kernels = Kernels {
        v4: open(IpFamily::V4)?,
        v6: open(IpFamily::V6)?,
        // Flows are forgotten elsewhere.
        flows: None,
    };
    if args.hold_tables {
        let mut can_hold = true;
        for netlink in kernels.v4.iter_mut().chain(&mut kernels.v6) {
            can_hold &= netlink.hold().context("trying to hold a table")?;
        }
        if !can_hold {
            warn!("this kernel cannot hold tables, which takes 6.9; they are repaired instead");
        }
    }
    let monitor = match Monitor::open(&Table::default(), None) {
        Ok(mut monitor) => {
            let netlinks = kernels.v4.iter_mut().chain(&mut kernels.v6);
            netlinks.for_each(|netlink| monitor.know(netlink));
            Some(monitor)
        }
        Err(error) => {
            let error = chain(&error);
            warn!(
                error,
                "the kernel does not tell of changes by others; it is asked instead"
            );
            None
        }
    };
    Ok((kernels, monitor))
}

/// Whether this kernel's rules can hash clients' addresses, should a Service ask for it.
fn can_hash() -> bool {
    let can_hash = Netlink::open().and_then(|mut netlink| netlink.can_hash());
    can_hash.unwrap_or_else(|error| {
        let error = chain(&error);
        debug!(error, "whether this kernel can hash addresses is not known");
        true
    })
}

/// Whether maps can count on this kernel, as they are to.
fn can_count() -> bool {
    match counts::can_count() {
        Ok(true) => true,
        Ok(false) => {
            warn!("this kernel's maps cannot count; connections are not counted");
            false
        }
        Err(error) => {
            let error = chain(&error);
            warn!(error, "connections are not counted");
            false
        }
    }
}

/// Looks whether this host can run the proxy; the families whose rules it takes. Beside a kube-proxy,
/// that it is there is no matter.
pub(super) fn check_kernel(
    settings: &Settings,
    is_beside_kube_proxy: bool,
) -> anyhow::Result<Vec<IpFamily>> {
    let check::Kernel { families, findings } = check::kernel(settings);
    let errors: Vec<_> = findings
        .iter()
        .filter(|finding| finding.level == Level::Error)
        .map(Finding::to_string)
        .collect();
    if !errors.is_empty() {
        bail!("{}", errors.join("; "));
    }
    log(&findings);
    let mut surroundings = check::surroundings(settings, &families);
    surroundings.retain(|finding| !is_beside_kube_proxy || finding.check != "neighbours");
    log(&surroundings);
    Ok(families)
}

fn log(findings: &[Finding]) {
    for finding in findings {
        let check = finding.check;
        match finding.level {
            Level::Ok => debug!(check, "{finding}"),
            Level::Note => info!(check, "{finding}"),
            Level::Warning | Level::Error => warn!(check, "{finding}"),
        }
    }
}

/// Runs the loop on a thread of its own, so that a long commit holds nothing else up.
fn on_own_thread<K4, K6, T>(
    proxy: Proxy<K4, K6, T>,
    events: mpsc::Receiver<Event>,
) -> anyhow::Result<tokio::sync::oneshot::Receiver<anyhow::Result<()>>>
where
    K4: Kernel<V4> + Send + 'static,
    K6: Kernel<V6> + Send + 'static,
    T: FlowTable + Send + 'static,
{
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("sync".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            let result = runtime
                .context("starting the loop's runtime")
                .and_then(|runtime| Ok(runtime.block_on(proxy.run(events))?));
            // Nobody is left to be told if the process is already stopping.
            let _ = sender.send(result);
        })
        .context("starting the loop's thread")?;
    Ok(receiver)
}

/// The period, or up to a quarter more or less, so that nodes which started together do not all work
/// at the same moments for ever.
fn spread(period: Duration) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    // Keys of hash maps are the one source of randomness that the standard library has.
    let random = RandomState::new().hash_one(()) as u32;
    let half = period / 2;
    period * 3 / 4 + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_are_spread_by_a_quarter() {
        let hour = Duration::from_secs(3600);
        let spread: std::collections::BTreeSet<_> = (0..100).map(|_| spread(hour)).collect();
        assert!(spread.len() > 50, "they differ");
        assert!(*spread.first().unwrap() >= hour * 3 / 4);
        assert!(*spread.last().unwrap() <= hour * 5 / 4);
    }
}
