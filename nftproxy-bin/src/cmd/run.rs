//! `nftproxy run`: keeps this node's rules in step, from an API server or from files.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nftproxy_core::apply::Kernel;
use nftproxy_core::apply::netlink::conntrack::Conntrack;
use nftproxy_core::apply::netlink::{Monitor, Netlink, share_heap};
use nftproxy_core::driver::{forget_in_background, watch_in_background};
use nftproxy_core::engine::flows::{FlowTable, Forgetter};
use nftproxy_core::engine::{Engine, FlowOption, Kernels, Options, Pace};
use nftproxy_core::host;
use nftproxy_core::model::{IpFamily, V4, V6};
use nftproxy_core::ruleset::Table;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::args::RunArgs;
use crate::check::{self, Finding, Level};
use crate::config::Settings;
use crate::daemon::node::ThisNode;
use crate::daemon::run_loop::{Followers, NODE_PATIENCE, Proxy};
use crate::daemon::{health_check_node_port, report};
use crate::error::chain;
use crate::source::files::{Converter, follow};
use crate::source::manifests::{self, Source};
use crate::source::{Event, addresses, api};

/// Events that may wait for a sync to finish; whoever has more waits with them.
pub(crate) const EVENT_QUEUE: usize = 1024;

/// Runs until told to stop. The rules stay in the kernel.
pub(crate) fn run(args: &RunArgs, settings: &Settings) -> anyhow::Result<()> {
    share_heap();
    let node_name = super::node_name(settings)?;
    let allow_external_ips = settings.feature_gates.allow_service_external_ips;
    let (kernels, monitor) = open_kernels(settings)?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node_name, "nftproxy starts"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
        let node_info = match &args.manifests {
            Some(path) => {
                // The watch comes first, so that no change is missed in between.
                let watcher = manifests::watch(path)?;
                let source = Source::open(path)?;
                let converter = Converter::new(&node_name, allow_external_ips);
                tokio::spawn(follow(source, watcher, converter, sender.clone()));
                Some(super::node_info(&args.node))
            }
            None => {
                api::start(settings, &node_name, &sender, None)?;
                None
            }
        };
        addresses::watch(sender.clone()).context("watching the addresses of this host")?;
        let _watch = monitor
            .map(|monitor| {
                watch_in_background(monitor, move |event| {
                    sender.blocking_send(Event::Cluster(event)).is_ok()
                })
            })
            .transpose()
            .context("starting a thread that watches the tables")?;

        let this_node = ThisNode::new(super::node_settings(settings), node_info, host::addresses);
        let flows = Forgetter::new(Conntrack::open().context("opening connection tracking")?);
        let engine = Engine::<_, _, Conntrack>::new(
            kernels,
            Options {
                node: this_node.node(),
                node_patience: if args.manifests.is_some() {
                    Duration::ZERO
                } else {
                    NODE_PATIENCE
                },
                pace: Pace {
                    min_sync_period: settings.min_sync_period,
                    sync_period: settings.sync_period,
                    ..Pace::default()
                },
                flows: FlowOption::HandOver,
                ..Options::default()
            },
            Instant::now(),
        );
        let followers = Followers {
            flows: forget_in_background(flows, report::log)
                .context("starting a thread for connection tracking")?,
            health_check_node_ports: health_check_node_port::start(engine.health().clone()),
        };
        let proxy = Proxy::new(engine, this_node, followers);
        let stopped = on_own_thread(proxy, receiver)?;
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        tokio::select! {
            _ = terminate.recv() => info!("stopped by SIGTERM; the rules stay in force"),
            _ = interrupt.recv() => info!("stopped by SIGINT; the rules stay in force"),
            result = stopped => {
                return result.context("the proxy's loop has ended")?.context("syncing the rules");
            }
        }
        Ok(())
    })
}

/// Checks the host, and opens connections to its kernel, one for each family whose rules it takes.
/// And whatever hears of changes by others, if that can be had.
fn open_kernels(
    settings: &Settings,
) -> anyhow::Result<(Kernels<Netlink, Netlink, Conntrack>, Option<Monitor>)> {
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
    log(&check::surroundings(settings, &families));
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
